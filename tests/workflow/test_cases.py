"""What happens on operators' days, tried on a small site that real runs made. The numbers are those
of docs/cases.md."""

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from contimg.calibration import registry
from contimg.chain import STAGES
from contimg.paths import CHANGING_MARK
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.simulate import Simulation, simulate_group
from contimg.store import db
from contimg.store.files import holder_of, read_json
from tests.conftest import CALIBRATOR_START, ROOT, STATIONS, TARGET_START
from tests.workflow.conftest import BIN, Site, make_site, until

ZEROS, ODD = "2026-03-02T20:23:46", "2026-03-02T20:28:55"
SMALL = {"channels": 2, "integrations": 6, "gain_seed": 3, "skew_s": 20.0}
IMAGES = {"imsize": 512, "cell_arcsec": 16.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory, sky, compact_stations):
    """A calibrator, a target, a group of zeros, one with a station that has no place; all dated in
    the future. One run."""
    folder = tmp_path_factory.mktemp("cases")
    stations = compact_stations[::2]
    for number, start in enumerate((CALIBRATOR_START, TARGET_START, ZEROS, ODD)):
        paths = simulate_group(
            folder / "incoming",
            Simulation(start=start, seed=number, stations=stations, **SMALL),
            sky,
            STATIONS,
        )
        for path in paths if start in (ZEROS, ODD) else ():
            with h5py.File(path, "r+") as file:
                if start == ZEROS:
                    file["Data/visdata"][...] = 0
                else:
                    file["Header/antenna_positions"][stations[3] - 1] = np.nan
    for path in (folder / "incoming").iterdir():
        os.utime(path, (time.time() + 7200,) * 2)
    site = make_site(
        folder / "site", folder / "incoming", imaging=IMAGES, ingest={"retry_backoff_s": 0}
    )
    return site, site.snakemake()


@pytest.fixture
def site(made, tmp_path):
    """The site as that run left it; what a test does to it is undone."""
    site, _ = made
    folder, incoming = site.configfile.parent, site.paths.incoming
    for one in (folder, incoming):
        shutil.copytree(one, tmp_path / f"kept.{one.name}", symlinks=True)
    yield site
    for one in (folder, incoming):
        shutil.rmtree(one)
        shutil.copytree(tmp_path / f"kept.{one.name}", one, symlinks=True)


def states(site: Site) -> dict[str, tuple[str, int]]:
    with db.reading(site.paths.ingest_db) as session:
        return {
            row.group_id: (row.state, row.retry_count) for row in session.query(queue_tables.Group)
        }


def words(outcome: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def test_a_group_that_fails_in_convert_takes_nobody_with_it(made):
    """K9, K13, K15, K20: zeros, a station without a place, files dated in the future; the others
    are imaged."""
    site, outcome = made
    assert outcome.returncode == 1  # something failed
    assert "Traceback" not in outcome.stderr
    found = states(site)
    assert {g: s for g, (s, _) in found.items()} == {
        CALIBRATOR_START: "completed",
        TARGET_START: "completed",
        ZEROS: "failed",
        ODD: "failed",
    }
    rows = {g: s.error for g, s in moves.known_groups(site.paths.ingest_db, files=False).items()}
    assert "every visibility is zero" in rows[ZEROS]
    assert "take part and have no position" in rows[ODD]
    assert holder_of(site.paths.run_lock("local")) is None
    assert not any(root.exists() for root in site.paths.staging_roots().values())
    assert "remove" not in rows[ODD] + rows[ZEROS]


def test_touch_is_refused_and_changes_nothing(site):
    """K23."""
    site.contimg("reprocess", TARGET_START, "--from", "image")
    before = states(site)
    outcome = site.snakemake("--touch")
    assert outcome.returncode == 1
    assert "--touch would make stages done that are not: nothing was begun" in words(outcome)
    assert states(site) == before


def test_results_that_a_power_cut_left_are_made_again(site):
    """K21: named or as if they were not there; for their group only; made again by the next run
    that has to do with it."""
    contents = itertools.cycle(
        [lambda whole: b"", lambda whole: bytes(len(whole)), lambda whole: whole[: len(whole) // 2]]
    )

    def spoil(path):
        path.write_bytes(next(contents)(path.read_bytes()))

    site.contimg("reprocess", TARGET_START, "--from", "index")
    for stage in STAGES:
        if (path := site.paths.result(TARGET_START, stage)).exists():
            spoil(path)
    spoil(site.paths.error(ZEROS))
    for path in (*site.paths.state.glob("runs/*"), *site.paths.state.glob("configs/*")):
        spoil(path)
    site.paths.watcher.write_bytes(b"{")
    for command in (
        ["plan"],
        ["status"],
        ["incomplete"],
        ["why", CALIBRATOR_START],
        ["why", TARGET_START],
        ["registry", "stale"],
    ):
        outcome = site.contimg(*command)
        assert outcome.returncode == 0, words(outcome)
    outcome = site.contimg("verify")
    assert outcome.returncode == 1
    assert f"{site.paths.result(TARGET_START, 'image')} cannot be read: empty, or cut off" in words(
        outcome
    )
    dry = site.snakemake("-n")
    assert dry.returncode == 0, words(dry)
    assert f"{TARGET_START}: convert subbands" in dry.stdout + dry.stderr
    outcome = site.snakemake()
    assert outcome.returncode == 0, words(outcome)
    assert states(site)[TARGET_START] == ("completed", 0)
    assert site.contimg("verify").returncode == 0


def test_a_measurement_set_that_was_being_written_to_is_converted_again(site):
    """K22: killed while `apply` wrote weights: started again, no attempt lost."""
    site.contimg("reprocess", TARGET_START, "--from", "apply")
    (site.paths.ms(TARGET_START) / CHANGING_MARK).touch()
    dry = site.snakemake("-n")
    assert f"{TARGET_START}: convert subbands" in dry.stdout + dry.stderr
    assert site.snakemake().returncode == 0
    assert states(site)[TARGET_START] == ("completed", 0)


def test_what_keeps_every_run_from_beginning_is_said_once(site, made):
    """K27: a database of a newer contimg: status 78, in `status`, on the page and by the watcher;
    over when it is mended."""
    site.contimg("reprocess", TARGET_START, "--from", "index")
    with closing(sqlite3.connect(site.paths.products_db)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute("PRAGMA user_version = 99")
    outcome = site.snakemake()
    assert outcome.returncode == 78
    said = (
        f"{site.paths.products_db}: schema version 99, this contimg knows {version}. Use the "
        "contimg that wrote it."
    )
    assert said in words(outcome)
    assert states(site)[TARGET_START] == ("pending", 0)
    assert json.loads(site.contimg("status", "--json").stdout)["refused"]["error"] == said
    assert "the last run did not begin" in words(site.contimg("status"))
    watcher = subprocess.Popen(
        [BIN / "contimg", "watch", "--configfile", site.configfile],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = until(
            lambda: (json.loads(site.contimg("status", "--json").stdout)["watcher"] or {}).get(
                "problem"
            ),
            "said",
            60,
        )
        assert found == f"no run begins: {said}"
    finally:
        watcher.terminate()
        log = watcher.communicate(timeout=60)[1]
    assert log.count("no run begins") == 1
    assert states(site)[TARGET_START] == ("pending", 0)
    with closing(sqlite3.connect(site.paths.products_db)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    assert site.snakemake().returncode == 0
    assert json.loads(site.contimg("status", "--json").stdout)["refused"] is None


def test_another_set_is_chosen_in_one_run_though_the_raw_files_are_gone(site):
    """K28, K29: a set is retired, a target's own files were moved away: its tables and its image
    change, nothing else."""
    (calset,) = registry.active_sets(site.paths.registry_db)
    other = site.configfile.parent / "other"
    shutil.copytree(Path(calset.tables[0][1]).parent, other)
    tables = [f"--table={kind}={other / Path(path).name}" for kind, path in calset.tables]
    outcome = site.contimg("reprocess", TARGET_START, "--from", "apply")
    assert outcome.returncode == 0, words(outcome)
    outcome = site.contimg("registry", "retire", calset.name, "--reason", "swapped")
    assert outcome.returncode == 0, words(outcome)
    given = [
        "--mid-mjd",
        str(calset.mid_mjd),
        "--dec",
        str(calset.app_dec_deg),
        "--cal-field",
        "3C454.3",
        "--flux-scale",
        "other",
    ]
    outcome = site.contimg("registry", "import", "theirs", *tables, *given)
    assert outcome.returncode == 0, words(outcome)
    for path in site.paths.incoming.iterdir():
        if TARGET_START <= path.name < ZEROS:
            path.unlink()
    before = {
        stage: read_json(site.paths.result(TARGET_START, stage))["run"]
        for stage in ("convert", "concat", "prepare")
    }
    outcome = site.snakemake()
    assert outcome.returncode == 0, words(outcome)
    assert states(site)[TARGET_START] == ("completed", 0), words(outcome)
    assert {
        stage: read_json(site.paths.result(TARGET_START, stage))["run"] for stage in before
    } == before
    assert read_json(site.paths.result(TARGET_START, "apply"))["run"] not in before.values()
    assert read_json(site.paths.result(TARGET_START, "caltables"))["set_name"] == "theirs"
    assert states(site)[TARGET_START] == ("completed", 0)


def test_groups_are_chosen_by_what_is_known_of_them(site):
    """K30."""

    def chosen(*options):
        return site.contimg("reprocess", "-n", *options).stdout.split()

    assert chosen("--start", "2026-03-02", "--end", "2026-03-03T00:00:00") == [
        CALIBRATOR_START,
        TARGET_START,
        ZEROS,
        ODD,
    ]
    assert chosen("--start", "2026-03-02T20:10:00", "--dec", "16.15") == [TARGET_START, ZEROS, ODD]
    assert chosen("--set", CALIBRATOR_START) == [CALIBRATOR_START, TARGET_START]
    assert chosen("--set", CALIBRATOR_START, "--end", TARGET_START) == [CALIBRATOR_START]
    assert " ".join(chosen("--dec", "40")) == "no finished or failed group fits"
    assert "which? Name groups" in site.contimg("reprocess").stderr
    with db.reading(site.paths.products_db) as session:
        verdict = (
            session.connection().exec_driver_sql("SELECT verdict FROM images LIMIT 1").scalar()
        )
    outcome = site.contimg("reprocess", "--verdict", verdict, "--from", "qa")
    assert outcome.returncode == 0
    assert f"{TARGET_START}: pending again, from qa on" in words(outcome)
    outcome = site.contimg("reprocess", "--start", "2026-03-02", "--from", "qa")
    assert outcome.returncode == 0
    assert states(site)[ZEROS] == ("pending", 0)


def test_only_targets_are_targets(site, tmp_path):
    """K33: a folder that is called like a group asks for none."""
    folder = tmp_path / ZEROS
    folder.mkdir()
    shutil.copy(site.configfile, folder / "site.yaml")
    dry = Site(folder / "site.yaml").snakemake("-n")
    assert dry.returncode == 0
    assert f"{ZEROS}: convert" not in dry.stdout + dry.stderr
    asked = Site(folder / "site.yaml").snakemake("-n", "--", f"group/{ZEROS}")
    assert f"{ZEROS}: convert" in asked.stdout + asked.stderr


def test_a_clone_in_a_folder_with_a_space_is_refused_in_one_line(tmp_path):
    """K34: neither pip's programs nor Snakemake's scripts work there."""
    folder = tmp_path / "my clone"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    outcome = subprocess.run(["make", "run"], cwd=folder, capture_output=True, text=True)
    assert outcome.returncode != 0
    assert [
        line
        for line in outcome.stderr.splitlines()
        if "clone it into a folder without spaces" in line
    ]
    assert len(outcome.stderr.splitlines()) == 1


NOBODY = 65534


def test_a_service_account_without_a_home_works_as_the_unit_says(site):
    """K35: the program belongs to somebody else; what is not writable is said at once.

    Here the program is nobody's, and the account root's without any privilege: the interpreter may
    be in root's own folder.
    """
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("NOT TESTED: a service account takes root, and setpriv")
    program = Path("/var/tmp") / f"contimg-test-{os.getpid()}"
    folder, cache = program / "site", program / "cache"
    try:
        shutil.copytree(
            ROOT,
            program,
            symlinks=True,
            ignore=shutil.ignore_patterns(
                ".*", "__pycache__", "tests", "docs", "bench", "build", "site"
            ),
        )
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", program], check=True)
        (program / "incoming").mkdir()
        for path in site.paths.incoming.glob("*.hdf5"):
            if path.name < TARGET_START:
                shutil.copy(path, program / "incoming")
        made = make_site(
            program / "etc", program / "incoming", imaging=IMAGES, conversion={"staging": "disk"}
        )
        values = yaml.safe_load(made.configfile.read_text())
        values["paths"] |= {"products": str(folder / "products"), "state": str(folder / "state")}
        made.configfile.write_text(yaml.safe_dump(values))
        unit = (ROOT / "docs" / "contimg-watch.service").read_text()
        wanted = dict(
            line.partition("=")[2].split("=", 1)
            for line in unit.splitlines()
            if line.startswith("Environment=")
        )
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(program)}
        environment |= {
            name: value.replace("/var/cache/contimg", str(cache)) for name, value in wanted.items()
        }

        def run(command):
            line = [
                "setpriv",
                "--bounding-set",
                "-all",
                "--inh-caps",
                "-all",
                BIN / "contimg",
                command,
            ]
            line += ["--configfile", made.configfile]
            return subprocess.run(
                line, cwd=program, env=environment, capture_output=True, text=True, timeout=600
            )

        lacking = {
            folder: "paths.products",
            program / ".snakemake": "Snakemake's working folder",
            cache: "the cache",
        }
        for missing, what in lacking.items():
            outcome = run("watch")
            assert outcome.returncode == 1
            assert f": {what}" in words(outcome)
            assert "cannot be written to by user 0" in words(outcome)
            missing.mkdir()
        outcome = run("run")
        assert outcome.returncode == 0, outcome.stderr[-2000:]
        assert (folder / "products" / "results" / f"{CALIBRATOR_START}.index.json").exists()
        assert not list((program / "contimg").rglob("*.nbi"))
        assert list(cache.rglob("*.nbi"))
    finally:
        shutil.rmtree(program, ignore_errors=True)


def test_there_is_no_site_in_another_folder(made, tmp_path):
    """K40: cron's working directory: said, status 1, nothing made."""
    site, _ = made
    commands = (
        "status",
        "verify",
        "plan",
        "incomplete",
        "watch",
        f"retry {ZEROS}",
        f"why {ZEROS}",
        "export images.csv",
        "run",
        "retention",
        "registry list",
        f"reprocess {ZEROS}",
        "serve",
    )
    old = tmp_path / "images.csv"
    old.write_text("the old one")
    relative = tmp_path / "mine.yaml"
    relative.write_text(
        yaml.safe_dump({"paths": {"incoming": "in", "products": "p", "state": "s"}})
    )
    for command in commands:
        for more in ((), ("--configfile", str(relative))):
            outcome = subprocess.run(
                [BIN / "contimg", *command.split(), *more],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert outcome.returncode == 1, command
            assert "there is no site here" in words(outcome)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.csv", "mine.yaml"]
    assert old.read_text() == "the old one"
    absolute = ["status", "--json", "--configfile", site.configfile]
    outcome = subprocess.run(
        [BIN / "contimg", *absolute], cwd=tmp_path, capture_output=True, text=True
    )
    # with absolute paths it is the same site from anywhere
    assert json.loads(outcome.stdout)["counts"]["completed"] == 2


def test_a_place_where_nothing_was_done_yet_is_told_from_one_that_is_in_order(tmp_path):
    """K40: no empty export, no "everything is in its place"; and nothing is made by asking."""
    (tmp_path / "in").mkdir()
    site = make_site(tmp_path / "site", tmp_path / "in")
    for command in (
        ["verify"],
        ["export", str(tmp_path / "x.csv")],
        ["retry", "--all"],
        ["reprocess", ZEROS],
        ["registry", "verify"],
    ):
        outcome = site.contimg(*command)
        assert outcome.returncode == 1, command
        assert "no run or watcher has worked with this configuration yet" in words(outcome)
    assert site.contimg("status").returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "site"]
    assert [p.name for p in (tmp_path / "site").iterdir()] == ["site.yaml"]


def test_an_incoming_folder_that_is_not_there_is_named(tmp_path):
    """K41."""
    site = make_site(tmp_path / "site", tmp_path / "nowhere")
    for outcome in (site.contimg("plan"), site.contimg("incomplete"), site.snakemake("-n")):
        assert outcome.returncode == 1
        assert (
            f"{tmp_path / 'nowhere'}: the incoming folder (paths.incoming) is not there"
            in words(outcome)
        )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("garbage", marks=pytest.mark.long),
        "middle",
        pytest.param("empty", marks=pytest.mark.long),
        "moved",
    ],
)
def test_damaged_databases_are_named_and_made_again_from_the_results(site, how):
    """K43: file and remedy; what they held comes back with the next run."""
    before = {g: s for g, (s, _) in states(site).items() if s == "completed"}
    sets, images = registry.describe_sets(site.paths.registry_db), rows_of(site, "images")
    commands = {
        site.paths.ingest_db: "status",
        site.paths.products_db: "verify",
        site.paths.registry_db: "registry list",
    }
    for path, command in commands.items():
        content, whole_until = path.read_bytes(), {"garbage": 0, "middle": 4096}.get(how)
        if whole_until is None:
            path.unlink()
            path.write_bytes(b"") if how == "empty" else None
            continue
        path.write_bytes(content[:whole_until] + b"\xa5" * (len(content) - whole_until))
        said = words(site.contimg(*command.split()))
        assert f"{path}: damaged" in said
        assert f"mv {path} {path}.damaged" in said
        outcome = site.snakemake()
        assert outcome.returncode in (1, 78)
        assert f"{path}: damaged" in words(outcome)
        for one in path.parent.glob(f"{path.name}*"):
            one.rename(one.with_name(f"aside.{one.name}"))
    assert site.snakemake().returncode in (0, 1)
    assert {g: s for g, (s, _) in states(site).items() if s == "completed"} == before
    after = registry.describe_sets(site.paths.registry_db)
    assert [(s["set"], s["status"], [t["sha256"] for t in s["tables"]]) for s in after] == [
        (s["set"], s["status"], [t["sha256"] for t in s["tables"]]) for s in sets
    ]
    assert rows_of(site, "images") == images


def rows_of(site: Site, table: str) -> list:
    with db.reading(site.paths.products_db) as session:
        return (
            session.connection()
            .exec_driver_sql(f"SELECT path, checksum, verdict FROM {table} ORDER BY path")
            .fetchall()
        )


def test_a_retired_set_stays_retired_though_the_registry_was_lost(site):
    site.contimg("registry", "retire", CALIBRATOR_START, "--reason", "antenna 12 swapped")
    site.paths.registry_db.unlink()
    assert site.snakemake().returncode in (0, 1)
    (one,) = registry.describe_sets(site.paths.registry_db)
    assert (one["status"], one["notes"]) == ("retired", "antenna 12 swapped")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imaging: {imsiez: 512}", "unknown key imaging.imsiez; did you mean imsize?"),
        ("imsize: 512", "unknown key imsize; did you mean imaging.imsize?"),
        ("imagign: {imsize: 512}", "unknown key imagign; did you mean imaging?"),
        (
            "imaging: {cell_arcsec: 0.00083}",
            "imaging.cell_arcsec: expected greater than or equal to 0.2",
        ),
        ("imaging: {cell_arcsec: 30}", "imaging.cell_arcsec: expected less than or equal to 20"),
        ("imaging: {imsize: 128, cell_arcsec: 1}", "is an image of 0.0356 deg; expected 0.2 to 12"),
        (
            "ingest: {start: 22:26:05}",
            "ingest.start: 80765 is no UTC time like '2026-01-25T22:26:05'",
        ),
        ("ingest: {start: yesterday}", "ingest.start: 'yesterday' is no UTC time like"),
        ("imaging: [", "cannot be read as YAML"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_in_words(made, tmp_path, text, said):
    """K44: at reading, whoever reads it."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    outcome = subprocess.run(
        [BIN / "contimg", "plan", "--configfile", wrong], cwd=ROOT, capture_output=True, text=True
    )
    assert outcome.returncode == 1
    assert said in words(outcome)
    assert "pydantic" not in words(outcome)


def test_what_can_be_meant_is_taken(tmp_path):
    """K44: a date without quotes, one item where there may be several."""
    from contimg.config import load

    mine = tmp_path / "mine.yaml"
    times = "ingest: {start: 2026-01-25, groups: 2026-01-25T22:26:05}"
    mine.write_text(
        f"{times}\ncalibration: {{allow: 3C48, refant: 12}}\nvalidation: {{publish: good}}\n"
    )
    config = load([mine])
    assert (config.ingest.start, config.ingest.groups) == (
        "2026-01-25T00:00:00",
        ("2026-01-25T22:26:05",),
    )
    assert (config.calibration.allow, config.validation.publish) == (("3C48",), ("good",))
    assert config.calibration.refant == "12"


def test_an_unknown_group_is_one_line(made):
    """K45."""
    site, _ = made
    for command in ("run", "why", "retry", "reprocess"):
        outcome = site.contimg(command, "2030-01-01T00:00:00")
        assert outcome.returncode == 1
        assert len((outcome.stdout + outcome.stderr).strip().splitlines()) == 1
        assert "2030-01-01T00:00:00" in words(outcome)


def test_a_second_host_says_where_the_databases_are(site, tmp_path):
    """K37: the state folder is shared, the databases are on a disk of the first host, which the
    second does not see."""
    values = yaml.safe_load(site.configfile.read_text())
    local = tmp_path / "local"
    local.mkdir()
    for path in site.paths.state.glob("*.sqlite3"):
        path.rename(local / path.name)
    values["paths"]["databases"] = str(local)
    site.configfile.write_text(yaml.safe_dump(values))
    assert site.contimg("status").returncode == 0
    site.contimg("reprocess", TARGET_START, "--from", "index")
    assert site.snakemake().returncode == 0
    assert sorted(p.name for p in local.glob("*.sqlite3")) == [
        "cal_registry.sqlite3",
        "ingest.sqlite3",
        "products.sqlite3",
        "sources.sqlite3",
    ]
    assert not list(site.paths.state.glob("*.sqlite3"))
    host = read_json(site.paths.databases_host)["host"]
    inside = f"hostname elsewhere && mount -t tmpfs none {local} && cd {ROOT} && exec "
    for command, status in (
        ("status", 1),
        ("verify", 1),
        ("run", 1),
        ("watch", 1),
        ("retry --all", 1),
    ):
        line = f"{inside}{BIN / 'contimg'} {command} --configfile {site.configfile}"
        outcome = subprocess.run(
            ["unshare", "--mount", "--uts", "sh", "-c", line],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if "unshare" in outcome.stderr:
            pytest.skip(f"NOT TESTED on a second host: {outcome.stderr.strip()}")
        assert outcome.returncode == status, (command, outcome.stderr)
        assert f"the databases of {site.paths.state} are on host {host}: do this there" in words(
            outcome
        )
    assert site.contimg("status").returncode == 0
