"""The logger plugin: events in the order in which Snakemake sends them, on one machine and for
fused SLURM jobs."""

import logging
import time

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from contimg.config import Config, IngestConfig, PathsConfig
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.queue.planning import make_plans
from contimg.runs import run
from contimg.store import db
from contimg.store.files import write_json
from snakemake_logger_plugin_contimg import LogHandler
from tests.conftest import CALIBRATOR_START, session_of

CHAIN = ("convert", "concat", "prepare")


@pytest.fixture
def current(tmp_path, make_group, monkeypatch):
    """A run that has begun, as the plugin sees it."""
    make_group(folder="incoming", start=CALIBRATOR_START, antennas=4, channels=1, integrations=2)
    paths = PathsConfig(
        incoming=tmp_path / "incoming", products=tmp_path / "products", state=tmp_path / "state"
    )
    config = Config(paths=paths, ingest=IngestConfig(settle_s=0))
    plans = make_plans(config, time.time())
    begun = run.Run(session_of(config, plans), {CALIBRATOR_START: []}, say=lambda text: None)
    begun.begin()
    monkeypatch.setattr(run, "current", begun)
    yield begun
    begun.end()


@pytest.fixture
def send():
    handler = LogHandler.__new__(LogHandler)
    handler.__post_init__()

    def emit(event, **fields):
        handler.emit(logging.makeLogRecord({"event": event, **fields}))

    return emit


def row(begun):
    with db.reading(begun.paths.ingest_db) as session:
        return session.get(queue_tables.Group, CALIBRATOR_START)


def info(send, number, rule):
    send(LogEvent.JOB_INFO, jobid=number, rule_name=rule, wildcards={"group": CALIBRATOR_START})


def test_jobs_one_by_one(current, send):
    for number, rule in enumerate(CHAIN):
        info(send, number, rule)
        assert row(current).running_stage == rule
        values = {"seconds": 2.5, "load_s": 1.0, "phase_s": 0.5, "write_s": 1.0, "writer": "w"}
        write_json(current.paths.result(CALIBRATOR_START, rule), values)
        send(LogEvent.JOB_FINISHED, job_id=number)
        assert row(current).processing_stage == rule
        with db.reading(current.paths.ingest_db) as session:
            seconds = session.get(queue_tables.Performance, CALIBRATOR_START)
            assert (seconds.load_time, seconds.total_time, seconds.writer_type) == (1.0, 2.5, "w")
    assert row(current).state == "processing_fresh"


def test_a_fused_chain_that_fails_in_its_middle(current, send):
    """A SLURM group job: all its jobs are announced at once, and all fail at once; the stages' own
    files say more."""
    for number, rule in enumerate(CHAIN):
        info(send, number, rule)
    write_json(current.paths.result(CALIBRATOR_START, "convert"), {"seconds": 1.0})
    words = {
        "stage": "concat",
        "error": "OSError: disk full",
        "permanent": False,
        "run": current.id,
    }
    write_json(current.paths.error(CALIBRATOR_START), words)
    for number, rule in enumerate(CHAIN):
        send(LogEvent.JOB_ERROR, jobid=number, rule_name=rule)
    found = row(current)
    assert (found.state, found.retry_count, found.error) == (
        "pending",
        1,
        "concat: OSError: disk full",
    )


def test_a_job_that_was_killed_from_outside(current, send):
    info(send, 1, "convert")
    send(LogEvent.JOB_ERROR, jobid=1, rule_name="convert")
    assert row(current).error.startswith(
        "convert ended without a word (killed, or out of memory?); see "
    )


def test_a_failure_whose_event_does_not_come_in_time_spends_an_attempt(current, send):
    info(send, 1, "convert")
    current.end()
    found = row(current)
    assert (found.state, found.retry_count) == ("pending", 1)
    assert "convert ended without a word" in found.error


def test_what_an_earlier_attempt_said_is_not_blamed(current, send):
    words = {
        "stage": "convert",
        "error": "SubbandError: long ago",
        "permanent": True,
        "at": "2026-01-01T00:00:00+00:00",
    }
    write_json(current.paths.error(CALIBRATOR_START), words)
    info(send, 1, "convert")
    send(LogEvent.JOB_ERROR, jobid=1)
    assert row(current).state == "pending"
    assert "without a word" in row(current).error


def test_a_full_disk_does_not_stop_the_science(current, send, monkeypatch, caplog):
    monkeypatch.setattr(
        current, "job_started", lambda *_: (_ for _ in ()).throw(OSError("No space left on device"))
    )
    info(send, 1, "convert")
    info(send, 2, "concat")
    assert caplog.text.count("the queue could not be updated: OSError: No space left") == 1


def test_a_run_that_lost_its_group_leaves_it_alone(current, send):
    """Suspended for longer than its lease: another run has the group now."""
    info(send, 1, "convert")
    with db.writing(current.paths.ingest_db, queue_tables.Base) as session:
        session.get(queue_tables.Group, CALIBRATOR_START).heartbeat = db.utc(0)
        assert moves.recover(session, lambda group: False, current.config.ingest, time.time()) == {
            CALIBRATOR_START: "pending"
        }
        moves.claim(session, CALIBRATOR_START, "another run")
        moves.start(session, CALIBRATOR_START, resuming=False)
    send(LogEvent.JOB_FINISHED, job_id=1)
    send(LogEvent.JOB_ERROR, jobid=1)
    current.end()
    found = row(current)
    assert (found.state, found.owner, found.processing_stage) == (
        "processing_fresh",
        "another run",
        None,
    )
