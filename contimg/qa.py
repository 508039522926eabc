"""Plots of one group."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse

from contimg import caltables
from contimg import measurement_set as mset
from contimg.config import Config
from contimg.paths import Paths

# Okabe & Ito (2008): told apart with any colour vision.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_THUMBNAIL_PIXELS = 900


def plot_group(group: str, config: Config, imaged: Mapping, chosen: Mapping, prepared: Mapping) -> dict[str, str]:
    """Draw every plot of a group; returns their paths by name."""
    paths = Paths.of(config)
    artifacts = {name: paths.qa(group, name) for name in ("image", "thumbnail", "catalogue", "bandpass", "gains", "flags")}
    artifacts["image"].parent.mkdir(parents=True, exist_ok=True)
    picture = _coarse_image(Path(imaged["images"]["image.pbcor"]), _THUMBNAIL_PIXELS)
    title = f"{group}  ·  {imaged['freq_hz'] / 1e9:.3f} GHz  ·  calibrated by {chosen['cal_field']} ({chosen['set_name']})"
    _save(_draw_image(picture, imaged, title), artifacts["image"])
    _save(_draw_thumbnail(picture, imaged), artifacts["thumbnail"], dpi=40)
    _save(_draw_catalogue(imaged, group), artifacts["catalogue"])
    observation = mset.read_observation(paths.ms(group))
    names = dict(enumerate(observation.antenna_names))
    bandpass = caltables.read(Path(chosen["tables"]["B"]))
    _save(_draw_bandpass(bandpass, observation.freq_hz / 1e6, names, chosen), artifacts["bandpass"])
    _save(_draw_gains(caltables.read(Path(chosen["tables"]["G"])), names, chosen), artifacts["gains"])
    _save(_draw_flags(prepared, observation.freq_hz / 1e6, group), artifacts["flags"])
    if paths.qa(group, "calibration").exists():  # drawn when its own set was solved
        artifacts["calibration"] = paths.qa(group, "calibration")
    return {name: str(path) for name, path in artifacts.items()}


def plot_set(
    page: Path, solved: Mapping, observation: mset.Observation, before: np.ndarray, after: np.ndarray, gains: caltables.Solutions
) -> None:  # fmt: skip
    """One page for a calibration set: its numbers, its gains, and data over model with the reference antenna.

    before, after  data / model, (nant, nchan, npol), averaged over time
    """
    figure, grid = plt.subplots(3, 2, figsize=(12.5, 11), layout="constrained", height_ratios=(0.8, 1, 1))
    names = dict(enumerate(observation.antenna_names))
    _draw_station_gains(grid[0, 0], gains, names, np.abs)
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
        f"at a mean beam of {solved['mean_beam']:.2f}, and {solved['field_sources']} field sources:",
        f"{solved['modelled_share']:.0%} of the catalogued flux in the beam",
        *(f"NOT USED: {problem}" for problem in solved["problems"]),
    ]
    grid[0, 1].text(0, 1, "\n".join(lines), family="monospace", fontsize=9, va="top", wrap=True)
    freq_mhz, colours = observation.freq_hz / 1e6, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(before)))
    for column, (values, when) in enumerate(((before, "before"), (after, "after"))):
        upper, lower = grid[1, column], grid[2, column]
        for one, colour in zip(values, colours, strict=True):
            upper.plot(freq_mhz, np.abs(one), ".", ms=1.2, color=colour)
            lower.plot(freq_mhz, np.degrees(np.angle(one)), ".", ms=1.2, color=colour)
        top = np.nanpercentile(np.abs(values), 99.7) if np.isfinite(values).any() else 1
        upper.set(ylim=(0, 1.2 * top), title=f"{when} calibration, each station with the reference station")
        upper.set_ylabel("Data / model" + (" (correlator units per Jy)" if values is before else ""))
        lower.set(ylim=(-185, 185), yticks=range(-180, 181, 60), xlabel="Frequency (MHz)", ylabel="Phase (deg)")
    mark = "" if solved["science"] else "  ·  NON_SCIENCE"
    figure.suptitle(f"Calibration set {solved['set_name']} on {solved['calibrator']}{mark}", fontsize=13)
    _save(figure, page)


def _save(figure, path: Path, dpi: int = 110) -> None:
    with mset.replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")
    plt.close(figure)


def _coarse_image(path: Path, pixels: int) -> np.ndarray:
    """(y, x) image reduced to about `pixels` on a side; each coarse pixel keeps its largest value, so sources stay."""
    from casacore import images

    data = images.image(str(path))
    values = data.getdata().squeeze()
    values = np.where(data.getmask().squeeze(), np.nan, values)
    factor = max(1, values.shape[0] // pixels)
    side = values.shape[0] // factor
    blocks = values[: side * factor, : side * factor].reshape(side, factor, side, factor)
    with np.errstate(all="ignore"):
        return np.where(np.isnan(blocks).all(axis=(1, 3)), np.nan, np.nanmax(np.nan_to_num(blocks, nan=-np.inf), axis=(1, 3)))


def _show(axes, picture: np.ndarray, imaged: Mapping):
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 3600 / 2
    rms_mjy = imaged["rms_jy"] * 1e3
    return axes.imshow(
        picture * 1e3, origin="lower", extent=(half_deg, -half_deg, -half_deg, half_deg), cmap="inferno",
        vmin=-2 * rms_mjy, vmax=25 * rms_mjy, interpolation="nearest",
    )  # fmt: skip


def _draw_image(picture: np.ndarray, imaged: Mapping, title: str):
    figure, axes = plt.subplots(figsize=(9.5, 8.4), layout="constrained")
    shown = _show(axes, picture, imaged)
    figure.colorbar(shown, ax=axes, label="Flux density, primary-beam corrected (mJy/beam)", shrink=0.85)
    ra0, dec0 = imaged["centre_deg"]
    for source in imaged["sources"]:
        east = (source["ra_deg"] - ra0 + 180) % 360 - 180
        position = (east * np.cos(np.radians(source["dec_deg"])), source["dec_deg"] - dec0)
        axes.plot(*position, "o", ms=11, mfc="none", mew=1, mec="#56B4E9" if source["found"] else "#999999")
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 7200
    exaggeration = 20
    beam = Ellipse(
        (half_deg * 0.88, -half_deg * 0.88), imaged["beam_minor_arcsec"] / 3600 * exaggeration,
        imaged["beam_major_arcsec"] / 3600 * exaggeration, angle=-imaged["beam_pa_deg"], fc="none", ec="black",
    )  # fmt: skip
    axes.add_patch(beam)
    axes.text(half_deg * 0.88, -half_deg * 0.97, f"beam x {exaggeration}", ha="center", fontsize=8)
    check = imaged["catalogue"]
    axes.set_title(
        f'{title}\nrms {imaged["rms_jy"] * 1e3:.2f} mJy/beam, beam {imaged["beam_major_arcsec"]:.0f}" x '
        f'{imaged["beam_minor_arcsec"]:.0f}"; {check["found"]} of {check["expected"]} catalogue sources found (circles)',
        fontsize=10,
    )
    axes.set_xlabel(f"Offset to the east of RA {ra0:.4f} deg (deg, ICRS)")
    axes.set_ylabel(f"Offset to the north of Dec {dec0:+.4f} deg (deg, ICRS)")
    return figure


def _draw_catalogue(imaged: Mapping, group: str):
    """Fluxes and positions against the catalogue's."""
    sources = [s for s in imaged["sources"] if s["found"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained", width_ratios=(1.25, 1))
    for inner, name, colour, marker in ((True, "beam above a half", _BLUE, "o"), (False, "beam below a half", _ORANGE, "s")):
        some = [s for s in sources if (s["beam"] >= 0.5) == inner]
        flux_jy, ratio, error = (
            np.array([function(s) for s in some])
            for function in (lambda s: s["catalogue_jy"], lambda s: s["flux_jy"] / s["catalogue_jy"],
                             lambda s: s["flux_jy"] / s["catalogue_jy"] / s["snr"])
        )  # fmt: skip
        style = {"fmt": marker, "ms": 4.5, "color": colour, "elinewidth": 0.8, "label": f"{name} ({len(some)})"}
        left.errorbar(flux_jy * 1e3, ratio, yerr=error, **style)
        # A position is known to the beam over twice the signal to noise.
        beam = imaged["beam_major_arcsec"], imaged["beam_minor_arcsec"]
        blur = np.array([np.sqrt(beam[0] * beam[1]) / (2 * s["snr"]) for s in some])
        right.errorbar([s["east_arcsec"] for s in some], [s["north_arcsec"] for s in some], xerr=blur, yerr=blur, **style)
    check = imaged["catalogue"]
    left.axhline(1, color="0.6", lw=0.8)
    left.set(xscale="log", xlabel="Catalogue flux density at the image's frequency (mJy)", ylabel="Measured / catalogue")
    for formatted in (left.xaxis.set_major_formatter, left.xaxis.set_minor_formatter):
        formatted("{x:g}")
    left.tick_params(axis="x", which="minor", labelsize=7)
    left.legend(frameon=False, fontsize=9)
    right.axhline(0, color="0.6", lw=0.8)
    right.axvline(0, color="0.6", lw=0.8)
    reach = max(1.0, *(abs(s[k]) for s in sources for k in ("east_arcsec", "north_arcsec"))) * 1.15 if sources else 1.0
    right.set(xlim=(reach, -reach), ylim=(-reach, reach), xlabel="Offset to the east (arcsec)", aspect="equal")
    right.set_ylabel("Offset to the north (arcsec)")
    numbers = "no source above 20 sigma inside the half-power beam"
    if check["compared"]:
        east, north = check["offset_east_arcsec"], check["offset_north_arcsec"]
        numbers = (
            f"{check['compared']} sources above 20 sigma inside the half-power beam: flux ratio {check['flux_ratio']:.3f}, "
            f'scatter {check["flux_scatter"]:.3f}; offset {east:+.2f}" east, {north:+.2f}" north'
        )
    reasons = f": {'; '.join(imaged['verdict_reasons'])}" if imaged["verdict_reasons"] else ""
    figure.suptitle(
        f"{group}  ·  {imaged['verdict']}{reasons}\n{numbers}\n{check['found']} of {check['expected']} above 5 sigma found; "
        f"noise {imaged['rms_jy'] * 1e3:.2f} mJy/beam, {imaged['rms_jy'] / imaged['thermal_jy']:.2f} of thermal", fontsize=10,
    )  # fmt: skip
    return figure


def _draw_thumbnail(picture: np.ndarray, imaged: Mapping):
    figure = plt.figure(figsize=(6, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    _show(axes, picture, imaged)
    axes.set_axis_off()
    return figure


def _draw_bandpass(table: caltables.Solutions, freq_mhz: np.ndarray, names: Mapping[int, str], chosen: Mapping):
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    columns = min(8, len(alive))
    lines = -(-len(alive) // columns)
    figure, grid = plt.subplots(
        2 * lines, columns, figsize=(1.9 * columns, 2.1 * lines + 0.9), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    amplitudes = np.abs(np.where(table.flags, np.nan, table.gain))
    top = np.nanpercentile(amplitudes, 99.5) * 1.15
    for axes in grid.ravel():
        axes.set_visible(False)
    for k, antenna in enumerate(alive):
        gain = np.where(table.flags, np.nan, table.gain)[table.antenna == antenna][0]
        upper, lower = grid[2 * (k // columns), k % columns], grid[2 * (k // columns) + 1, k % columns]
        for p, (name, colour) in enumerate((("XX", _BLUE), ("YY", _ORANGE))):
            upper.plot(freq_mhz, np.abs(gain[:, p]), ".", ms=2, color=colour, label=name)
            lower.plot(freq_mhz, np.degrees(np.angle(gain[:, p])), ".", ms=2, color=colour)
        upper.set(visible=True, ylim=(0, top))
        upper.set_title(f"station {names[antenna]}", fontsize=8, pad=2)
        lower.set(visible=True, ylim=(-185, 185), yticks=(-180, 0, 180))
        for axes in (upper, lower):
            axes.tick_params(labelsize=7)
    grid[0, 0].legend(fontsize=7, markerscale=4, frameon=False)
    figure.supxlabel("Frequency (MHz)", fontsize=10)
    figure.supylabel("Amplitude (correlator units per Jy)$^{1/2}$ above phase (deg)", fontsize=10)
    figure.suptitle(f"Bandpass {chosen['set_name']} on {chosen['cal_field']} ({chosen['flux_scale']})", fontsize=11)
    return figure


def _draw_gains(table: caltables.Solutions, names: Mapping[int, str], chosen: Mapping):
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    _draw_station_gains(upper, table, names, np.abs)
    _draw_station_gains(lower, table, names, lambda gain: np.degrees(np.angle(gain)))
    upper.axhline(1, color="0.7", lw=0.8)
    lower.axhline(0, color="0.7", lw=0.8)
    upper.set_ylabel("Gain amplitude, after bandpass")
    lower.set_ylabel("Gain phase, after bandpass (deg)")
    upper.set_xlabel("")
    upper.set_title(f"Gains {chosen['set_name']} on {chosen['cal_field']} ({chosen['flux_scale']})", fontsize=11)
    return figure


def _draw_station_gains(axes, table: caltables.Solutions, names: Mapping[int, str], part) -> None:
    """`part` of every gain (one a station, or one an interval), by station."""
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    place = np.searchsorted(alive, table.antenna)
    known = np.isin(table.antenna, alive)
    for p, (name, colour, marker) in enumerate((("XX", _BLUE, "o"), ("YY", _ORANGE, "s"))):
        gain = np.where(table.flags, np.nan, table.gain)[known, 0, p]
        axes.plot(place[known] + (p - 0.5) * 0.2, part(gain), marker, ms=3.5, color=colour, label=name)
    axes.set_xlabel("Station")
    every = -(-len(alive) // 48)
    axes.set_xticks(range(0, len(alive), every), [names[a] for a in alive][::every], rotation=90, fontsize=7)
    axes.legend(frameon=False)


def _draw_flags(prepared: Mapping, freq_mhz: np.ndarray, group: str):
    figure, grid = plt.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    (antenna, channel), (length, integration) = grid
    shares = prepared["flagged_by_antenna"]
    lost = {*prepared["dead_antennas"], *prepared["odd_antennas"]}
    antenna.bar(range(len(shares)), [100 * s for s in shares.values()],
                color=[_ORANGE if name in lost else _BLUE for name in shares])  # fmt: skip
    every = -(-len(shares) // 48)
    antenna.set_xticks(range(0, len(shares), every), list(shares)[::every], rotation=90, fontsize=7)
    antenna.set_xlabel("Station" + (" (orange: dead, or of odd noise)" if lost else ""))
    channel.plot(freq_mhz, 100 * np.array(prepared["flagged_by_channel"]), drawstyle="steps-mid", color=_BLUE, lw=1)
    channel.set_xlabel("Frequency (MHz)")
    bins = prepared["flagged_by_length"]
    length.stairs([100 * b["flagged"] for b in bins], [b["from_m"] for b in bins] + [bins[-1]["to_m"]],
                  fill=True, color=_BLUE)  # fmt: skip
    length.set_xlabel("Baseline length (m), as many baselines in each bin")
    length.set_xscale("log")
    integration.plot(100 * np.array(prepared["flagged_by_integration"]), "o-", ms=4, color=_BLUE)
    integration.set_xlabel("Integration")
    for axes in grid.ravel():
        axes.set_ylabel("Flagged (%)")
        axes.set_ylim(-2, 102)
    reasons = ", ".join(f"{name.replace('_', ' ')} {100 * s:.2f} %" for name, s in prepared["flagged_by"].items() if s)
    figure.suptitle(
        f"{group}  ·  {100 * prepared['flagged']:.2f} % of the cross-correlations flagged before calibration "
        f"({prepared['strategy']})\n{reasons or 'nothing found'}", fontsize=11,
    )  # fmt: skip
    return figure
