"""The command line: `contimg COMMAND`."""

import functools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from contimg import config as configuration
from contimg import db, report
from contimg.errors import CalibrationError, ContimgError, InputError
from contimg.paths import Paths
from contimg.planning import describe, made_otherwise, make_plans
from contimg.run import require_databases_here, snakemake_command

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Continuum imaging of DSA-110 drift scans.")

ConfigFiles = Annotated[
    list[Path] | None, typer.Option("--configfile", help="YAML on top of config/config.yaml; may be given again.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For a program instead of a person.")]
Groups = Annotated[list[str] | None, typer.Argument(help="Group ids, for example 2026-01-25T22:26:05.")]

_WIDTH_WITHOUT_TERMINAL = 200


def _site(configfile: list[Path] | None, begun: bool = False) -> configuration.Config:
    """The configuration, for commands that look into the databases: refused on a host that does not have them.

    begun  the command makes no sense where nothing was done yet: most probably these are not the folders that were meant
    """
    config = configuration.load(configfile or ())
    require_databases_here(config)
    paths = Paths.of(config)
    if begun and not any(path.exists() for path in (paths.ingest_db, paths.registry_db, paths.products_db)):
        raise InputError(
            f"nothing is known here: {paths.databases.absolute()} has no databases, so no run or watcher has worked "
            "with this configuration yet"
        )
    return config


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def _reported(function):
    """What a command refuses is said in one line, with exit status 1."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ContimgError, SQLAlchemyError, OSError) as error:
            print(f"contimg {function.__name__}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped


def _command(function):
    """Register a command."""
    return app.command()(_reported(function))


@_command
def run(
    groups: Groups = None,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/local",
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would run, change nothing.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small coarse image to look at.")] = False,
    skip_fits: Annotated[bool, typer.Option("--skip-fits", help="CASA images only.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Quick calibration, NON_SCIENCE.")] = False,
    timebin: Annotated[float | None, typer.Option(help="With --fast: average over this long, s.")] = None,
    chanbin: Annotated[int | None, typer.Option(help="With --fast: average over so many channels.")] = None,
    uvrange: Annotated[str | None, typer.Option(help="With --fast: baselines to solve with.")] = None,
    phase_only: Annotated[bool | None, typer.Option(help="With --fast: gains have phases only.")] = None,
    do_k: Annotated[bool, typer.Option("--do-k", help="Solve delays too.")] = False,
    writer: Annotated[str | None, typer.Option(help="Writer of the Measurement Sets.")] = None,
    chunk_duration: Annotated[float | None, typer.Option(help="Length of a group, minutes.")] = None,
):
    """Image everything that is pending, or the given groups; shows the table at the end."""
    config = _site(configfile)
    paths = Paths.of(config)
    if not fast and any(value is not None for value in (timebin, chanbin, uvrange, phase_only)):
        raise InputError("--timebin, --chanbin, --uvrange and --phase-only are for --fast")
    plans = make_plans(config, time.time(), groups) if groups else {}
    if unknown := [group for group in groups or () if group not in plans]:
        raise InputError(f"{', '.join(unknown)}: no such group in {config.paths.incoming} or in the queue; see contimg plan")
    for group in groups or []:
        if paths.result(group, "index").exists():
            print(f"{group} is done already; contimg reprocess {group} --from image (or caltables) does it again")
    options = {
        "imaging": {"mode": "quick" if quick else None, "skip_fits": skip_fits or None},
        "calibration": {"fast": fast or None, "timebin_s": timebin, "chanbin": chanbin, "fast_uvrange": uvrange,
                        "phase_only": phase_only, "do_k": do_k or None},
        "conversion": {"writer": writer}, "ingest": {"chunk_minutes": chunk_duration},
    }  # fmt: skip
    given = {name: {k: v for k, v in section.items() if v is not None} for name, section in options.items()}
    given = {name: section for name, section in given.items() if section}
    configuration.from_mapping(configuration.merge(config.model_dump(mode="json"), given))  # refused before a run is
    command = snakemake_command(profile, configfile or ()) + (["--dry-run"] if dry_run else [])
    command += ["--config", *(f"{name}={json.dumps(section)}" for name, section in given.items())] if given else []
    command += ["--", *(str(paths.result(g, "index")) for g in groups)] if groups else []
    outcome = subprocess.run(command, check=False).returncode
    if not dry_run:
        _show_status(report.status(config))
    raise typer.Exit(outcome)


@_command
def plan(configfile: ConfigFiles = None, as_json: AsJson = False):
    """What a run would do with every group, in plain words, and why not. Changes nothing."""
    from contimg.catalogues import read_sky
    from contimg.identity import science_digest

    config = _site(configfile)
    plans = make_plans(config, time.time())
    if as_json:
        keys = ("action", "reason", "calibrators", "depends_on", "mid_mjd", "app_dec_deg")
        rows = [{"group": g, **{k: getattr(p, k) for k in keys}, "missing": list(p.missing)} for g, p in plans.items()]
        print(json.dumps(rows, indent=1))
        return
    console = _console()
    lines = [] if plans else [f"no subband files in {config.paths.incoming}"]
    digest = science_digest(config)
    lines += [
        f"[bold red]{escape(f'{config.catalogues.sky}: {one}')}[/bold red]" for one in read_sky(config.catalogues.sky).problems
    ]
    for group, one in plans.items():
        role = "calibrator" if one.calibrators else "target"
        text = describe(one) + (", with another configuration" if made_otherwise(config, digest, group, one) else "")
        lines.append(f"[bold]{group}[/bold]  {role if one.action in ('run', 'waiting') else '-'}  {escape(text)}")
    console.print("\n".join(lines))


@_command
def status(
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Every group, not only the latest and the failed.")] = False,
):
    """Does it keep up? Counts, what runs now, how far behind, and the latest groups with their images."""
    found = report.status(_site(configfile), everything)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show_status(found)


def _show_status(found: dict) -> None:
    console = _console()
    counts, total = found["counts"], sum(found["counts"].values())
    if (refused := found["refused"]) and not (found["watcher"] and found["watcher"]["problem"]):
        console.print(f"[bold red]the last run did not begin ({refused['at']}): {escape(refused['error'])}[/bold red]")
    if not total:
        console.print("The queue is empty: no run or watcher has looked at the incoming folder yet.")
        return
    console.print(f"[bold]{total} groups[/bold]: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    behind = found["oldest_unfinished"]
    pace = f"{found['arrived_last_hour']} groups came in the last hour, {found['imaged_last_hour']} were imaged"
    text = f"behind by {_duration(found['behind_s'])} ({behind} is the oldest to be done)" if behind else "up to date"
    console.print(f"{text}; {pace}; observed until {found['observed_until']}, imaged until {found['imaged_until'] or '-'}")
    watcher = found["watcher"]
    console.print("no watcher" if watcher is None else f"watcher: process {watcher['pid']}, looked at {watcher['at']}")
    if found["backlog"]:
        console.print(f"a backlog is worked off by process {found['backlog']}")
    if watcher and watcher["problem"]:
        console.print(f"[bold red]{escape(watcher['problem'])}[/bold red]")
    for job in found["running"]:
        if not job["alive"]:
            console.print(f"[red]{job['group']}: its run is dead; the watcher or the next run takes it up[/red]")
        elif job["stage"]:
            console.print(f"now: {job['group']} [bold]{job['stage']}[/bold] since {job['since']}, attempt {job['attempt']}")
    if bad := found.get("must_not_be_used"):
        console.print(
            f"[bold red]{bad} {'image' if bad == 1 else 'images'} must not be used[/bold red]; contimg why GROUP says why"
        )
    if between := sum(job["alive"] and not job["stage"] for job in found["running"]):
        console.print(f"{between} more groups are between two stages, or on the cluster")
    console.print(_status_table(found["groups"]))
    if len(found["groups"]) < total:
        console.print(f"{len(found['groups'])} of {total} groups shown; --all shows every one")
    if counts.get("failed"):
        console.print("contimg why GROUP says what failed; contimg retry GROUP (or --all) tries again")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _status_table(rows: list[dict]) -> Table:
    table = Table()
    headings = ("group", "state", "image", "beam", "noise\nmJy/beam", "found", "flux\nratio", "offset", "verdict",
                "seconds by stage")  # fmt: skip
    for name in headings:
        table.add_column(name, overflow="fold")
    for row in rows:
        image, check = row.get("image"), row.get("catalogue") or {}
        seconds = " ".join(f"{stage} {value:.1f}" for stage, value in row["seconds"].items() if value >= 0.5)
        state = row["state"]
        if state == "pending" and row["retry_count"]:
            state = f"pending, attempt {row['retry_count'] + 1}"
        if not image or row["state"] != "completed":
            reason = row["error"] or (f"done: {row['stage']}" if row["stage"] else "")
            table.add_row(row["group"], state, escape(reason), *[""] * 6, seconds)
            continue
        table.add_row(
            row["group"], state, image, f"{row['beam_major_arcsec']:.1f}\" x {row['beam_minor_arcsec']:.1f}\"",
            f"{row['rms_jy'] * 1e3:.2f}", f"{check['found']} of {check['expected']}",
            "-" if check["flux_ratio"] is None else f"{check['flux_ratio']:.3f}",
            "-" if check["offset_arcsec"] is None else f"{check['offset_arcsec']:.2f}\"",
            escape("; ".join([row["verdict"], *_against(row), *row["verdict_reasons"]])), seconds,
        )  # fmt: skip
    return table


def _against(row: dict) -> list[str]:
    """What is against an image's use that its verdict does not say."""
    status = row.get("calibration_set", "active")
    return [] if status == "active" else [f"must not be used: its calibration set is {status}"]


@_command
def why(group: Annotated[str, typer.Argument(help="Group id.")], configfile: ConfigFiles = None, as_json: AsJson = False):
    """Everything known about one group: plan, files, missing subbands, attempts, errors, logs."""
    known = report.why(_site(configfile), group)
    if as_json:
        print(json.dumps(known, indent=1))
        return
    console = _console()
    files, history, logs = known.pop("files", []), known.pop("history", []), known.pop("logs")
    for key, value in known.items():
        if isinstance(value, list) and len(value) and all(isinstance(one, str) for one in value):
            for one in value:
                console.print(f"[bold]{key.replace('_', ' ')}[/bold]  {escape(one)}", soft_wrap=True)
        elif value not in (None, [], {}):
            console.print(f"[bold]{key.replace('_', ' ')}[/bold]  {escape(str(value))}", soft_wrap=True)
    for file in files:
        file["path"] = Path(file["path"]).name
    for title, rows in (("files", files), ("history", history)):
        if rows:
            table = Table(title=title, title_justify="left")
            for name in rows[0]:
                table.add_column(name.replace("_", " "), overflow="fold")
            for row in rows:
                table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
            console.print(table)
    for path in logs:
        console.print(f"[bold]log[/bold]  {path}", soft_wrap=True)


@_command
def incomplete(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Groups that lack subbands: which, why, and until when they wait."""
    rows = report.incomplete(_site(configfile))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table()
    for name in ("group", "state", "has", "waits until", "reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        has = f"{row['have']} of {row['expected']}"
        table.add_row(row["group"], row["state"], has, row["waits_until"] or "given up", escape(row["reason"]))
    _console().print(table if rows else "every group that came is complete")


@_command
def retry(
    groups: Groups = None,
    configfile: ConfigFiles = None,
    every: Annotated[bool, typer.Option("--all", help="Every failed group that has enough files.")] = False,
):
    """Put failed groups back into the queue, with a fresh budget of attempts."""
    from contimg import ingest

    config = _site(configfile, begun=True)
    enough, again = config.ingest.min_subbands, groups or []
    with db.writing(Paths.of(config).ingest_db, ingest.Base) as session:
        for group in again:
            ingest.requeue(session, group, enough)
        if every:
            again = [*again, *ingest.requeue_failed(session, enough)]
    print(f"{', '.join(again)}: pending again; the next run takes them" if again else "nothing to try again")


@_command
def reprocess(
    groups: Groups = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", help="First stage to repeat; without it, everything.", metavar="STAGE")
    ] = None,
    start: Annotated[str | None, typer.Option(help="Groups from this UTC time (or day) on.")] = None,
    end: Annotated[str | None, typer.Option(help="Groups before this UTC time.")] = None,
    dec: Annotated[float | None, typer.Option(help="Groups of the strip at this declination, deg (to 0.1).")] = None,
    calibration_set: Annotated[str | None, typer.Option("--set", help="Groups imaged with this calibration set.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Groups whose image is good, warn, unverified or fail.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="List them, change nothing.")] = False,
    configfile: ConfigFiles = None,
):
    """Do finished or failed groups again, from a stage on: those named, or all that fit the options. What they have now stays
    until it is replaced."""
    config = _site(configfile, begun=True)
    chosen = (start, end, dec, calibration_set, verdict)
    if not groups and chosen == (None,) * len(chosen):
        raise InputError("which? Name groups, or choose them with --start, --end, --dec, --set, --verdict")
    found = report.finished(config, groups or (), *chosen)
    if dry_run or not found:
        print("\n".join(found) or "no finished or failed group fits")
        return
    _do_again(config, found, from_stage)


def _do_again(config: configuration.Config, groups: Iterable[str], from_stage: str | None) -> None:
    """Each that can be: one that cannot does not hold up the others; status 1 then."""
    from contimg import ingest

    paths, refused = Paths.of(config), 0
    for group in groups:
        try:
            with db.writing(paths.ingest_db, ingest.Base) as session:
                first = ingest.reprocess(session, paths, group, from_stage, config.ingest.min_subbands)
            print(f"{group}: pending again, from {first} on; the next run takes it")
        except ContimgError as error:
            print(f"contimg reprocess: {error}", file=sys.stderr)
            refused += 1
    if refused:
        raise typer.Exit(1)


@_command
def watch(
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/local",
    snakefile: Annotated[Path | None, typer.Option(help="Another workflow than ./Snakefile.")] = None,
):
    """Watch the incoming folder, day and night: groups into the queue, and run after run on those that can go."""
    from contimg.watch import Watcher

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    Watcher(configuration.load(configfile or ()), configfile or (), profile, snakefile).watch()


@_command
def backlog(
    start: Annotated[str, typer.Argument(help="UTC of the first group, or a day: 2026-01-25.")],
    end: Annotated[str | None, typer.Argument(help="UTC before which groups are taken; without it, a day from START on.")] = None,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/slurm",
    slice_groups: Annotated[int, typer.Option("--slice", help="Groups a Snakemake run.", min=1)] = 96,
    groups_from: Annotated[Path | None, typer.Option("--groups", help="File with the group ids to take, one a line.")] = None,
    snakefile: Annotated[Path | None, typer.Option(help="Another workflow than ./Snakefile.")] = None,
):
    """Image a stretch of the archive, run after run, on a cluster. Can be killed and started again at any moment."""
    from datetime import datetime, timedelta

    from contimg.backlog import work_off

    try:
        until = end or (datetime.fromisoformat(start) + timedelta(days=1)).isoformat()
    except ValueError:
        raise InputError(f"{start}: not a UTC time like 2026-01-25 or 2026-01-25T22:26:05") from None
    config = _site(configfile)
    chosen = {"ingest": {"start": start, "end": until, "groups": groups_from.read_text().split() if groups_from else []}}
    wanted = configuration.from_mapping(configuration.merge(config.model_dump(mode="json"), chosen)).ingest
    states = work_off(config, wanted, configfile or (), profile, slice_groups, print, snakefile)
    print(", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "no group in that time")
    raise typer.Exit(1 if states["failed"] else 0)


@_command
def simulate(
    folder: Annotated[Path | None, typer.Argument(help="Where to write; default: paths.incoming.")] = None,
    configfile: ConfigFiles = None,
    if_empty: Annotated[bool, typer.Option(help="Only when the folder has no subband files and no group is known.")] = False,
    start: Annotated[str | None, typer.Option(help="UTC of one group; without it, the demo: a calibrator and a target.")] = None,
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
    without: Annotated[list[str] | None, typer.Option(help="Source, by name, that is not there; may be given again.")] = None,
    sefd_scatter: Annotated[float, typer.Option(help="Scatter of ln(noise) among the receivers.")] = 0.0,
    far: Annotated[list[str] | None, typer.Option(help="Cas A or Cyg A in the sidelobes; may be given again.")] = None,
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
                truncated=tuple(truncated or ()), without=tuple(without or ()), sefd_scatter=sefd_scatter, far=tuple(far or ()),
            )  # fmt: skip
            written = simulate_group(folder, options, read_sky(lists.sky, lists.calibrators), lists.stations)
    except ValueError as error:
        raise InputError(str(error)) from None
    size_mb = sum(f.stat().st_size for f in written) / 1e6
    print(f"{len(written)} files, {size_mb:.0f} MB, in {time.perf_counter() - begin:.0f} s")


@_command
def selftest():
    """Image one tiny simulated group in a temporary folder: everything is installed, and compiled for the runs to come."""
    from contimg.simulate import Simulation, read_sky, simulate_group

    with tempfile.TemporaryDirectory(prefix="contimg-selftest-") as work:
        folder, lists = Path(work), configuration.load().catalogues
        options = Simulation(start="2026-03-02T20:03:10", antennas=16, channels=2, integrations=6, seed=1, gain_seed=1)
        simulate_group(folder / "incoming", options, read_sky(lists.sky, lists.calibrators), lists.stations)
        site = {"paths": {name: str(folder / name) for name in ("incoming", "products", "state")},
                "imaging": {"imsize": 512, "cell_arcsec": 16.0}, "calibration": {"min_median_snr": 1e-3}}  # fmt: skip
        (folder / "site.json").write_text(json.dumps(site))
        begin = time.perf_counter()
        command = snakemake_command("profiles/local", [folder / "site.json"])
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode or not (folder / "products" / "results" / f"{options.start}.index.json").exists():
            raise ContimgError(f"a tiny group could not be imaged. What Snakemake said:\n{outcome.stderr[-4000:]}")
    print(f"a tiny group was imaged in {time.perf_counter() - begin:.0f} s: everything works")


@_command
def catalog(
    output: Annotated[Path, typer.Argument(help="File to write, .csv or indexed .sqlite3; name it in catalogues.sky.")],
    configfile: ConfigFiles = None,
    source: Annotated[Path | None, typer.Option("--from", help="A FITS, VOTable or CSV file instead of the NVSS.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="With --from: name=NVSS, ra_deg=RAJ2000, ... where the file has other names.")
    ] = None,
    flux_unit: Annotated[str | None, typer.Option(help="With --from: of its fluxes, where it does not say: Jy or mJy.")] = None,
    ra: Annotated[float | None, typer.Option(help="Centre of a cone, deg; without it, the whole NVSS.")] = None,
    dec: Annotated[float | None, typer.Option(help="Centre of a cone, deg.")] = None,
    radius: Annotated[float, typer.Option(help="Radius of the cone, deg.")] = 5.0,
    min_mjy: Annotated[float, typer.Option(help="Faintest source, mJy.")] = 2.5,
):
    """Get the NVSS (VizieR VIII/65), or take a catalogue that you have, checked, in the format that the workflow reads."""
    from contimg.catalogues import download_nvss, read_table, write_catalogue

    configuration.load(configfile or ())
    if source is None:
        sky = download_nvss(output, None if ra is None or dec is None else (ra, dec), radius, min_mjy)
    else:
        named = [one.partition("=") for text in columns or () for one in text.replace(" ", "").split(",")]
        sky = write_catalogue(output, read_table(source, {ours: theirs for ours, _, theirs in named}, flux_unit), str(source))
    for problem in sky.problems:
        print(problem)
    print(f"{sky.number} sources in {output}; set catalogues.sky to it")


@_command
def serve(
    configfile: ConfigFiles = None,
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every one of this machine.")] = "127.0.0.1",
    prefix: Annotated[str, typer.Option(help="Path under which a proxy shows it: /contimg.")] = "",
):
    """The page and the API. With CONTIMG_API_KEY in the environment, groups can be reprocessed from the page."""
    import uvicorn

    from contimg.api import make_app

    prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
    app_of_site = make_app(_site(configfile))
    uvicorn.run(app_of_site, host=host, port=port, root_path=prefix, log_level="warning")


@_command
def provenance(
    image: Annotated[str, typer.Argument(help="Path or file name of an image, or a group id.")], configfile: ConfigFiles = None
):
    """Where an image comes from: raw files, tables, configuration, versions, commands and seconds, as JSON."""
    from contimg import provenance as chain

    print(json.dumps(chain.provenance(_site(configfile, begun=True), image), indent=1))


@_command
def verify(configfile: ConfigFiles = None):
    """Whether every product is in the databases, on disk, and as it was when it was recorded. Status 1 when not."""
    from contimg import provenance as chain
    from contimg import publishing

    found = 0
    config = _site(configfile, begun=True)
    for line in chain.verify(config):
        print(line, flush=True)
        found += 1
    publishing.check(config)  # images of sets that were altered are marked
    print(f"{found} products are missing, altered or unknown" if found else "every product is in its place and unaltered")
    raise typer.Exit(1 if found else 0)


@_command
def export(
    output: Annotated[Path, typer.Argument(help="File to write: .vot or .xml (VOTable), .csv or .ecsv.")],
    what: Annotated[str, typer.Option(help="obscore, images, ms_index, qa_artifacts or caltables.")] = "obscore",
    configfile: ConfigFiles = None,
):
    """Write an index as a table: by default the images as an archive lists them (IVOA ObsCore)."""
    from contimg.archive import export as write

    print(f"{write(_site(configfile, begun=True), what, output)} rows of {what} in {output}")


@_command
def retention(configfile: ConfigFiles = None, as_json: AsJson = False):
    """How much room is left and for how long, what may be deleted, and what was. Deletes nothing: runs do, at their end."""
    from contimg.retention import room

    found = room(_site(configfile))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    mean, hours = found["bytes_a_group"], found["hours_left"]
    room_left = f"{found['free_bytes'] / 1e9:.0f} GB free"
    print(room_left + (f"; {mean / 1e9:.2f} GB a group: room for {hours:.1f} hours of observing" if mean else ""))
    for title in ("may_be_deleted", "deleted"):
        numbers = (f"{number} {kind.replace('_', ' ')}" for kind, number in found[title].items())
        print(f"{title.replace('_', ' ')}: {', '.join(numbers)}")


registry_app = typer.Typer(help="Calibration sets: what is known of them, and which may be used.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")


@registry_app.command("list")
@_reported
def registry_list(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Every set: when and where it is valid, its numbers, and whether it may be used."""
    from contimg.registry import describe_sets

    sets = describe_sets(Paths.of(_site(configfile)).registry_db)
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
    _console().print(table if sets else "no calibration set is known")


@registry_app.command("show")
@_reported
def registry_show(name: Annotated[str, typer.Argument(help="Name of the set.")], configfile: ConfigFiles = None):
    """Everything about one set, as JSON: tables, checksums, quality, versions."""
    from contimg.registry import describe_sets

    sets = describe_sets(Paths.of(_site(configfile, begun=True)).registry_db)
    found = [s for s in sets if s["set"] == name]
    if not found:
        raise CalibrationError(f"set {name} is not registered. See `contimg registry list`.")
    print(json.dumps(found[0], indent=1))


@registry_app.command("retire")
@_reported
def registry_retire(
    name: Annotated[str, typer.Argument(help="Name of the set.")],
    reason: Annotated[str, typer.Option(help="Why; it is shown wherever the set is refused.")],
    configfile: ConfigFiles = None,
    reprocess: Annotated[bool, typer.Option("--reprocess", help="Do the groups that were made with it again.")] = False,
):
    """Never choose a set again. Images made with it are marked as not to be published, and listed."""
    from contimg import publishing
    from contimg.registry import retire

    config = _site(configfile, begun=True)
    paths = Paths.of(config)
    retire(paths.registry_db, name, reason)
    publishing.mark(config)
    groups = publishing.images_of_set(config, name)
    print(f"{name}: retired; {len(groups) or 'no'} {'image was' if len(groups) == 1 else 'images were'} made with it")
    for group in groups:
        print(f"  {group}: must not be published")
    if groups and not reprocess:
        print(f"to do them again with another set: contimg reprocess {' '.join(groups)} --from caltables")
    if reprocess:
        _do_again(config, groups, "caltables")


@registry_app.command("verify")
@_reported
def registry_verify(configfile: ConfigFiles = None):
    """Whether every table of an active set is on disk, and is what it was when it was registered. A set of which one is not is
    failed, and its images are marked as not to be published."""
    from contimg import publishing
    from contimg.registry import all_tables

    config = _site(configfile, begun=True)
    tables = all_tables(Paths.of(config).registry_db)
    wrong = publishing.check(config)
    for line in wrong:
        print(line)
    print(f"{sum(t.status == 'active' for t in tables)} tables of active sets, {len(wrong)} of them gone or altered")
    raise typer.Exit(1 if wrong else 0)


@registry_app.command("stale")
@_reported
def registry_stale(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Groups that would now get another set than they have: one came later, or theirs was retired."""
    from contimg.planning import stale

    rows = stale(_site(configfile, begun=True))
    if as_json:
        print(json.dumps([{"group": g, "has": has, "now": now} for g, has, now in rows], indent=1))
        return
    table = Table("group", "has", "would choose now")
    for row in rows:
        table.add_row(*map(escape, row))
    _console().print(table if rows else "every calibrated group has the set that it would get now")
    if rows:
        print("contimg reprocess GROUP --from caltables calibrates a group again")


@registry_app.command("import")
@_reported
def registry_import(
    name: Annotated[str, typer.Argument(help="Name for the set.")],
    table: Annotated[list[str], typer.Option(help="KIND=FOLDER, KIND one of K, B, G; once for each table.")],
    mid_mjd: Annotated[float, typer.Option(help="UTC of the middle of the observation that it was solved on.")],
    dec: Annotated[float, typer.Option(help="Apparent declination of that pointing, deg.")],
    cal_field: Annotated[str, typer.Option(help="Calibrator.")],
    flux_scale: Annotated[str, typer.Option(help="Where its flux is from.")],
    refant: Annotated[str, typer.Option(help="Reference antenna.")] = "unknown",
    configfile: ConfigFiles = None,
):
    """Register a set that was solved elsewhere; its tables stay where they are."""
    from contimg.registry import import_set

    config = _site(configfile)
    tables = dict(one.partition("=")[::2] for one in table)
    if not all(tables.values()):
        raise CalibrationError(f"--table {' '.join(table)}: expected KIND=FOLDER")
    import_set(Paths.of(config).registry_db, name, tables, mid_mjd, dec, cal_field, flux_scale, refant, config.calibration)
    print(f"{name}: registered")


if __name__ == "__main__":
    app()
