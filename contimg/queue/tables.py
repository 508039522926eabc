"""The tables of ingest.sqlite3; SQLite itself refuses illegal moves and keeps the history."""

from sqlalchemy import DDL, CheckConstraint, ForeignKey, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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
    not_before: Mapped[str | None]  # back-off: the watcher does not start it earlier
    error: Mapped[str | None]
    checkpoint_path: Mapped[str | None]
    processing_stage: Mapped[str | None]  # the last one that finished
    running_stage: Mapped[str | None]  # the last one that was started
    running_since: Mapped[str | None]
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
    changed_s: Mapped[float]  # mtime, s since 1970
    checked: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None]
    start_mjd: Mapped[float | None]
    mid_mjd: Mapped[float | None]
    app_dec_deg: Mapped[float | None]
    channels: Mapped[int | None]


class History(Base):
    """Every change of state of every group; written by a trigger."""

    __tablename__ = "ingest_history"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[str] = mapped_column(
        ForeignKey("ingest_queue.group_id", ondelete="CASCADE"), index=True
    )
    at: Mapped[str]
    state_from: Mapped[str]
    state_to: Mapped[str]
    stage: Mapped[str | None]
    owner: Mapped[str | None]
    error: Mapped[str | None]


_LEGAL = ", ".join(
    f"('{before}', '{after}')" for before, states in MOVES.items() for after in states
)
_TRIGGERS = (
    f"""CREATE TRIGGER legal_moves BEFORE UPDATE OF state ON ingest_queue
    WHEN (OLD.state, NEW.state) NOT IN (VALUES {_LEGAL})
    BEGIN SELECT RAISE(ABORT, 'ingest_queue: no such move'); END""",
    """CREATE TRIGGER first_state BEFORE INSERT ON ingest_queue WHEN NEW.state != 'collecting'
    BEGIN SELECT RAISE(ABORT, 'ingest_queue: a group begins as collecting'); END""",
    """CREATE TRIGGER history AFTER UPDATE OF state ON ingest_queue WHEN OLD.state != NEW.state
    BEGIN INSERT INTO ingest_history (group_id, at, state_from, state_to, stage, owner, error)
    VALUES (NEW.group_id, NEW.last_update, OLD.state, NEW.state, OLD.running_stage,
    COALESCE(NEW.owner, OLD.owner), NEW.error);
    END""",
)
for _trigger in _TRIGGERS:
    # made after ingest_queue: it refers to it
    event.listen(History.__table__, "after_create", DDL(_trigger))


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
