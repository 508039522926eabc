"""A run that is lost at any of its writes: killed there, by a power cut, for want of room or quota;
then simply started again.

fault.c, preloaded into every process of a real run, counts what it changes on disk. The short
version tries some of these places, `make test-all` every one.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from contimg.calibration import registry
from contimg.products import tables as product_tables
from contimg.queue import moves
from contimg.simulate import Simulation, simulate_group
from contimg.store import db
from tests.conftest import CALIBRATOR_START, LONG, ROOT, STATIONS
from tests.workflow.conftest import Site, make_site

GCC = shutil.which("gcc")
MODES = ("kill", "empty", "half", "full", "quota")
# places that the short version tries
SHORT = {"kill": 2, "empty": 1, "half": 1, "full": 1, "quota": 1}
EVERY = int(os.environ.get("CONTIMG_EVERY", 1))  # of the long version: one place in so many
AT_ONCE = 2
RUNS = 4  # that are started at most, as a watcher would
# times, and what has them
OTHERWISE = {
    "id",
    "created_at",
    "processed_at",
    "stage_updated_at",
    "checksum",
    "cal_checksums",
    "software",
    "bytes",
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if GCC is None:
        pytest.skip("NOT TESTED: gcc is not installed, with which the preloaded library is made")
    library = tmp_path_factory.mktemp("shim") / "fault.so"
    source = Path(__file__).with_name("fault.c")
    subprocess.run(
        [GCC, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


@pytest.fixture(scope="module")
def incoming(tmp_path_factory, sky, compact_stations):
    """A small calibrator group: it goes through all ten stages."""
    folder = tmp_path_factory.mktemp("incoming")
    options = Simulation(
        start=CALIBRATOR_START,
        seed=21,
        gain_seed=3,
        channels=2,
        integrations=6,
        stations=compact_stations[::3],
        skew_s=0.0,
    )
    simulate_group(folder, options, sky, STATIONS)
    return folder


class Place:
    """A site, and runs in it that are lost on purpose."""

    def __init__(self, folder: Path, incoming: Path, shim: Path):
        self.folder, self.shim = folder, shim
        imaging = {"imsize": 256, "cell_arcsec": 20.0}
        ingest_options = {"settle_s": 0, "retry_backoff_s": 0}
        self.site: Site = make_site(
            folder / "site", incoming, imaging=imaging, ingest=ingest_options
        )
        (folder / "dirty").mkdir()

    def run(self, at: int = 0, mode: str = "") -> tuple[int, int]:
        """(exit status, number of writes) of a run; at write `at` it is killed, or the disk is full
        from there on."""
        state = self.folder / "counters"
        state.write_bytes(bytes(16))
        fault = {
            "FAULT_STATE": state,
            "FAULT_ROOT": self.site.configfile.parent,
            "FAULT_AT": at,
            "FAULT_DIRTY": self.folder / "dirty",
            "FAULT_MODE": {"empty": "kill", "half": "kill"}.get(mode, mode),
            "FAULT_LOG": self.folder / "writes",
            "LD_PRELOAD": self.shim,
        }
        environment = os.environ | {key: str(value) for key, value in fault.items()}
        with (self.folder / "said").open("a") as said:
            process = subprocess.Popen(
                self.site.command(),
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            code = process.wait(timeout=600)
            self.lost_s = time.time()
        if at and mode in ("kill", "empty", "half"):
            self._all_ended(process.pid)
        return code, int.from_bytes(state.read_bytes()[:8], "little")

    def _all_ended(self, session: int) -> None:
        """Its jobs end with it, by themselves."""
        end = time.monotonic() + 20
        while (
            left := subprocess.run(
                ["pgrep", "-s", str(session)], capture_output=True, text=True
            ).stdout.split()
        ) != []:
            if time.monotonic() > end:
                for number in left:
                    os.kill(int(number), signal.SIGKILL)
                raise AssertionError(f"processes {left} outlived their run")
            time.sleep(0.05)

    def cut(self, mode: str) -> int:
        """What a power cut does, and worse: to every file that was written in the last two seconds,
        flushed or not; of the databases only to what nobody had flushed. Returns how many files."""
        number = 0
        for path in [
            p
            for p in self.site.configfile.parent.rglob("*")
            if p.is_file() and p != self.site.configfile
        ]:
            found = path.stat()
            flushed = not (self.folder / "dirty" / f"{found.st_dev}.{found.st_ino}").exists()
            if self.lost_s - found.st_mtime > 2 or (
                ".sqlite3" in path.name and (flushed or not path.name.endswith("-wal"))
            ):
                continue
            os.truncate(path, 0 if mode == "empty" else found.st_size // 2)
            number += 1
        return number

    def outcome(self) -> dict:
        """Image and rows, but for what has times in it."""
        paths = self.site.paths
        rows = {}
        for table in (
            product_tables.Image,
            product_tables.MeasurementSet,
            product_tables.QaArtifact,
        ):
            with db.reading(paths.products_db) as session:
                rows[table.__tablename__] = [
                    {
                        k: v
                        for k, v in product_tables.columns_of(row).items()
                        if k not in OTHERWISE and not isinstance(v, float)
                    }
                    for row in session.query(table).order_by(table.path)
                ]
        sets = registry.describe_sets(paths.registry_db)
        rows["sets"] = [(s["set"], s["status"], [t["kind"] for t in s["tables"]]) for s in sets]
        rows["queue"] = {
            g: (s.state, s.error)
            for g, s in moves.known_groups(paths.ingest_db, files=False).items()
        }
        image = fits.getdata(paths.image(CALIBRATOR_START, "pbcor.fits"))
        for path in paths.products.parent.rglob("*"):
            text = str(path).removeprefix(str(self.folder))
            assert ".partial" not in text, f"{path} was left"
        return {"image": image, "rows": text_of(rows).replace(str(self.folder), "HERE")}


def text_of(rows: dict) -> str:
    return "\n".join(f"{name}: {values}" for name, values in sorted(rows.items()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, incoming, shim):
    """What an undisturbed run makes, in how many writes."""
    place = Place(tmp_path_factory.mktemp("reference"), incoming, shim)
    code, writes = place.run()
    assert code == 0, (place.folder / "said").read_text()[-3000:]
    assert place.site.contimg("verify").returncode == 0
    return place.outcome(), writes


def places(number: int, mode: str) -> list[int]:
    """Which of a run's writes are tried."""
    if LONG:
        return list(range(1 + MODES.index(mode) % EVERY, number + 1, EVERY))
    share = (np.arange(SHORT[mode]) + (1 + MODES.index(mode)) / (len(MODES) + 1)) / SHORT[mode]
    return sorted({int(place) for place in 1 + share * (number - 1)})


def lose_and_start_again(
    folder: Path, incoming: Path, shim: Path, expected: dict, at: int, mode: str
) -> tuple[int, str]:
    """Number of runs until it was done, and what was wrong, in words."""
    place = Place(folder, incoming, shim)
    code, _ = place.run(at, mode)
    group = (
        moves.known_groups(place.site.paths.ingest_db, files=False).get(CALIBRATOR_START)
        if code != 0
        else None
    )
    if mode in ("full", "quota") and group and group.retry_count:
        return 0, f"an attempt was spent: {group.error}"
    if mode in ("empty", "half"):
        place.cut(mode)
    runs, done = 0, False
    while not done and runs < RUNS:
        runs += 1
        code, _ = place.run()
        done = code == 0 and place.site.paths.result(CALIBRATOR_START, "index").exists()
    if not done:
        return runs, f"status {code}: {(folder / 'said').read_text()[-1500:]}"
    verify = place.site.contimg("verify")
    if verify.returncode:
        return runs, verify.stdout
    found = place.outcome()
    apart = np.nanmax(np.abs(found["image"] - expected["image"])) / np.nanmax(
        np.abs(expected["image"])
    )
    if not apart < 1e-5:
        return runs, f"another image: {apart:.1e} of the peak"
    if found["rows"] != expected["rows"]:
        return runs, f"other rows:\n{found['rows']}\nexpected\n{expected['rows']}"
    shutil.rmtree(folder)
    return runs, ""


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_lost_at_any_write_is_simply_started_again(
    reference, incoming, shim, tmp_path, figure, mode
):
    """Same image, same rows, nothing to mend by hand; for want of room no attempt is spent."""
    expected, number = reference
    tried, begin = places(number, mode), time.monotonic()

    def one(at: int) -> tuple[int, str]:
        folder = tmp_path / f"{at}"
        folder.mkdir()
        return lose_and_start_again(folder, incoming, shim, expected, at, mode)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = dict(zip(tried, pool.map(one, tried), strict=True))
    runs = Counter(runs for runs, _ in outcomes.values())
    about = (
        f"{time.monotonic() - begin:.0f} s; runs until it was done: {dict(sorted(runs.items()))}"
    )
    figure(f"{mode}: lost at {len(tried)} of {number} writes, {about}")
    wrong = {at: words for at, (_, words) in outcomes.items() if words}
    assert not wrong, "\n\n".join(f"{mode} at write {at}: {words}" for at, words in wrong.items())
