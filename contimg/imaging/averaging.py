"""Averaging in frequency, as far as no source in the field loses more than a little: the same few
channels on all baselines, so that visibilities stay rows x channels."""

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
_BEAM_EDGE_DEG = 1.35  # the beam's half-power point at 1.4 GHz
_MOST_CHANNELS = 48
_PLANNED_FREQUENCIES = 16


@dataclass(frozen=True)
class Averaged:
    """Visibilities (nrow, nchan) that are imaged, with their natural weights in Jy^-2 (0 where
    flagged) and the image's; uvw_m (nrow, 3), freq_hz (nchan,). `loss`: what the averaging takes
    from the peak of a source at the edge of the field.

    time_weights, freq_weights  sums of the image's weights, of each integration and of each channel
                                before averaging: what sky and beam are averaged with (Briggs'
                                weights favour the ends of a group, by 10 % on a sparse array)
    """

    uvw_m: np.ndarray
    freq_hz: np.ndarray
    vis: np.ndarray
    natural: np.ndarray
    weights: np.ndarray
    channels: int  # averaged in one
    loss: float
    time_weights: np.ndarray
    freq_weights: np.ndarray

    def as_stokes(self, stokes: StokesI) -> StokesI:
        """The averages in the shape that they were made of; changed in place, they are changed
        here."""
        shape = (*stokes.vis.shape[:2], len(self.freq_hz))
        width_hz = stokes.observation.channel_width_hz
        return replace(
            stokes,
            observation=replace(stokes.observation, freq_hz=self.freq_hz),
            vis=self.vis.reshape(shape),
            weights=self.natural.reshape(shape),
            averaged_hz=self.channels * width_hz if self.channels > 1 else 0.0,
        )

    def notes(self) -> dict:
        """For the stage's result: the noise (Jy/beam) that the image's weights let expect, too."""
        return {
            "averaging_loss": self.loss,
            "averaged_channels": self.channels,
            "visibilities": self.vis.size,
            "thermal_jy": expected_noise(weights=self.weights, natural=self.natural),
        }


def edge_deg(options: ImagingConfig) -> float:
    """How far from the phase centre a source must not lose flux: the half-power point, or the
    corner of a smaller image."""
    return min(_BEAM_EDGE_DEG, options.imsize * options.cell_arcsec / 3600 / np.sqrt(2))


def smearing(
    *, length_m: np.ndarray, width_hz: float, channels: int, edge_deg: float
) -> np.ndarray:
    """Share of the amplitude that averaging over so many channels takes from a source `edge_deg`
    off, on top of what one channel takes: 1 - sinc(n x) / sinc(x), x = width * delay (Bridle &
    Schwab 1999)."""
    x = width_hz * length_m * np.sin(np.radians(edge_deg)) / SPEED_OF_LIGHT_M_S
    return 1 - np.sinc(channels * x) / np.sinc(x)


def plan_averaging(stokes: StokesI, options: ImagingConfig) -> int:
    """How many channels to average: the most, of those that divide their number, that keep the loss
    below MAX_LOSS, weighted as the image is (with the weights at some frequencies)."""
    if options.average_channels:
        return options.average_channels
    freq_hz = stokes.observation.freq_hz
    few_hz = freq_hz[:: max(1, len(freq_hz) // _PLANNED_FREQUENCIES)]
    rows = stokes.weights.sum(axis=2).reshape(-1, 1)
    uvw_m = stokes.rows.uvw_m.reshape(-1, 3)
    weights = image_weights(
        uvw_m=uvw_m,
        freq_hz=few_hz,
        natural=np.broadcast_to(rows, (len(rows), len(few_hz))),
        options=options,
    ).sum(axis=1)
    width_hz, edge = stokes.observation.channel_width_hz, edge_deg(options)
    for channels in range(min(_MOST_CHANNELS, len(freq_hz)), 1, -1):
        if len(freq_hz) % channels == 0 and (
            _loss(uvw_m, weights, width_hz, channels, edge) <= MAX_LOSS
        ):
            return channels
    return 1


def _loss(
    uvw_m: np.ndarray, weights: np.ndarray, width_hz: float, channels: int, edge_deg: float
) -> float:
    """Mean loss of rows with weights (nrow,)."""
    if not weights.any():
        return 0.0
    length_m = np.hypot(uvw_m[:, 0], uvw_m[:, 1])
    lost = smearing(length_m=length_m, width_hz=width_hz, channels=channels, edge_deg=edge_deg)
    return float(np.average(lost, weights=weights))


def average(stokes: StokesI, options: ImagingConfig) -> Averaged:
    """Weighted means over as many channels as `plan_averaging` says, with the image's weights."""
    channels = plan_averaging(stokes, options)
    observation = stokes.observation
    nchan = len(observation.freq_hz)
    vis, natural = (values.reshape(-1, nchan) for values in (stokes.vis, stokes.weights))
    freq_hz = observation.freq_hz
    if channels > 1:
        few = -(-nchan // channels)
        of_channels = np.maximum(stokes.freq_weights, 1e-30)
        parts = [slice(k * channels, (k + 1) * channels) for k in range(few)]
        freq_hz = np.array([np.average(freq_hz[p], weights=of_channels[p]) for p in parts])
        vis, natural = _means(vis, natural, channels, few)
    uvw_m = np.ascontiguousarray(stokes.rows.uvw_m.reshape(-1, 3))
    weights = image_weights(uvw_m=uvw_m, freq_hz=freq_hz, natural=natural, options=options)
    loss = _loss(
        uvw_m, weights.sum(axis=1), observation.channel_width_hz, channels, edge_deg(options)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        of_image = weights.sum(axis=0, dtype=float) / natural.sum(axis=0, dtype=float)
    freq_weights = stokes.freq_weights * np.nan_to_num(np.repeat(of_image, channels)[:nchan])
    time_weights = weights.reshape(len(stokes.vis), -1).sum(axis=1, dtype=float)
    return Averaged(
        uvw_m, freq_hz, vis, natural, weights, channels, loss, time_weights, freq_weights
    )


@njit(parallel=True, cache=True)
def _means(vis, weights, channels, few):
    """Weighted means over channels, weight 0 where all is flagged."""
    nrow, nchan = vis.shape
    means, sums = np.empty((nrow, few), np.complex64), np.empty((nrow, few), np.float32)
    for r in prange(nrow):
        for k in range(few):
            total, weight = np.complex64(0), np.float32(0)
            for c in range(k * channels, min((k + 1) * channels, nchan)):
                total += weights[r, c] * vis[r, c]
                weight += weights[r, c]
            sums[r, k] = weight
            means[r, k] = total / weight if weight > 0 else np.complex64(0)
    return means, sums


def write_measurement_set(averaged: Averaged, stokes: StokesI, path: Path) -> Path:
    """For an imager that reads files: DATA with XX = YY = I."""
    nbaseline, few = stokes.vis.shape[1], len(averaged.freq_hz)
    width_hz = stokes.observation.channel_width_hz * averaged.channels
    coarse = replace(stokes.observation, freq_hz=averaged.freq_hz, channel_width_hz=width_hz)
    with mset.creating(path, coarse, stokes.rows, few) as table:
        for first in range(0, len(averaged.vis), nbaseline):
            part = slice(first, first + nbaseline)
            data, weight = (
                np.repeat(values[part, :, None], 2, axis=2)
                for values in (averaged.vis, averaged.natural)
            )
            for name, values in (
                ("DATA", data),
                ("FLAG", weight == 0),
                ("WEIGHT_SPECTRUM", weight / 2),
            ):
                table.putcol(name, values, first, nbaseline)
        row_weights = averaged.natural.sum(axis=1, keepdims=True) / 2 / few
        mset.put_row_weights(table, np.repeat(row_weights, 2, axis=1))
    return path
