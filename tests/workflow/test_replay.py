"""Nights of arrivals against the real watcher, Snakemake, queue and plugin; only the science is a
stub."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from contimg.chain import STAGES
from tests.conftest import LONG, ROOT
from tests.workflow.conftest import BIN, Site, make_site
from tests.workflow.replay import Night

# The undisturbed replays are the shorter ones in CI; CONTIMG_REPLAY_GROUPS=300 gives them the same
# night as the other.
GROUPS = {0: int(os.environ.get("CONTIMG_REPLAY_GROUPS", 300 if LONG else 60)), 10: 300}
REAL = ("register.py",)  # writes the registry, from which later runs choose
INGEST = {
    "settle_s": 0.3,
    "poll_s": 1,
    "collecting_timeout_s": 15,
    "retry_backoff_s": 1,
    "groups_per_run": 24,
}


def stub_workflow(folder: Path) -> Path:
    """The project's own Snakefile and rules, with other scripts."""
    for name in ("rules", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "scripts").mkdir()
    for script in (ROOT / "scripts").glob("*.py"):
        content = script if script.name in REAL else ROOT / "tests" / "workflow" / "stub_stage.py"
        shutil.copy(content, folder / "scripts" / script.name)
    # stubs need no more
    one_thread = "".join(
        f"  {rule}: 1\n" for rule in ("convert", "concat", "prepare", "solve", "apply", "image")
    )
    profile = (
        (ROOT / "profiles" / "local" / "config.yaml").read_text().replace("cores: all", "cores: 4")
    )
    (folder / "config.yaml").write_text(f"{profile}set-threads:\n{one_thread}")
    return folder / "Snakefile"


def rows(site: Site, query: str) -> list[tuple]:
    if not site.paths.ingest_db.exists():
        return []
    with closing(
        sqlite3.connect(f"file:{site.paths.ingest_db}?mode=rw", uri=True, timeout=30)
    ) as connection:
        return connection.execute(query).fetchall()


class Watch:
    """The watcher as a process, with its log."""

    def __init__(self, site: Site, snakefile: Path, log: Path):
        self.site, self.log = site, log
        self.command = [
            BIN / "contimg",
            "watch",
            "--configfile",
            site.configfile,
            "--snakefile",
            snakefile,
        ]
        self.command += ["--profile", snakefile.parent]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def snakemake(self) -> int | None:
        """The Snakemake at work, whoever started it, from its first moment on (its jobs are other
        programs)."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"snakemake" in words and str(self.site.configfile).encode() in words:
                        return int(entry.name)
        return None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "incoming").mkdir()
    return make_site(
        tmp_path / "site", tmp_path / "incoming", ingest=INGEST, conversion={"staging": "disk"}
    )


def until(night: Night, site: Site, watch: Watch, deadline_s: float) -> dict[str, tuple[str, str]]:
    """Wait for the states that must come; returns those that are."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        time.sleep(1)
        assert watch.process.poll() is None, watch.log.read_text()[-3000:]
        found = {
            g: (state, error or "")
            for g, state, error in rows(site, "SELECT group_id, state, error FROM ingest_queue")
        }
        if {g: s for g, (s, _) in found.items()} == {g: s for g, (s, _) in night.expected.items()}:
            break
    return found


def check(night: Night, site: Site, found: dict) -> Counter:
    """Every group in its state with its reason; one result and one row for each that is complete;
    nothing twice."""
    differ = {
        g: (found.get(g), want)
        for g, want in night.expected.items()
        if found.get(g, ("",))[0] != want[0]
    }
    assert not differ
    assert found.keys() == night.expected.keys()
    for group, (state, words) in night.expected.items():
        assert words in found[group][1], group
        assert state == "failed" or not found[group][1]
    completed = {g for g, (state, _) in night.expected.items() if state == "completed"}
    results = {
        p.name.removesuffix(".index.json") for p in site.paths.products.glob("results/*.index.json")
    }
    assert results == completed
    performance = rows(
        site, "SELECT group_id, stages, writer_type FROM performance_metrics WHERE total_time > 0"
    )
    assert {p[0] for p in performance} >= completed
    assert all(json.loads(p[1]).keys() <= set(STAGES) and p[2] == "stub" for p in performance)
    counted = rows(
        site, "SELECT group_id, count(*) FROM subband_files WHERE reason IS NULL GROUP BY group_id"
    )
    assert {g for g, n in counted if n == 16} >= completed
    ended = set()
    for line in (site.configfile.parent / "journal").read_text().splitlines():
        what, group, stage = line.split()
        assert (group, stage) not in ended, f"{group}: {stage} had ended, and then: {what}"
        ended |= {(group, stage)} if what == "end" else set()
    stages = set(STAGES) - {"solve", "register"}
    for group in completed:
        assert {s for s in stages if site.paths.result(group, s).exists()} == stages
    return Counter(state for state, _ in found.values())


@pytest.mark.parametrize(
    ("kills", "failing"),
    [
        pytest.param(0, 0.0, id="undisturbed", marks=pytest.mark.long),
        pytest.param(10, 0.0, id="killed-ten-times", marks=pytest.mark.long),
        pytest.param(0, 0.05, id="twentieth-fails", marks=pytest.mark.long),
    ],
)
def test_a_replay(site, tmp_path, figure, kills, failing):
    night = Night(tmp_path / "incoming", GROUPS[kills], seed=7 + kills)
    always, once = (
        g for g, (state, _) in list(night.expected.items())[5:60:40] if state == "completed"
    )
    night.expected[always] = ("failed", "image: ImagingError: the stub was told to fail")
    (site.configfile.parent / "fails_always").write_text(always)
    (site.configfile.parent / "fails_once").write_text(once)
    good = [
        g
        for g, (state, _) in night.expected.items()
        if state == "completed" and g not in (always, once)
    ]
    in_convert = good[3 :: round(1 / failing)] if failing else []
    night.expected |= dict.fromkeys(
        in_convert, ("failed", "convert: ImagingError: the stub was told to fail")
    )
    (site.configfile.parent / "fails_in_convert").write_text("\n".join(in_convert))
    watch = Watch(site, stub_workflow(tmp_path / "workflow"), tmp_path / "watch.log")
    begin = time.monotonic()
    watch.start()
    arriving = night.play()
    chance, killed = random.Random(kills), Counter()
    for number in range(kills):
        time.sleep(chance.uniform(3, 22))
        if number % 2:
            while (run := watch.snakemake()) is None and time.monotonic() < begin + 300:
                time.sleep(0.05)
            os.kill(run, signal.SIGKILL)
            killed["snakemake"] += 1
        else:
            watch.process.kill()
            watch.process.wait()
            killed["watcher"] += 1
            watch.start()
    arriving.join()
    found = until(night, site, watch, deadline_s=420)
    seconds = time.monotonic() - begin
    second = subprocess.run(watch.command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "another watcher is at work" in second.stderr
    assert watch.stop() == 0
    states = check(night, site, found)
    tried = dict(
        rows(
            site,
            "SELECT group_id, count(*) FROM ingest_history WHERE state_to = 'in_progress' "
            "GROUP BY 1",
        )
    )
    assert tried[always] >= 4
    assert tried[once] >= 2
    assert watch.snakemake() is None
    runs = len(list(site.paths.products.glob("logs/runs/*.log")))
    fates = ", ".join(f"{n} {fate}" for fate, n in night.counts.items())
    failed = f"{len(in_convert)} failing in convert"
    figure(
        f"replay, {kills} kills ({dict(killed)}), {failed}: {GROUPS[kills]} groups in "
        f"{seconds:.0f} s, {runs} runs"
    )
    figure(f"  {dict(states)}: {fates}")


@pytest.fixture
def quiet_night(tmp_path):
    """Three groups without trouble, the first of them a calibrator's; the files are there
    already."""
    night = Night(tmp_path / "incoming", 3, seed=1, trouble=False)
    night.events = [(0.0, *event[1:]) for event in night.events]
    night.play().join()
    return night


def test_sigterm_finishes_the_running_job_and_loses_nothing(site, tmp_path, quiet_night):
    first, *_ = sorted(quiet_night.expected)
    journal = site.configfile.parent / "journal"
    (site.configfile.parent / "slow").write_text(first)
    watch = Watch(site, stub_workflow(tmp_path / "workflow"), tmp_path / "watch.log")
    watch.start()
    while not (journal.exists() and f"begin {first} concat" in journal.read_text()):
        assert watch.process.poll() is None
        time.sleep(0.1)
    (job,) = rows(
        site,
        "SELECT state, running_stage, retry_count, owner FROM ingest_queue WHERE group_id = "
        f"'{first}'",
    )
    assert job[:3] == ("processing_fresh", "concat", 0)
    now = json.loads(site.contimg("status", "--json").stdout)
    assert [(j["group"], j["stage"], j["alive"]) for j in now["running"]] == [
        (first, "concat", True)
    ]
    assert now["watcher"]["groups"]
    assert watch.stop() == 0
    lines = journal.read_text().splitlines()
    assert lines[-1] == f"end {first} concat"  # it ended, and nothing was begun after it
    assert watch.snakemake() is None
    (row,) = rows(
        site, f"SELECT state, retry_count, owner FROM ingest_queue WHERE group_id = '{first}'"
    )
    assert row == ("pending", 0, None)
    (site.configfile.parent / "slow").unlink()
    watch.start()
    found = until(quiet_night, site, watch, 60)
    watch.stop()
    check(quiet_night, site, found)
    assert any(
        f"group {first} resumes after concat" in log.read_text()
        for log in site.paths.products.glob("logs/runs/*")
    )


@pytest.mark.long
def test_a_broken_workflow_costs_no_group_an_attempt_a_poisonous_group_only_itself(
    site, tmp_path, quiet_night
):
    poison = max(quiet_night.expected)
    snakefile = stub_workflow(tmp_path / "workflow")
    whole = snakefile.read_text()
    snakefile.write_text("raise WorkflowError('broken')\n" + whole)
    watch = Watch(site, snakefile, tmp_path / "watch.log")
    watch.start()
    deadline = time.monotonic() + 60
    while watch.log.read_text().count("the run ended before it began") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert set(rows(site, "SELECT state, retry_count FROM ingest_queue")) == {("pending", 0)}
    assert (
        "runs ended before they began; see"
        in json.loads(site.contimg("status", "--json").stdout)["watcher"]["problem"]
    )
    snakefile.write_text(
        f"if any({poison!r} in word for word in __import__('sys').argv): raise WorkflowError('x')\n"
        + whole
    )
    quiet_night.expected[poison] = ("failed", "no run begins with this group")
    found = until(quiet_night, site, watch, 150)
    watch.stop()
    check(quiet_night, site, found)
