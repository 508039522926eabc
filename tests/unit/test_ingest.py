import itertools
import time
from pathlib import Path

import pytest

from contimg import db, ingest
from contimg.config import IngestConfig
from contimg.errors import StateError
from contimg.groups import FileGroup

GROUP = "2026-01-25T22:26:05"
OPTIONS = IngestConfig()


@pytest.fixture
def session(tmp_path):
    with db.writing(tmp_path / "state" / "ingest.sqlite3", ingest.Base) as session:
        yield session


def add(session, state):
    session.add(
        ingest.Group(
            group_id=GROUP,
            state=state,
            received_at="",
            last_update="",
            expected_subbands=16,
            chunk_minutes=5,
            retry_count=0,
        )
    )
    session.flush()


@pytest.mark.parametrize(("before", "after"), itertools.product(ingest.MOVES, ingest.MOVES))
def test_every_move(session, before, after):
    add(session, before)
    if after in ingest.MOVES[before]:
        ingest.move(session, GROUP, after)
        assert session.get(ingest.Group, GROUP).state == after
    else:
        with pytest.raises(StateError, match=f"no move from {before} to {after}"):
            ingest.move(session, GROUP, after)
        assert session.get(ingest.Group, GROUP).state == before


def state(session):
    session.expire_all()
    row = session.get(ingest.Group, GROUP)
    return row.state, row.retry_count


def test_the_budget_of_attempts_ends(session):
    add(session, "pending")
    for attempt in range(OPTIONS.max_retries + 1):
        assert state(session) == ("pending", attempt)
        ingest.claim(session, GROUP, "run", resuming=attempt > 0)
        ingest.attempt_failed(session, GROUP, "broken", OPTIONS.max_retries)
    assert state(session) == ("failed", OPTIONS.max_retries + 1)
    assert session.get(ingest.Group, GROUP).error == "broken"
    with pytest.raises(StateError, match="has 0 files, at least 16 needed"):
        ingest.requeue(session, GROUP, 16)
    ingest.requeue(session, GROUP, 0)
    assert state(session) == ("pending", 0)


def test_bad_data_fail_at_once(session):
    add(session, "pending")
    ingest.claim(session, GROUP, "run", resuming=False)
    assert ingest.attempt_failed(session, GROUP, "truncated", OPTIONS.max_retries, permanent=True) == "failed"
    assert state(session)[0] == "failed"


@pytest.mark.parametrize("claimed", ["in_progress", "processing_fresh", "resuming"])
def test_groups_of_a_dead_run_come_back(session, claimed):
    add(session, claimed)
    assert ingest.recover(session, [], OPTIONS.max_retries) == [GROUP]
    assert state(session) == ("pending", 1)


@pytest.mark.parametrize("before", ["pending", "processing_fresh", "resuming"])
def test_a_finished_group_whose_run_died_is_completed(session, before):
    add(session, before)
    ingest.recover(session, [GROUP], OPTIONS.max_retries)
    assert state(session)[0] == "completed"


def test_files_make_a_group_complete_late_ones_reopen_it(session, tmp_path):
    def files(*subbands):
        paths = {}
        for sb in subbands:
            paths[sb] = tmp_path / f"{GROUP}_sb{sb:02d}.hdf5"
            paths[sb].write_bytes(b"x")
        return FileGroup(GROUP, paths)

    begin = time.time()  # the files arrive now, long after the observation
    ingest.record_files(session, files(*range(15)), OPTIONS, begin + 60)
    assert state(session)[0] == "collecting"
    ingest.record_files(session, files(*range(15)), OPTIONS, begin + 3601)
    assert state(session)[0] == "failed"
    assert "missing 15" in session.get(ingest.Group, GROUP).error
    ingest.record_files(session, files(*range(16)), OPTIONS, begin + 7200)
    assert state(session)[0] == "pending"


def test_enough_subbands_after_the_time_out(session, tmp_path):
    options = IngestConfig(min_subbands=14)
    paths = {sb: tmp_path / f"{GROUP}_sb{sb:02d}.hdf5" for sb in range(14)}
    for path in paths.values():
        path.write_bytes(b"x")
    ingest.record_files(session, FileGroup(GROUP, paths), options, time.time() + 10)
    assert state(session)[0] == "collecting"
    ingest.record_files(session, FileGroup(GROUP, paths), options, time.time() + 3601)
    assert state(session)[0] == "pending"
    assert "14, 15" in session.get(ingest.Group, GROUP).error


def test_a_failed_transaction_changes_nothing(tmp_path):
    path: Path = tmp_path / "ingest.sqlite3"

    def add_and_fail():
        with db.writing(path, ingest.Base) as session:
            add(session, "pending")
            ingest.move(session, GROUP, "completed")

    with pytest.raises(StateError):
        add_and_fail()
    with db.reading(path) as session:
        assert session.get(ingest.Group, GROUP) is None


def test_a_reader_needs_no_database_and_makes_none(tmp_path):
    with db.reading(tmp_path / "none.sqlite3") as session:
        assert session is None
    assert list(tmp_path.iterdir()) == []


def test_a_database_killed_while_it_was_made_reads_as_none(tmp_path):
    import sqlite3

    path = tmp_path / "half.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    with db.reading(path) as session:
        assert session is None
