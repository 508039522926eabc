"""`contimg instrument`: what a day says of antennas, beam, clock and interference."""

import json
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from contimg.cli.shared import AsJson, ConfigFiles, command, console_of, site
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.store.files import found_json, write_json

_DAYS = 60  # that are drawn side by side
_COLUMNS = (
    ("sefd_jy", "noise (Jy)", "{:.0f}"),
    ("amplitude", "amplitude", "{:.3f}"),
    ("phase_deg", "phase (deg)", "{:+.1f}"),
    ("coherence", "coherence", "{:.2f}"),
    ("flagged", "flagged", "{:.1%}"),
    ("pointing_east_deg", "points east (deg)", "{:+.3f}"),
)


@command
def instrument(
    day: Annotated[
        str | None, typer.Argument(help="Day (2026-01-25), or how group ids begin; the last one.")
    ] = None,
    fit: Annotated[
        bool, typer.Option(help="Fit the beam of each declination, and keep it.")
    ] = False,
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """What a day's groups say of each antenna, the beam, the clock and interference; with
    pictures."""
    from contimg.products import instrument as found

    config = site(configfile, begun=True)
    paths = Paths.of(config)
    known = paths.with_result("image")
    if not known:
        raise RequestError("no group was imaged yet")
    day = day or known[-1][:10]
    seen = found.of_day(paths, day)
    if not seen["groups"]:
        raise RequestError(f"no group of {day} was imaged; the last one is {known[-1]}")
    beams, pictures = {}, _draw(config, paths, seen)
    for app_dec_deg in found.strips(seen) if fit else ():
        beams[f"{app_dec_deg:.1f}"], more = _fit(paths, seen, app_dec_deg)
        pictures += more
    seen |= {"beams": beams, "pictures": pictures, "remarkable": found.remarkable(seen)}
    write_json(paths.instrument(day, "json"), seen)
    seen["pictures"].append(_draw_days(paths))
    if as_json:
        print(json.dumps(seen, indent=1))
        return
    _print(seen)


def _draw(config, paths: Paths, seen: dict) -> list[str]:
    from contimg.plots import instrument as plots
    from contimg.plots.style import save_plot
    from contimg.sky.catalogues import read_stations
    from contimg.sky.geometry import on_the_ground_m

    stations = read_stations(config.catalogues.stations)
    places = on_the_ground_m(np.array(list(stations.values())))
    places_m = dict(zip(stations, places, strict=True))
    pictures = {
        "antennas": lambda: plots.draw_antennas(seen, places_m),
        "day": lambda: plots.draw_day(seen),
    }
    for name, draw in pictures.items():
        save_plot(draw, paths.instrument(f"{seen['day']}.{name}", "png"))
    return [str(paths.instrument(f"{seen['day']}.{name}", "png")) for name in pictures]


def _draw_days(paths: Paths) -> str:
    """The last days side by side."""
    from contimg.plots.instrument import draw_days
    from contimg.plots.style import save_plot

    last = paths.instrument_days()[:_DAYS][::-1]
    days = [found for day in last if (found := found_json(paths.instrument(day, "json")))]
    save_plot(lambda: draw_days(days), paths.instrument("days", "png"))
    return str(paths.instrument("days", "png"))


def _fit(paths: Paths, seen: dict, app_dec_deg: float) -> tuple[dict, list[str]]:
    """A strip's beam, kept and drawn; or why there is none."""
    from contimg.plots.instrument import draw_beam_fit
    from contimg.plots.style import save_plot
    from contimg.products import instrument as found

    try:
        beam, groups = found.fit_strip(paths, seen, app_dec_deg)
    except ValueError as error:
        return {"not_fitted": str(error)}, []
    path = found.keep_beam(paths, seen, beam, app_dec_deg, groups)
    picture = paths.instrument(f"{seen['day']}.beam{app_dec_deg:+05.1f}", "png")
    save_plot(lambda: draw_beam_fit(beam, app_dec_deg), picture)
    return beam.as_json() | {"path": str(path)}, [str(picture)]


def _print(seen: dict) -> None:
    console = console_of()
    table = Table("antenna", *(label for _, label, _ in _COLUMNS), "groups")
    for name, one in seen["antennas"].items():
        values = (form.format(one[key]) if key in one else "" for key, _, form in _COLUMNS)
        table.add_row(name, *values, str(one["groups"]))
    console.print(table)
    for dec, beam in seen["beams"].items():
        if "not_fitted" in beam:
            console.print(f"declination {dec}: no beam: {beam['not_fitted']}")
            continue
        console.print(
            f"declination {dec}: FWHM {beam['fwhm_east_deg']:.3f} +- "
            f"{beam['fwhm_east_error_deg']:.3f} deg east-west, {beam['fwhm_north_deg']:.3f} +- "
            f"{beam['fwhm_north_error_deg']:.3f} north-south; points {beam['east_deg']:+.3f} +- "
            f"{beam['east_error_deg']:.3f} east, {beam['north_deg']:+.3f} +- "
            f"{beam['north_error_deg']:.3f} north; taper {beam['taper']:.2f}; {beam['path']}"
        )
    for words in seen["remarkable"]:
        console.print(escape(words))
    for path in seen["pictures"]:
        console.print(escape(path))
