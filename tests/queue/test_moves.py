"""The queue by itself: states, moves, files, attempts, claims; readers and writers side by side."""

import itertools
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from contimg.clock import now
from contimg.config import IngestConfig
from contimg.errors import RequestError, StateError
from contimg.paths import Paths
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.queue.groups import FileGroup, RawFile, form_groups
from contimg.store import db
from contimg.store.files import write_json
from contimg.visibilities.uvh5 import Outline

GROUP = "2026-01-25T22:26:05"
OPTIONS = IngestConfig()
WAYS = {  # from `collecting`, the only state in which a group can begin
    "collecting": (),
    "pending": ("pending",),
    "in_progress": ("pending", "in_progress"),
    "processing_fresh": ("pending", "in_progress", "processing_fresh"),
    "resuming": ("pending", "in_progress", "resuming"),
    "completed": ("pending", "in_progress", "resuming", "completed"),
    "failed": ("failed",),
}


@pytest.fixture
def database(tmp_path):
    return tmp_path / "state" / "ingest.sqlite3"


@pytest.fixture
def session(database):
    with db.writing(database, queue_tables.Base) as session:
        yield session


def nothing(group):
    """No group is finished on disk."""
    return False


def add(session, state, group=GROUP):
    session.add(
        queue_tables.Group(
            group_id=group,
            state="collecting",
            received_at=now(),
            last_update="",
            expected_subbands=16,
            chunk_minutes=5,
            retry_count=0,
        )
    )
    session.flush()
    for step in WAYS[state]:
        moves.move(session, group, step)


def row(session, group=GROUP) -> queue_tables.Group:
    session.flush()
    session.expire_all()
    return session.get(queue_tables.Group, group)


def state(session, group=GROUP):
    return row(session, group).state, row(session, group).retry_count


def contents(session) -> list:
    return [
        session.execute(text(f"SELECT * FROM {table}")).all()
        for table in ("ingest_queue", "ingest_history")
    ]


@pytest.mark.parametrize(
    ("before", "after"), itertools.product(queue_tables.MOVES, queue_tables.MOVES)
)
def test_every_move_in_code_and_in_the_schema(session, before, after):
    add(session, before)
    kept = contents(session)
    by_hand = text("UPDATE ingest_queue SET state = :state")
    if after in queue_tables.MOVES[before]:
        with session.begin_nested() as undo:
            session.execute(by_hand, {"state": after})
            undo.rollback()
        moves.move(session, GROUP, after)
        assert state(session)[0] == after
        rows = session.scalars(select(queue_tables.History).order_by(queue_tables.History.id)).all()
        assert [m.state_to for m in rows] == [*WAYS[before], *([after] if after != before else [])]
        return
    with pytest.raises(StateError, match=f"no move from {before} to {after}"):
        moves.move(session, GROUP, after)
    with pytest.raises(IntegrityError, match="no such move"), session.begin_nested():
        session.execute(by_hand, {"state": after})
    assert contents(session) == kept


@pytest.mark.parametrize("wrong", [s for s in queue_tables.MOVES if s != "collecting"] + ["lost"])
def test_a_group_begins_as_collecting(session, wrong):
    group = queue_tables.Group(
        group_id=GROUP,
        state=wrong,
        received_at="",
        last_update="",
        expected_subbands=16,
        chunk_minutes=5,
        retry_count=0,
    )
    session.add(group)
    with pytest.raises(IntegrityError):
        session.flush()


def test_a_move_of_a_group_that_is_not_there(session):
    with pytest.raises(StateError, match="is not in the queue"):
        moves.move(session, GROUP, "pending")


def test_the_budget_of_attempts_ends_and_each_wait_is_longer(session):
    add(session, "pending")
    waits = []
    for attempt in range(OPTIONS.max_retries + 1):
        assert state(session) == ("pending", attempt)
        moves.claim(session, GROUP, "run")
        moves.start(session, GROUP, resuming=attempt > 0)
        moves.attempt_failed(session, GROUP, f"broken {attempt}", OPTIONS, 1e9)
        waits.append(row(session).not_before)
    assert waits == [db.utc(1e9 + s) for s in (60, 120, 240)] + [None]
    assert state(session) == ("failed", OPTIONS.max_retries + 1)
    assert row(session).error == "broken 3"
    errors = [
        m.error
        for m in session.scalars(select(queue_tables.History))
        if m.state_to in ("pending", "failed") and m.error
    ]
    assert errors == [f"broken {i}" for i in range(4)]
    with pytest.raises(StateError, match="has 0 files, at least 16 needed"):
        moves.requeue(session, GROUP, 16)
    moves.requeue(session, GROUP, 0)
    assert state(session) == ("pending", 0)


def test_an_operator_ends_a_back_off(session):
    add(session, "pending")
    moves.claim(session, GROUP, "run")
    moves.start(session, GROUP, resuming=False)
    moves.attempt_failed(session, GROUP, "broken", OPTIONS, time.time())
    moves.requeue(session, GROUP, 16)
    assert (row(session).not_before, row(session).retry_count) == (None, 0)
    with pytest.raises(StateError, match="is pending already"):
        moves.requeue(session, GROUP, 0)


def test_bad_data_fail_at_once(session):
    add(session, "pending")
    moves.claim(session, GROUP, "run")
    moves.start(session, GROUP, resuming=False)
    assert moves.attempt_failed(session, GROUP, "truncated", OPTIONS, 0, permanent=True) == "failed"
    assert state(session) == ("failed", 1)


@pytest.mark.parametrize("claimed", ["in_progress", "processing_fresh", "resuming"])
def test_groups_of_a_dead_run_come_back_and_the_one_at_work_has_spent_an_attempt(session, claimed):
    add(session, claimed)
    assert moves.recover(session, nothing, OPTIONS, time.time()) == {GROUP: "pending"}
    assert state(session) == ("pending", 0)
    moves.claim(session, GROUP, "7")
    moves.start(session, GROUP, resuming=False)
    moves.stage_started(session, GROUP, "image")
    moves.recover(session, nothing, OPTIONS, time.time(), "local")
    assert state(session) == ("pending", 1)
    assert row(session).error == "run 7 died in image"


@pytest.mark.parametrize("before", ["pending", "processing_fresh", "resuming"])
def test_a_finished_group_whose_run_died_is_completed(session, before):
    add(session, before)
    moves.recover(session, {GROUP}.__contains__, OPTIONS, time.time(), "local")
    assert state(session)[0] == "completed"


def test_a_claim_lives_as_long_as_its_process_and_its_heartbeat(session):
    add(session, "pending")
    moves.claim(session, GROUP, "run")
    moves.start(session, GROUP, resuming=False)
    now_s = time.time()
    assert moves.recover(session, nothing, OPTIONS, now_s) == {}
    assert not moves.is_alive(row(session), OPTIONS, now_s + OPTIONS.lease_s + 2)
    row(session).host = "another host"
    assert moves.is_alive(row(session), OPTIONS, now_s)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    # dead, nobody has looked yet
    while Path(f"/proc/{ended.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    claimed = row(session)
    claimed.host, claimed.pid = __import__("socket").gethostname(), ended.pid
    assert not moves.is_alive(claimed, OPTIONS, now_s)
    ended.wait()
    assert moves.recover(session, nothing, OPTIONS, now_s) == {GROUP: "pending"}
    moves.claim(session, GROUP, "run 2")
    moves.start(session, GROUP, resuming=False)
    row(session).heartbeat = db.utc(now_s - 3600)
    moves.beat(session, "run 2")
    assert row(session).heartbeat >= db.utc(now_s)


def files_of(*subbands, changed_s=1000.0, checked=True, **fields):
    outline = Outline(61000.0, 61000.0018, 16.15, 48) if checked else None
    return {
        sb: RawFile(
            Path(f"/raw/{GROUP}_sb{sb:02d}.hdf5"),
            GROUP,
            sb,
            10,
            changed_s,
            checked,
            outline,
            **fields,
        )
        for sb in subbands
    }


def see(database, group, options=OPTIONS, now_s=None):
    """The queue after a look at the folder."""
    known = moves.known_groups(database)
    with db.writing(database, queue_tables.Base) as session:
        moves.record(session, [group], known, options, now_s or group.waiting_since_s + 1)
        found = session.get(queue_tables.Group, group.id)
        return found.state, found.error


def test_files_make_a_group_complete_late_ones_reopen_it(database):
    fifteen, late = FileGroup(GROUP, files_of(*range(15))), FileGroup(GROUP, files_of(*range(16)))
    since_s = fifteen.waiting_since_s
    assert see(database, fifteen) == ("collecting", None)
    state, error = see(database, fifteen, now_s=since_s + 3601)
    assert (state, error) == ("failed", "after 3600 s only 15 of 16 subbands; missing 15")
    assert see(database, fifteen, now_s=since_s + 7200)[0] == "failed"
    assert see(database, late, now_s=since_s + 7200) == ("pending", None)


def test_a_bad_file_is_named_until_a_good_one_takes_its_place(database):
    bad = RawFile(
        Path(f"/raw/{GROUP}_sb07.hdf5"), GROUP, 7, 5, 1000.0, True, None, "SubbandError: truncated"
    )
    members = files_of(*(sb for sb in range(16) if sb != 7))
    group = FileGroup(GROUP, members, (bad,))
    assert see(database, group)[0] == "collecting"
    state, error = see(database, group, now_s=group.waiting_since_s + 3601)
    assert state == "failed"
    assert error == "after 3600 s only 15 of 16 subbands; missing 07; SubbandError: truncated"
    known = moves.known_groups(database)[GROUP]
    assert bad in known.files
    again = files_of(7, changed_s=2000.0, checked=False)
    # nobody has looked into it yet
    assert see(database, FileGroup(GROUP, members | again))[0] == "failed"
    again = files_of(7, changed_s=2000.0)
    assert see(database, FileGroup(GROUP, members | again)) == ("pending", None)


def test_files_that_nobody_looked_into_do_not_count(database):
    group = FileGroup(GROUP, files_of(*range(15)) | files_of(15, checked=False))
    assert see(database, group) == ("collecting", None)
    # its time is not up: ours is
    assert see(database, group, now_s=group.waiting_since_s + 3601)[0] == "collecting"
    assert "15 came a moment ago" in group.shortage(16)


def test_enough_subbands_after_the_time_out(database):
    options = IngestConfig(min_subbands=14)
    group = FileGroup(GROUP, files_of(*range(14)))
    assert see(database, group, options) == ("collecting", None)
    state, error = see(database, group, options, group.waiting_since_s + 3601)
    assert (state, error) == ("pending", "subbands 14, 15 are missing and will be flagged")


def test_a_file_that_comes_after_its_group_was_begun_waits_to_be_asked_for(database):
    options = IngestConfig(min_subbands=15)
    group = FileGroup(GROUP, files_of(*range(15)))
    see(database, group, options, group.waiting_since_s + 3601)
    with db.writing(database, queue_tables.Base) as session:
        moves.claim(session, GROUP, "run")
        moves.start(session, GROUP, resuming=False)
    full = FileGroup(GROUP, files_of(*range(16)))
    assert see(database, full, options)[0] == "processing_fresh"
    with db.writing(database, queue_tables.Base) as session:
        moves.move(session, GROUP, "completed")
    assert see(database, full, options)[0] == "completed"
    # one stands for all
    assert [f.reason for f in moves.known_groups(database)[GROUP].files] == [None]
    late = [f for f in moves.known_groups(database, [GROUP])[GROUP].files if f.reason]
    assert [(f.subband, f.reason) for f in late] == [(15, moves.LATE)]
    with db.writing(database, queue_tables.Base) as session:
        moves.requeue(session, GROUP, 16)
    see(database, full, options)
    assert all(f.reason is None for f in moves.known_groups(database)[GROUP].files)


def test_the_late_file_that_has_the_earliest_name_joins_the_id_that_is_fixed(database):
    group = FileGroup(GROUP, files_of(*range(1, 16)))
    see(database, group, now_s=group.waiting_since_s + 3601)
    with db.writing(database, queue_tables.Base) as session:  # an earlier attempt left its seconds
        values = {
            "load_time": 1.0,
            "phase_time": 1.0,
            "write_time": 1.0,
            "total_time": 3.0,
            "writer_type": "x",
        }
        session.add(queue_tables.Performance(group_id=GROUP, stages="{}", recorded_at="", **values))
    early = replace(
        files_of(0, checked=False)[0],
        path=Path("/raw/2026-01-25T22:25:55_sb00.hdf5"),
        timestamp="2026-01-25T22:25:55",
    )
    for checked in (False, True):
        early = replace(early, checked=checked, outline=files_of(1)[1].outline if checked else None)
        fixed = {g: s.files for g, s in moves.known_groups(database).items()}
        groups = form_groups([early], 120, 300, 16, fixed)
        assert [g.id for g in groups] == [GROUP]
        state, _ = see(database, groups[0])
    assert state == "pending"


def test_a_requested_group_that_waits_for_files_is_refused(session):
    add(session, "collecting")
    with pytest.raises(StateError, match="waits for files"):
        moves.requeue(session, GROUP, 0)


def test_what_is_recorded_is_what_was_seen(database):
    duplicate = replace(
        files_of(3, reason="duplicate of x")[3], path=Path(f"/raw/{GROUP[:-1]}7_sb03.hdf5")
    )
    duplicate = replace(duplicate, timestamp=duplicate.path.name[:19])
    group = FileGroup(GROUP, files_of(*range(16)), (duplicate,))
    see(database, group)
    known = moves.known_groups(database)[GROUP]
    assert set(known.files) == {*group.members.values(), duplicate}
    assert (known.mid_mjd, known.app_dec_deg) == (61000.0018, 16.15)


def test_reprocess_removes_results_from_a_stage_on(session, tmp_path):
    paths = Paths(tmp_path, tmp_path / "products", tmp_path / "state", tmp_path / "state")
    add(session, "completed")
    for sb in range(16):
        path = tmp_path / f"{GROUP}_sb{sb:02d}.hdf5"
        path.write_bytes(b"x")
        session.add(
            queue_tables.SubbandFile(
                path=str(path), group_id=GROUP, subband_idx=sb, size=1, changed_s=0
            )
        )
    target = (
        "caltables",
        "convert",
        "concat",
        "prepare",
        "apply",
        "image",
        "photometry",
        "qa",
        "index",
    )

    def there():
        return [s for s in target if paths.result(GROUP, s).exists()]

    for stage in target:
        write_json(paths.result(GROUP, stage), {})
    with pytest.raises(
        RequestError, match="has no stage solve; it goes through caltables, convert"
    ):
        moves.reprocess(session, paths, GROUP, "solve", 16)
    paths.ms(GROUP).mkdir(parents=True)
    assert moves.reprocess(session, paths, GROUP, "image", 16) == "image"
    assert there() == ["caltables", "convert", "concat", "prepare", "apply"]
    assert state(session)[0] == "pending"
    with pytest.raises(StateError, match="is pending already"):  # asked already
        moves.reprocess(session, paths, GROUP, "image", 16)
    moves.claim(session, GROUP, "run")
    moves.start(session, GROUP, resuming=True)
    with pytest.raises(StateError, match="is being worked on"):
        moves.reprocess(session, paths, GROUP, None, 16)
    moves.move(session, GROUP, "completed")
    (tmp_path / f"{GROUP}_sb03.hdf5").unlink()
    with (
        pytest.raises(RequestError, match="needs its raw files; 1 are gone"),
        session.begin_nested(),
    ):
        moves.reprocess(session, paths, GROUP, "convert", 16)
    assert state(session)[0] == "completed"


def test_a_failed_transaction_changes_nothing(database):
    def add_and_fail():
        with db.writing(database, queue_tables.Base) as session:
            add(session, "pending")
            moves.move(session, GROUP, "completed")

    with pytest.raises(StateError):
        add_and_fail()
    with db.reading(database) as session:
        assert session is None or session.get(queue_tables.Group, GROUP) is None


def test_a_reader_needs_no_database_and_makes_none(tmp_path):
    with db.reading(tmp_path / "none.sqlite3") as session:
        assert session is None
    assert list(tmp_path.iterdir()) == []


def test_a_reader_leaves_the_folder_as_it_is(database):
    with db.writing(database, queue_tables.Base) as session:
        add(session, "pending")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    before = [(p.name, p.stat().st_mtime_ns) for p in database.parent.iterdir()]
    assert [name for name, _ in before] == [database.name]
    with db.reading(database) as session:
        assert session.get(queue_tables.Group, GROUP).state == "pending"
        with pytest.raises(Exception, match="readonly"):
            moves.move(session, GROUP, "in_progress")
    assert [(p.name, p.stat().st_mtime_ns) for p in database.parent.iterdir()] == before


def test_a_database_killed_while_it_was_made_reads_as_none(tmp_path):
    path = tmp_path / "half.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    with db.reading(path) as session:
        assert session is None


WRITER = """
import sys
from pathlib import Path
from contimg.queue import moves, tables
from contimg.store import db
path, first = Path(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + 50):
    group = f"2026-01-25T00:{number // 60:02d}:{number % 60:02d}"
    with db.writing(path, tables.Base) as session:
        session.add(tables.Group(group_id=group, state="collecting", received_at="", last_update="",
                                 expected_subbands=16, chunk_minutes=5, retry_count=0))
    for state in ("pending", "in_progress", "processing_fresh", "completed"):
        with db.writing(path, tables.Base) as session:
            moves.move(session, group, state)
"""


def test_two_writers_and_a_reader_at_once(database, figure):
    """Two processes make the database and 250 transactions each; a reader sees whole transactions,
    and never waits."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(database), str(n)]) for n in (0, 50)
    ]
    waits = []
    while any(writer.poll() is None for writer in writers):
        begin = time.perf_counter()
        with db.reading(database) as session:
            if session is not None:
                completed = session.execute(
                    text("SELECT count(*) FROM ingest_queue WHERE state = 'completed'")
                ).scalar()
                moves = session.execute(
                    text("SELECT count(*) FROM ingest_history WHERE state_to = 'completed'")
                ).scalar()
                assert completed == moves
        waits.append(time.perf_counter() - begin)
    assert [writer.returncode for writer in writers] == [0, 0]
    with db.reading(database) as session:
        assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        counted = session.execute(
            text("SELECT state, count(*) FROM ingest_queue GROUP BY state")
        ).all()
        assert [tuple(c) for c in counted] == [("completed", 100)]
        assert session.execute(text("SELECT count(*) FROM ingest_history")).scalar() == 400
    figure(
        f"queue: {len(waits)} reads beside two writers (500 transactions), longest "
        f"{max(waits) * 1e3:.0f} ms"
    )
