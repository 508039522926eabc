"""The queue of groups: what moves a group from one state to another, and why."""

import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from contimg.chain import MAKING_MS, STAGES, stages_where
from contimg.clock import now
from contimg.config import IngestConfig
from contimg.errors import RequestError, StateError
from contimg.paths import Paths, spelling
from contimg.queue.groups import FileGroup, RawFile, numbers
from contimg.queue.tables import MOVES, RUNNING, WAITING, Group, History, Performance, SubbandFile
from contimg.store import db
from contimg.visibilities.uvh5 import Outline

LATE = "came after its group was begun; `contimg reprocess` takes it in"


@dataclass(frozen=True)
class GroupStatus:
    """A group as the queue knows it."""

    id: str
    state: str
    retry_count: int = 0
    error: str | None = None
    not_before: str | None = None
    calibrators: tuple[str, ...] = ()
    owner: str | None = None  # the run that works on it
    mid_mjd: float | None = None
    app_dec_deg: float | None = None
    files: tuple[RawFile, ...] = ()


def known_groups(
    path: Path, asked: Collection[str] = (), files: bool = True, span: tuple[str, str] = ("", "9")
) -> dict[str, GroupStatus]:
    """What the queue says of every group from the first to the last id in `span`; empty without a
    database. Read-only.

    asked  completed groups whose files are wanted: of the others one stands for all (an archive has
           very many)
    files  whether files are wanted at all
    """
    with db.reading(path) as session:
        if session is None:
            return {}
        inside = Group.group_id.between(*span)
        members = _recorded_files(session, asked, inside) if files else {}
        columns = (
            Group.group_id,
            Group.state,
            Group.retry_count,
            Group.error,
            Group.not_before,
            Group.calibrators,
            Group.owner,
            Group.mid_mjd,
            Group.app_dec_deg,
        )
        return {
            group: GroupStatus(
                group,
                *rest,  # type: ignore[call-arg]
                tuple(json.loads(calibrators or "[]")),
                owner,
                mid,
                dec,
                members.get(group, ()),
            )
            for group, *rest, calibrators, owner, mid, dec in session.execute(
                select(*columns).where(inside)
            )
        }


def _recorded_files(
    session: Session, asked: Collection[str], inside: ColumnElement[bool]
) -> dict[str, tuple[RawFile, ...]]:
    columns = (
        SubbandFile.group_id,
        SubbandFile.path,
        SubbandFile.size,
        SubbandFile.changed_s,
        SubbandFile.checked,
        SubbandFile.reason,
        SubbandFile.start_mjd,
        SubbandFile.mid_mjd,
        SubbandFile.app_dec_deg,
        SubbandFile.channels,
    )
    wanted = or_(Group.state != "completed", Group.group_id.in_(asked))
    each = select(*columns).join(Group).where(inside, wanted)
    one = (
        select(*columns, func.min(SubbandFile.path))
        .join(Group)
        .where(inside, ~wanted, SubbandFile.reason.is_(None))
    )
    found: dict[str, list[RawFile]] = {}
    spelled = spelling()
    for row in (*session.execute(each), *session.execute(one.group_by(SubbandFile.group_id))):
        group, name, size, changed_s, checked, reason, *header = row[: len(columns)]
        outline = Outline(*header) if header[0] is not None else None
        file = RawFile.named(
            Path(spelled(name)), size, changed_s, checked=checked, outline=outline, reason=reason
        )
        found.setdefault(group, []).append(file)
    return {group: tuple(files) for group, files in found.items()}


def finished_files(path: Path) -> set[str]:
    """Paths of the files of completed groups: nobody needs to look at them again. Read-only."""
    with db.reading(path) as session:
        if session is None:
            return set()
        return set(
            map(
                spelling(),
                session.scalars(
                    select(SubbandFile.path).join(Group).where(Group.state == "completed")
                ),
            )
        )


def needs_no_files(paths: Paths, status: GroupStatus) -> bool:
    """Whether what is left to do of a group can be done though its raw files are gone."""
    return status.state in ("pending", *RUNNING) and is_converted(paths, status.id)


def is_converted(paths: Paths, group_id: str) -> bool:
    """Whether a group has its Measurement Set: its raw files are not needed for what follows."""
    return paths.result(group_id, "concat").exists() and paths.ms(group_id).exists()


def respell(session: Session) -> None:
    """Files that were recorded with another spelling of their folder get the one that they are
    found by."""
    folder_of = func.rtrim(SubbandFile.path, func.replace(SubbandFile.path, "/", ""))
    spelled = spelling()
    for folder in session.scalars(select(folder_of).distinct()).all():
        if (now := f"{spelled(folder).rstrip('/')}/") != folder:
            wanted = update(SubbandFile).prefix_with("OR REPLACE").where(folder_of == folder)
            session.execute(
                wanted.values(path=now + func.substr(SubbandFile.path, len(folder) + 1))
            )


def move(session: Session, group_id: str, state: str, **fields) -> None:
    """Move a group to `state`; refuses with StateError what the state machine does not have."""
    if state not in RUNNING:
        fields = {
            "owner": None,
            "host": None,
            "pid": None,
            "heartbeat": None,
            "running_stage": None,
            "running_since": None,
            **fields,
        }
    before = [s for s, allowed in MOVES.items() if state in allowed]
    changed: Any = session.execute(
        update(Group)
        .where(Group.group_id == group_id, Group.state.in_(before))
        .values(state=state, last_update=now(), **fields)
    )
    if changed.rowcount == 1:
        return
    current = session.scalar(select(Group.state).where(Group.group_id == group_id))
    if current is None:
        raise StateError(f"group {group_id} is not in the queue")
    raise StateError(
        f"group {group_id}: no move from {current} to {state} (allowed: "
        f"{', '.join(MOVES[current])})"
    )


def record(
    session: Session,
    groups: Iterable[FileGroup],
    known: Mapping[str, GroupStatus],
    options: IngestConfig,
    now_s: float,
) -> list[str]:
    """Bring the queue up to date with what `arrivals.look` saw: new groups, late or replaced files,
    time-outs.

    known  the queue before that look
    Returns failed groups that came back: what was made of their former files is worth nothing.
    """
    groups = list(groups)
    found = session.execute(select(Group.group_id, Group.state))
    states: dict[str, str] = dict(tuple(row) for row in found)
    new = [
        {
            "group_id": g.id,
            "state": "collecting",
            "received_at": now(),
            "last_update": now(),
            "retry_count": 0,
            "expected_subbands": options.expected_subbands,
            "chunk_minutes": options.chunk_minutes,
        }
        for g in groups
        if g.id not in states
    ]
    if new:
        session.execute(insert(Group).on_conflict_do_nothing(), new)
    changed, late, gone = [], [], []
    for group in groups:
        state = states.get(group.id)
        before = {f.path: f for f in known[group.id].files} if group.id in known else {}
        for file in group.all_files:
            recorded = before.get(file.path)
            begun = state in (*RUNNING, "completed")
            if not file.checked and (state == "failed" or (begun and recorded is None)):
                continue  # a late file is nobody's until its header has spoken
            if begun and (recorded is None or recorded.reason == LATE):
                late.append(_row(group.id, replace(file, reason=file.reason or LATE)))
            elif recorded != file:
                changed.append(_row(group.id, file))
        if state != "completed":
            seen = {f.path for f in group.all_files}
            gone += [str(p) for p in before.keys() - seen if not p.exists()]
    add = insert(SubbandFile)
    if changed:
        values = {key: add.excluded[key] for key in changed[0] if key != "path"}
        session.execute(add.on_conflict_do_update(index_elements=["path"], set_=values), changed)
    if late:  # those of a completed group may be recorded though they are not `known`
        session.execute(add.on_conflict_do_nothing(), late)
    if gone:
        one = delete(SubbandFile).where(SubbandFile.path == bindparam("gone"))
        session.connection().execute(one, [{"gone": path} for path in gone])
    reopened = []
    for group in groups:
        state = states.get(group.id, "collecting")
        if state == "failed" and group.id in known and has_news(group, known[group.id]):
            if completeness(group, options, now_s)[0] != "ready":
                continue
            move(
                session,
                group.id,
                "collecting",
                error=None,
                retry_count=0,
                processing_stage=None,
                not_before=None,
            )
            reopened.append(group.id)
            state = "collecting"
        if state in ("collecting", "pending"):
            _settle(session, group, state, options, now_s)
    _forget_collecting(session, {g.id for g in groups}, options)
    return reopened


def _row(group: str, file: RawFile) -> dict:
    header = file.outline
    return {
        "path": str(file.path),
        "group_id": group,
        "subband_idx": file.subband,
        "size": file.size,
        "changed_s": file.changed_s,
        "checked": file.checked,
        "reason": file.reason,
        "start_mjd": header and header.start_mjd,
        "mid_mjd": header and header.mid_mjd,
        "app_dec_deg": header and header.app_dec_deg,
        "channels": header and header.channels,
    }


def has_news(group: FileGroup, status: GroupStatus) -> bool:
    """Whether a file of a failed group came late, was replaced, or can be read now."""
    before = {f.path: f for f in status.files}
    return any(
        not member.same_content(before.get(member.path))
        or (member.checked and not before[member.path].checked)
        for member in group.members.values()
    )


def completeness(group: FileGroup, options: IngestConfig, now_s: float) -> tuple[str, str]:
    """(ready, collecting or failed; why) of a group by its files and its age."""
    missing = group.missing(options.expected_subbands)
    shortage = group.shortage(options.expected_subbands)
    if not group.is_checked():
        return "collecting", shortage
    if not missing:
        return "ready", ""
    if now_s - group.waiting_since_s <= options.collecting_timeout_s:
        return "collecting", shortage
    if len(group.members) >= options.min_subbands:
        return "ready", f"subbands {numbers(missing)} are missing and will be flagged"
    return "failed", f"after {options.collecting_timeout_s:g} s only {shortage}"


def _settle(
    session: Session, group: FileGroup, state: str, options: IngestConfig, now_s: float
) -> None:
    """Out of `collecting` when it is complete or too late; out of `pending` when its files are
    gone."""
    outcome, why = completeness(group, options, now_s)
    if outcome == "failed":
        move(session, group.id, "failed", error=why)
    elif outcome == "ready" and state == "collecting":
        outline = group.outline
        move(
            session,
            group.id,
            "pending",
            error=why or None,
            mid_mjd=outline.mid_mjd,
            app_dec_deg=outline.app_dec_deg,
        )


def claim(session: Session, group_id: str, run_id: str) -> None:
    """Take a pending group for a run, from its begin on: no other run does anything to it then."""
    mine = {"owner": run_id, "host": socket.gethostname(), "pid": os.getpid(), "heartbeat": now()}
    move(session, group_id, "in_progress", **mine)


def start(session: Session, group_id: str, resuming: bool) -> None:
    """The first job of a claimed group begins: what the attempt before it said is over."""
    state = "resuming" if resuming else "processing_fresh"
    move(session, group_id, state, error=None, processing_stage=None, not_before=None)


def last_move(session: Session) -> int:
    """Number of the latest change of state of any group."""
    return session.scalar(select(func.max(History.id))) or 0


def begun_since(session: Session, mark: int, groups: Collection[str]) -> set[str]:
    """Which of the groups were worked on after `last_move` was `mark`; to be claimed by a run, and
    given back, is not enough."""
    worked_on = History.state_to.not_in(("in_progress", "pending", "collecting"))
    query = select(History.group_id).where(
        History.id > mark, History.group_id.in_(groups), worked_on
    )
    return set(session.scalars(query))


def beat(session: Session, run_id: str) -> None:
    """A sign of life of a run, on all that it holds."""
    session.execute(update(Group).where(Group.owner == run_id).values(heartbeat=now()))


def stage_started(session: Session, group_id: str, stage: str) -> None:
    """A running group began a stage."""
    values = {"running_stage": stage, "running_since": now(), "heartbeat": now()}
    session.execute(update(Group).where(Group.group_id == group_id).values(**values))


def stage_finished(session: Session, group_id: str, stage: str, result: Path) -> None:
    """A running group finished a stage."""
    current = session.scalar(select(Group.state).where(Group.group_id == group_id))
    fields = {
        "checkpoint_path": str(result),
        "heartbeat": now(),
        "running_stage": None,
        "running_since": None,
    }
    move(session, group_id, current or "", processing_stage=stage, **fields)


def attempt_failed(
    session: Session,
    group_id: str,
    error: str,
    options: IngestConfig,
    now_s: float,
    permanent: bool = False,
    spent: bool = True,
) -> str:
    """An attempt failed: back to pending with one retry spent and a back-off, or failed. Returns
    the new state.

    permanent  the data are at fault and another attempt cannot help
    spent      the attempt counts; not when it was only a disk that was full
    """
    current, retries = session.execute(
        select(Group.state, Group.retry_count).where(Group.group_id == group_id)
    ).one()
    if current == "in_progress":  # claimed, nothing started: failed is reached by way of pending
        move(session, group_id, "pending", error=error)
        current = "pending"
    if permanent or (spent and retries >= options.max_retries):
        move(session, group_id, "failed", error=error, retry_count=retries + 1, not_before=None)
        return "failed"
    if current != "pending":
        move(session, group_id, "pending", error=error)
    wait = {
        "retry_count": retries + spent,
        "not_before": db.utc(now_s + options.retry_backoff_s * 2**retries),
    }
    session.execute(update(Group).where(Group.group_id == group_id).values(error=error, **wait))
    return "pending"


def lane_of(owner: str | None) -> str:
    """Where the jobs of a run are: `local` or `cluster` (its id says so)."""
    return "cluster" if owner and owner.endswith("-cluster") else "local"


def owners(path: Path) -> set[str]:
    """Runs that have groups. Read-only."""
    with db.reading(path) as session:
        query = select(Group.owner).where(Group.owner.is_not(None)).distinct()
        return set() if session is None else set(session.scalars(query))


def is_alive(row: Group, options: IngestConfig, now_s: float) -> bool:
    """Whether the run that holds a group lives: its process, where that can be seen, and its sign
    of life."""
    if row.heartbeat is None or row.heartbeat < db.utc(now_s - options.lease_s):
        return False
    if row.host != socket.gethostname():
        return True
    try:
        return Path(f"/proc/{row.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def recover(
    session: Session,
    is_finished: Callable[[str], bool],
    options: IngestConfig,
    now_s: float,
    held: str | None = None,
    free: Collection[str] = ("local",),
    no_fault_of: Callable[[str, str | None], bool] = lambda group, owner: False,
) -> dict[str, str]:
    """Groups of dead runs go on or back, and finished ones are completed.

    An attempt is spent by those that had a stage running when their run died: they may have killed
    it.

    is_finished  whether the last result of a group is on disk, whatever the queue says
    held         the lane whose lock the caller holds: no other run lives there, and none of its
                 jobs
    free         lanes whose lock nobody held a moment ago: their runs are dead if they give no sign
                 of life
    no_fault_of  whether the last words of a group's stage, in a run, are that there was no room
    Returns the new state of each group that was moved.
    """
    moved = {}
    for row in session.scalars(select(Group).where(Group.state.in_(RUNNING))).all():
        lane = lane_of(row.owner)
        if lane != held and (lane not in free or is_alive(row, options, now_s)):
            continue
        if row.state != "in_progress" and is_finished(row.group_id):
            move(session, row.group_id, "completed", error=None)
            moved[row.group_id] = "completed"
        elif row.running_stage is None or no_fault_of(row.group_id, row.owner):
            release(session, row.group_id)
            moved[row.group_id] = "pending"
        else:
            error = f"run {row.owner} died in {row.running_stage}"
            moved[row.group_id] = attempt_failed(session, row.group_id, error, options, now_s)
    # The queue was lost, or a run without the logger plugin made it.
    for group in session.scalars(select(Group.group_id).where(Group.state == "pending")).all():
        if is_finished(group):
            claim(session, group, "recovered")
            start(session, group, resuming=True)
            move(session, group, "completed", error=None)
            moved[group] = "completed"
    return moved


def note_calibration(session: Session, plans: Mapping) -> None:
    """Remember of pending groups where they look, which calibrators their beams hold, and whether
    they wait for one.

    plans  planning.Plan by group id
    """
    for row in session.scalars(select(Group).where(Group.state == "pending")):
        plan = plans.get(row.group_id)
        if plan is None or plan.mid_mjd is None:
            continue
        row.mid_mjd, row.app_dec_deg = plan.mid_mjd, plan.app_dec_deg
        row.has_calibrator, row.calibrators = bool(plan.calibrators), json.dumps(plan.calibrators)
        if plan.action == "waiting":
            row.processing_stage, row.error = WAITING, plan.reason
        elif row.processing_stage == WAITING:
            row.processing_stage, row.error = None, None


def record_performance(session: Session, group_id: str, results: Mapping[str, Mapping]) -> None:
    """Seconds of a group's stages so far, from their results; replaces what an earlier attempt
    left."""
    if (convert := results.get("convert")) is None:
        return
    values = {
        "group_id": group_id,
        "load_time": convert["load_s"],
        "phase_time": convert["phase_s"],
        "write_time": convert["write_s"],
        "total_time": convert["seconds"],
        "writer_type": convert["writer"],
        "stages": json.dumps({stage: result["seconds"] for stage, result in results.items()}),
        "recorded_at": now(),
    }
    session.execute(
        insert(Performance)
        .values(values)
        .on_conflict_do_update(index_elements=["group_id"], set_=values)
    )


def requeue(session: Session, group_id: str, min_subbands: int) -> None:
    """An operator asks for a failed or completed group again, with a fresh budget of attempts and
    no back-off."""
    row = session.get(Group, group_id)
    if (
        row is not None
        and row.state == "pending"
        and (row.not_before or row.processing_stage == WAITING)
    ):
        row.not_before, row.retry_count = None, 0
        return
    if row is not None and row.state == "pending":
        raise StateError(f"group {group_id} is pending already; the next run takes it")
    if row is not None and row.state == "collecting":
        raise StateError(
            f"group {group_id} waits for files (`contimg why {group_id}`); it comes by itself"
        )
    if row is not None and row.state in RUNNING:
        raise StateError(
            f"group {group_id} is being worked on ({row.running_stage or 'starting'}); wait for "
            "its end"
        )
    files = usable_files(session, group_id)
    if row is not None and files < min_subbands:
        raise StateError(
            f"group {group_id} has {files} files, at least {min_subbands} needed; it comes back "
            "when they arrive"
        )
    move(
        session,
        group_id,
        "pending",
        error=None,
        retry_count=0,
        processing_stage=None,
        not_before=None,
    )


def usable_files(session: Session, group_id: str) -> int:
    """Number of subbands of which a group has a file that counts."""
    return (
        session.scalar(
            select(func.count(SubbandFile.subband_idx.distinct())).where(*_counting(group_id))
        )
        or 0
    )


def _counting(group_id: str) -> tuple:
    return SubbandFile.group_id == group_id, or_(
        SubbandFile.reason.is_(None), SubbandFile.reason == LATE
    )


def requeue_failed(session: Session, min_subbands: int) -> list[str]:
    """All failed groups that have enough files; returns them."""
    again = []
    for group in session.scalars(
        select(Group.group_id).where(Group.state == "failed").order_by(Group.group_id)
    ).all():
        with suppress(StateError):
            requeue(session, group, min_subbands)
            again.append(group)
    return again


def reprocess(
    session: Session, paths: Paths, group_id: str, first: str | None, min_subbands: int
) -> str:
    """A finished or failed group is to be done again from a stage on; returns that stage.

    The results from there on are removed, the last one first: if this is killed, it can be asked
    again. Products stay until their stage replaces them. Raises StateError for a group that is
    being worked on, RequestError for a stage that it does not have or whose input is gone.
    """
    stages = list(STAGES)
    if not paths.result(group_id, "solve").exists():
        stages = [stage for stage in stages if stage not in stages_where(calibrators=True)]
        # a target chooses before anything is done with its data
        if not is_converted(paths, group_id):
            stages.sort(key=lambda stage: stage != "caltables")
    first = first or stages[0]
    if first not in stages:
        raise RequestError(
            f"group {group_id} has no stage {first}; it goes through {', '.join(stages)}"
        )
    requeue(session, group_id, min_subbands)
    files = [Path(p) for p in session.scalars(select(SubbandFile.path).where(*_counting(group_id)))]
    if not is_converted(paths, group_id) or first in MAKING_MS:
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise RequestError(
                f"group {group_id}: {first} needs its raw files; {len(absent)} are gone "
                f"({absent[0]}, ...)"
            )
    remove_results(paths, group_id, stages[stages.index(first) :])
    return first


def restore(
    session: Session, group_id: str, results: Mapping[str, Mapping], options: IngestConfig
) -> None:
    """A finished group of a queue that was lost gets its row, files and seconds again, from its
    results."""
    converted = results["convert"]
    session.execute(
        insert(Group).values(
            group_id=group_id,
            state="collecting",
            received_at=converted["finished_at"],
            last_update=now(),
            retry_count=0,
            expected_subbands=options.expected_subbands,
            chunk_minutes=options.chunk_minutes,
            mid_mjd=converted["mid_mjd"],
            app_dec_deg=converted["app_dec_deg"],
        )
    )
    for subband, path in converted["files"].items():
        size, mtime_ns = converted.get("seen", {}).get(path, (0, 0))
        row = {
            "path": path,
            "group_id": group_id,
            "subband_idx": int(subband),
            "size": size,
            "changed_s": mtime_ns / 1e9,
            "checked": True,
            "start_mjd": converted["start_mjd"],
            "mid_mjd": converted["mid_mjd"],
            "app_dec_deg": converted["app_dec_deg"],
            "channels": converted["shape"][2],
        }
        session.execute(insert(SubbandFile).values(row).on_conflict_do_nothing())
    move(session, group_id, "pending")
    claim(session, group_id, "restored")
    start(session, group_id, resuming=True)
    record_performance(session, group_id, results)
    move(session, group_id, "completed", error=None)


def remove_results(paths: Paths, group_id: str, stages: Sequence[str]) -> None:
    """Make stages undone, the last one first."""
    for stage in reversed(stages):
        paths.result(group_id, stage).unlink(missing_ok=True)


def release(session: Session, group_id: str) -> None:
    """A run ends with a group neither done nor failed (stopped, or only some stages asked for): no
    attempt is spent."""
    move(session, group_id, "pending")


def _forget_collecting(session: Session, groups: Collection[str], options: IngestConfig) -> None:
    """Drop collecting rows whose files now belong to an id that an earlier file gave; `groups` are
    those that are, of those asked for."""
    for group_id in session.scalars(
        select(Group.group_id).where(Group.state == "collecting")
    ).all():
        if options.takes(group_id) and group_id not in groups:
            for table in (SubbandFile, Performance):
                session.execute(delete(table).where(table.group_id == group_id))
            session.execute(delete(Group).where(Group.group_id == group_id))
