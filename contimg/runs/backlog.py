"""Weeks of groups, a slice at a time: run after run of Snakemake until nothing is left that can
go."""

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from contimg.chain import LAST
from contimg.clock import now
from contimg.config import Config, IngestConfig
from contimg.errors import ContimgError, LockError
from contimg.paths import Paths
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.queue.planning import Plan, make_plans
from contimg.runs import slurm
from contimg.runs.recovery import refresh, settle_cluster
from contimg.runs.session import NOT_NOW, REFUSED, snakemake_command
from contimg.runs.watch import choose_slice
from contimg.store import db
from contimg.store.files import found_json, holder_of, lock

_REFUSALS = 5  # runs in a row that do not begin
_WAIT_S = 20
_LOOK_S = 30
_STALLED_S = 600


def work_off(
    config: Config,
    wanted: IngestConfig,
    configfiles: Sequence[Path],
    profile: str,
    slice_groups: int,
    say: Callable[[str], None] = print,
    snakefile: Path | None = None,
) -> Counter:
    """Image every group that `wanted` (start, end, groups) chooses, calibrator groups that these
    need first; returns the states they end in.

    Groups that wait for a calibration are left; those that another run has are waited for. On a
    cluster live groups go on beside it; a local profile takes turns with the watcher. It can be
    killed and started again at any moment: a run that begins cancels the jobs that a dead one left.
    Raises LockError if another one works on this state folder.
    """
    paths, refused, said = Paths.of(config), 0, ""
    config, scope = _narrowed(config, wanted)

    command = [
        *snakemake_command(profile, configfiles, snakefile),
        "--config",
        f"ingest={json.dumps(scope)}",
    ]
    with lock(
        paths.backlog_lock,
        wait=False,
        what="another backlog is being worked off in this state folder",
    ):
        while True:
            plans = _look(config, wanted, say)
            present = now()
            can_go = {g for g, p in plans.items() if p.action == "run"}
            ready = {g for g in can_go if (plans[g].not_before or "") <= present}
            batch = choose_slice(plans, ready, config.ingest.order == "newest", slice_groups)
            elsewhere = sorted(g for g, p in plans.items() if p.action == "running")
            if not can_go and not elsewhere:
                states = moves.known_groups(paths.ingest_db, files=False)
                return Counter(
                    states[g].state if g in states else p.action for g, p in plans.items()
                )
            if not batch:
                words = (
                    f"{len(can_go)} groups wait for their next attempt, {len(elsewhere)} are in "
                    "other runs"
                )
                if words != said:
                    say(words)
                said = words
                time.sleep(_WAIT_S)
                continue
            say(f"{len(batch)} of {len(can_go)} groups: {min(batch)} to {max(batch)}")
            ended, begun = _one_run(command, paths, batch, say)
            refused = 0 if begun or ended == NOT_NOW else refused + 1
            if refused > _REFUSALS:
                raise LockError(
                    f"{refused} runs in a row ended before they began, the last one with status "
                    f"{ended}: see above"
                )
            if not begun:
                time.sleep(_WAIT_S)
                # the run of a backlog that was killed
                while ended == NOT_NOW and holder_of(paths.run_lock("cluster")):
                    time.sleep(_WAIT_S)
            # with a local profile live groups go between two slices
            elif holder_of(paths.watch_lock):
                time.sleep(2 * config.ingest.poll_s)


def _look(config: Config, wanted: IngestConfig, say: Callable[[str], None]) -> dict[str, Plan]:
    """What is to be done now with the groups that are wanted and those that these depend on."""
    paths = Paths.of(config)
    settle_cluster(config, say)
    known = moves.known_groups(paths.ingest_db, span=config.ingest.span())
    groups = arrivals.look(config, known, time.time())
    refresh(config, known, groups)
    plans = make_plans(config, time.time(), lane="cluster")
    names = {g for g in plans if wanted.takes(g)}
    names |= {other for g in names for other in plans[g].needs} & plans.keys()
    plans = {g: plans[g] for g in sorted(names)}
    with db.writing(paths.ingest_db, queue_tables.Base) as session:
        moves.note_calibration(session, plans)
    return plans


def _one_run(
    command: Sequence[str], paths: Paths, batch: Sequence[str], say: Callable[[str], None]
) -> tuple[int, bool]:
    """One run of Snakemake over a slice: its status, and whether it began any of the groups. A
    refusal is raised in its own words."""

    def last_move() -> int:
        with db.reading(paths.ingest_db) as session:
            return moves.last_move(session)

    mark = last_move()
    targets = [str(paths.result(group, LAST)) for group in batch]
    ended = _run([*command, "--", *targets], slurm.Stall(paths, last_move, _STALLED_S), say)
    with db.reading(paths.ingest_db) as session:
        begun = bool(moves.begun_since(session, mark, batch))
    if ended == REFUSED and not begun:
        words = (found_json(paths.refusal) or {}).get("error", "see above")
        raise ContimgError(f"no run begins: {words}")
    return ended, begun


def _narrowed(config: Config, wanted: IngestConfig) -> tuple[Config, dict[str, str]]:
    """The configuration for groups asked for and their calibrators, and what it has other than
    `config`: the rest of an archive is not even looked at."""
    either_way = timedelta(hours=config.calibration.validity_h)
    first, last = min(wanted.groups, default=wanted.start), max(wanted.groups, default=wanted.end)
    scope = {
        "start": max(
            (datetime.fromisoformat(first) - either_way).isoformat(), config.ingest.start or ""
        ),
        "end": min(
            (datetime.fromisoformat(last) + either_way).isoformat(), config.ingest.end or "9"
        ),
    }
    return config.model_copy(update={"ingest": config.ingest.model_copy(update=scope)}), scope


def _run(command: Sequence[str], stall: slurm.Stall, say: Callable[[str], None]) -> int:
    """Run Snakemake to its end. Ctrl-C and SIGTERM let it cancel its jobs and settle its groups,
    then end the backlog too; one that stalls is ended, and its groups go on in the next run."""
    asked = []

    def stop(*_) -> None:
        asked.append(True)
        process.send_signal(signal.SIGINT if len(asked) == 1 else signal.SIGKILL)

    # A session of its own: a terminal's Ctrl-C reaches the backlog alone.
    process = subprocess.Popen(command, start_new_session=True)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    stalled = 0
    try:
        while True:
            try:
                ended = process.wait(_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if stall.seen():
                    stalled += 1
                    say(
                        "the run waits for jobs that SLURM does not have: it is ended, the next "
                        "one goes on"
                    )
                    process.send_signal(signal.SIGINT if stalled == 1 else signal.SIGKILL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    return ended
