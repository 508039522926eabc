"""The command on tracts."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from contimg.cli.shared import AsJson, ConfigFiles, command, console_of, site
from contimg.paths import Paths

_SHOWN = 20


@command
def tracts(
    name: Annotated[
        str | None, typer.Argument(help="A tract or a strip: each of its days, with its inputs.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="RA,DEC in deg: tracts that have it.")] = None,
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """Tracts of the sky and their mosaics. To make some: snakemake --profile local tract/NAME, or
    epoch/STRIP/DAY."""
    from contimg.mosaics.tracts import place_of_words, tract_of
    from contimg.products import mosaics
    from contimg.store.db import utc_of_mjd

    config = site(configfile, begun=True)
    paths = Paths.of(config)
    mosaics.record(config)
    by = "tract" if name and "_" in name else "strip"
    rows = mosaics.listed(paths, **{by: name} if name else {})
    if at:
        place = place_of_words(at)
        rows = [one for one in rows if tract_of(one["tract"], config.mosaics).contains(*place)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        "tract", "day", "from", "images", "noise (mJy)", "of weights", "covered", "verdict"
    )
    for one in rows:
        noise = "" if one["noise_jy"] is None else f"{one['noise_jy'] * 1e3:.3f}"
        ratio = "" if one["noise_ratio"] is None else f"{one['noise_ratio']:.2f}"
        deep = one["kind"] == mosaics.DEEP
        table.add_row(
            one["tract"],
            f"{one['used']} {'day' if one['used'] == 1 else 'days'}" if deep else str(one["sday"]),
            utc_of_mjd(one["begin_mjd"])[:10] if one["begin_mjd"] else "",
            "" if deep else str(one["used"]),
            noise,
            ratio,
            f"{one['coverage']:.0%}",
            one["verdict"],
        )
    asked = [f"of {name}"] * bool(name) + [f"at {at}"] * bool(at)
    none = " ".join(["no mosaic", *asked]) if asked else "there are no mosaics yet"
    console_of().print(table if rows else none)
    for one in rows if name else ():
        for group, input_ in one["inputs"].items():
            if not input_["used"]:
                print(escape(f"{one['name']}: without {group}: {input_['reason']}"))
    left = {} if name or at else mosaics.not_made(config)
    for target, number in list(left.items())[:_SHOWN]:
        print(f"not made: {target} ({number} tracts)")
    if len(left) > _SHOWN:
        print(f"and {len(left) - _SHOWN} days more")
    for failed in mosaics.failures(paths):
        print(failed)
