"""Plots of tracts: a mosaic and its noise; noise against days."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from contimg.plots.style import BLUE, ORANGE

_MOST_PIXELS = 1000


def plot_mosaic(title: str, image: np.ndarray, weight: np.ndarray, about: Mapping) -> Figure:
    """Image (x, y; Jy/beam) and expected noise of a tract, side by side; `about`: the result of the
    rule."""
    step = max(1, max(image.shape) // _MOST_PIXELS)
    nx, ny = (n // step for n in image.shape)
    blocks = image[: nx * step, : ny * step].reshape(nx, step, ny, step)
    picture = np.fmax.reduce(np.fmax.reduce(blocks, axis=1), axis=2)
    with np.errstate(divide="ignore"):
        noise = np.where(weight > 0, weight**-0.5, np.nan)[::step, ::step]
    figure, axes = plt.subplots(1, 2, figsize=(15, 6.4), layout="constrained")
    noise_mjy = (about["noise_jy"] or about["expected_noise_jy"]) * 1e3
    lowest = np.nanmin(noise) * 1e3
    limits = {"vmin": -2 * noise_mjy, "vmax": 30 * noise_mjy, "cmap": "inferno"}
    shown = axes[0].imshow(1e3 * picture.T, origin="lower", interpolation="nearest", **limits)
    figure.colorbar(shown, ax=axes[0], label="mJy/beam (largest of each block)", shrink=0.8)
    shown = axes[1].imshow(
        1e3 * noise.T, origin="lower", vmin=lowest, vmax=4 * lowest, cmap="viridis"
    )
    figure.colorbar(shown, ax=axes[1], label="expected noise (mJy/beam)", shrink=0.8)
    ra, dec = about["centre_deg"]
    figure.suptitle(
        f"{title}  ·  RA {ra:g} deg, Dec {dec:+g} deg  ·  noise {noise_mjy:.3f} mJy/beam, "
        f"{about['noise_ratio']:.2f} of what the weights say  ·  {about['verdict']}",
        fontsize=12,
    )
    for one in axes:
        one.set(xticks=[], yticks=[], xlabel="east to the left, north up")
    return figure


def plot_noise(name: str, history: Sequence[Mapping]) -> Figure:
    """Noise of a tract against the number of days in it, and what the square root of days makes of
    the weights of the first; without and with what is the same every day (faint sources, sidelobes
    of what no single day cleaned)."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    rows = [one for one in history if one["noise_jy"]]
    days = np.array([one["days"] for one in rows])
    measured = np.array([one["noise_jy"] for one in rows]) * 1e3
    expected = np.array([one["expected_noise_jy"] for one in rows]) * 1e3
    axes.loglog(days, measured, "o", color=BLUE, label="measured")
    axes.loglog(days, expected, "_", ms=14, color=ORANGE, label="of the weights")
    if len(days) > 1:
        along = np.geomspace(days.min(), max(days.max(), days.min() + 1), 50)
        line = expected[0] * np.sqrt(days[0] / along)
        axes.loglog(along, line, color="0.6", lw=1, label="square root of days")
        sky = np.sqrt(max(np.median(measured**2 - expected**2), 0))
        label = f"and {sky:.3f} mJy that is there every day"
        axes.loglog(days, np.hypot(expected, sky), "--", color="0.6", lw=1, label=label)
    for axis in (axes.xaxis, axes.yaxis):  # no powers of ten
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set(xlabel="days", ylabel="noise (mJy/beam)", title=name)
    axes.legend(frameon=False)
    return figure


def plot_difference(
    title: str, difference: np.ndarray, weight: np.ndarray, others: np.ndarray, table: pd.DataFrame
) -> Figure:
    """A day less others, in units of the expected noise, with what changed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = difference / np.sqrt(1 / weight + 1 / others)
    step = max(1, max(sigma.shape) // _MOST_PIXELS)
    figure, axes = plt.subplots(figsize=(10, 7.4), layout="constrained")
    shown = axes.imshow(sigma[::step, ::step].T, origin="lower", vmin=-6, vmax=6, cmap="RdBu_r")
    figure.colorbar(shown, ax=axes, label="sigma", shrink=0.8)
    for kind, colour in ((True, ORANGE), (False, "black")):
        some = table[table.new == kind]
        label = f"{len(some)} new" if kind else f"{len(some)} changes of what was there"
        axes.plot(some.x / step, some.y / step, "o", ms=11, mfc="none", mec=colour, label=label)
    axes.set(title=title, xticks=[], yticks=[], xlabel="east to the left, north up")
    axes.legend(loc="upper right")
    return figure


def plot_curves(name: str, complete: pd.DataFrame, reliable: pd.DataFrame) -> Figure:
    """Completeness and reliability of a list of sources, by signal to noise."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    axes.plot(complete.snr, complete.share, "o-", color=BLUE, label="complete (injected sources)")
    label = "reliable (negative image; the last: of all above)"
    axes.plot(reliable.snr, reliable.share, "s--", color=ORANGE, label=label)
    axes.axvline(5, color="0.7", lw=0.8)
    axes.axhline(0.5, color="0.7", lw=0.8)
    axes.set(xlabel="signal to noise", ylabel="share", ylim=(0, 1.05), title=name)
    axes.legend(frameon=False, loc="lower right")
    return figure
