"""All images of a day in one plot."""

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from contimg.plots.style import BLUE, ORANGE
from contimg.store import db


def plot_day(date: str, images: Sequence[Mapping]) -> Figure:
    """Noise, flags, fluxes and positions of a day's images (rows of `images`, pbcor, in order of
    time) against time."""
    figure, grid = plt.subplots(4, 1, figsize=(11, 10), sharex=True, layout="constrained")
    images = [one for one in images if one["start_mjd"] is not None]
    hours = np.array([(one["start_mjd"] - db.mjd(date)) * 24 for one in images])

    def draw(axes, key: str, factor: float, label: str, colour: str, marker: str) -> None:
        values = [np.nan if one[key] is None else one[key] * factor for one in images]
        axes.plot(hours, values, marker, ms=5, color=colour, label=label)

    draw(grid[0], "noise_jy", 1e3, "measured", BLUE, "o")
    draw(grid[0], "thermal_jy", 1e3, "thermal", ORANGE, "_")
    draw(grid[1], "flagged", 100, "flagged", BLUE, "o")
    draw(grid[2], "flux_ratio", 1, "median flux ratio", BLUE, "o")
    draw(grid[3], "offset_east_arcsec", 1, "east", BLUE, "o")
    draw(grid[3], "offset_north_arcsec", 1, "north", ORANGE, "s")
    labels = ("Noise (mJy/beam)", "Flagged (%)", "Flux / catalogue", "Offset (arcsec)")
    for axes, label, line in zip(grid, labels, (None, None, 1.0, 0.0), strict=True):
        axes.set_ylabel(label)
        if line is not None:
            axes.axhline(line, color="0.6", lw=0.8)
    grid[0].set_ylim(bottom=0)
    for axes in (grid[0], grid[3]):
        axes.legend(frameon=False, ncols=2)
    grid[3].set(xlabel="UTC (hours)", xlim=(0, 24), xticks=range(0, 25, 3))
    verdicts = Counter(one["verdict"] for one in images)
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    figure.suptitle(f"{date}  ·  {len(images)} images: {counts or 'none'}", fontsize=12)
    return figure
