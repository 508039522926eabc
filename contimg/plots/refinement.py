"""Plots of what a group's own gains became, and of how a new set differs from its neighbours."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from contimg.calibration import tables as caltables
from contimg.calibration.words import summary
from contimg.plots.style import BLUE, ORANGE, only_words

_POLARISATIONS = (("XX", BLUE), ("YY", ORANGE))


def draw_refinement(
    refined: Mapping, table: caltables.Solutions | None, names: Sequence[str], group: str
) -> Figure:
    """Phases of each antenna in time, amplitudes by station, and the numbers that gains were
    accepted by, or not."""
    lines = summary(refined)
    if table is None:
        return only_words("\n".join(textwrap.fill(line, 90) for line in lines))
    figure, (upper, middle, lower) = plt.subplots(
        3, 1, figsize=(11, 9), layout="constrained", height_ratios=(1, 0.8, 0.5)
    )
    times = np.unique(table.time_mjd)
    minutes = (times - times[0]) * 1440
    moved = np.zeros(len(names))
    for a in np.unique(table.antenna):
        mine = table.antenna == a
        gain = np.where(table.flags, np.nan, table.gain)[mine, 0]
        for p, (_, colour) in enumerate(_POLARISATIONS):
            phase = np.degrees(np.angle(gain[:, p]))
            upper.plot(minutes, phase, "-", lw=0.6, color=colour, alpha=0.5)
            moved[a] = max(moved[a], np.nanmax(np.abs(phase), initial=0))
    named = [a for a in np.argsort(-moved)[:3] if moved[a] > 5]
    for a in named:
        last = np.angle(table.gain[table.antenna == a][-1, 0, 0], deg=True)
        upper.annotate(names[a], (minutes[-1], last), fontsize=8)
    reach = min(185, max(10, 1.1 * moved.max()))
    upper.set(ylim=(-reach, reach), xlabel="Minutes", ylabel="Phase since the set (deg)")
    size = np.full((len(names), 2), np.nan)
    for a in np.unique(table.antenna):
        size[a] = np.abs(np.where(table.flags, np.nan, table.gain)[table.antenna == a, 0]).mean(0)
    alive = np.flatnonzero(np.isfinite(size).any(axis=1) & (size != 1).any(axis=1))
    for p, (name, colour) in enumerate(_POLARISATIONS):
        place = np.arange(len(alive)) + (p - 0.5) * 0.2
        middle.plot(place, size[alive, p], "os"[p], ms=3.5, color=colour, label=name)
    every = max(1, -(-len(alive) // 48))
    labels = [names[a] for a in alive][::every]
    middle.set_xticks(range(0, len(alive), every), labels, rotation=90, fontsize=7)
    middle.axhline(1, color="0.7", lw=0.8)
    middle.set(xlabel="Station", ylabel="Amplitude since the set")
    middle.legend(frameon=False)
    lower.set_axis_off()
    text = "\n".join(textwrap.fill(line, 110) for line in lines)
    lower.text(0, 1, text, family="monospace", fontsize=9, va="top")
    figure.suptitle(f"{group}  ·  gains of its own: {refined['refine'][:70]}", fontsize=12)
    return figure


def draw_neighbours(registered: Mapping) -> Figure:
    """Amplitude, phase and delay of a new set's gains against those before and after it, by
    station."""
    gates = registered.get("gates", {})
    neighbours = gates.get("neighbours", [])
    if not neighbours:
        return only_words(f"set {registered['set_name']}: no other set to compare its gains with")
    what = (("amplitude", "Amplitude, times"), ("phase_deg", "Phase, off (deg)"))
    what += (("delay_ns", "Delay (ns)"),)
    figure, grid = plt.subplots(
        3, len(neighbours), figsize=(6.2 * len(neighbours), 8), layout="constrained", squeeze=False
    )
    for column, one in enumerate(neighbours):
        by_antenna = one["gains_change_by_antenna"]
        stations = list(by_antenna)
        for row, (key, label) in enumerate(what):
            axes = grid[row, column]
            for p, (name, colour) in enumerate(_POLARISATIONS):
                values = [by_antenna[s][key][p] for s in stations]
                values = np.array([np.nan if v is None else v for v in values])
                place = np.arange(len(stations)) + (p - 0.5) * 0.2
                axes.plot(place, values, "os"[p], ms=3.5, color=colour, label=name)
            every = max(1, -(-len(stations) // 40))
            axes.set_xticks(
                range(0, len(stations), every), stations[::every], rotation=90, fontsize=7
            )
            axes.set_ylabel(label)
        when = "later" if one["hours"] > 0 else "earlier"
        grid[0, column].set_title(
            f"against {one['compared_with']}, {abs(one['hours']):.1f} h {when}", fontsize=10
        )
        if gradient := one.get("phase_gradient"):
            grid[1, column].set_title(
                f"after a common gradient: {gradient['east_arcsec']:+.1f} arcsec east, "
                f"{gradient['north_arcsec']:+.1f} north",
                fontsize=9,
            )
    grid[0, 0].legend(frameon=False)
    figure.suptitle(f"Set {registered['set_name']} ({registered['status']})", fontsize=12)
    return figure
