"""Plots of an image: map, residual, beam, thumbnail, comparison with the catalogue."""

import logging
import textwrap
from collections.abc import Mapping

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse

from contimg.plots.style import BLUE, ORANGE, show

matplotlib.use("Agg")
log = logging.getLogger(__name__)
_TITLE_WIDTH = 150  # letters of a title, in a figure of 12.5 inches


def draw_map(picture: np.ndarray, imaged: Mapping, label: str, title: str, **style):
    """A picture with sky axes and a colour bar; returns figure and axes."""
    figure, axes = plt.subplots(figsize=(9.5, 8.4), layout="constrained")
    figure.colorbar(show(axes, picture, imaged, **style), ax=axes, label=label, shrink=0.85)
    ra0, dec0 = imaged["centre_deg"]
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"Offset to the east of RA {ra0:.4f} deg (deg, ICRS)")
    axes.set_ylabel(f"Offset to the north of Dec {dec0:+.4f} deg (deg, ICRS)")
    return figure, axes


def draw_image(picture: np.ndarray, imaged: Mapping, title: str):
    """The image with the catalogue's sources on it, and its verdict."""
    check = imaged["catalogue"]
    figure, axes = draw_map(
        picture * 1e3,
        imaged,
        "Flux density, primary-beam corrected (mJy/beam)",
        f"{title}\nrms {imaged['rms_jy'] * 1e3:.2f} mJy/beam, beam "
        f'{imaged["beam_major_arcsec"]:.0f}" x '
        f'{imaged["beam_minor_arcsec"]:.0f}"; {check["found"]} of {check["expected"]} catalogue '
        "sources found (circles)",
    )
    ra0, dec0 = imaged["centre_deg"]
    for source in imaged["sources"]:
        east = (source["ra_deg"] - ra0 + 180) % 360 - 180
        position = (east * np.cos(np.radians(source["dec_deg"])), source["dec_deg"] - dec0)
        axes.plot(
            *position,
            "o",
            ms=11,
            mfc="none",
            mew=1,
            mec="#56B4E9" if source["found"] else "#999999",
        )
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 7200
    # a tenth of the picture, whatever the beam is
    largest = 0.2 * half_deg * 3600 / imaged["beam_major_arcsec"]
    exaggeration = max((one for one in (1, 2, 5, 10, 20) if one <= largest), default=1)
    beam = Ellipse(
        (half_deg * 0.88, -half_deg * 0.88),
        imaged["beam_minor_arcsec"] / 3600 * exaggeration,
        imaged["beam_major_arcsec"] / 3600 * exaggeration,
        angle=-imaged["beam_pa_deg"],
        fc="white",
        ec="black",
    )
    axes.add_patch(beam)
    axes.text(
        half_deg * 0.88,
        -half_deg * 0.97,
        f"beam x {exaggeration}" if exaggeration > 1 else "beam",
        ha="center",
        fontsize=8,
        bbox={"fc": "white", "ec": "none", "pad": 1},
    )
    return figure


def draw_residual(picture: np.ndarray, imaged: Mapping, group: str):
    """What the clean left, in units of the noise."""
    rms_mjy = imaged["rms_jy"] * 1e3
    title = (
        f"{group}  ·  residual after the clean ({imaged['cleaned']}), not corrected for the "
        "primary beam"
    )
    title += (
        f"\nrms {rms_mjy:.2f} mJy/beam, thermal {imaged['thermal_jy'] * 1e3:.2f}; of each block of "
        "pixels the value farthest from 0"
    )
    limits = {"cmap": "RdBu_r", "vmin": -8 * rms_mjy, "vmax": 8 * rms_mjy}
    return draw_map(picture * 1e3, imaged, "Residual (mJy/beam)", title, **limits)[0]


def draw_beam(picture: np.ndarray, imaged: Mapping, group: str):
    """The power beam, averaged over the drift."""
    title = f"{group}  ·  primary beam, averaged over the drift; contours at 0.2, 0.5 and 0.8"
    figure, axes = draw_map(
        picture, imaged, "Power response", title, cmap="viridis", vmin=0, vmax=1
    )
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 7200
    axes.contour(
        picture,
        (0.2, 0.5, 0.8),
        extent=(half_deg, -half_deg, -half_deg, half_deg),
        colors="white",
        linewidths=0.8,
    )
    return figure


def draw_catalogue(imaged: Mapping, group: str):
    """Fluxes and positions against the catalogue's."""
    sources = [s for s in imaged["sources"] if s["found"]]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12.5, 5.6), layout="constrained", width_ratios=(1.25, 1)
    )
    for inner, name, colour, marker in (
        (True, "beam above a half", BLUE, "o"),
        (False, "beam below a half", ORANGE, "s"),
    ):
        some = [s for s in sources if (s["beam"] >= 0.5) == inner]
        flux_jy, ratio, error = (
            np.array([function(s) for s in some])
            for function in (
                lambda s: s["catalogue_jy"],
                lambda s: s["flux_jy"] / s["catalogue_jy"],
                lambda s: abs(s["flux_jy"] / s["catalogue_jy"] / s["snr"]),
            )
        )
        style = {
            "fmt": marker,
            "ms": 4.5,
            "color": colour,
            "elinewidth": 0.8,
            "label": f"{name} ({len(some)})",
        }
        left.errorbar(flux_jy * 1e3, ratio, yerr=error, **style)
        # A position is known to the beam over twice the signal to noise.
        beam = imaged["beam_major_arcsec"], imaged["beam_minor_arcsec"]
        blur = np.array([np.sqrt(beam[0] * beam[1]) / abs(2 * s["snr"]) for s in some])
        right.errorbar(
            [s["east_arcsec"] for s in some],
            [s["north_arcsec"] for s in some],
            xerr=blur,
            yerr=blur,
            **style,
        )
    check = imaged["catalogue"]
    left.axhline(1, color="0.6", lw=0.8)
    left.set(
        xlabel="Catalogue flux density at the image's frequency (mJy)",
        ylabel="Measured / catalogue",
    )
    if sources:  # a logarithmic axis without a point has no limits
        left.set_xscale("log")
        for formatted in (left.xaxis.set_major_formatter, left.xaxis.set_minor_formatter):
            formatted("{x:g}")
    left.tick_params(axis="x", which="minor", labelsize=7)
    left.legend(frameon=False, fontsize=9)
    right.axhline(0, color="0.6", lw=0.8)
    right.axvline(0, color="0.6", lw=0.8)
    reach = (
        max(1.0, *(abs(s[k]) for s in sources for k in ("east_arcsec", "north_arcsec"))) * 1.15
        if sources
        else 1.0
    )
    right.set(
        xlim=(reach, -reach),
        ylim=(-reach, reach),
        xlabel="Offset to the east (arcsec)",
        aspect="equal",
    )
    right.set_ylabel("Offset to the north (arcsec)")
    numbers = "no source above 20 sigma inside the half-power beam"
    if check["compared"]:
        east, north = check["offset_east_arcsec"], check["offset_north_arcsec"]
        numbers = (
            f"{check['compared']} sources above 20 sigma inside the half-power beam: flux ratio "
            f"{check['flux_ratio']:.3f}, "
            f'scatter {check["flux_scatter"]:.3f}; offset {east:+.2f}" east, {north:+.2f}" north'
        )
    reasons = f": {'; '.join(imaged['verdict_reasons'])}" if imaged["verdict_reasons"] else ""
    first = textwrap.fill(f"{group}  ·  {imaged['verdict']}{reasons}", _TITLE_WIDTH)
    figure.suptitle(
        f"{first}\n{numbers}\n{check['found']} of "
        f"{check['expected']} above 5 sigma found; noise {imaged['rms_jy'] * 1e3:.2f} mJy/beam, "
        f"{imaged['rms_jy'] / imaged['thermal_jy']:.2f} of thermal",
        fontsize=10,
    )
    return figure


def draw_thumbnail(picture: np.ndarray, imaged: Mapping):
    """The image alone, small."""
    figure = plt.figure(figsize=(6, 6), facecolor="0.25")
    axes = figure.add_axes((0, 0, 1, 1))
    show(axes, picture * 1e3, imaged)
    axes.set_axis_off()
    return figure
