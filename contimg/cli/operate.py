"""Commands of who runs it: run, plan, status, why, incomplete, retry, reprocess, watch, backlog."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from contimg import config as configuration
from contimg import report
from contimg.chain import LAST
from contimg.cli.shared import AsJson, ConfigFiles, Groups, command, console_of, site
from contimg.concerns import FAIL, Concern, concerns, duration
from contimg.errors import ContimgError, RequestError
from contimg.paths import Paths
from contimg.queue.planning import describe, made_otherwise, make_plans
from contimg.runs.session import snakemake_command
from contimg.store import db

_WIDE = 150  # columns of a terminal


@command
def run(
    groups: Groups = None,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would run, change nothing.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small coarse image to look at.")
    ] = False,
    skip_fits: Annotated[bool, typer.Option("--skip-fits", help="CASA images only.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Quick calibration, NON_SCIENCE.")] = False,
    timebin: Annotated[
        float | None, typer.Option(help="With --fast: average over this long, s.")
    ] = None,
    chanbin: Annotated[
        int | None, typer.Option(help="With --fast: average over so many channels.")
    ] = None,
    uvrange: Annotated[
        str | None, typer.Option(help="With --fast: baselines to solve with.")
    ] = None,
    phase_only: Annotated[
        bool | None, typer.Option(help="With --fast: gains have phases only.")
    ] = None,
    do_k: Annotated[bool, typer.Option("--do-k", help="Solve delays too.")] = False,
    writer: Annotated[str | None, typer.Option(help="Writer of the Measurement Sets.")] = None,
    chunk_duration: Annotated[
        float | None, typer.Option(help="Length of a group, minutes.")
    ] = None,
):
    """Image everything that is pending, or the given groups; shows the table at the end."""
    config = site(configfile)
    paths = Paths.of(config)
    if not fast and any(value is not None for value in (timebin, chanbin, uvrange, phase_only)):
        raise RequestError("--timebin, --chanbin, --uvrange and --phase-only are for --fast")
    plans = make_plans(config, time.time(), groups) if groups else {}
    if unknown := [group for group in groups or () if group not in plans]:
        raise RequestError(
            f"{', '.join(unknown)}: no such group in {config.paths.incoming} or in the queue; see "
            "contimg plan"
        )
    for group in groups or []:
        if paths.result(group, LAST).exists():
            print(
                f"{group} is done already; contimg reprocess {group} --from image (or caltables) "
                f"does it again, contimg quicklook {group} has a quick look at it as it is"
            )
    options = {
        "imaging": {"mode": "quick" if quick else None, "skip_fits": skip_fits or None},
        "calibration": {
            "fast": fast or None,
            "timebin_s": timebin,
            "chanbin": chanbin,
            "fast_uvrange": uvrange,
            "phase_only": phase_only,
            "do_k": do_k or None,
        },
        "conversion": {"writer": writer},
        "ingest": {"chunk_minutes": chunk_duration},
    }
    given = {
        name: {k: v for k, v in section.items() if v is not None}
        for name, section in options.items()
    }
    given = {name: section for name, section in given.items() if section}
    # refused before a run is
    configuration.from_mapping(configuration.merge(config.model_dump(mode="json"), given))
    command = snakemake_command(profile, configfile or ()) + (["--dry-run"] if dry_run else [])
    command += (
        ["--config", *(f"{name}={json.dumps(section)}" for name, section in given.items())]
        if given
        else []
    )
    command += ["--", *(str(paths.result(g, LAST)) for g in groups)] if groups else []
    outcome = subprocess.run(command, check=False).returncode
    if not dry_run:
        found = report.status(config)
        _show_status(found, concerns(config, found))
    raise typer.Exit(outcome)


@command
def quicklook(
    group: Annotated[str, typer.Argument(help="Group id.")],
    configfile: ConfigFiles = None,
    threads: Annotated[int, typer.Option(help="Threads.")] = os.cpu_count() or 1,
):
    """A quick image of a group in whatever state it is, beside what it has; changes nothing of
    it."""
    from contimg.runs import quicklook as looking  # imaging and plots: a second to import

    imaged, image, picture = looking.quicklook(site(configfile), group, threads)
    check = imaged["catalogue"]
    noise = imaged["rms_jy"] / imaged["thermal_jy"]
    print(
        f"{group}: noise {1e3 * imaged['rms_jy']:.2f} mJy/beam ({noise:.1f} times thermal), "
        f"{check['found']} of {check['expected']} catalogue sources, flux ratio "
        f"{check['flux_ratio'] or '-'}"
    )
    print(f"a quick look, not for science: {picture}\n{image}")


@command
def plan(configfile: ConfigFiles = None, as_json: AsJson = False):
    """What a run would do with every group, in plain words, and why not. Changes nothing."""
    from contimg.sky.catalogues import read_sky
    from contimg.store.identity import science_digest

    config = site(configfile)
    plans = make_plans(config, time.time())
    if as_json:
        keys = ("action", "reason", "calibrators", "depends_on", "mid_mjd", "app_dec_deg")
        rows = [
            {"group": g, **{k: getattr(p, k) for k in keys}, "missing": list(p.missing)}
            for g, p in plans.items()
        ]
        print(json.dumps(rows, indent=1))
        return
    console = console_of()
    lines = [] if plans else [f"no subband files in {config.paths.incoming}"]
    digest = science_digest(config)
    lines += [
        f"[bold red]{escape(f'{config.catalogues.sky}: {one}')}[/bold red]"
        for one in read_sky(config.catalogues.sky).problems
    ]
    for group, one in plans.items():
        role = "calibrator" if one.calibrators else "target"
        text = describe(one) + (
            ", with another configuration" if made_otherwise(config, digest, group, one) else ""
        )
        lines.append(
            f"[bold]{group}[/bold]  {role if one.action in ('run', 'waiting') else '-'}  "
            f"{escape(text)}"
        )
    console.print("\n".join(lines))


@command
def status(
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every group, not only the latest and the failed.")
    ] = False,
):
    """Does it keep up? Counts, what runs now, how far behind, and the latest groups with their
    images."""
    config = site(configfile)
    found = report.status(config, everything)
    wrong = concerns(config, found)
    if as_json:
        print(json.dumps(found | {"wrong": [asdict(one) for one in wrong]}, indent=1))
        return
    _show_status(found, wrong)


def _show_status(found: dict, wrong: list[Concern]) -> None:
    console = console_of()
    counts, total = found["counts"], sum(found["counts"].values())
    for one in wrong:
        colour = "bold red" if one.level == FAIL else "yellow"
        console.print(f"[{colour}]{escape(one.words)}[/{colour}]; {escape(one.mend)}")
    if not total:
        console.print(
            "The queue is empty: no run or watcher has looked at the incoming folder yet."
        )
        return
    console.print(
        f"[bold]{total} groups[/bold]: "
        + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    )
    behind = found["oldest_unfinished"]
    pace = (
        f"{found['arrived_last_hour']} groups came in the last hour, "
        f"{found['imaged_last_hour']} were imaged"
    )
    text = (
        f"behind by {duration(found['behind_s'])} ({behind} is the oldest to be done)"
        if behind
        else "up to date"
    )
    console.print(
        f"{text}; {pace}; observed until {found['observed_until']}, imaged until "
        f"{found['imaged_until'] or '-'}"
    )
    watcher = found["watcher"]
    console.print(
        "no watcher"
        if watcher is None
        else f"watcher: process {watcher['pid']}, looked at {watcher['at']}"
    )
    if found["backlog"]:
        console.print(f"a backlog is worked off by process {found['backlog']}")
    for job in found["running"]:
        if not job["alive"]:
            console.print(
                f"[red]{job['group']}: its run is dead; the watcher or the next run takes it "
                "up[/red]"
            )
        elif job["stage"]:
            console.print(
                f"now: {job['group']} [bold]{job['stage']}[/bold] since {job['since']}, attempt "
                f"{job['attempt']}"
            )
    if bad := found.get("must_not_be_used"):
        console.print(
            f"[bold red]{bad} {'image' if bad == 1 else 'images'} must not be used[/bold red]; "
            "contimg why GROUP says why"
        )
    if between := sum(job["alive"] and not job["stage"] for job in found["running"]):
        console.print(f"{between} more groups are between two stages, or on the cluster")
    console.print(_status_table(found["groups"], console.width))
    if len(found["groups"]) < total:
        console.print(f"{len(found['groups'])} of {total} groups shown; --all shows every one")
    if counts.get("failed"):
        console.print(
            "contimg why GROUP says what failed; contimg retry GROUP (or --all) tries again"
        )


def _status_table(rows: list[dict], width: int) -> Table:
    """Without paths and seconds where there is no room."""
    wide, table = width >= _WIDE, Table()
    headings = ["group", "state", "beam", "noise\nmJy/beam", "found", "flux\nratio", "offset"]
    headings += ["verdict, or why not", *(["image", "seconds by stage"] if wide else [])]
    for name in headings:
        table.add_column(name, overflow="fold", no_wrap=name in ("group", "state"))
    for row in rows:
        image, check = row.get("image"), row.get("catalogue") or {}
        seconds = " ".join(
            f"{stage} {value:.1f}" for stage, value in row["seconds"].items() if value >= 0.5
        )
        state = row["state"]
        if state == "pending" and row["retry_count"]:
            state = f"pending, attempt {row['retry_count'] + 1}"
        if image and row["state"] == "completed":
            numbers = [
                f'{row["beam_major_arcsec"]:.1f}" x {row["beam_minor_arcsec"]:.1f}"',
                f"{row['rms_jy'] * 1e3:.2f}",
                f"{check['found']} of {check['expected']}",
                "-" if check["flux_ratio"] is None else f"{check['flux_ratio']:.3f}",
                "-" if check["offset_arcsec"] is None else f'{check["offset_arcsec"]:.2f}"',
            ]
            words = "; ".join([row["verdict"], *_against(row), *row["verdict_reasons"]])
        else:
            numbers, image = [""] * 5, ""
            words = row["error"] or (f"done: {row['stage']}" if row["stage"] else "")
        more = [image, seconds] if wide else []
        table.add_row(row["group"], state, *numbers, escape(words), *more)
    return table


def _against(row: dict) -> list[str]:
    """What is against an image's use that its verdict does not say."""
    status = row.get("calibration_set", "active")
    return [] if status == "active" else [f"must not be used: its calibration set is {status}"]


@command
def why(
    group: Annotated[str, typer.Argument(help="Group id.")],
    configfile: ConfigFiles = None,
    as_json: AsJson = False,
):
    """Everything known about one group: plan, files, missing subbands, attempts, errors, logs."""
    known = report.why(site(configfile), group)
    if as_json:
        print(json.dumps(known, indent=1))
        return
    console = console_of()
    files, history, logs = known.pop("files", []), known.pop("history", []), known.pop("logs")
    for key, value in known.items():
        if isinstance(value, list) and len(value) and all(isinstance(one, str) for one in value):
            for one in value:
                console.print(
                    f"[bold]{key.replace('_', ' ')}[/bold]  {escape(one)}", soft_wrap=True
                )
        elif value not in (None, [], {}):
            name = {"antennas_lost": "without antennas"}.get(key, key.removesuffix("_jy"))
            name = name.replace("_", " ")
            console.print(f"[bold]{name}[/bold]  {escape(_in_words(key, value))}", soft_wrap=True)
    for file in files:
        file["path"] = Path(file["path"]).name
    said = None
    for move in history:
        error = move["error"]
        if error and error == said:
            move["error"] = "the same"
        said = error
    for title, rows in (("files", files), ("history", history)):
        if rows:
            table = Table(title=title, title_justify="left")
            for name in rows[0]:
                table.add_column(name.replace("_", " "), overflow="fold")
            for row in rows:
                table.add_row(
                    *("" if value is None else escape(str(value)) for value in row.values())
                )
            console.print(table)
    for path in logs:
        console.print(f"[bold]log[/bold]  {path}", soft_wrap=True)


def _in_words(key: str, value: object) -> str:
    """A value for people: mJy, few digits, no braces."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(name, one)}" for name, one in value.items())
    if isinstance(value, float) and key.endswith("_jy"):
        return f"{1e3 * value:.3f} mJy"
    exact = not isinstance(value, float) or key.endswith("_mjd")
    return str(value) if exact else f"{value:.6g}"


@command
def incomplete(configfile: ConfigFiles = None, as_json: AsJson = False):
    """Groups that lack subbands: which, why, and until when they wait."""
    rows = report.incomplete(site(configfile))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table()
    for name in ("group", "state", "has", "waits until", "reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        has = f"{row['have']} of {row['expected']}"
        table.add_row(
            row["group"], row["state"], has, row["waits_until"] or "given up", escape(row["reason"])
        )
    console_of().print(table if rows else "every group that came is complete")


@command
def retry(
    groups: Groups = None,
    configfile: ConfigFiles = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every failed group that has enough files.")
    ] = False,
):
    """Put failed groups back into the queue, with a fresh budget of attempts."""
    from contimg.queue import moves
    from contimg.queue import tables as queue_tables

    config = site(configfile, begun=True)
    enough, again = config.ingest.min_subbands, groups or []
    with db.writing(Paths.of(config).ingest_db, queue_tables.Base) as session:
        for group in again:
            moves.requeue(session, group, enough)
        if every:
            again = [*again, *moves.requeue_failed(session, enough)]
    print(
        f"{', '.join(again)}: pending again; the next run takes them"
        if again
        else "nothing to try again"
    )


@command
def reprocess(
    groups: Groups = None,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from", help="First stage to repeat; without it, everything.", metavar="STAGE"
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Groups from this UTC time (or day) on.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Groups before this UTC time.")] = None,
    dec: Annotated[
        float | None, typer.Option(help="Groups of the strip at this declination, deg (to 0.1).")
    ] = None,
    calibration_set: Annotated[
        str | None, typer.Option("--set", help="Groups imaged with this calibration set.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Groups whose image is good, warn, unverified or fail.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List them, change nothing.")
    ] = False,
    configfile: ConfigFiles = None,
):
    """Do finished or failed groups again, from a stage on: those named, or all that fit the
    options. What they have now stays until it is replaced."""
    config = site(configfile, begun=True)
    chosen = (start, end, dec, calibration_set, verdict)
    if not groups and chosen == (None,) * len(chosen):
        raise RequestError(
            "which? Name groups, or choose them with --start, --end, --dec, --set, --verdict"
        )
    found = report.finished(config, groups or (), *chosen)
    if dry_run or not found:
        print("\n".join(found) or "no finished or failed group fits")
        return
    do_again(config, found, from_stage)


def do_again(config: configuration.Config, groups: Iterable[str], from_stage: str | None) -> None:
    """Each that can be: one that cannot does not hold up the others; status 1 then."""
    from contimg.queue import moves
    from contimg.queue import tables as queue_tables

    paths, refused = Paths.of(config), 0
    for group in groups:
        try:
            with db.writing(paths.ingest_db, queue_tables.Base) as session:
                first = moves.reprocess(
                    session, paths, group, from_stage, config.ingest.min_subbands
                )
            print(f"{group}: pending again, from {first} on; the next run takes it")
        except ContimgError as error:
            print(f"contimg reprocess: {error}", file=sys.stderr)
            refused += 1
    if refused:
        raise typer.Exit(1)


@command
def stage(
    name: Annotated[str, typer.Argument(help="Stage, as contimg why lists them.")],
    group: Annotated[str, typer.Argument(help="Group id.")],
    configfile: ConfigFiles = None,
    threads: Annotated[int, typer.Option(help="Threads to work with.")] = os.cpu_count() or 1,
):
    """Run one stage of one group here, without Snakemake: same log, same result. The queue is not
    touched; the next run goes on from there."""
    from contimg.runs.by_hand import run_stage

    print(f"{group}: {run_stage(site(configfile), name, group, threads)}")


@command
def watch(
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/local",
    snakefile: Annotated[
        Path | None, typer.Option(help="Another workflow than ./Snakefile.")
    ] = None,
):
    """Watch the incoming folder, day and night: groups into the queue, and run after run on those
    that can go."""
    from contimg import notify
    from contimg.runs.watch import Watcher

    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    config = configuration.load(configfile or ())
    watcher = Watcher(config, configfile or (), profile, snakefile)
    notify.start(config)
    watcher.watch()


@command
def notify(
    configfile: ConfigFiles = None,
    test: Annotated[
        bool, typer.Option("--test", help="Send a trial message, and nothing else.")
    ] = False,
):
    """Look once, and tell those of notify.file what is wrong, what is new in the sky, and what is
    over. The watcher does so every minute; this is for a timer, which sees a dead watcher, too."""
    from contimg import notify as messages

    config = site(configfile)
    if config.notify.file is None:
        raise RequestError("notify.file is not set: nobody is to be told")
    send = messages.sender(config.notify.file)
    if test:
        if not send("contimg: a trial", "Messages of the pipeline come here.", "info"):
            raise RequestError(f"not delivered to all addresses of {config.notify.file}")
        print("sent")
        return
    sent, whole = messages.tell(config, send)
    for title in sent:
        print(title)
    if not whole:
        raise RequestError(f"not delivered to all addresses of {config.notify.file}; tried again")


@command
def backlog(
    start: Annotated[str, typer.Argument(help="UTC of the first group, or a day: 2026-01-25.")],
    end: Annotated[
        str | None,
        typer.Argument(help="UTC before which groups are taken; without it, a day from START on."),
    ] = None,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="Snakemake profile: a folder.")] = "profiles/slurm",
    slice_groups: Annotated[
        int, typer.Option("--slice", help="Groups a Snakemake run.", min=1)
    ] = 96,
    groups_from: Annotated[
        Path | None, typer.Option("--groups", help="File with the group ids to take, one a line.")
    ] = None,
    snakefile: Annotated[
        Path | None, typer.Option(help="Another workflow than ./Snakefile.")
    ] = None,
):
    """Image a stretch of the archive, run after run, on a cluster. Can be killed and started again
    at any moment."""
    from datetime import datetime, timedelta

    from contimg.runs.backlog import work_off

    try:
        until = end or (datetime.fromisoformat(start) + timedelta(days=1)).isoformat()
    except ValueError:
        raise RequestError(
            f"{start}: not a UTC time like 2026-01-25 or 2026-01-25T22:26:05"
        ) from None
    config = site(configfile)
    chosen = {
        "ingest": {
            "start": start,
            "end": until,
            "groups": groups_from.read_text().split() if groups_from else [],
        }
    }
    wanted = configuration.from_mapping(
        configuration.merge(config.model_dump(mode="json"), chosen)
    ).ingest
    states = work_off(config, wanted, configfile or (), profile, slice_groups, print, snakefile)
    print(
        ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        or "no group in that time"
    )
    raise typer.Exit(1 if states["failed"] else 0)
