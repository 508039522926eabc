"""Plots of calibrated visibilities: against baseline length, and along the band."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from contimg.plots.style import ORANGE, only_words
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.visibilities import measurement_set as mset

_UV_INTEGRATIONS = 2  # of 24: as many visibilities as pixels
_UV_BLOCKS = 16  # channels are averaged to so many
_SPECTRUM_TIMES, _SPECTRUM_CHANNELS = 8, 48  # cells of a spectrum, at most


def draw_uv(ms: Path, observation: mset.Observation, rows: mset.Rows, group: str):
    """Coverage of the uv plane by what is not flagged, and amplitude against uv distance."""
    ntime, nbaseline = rows.shape
    times = np.unique(np.linspace(0, ntime - 1, _UV_INTEGRATIONS).round().astype(int))
    crossed = np.flatnonzero(rows.ant_1 != rows.ant_2)
    if not len(crossed):
        return only_words(f"{group}: no baseline")
    numbers = (times[:, None] * nbaseline + crossed).ravel()
    data = mset.read_rows_of(ms, "CORRECTED_DATA", numbers)
    flags = mset.read_rows_of(ms, "FLAG", numbers)
    blocks = np.array_split(
        np.arange(len(observation.freq_hz)), min(_UV_BLOCKS, len(observation.freq_hz))
    )
    good = (~flags).astype(np.float32)
    weights = np.stack([good[:, b].sum(axis=(1, 2)) for b in blocks], axis=1)
    sums = np.stack([(data[:, b] * good[:, b]).sum(axis=(1, 2)) for b in blocks], axis=1)
    wavenumbers = (
        np.array([observation.freq_hz[b].mean() for b in blocks]) / SPEED_OF_LIGHT_M_S / 1e3
    )
    uv = rows.uvw_m[times][:, crossed, :2].reshape(-1, 1, 2) * wavenumbers[:, None]
    used = weights > 0
    uv, amplitude = uv[used], np.abs(sums[used] / weights[used])
    if not len(uv):
        return only_words(f"{group}: no visibility is left")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13.5, 6), layout="constrained", width_ratios=(1, 1.2)
    )
    reach = 1.05 * np.abs(uv).max(initial=0.1)
    both, counted = np.concatenate([uv, -uv]), {"cmap": "viridis", "mincnt": 1, "linewidths": 0}
    shown = left.hexbin(
        *both.T,
        norm=LogNorm(vmin=0.9),
        gridsize=160,
        extent=(-reach, reach, -reach, reach),
        **counted,
    )
    figure.colorbar(shown, ax=left, label="Visibilities a cell", shrink=0.8)
    left.set(
        xlabel="u (kilowavelengths)",
        ylabel="v (kilowavelengths)",
        aspect="equal",
        title="Coverage",
        facecolor="0.93",
    )
    length = np.hypot(*uv.T)
    longest = 1.05 * length.max(initial=0.1)
    top = np.percentile(amplitude, 99.9) * 1.2 or 1.0
    shown = right.hexbin(
        length,
        amplitude,
        norm=LogNorm(vmin=0.9),
        gridsize=(120, 70),
        extent=(0, longest, 0, top),
        **counted,
    )
    figure.colorbar(shown, ax=right, label="Visibilities a cell", shrink=0.8)
    edges = np.linspace(0, length.max(initial=0.1), 25)
    place = np.digitize(length, edges) - 1
    medians = [
        np.median(amplitude[place == k]) if (place == k).sum() > 20 else np.nan  # the line ends
        for k in range(24)
    ]
    if np.isfinite(medians).any():
        middles = (edges[1:] + edges[:-1]) / 2
        right.plot(middles, medians, "o-", ms=4, color=ORANGE, label="median")
        right.legend(frameon=False)
    right.set(
        xlabel="Length in the uv plane (kilowavelengths)",
        ylabel="Calibrated amplitude (Jy)",
        ylim=(0, top),
    )
    right.set(title=f"Stokes I, {len(blocks)} averages over the band", facecolor="0.93")
    figure.suptitle(f"{group}  ·  {len(times)} of {ntime} integrations", fontsize=11)
    return figure


def _averaged(data: np.ndarray) -> np.ndarray:
    """Visibilities (time, baseline, channel), NaN where flagged, as means of cells of the time and
    the band, so that signals rise above the noise."""
    for axis, cells in ((0, _SPECTRUM_TIMES), (2, _SPECTRUM_CHANNELS)):
        edges = np.linspace(0, data.shape[axis], min(cells, data.shape[axis]) + 1).round()
        edges = edges.astype(int)[:-1]
        there = np.isfinite(data)
        with np.errstate(invalid="ignore"):
            data = np.add.reduceat(np.where(there, data, 0), edges, axis=axis)
            data = data / np.add.reduceat(there, edges, axis=axis, dtype=int)
    return data


def draw_spectra(ms: Path, observation: mset.Observation, rows: mset.Rows, group: str):
    """Calibrated amplitude and phase against frequency and time, of baselines of all lengths."""
    ntime, nbaseline = rows.shape
    crossed = np.flatnonzero(rows.ant_1 != rows.ant_2)
    length_m = np.hypot(*rows.uvw_m[ntime // 2, :, :2].T)
    by_length = crossed[np.argsort(length_m[crossed])]
    if not len(by_length):
        return only_words(f"{group}: no baseline")
    candidates = by_length[np.linspace(0, len(by_length) - 1, 26).round().astype(int)[1:-1]]
    numbers = (np.arange(ntime)[:, None] * nbaseline + candidates).ravel()
    data = np.where(
        mset.read_rows_of(ms, "FLAG", numbers),
        np.nan,
        mset.read_rows_of(ms, "CORRECTED_DATA", numbers),
    )
    # flagged where either polarisation is
    data = data.mean(axis=2).reshape(ntime, len(candidates), -1)
    alive = np.flatnonzero(np.isfinite(data).any(axis=(0, 2)))
    alive = alive if len(alive) else np.arange(len(candidates))
    shown = np.unique(alive[np.linspace(0, len(alive) - 1, 6).round().astype(int)])
    data, some = _averaged(data[:, shown]), candidates[shown]
    figure, grid = plt.subplots(
        2,
        len(some),
        figsize=(2.4 * len(some), 6),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    start_s = (rows.time_mjd - rows.time_mjd[0]) * 86400
    extent = (
        observation.freq_hz[0] / 1e6,
        observation.freq_hz[-1] / 1e6,
        start_s[-1] + rows.integration_s,
        0,
    )
    finite = np.isfinite(data)
    top = np.percentile(np.abs(data[finite]), 98) if finite.any() else 1.0
    for k, (upper, lower) in enumerate(grid.T):
        style = {"aspect": "auto", "extent": extent, "interpolation": "nearest"}
        strong = upper.imshow(np.abs(data[:, k]), cmap="viridis", vmin=0, vmax=top, **style)
        turned = lower.imshow(
            np.degrees(np.angle(data[:, k])), cmap="twilight", vmin=-180, vmax=180, **style
        )
        one, two = (observation.antenna_names[a[some[k]]] for a in (rows.ant_1, rows.ant_2))
        upper.set_title(f"{one} - {two}, {length_m[some[k]]:.0f} m", fontsize=9)
        for axes in (upper, lower):
            axes.set_facecolor("0.8")
    figure.colorbar(strong, ax=grid[0], label="Amplitude (Jy)")
    figure.colorbar(turned, ax=grid[1], label="Phase (deg)", ticks=(-180, -90, 0, 90, 180))
    figure.supxlabel("Frequency (MHz)", fontsize=10)
    figure.supylabel("Time since the first integration (s)", fontsize=10)
    figure.suptitle(
        f"{group}  ·  calibrated Stokes I of six baselines, means of cells of "
        f"{ntime / data.shape[0]:.3g} integrations and "
        f"{len(observation.freq_hz) / data.shape[2]:.3g} channels; grey is flagged",
        fontsize=11,
    )
    return figure
