"""Pictures of a day of the instrument."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from contimg.calibration.beamfit import BeamFit, airy_fwhm_deg
from contimg.plots.style import BLUE, ORANGE, only_words

_QUANTITIES = (
    ("sefd_jy", "Noise of the receiver (Jy)", "{:.0f}"),
    ("amplitude", "Amplitude since the set", "{:.2f}"),
    ("phase_deg", "Phase since the set (deg)", "{:.0f}"),
    ("coherence", "Coherence", "{:.2f}"),
    ("flagged", "Flagged", "{:.0%}"),
    ("pointing_east_deg", "Points east of the others (deg)", "{:.2f}"),
)


def draw_antennas(day: Mapping, places_m: Mapping[str, tuple[float, float]]) -> Figure:
    """The array from above, coloured by what is known of each antenna."""
    known = [one for one in _QUANTITIES if any(one[0] in a for a in day["antennas"].values())]
    if not known:
        return only_words(f"{day['day']}: nothing is known of the antennas")
    figure, panels = plt.subplots(
        -(-len(known) // 2),
        2,
        figsize=(12, 4.2 * -(-len(known) // 2)),
        layout="constrained",
        squeeze=False,
    )
    for panel, (key, label, form) in zip(panels.flat, known, strict=False):
        names = [n for n, one in day["antennas"].items() if key in one and n in places_m]
        east, north = np.array([places_m[n] for n in names]).T
        values = np.array([day["antennas"][n][key] for n in names])
        drawn = panel.scatter(east, north, c=values, s=28, cmap="cividis", lw=0)
        away = np.abs(values - np.median(values))
        for k in np.argsort(-away)[:4]:
            if away[k] > 3 * 1.4826 * np.median(away) + 1e-9:
                text = f"{names[k]}: {form.format(values[k])}"
                panel.annotate(
                    text, (east[k], north[k]), xytext=(4, 4), fontsize=8, textcoords="offset points"
                )
        figure.colorbar(drawn, ax=panel, label=label)
        panel.set(xlabel="East (m)", ylabel="North (m)")
        panel.set_aspect("equal", adjustable="datalim")
    for panel in list(panels.flat)[len(known) :]:
        panel.set_axis_off()
    number = f"{len(day['groups'])} groups, {len(day['antennas'])} antennas"
    figure.suptitle(f"{day['day']}  ·  {number}")
    return figure


def draw_day(day: Mapping) -> Figure:
    """Noise, fluxes, and how far the sky seemed to move, in time; interference by channel."""
    groups = day["groups"]
    if not groups:
        return only_words(f"{day['day']}: no group was imaged")
    hours = 24 * (np.array([one["mid_mjd"] for one in groups]) % 1)

    def of(key: str) -> np.ndarray:
        return np.array([np.nan if one[key] is None else one[key] for one in groups], float)

    figure, (noise, flux, sky, channels) = plt.subplots(
        4, 1, figsize=(11, 10), layout="constrained", height_ratios=(1, 1, 1, 1.4)
    )
    noise.plot(hours, of("noise"), "o", ms=4, color=BLUE)
    noise.axhline(1, color="0.7", lw=0.8)
    noise.set(ylabel="Noise / thermal", ylim=(0, 1.15 * np.nanmax(of("noise"))))
    flux.plot(hours, of("flux_ratio"), "o", ms=4, color=BLUE)
    flux.axhline(1, color="0.7", lw=0.8)
    flux.set(ylabel="Flux / catalogue")
    sky.plot(hours, of("east_arcsec"), "o", ms=4, color=BLUE, label="east")
    sky.plot(hours, of("north_arcsec"), "s", ms=4, color=ORANGE, label="north")
    sky.axhline(0, color="0.7", lw=0.8)
    sky.set(ylabel="Sky moved since\nthe set (arcsec)", xlabel="Hours (UTC)")
    sky.legend(frameon=False, ncols=2)
    for panel in (noise, flux):
        panel.sharex(sky)
        panel.tick_params(labelbottom=False)
    sky.set_xlim(hours.min() - 0.1, hours.max() + 0.1)
    rows = day["interference"]
    width = max(map(len, rows))
    shares = np.array([row + [np.nan] * (width - len(row)) for row in rows])
    drawn = channels.imshow(100 * shares, aspect="auto", origin="lower", cmap="magma", vmin=0)
    channels.set(xlabel="Part of the band, from low to high frequencies", ylabel="Group")
    channels.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(drawn, ax=channels, label="Flagged (%)")
    figure.suptitle(f"{day['day']}  ·  {len(groups)} groups")
    return figure


def draw_days(days: Sequence[Mapping]) -> Figure:
    """Days side by side, the oldest first: each antenna's numbers, the fitted beams, noise, fluxes,
    and how far the sky seemed to move."""
    names = list(dict.fromkeys(name for day in days for name in day["antennas"]))
    known = [q for q in _QUANTITIES if any(q[0] in a for d in days for a in d["antennas"].values())]
    rows = 2 + -(-len(known) // 2)
    figure, panels = plt.subplots(
        rows, 2, figsize=(12, 3.4 * rows), layout="constrained", squeeze=False
    )
    width, pointing, noise, sky, *rest = panels.flat
    place, labels = np.arange(len(days)), [day["day"] for day in days]
    _beams_of_days(days, width, pointing)
    for panel, keys, marks in (
        (noise, ("noise", "flux_ratio"), ("Noise / thermal", "Flux / catalogue")),
        (sky, ("east_arcsec", "north_arcsec"), ("east", "north")),
    ):
        for key, label, colour, aside in zip(
            keys, marks, (BLUE, ORANGE), (-0.08, 0.08), strict=True
        ):
            of_day = [_quartiles([one[key] for one in day["groups"]]) for day in days]
            low, middle, high = np.array(of_day).T
            errors = [middle - low, high - middle]
            panel.errorbar(place + aside, middle, errors, fmt="o", ms=4, color=colour, label=label)
        panel.legend(frameon=False, ncols=2, fontsize=9)
    noise.set(ylabel="Median and quartiles of a day")
    sky.set(ylabel="Sky moved since the set (arcsec)")
    for panel, (key, label, _) in zip(rest, known, strict=False):
        values = np.array(
            [[day["antennas"].get(name, {}).get(key, np.nan) for day in days] for name in names]
        )
        drawn = panel.imshow(
            values,
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            extent=(-0.5, len(days) - 0.5, len(names) - 0.5, -0.5),
        )
        every = max(1, len(names) // 12)
        panel.set_yticks(range(0, len(names), every), names[::every], fontsize=8)
        panel.set(ylabel="Antenna")
        figure.colorbar(drawn, ax=panel, label=label)
    every = max(1, -(-len(days) // 8))
    for panel in (width, pointing, noise, sky, *rest[: len(known)]):
        panel.set_xticks(place[::every], labels[::every], fontsize=8)
        panel.set_xlim(-0.5, len(days) - 0.5)
    for panel in rest[len(known) :]:
        panel.set_axis_off()
    figure.suptitle(f"{len(days)} days, {labels[0]} to {labels[-1]}")
    return figure


def _quartiles(values: Sequence[float | None]) -> np.ndarray:
    known = [value for value in values if value is not None]
    return np.quantile(known, (0.25, 0.5, 0.75)) if known else np.full(3, np.nan)


def _beams_of_days(days: Sequence[Mapping], width, pointing) -> None:
    """Widths and pointing of each strip's fitted beams, at the days' places."""
    found = [
        (place, dec, beam)
        for place, day in enumerate(days)
        for dec, beam in day.get("beams", {}).items()
        if "not_fitted" not in beam
    ]
    for panel, (east, north), label in (
        (width, ("fwhm_east", "fwhm_north"), "FWHM (deg)"),
        (pointing, ("east", "north"), "Beam points (deg)"),
    ):
        panel.set(ylabel=label)
        if not found:
            panel.text(0.5, 0.5, "no beam was fitted", ha="center", transform=panel.transAxes)
        for key, colour, mark, aside in ((east, BLUE, "o", -0.08), (north, ORANGE, "s", 0.08)):
            for k, dec in enumerate(sorted({dec for _, dec, _ in found}, key=float)):
                mine = [(place, beam) for place, its, beam in found if its == dec]
                panel.errorbar(
                    [place + aside for place, _ in mine],
                    [beam[f"{key}_deg"] for _, beam in mine],
                    [beam[f"{key}_error_deg"] for _, beam in mine],
                    fmt=mark,
                    ms=4,
                    color=colour,
                    alpha=1 / (1 + k / 2),
                    label=f"{'east-west' if aside < 0 else 'north-south'}, dec {dec}",
                )
        if found:
            panel.legend(frameon=False, fontsize=8)


def draw_beam_fit(fit: BeamFit, app_dec_deg: float) -> Figure:
    """The fitted beam along both axes beside the Airy disk, and its numbers."""
    from contimg.sky.beam import airy_power

    figure, panel = plt.subplots(figsize=(9, 5.5), layout="constrained")
    away = np.linspace(-3.5, 3.5, 701)
    wide = f"{fit.fwhm_east_deg:.3f} +- {fit.fwhm_east_error_deg:.3f}"
    high = f"{fit.fwhm_north_deg:.3f} +- {fit.fwhm_north_error_deg:.3f}"
    airy = airy_power(np.sin(np.radians(away)), fit.freq_hz)
    panel.plot(away, airy, color="0.6", lw=1.2, label="Airy disk")
    panel.plot(
        away,
        fit.power(away, np.full_like(away, fit.north_deg)),
        color=BLUE,
        label=f"east-west, FWHM {wide} deg",
    )
    panel.plot(
        away,
        fit.power(np.full_like(away, fit.east_deg), away),
        color=ORANGE,
        label=f"north-south, FWHM {high} deg",
    )
    panel.axhline(0.5, color="0.8", lw=0.8)
    panel.set(
        xlabel="Offset from the tracked direction (deg)", ylabel="Power response", ylim=(0, 1.18)
    )
    panel.legend(frameon=False, loc="upper left", fontsize=9)
    panel.set_title(
        f"Declination {app_dec_deg:.1f}: beam at {fit.freq_hz / 1e9:.3f} GHz from "
        f"{fit.measurements} fluxes of {fit.sources} sources in {fit.groups} groups\n"
        f"points {fit.east_deg:+.3f} +- {fit.east_error_deg:.3f} deg east, "
        f"{fit.north_deg:+.3f} +- {fit.north_error_deg:.3f} "
        f"north; Airy disk {airy_fwhm_deg(fit.freq_hz):.3f} deg; chi squared {fit.chi2:.2f}",
        fontsize=10,
    )
    return figure
