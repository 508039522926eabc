import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from contimg.config import load
from contimg.paths import Paths
from contimg.simulate import Simulation, simulate_group
from tests.conftest import CALIBRATOR_START, ROOT, STATIONS, TARGET_START

BAD_START = "2026-03-02T20:23:46"
BIN = Path(sys.executable).parent
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SMALL_IMAGES = {"imsize": 1800, "cell_arcsec": 8.0}


@dataclass
class Site:
    """A configured place to work in."""

    configfile: Path

    @property
    def config(self):
        return load([self.configfile])

    @property
    def paths(self) -> Paths:
        return Paths.of(self.config)

    def command(self, *arguments) -> list[str]:
        files = ["--configfile", "config/config.yaml", str(self.configfile)]
        return [str(BIN / "snakemake"), "--profile", "local", *files, *arguments]

    def snakemake(self, *arguments) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=900
        )

    def contimg(self, *arguments) -> subprocess.CompletedProcess:
        command = [str(BIN / "contimg"), *arguments, "--configfile", str(self.configfile)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def make_site(folder: Path, incoming: Path, **sections) -> Site:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "paths": {
            "incoming": str(incoming),
            "products": str(folder / "products"),
            "state": str(folder / "state"),
        }
    }
    configfile = folder / "site.yaml"
    configfile.write_text(yaml.safe_dump(values | sections))
    return Site(configfile)


def chromium(*arguments: str):
    """Options of a browser that nobody sees, and its driver's service; skips where there is
    none."""
    if not (CHROMIUM and DRIVER):
        pytest.skip(
            "NOT TESTED in a browser: chromium and chromedriver are not installed (apt install "
            "chromium chromium-driver)"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    return options, webdriver.ChromeService(DRIVER)


@pytest.fixture(scope="session")
def incoming(tmp_path_factory, sky, compact_stations):
    """A calibrator group, a target with interference and a dead antenna, and a group with a
    truncated file."""
    folder = tmp_path_factory.mktemp("incoming")
    common = {"channels": 4, "gain_seed": 3, "stations": compact_stations}
    for sim in (
        Simulation(start=CALIBRATOR_START, seed=21, **common),
        Simulation(start=TARGET_START, seed=22, rfi=True, dead=(compact_stations[4],), **common),
        Simulation(
            start=BAD_START, seed=23, antennas=8, channels=1, integrations=4, truncated=(7,)
        ),
    ):
        simulate_group(folder, sim, sky, STATIONS)
    return folder


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, incoming):
    """The workflow over everything, once: (site, outcome)."""
    site = make_site(tmp_path_factory.mktemp("site"), incoming, imaging=SMALL_IMAGES)
    return site, site.snakemake()


@pytest.fixture(scope="session", autouse=True)
def no_terminal():
    os.environ["TERM"] = "dumb"


def until(condition, what: str, seconds: float = 20):
    """Wait for a true value, and return it; TimeoutError says what did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.1)
    raise TimeoutError(what)
