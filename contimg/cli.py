"""The command line: `contimg COMMAND`."""

import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contimg import config as configuration
from contimg import db
from contimg.errors import ContimgError, InputError
from contimg.paths import Paths
from contimg.planning import describe, make_plans

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Continuum imaging of DSA-110 drift scans.")

ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--configfile", help="YAML on top of config/config.yaml; may be given again.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For a program instead of a person.")]
Groups = Annotated[list[str] | None, typer.Argument(help="Group ids, for example 2026-01-25T22:26:05.")]

_WIDTH_WITHOUT_TERMINAL = 200


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


def _command(function):
    """Register a command; what it refuses is said in one line, with exit status 1."""

    @app.command()
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ContimgError as error:
            print(f"contimg {function.__name__}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped


@_command
def run(
    groups: Groups = None,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/local",
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would run, change nothing.")] = False,
):
    """Image everything that is pending, or the given groups; shows the table at the end."""
    config = configuration.load(configfile or ())
    paths = Paths.of(config)
    files = [str(f) for f in (configuration.DEFAULT_CONFIG, *(configfile or ()))]
    command = [sys.executable, "-m", "snakemake", "--profile", profile, "--configfile", *files]
    command += ["--dry-run"] if dry_run else []
    command += ["--", *(str(paths.result(g, "index")) for g in groups)] if groups else []
    outcome = subprocess.run(command, check=False).returncode
    if not dry_run:
        _console().print(_status_table(config))
    raise typer.Exit(outcome)


@_command
def plan(configfile: ConfigFiles = None, as_json: AsJson = False):
    """What a run would do with every group, in plain words, and why not. Changes nothing."""
    config = configuration.load(configfile or ())
    plans = make_plans(config, time.time())
    if as_json:
        keys = ("action", "reason", "calibrators", "depends_on", "mid_mjd", "app_dec_deg")
        rows = [{"group": g, **{k: getattr(p, k) for k in keys}, "missing": list(p.missing)} for g, p in plans.items()]
        print(json.dumps(rows, indent=1))
        return
    console = _console()
    if not plans:
        console.print(f"no subband files in {config.paths.incoming}")
    for group, one in plans.items():
        role = "calibrator" if one.calibrators else "target"
        console.print(
            f"[bold]{group}[/bold]  {role if one.action in ('run', 'waiting') else '-'}  {escape(describe(one))}"
        )


@_command
def status(configfile: ConfigFiles = None, as_json: AsJson = False):
    """The groups: state, image, beam, noise, comparison with the catalogue, seconds."""
    config = configuration.load(configfile or ())
    if as_json:
        print(json.dumps(_status_rows(config), indent=1))
    else:
        _console().print(_status_table(config))


def _status_rows(config) -> list[dict]:
    from sqlalchemy import select

    from contimg.indexing import results_of
    from contimg.ingest import Group

    paths, rows = Paths.of(config), []
    with db.reading(paths.ingest_db) as session:
        for group in session.scalars(select(Group).order_by(Group.group_id)) if session else ():
            row = {"group": group.group_id, "state": group.state, "stage": group.processing_stage, "error": group.error,
                   "retry_count": group.retry_count}  # fmt: skip
            results = results_of(paths, group.group_id)
            row["seconds"] = {stage: r["seconds"] for stage, r in results.items() if stage != "index"}
            if image := results.get("image"):
                published = image["images"]
                row |= {
                    k: image[k]
                    for k in ("beam_major_arcsec", "beam_minor_arcsec", "beam_pa_deg", "rms_jy", "catalogue")
                }
                row["image"] = published.get("pbcor.fits", published["image.pbcor"])
            rows.append(row)
    return rows


def _status_table(config) -> Table:
    table = Table(title="Groups", title_justify="left")
    for name in (
        "group",
        "state",
        "image",
        "beam",
        "noise\nmJy/beam",
        "found",
        "flux\nratio",
        "offset",
        "seconds by stage",
    ):
        table.add_column(name, overflow="fold")
    for row in _status_rows(config):
        image, check = row.get("image"), row.get("catalogue") or {}
        seconds = " ".join(f"{stage} {value:.1f}" for stage, value in row["seconds"].items() if value >= 0.5)
        state = (
            row["state"]
            if row["state"] != "pending" or not row["retry_count"]
            else f"pending, attempt {row['retry_count'] + 1}"
        )
        if not image:
            why = row["error"] or (f"at {row['stage']}" if row["stage"] else "")
            table.add_row(row["group"], state, escape(why), "", "", "", "", "", seconds)
            continue
        table.add_row(
            row["group"], state, image, f"{row['beam_major_arcsec']:.1f}\" x {row['beam_minor_arcsec']:.1f}\"",
            f"{row['rms_jy'] * 1e3:.2f}", f"{check['found']} of {check['expected']}",
            "-" if check["flux_ratio"] is None else f"{check['flux_ratio']:.3f}",
            "-" if check["offset_arcsec"] is None else f"{check['offset_arcsec']:.2f}\"", seconds,
        )  # fmt: skip
    return table


@_command
def why(
    group: Annotated[str, typer.Argument(help="Group id.")], configfile: ConfigFiles = None, as_json: AsJson = False
):
    """Everything known about one group: plan, files, attempts, last error, logs."""
    config = configuration.load(configfile or ())
    paths = Paths.of(config)
    plans = make_plans(config, time.time(), only=[group])
    if group not in plans:
        raise InputError(f"group {group}: no such group in {config.paths.incoming} or in the queue")
    rows = [r for r in _status_rows(config) if r["group"] == group]
    known = {
        "plan": describe(plans[group]), **(rows[0] if rows else {"group": group, "state": "not in the queue yet"}),
        "files": {f"{sb:02d}": str(path) for sb, path in sorted(plans[group].group.files.items())},
        "duplicates": [str(path) for path in plans[group].group.duplicates],
        "logs": [str(path) for path in sorted((paths.products / "logs").glob(f"*/{group}.log"))],
    }  # fmt: skip
    if as_json:
        print(json.dumps(known, indent=1))
        return
    for key, value in known.items():
        lines = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        text = "\n    ".join(map(str, lines)) if isinstance(lines, list) else str(lines)
        _console().print(f"[bold]{key}[/bold]  {escape(text)}", soft_wrap=True)


@_command
def retry(groups: Annotated[list[str], typer.Argument(help="Group ids.")], configfile: ConfigFiles = None):
    """Put failed groups back into the queue, with a fresh budget of attempts."""
    from contimg import ingest

    config = configuration.load(configfile or ())
    with db.writing(Paths.of(config).ingest_db, ingest.Base) as session:
        for group in groups:
            ingest.requeue(session, group, config.ingest.min_subbands)
    print(f"{', '.join(groups)}: pending again; the next run takes them")


@_command
def simulate(
    folder: Annotated[Path | None, typer.Argument(help="Where to write; default: paths.incoming.")] = None,
    configfile: ConfigFiles = None,
    if_empty: Annotated[
        bool, typer.Option(help="Only when the folder has no subband files and no group is known.")
    ] = False,
    start: Annotated[
        str | None, typer.Option(help="UTC of one group; without it, the demo: a calibrator and a target.")
    ] = None,
    dec: Annotated[float, typer.Option(help="Apparent declination, deg.")] = 16.15,
    antennas: Annotated[int, typer.Option(help="Of the 96 active ones.")] = 48,
    channels: Annotated[int, typer.Option(help="Per subband; the telescope has 48.")] = 12,
    integrations: Annotated[int, typer.Option(help="Of 12.9 s.")] = 24,
    seed: Annotated[int, typer.Option(help="Noise and file-name skew.")] = 1,
    gain_seed: Annotated[int, typer.Option(help="Antenna gains.")] = 1,
    skew: Annotated[float, typer.Option(help="Spread of the file names, s.")] = 30.0,
    rfi: Annotated[bool, typer.Option(help="Add interference.")] = False,
    dead: Annotated[list[int] | None, typer.Option(help="Station that sees noise only; may be given again.")] = None,
    missing: Annotated[list[int] | None, typer.Option(help="Subband never written; may be given again.")] = None,
    truncated: Annotated[list[int] | None, typer.Option(help="Subband cut off; may be given again.")] = None,
):
    """Write simulated subband files in the telescope's format, with their truth beside them."""
    from contimg.simulate import Simulation, read_sky, simulate_demo, simulate_group

    config = configuration.load(configfile or ())
    folder, lists = folder or config.paths.incoming, config.catalogues
    if if_empty and (Paths.of(config).ingest_db.exists() or any(folder.glob("*_sb??*.hdf5"))):
        return
    begin = time.perf_counter()
    print(f"simulating into {folder} ...", flush=True)
    try:
        if start is None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".demo.") as work:  # whole, or not there
                simulate_demo(Path(work), lists.sky, lists.calibrators, lists.stations)
                written = [path.replace(folder / path.name) for path in sorted(Path(work).iterdir())]
        else:
            options = Simulation(
                start=start, dec_deg=dec, antennas=antennas, channels=channels, integrations=integrations, seed=seed,
                gain_seed=gain_seed, skew_s=skew, rfi=rfi, dead=tuple(dead or ()), missing=tuple(missing or ()),
                truncated=tuple(truncated or ()),
            )  # fmt: skip
            written = simulate_group(folder, options, read_sky(lists.sky, lists.calibrators), lists.stations)
    except ValueError as error:
        raise InputError(str(error)) from None
    size_mb = sum(f.stat().st_size for f in written) / 1e6
    print(f"{len(written)} files, {size_mb:.0f} MB, in {time.perf_counter() - begin:.0f} s")


@_command
def catalog(
    output: Annotated[Path, typer.Argument(help="CSV to write; name it in catalogues.sky.")],
    configfile: ConfigFiles = None,
    ra: Annotated[float | None, typer.Option(help="Centre of a cone, deg; without it, the whole NVSS.")] = None,
    dec: Annotated[float | None, typer.Option(help="Centre of a cone, deg.")] = None,
    radius: Annotated[float, typer.Option(help="Radius of the cone, deg.")] = 5.0,
    min_mjy: Annotated[float, typer.Option(help="Faintest source, mJy.")] = 2.5,
):
    """Get the NVSS (VizieR VIII/65) and store it in the format that the workflow reads."""
    from contimg.catalogues import download_nvss

    configuration.load(configfile or ())
    centre = None if ra is None or dec is None else (ra, dec)
    print(f"{download_nvss(output, centre, radius, min_mjy)} sources in {output}; set catalogues.sky to it")


if __name__ == "__main__":
    app()
