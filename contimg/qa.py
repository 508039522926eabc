"""Plots of one group."""

import functools
import logging
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from contimg import caltables, db
from contimg import measurement_set as mset
from contimg.config import Config
from contimg.files import replacing
from contimg.geometry import SPEED_OF_LIGHT_M_S
from contimg.paths import GROUP_PLOTS, Paths

log = logging.getLogger(__name__)

# Okabe & Ito (2008): told apart with any colour vision.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_COARSE_PIXELS = 900
_DPI = 110
_UV_INTEGRATIONS = 4  # a sixth of the data, from all over the observation
_UV_BLOCKS = 16  # channels are averaged to so many


def plot_group(group: str, config: Config, imaged: Mapping, chosen: Mapping, prepared: Mapping) -> tuple[dict, dict[str, str]]:
    """Draw every plot of a group; returns their paths by name, and why those are not drawn that could not be."""
    paths, failed = Paths.of(config), {}
    artifacts = {name: paths.qa(group, name) for name in GROUP_PLOTS}
    artifacts["image"].parent.mkdir(parents=True, exist_ok=True)
    ms, tables = paths.ms(group), chosen["tables"]
    title = f"{group}  ·  {imaged['freq_hz'] / 1e9:.3f} GHz  ·  calibrated by {chosen['cal_field']} ({chosen['set_name']})"
    picture = functools.cache(lambda: _coarse_image(Path(imaged["images"]["image.pbcor"])))
    seen = functools.cache(lambda: (mset.read_observation(ms), mset.read_rows(ms)))

    def names() -> dict[int, str]:
        return dict(enumerate(seen()[0].antenna_names))

    def freq_mhz() -> np.ndarray:
        return seen()[0].freq_hz / 1e6

    drawn = {
        "image": lambda: _draw_image(picture(), imaged, title),
        "thumbnail": lambda: _draw_thumbnail(picture(), imaged),
        "catalogue": lambda: _draw_catalogue(imaged, group),
        "residual": lambda: _draw_residual(_coarse_image(Path(imaged["images"]["residual"])), imaged, group),
        "beam": lambda: _draw_beam(_coarse_image(Path(imaged["images"]["pb"])), imaged, group),
        "uv": lambda: _draw_uv(ms, *seen(), group),
        "spectra": lambda: _draw_spectra(ms, *seen(), group),
        "bandpass": lambda: _draw_bandpass(caltables.read(Path(tables["B"])), freq_mhz(), names(), chosen),
        "gains": lambda: _draw_gains(caltables.read(Path(tables["G"])), names(), chosen),
        "flags": lambda: _draw_flags(prepared, freq_mhz(), group),
    }
    for name, draw in drawn.items():
        if why := save_plot(draw, artifacts[name], dpi=40 if name == "thumbnail" else _DPI):
            failed[name] = why
    if paths.qa(group, "calibration").exists():  # drawn when its own set was solved
        artifacts["calibration"] = paths.qa(group, "calibration")
    return {name: str(path) for name, path in artifacts.items()}, failed


def save_plot(draw: Callable[[], Figure], path: Path, dpi: int = _DPI) -> str | None:
    """Draw and write a plot; one that cannot be drawn is replaced by a picture that says why, and fails nothing.

    Returns why it could not be drawn.
    """
    why = None
    try:
        figure = draw()
        with replacing(path) as partial:
            figure.savefig(partial, dpi=dpi, format="png")
    except OSError:  # no room, say: not the plot's fault
        raise
    except Exception as error:  # matplotlib raises what it likes
        log.exception("the plot %s could not be drawn", path.name)
        why = f"{type(error).__name__}: {error}"
        plt.close("all")
        figure = plt.figure(figsize=(8, 4))
        figure.text(0.5, 0.6, f"The plot “{path.stem}” could not be drawn.", ha="center", fontsize=14)
        figure.text(
            0.5, 0.35, textwrap.fill(why.replace("$", r"\$")[:600], 80), ha="center", va="center", family="monospace", fontsize=9
        )
        with replacing(path) as partial:
            figure.savefig(partial, dpi=dpi, format="png")
    finally:
        plt.close("all")
    return why


def plot_set(
    solved: Mapping, observation: mset.Observation, before: np.ndarray, after: np.ndarray, gains: caltables.Solutions
) -> Figure:  # fmt: skip
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
        *_gate_lines(solved.get("gates", {})),
        *(textwrap.fill(f"NOT USED: {problem}", 88) for problem in solved["problems"]),
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
        f"receivers {gates['sefd_jy']:.0f} Jy, scatter {gates['sefd_scatter']:.2f}; signal to noise {gates['snr'] or 0:.0f} of "
        f"{gates['promised_snr'] or 0:.0f}",
        f"explained {explained}{place}",
    ]


def plot_day(date: str, images: Sequence[Mapping]) -> Figure:
    """Noise, flags, fluxes and positions of a day's images (rows of `images`, pbcor, in order of time) against time."""
    figure, grid = plt.subplots(4, 1, figsize=(11, 10), sharex=True, layout="constrained")
    images = [one for one in images if one["start_mjd"] is not None]
    hours = np.array([(one["start_mjd"] - db.mjd(date)) * 24 for one in images])

    def draw(axes, key: str, factor: float, label: str, colour: str, marker: str) -> None:
        values = [np.nan if one[key] is None else one[key] * factor for one in images]
        axes.plot(hours, values, marker, ms=5, color=colour, label=label)

    draw(grid[0], "noise_jy", 1e3, "measured", _BLUE, "o")
    draw(grid[0], "thermal_jy", 1e3, "thermal", _ORANGE, "_")
    draw(grid[1], "flagged", 100, "flagged", _BLUE, "o")
    draw(grid[2], "flux_ratio", 1, "median flux ratio", _BLUE, "o")
    draw(grid[3], "offset_east_arcsec", 1, "east", _BLUE, "o")
    draw(grid[3], "offset_north_arcsec", 1, "north", _ORANGE, "s")
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


def _coarse_image(path: Path, pixels: int = _COARSE_PIXELS) -> np.ndarray:
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


def _show(axes, picture: np.ndarray, imaged: Mapping, **style):
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 3600 / 2
    rms_mjy = imaged["rms_jy"] * 1e3
    style = {"cmap": "inferno", "vmin": -2 * rms_mjy, "vmax": 25 * rms_mjy} | style
    extent = (half_deg, -half_deg, -half_deg, half_deg)
    return axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", **style)


def _draw_map(picture: np.ndarray, imaged: Mapping, label: str, title: str, **style):
    """A picture with sky axes and a colour bar; returns figure and axes."""
    figure, axes = plt.subplots(figsize=(9.5, 8.4), layout="constrained")
    figure.colorbar(_show(axes, picture, imaged, **style), ax=axes, label=label, shrink=0.85)
    ra0, dec0 = imaged["centre_deg"]
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"Offset to the east of RA {ra0:.4f} deg (deg, ICRS)")
    axes.set_ylabel(f"Offset to the north of Dec {dec0:+.4f} deg (deg, ICRS)")
    return figure, axes


def _draw_image(picture: np.ndarray, imaged: Mapping, title: str):
    check = imaged["catalogue"]
    figure, axes = _draw_map(
        picture * 1e3, imaged, "Flux density, primary-beam corrected (mJy/beam)",
        f'{title}\nrms {imaged["rms_jy"] * 1e3:.2f} mJy/beam, beam {imaged["beam_major_arcsec"]:.0f}" x '
        f'{imaged["beam_minor_arcsec"]:.0f}"; {check["found"]} of {check["expected"]} catalogue sources found (circles)',
    )  # fmt: skip
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
    return figure


def _draw_residual(picture: np.ndarray, imaged: Mapping, group: str):
    rms_mjy = imaged["rms_jy"] * 1e3
    title = f"{group}  ·  residual after the clean ({imaged['cleaned']}), not corrected for the primary beam"
    title += f"\nrms {rms_mjy:.2f} mJy/beam, thermal {imaged['thermal_jy'] * 1e3:.2f}; largest value of each block of pixels"
    limits = {"cmap": "RdBu_r", "vmin": -8 * rms_mjy, "vmax": 8 * rms_mjy}
    return _draw_map(picture * 1e3, imaged, "Residual (mJy/beam)", title, **limits)[0]


def _draw_beam(picture: np.ndarray, imaged: Mapping, group: str):
    title = f"{group}  ·  primary beam, averaged over the drift; contours at 0.2, 0.5 and 0.8"
    figure, axes = _draw_map(picture, imaged, "Power response", title, cmap="viridis", vmin=0, vmax=1)
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 7200
    axes.contour(picture, (0.2, 0.5, 0.8), extent=(half_deg, -half_deg, -half_deg, half_deg), colors="white", linewidths=0.8)
    return figure


def _only_words(words: str) -> Figure:
    figure = plt.figure(figsize=(8, 4))
    figure.text(0.5, 0.5, words, ha="center")
    return figure


def _draw_uv(ms: Path, observation: mset.Observation, rows: mset.Rows, group: str):
    """Coverage of the uv plane by what is not flagged, and amplitude against uv distance."""
    ntime, nbaseline = rows.shape
    times = np.unique(np.linspace(0, ntime - 1, _UV_INTEGRATIONS).round().astype(int))
    crossed = np.flatnonzero(rows.ant_1 != rows.ant_2)
    if not len(crossed):
        return _only_words(f"{group}: no baseline")
    numbers = (times[:, None] * nbaseline + crossed).ravel()
    data, flags = mset.read_rows_of(ms, "CORRECTED_DATA", numbers), mset.read_rows_of(ms, "FLAG", numbers)
    blocks = np.array_split(np.arange(len(observation.freq_hz)), min(_UV_BLOCKS, len(observation.freq_hz)))
    good = (~flags).astype(np.float32)
    weights = np.stack([good[:, b].sum(axis=(1, 2)) for b in blocks], axis=1)
    sums = np.stack([(data[:, b] * good[:, b]).sum(axis=(1, 2)) for b in blocks], axis=1)
    wavenumbers = np.array([observation.freq_hz[b].mean() for b in blocks]) / SPEED_OF_LIGHT_M_S / 1e3
    uv = rows.uvw_m[times][:, crossed, :2].reshape(-1, 1, 2) * wavenumbers[:, None]
    used = weights > 0
    uv, amplitude = uv[used], np.abs(sums[used] / weights[used])
    if not len(uv):
        return _only_words(f"{group}: no visibility is left")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 6), layout="constrained", width_ratios=(1, 1.2))
    reach = 1.05 * np.abs(uv).max(initial=0.1)
    both, counted = np.concatenate([uv, -uv]), {"cmap": "viridis", "mincnt": 1, "linewidths": 0}
    shown = left.hexbin(*both.T, norm=LogNorm(vmin=0.9), gridsize=160, extent=(-reach, reach, -reach, reach), **counted)
    figure.colorbar(shown, ax=left, label="Visibilities a cell", shrink=0.8)
    left.set(xlabel="u (kilowavelengths)", ylabel="v (kilowavelengths)", aspect="equal", title="Coverage", facecolor="0.93")
    length = np.hypot(*uv.T)
    longest = 1.05 * length.max(initial=0.1)
    top = np.percentile(amplitude, 99.9) * 1.2 or 1.0
    shown = right.hexbin(length, amplitude, norm=LogNorm(vmin=0.9), gridsize=(120, 70), extent=(0, longest, 0, top), **counted)
    figure.colorbar(shown, ax=right, label="Visibilities a cell", shrink=0.8)
    edges = np.linspace(0, length.max(initial=0.1), 25)
    place = np.digitize(length, edges) - 1
    middles = [(edges[k] + edges[k + 1], np.median(amplitude[place == k])) for k in range(24) if (place == k).sum() > 20]
    if middles:
        right.plot(*np.array([(x / 2, y) for x, y in middles]).T, "o-", ms=4, color=_ORANGE, label="median")
        right.legend(frameon=False)
    right.set(xlabel="Length in the uv plane (kilowavelengths)", ylabel="Calibrated amplitude (Jy)", ylim=(0, top))
    right.set(title=f"Stokes I, {len(blocks)} averages over the band", facecolor="0.93")
    figure.suptitle(f"{group}  ·  {len(times)} of {ntime} integrations", fontsize=11)
    return figure


def _draw_spectra(ms: Path, observation: mset.Observation, rows: mset.Rows, group: str):
    """Calibrated amplitude and phase against frequency and time, of baselines of all lengths."""
    ntime, nbaseline = rows.shape
    crossed = np.flatnonzero(rows.ant_1 != rows.ant_2)
    length_m = np.hypot(*rows.uvw_m[ntime // 2, :, :2].T)
    by_length = crossed[np.argsort(length_m[crossed])]
    if not len(by_length):
        return _only_words(f"{group}: no baseline")
    candidates = by_length[np.linspace(0, len(by_length) - 1, 26).round().astype(int)[1:-1]]
    numbers = (np.arange(ntime)[:, None] * nbaseline + candidates).ravel()
    data = np.where(mset.read_rows_of(ms, "FLAG", numbers), np.nan, mset.read_rows_of(ms, "CORRECTED_DATA", numbers))
    data = data.mean(axis=2).reshape(ntime, len(candidates), -1)  # flagged where either polarisation is
    alive = np.flatnonzero(np.isfinite(data).any(axis=(0, 2)))
    alive = alive if len(alive) else np.arange(len(candidates))
    shown = np.unique(alive[np.linspace(0, len(alive) - 1, 6).round().astype(int)])
    data, some = data[:, shown], candidates[shown]
    figure, grid = plt.subplots(
        2, len(some), figsize=(2.4 * len(some), 6), layout="constrained", sharex=True, sharey=True, squeeze=False
    )  # fmt: skip
    start_s = (rows.time_mjd - rows.time_mjd[0]) * 86400
    extent = (observation.freq_hz[0] / 1e6, observation.freq_hz[-1] / 1e6, start_s[-1] + rows.integration_s, 0)
    finite = np.isfinite(data)
    top = np.percentile(np.abs(data[finite]), 98) if finite.any() else 1.0
    for k, (upper, lower) in enumerate(grid.T):
        style = {"aspect": "auto", "extent": extent, "interpolation": "nearest"}
        strong = upper.imshow(np.abs(data[:, k]), cmap="viridis", vmin=0, vmax=top, **style)
        turned = lower.imshow(np.degrees(np.angle(data[:, k])), cmap="twilight", vmin=-180, vmax=180, **style)
        one, two = (observation.antenna_names[a[some[k]]] for a in (rows.ant_1, rows.ant_2))
        upper.set_title(f"{one} - {two}, {length_m[some[k]]:.0f} m", fontsize=9)
        for axes in (upper, lower):
            axes.set_facecolor("0.8")
    figure.colorbar(strong, ax=grid[0], label="Amplitude (Jy)")
    figure.colorbar(turned, ax=grid[1], label="Phase (deg)", ticks=(-180, -90, 0, 90, 180))
    figure.supxlabel("Frequency (MHz)", fontsize=10)
    figure.supylabel("Time since the first integration (s)", fontsize=10)
    figure.suptitle(f"{group}  ·  calibrated Stokes I of six baselines; grey is flagged", fontsize=11)
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
                             lambda s: abs(s["flux_jy"] / s["catalogue_jy"] / s["snr"]))
        )  # fmt: skip
        style = {"fmt": marker, "ms": 4.5, "color": colour, "elinewidth": 0.8, "label": f"{name} ({len(some)})"}
        left.errorbar(flux_jy * 1e3, ratio, yerr=error, **style)
        # A position is known to the beam over twice the signal to noise.
        beam = imaged["beam_major_arcsec"], imaged["beam_minor_arcsec"]
        blur = np.array([np.sqrt(beam[0] * beam[1]) / abs(2 * s["snr"]) for s in some])
        right.errorbar([s["east_arcsec"] for s in some], [s["north_arcsec"] for s in some], xerr=blur, yerr=blur, **style)
    check = imaged["catalogue"]
    left.axhline(1, color="0.6", lw=0.8)
    left.set(xlabel="Catalogue flux density at the image's frequency (mJy)", ylabel="Measured / catalogue")
    if sources:  # a logarithmic axis without a point has no limits
        left.set_xscale("log")
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
    figure = plt.figure(figsize=(6, 6), facecolor="0.25")
    axes = figure.add_axes((0, 0, 1, 1))
    _show(axes, picture * 1e3, imaged)
    axes.set_axis_off()
    return figure


def _draw_bandpass(table: caltables.Solutions, freq_mhz: np.ndarray, names: Mapping[int, str], chosen: Mapping):
    """Eight stations side by side in a panel: a panel for each station would take seconds to draw."""
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    columns = min(8, max(1, len(alive)))
    lines = max(1, -(-len(alive) // columns))
    figure, grid = plt.subplots(2 * lines, 1, figsize=(1.9 * columns, 2 * lines + 1.2), sharex=True, squeeze=False)
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.55 * inch, top=1 - 0.55 * inch, hspace=0.12)
    gains = np.where(table.flags, np.nan, table.gain)
    top = np.nanpercentile(np.abs(gains), 99.5) * 1.2 if np.isfinite(gains).any() else 1.0
    across = 0.04 + 0.92 * (freq_mhz - freq_mhz[0]) / max(np.ptp(freq_mhz), 1e-9)
    for k, antenna in enumerate(alive):
        upper, lower = grid[2 * (k // columns), 0], grid[2 * (k // columns) + 1, 0]
        gain = gains[table.antenna == antenna][0]
        for p, (name, colour) in enumerate((("XX", _BLUE), ("YY", _ORANGE))):
            style = {"ms": 2, "color": colour, "label": name if k == 0 else None}
            upper.plot(k % columns + across, np.abs(gain[:, p]), ".", **style)
            lower.plot(k % columns + across, np.degrees(np.angle(gain[:, p])), ".", **style)
        upper.text(k % columns + 0.5, 0.97 * top, f"station {names[antenna]}", ha="center", va="top", fontsize=8)
    for upper, lower in grid.reshape(-1, 2):
        upper.set(ylim=(0, top), xlim=(0, columns))
        lower.set(ylim=(-185, 185), yticks=(-180, 0, 180))
        for axes in (upper, lower):
            axes.tick_params(labelsize=7)
            for column in range(1, columns):
                axes.axvline(column, color="0.7", lw=0.8)
    places = np.interp((0.15, 0.85), across, freq_mhz) if len(freq_mhz) > 1 else freq_mhz[[0, 0]]
    grid[-1, 0].set_xticks([c + x for c in range(columns) for x in (0.15, 0.85)], [f"{f:.0f}" for f in places] * columns)
    grid[0, 0].legend(fontsize=7, markerscale=4, frameon=False, loc="lower left")
    figure.supxlabel("Frequency (MHz), of each station", fontsize=10)
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
    every = max(1, -(-len(alive) // 48))
    axes.set_xticks(range(0, len(alive), every), [names[a] for a in alive][::every], rotation=90, fontsize=7)
    axes.legend(frameon=False)


def _draw_flags(prepared: Mapping, freq_mhz: np.ndarray, group: str):
    figure, grid = plt.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    (antenna, channel), (length, integration) = grid
    shares = prepared["flagged_by_antenna"]
    lost = {*prepared["dead_antennas"], *prepared["odd_antennas"]}
    antenna.bar(range(len(shares)), [100 * s for s in shares.values()],
                color=[_ORANGE if name in lost else _BLUE for name in shares])  # fmt: skip
    every = max(1, -(-len(shares) // 48))
    antenna.set_xticks(range(0, len(shares), every), list(shares)[::every], rotation=90, fontsize=7)
    antenna.set_xlabel("Station" + (" (orange: dead, or of odd noise)" if lost else ""))
    channel.plot(freq_mhz, 100 * np.array(prepared["flagged_by_channel"]), drawstyle="steps-mid", color=_BLUE, lw=1)
    channel.set_xlabel("Frequency (MHz)")
    bins = prepared["flagged_by_length"]
    if bins:
        length.stairs([100 * b["flagged"] for b in bins], [b["from_m"] for b in bins] + [bins[-1]["to_m"]],
                      fill=True, color=_BLUE)  # fmt: skip
    length.set_xlabel("Baseline length (m), as many baselines in each bin")
    if bins:
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
