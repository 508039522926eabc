"""SQLite through SQLAlchemy: short write transactions on one host, read-only connections for everybody else."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Session

BUSY_TIMEOUT_S = 30


def now() -> str:
    """UTC time as it is written into the databases (ISO, seconds)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _engine(path: Path, readonly: bool):
    url = f"sqlite:///file:{path.resolve()}?uri=true" + ("&mode=ro" if readonly else "")
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _connect(connection, _):
        connection.isolation_level = None  # pysqlite would begin transactions by itself, and deferred
        connection.execute("PRAGMA foreign_keys=ON")
        if not readonly:
            connection.execute("PRAGMA journal_mode=DELETE")  # reading a WAL database leaves files: a dry-run may not

    @event.listens_for(engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def writing(path: Path, base: type[DeclarativeBase]) -> Iterator[Session]:
    """One write transaction: committed at the end, rolled back on any error. Makes the database on first use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(path, readonly=False)
    try:
        base.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


@contextmanager
def reading(path: Path) -> Iterator[Session | None]:
    """A read-only session; None when the database does not exist yet."""
    if not path.exists():
        yield None
        return
    engine = _engine(path, readonly=True)
    try:
        with Session(engine) as session:
            tables = session.scalar(text("SELECT count(*) FROM sqlite_master WHERE type = 'table'"))
            yield session if tables else None  # none: killed while it was made
    finally:
        engine.dispose()
