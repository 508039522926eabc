"""`snakemake --profile slurm` and `contimg backlog` on a real SLURM, whose jobs have a /dev/shm of
their own.

Needs root and Debian's slurm packages (start-slurm.sh installs them); one cluster for all tests.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from casacore.tables import table

from contimg.queue import moves
from contimg.runs import slurm as slurm_jobs
from contimg.simulate import Simulation, simulate_group
from contimg.store.files import read_json
from tests.conftest import CALIBRATOR_START, ROOT, STATIONS, TARGET_START
from tests.workflow import conftest
from tests.workflow.conftest import BIN, SMALL_IMAGES, Site, make_site

HERE = Path(__file__).parent
until = partial(conftest.until, seconds=240)  # a job waits for a node, and runs for a minute
# a sidereal day later
NEXT_DAY = {"2026-03-03T19:59:14": 31, "2026-03-03T20:14:41": 32, "2026-03-03T20:19:50": 33}
FIRST_DAY = {CALIBRATOR_START: 21, TARGET_START: 22, "2026-03-02T20:23:46": 24}
JOBS = "/var/lib/onenode-slurm/log/jobcomp.txt"
OTHERWISE = {
    "id",
    "at",
    "owner",
    "received_at",
    "last_update",
    "recorded_at",
    "created_at",
    "processed_at",
    "stage_updated_at",
    "load_time",
    "phase_time",
    "write_time",
    "total_time",
    "stages",
    # of files: casacore leaves some bytes of a table unset
    "checksum",
    "cal_checksums",
    "bytes",
}
NODE_MB, TOO_LITTLE_MB = 16000, 400
NODE = "contimg-node"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node with 4 CPUs. It is another host: it has a name and a /dev/shm of its
    own, and does not see the folder that is given, on a local disk of this one."""
    if os.getuid():
        pytest.skip("NOT TESTED with a real SLURM: needs root")
    Path(JOBS).unlink(missing_ok=True)
    here = tmp_path_factory.mktemp("local")
    start = (
        f"hostname {NODE} && mount -t tmpfs -o size=8g tmpfs /dev/shm && mount -t tmpfs tmpfs "
        f"{here} && "
    )
    start += f"{HERE}/start-slurm.sh --cpus 4 --mem {NODE_MB} --clean"
    started = subprocess.run(
        ["unshare", "-m", "-u", "bash", "-c", start], capture_output=True, text=True, timeout=300
    )
    if started.returncode:
        pytest.skip(f"NOT TESTED with a real SLURM: {started.stderr.strip().splitlines()[-1:]}")
    yield here
    subprocess.run([HERE / "stop-slurm.sh"], timeout=120, check=True)


@pytest.fixture(scope="module")
def incoming(tmp_path_factory, sky, compact_stations):
    folder = tmp_path_factory.mktemp("incoming")
    for start, seed in (FIRST_DAY | NEXT_DAY).items():
        options = {"channels": 2, "gain_seed": 3, "stations": compact_stations, "integrations": 12}
        simulate_group(folder, Simulation(start=start, seed=seed, **options), sky, STATIONS)
    return folder


@pytest.fixture
def profile(tmp_path):
    """The project's profile, and what this small node needs otherwise."""
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    profile["default-resources"] |= {"slurm_partition": "main", "runtime": 15}
    profile |= {
        "set-threads": {
            "convert": 2,
            "concat": 1,
            "image": 1,
            "prepare": 1,
            "solve": 1,
            "apply": 1,
        },
        "latency-wait": 10,
    }
    profile |= {"slurm-init-seconds-before-status-checks": 3}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    return tmp_path / "profile"


@pytest.fixture
def site(slurm, tmp_path, incoming, profile):
    """The six groups."""
    small = {"imsize": 1024, "cell_arcsec": 12.0}
    site = make_site(
        tmp_path / "site",
        incoming,
        imaging=SMALL_IMAGES | small,
        ingest={"retry_backoff_s": 1, "max_retries": 1},
    )
    values = yaml.safe_load(site.configfile.read_text())
    values["paths"]["databases"] = str(slurm / tmp_path.name)
    site.configfile.write_text(yaml.safe_dump(values))
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
    return subprocess.run(
        command(site, profile), cwd=ROOT, capture_output=True, text=True, timeout=1200
    )


def names(site: Site) -> set[str]:
    """What the jobs of this site's runs were called."""
    snapshots = site.paths.run_snapshot("*-cluster")
    return {read_json(path)["jobs"] for path in snapshots.parent.glob(snapshots.name)}


def jobs(site: Site) -> list[dict]:
    """Every SLURM job of this site so far: its group, how it ended, and when it ran."""
    log = Path(JOBS).read_text().splitlines()
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in log]
    return [job for job in found if job["Name"] in names(site)]


def states(site: Site) -> dict[str, str]:
    return {
        group: status.state
        for group, status in moves.known_groups(site.paths.ingest_db, files=False).items()
    }


def on_the_node(*what: str) -> str:
    pid = Path("/run/onenode-slurm/slurmd.node1.pid").read_text().strip()
    return subprocess.run(
        ["nsenter", "-t", pid, "-m", *what], capture_output=True, text=True, check=True
    ).stdout


def content(site: Site, groups: tuple[str, ...]) -> dict[tuple, dict]:
    """Every row of the three databases that is about the groups, but for when, by which run and how
    fast it came to be; and for the plot of a set beside those that were registered before it, which
    another order leaves out."""
    found = {}
    for path in (site.paths.ingest_db, site.paths.registry_db, site.paths.products_db):
        with closing(sqlite3.connect(path)) as connection:
            connection.row_factory = sqlite3.Row
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                for row in map(dict, connection.execute(f"SELECT * FROM {table}").fetchall()):
                    if row.get("name") == "neighbours":
                        continue
                    if (group := row.get("group_id") or row.get("set_name")) in groups:
                        values = {k: v for k, v in row.items() if k not in OTHERWISE}
                        values |= {
                            k: v.replace(str(site.configfile.parent), "")
                            for k, v in values.items()
                            if isinstance(v, str)
                        }
                        found[
                            table,
                            group,
                            *(str(values.get(k)) for k in ("path", "state_from", "state_to")),
                        ] = values
    return found


def arrive(incoming: Path, folder: Path, group: str) -> list[Path]:
    """The files of a group in a folder of one's own."""
    end = (datetime.fromisoformat(group) + timedelta(seconds=120)).isoformat()
    files = [
        path
        for path in incoming.iterdir()
        if group <= path.name[:19] < end and path.suffix == ".hdf5"
    ]
    return [shutil.copy(path, folder) for path in files]


def small_site(folder: Path, **ingest_options) -> tuple[Site, Path]:
    """A site with an incoming folder of its own."""
    (folder / "arriving").mkdir(parents=True)
    small = SMALL_IMAGES | {"imsize": 1024, "cell_arcsec": 12.0}
    return make_site(
        folder / "own", folder / "arriving", imaging=small, ingest=ingest_options
    ), folder / "arriving"


def end_jobs(site: Site, how: list[str], state: str) -> str:
    """Have SLURM end the next job that runs, in some way; returns its number when an attempt was
    counted."""
    before = sum(
        status.retry_count
        for status in moves.known_groups(site.paths.ingest_db, files=False).values()
    )
    job = until(lambda: running(site), "a job runs")[0]
    subprocess.run([word.format(job=job) for word in how], check=True)
    until(lambda: {j["JobState"] for j in jobs(site) if j["JobId"] == job} == {state}, state)
    until(
        lambda: (
            sum(
                s.retry_count
                for s in moves.known_groups(site.paths.ingest_db, files=False).values()
            )
            > before
        ),
        "the attempt is counted",
    )
    return job


def running(site: Site) -> list[str]:
    """Numbers of the jobs that run on the node."""
    said = subprocess.run(
        ["squeue", "-h", "-t", "RUNNING", "-o", "%A %j"], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[0] for line in said.splitlines() if line.split()[1] in names(site)]


@pytest.mark.long
def test_two_days_are_imaged_as_they_would_be_here(slurm, site, tmp_path, incoming, figure):
    """One job a target, two a calibrator group; nothing is left on the node, which never sees a
    database; the same images as on one machine."""
    begin = time.perf_counter()
    outcome = backlog(site)
    figure(
        f"SLURM: six groups in {time.perf_counter() - begin:.0f} s, 4 CPUs claimed of "
        f"{os.cpu_count()}"
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.strip().splitlines()[-1] == "6 completed"
    ended = jobs(site)
    assert len(ended) == 2 * 2 + 4
    assert {job["JobState"] for job in ended} == {"COMPLETED"}
    assert not [name for name in on_the_node("ls", "/dev/shm").split() if site.paths.tag in name]
    assert not any(root.exists() for root in site.paths.staging_roots().values())
    for group, calibrator in zip(
        sorted(FIRST_DAY | NEXT_DAY), [CALIBRATOR_START] * 3 + [min(NEXT_DAY)] * 3, strict=True
    ):
        assert read_json(site.paths.result(group, "caltables"))["set_name"] == calibrator
        results = [
            read_json(path) for path in site.paths.result(group, "x").parent.glob(f"{group}.*.json")
        ]
        assert len({result["run"] for result in results}) == 1
        hosts = {result["stage"]: result["host"] for result in results}
        assert {hosts["convert"], hosts["image"]} == {NODE}
        assert {hosts["caltables"], hosts["index"]} == {os.uname().nodename}
    assert on_the_node("ls", str(slurm)) == ""
    assert (slurm / tmp_path.name / "ingest.sqlite3").exists()
    assert not list(site.paths.state.glob("*.sqlite3"))
    again = backlog(site)
    assert (again.returncode, len(jobs(site))) == (0, len(ended))
    here = make_site(
        tmp_path / "here", incoming, imaging=site.config.imaging.model_dump(mode="json")
    )
    targets = [str(here.paths.result(group, "index")) for group in (CALIBRATOR_START, TARGET_START)]
    local = here.snakemake("--", *targets)
    assert local.returncode == 0, local.stderr
    there, where = (content(one, (CALIBRATOR_START, TARGET_START)) for one in (site, here))
    assert there.keys() == where.keys()
    for key, values in there.items():
        for name, value in values.items():
            expected = where[key][name]  # threads add in another order
            assert value == (
                pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected
            ), (key, name)
    for group in (CALIBRATOR_START, TARGET_START):
        for column in ("CORRECTED_DATA", "FLAG", "WEIGHT_SPECTRUM"):
            with (
                table(str(site.paths.ms(group)), ack=False) as one,
                table(str(here.paths.ms(group)), ack=False) as other,
            ):
                assert np.array_equal(one.getcol(column), other.getcol(column))
    assert site.contimg("verify").returncode == 0


@pytest.mark.long
def test_live_groups_go_on_here_while_a_slice_is_on_the_cluster(slurm, site, tmp_path, incoming):
    """The watcher images a group that arrives in the meantime; a target of a calibrator that the
    cluster solves waits for it."""
    live = min(NEXT_DAY)
    own, folder = small_site(tmp_path / "live", poll_s=1, settle_s=0.5)
    for group in (CALIBRATOR_START, max(FIRST_DAY)):
        arrive(incoming, folder, group)
    there = [word.replace(str(site.configfile), str(own.configfile)) for word in command(site)]
    watcher = [str(BIN / "contimg"), "watch", "--configfile", str(own.configfile)]
    with (
        (tmp_path / "backlog.log").open("w") as log,
        (tmp_path / "watch.log").open("w") as watch_log,
    ):
        backlog = subprocess.Popen(there, cwd=ROOT, stdout=log, stderr=log)
        until(lambda: running(own), "a job runs")
        watch = subprocess.Popen(watcher, cwd=ROOT, stdout=watch_log, stderr=watch_log)
        try:
            until(own.paths.watcher.exists, "the watcher watches")
            arrive(incoming, folder, TARGET_START)  # its calibrator is being solved on the cluster
            arrive(incoming, folder, live)
            until(lambda: states(own).get(live) == "completed", "the live group is imaged")
            until(lambda: states(own).get(TARGET_START) == "completed", "the late target is imaged")
            assert backlog.wait(300) == 0, (tmp_path / "backlog.log").read_text()
        finally:
            backlog.terminate()
            watch.terminate()
            stopped = watch.wait(300)
    assert stopped == 0
    history = {
        group: json.loads(own.contimg("why", group, "--json").stdout)["history"]
        for group in states(own)
    }
    begun = {
        group: [move for move in done if move["state_to"] == "processing_fresh"]
        for group, done in history.items()
    }
    # none was done twice
    assert {group: len(done) for group, done in begun.items()} == dict.fromkeys(begun, 1)
    lanes = {group: moves.lane_of(done[0]["owner"]) for group, done in begun.items()}
    assert lanes[CALIBRATOR_START] == lanes[max(FIRST_DAY)] == "cluster"
    assert lanes[live] == "local"
    ended = [move["at"] for move in history[max(FIRST_DAY)] if move["state_to"] == "completed"]
    assert begun[live][0]["at"] < ended[0]  # at the same time
    assert read_json(own.paths.result(TARGET_START, "caltables"))["set_name"] == CALIBRATOR_START
    assert own.contimg("verify").returncode == 0


@pytest.mark.long
def test_jobs_that_end_in_any_way_and_a_killed_submitter_lose_nothing_and_do_nothing_twice(
    slurm, tmp_path, incoming, profile
):
    """A job fails, a running one is cancelled, another one loses its node; then kill -9 of
    everything on the submitting host while jobs run; then once more."""
    site, folder = small_site(tmp_path / "ends", retry_backoff_s=1, max_retries=4)
    for group in FIRST_DAY:
        arrive(incoming, folder, group)
    for path in arrive(incoming, folder, min(NEXT_DAY)):  # the correlator wrote no data
        with h5py.File(path, "r+") as file:
            file["Data/visdata"][...] = 0
    command = [
        str(BIN / "contimg"),
        "backlog",
        "2026-03-02",
        "2026-03-04",
        "--profile",
        str(profile),
    ]
    command += ["--configfile", str(site.configfile)]
    with (tmp_path / "first.log").open("w") as log:
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    cancelled = end_jobs(site, ["scancel", "{job}"], "CANCELLED")
    end_jobs(
        site, ["scontrol", "update", "NodeName=node1", "State=DOWN", "Reason=test"], "NODE_FAIL"
    )
    # it may be back by itself
    subprocess.run(["scontrol", "update", "NodeName=node1", "State=RESUME"], check=False)
    until(
        lambda: (
            len(slurm_jobs.left_jobs(site.paths)) >= 1
            and list(site.paths.products.glob("results/*.apply.json"))
        ),
        "more jobs",
    )
    # backlog and Snakemake, not its jobs
    subprocess.run(["pkill", "-KILL", "-f", str(tmp_path / "profile")], check=True)
    left = slurm_jobs.left_jobs(site.paths)
    assert left
    assert {"processing_fresh", "resuming"} & set(states(site).values())
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert second.returncode == 1, second.stdout + second.stderr
    assert second.stdout.strip().splitlines()[-1] in (
        "3 completed, 1 failed",
        "1 failed, 3 completed",
    )
    why = json.loads(site.contimg("why", min(NEXT_DAY), "--json").stdout)
    assert why["state"] == "failed"
    assert why["retry_count"] < 1 + 4  # another attempt could not help, so not all were made
    assert "every visibility is zero" in why["error"]
    assert "left of a run that died: cancelled" in second.stdout + second.stderr
    ended = jobs(site)
    assert {job["JobState"] for job in ended if job["JobId"] in {cancelled, *left}} == {"CANCELLED"}
    # The left jobs ended before the second submitter's began.
    last_end = max(job["EndTime"] for job in ended if job["JobId"] in left)
    assert all(
        job["StartTime"] >= last_end for job in ended if int(job["JobId"]) > max(map(int, left))
    )
    assert site.contimg("verify").returncode == 0
    assert not [name for name in on_the_node("ls", "/dev/shm").split() if site.paths.tag in name]


@pytest.mark.long
def test_a_job_over_its_memory_fails_with_a_reason_and_more_memory_mends_it(site, tmp_path):
    """Both attempts fail for want of memory, and the reason says so; with the usual memory an
    operator's retry succeeds."""
    profile = yaml.safe_load((tmp_path / "profile" / "config.yaml").read_text())
    rules = ("convert", "concat", "prepare", "solve", "apply", "image", "photometry", "qa")
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
    outcome = subprocess.run(
        [*command(site), *only[-2:]], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert states(site)[CALIBRATOR_START] == "completed"
    # the others were not asked for
    assert set(states(site).values()) <= {"completed", "pending", "collecting"}
