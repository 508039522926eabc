"""A stage's process: its last words, whatever ends it; and its end when the run has gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contimg.config import Config, IngestConfig, PathsConfig
from contimg.errors import CalibrationError, ProductError, is_full
from contimg.paths import Paths
from contimg.queue import tables as queue_tables
from contimg.queue.planning import make_plans
from contimg.runs import run
from contimg.store import db
from contimg.store.files import found_json, publish, read_json, replacing, set_mark, write_json
from tests.conftest import CALIBRATOR_START, ROOT, session_of
from tests.workflow.conftest import until

GROUP = CALIBRATOR_START
SCRIPT = f"""
import os, signal, sys, time
from pathlib import Path
from contimg.config import from_mapping
from contimg.errors import *
from contimg.paths import Paths
from contimg.stages.job import Job, run_job
folder, work = sys.argv[1:]
paths = {{"products": folder + "/products", "state": folder + "/state"}}
config = from_mapping({{"paths": paths}})
def do(job):
    exec(work, globals() | {{"job": job}})
    return {{"found": 1}}
run_job(Job("prepare", "{GROUP}", config, Paths.of(config), Path(folder) / "log"), do)
"""


@pytest.fixture
def paths(tmp_path):
    return Paths.of(
        Config(paths=PathsConfig(products=tmp_path / "products", state=tmp_path / "state"))
    )


@pytest.fixture
def start(tmp_path):
    def begin(work, run_pid=None):
        environment = (
            os.environ
            | {"CONTIMG_RUN_ID": "this run"}
            | ({"CONTIMG_RUN_PID": str(run_pid)} if run_pid else {})
        )
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), work]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    return begin


def test_a_stage_that_succeeds_leaves_its_result_and_no_note(start, paths):
    job = start("print('hello'); os.system('echo from a program >&2')")
    assert job.wait() == 0
    assert read_json(paths.result(GROUP, "prepare"))["found"] == 1
    assert not paths.error(GROUP).exists()
    log = (paths.products.parent / "log").read_text()
    assert "hello" in log
    assert "from a program" in log
    assert "prepare: done in" in log


@pytest.mark.parametrize(
    ("work", "words", "permanent", "waits_for"),
    [
        ("raise CalibrationError('no')", "CalibrationError: no", False, None),
        ("raise SubbandError('bad file')", "SubbandError: bad file", True, None),
        ("raise NoCalibrationError('none')", "NoCalibrationError: none", False, "calibration"),
        ("raise StorageError('full')", "StorageError: full", False, "room"),
        ("raise OSError(122, 'Disk quota exceeded')", "Disk quota exceeded", False, "room"),
        (
            "raise RuntimeError('TiledFile: No space left on device')",
            "No space left on device",
            False,
            "room",
        ),
        # C++
        (
            "os.write(2, b'C++: No space left on device'); os.abort()",
            "StorageError: no room, or no quota",
            False,
            "room",
        ),
        (
            "os.write(2, b'terminate called: stack\\n'); os.abort()",
            "ended by a library: terminate called: stack",
            False,
            None,
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "ended without a word (killed, or out of memory?; SIGKILL)",
            False,
            None,
        ),
        ("os._exit(3)", "ended without a word (killed, or out of memory?)", False, None),
    ],
)
def test_whatever_ends_a_stage_it_is_said(start, paths, work, words, permanent, waits_for):
    """K24, K25: also where C++ aborts on a full disk, and where nobody can say a word any more."""
    job = start(work)
    _, said = job.communicate()
    assert job.returncode != 0
    assert f"group {GROUP}, prepare: " in said
    note = read_json(paths.error(GROUP))
    assert words in note["error"]
    assert (note["stage"], note["run"], note["permanent"], note["waits_for"]) == (
        "prepare",
        "this run",
        permanent,
        waits_for,
    )
    assert Path(note["log"]).exists()
    assert not paths.result(GROUP, "prepare").exists()


def test_a_stage_and_its_programs_end_with_their_run_and_leave_no_word(start, paths, tmp_path):
    """K36: nobody is killed by a number that may be another's by now."""
    snakemake = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    job = start(
        f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); os.system('sleep 601')",
        run_pid=snakemake.pid,
    )
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the stage began")
    child = int((tmp_path / "pid").read_text())
    before = read_json(paths.error(GROUP))
    snakemake.kill()
    snakemake.wait()
    assert job.wait(20) != 0
    until(lambda: not Path(f"/proc/{child}").exists(), "its child is gone")
    assert "sleep\x00601" not in "".join(
        p.read_text() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()
    )
    assert read_json(paths.error(GROUP)) == before  # the next run has its own
    assert "killed, or out of memory" in before["error"]


def test_a_job_that_is_killed_takes_its_work_with_it(start, tmp_path):
    job = start(f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(600)")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the stage began")
    child = int((tmp_path / "pid").read_text())
    job.send_signal(signal.SIGKILL)
    job.wait()
    until(lambda: not Path(f"/proc/{child}").exists(), "its child is gone")


@pytest.fixture
def begun(tmp_path, make_group):
    """A run that has begun, here or on a cluster."""
    make_group(folder="incoming", start=GROUP, antennas=4, channels=1, integrations=2)
    where = PathsConfig(
        incoming=tmp_path / "incoming", products=tmp_path / "products", state=tmp_path / "state"
    )
    config, runs = Config(paths=where, ingest=IngestConfig(settle_s=0)), []

    def begin(cluster=False):
        plans = make_plans(config, time.time())
        begun_by = session_of(config, plans, cluster=cluster)
        one = run.Run(begun_by, {GROUP: []}, lambda _: None, "x" if cluster else "")
        one.begin()
        runs.append(one)
        return one

    yield begin
    for one in runs:
        one.end()


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize(
    ("waits_for", "spent"), [("calibration", (0, 0)), ("room", (0, 1)), (None, (1, 1))]
)
def test_attempts_are_spent_only_by_what_is_the_groups(begun, cluster, waits_for, spent):
    """K24, K26: not by a full disk here, nor for want of a calibration anywhere."""
    one = begun(cluster)
    one.job_started(GROUP, "convert")
    note = {
        "stage": "image",
        "error": "words",
        "permanent": False,
        "waits_for": waits_for,
        "run": one.id,
        "log": "l",
    }
    write_json(one.paths.error(GROUP), note)
    one.job_failed(GROUP, "convert")
    with db.reading(one.paths.ingest_db) as session:
        row = session.get(queue_tables.Group, GROUP)
        assert (row.state, row.retry_count, row.error) == (
            "pending",
            spent[cluster],
            "image: words",
        )


def test_the_note_of_another_run_says_nothing(begun):
    """K38: whatever a node's clock says."""
    one = begun()
    one.job_started(GROUP, "convert")
    write_json(
        one.paths.error(GROUP),
        {"stage": "image", "error": "old", "permanent": True, "run": "another", "at": "9999"},
    )
    one.job_failed(GROUP, "convert")
    with db.reading(one.paths.ingest_db) as session:
        assert "convert ended without a word" in session.get(queue_tables.Group, GROUP).error


def test_json_is_whole_or_not_there(tmp_path, monkeypatch):
    """K21: on disk before it has its name; what cannot be read is named, or as if it were not
    there."""
    path, synced = tmp_path / "a" / "x.json", []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
    )
    write_json(path, {"a": 1})
    assert synced == [str(path.with_name(".x.json.partial")), str(path.parent)]
    assert read_json(path) == {"a": 1}
    for content in (b"", bytes(40), path.read_bytes()[:7], b"[1]", b"\xff\xfe"):
        path.write_bytes(content)
        assert found_json(path) is None
        with pytest.raises(ProductError, match=str(path)):
            read_json(path)
    assert found_json(tmp_path / "none.json") is None


def test_a_folder_gets_its_name_when_all_of_it_is_on_disk(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), real(fd)),
    )
    for _ in range(2):  # the second replaces the first
        with replacing(tmp_path / "table") as partial:
            (partial / "sub").mkdir(parents=True)
            (partial / "sub" / "data").write_text("x")
    assert {"data", "sub", ".table.partial", tmp_path.name} <= set(synced)

    def fails():
        with replacing(tmp_path / "other") as partial:
            partial.mkdir()
            raise CalibrationError

    with pytest.raises(CalibrationError):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["table"]
    set_mark(tmp_path / "mark")
    publish(tmp_path / "mark", tmp_path / "kept")
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "words",
    ["[Errno 28] No space left on device", "Disk quota exceeded", "database or disk is full"],
)
def test_a_full_disk_is_known_by_its_words(words):
    assert is_full(RuntimeError(words))
    assert not is_full(RuntimeError("no such file"))
