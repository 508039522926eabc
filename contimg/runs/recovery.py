"""The queue after anything: folder, results on disk and runs that died decide what it says."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from contimg.chain import LAST, STAGES
from contimg.config import Config
from contimg.errors import AbsentError, LockError
from contimg.paths import Paths, set_name
from contimg.products import record
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.queue.groups import FileGroup
from contimg.runs import slurm
from contimg.store import db
from contimg.store.files import found_json, holder_of, lock
from contimg.visibilities.uvh5 import parse_name


def refresh(
    config: Config,
    known: Mapping[str, moves.GroupStatus],
    groups: list[FileGroup],
    held: str | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Bring the queue up to date with the folder, and with the runs that died.

    Returns what `ingest.recover` moved, and the failed groups that came back with other files and
    lost their results. Raises AbsentError, and changes nothing, when the folder is gone or empty: a
    disk that is not mounted.

    known   the queue before
    groups  what `arrivals.look` saw
    held    the lane whose lock the caller holds
    """
    paths = Paths.of(config)
    _must_be_there(config.paths.incoming, known)
    with db.writing(paths.ingest_db, queue_tables.Base) as session:
        reopened = set(moves.record(session, groups, known, config.ingest, time.time()))
        renewed = [group for group in reopened if paths.result(group, "convert").exists()]
        for group in renewed:
            chosen = paths.result(group, "caltables")
            # Its own set will be another one, by the same name.
            own = (found_json(chosen) or {}).get("set_name") in (group, set_name(group, True))
            moves.remove_results(
                paths, group, [stage for stage in STAGES if own or stage != "caltables"]
            )
        # a cluster's groups: when its jobs have ended
        free = {"local"} if holder_of(paths.run_lock("local")) is None else ()
        moved = _recover(session, config, held, free)
    return moved, renewed


def _recover(
    session: Session, config: Config, held: str | None, free: Collection[str]
) -> dict[str, str]:
    """`ingest.recover` by the results on disk; groups that turn out to be completed get their
    seconds."""
    paths = Paths.of(config)

    def no_fault_of(group: str, owner: str | None) -> bool:
        noted = found_json(paths.error(group))
        return (
            noted is not None and noted.get("run") == owner and noted.get("waits_for") is not None
        )

    def is_finished(group: str) -> bool:
        return paths.result(group, LAST).exists()

    moved = moves.recover(session, is_finished, config.ingest, time.time(), held, free, no_fault_of)
    for group, state in moved.items():
        if state == "completed":
            moves.record_performance(session, group, record.results_of(paths, group))
    return moved


def settle_cluster(config: Config, say: Callable[[str], None]) -> None:
    """What a dead run left on a cluster: its jobs are cancelled, and once they have ended its
    groups are free.

    Does not wait for that: who comes next finds them ended. Runs here go on with other groups in
    the meantime.
    """
    paths = Paths.of(config)
    owners = moves.owners(paths.ingest_db)
    if not paths.cluster_mark.exists() and "cluster" not in map(moves.lane_of, owners):
        return
    try:
        with lock(paths.run_lock("cluster"), wait=False, what="a run on the cluster goes on"):
            try:
                slurm.cancel_left_jobs(paths, say, wait_s=0)
            except LockError as error:
                say(f"the groups of a cluster's run that died stay with it for now: {error}")
                return
            with db.writing(paths.ingest_db, queue_tables.Base) as session:
                _recover(session, config, "cluster", ())
    except LockError:
        return  # it lives


def _must_be_there(folder: Path, known: Mapping[str, moves.GroupStatus]) -> None:
    """Files that cannot be seen for the moment must not fail their groups."""
    waiting = [s.id for s in known.values() if s.state != "completed" and s.files]
    if waiting and not (
        folder.is_dir() and any(parse_name(path.name) for path in folder.iterdir())
    ):
        raise AbsentError(
            f"{folder} has no subband file, and {len(waiting)} groups in the queue "
            f"({waiting[0]}, ...) have theirs there: is the disk mounted? If they were removed "
            "on purpose: all goes on with the next file that comes."
        )
