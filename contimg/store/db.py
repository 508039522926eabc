"""SQLite through SQLAlchemy: short write transactions on one host, read-only sessions for everybody
else.

The databases are in WAL mode, so that readers and the writer do not wait for each other. Each
carries the version of its schema (PRAGMA user_version); a contimg of another schema refuses it.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from contimg.errors import ContimgError

BUSY_TIMEOUT_S = 30
SCHEMA = 1  # of all databases; begins with the first release
UNIX_EPOCH_MJD = 40587


def utc(time_s: float) -> str:
    """UTC time as it is written into the databases (ISO, seconds), from seconds since 1970."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def mjd(time: str) -> float:
    """MJD of a UTC time in ISO format; raises ValueError."""
    moment = datetime.fromisoformat(time)
    return (
        moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    ).timestamp() / 86400 + UNIX_EPOCH_MJD


def utc_of_mjd(mjd: float) -> str:
    """UTC time of an MJD (ISO, seconds)."""
    return utc((mjd - UNIX_EPOCH_MJD) * 86400)


@functools.cache
def _engine(url: str, readonly: bool) -> Engine:
    # NullPool: no connection outlives its session, so that the last one to close cleans up -wal and
    # -shm.
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def _connect(connection, _):
        connection.isolation_level = (
            None  # pysqlite would begin transactions by itself, and deferred
        )
        connection.execute("PRAGMA foreign_keys=ON")
        if readonly:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


# databases whose tables this process has seen to
_made: set[tuple[Path, type[DeclarativeBase]]] = set()


@contextmanager
def writing(path: Path, base: type[DeclarativeBase]) -> Iterator[Session]:
    """One write transaction: committed at the end, rolled back on any error. Makes the database on
    first use."""
    path = path.resolve()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _made.discard((path, base))
    engine = _engine(f"sqlite:///file:{quote(str(path))}?uri=true", readonly=False)
    with _named(path), Session(engine) as session, session.begin():
        emptied = not session.scalar(text("SELECT count(*) FROM sqlite_master"))
        # inside the transaction: two processes may come at once
        if emptied or (path, base) not in _made:
            _make_tables(session.connection(), base, path)
        yield session
    _made.add((path, base))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """SQLite's complaints about a file, with its name and what to do."""
    try:
        yield
    except DatabaseError as error:
        words = str(error.orig)
        if re.search(
            "malformed|not a database|disk image|unsupported file format|file is encrypted", words
        ):
            raise ContimgError(
                f"{path}: damaged ({words}). Stop what uses it and move it aside (mv {path} "
                f"{path}.damaged): the next run, or "
                "the watcher when it starts, makes it again from the results"
            ) from None
        if "readonly database" in words or "unable to open" in words:
            raise ContimgError(
                f"{path}: {words}. Give this user permission to write to it and to its folder."
            ) from None
        raise


def _make_tables(connection: Connection, base: type[DeclarativeBase], path: Path) -> None:
    """Make the tables and views that are not there; refuse a database of another schema."""
    found = connection.exec_driver_sql("PRAGMA user_version").scalar()
    if found not in (0, SCHEMA):
        raise ContimgError(
            f"{path}: schema version {found}, this contimg knows {SCHEMA}. Use the contimg that "
            "wrote it."
        )
    base.metadata.create_all(connection)
    for name, query in getattr(base, "views", {}).items():
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")


@contextmanager
def reading(path: Path) -> Iterator[Session | None]:
    """A session that cannot write; None when the database does not exist yet. Leaves no file
    behind.

    SQLite can read a WAL database only with its -wal and -shm files. A connection opened with
    mode=ro makes them and cannot remove them again; one opened for writing (but told to only query)
    removes them when it is the last. Where they exist, somebody else is at work, or died there:
    they are left as they are.
    """
    path = path.resolve()
    if not path.exists():
        yield None
        return
    if path.with_name(f"{path.name}-wal").exists():
        mode = "mode=ro"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        mode = "mode=rw"
    else:
        raise ContimgError(
            f"{path}: reading it needs the permission to write to it and its folder (SQLite's "
            "WAL). Ask its owner, or copy it."
        )
    engine = _engine(f"sqlite:///file:{quote(str(path))}?uri=true&{mode}", readonly=True)
    with _named(path), Session(engine) as session:
        tables = session.scalar(text("SELECT count(*) FROM sqlite_master WHERE type = 'table'"))
        try:
            yield session if tables else None  # none: killed while it was made
        except OperationalError as error:
            if "no such" not in str(error.orig):
                raise
            raise ContimgError(
                f"{path}: {error.orig}: another contimg made it. Use that one, or move the file "
                "aside: the next run makes it again from the results"
            ) from None
