"""Commands on light curves: lightcurves, lightcurve, variables, sources."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from contimg.cli.operate import do_again
from contimg.cli.shared import AsJson, ConfigFiles, command, console_of, site
from contimg.errors import RequestError
from contimg.paths import Paths

_SHOWN = 50


@command
def lightcurves(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Bring days and light curves up to date with what was measured; and show the days."""
    from contimg.products import catalogue
    from contimg.products.lightcurves import update
    from contimg.store.db import utc_of_mjd

    config = site(configfile, begun=True)
    updated, rows = update(config), catalogue.days(Paths.of(config))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    names = ("state", "groups", "sources", "constants", "chi2", "scale_scatter", "scaled_to")
    table = Table("strip", "day", "date", *names, "why")
    for one in rows[:_SHOWN]:
        values = (_short(one[name]) for name in names)
        date = utc_of_mjd(one["begin_mjd"])[:10]
        table.add_row(one["strip"], str(one["sday"]), date, *values, escape(one["reason"] or ""))
    console_of().print(table if rows else "nothing was measured yet")
    print(
        f"{updated.days} days made, {updated.unchanged} were up to date; "
        f"{updated.candidates} candidates in what is new"
    )


def _short(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@command
def lightcurve(
    source: Annotated[
        list[str], typer.Argument(help="Name of a source, or RA and Dec in deg (ICRS).")
    ],
    png: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write it into this file.")] = None,
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """A source's flux on every day."""
    from contimg.products import catalogue

    paths = Paths.of(site(configfile, begun=True))
    found = catalogue.find(paths, " ".join(source))
    curve = catalogue.lightcurve(paths, found["strip"], found["source"])
    if png:
        from contimg.plots.lightcurve import draw_lightcurve
        from contimg.plots.style import save_plot

        save_plot(lambda: draw_lightcurve(curve, found), png)
    if csv:
        curve.to_csv(csv, index=False)
    if as_json:
        print(json.dumps(found | {"days": curve.to_dict("records")}, indent=1))
        return
    table = Table("day", "MJD (UTC)", "flux (mJy)", "noise", "systematic", "chi2", "of", "tile")
    for one in curve.itertuples():
        table.add_row(
            str(one.sday),
            f"{one.mjd:.5f}",
            f"{one.flux_jy * 1e3:.3f}",
            f"{one.error_jy * 1e3:.3f}",
            f"{one.systematic:.2%}",
            f"{one.chi2:.1f}",
            str(one.number),
            one.tile,
        )
    console_of().print(table)
    print(
        f"{found['source']} ({found['ra_deg']:.5f} {found['dec_deg']:+.5f}): mean "
        f"{found['mean_jy'] * 1e3:.3f} mJy{_of_numbers(found)}"
    )
    for path in filter(None, (png, csv)):
        print(path)


def _of_numbers(one: dict) -> str:
    if one["eta"] is None:
        return "; too few days for more"
    return (
        f", eta {one['eta']:.2f} ({one['eta_systematic']:.2f} with systematics of "
        f"{one['systematic']:.2%}), V {one['v']:.3f}, modulation {one['modulation']:+.3f}"
        + (f"; {one['reasons']}" if one["reasons"] else "")
    )


@command
def variables(
    every: Annotated[bool, typer.Option("--all", help="All sources, not only candidates.")] = False,
    limit: Annotated[int, typer.Option(help="How many.")] = _SHOWN,
    png: Annotated[Path | None, typer.Option(help="Draw eta against V into this file.")] = None,
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """What varies, the least likely first: `false alarms` is how many like it chance makes among
    all sources."""
    from contimg.products import catalogue

    paths = Paths.of(site(configfile, begun=True))
    rows, number = catalogue.sources(paths, variable=not every, order="false_alarms", limit=limit)
    if png:
        from contimg.plots.lightcurve import draw_variables
        from contimg.plots.style import save_plot

        whole, _ = catalogue.sources(paths)
        save_plot(lambda: draw_variables(whole), png)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    _print(rows)
    print(f"{len(rows)} of {number}" + ("" if every else " candidates"))
    if png:
        print(png)


@command
def sources(
    cone: Annotated[
        str | None, typer.Option(help="RA,DEC,RADIUS in deg; the nearest come first.")
    ] = None,
    strip: Annotated[str | None, typer.Option(help="Of one strip, for example +16.1.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = _SHOWN,
    new: Annotated[
        bool, typer.Option("--new", help="What images show and no reference has.")
    ] = False,
    adopt: Annotated[
        str | None,
        typer.Option(
            metavar="STRIP",
            help="Take these into the strip's reference, and measure them in all its images.",
        ),
    ] = None,
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """Sources that have light curves, and their numbers."""
    from contimg.products import catalogue

    if adopt:
        _adopt(site(configfile, begun=True), adopt)
        return
    if new:
        found = catalogue.new_sources(Paths.of(site(configfile, begun=True)), strip)
        if as_json:
            print(json.dumps(found, indent=1))
            return
        _print(found[:limit], _OF_NEW)
        print(
            f"{len(found)} places that no reference has; contimg sources --adopt STRIP takes them"
        )
        return
    try:
        ra, dec, radius = map(float, cone.split(",")) if cone else (0.0, 0.0, 0.0)
    except ValueError:
        raise RequestError(
            f"--cone {cone}: expected RA,DEC,RADIUS in deg, as 347.3,16.0,0.5"
        ) from None
    paths = Paths.of(site(configfile, begun=True))
    rows, number = catalogue.sources(
        paths, cone=(ra % 360, dec, radius) if cone else None, strip=strip, limit=limit
    )
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        return
    _print(rows)
    print(f"{len(rows)} of {number}")


def _adopt(config, strip: str) -> None:
    from contimg.products.references import adopt

    version, new, groups = adopt(config, strip)
    print(f"{version}: {len(new)} sources more: {', '.join(new.source)}")
    do_again(config, groups, "photometry")


_OF_NEW = (
    ("name", "name", "{}"),
    ("strip", "strip", "{}"),
    ("ra_deg", "RA (deg)", "{:.5f}"),
    ("dec_deg", "Dec (deg)", "{:+.5f}"),
    ("flux_jy", "flux (Jy)", "{:.5f}"),
    ("snr", "sigma", "{:.1f}"),
    ("detections", "detections", "{}"),
    ("first", "first", "{}"),
    ("last", "last", "{}"),
)
_COLUMNS = (
    ("source", "source", "{}"),
    ("ra_deg", "RA (deg)", "{:.5f}"),
    ("dec_deg", "Dec (deg)", "{:+.5f}"),
    ("epochs", "days", "{}"),
    ("mean_jy", "mean (Jy)", "{:.5f}"),
    ("eta_systematic", "eta", "{:.2f}"),
    ("v", "V", "{:.3f}"),
    ("modulation", "modulation", "{:+.3f}"),
    ("false_alarms", "false alarms", "{:.2g}"),
    ("away_arcsec", "away (arcsec)", "{:.1f}"),
    ("reasons", "why", "{}"),
)


def _print(rows: list[dict], columns=_COLUMNS) -> None:
    known = [one for one in columns if any(one[0] in row for row in rows)]
    table = Table(*(label for _, label, _ in known))
    for row in rows:
        table.add_row(
            *(
                escape(form.format(row[key])) if row.get(key) is not None else ""
                for key, _, form in known
            )
        )
    console_of().print(table if rows else "none")
