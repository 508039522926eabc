"""The queue of groups: which exist, in which state, and why.

States and moves are the contract's (docs/states.md); a move that is not there raises StateError and changes nothing.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import CheckConstraint, ForeignKey, delete, func, or_, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from contimg import db
from contimg.config import IngestConfig
from contimg.errors import StateError
from contimg.groups import FileGroup

RUNNING = ("in_progress", "processing_fresh", "resuming")
MOVES: dict[str, tuple[str, ...]] = {
    "collecting": ("collecting", "pending", "failed"),
    "pending": ("in_progress", "failed"),
    "in_progress": ("processing_fresh", "resuming", "pending"),
    "processing_fresh": ("processing_fresh", "completed", "failed", "pending"),
    "resuming": ("resuming", "completed", "failed", "pending"),
    "completed": ("pending",),
    "failed": ("collecting", "pending"),
}
WAITING = "waiting_calibration"


class Base(DeclarativeBase):
    """Tables of ingest.sqlite3."""


class Group(Base):
    """A group of subband files and how far it is."""

    __tablename__ = "ingest_queue"
    __table_args__ = (CheckConstraint(f"state IN {tuple(MOVES)}"),)
    group_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    received_at: Mapped[str]
    last_update: Mapped[str]
    expected_subbands: Mapped[int]
    retry_count: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    checkpoint_path: Mapped[str | None]
    processing_stage: Mapped[str | None]
    chunk_minutes: Mapped[float]
    has_calibrator: Mapped[bool | None]
    calibrators: Mapped[str | None]  # JSON list of names
    mid_mjd: Mapped[float | None]
    app_dec_deg: Mapped[float | None]
    owner: Mapped[str | None]  # run id
    host: Mapped[str | None]
    pid: Mapped[int | None]
    heartbeat: Mapped[str | None]


class SubbandFile(Base):
    """A file of a group; `reason` says why it does not count."""

    __tablename__ = "subband_files"
    path: Mapped[str] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("ingest_queue.group_id"), index=True)
    subband_idx: Mapped[int]
    size: Mapped[int]
    checked: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None]


class Performance(Base):
    """Seconds of a group's conversion and of every stage (`stages`, JSON)."""

    __tablename__ = "performance_metrics"
    group_id: Mapped[str] = mapped_column(ForeignKey("ingest_queue.group_id"), primary_key=True)
    load_time: Mapped[float]
    phase_time: Mapped[float]
    write_time: Mapped[float]
    total_time: Mapped[float]
    writer_type: Mapped[str]
    stages: Mapped[str]
    recorded_at: Mapped[str]


def move(session: Session, group_id: str, state: str, **fields) -> None:
    """Move a group to `state`; refuses with StateError what the state machine does not have."""
    current = session.scalar(select(Group.state).where(Group.group_id == group_id))
    if current is None:
        raise StateError(f"group {group_id} is not in the queue")
    if state not in MOVES[current]:
        raise StateError(f"group {group_id}: no move from {current} to {state} (allowed: {', '.join(MOVES[current])})")
    if state not in RUNNING:
        fields = {"owner": None, "host": None, "pid": None, "heartbeat": None, **fields}
    changed = session.execute(
        update(Group)
        .where(Group.group_id == group_id, Group.state == current)
        .values(state=state, last_update=db.now(), **fields)
    )
    if changed.rowcount != 1:
        raise StateError(f"group {group_id}: somebody else moved it from {current}")


def record_files(session: Session, group: FileGroup, options: IngestConfig, now_s: float) -> None:
    """Bring the queue up to date with a group's files: new groups, late or replaced files, completeness, time-outs."""
    row = session.get(Group, group.id)
    if row is None:
        row = Group(
            group_id=group.id, state="collecting", received_at=db.now(), last_update=db.now(), retry_count=0,
            expected_subbands=options.expected_subbands, chunk_minutes=options.chunk_minutes,
        )  # fmt: skip
        session.add(row)
        session.flush()
    listed = [(sb, path, None) for sb, path in group.files.items()]
    listed += [(int(p.name[-7:-5]), p, "duplicate: another file of this subband counts") for p in group.duplicates]
    mine = or_(SubbandFile.group_id == group.id, SubbandFile.path.in_([str(path) for _, path, _ in listed]))
    known = {f.path: f for f in session.scalars(select(SubbandFile).where(mine))}
    changed = False
    for subband, path, reason in listed:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue  # gone since the folder was listed
        file = known.get(str(path))
        if file is None:
            session.add(SubbandFile(path=str(path), group_id=group.id, subband_idx=subband, size=size, reason=reason))
            changed = True
        elif file.size != size or file.reason != reason or file.group_id != group.id:
            file.size, file.checked, file.reason, file.group_id = size, False, reason, group.id
            changed = True
    for path, file in known.items():
        if path not in {str(p) for _, p, _ in listed} and not Path(path).exists():
            session.delete(file)
    session.flush()
    if row.state == "failed" and changed:
        move(session, group.id, "collecting", error=None, retry_count=0, processing_stage=None)
        session.refresh(row)
    if row.state != "collecting":
        return
    missing = group.missing(options.expected_subbands)
    if not missing:
        move(session, group.id, "pending")
    elif now_s - group.waiting_since_s() > options.collecting_timeout_s:
        if len(group.files) >= options.min_subbands:
            move(session, group.id, "pending", error=f"subbands {_numbers(missing)} are missing and will be flagged")
        else:
            error = (
                f"{len(group.files)} of {options.expected_subbands} subbands after {options.collecting_timeout_s:g} s"
            )
            move(session, group.id, "failed", error=f"{error}; missing {_numbers(missing)}")


def _numbers(subbands: Iterable[int]) -> str:
    return ", ".join(f"{sb:02d}" for sb in subbands)


def claim(session: Session, group_id: str, run_id: str, resuming: bool) -> None:
    """Take a pending group for a run."""
    mine = {"owner": run_id, "host": socket.gethostname(), "pid": os.getpid(), "heartbeat": db.now()}
    move(session, group_id, "in_progress", error=None, processing_stage=None, **mine)
    move(session, group_id, "resuming" if resuming else "processing_fresh")


def attempt_failed(session: Session, group_id: str, error: str, max_retries: int, permanent: bool = False) -> str:
    """A running group's attempt failed: back to pending with one retry spent, or failed. Returns the new state.

    permanent  the data are at fault and another attempt cannot help
    """
    retries = session.scalar(select(Group.retry_count).where(Group.group_id == group_id)) or 0
    current = session.scalar(select(Group.state).where(Group.group_id == group_id))
    if current == "in_progress":  # claimed, nothing started: failed is reached by way of pending
        move(session, group_id, "pending", error=error)
    if permanent or retries >= max_retries:
        move(session, group_id, "failed", error=error, retry_count=retries + 1)
        return "failed"
    if current != "in_progress":
        move(session, group_id, "pending", error=error)
    session.execute(update(Group).where(Group.group_id == group_id).values(retry_count=retries + 1))
    return "pending"


def stage_finished(session: Session, group_id: str, stage: str, result: Path) -> None:
    """A running group finished a stage."""
    current = session.scalar(select(Group.state).where(Group.group_id == group_id))
    move(
        session, group_id, current or "", processing_stage=stage, checkpoint_path=str(result), heartbeat=db.now()
    )  # fmt: skip


def recover(session: Session, finished: Iterable[str], max_retries: int) -> list[str]:
    """At the start of a run, whose lock says that no other lives: groups of dead runs go on or back.

    finished  groups whose last result is on disk although the queue does not say completed
    Returns the groups that were released.
    """
    finished = set(finished)
    released = []
    for row in session.scalars(select(Group).where(Group.state.in_(RUNNING))).all():
        if row.group_id in finished and row.state != "in_progress":
            move(session, row.group_id, "completed", error=None)
            continue
        attempt_failed(session, row.group_id, f"run {row.owner} died", max_retries)
        released.append(row.group_id)
    for row in session.scalars(select(Group).where(Group.state == "pending", Group.group_id.in_(finished))).all():
        claim(session, row.group_id, "recovered", resuming=True)
        move(session, row.group_id, "completed", error=None)
    return released


def note_pointing(session: Session, group_id: str, mid_mjd: float, app_dec_deg: float, calibrators: list[str]) -> None:
    """Remember where a group looks and which calibrators its beam holds."""
    session.execute(
        update(Group)
        .where(Group.group_id == group_id)
        .values(
            mid_mjd=mid_mjd,
            app_dec_deg=app_dec_deg,
            has_calibrator=bool(calibrators),
            calibrators=json.dumps(calibrators),
        )
    )


def record_performance(session: Session, group_id: str, convert: Mapping, stages: Mapping[str, float]) -> None:
    """Seconds of a group; replaces what an earlier attempt left."""
    session.execute(delete(Performance).where(Performance.group_id == group_id))
    session.add(
        Performance(
            group_id=group_id, load_time=convert["load_s"], phase_time=convert["phase_s"], write_time=convert["write_s"],
            total_time=convert["seconds"], writer_type=convert["writer"], stages=json.dumps(dict(stages)),
            recorded_at=db.now(),
        )
    )  # fmt: skip
    session.execute(
        update(SubbandFile)
        .where(SubbandFile.path.in_(list(convert["files"].values())))
        .values(checked=True, reason=None)
    )


def note_waiting(session: Session, group_id: str, waiting: bool, reason: str) -> None:
    """A pending group waits for calibration (`waiting_calibration`, and why), or no longer does."""
    row = session.get(Group, group_id)
    if row is None or row.state != "pending":
        return
    if waiting:
        row.processing_stage, row.error = WAITING, reason
    elif row.processing_stage == WAITING:
        row.processing_stage, row.error = None, None


def requeue(session: Session, group_id: str, min_subbands: int) -> None:
    """An operator asks for a failed or completed group again, with a fresh budget of attempts."""
    mine = SubbandFile.group_id == group_id, SubbandFile.reason.is_(None)
    files = session.scalar(select(func.count()).select_from(SubbandFile).where(*mine)) or 0
    if session.get(Group, group_id) is not None and files < min_subbands:
        raise StateError(
            f"group {group_id} has {files} files, at least {min_subbands} needed; it comes back when they arrive"
        )
    move(session, group_id, "pending", error=None, retry_count=0, processing_stage=None)


def release(session: Session, group_id: str) -> None:
    """A run ends with a group neither done nor failed (only some of its stages were asked for): no attempt is spent."""
    move(session, group_id, "pending", error=None)


def forget_collecting(session: Session, groups: Iterable[str]) -> None:
    """Drop collecting rows whose files now belong to an id that an earlier file gave; `groups` are those that are."""
    gone = select(Group.group_id).where(Group.state == "collecting", Group.group_id.not_in(list(groups)))
    for group_id in session.scalars(gone).all():
        session.execute(delete(SubbandFile).where(SubbandFile.group_id == group_id))
        session.execute(delete(Group).where(Group.group_id == group_id))
