"""Commands on calibration sets: `contimg registry ...`."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from contimg.cli.operate import do_again
from contimg.cli.shared import AsJson, ConfigFiles, console_of, reported, site
from contimg.errors import CalibrationError
from contimg.paths import Paths

registry_app = typer.Typer(
    help="Calibration sets and beams: what is known of them, and which may be used.",
    no_args_is_help=True,
)


@registry_app.command("list")
@reported
def registry_list(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Every set: when and where it is valid, its numbers, and whether it may be used."""
    from contimg.calibration.registry import describe_sets

    sets = describe_sets(Paths.of(site(configfile)).registry_db)
    if as_json:
        print(json.dumps(sets, indent=1))
        return
    columns = (
        "set",
        "status",
        "science",
        "calibrator",
        "flux_scale",
        "dec_deg",
        "valid_from",
        "valid_until",
        "snr",
        "refant",
        "notes",
    )
    table = Table(*columns)
    for one in sets:
        table.add_row(*(escape(str(one[c])) for c in columns))
    console_of().print(table if sets else "no calibration set is known")


@registry_app.command("beams")
@reported
def registry_beams(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Every fitted primary beam: of which strip and days, its numbers, and whether it may be
    used."""
    from contimg.calibration.beams import known_beams
    from contimg.store.db import utc_of_mjd

    beams = known_beams(Paths.of(site(configfile)).beams)
    if as_json:
        print(json.dumps(beams, indent=1))
        return
    columns = ("FWHM east-west (deg)", "north-south", "points east (deg)", "north", "sources")
    table = Table("beam", "status", "dec (deg)", "from", "until", *columns, "notes")
    for one in beams:
        numbers = (
            f"{one[name]:.3f} +- {one[name.replace('_deg', '_error_deg')]:.3f}"
            for name in ("fwhm_east_deg", "fwhm_north_deg", "east_deg", "north_deg")
        )
        when = (utc_of_mjd(one[name])[:16] for name in ("first_mjd", "last_mjd"))
        about = (one["name"], one["status"], f"{one['app_dec_deg']:.1f}", *when, *numbers)
        table.add_row(*about, str(one["sources"]), escape(one["notes"]))
    console_of().print(table if beams else "no beam was fitted: contimg instrument DAY --fit")


@registry_app.command("show")
@reported
def registry_show(
    name: Annotated[str, typer.Argument(help="Name of the set.")], configfile: ConfigFiles = None
):
    """Everything about one set, as JSON: tables, checksums, quality, versions."""
    from contimg.calibration.registry import describe_sets

    sets = describe_sets(Paths.of(site(configfile, begun=True)).registry_db)
    found = [s for s in sets if s["set"] == name]
    if not found:
        raise CalibrationError(f"set {name} is not registered. See `contimg registry list`.")
    print(json.dumps(found[0], indent=1))


@registry_app.command("retire")
@reported
def registry_retire(
    name: Annotated[str, typer.Argument(help="Name of the set, or of a fitted beam.")],
    reason: Annotated[str, typer.Option(help="Why; it is shown wherever the set is refused.")],
    configfile: ConfigFiles = None,
    reprocess: Annotated[
        bool, typer.Option("--reprocess", help="Do the groups that were made with it again.")
    ] = False,
):
    """Never choose a set again, or a fitted beam. Images made with a set are marked as not to be
    published, and listed; those made with a beam are listed."""
    from contimg.calibration.beams import known_beams, retire_beam
    from contimg.calibration.registry import retire
    from contimg.products import publishing

    config = site(configfile, begun=True)
    paths = Paths.of(config)
    if name in (one["name"] for one in known_beams(paths.beams)):
        retire_beam(paths.beams, name, reason)
        _of_retired(config, name, publishing.images_of_beam(paths, name), "apply", reprocess)
        return
    retire(paths.registry_db, name, reason)
    publishing.mark(config)
    _of_retired(config, name, publishing.images_of_set(config, name), "caltables", reprocess)


def _of_retired(config, name: str, groups: list[str], stage: str, reprocess: bool) -> None:
    """Say which images were made with what was retired, and do them again if that was asked."""
    print(
        f"{name}: retired; {len(groups) or 'no'} "
        f"{'image was' if len(groups) == 1 else 'images were'} made with it"
    )
    must = ": must not be published" if stage == "caltables" else ""
    for group in groups:
        print(f"  {group}{must}")
    if groups and not reprocess:
        print(f"to do them again: contimg reprocess {' '.join(groups)} --from {stage}")
    if reprocess:
        do_again(config, groups, stage)


@registry_app.command("verify")
@reported
def registry_verify(configfile: ConfigFiles = None):
    """Whether every table of an active set is on disk, and is what it was when it was registered. A
    set of which one is not is failed, and its images are marked as not to be published."""
    from contimg.calibration.registry import all_tables
    from contimg.products import publishing

    config = site(configfile, begun=True)
    tables = all_tables(Paths.of(config).registry_db)
    wrong = publishing.check(config)
    for line in wrong:
        print(line)
    print(
        f"{sum(t.status == 'active' for t in tables)} tables of active sets, {len(wrong)} of them "
        "gone or altered"
    )
    raise typer.Exit(1 if wrong else 0)


@registry_app.command("stale")
@reported
def registry_stale(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Groups that would now get another set than they have: one came later, or theirs was
    retired."""
    from contimg.queue.planning import stale

    rows = stale(site(configfile, begun=True))
    if as_json:
        print(json.dumps([{"group": g, "has": has, "now": now} for g, has, now in rows], indent=1))
        return
    table = Table("group", "has", "would choose now")
    for row in rows:
        table.add_row(*map(escape, row))
    console_of().print(
        table if rows else "every calibrated group has the set that it would get now"
    )
    if rows:
        print("contimg reprocess GROUP --from caltables calibrates a group again")


@registry_app.command("import")
@reported
def registry_import(
    name: Annotated[str, typer.Argument(help="Name for the set.")],
    table: Annotated[
        list[str], typer.Option(help="KIND=FOLDER, KIND one of K, B, G; once for each table.")
    ],
    mid_mjd: Annotated[
        float, typer.Option(help="UTC of the middle of the observation that it was solved on.")
    ],
    dec: Annotated[float, typer.Option(help="Apparent declination of that pointing, deg.")],
    cal_field: Annotated[str, typer.Option(help="Calibrator.")],
    flux_scale: Annotated[str, typer.Option(help="Where its flux is from.")],
    refant: Annotated[str, typer.Option(help="Reference antenna.")] = "unknown",
    configfile: ConfigFiles = None,
):
    """Register a set that was solved elsewhere; its tables stay where they are."""
    from contimg.calibration.registry import import_set

    config = site(configfile)
    tables = dict(one.partition("=")[::2] for one in table)
    if not all(tables.values()):
        raise CalibrationError(f"--table {' '.join(table)}: expected KIND=FOLDER")
    import_set(
        Paths.of(config).registry_db,
        name,
        tables,
        mid_mjd,
        dec,
        cal_field,
        flux_scale,
        refant,
        config.calibration,
    )
    print(f"{name}: registered")
