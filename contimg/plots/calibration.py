"""Plots of calibration sets: bandpasses, gains, and the page of a set."""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from contimg.calibration import tables as caltables
from contimg.plots.style import BLUE, ORANGE
from contimg.visibilities import measurement_set as mset

_CONSTANT = 1e-3  # amplitudes that are 1 by construction
_LEAST_SHARE, _LEAST_DEG = 0.05, 5.0  # half of an axis of gains


def plot_set(
    solved: Mapping,
    observation: mset.Observation,
    before: np.ndarray,
    after: np.ndarray,
    gains: caltables.Solutions,
) -> Figure:
    """One page for a calibration set: its numbers, its gains, and data over model with the
    reference antenna.

    before, after  data / model, (nant, nchan, npol), averaged over time
    """
    figure, grid = plt.subplots(
        3, 2, figsize=(12.5, 11), layout="constrained", height_ratios=(0.8, 1, 1)
    )
    names = dict(enumerate(observation.antenna_names))
    draw_station_gains(grid[0, 0], gains, names, np.abs)
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set(ylabel="Gain amplitude, after bandpass", ylim=(min(low, 0.97), max(high, 1.03)))
    grid[0, 1].set_axis_off()
    lines = [f"{'':18}" + "".join(f"{kind:>12}" for kind in solved["quality"])]
    for key in next(iter(solved["quality"].values())):
        numbers = "".join(f"{one[key]:12.4g}" for one in solved["quality"].values())
        lines.append(f"{key.replace('_', ' '):18}{numbers}")
    lines += [
        f"\nreference station {solved['refant']}; solver: {solved['solver']}",
        f"model: {solved['flux_jy']:.2f} Jy ({solved['flux_scale']})",
        f"at a mean beam of {solved['mean_beam']:.2f}, and {solved['field_sources']} field "
        "sources:",
        f"{solved['modelled_share']:.0%} of the catalogued flux in the beam",
        *_gate_lines(solved.get("gates", {})),
        *(textwrap.fill(f"NOT USED: {problem}", 88) for problem in solved["problems"]),
    ]
    grid[0, 1].text(0, 1, "\n".join(lines), family="monospace", fontsize=9, va="top", wrap=True)
    freq_mhz = observation.freq_hz / 1e6
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(before)))
    for column, (values, when) in enumerate(((before, "before"), (after, "after"))):
        upper, lower = grid[1, column], grid[2, column]
        for one, colour in zip(values, colours, strict=True):
            upper.plot(freq_mhz, np.abs(one), ".", ms=1.2, color=colour)
            lower.plot(freq_mhz, np.degrees(np.angle(one)), ".", ms=1.2, color=colour)
        top = np.nanpercentile(np.abs(values), 99.7) if np.isfinite(values).any() else 1
        upper.set(
            ylim=(0, 1.2 * top),
            title=f"{when} calibration, each station with the reference station",
        )
        upper.set_ylabel(
            "Data / model" + (" (correlator units per Jy)" if values is before else "")
        )
        lower.set(
            ylim=(-185, 185),
            yticks=range(-180, 181, 60),
            xlabel="Frequency (MHz)",
            ylabel="Phase (deg)",
        )
    mark = "" if solved["science"] else "  ·  NON_SCIENCE"
    figure.suptitle(
        f"Calibration set {solved['set_name']} on {solved['calibrator']}{mark}", fontsize=13
    )
    return figure


def _gate_lines(gates: Mapping) -> list[str]:
    """What the gates measured, in two lines."""
    if gates.get("sefd_jy") is None:
        return []
    place = ""
    if gates.get("offset_error_arcsec") is not None:
        away = np.hypot(gates["offset_east_arcsec"], gates["offset_north_arcsec"])
        place = f'; place {away:.1f}" +- {gates["offset_error_arcsec"]:.1f}"'
    explained = "-" if gates["explained"] is None else f"{gates['explained']:.1%}"
    return [
        f"receivers {gates['sefd_jy']:.0f} Jy, scatter {gates['sefd_scatter']:.2f}; signal to "
        f"noise {gates['snr'] or 0:.0f} of {gates['promised_snr'] or 0:.0f}",
        f"explained {explained}{place}",
    ]


def draw_bandpass(
    table: caltables.Solutions, freq_mhz: np.ndarray, names: Mapping[int, str], chosen: Mapping
):
    """Eight stations side by side in a panel: a panel for each station would take seconds to
    draw."""
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    columns = min(8, max(1, len(alive)))
    lines = max(1, -(-len(alive) // columns))
    figure, grid = plt.subplots(
        2 * lines, 1, figsize=(1.9 * columns, 2 * lines + 1.2), sharex=True, squeeze=False
    )
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(
        left=0.07, right=0.99, bottom=0.55 * inch, top=1 - 0.55 * inch, hspace=0.12
    )
    gains = np.where(table.flags, np.nan, table.gain)
    top = np.nanpercentile(np.abs(gains), 99.5) * 1.2 if np.isfinite(gains).any() else 1.0
    across = 0.04 + 0.92 * (freq_mhz - freq_mhz[0]) / max(np.ptp(freq_mhz), 1e-9)
    for k, antenna in enumerate(alive):
        upper, lower = grid[2 * (k // columns), 0], grid[2 * (k // columns) + 1, 0]
        gain = gains[table.antenna == antenna][0]
        for p, (name, colour) in enumerate((("XX", BLUE), ("YY", ORANGE))):
            style = {"ms": 2, "color": colour, "label": name if k == 0 else None}
            upper.plot(k % columns + across, np.abs(gain[:, p]), ".", **style)
            lower.plot(k % columns + across, np.degrees(np.angle(gain[:, p])), ".", **style)
        upper.text(
            k % columns + 0.5,
            0.97 * top,
            f"station {names[antenna]}",
            ha="center",
            va="top",
            fontsize=8,
        )
    for upper, lower in grid.reshape(-1, 2):
        upper.set(ylim=(0, top), xlim=(0, columns))
        lower.set(ylim=(-185, 185), yticks=(-180, 0, 180))
        for axes in (upper, lower):
            axes.tick_params(labelsize=7)
            for column in range(1, columns):
                axes.axvline(column, color="0.7", lw=0.8)
    places = np.interp((0.15, 0.85), across, freq_mhz) if len(freq_mhz) > 1 else freq_mhz[[0, 0]]
    grid[-1, 0].set_xticks(
        [c + x for c in range(columns) for x in (0.15, 0.85)],
        [f"{f:.0f}" for f in places] * columns,
    )
    grid[0, 0].legend(fontsize=7, markerscale=4, frameon=False, loc="lower left")
    figure.supxlabel("Frequency (MHz), of each station", fontsize=10)
    figure.supylabel("Amplitude (correlator units per Jy)$^{1/2}$ above phase (deg)", fontsize=10)
    figure.suptitle(
        f"Bandpass {chosen['set_name']} on {chosen['cal_field']} ({chosen['flux_scale']})",
        fontsize=11,
    )
    return figure


def draw_gains(table: caltables.Solutions, names: Mapping[int, str], chosen: Mapping):
    """Amplitude and phase of each antenna's gains."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    draw_station_gains(upper, table, names, np.abs)
    draw_station_gains(lower, table, names, lambda gain: np.degrees(np.angle(gain)))
    for axes, middle, least in ((upper, 1.0, _LEAST_SHARE), (lower, 0.0, _LEAST_DEG)):
        low, high = axes.get_ylim()  # gains that are 1 by construction are not blown up
        axes.set_ylim(min(low, middle - least), max(high, middle + least))
    upper.axhline(1, color="0.7", lw=0.8)
    lower.axhline(0, color="0.7", lw=0.8)
    upper.set_ylabel("Gain amplitude, after bandpass")
    lower.set_ylabel("Gain phase, after bandpass (deg)")
    upper.set_xlabel("")
    amplitudes = np.abs(table.gain[~table.flags])
    if amplitudes.size and np.ptp(amplitudes) < _CONSTANT:
        words = "amplitudes are in the bandpass; a phase for the whole band, to the reference"
        upper.text(0.01, 0.05, words, transform=upper.transAxes, fontsize=9, color="0.4")
    upper.set_title(
        f"Gains {chosen['set_name']} on {chosen['cal_field']} ({chosen['flux_scale']})", fontsize=11
    )
    return figure


def draw_station_gains(axes, table: caltables.Solutions, names: Mapping[int, str], part) -> None:
    """`part` of every gain (one a station, or one an interval), by station."""
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    place = np.searchsorted(alive, table.antenna)
    known = np.isin(table.antenna, alive)
    for p, (name, colour, marker) in enumerate((("XX", BLUE, "o"), ("YY", ORANGE, "s"))):
        gain = np.where(table.flags, np.nan, table.gain)[known, 0, p]
        axes.plot(
            place[known] + (p - 0.5) * 0.2, part(gain), marker, ms=3.5, color=colour, label=name
        )
    axes.set_xlabel("Station")
    every = max(1, -(-len(alive) // 48))
    axes.set_xticks(
        range(0, len(alive), every), [names[a] for a in alive][::every], rotation=90, fontsize=7
    )
    axes.legend(frameon=False)
