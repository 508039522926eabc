"""Data that the tests share: small simulated observations, and the independent sample where it is
there."""

import os
from pathlib import Path

import pytest

from contimg.config import load
from contimg.paths import Paths
from contimg.queue.groups import RawFile, form_groups
from contimg.runs.session import Session
from contimg.simulate import Simulation, read_sky, simulate_group, station_positions

ROOT = Path(__file__).parent.parent
CATALOGUES = ROOT / "config" / "catalogues"
STATIONS = CATALOGUES / "dsa110_stations.csv"
DEC_DEG = 16.15
CALIBRATOR_START, TARGET_START = "2026-03-02T20:03:10", "2026-03-02T20:18:37"
SPAN_S = 120
LONG = bool(os.environ.get("CONTIMG_LONG"))  # `make test-all`: the proofs that take hours


_FIGURES = pytest.StashKey[list]()


def pytest_configure(config):
    os.chdir(ROOT)
    config.stash[_FIGURES] = []


def pytest_collection_modifyitems(items):
    """Long proofs are for `make test-all`."""
    if not LONG:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: make test-all"))


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_FIGURES]:
        terminalreporter.section("measured")
        for line in config.stash[_FIGURES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def figure(pytestconfig):
    """Say a measured number at the end of the test run."""
    return pytestconfig.stash[_FIGURES].append


def session_of(config, plans, asked=(), cluster=False):
    """What a Snakefile would have opened."""
    paths = Paths.of(config)
    return Session(config, paths, plans, {}, asked, paths.state / "staging", 1, cluster, True)


@pytest.fixture(scope="session")
def config():
    return load()


@pytest.fixture(scope="session")
def sky():
    return read_sky(CATALOGUES / "nvss_ra344_dec16.csv", CATALOGUES / "vla_calibrators.csv")


@pytest.fixture(scope="session")
def compact_stations():
    """Stations of the T's core: a beam of about 1.5 arcmin, so that test images are small."""
    positions, active = station_positions(STATIONS)
    near = [i for i in range(len(active)) if active[i] and (positions[i] ** 2).sum() ** 0.5 < 420]
    return tuple(n + 1 for k, n in enumerate(near) if k % 3)


@pytest.fixture(scope="session")
def sample():
    """The observations that an independent simulator wrote."""
    folder = Path(os.environ.get("CONTIMG_SAMPLE", ROOT.parent / "shared" / "sample"))
    if not (folder / "target" / "truth.json").exists():
        pytest.skip(
            f"NOT TESTED against the independent sample: {folder} is not there (set CONTIMG_SAMPLE)"
        )
    return folder


@pytest.fixture
def make_group(tmp_path, sky):
    """Write a group with given options; returns it clustered."""

    def make(sources=None, folder="raw", **options):
        options = {
            "start": TARGET_START,
            "dec_deg": DEC_DEG,
            "antennas": 12,
            "channels": 2,
            "integrations": 6,
        } | options
        paths = simulate_group(tmp_path / folder, Simulation(**options), sources or sky, STATIONS)
        return form_groups([RawFile.named(p) for p in paths], SPAN_S, 300, 16)[0]

    return make
