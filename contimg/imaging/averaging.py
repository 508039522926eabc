"""Averaging in time and frequency, as far as no source in the field loses more than a little."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg.config import ImagingConfig
from contimg.imaging.stokes import StokesI
from contimg.imaging.weighting import expected_noise, image_weights
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.visibilities import measurement_set as mset

MAX_LOSS = 0.003
_PLANNED_LOSS = 0.9 * MAX_LOSS  # planned with the weights of whole rows
_BEAM_EDGE_DEG = 1.77  # the beam's 30 % point at 1.4 GHz
_MOST_CHANNELS = 48
_PLANNED_FREQUENCIES = 16


@dataclass(frozen=True)
class Averaged:
    """Averaged visibilities: uvw in wavelengths (n, 3), visibilities (n,), natural weights in Jy^-2
    (n,)."""

    uvw_lambda: np.ndarray
    vis: np.ndarray
    weights: np.ndarray
    loss: np.ndarray  # (n,): what the averaging takes from a source at the edge of the field


def edge_deg(options: ImagingConfig) -> float:
    """How far from the phase centre a source must not lose flux: the beam's 30 % point, or the
    corner of a smaller image."""
    return min(_BEAM_EDGE_DEG, options.imsize * options.cell_arcsec / 3600 / np.sqrt(2))


def smearing(
    *, length_m: np.ndarray, width_hz: float, channels: np.ndarray, edge_deg: float
) -> np.ndarray:
    """Share of the amplitude that averaging over so many channels takes from a source `edge_deg`
    off, on top of what one channel takes: 1 - sinc(n x) / sinc(x), x = width * delay (Bridle &
    Schwab 1999)."""
    x = width_hz * length_m * np.sin(np.radians(edge_deg)) / SPEED_OF_LIGHT_M_S
    return 1 - np.sinc(channels * x) / np.sinc(x)


def plan_averaging(stokes: StokesI, options: ImagingConfig, uniform: bool) -> np.ndarray:
    """How many channels to average on each baseline (nbaseline,): the most that keep the loss below
    MAX_LOSS, weighted as the image is (with the weights at some frequencies); `uniform`: the same
    number on all."""
    rows = stokes.rows
    freq_hz = stokes.observation.freq_hz
    width_hz = stokes.observation.channel_width_hz
    nchan = len(freq_hz)
    if options.average_channels:
        return np.full(rows.shape[1], options.average_channels)
    return _plan(
        lengths(rows),
        baseline_weights(stokes, options),
        width_hz,
        nchan,
        uniform,
        edge_deg(options),
    )


def baseline_weights(stokes: StokesI, options: ImagingConfig) -> np.ndarray:
    """About the sum of the image's weights on each baseline, from those at some frequencies."""
    freq_hz, rows = stokes.observation.freq_hz, stokes.rows
    few_hz = freq_hz[:: max(1, len(freq_hz) // _PLANNED_FREQUENCIES)]
    uvw = (rows.uvw_m[:, :, None] * few_hz[:, None] / SPEED_OF_LIGHT_M_S).reshape(-1, 3)
    weights = image_weights(
        uvw_lambda=uvw,
        natural=np.repeat(stokes.weights.sum(axis=2).ravel(), len(few_hz)),
        options=options,
    )
    return weights.reshape(*rows.shape, -1).sum(axis=(0, 2))


def lengths(rows: mset.Rows) -> np.ndarray:
    """Mean length of each baseline in the uv plane, (nbaseline,), m."""
    return np.hypot(*rows.uvw_m.mean(axis=0)[:, :2].T)


def _plan(
    length_m: np.ndarray,
    weights: np.ndarray,
    width_hz: float,
    nchan: int,
    uniform: bool,
    edge: float,
) -> np.ndarray:
    if not weights.any():
        weights = np.ones_like(length_m)
    most = min(_MOST_CHANNELS, nchan)
    x = np.maximum(width_hz * length_m * np.sin(np.radians(edge)) / SPEED_OF_LIGHT_M_S, 1e-9)

    # The fewest visibilities, sum 1 / n, for a given loss, sum w (x n)^2, have n proportional to (w
    # x^2)^(-1/3).
    shape = np.maximum(weights / weights.sum(), 1e-3 / len(x)) * x**2
    shape = (shape / np.median(shape)) ** (-1 / 3)

    def channels(factor: float) -> np.ndarray:
        return np.clip(np.floor(factor * shape + 0.5), 1, most).astype(np.int64)

    def loss(counts) -> float:
        return float(
            np.average(
                smearing(length_m=length_m, width_hz=width_hz, channels=counts, edge_deg=edge),
                weights=weights,
            )
        )

    if uniform:
        counts = [
            n
            for n in range(1, most + 1)
            if nchan % n == 0 and loss(np.full(len(x), n)) <= _PLANNED_LOSS
        ]
        return np.full(len(x), max(counts, default=1))
    factors = [
        factor for factor in np.geomspace(0.1, 100, 600) if loss(channels(factor)) <= _PLANNED_LOSS
    ]
    return channels(max(factors, default=0))


def average(stokes: StokesI, counts: np.ndarray, edge_deg: float) -> Averaged:
    """Weighted means over `counts` channels of each baseline, at their weighted mean frequency;
    weight 0 where all is flagged."""
    ntime, _, nchan = stokes.vis.shape
    starts = np.concatenate([[0], np.cumsum(-(-nchan // counts))])
    size = starts[-1]
    uvw = np.empty((ntime * size, 3))
    vis = np.empty(ntime * size, np.complex64)
    weights = np.empty(ntime * size, np.float32)
    per_m = stokes.observation.freq_hz / SPEED_OF_LIGHT_M_S
    for t in range(ntime):
        part = slice(t * size, (t + 1) * size)
        _average(
            stokes.vis[t],
            stokes.weights[t],
            stokes.rows.uvw_m[t],
            counts,
            starts,
            per_m,
            vis[part],
            weights[part],
            uvw[part],
        )
    loss = smearing(
        length_m=lengths(stokes.rows),
        width_hz=stokes.observation.channel_width_hz,
        channels=counts,
        edge_deg=edge_deg,
    ).astype(np.float32)
    return Averaged(uvw, vis, weights, np.tile(np.repeat(loss, np.diff(starts)), ntime))


@njit(parallel=True, cache=True)
def _average(vis, weights, uvw_m, counts, starts, per_m, out, out_weights, uvw):
    nchan = vis.shape[1]
    for b in prange(len(counts)):
        for k in range(starts[b + 1] - starts[b]):
            total, weight, where = np.complex64(0), np.float32(0), 0.0
            first, last = k * counts[b], min((k + 1) * counts[b], nchan)
            for c in range(first, last):
                w = weights[b, c]
                total += w * vis[b, c]
                weight += w
                where += w * per_m[c]
            i = starts[b] + k
            out_weights[i] = weight
            out[i] = total / weight if weight > 0 else np.complex64(0)
            scale = where / weight if weight > 0 else 0.5 * (per_m[first] + per_m[last - 1])
            for axis in range(3):
                uvw[i, axis] = uvw_m[b, axis] * scale


def expectations(stokes: StokesI, options: ImagingConfig) -> dict:
    """For an imager that does not say so: the noise (Jy/beam) to be expected of the image's
    weights, and what uniform averaging takes from a source at the edge."""
    averaged = average(stokes, plan_averaging(stokes, options, uniform=False), edge_deg(options))
    weights = image_weights(
        uvw_lambda=averaged.uvw_lambda, natural=averaged.weights, options=options
    )
    counts = plan_averaging(stokes, options, uniform=True)
    width_hz = stokes.observation.channel_width_hz
    loss = smearing(
        length_m=lengths(stokes.rows),
        width_hz=width_hz,
        channels=counts,
        edge_deg=edge_deg(options),
    )
    return {
        "thermal_jy": expected_noise(weights=weights, natural=averaged.weights),
        "averaging_loss": float(np.average(loss, weights=baseline_weights(stokes, options))),
    }


def write_measurement_set(stokes: StokesI, options: ImagingConfig, path: Path) -> Path:
    """Averaged visibilities for an imager that reads files: DATA with XX = YY = I, as many channels
    in one on all baselines."""
    observation, rows = stokes.observation, stokes.rows
    ntime, nbaseline, nchan = stokes.vis.shape
    counts = plan_averaging(stokes, options, uniform=True)
    channels = int(counts[0])
    few = -(-nchan // channels)
    weight = np.maximum(stokes.freq_weights, 1e-30)
    parts = [slice(k, k + channels) for k in range(0, nchan, channels)]
    freq_hz = np.array([np.average(observation.freq_hz[p], weights=weight[p]) for p in parts])
    coarse = replace(
        observation, freq_hz=freq_hz, channel_width_hz=observation.channel_width_hz * channels
    )
    starts = np.arange(nbaseline + 1) * few
    per_m = observation.freq_hz / SPEED_OF_LIGHT_M_S
    size = nbaseline * few
    vis = np.empty(size, np.complex64)
    weights = np.empty(size, np.float32)
    uvw = np.empty((size, 3))
    row_weights = np.empty((ntime, nbaseline), np.float32)
    with mset.creating(path, coarse, rows, few) as table:
        for t in range(ntime):
            _average(
                stokes.vis[t],
                stokes.weights[t],
                rows.uvw_m[t],
                counts,
                starts,
                per_m,
                vis,
                weights,
                uvw,
            )
            data, weight = (
                np.repeat(values.reshape(nbaseline, few, 1), 2, axis=2) for values in (vis, weights)
            )
            for name, values in (
                ("DATA", data),
                ("FLAG", weight == 0),
                ("WEIGHT_SPECTRUM", weight / 2),
            ):
                table.putcol(name, values, t * nbaseline, nbaseline)
            row_weights[t] = weight.sum(axis=(1, 2)) / 4
        mset.put_row_weights(table, np.repeat(row_weights.reshape(-1, 1) / few, 2, axis=1))
    return path
