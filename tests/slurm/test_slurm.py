"""`snakemake --profile slurm` and `contimg backlog` on a real SLURM, whose jobs have a /dev/shm of their own.

Needs root and Debian's slurm packages (start-slurm.sh installs them); one cluster for all tests.
"""

import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from contimg import cluster, ingest
from contimg.simulate import Simulation, simulate_group
from contimg.stage import read_json
from tests.conftest import CALIBRATOR_START, ROOT, STATIONS, TARGET_START
from tests.workflow import conftest
from tests.workflow.conftest import BIN, SMALL_IMAGES, Site, make_site

HERE = Path(__file__).parent
until = partial(conftest.until, seconds=240)  # a job waits for a node, and runs for a minute
NEXT_DAY = {"2026-03-03T19:59:14": 31, "2026-03-03T20:14:41": 32, "2026-03-03T20:19:50": 33}  # a sidereal day later
FIRST_DAY = {CALIBRATOR_START: 21, TARGET_START: 22, "2026-03-02T20:23:46": 24}
JOBS = "/var/lib/onenode-slurm/log/jobcomp.txt"
NODE_MB, TOO_LITTLE_MB = 16000, 400


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node with 4 CPUs; its daemon, and so its jobs, have a /dev/shm that nobody else sees."""
    if os.getuid():
        pytest.skip("NOT TESTED with a real SLURM: needs root")
    Path(JOBS).unlink(missing_ok=True)
    start = f"mount -t tmpfs -o size=8g tmpfs /dev/shm && {HERE}/start-slurm.sh --cpus 4 --mem {NODE_MB} --clean"
    started = subprocess.run(["unshare", "-m", "bash", "-c", start], capture_output=True, text=True, timeout=300)
    if started.returncode:
        pytest.skip(f"NOT TESTED with a real SLURM: {started.stderr.strip().splitlines()[-1:]}")
    yield
    subprocess.run([HERE / "stop-slurm.sh"], timeout=120, check=True)


@pytest.fixture(scope="module")
def incoming(tmp_path_factory, sky, compact_stations):
    folder = tmp_path_factory.mktemp("incoming")
    for start, seed in (FIRST_DAY | NEXT_DAY).items():
        options = {"channels": 2, "gain_seed": 3, "stations": compact_stations, "integrations": 12}
        simulate_group(folder, Simulation(start=start, seed=seed, **options), sky, STATIONS)
    return folder


@pytest.fixture
def site(slurm, tmp_path, incoming):
    """The six groups, the project's profile, and what this small node needs otherwise."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    profile["default-resources"] |= {"slurm_partition": "main", "runtime": 15}
    profile |= {"set-threads": {"convert": 2, "concat": 1, "image": 1, "prepare": 1, "solve": 1, "apply": 1}, "latency-wait": 10}
    profile |= {"slurm-init-seconds-before-status-checks": 3}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    small = {"imsize": 1024, "cell_arcsec": 12.0}
    site = make_site(tmp_path / "site", incoming, imaging=SMALL_IMAGES | small, ingest={"retry_backoff_s": 1, "max_retries": 1})
    return site


def command(site: Site, profile: str = "profile") -> list[str]:
    folder = site.configfile.parent.parent / profile
    return [
        str(BIN / "contimg"),
        "backlog",
        "2026-03-02",
        "2026-03-04",
        "--profile",
        str(folder),
        "--configfile",
        str(site.configfile),
    ]


def backlog(site: Site, profile: str = "profile") -> subprocess.CompletedProcess:
    return subprocess.run(command(site, profile), cwd=ROOT, capture_output=True, text=True, timeout=1200)


def jobs(site: Site) -> list[dict]:
    """Every SLURM job of this site so far: its group, how it ended, and when it ran."""
    log = Path(JOBS).read_text().splitlines()
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in log]
    return [job for job in found if job["Name"].startswith(cluster.job_prefix(site.paths))]


def states(site: Site) -> dict[str, str]:
    return {group: status.state for group, status in ingest.known_groups(site.paths.ingest_db, files=False).items()}


def on_the_node(*what: str) -> str:
    pid = Path("/run/onenode-slurm/slurmd.node1.pid").read_text().strip()
    return subprocess.run(["nsenter", "-t", pid, "-m", *what], capture_output=True, text=True, check=True).stdout


def of_group(site: Site, group: str) -> dict:
    image = read_json(site.paths.result(group, "image"))
    return {k: image[k] for k in ("rms_jy", "peak_jy", "beam_major_arcsec", "verdict", "config", "science")}


def test_two_days_are_imaged_as_they_would_be_here(site, tmp_path, incoming, figure):
    """One job a target, two a calibrator group; nothing is left on the node; the same images as on one machine."""
    begin = time.perf_counter()
    outcome = backlog(site)
    figure(f"SLURM: six groups in {time.perf_counter() - begin:.0f} s, 4 CPUs claimed of {os.cpu_count()}")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.strip().splitlines()[-1] == "6 completed"
    ended = jobs(site)
    assert len(ended) == 2 * 2 + 4
    assert {job["JobState"] for job in ended} == {"COMPLETED"}
    assert not [name for name in on_the_node("ls", "/dev/shm").split() if site.paths.tag in name]
    assert not any(root.exists() for root in site.paths.staging_roots().values())
    for group, calibrator in zip(sorted(FIRST_DAY | NEXT_DAY), [CALIBRATOR_START] * 3 + [min(NEXT_DAY)] * 3, strict=True):
        assert read_json(site.paths.result(group, "caltables"))["set_name"] == calibrator
        results = [read_json(path) for path in site.paths.result(group, "x").parent.glob(f"{group}.*.json")]
        assert len({result["run"] for result in results}) == 1
    again = backlog(site)
    assert (again.returncode, len(jobs(site))) == (0, len(ended))
    here = make_site(tmp_path / "here", incoming, imaging=site.config.imaging.model_dump(mode="json"))
    targets = [str(here.paths.result(group, "index")) for group in (CALIBRATOR_START, TARGET_START)]
    local = here.snakemake("--", *targets)
    assert local.returncode == 0, local.stderr
    for group in (CALIBRATOR_START, TARGET_START):
        one, other = of_group(site, group), of_group(here, group)
        assert one.pop("peak_jy") == pytest.approx(other.pop("peak_jy"), rel=1e-5)
        assert one.pop("rms_jy") == pytest.approx(other.pop("rms_jy"), rel=1e-4)
        assert one.pop("beam_major_arcsec") == pytest.approx(other.pop("beam_major_arcsec"), rel=1e-5)
        assert one == other
    assert site.contimg("verify").returncode == 0


def test_cancelled_jobs_and_a_killed_submitter_lose_nothing_and_do_nothing_twice(site, tmp_path):
    """scancel of a running job, then kill -9 of everything on the submitting host while jobs run; then once more."""
    with (tmp_path / "first.log").open("w") as log:
        subprocess.Popen(command(site), cwd=ROOT, stdout=log, stderr=log)
    cancelled = until(lambda: cluster.left_jobs(site.paths), "a job")[0]
    until(lambda: list((site.paths.products / "logs" / "convert").glob("*.log")), "it has begun")
    subprocess.run(["scancel", cancelled], check=True)
    until(lambda: any(status.retry_count for status in ingest.known_groups(site.paths.ingest_db, files=False).values()),
          "the attempt is counted")  # fmt: skip
    until(lambda: len(cluster.left_jobs(site.paths)) >= 1 and list(site.paths.products.glob("results/*.apply.json")), "more jobs")
    subprocess.run(["pkill", "-KILL", "-f", str(tmp_path / "profile")], check=True)  # backlog and Snakemake, not its jobs
    left = cluster.left_jobs(site.paths)
    assert left
    assert {"in_progress", "processing_fresh"} & set(states(site).values())
    second = backlog(site)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "left of a run that died: cancelled" in second.stdout + second.stderr
    assert set(states(site).values()) == {"completed"}
    ended = jobs(site)
    assert {job["JobState"] for job in ended if job["JobId"] in {cancelled, *left}} == {"CANCELLED"}
    # The left jobs ended before the second submitter's began.
    last_end = max(job["EndTime"] for job in ended if job["JobId"] in left)
    assert all(job["StartTime"] >= last_end for job in ended if int(job["JobId"]) > max(map(int, left)))
    assert site.contimg("verify").returncode == 0
    assert not [name for name in on_the_node("ls", "/dev/shm").split() if site.paths.tag in name]


def test_a_job_over_its_memory_fails_with_a_reason_and_more_memory_mends_it(site, tmp_path):
    """Both attempts fail for want of memory, and the reason says so; with the usual memory an operator's retry succeeds."""
    profile = yaml.safe_load((tmp_path / "profile" / "config.yaml").read_text())
    rules = ("convert", "concat", "prepare", "solve", "apply", "image", "qa")
    profile["set-resources"] = {rule: {"mem_mb": TOO_LITTLE_MB} for rule in rules}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.yaml").write_text(yaml.safe_dump(profile))
    only = [*command(site, "small"), "--groups", str(tmp_path / "only")]
    (tmp_path / "only").write_text(CALIBRATOR_START)
    outcome = subprocess.run(only, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 1, outcome.stdout
    assert outcome.stdout.strip().splitlines()[-1] == "1 failed"
    why = json.loads(site.contimg("why", CALIBRATOR_START, "--json").stdout)
    assert "out of memory?" in why["error"]
    assert site.contimg("retry", CALIBRATOR_START).returncode == 0
    outcome = subprocess.run([*command(site), *only[-2:]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert states(site)[CALIBRATOR_START] == "completed"
    assert set(states(site).values()) <= {"completed", "pending", "collecting"}  # the others were not asked for
