"""Stages by hand: `contimg stage NAME GROUP`; a quick look: `contimg quicklook GROUP`."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from astropy.io import fits

from contimg.chain import STAGES
from contimg.simulate import Simulation, simulate_group
from contimg.store.files import lock, read_json
from tests.conftest import CALIBRATOR_START, STATIONS
from tests.workflow.conftest import make_site

GROUP = CALIBRATOR_START


@pytest.fixture
def site(tmp_path, sky, compact_stations):
    few = {"channels": 2, "integrations": 6, "stations": compact_stations[::3]}
    options = Simulation(start=GROUP, seed=21, gain_seed=3, skew_s=0.0, **few)
    simulate_group(tmp_path / "incoming", options, sky, STATIONS)
    small = {"imsize": 256, "cell_arcsec": 20.0}
    ingest = {"settle_s": 0}
    return make_site(tmp_path, tmp_path / "incoming", imaging=small, ingest=ingest)


def test_a_run_goes_on_from_what_was_done_by_hand(site):
    """The same log, the same result; and what cannot be done is refused in words."""
    refused = site.contimg("stage", "concat", GROUP)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"group {GROUP}: concat comes after convert" in refused.stderr
    assert "no such stage; there are convert," in site.contimg("stage", "clean", GROUP).stderr
    by_hand = ("convert", "concat", "prepare")
    for name in by_hand:
        done = site.contimg("stage", name, GROUP)
        assert done.returncode == 0, done.stderr
        assert str(site.paths.result(GROUP, name)) in done.stdout
        assert "done in" in site.paths.log(GROUP, name).read_text()
    found = {name: read_json(site.paths.result(GROUP, name)) for name in by_hand}
    assert all(values["seconds"] > 0 and values["run"] is None for values in found.values())
    assert site.snakemake().returncode == 0
    for name in STAGES:
        result = read_json(site.paths.result(GROUP, name))
        assert result == found[name] if name in by_hand else result["run"]
    again = site.contimg("stage", "image", GROUP)
    assert f"first contimg reprocess {GROUP} --from image" in again.stderr


def test_a_stage_that_fails_by_hand_says_so(site):
    site.contimg("stage", "convert", GROUP)
    for folder in (site.paths.state / "staging" / GROUP).glob("sb0*.ms"):
        (folder / "table.dat").unlink()
    failed = site.contimg("stage", "concat", GROUP)
    assert failed.returncode == 1
    assert "concat of" in failed.stderr
    assert not site.paths.result(GROUP, "concat").exists()


def everything_of(site):
    """Every file of the site but locks and quick looks, with what is in it; rows of databases."""
    found = {}
    for path in [*site.paths.products.rglob("*"), *site.paths.state.rglob("*")]:
        if path.suffix == ".sqlite3":
            with closing(sqlite3.connect(path)) as database:
                found[path] = list(database.iterdump())
        elif (
            path.is_file()
            and not {"locks", "quicklooks"}.intersection(path.parts)
            and not path.name.endswith(("-wal", "-shm"))
        ):
            found[path] = path.read_bytes()
    return found


@pytest.mark.long
def test_a_quick_look_at_a_group_in_any_state(site, tmp_path):
    """Raw, finished, pruned, being worked on, and with nothing left: nothing of it is touched."""

    def look():
        return site.contimg("quicklook", GROUP)

    done = look()
    assert done.returncode == 0, done.stderr
    assert f"{GROUP}: solve ..." in done.stdout  # a calibrator without a set
    assert "catalogue sources" in done.stdout
    pictures = [site.paths.quicklook(GROUP, ending) for ending in ("png", "fits")]
    assert all(str(path) in done.stdout and path.stat().st_size > 1000 for path in pictures)
    assert [path.name for path in site.paths.products.iterdir()] == ["quicklooks"]
    header = fits.getheader(pictures[1])
    assert (header["QUALITY"], header["IMGMODE"]) == ("NON_SCIENCE", "quick")
    assert site.snakemake().returncode == 0
    (site.paths.products / ".quicklook.4194305.x").mkdir()  # of one that was killed
    before = everything_of(site)
    for path in pictures:
        path.unlink()
    done = look()
    assert done.returncode == 0, done.stderr
    assert "convert" not in done.stdout  # as it lies there
    assert all(path.exists() for path in pictures)
    assert not list(site.paths.products.glob(".quicklook.*"))
    assert everything_of(site) == before
    assert site.contimg("verify").returncode == 0
    with lock(site.paths.group_lock(GROUP), wait=False, what="test"):
        assert f"{GROUP}: apply ..." in look().stdout  # a stage of it is at work
    assert everything_of(site) == before
    shutil.rmtree(site.paths.ms(GROUP))
    assert f"{GROUP}: apply ..." in look().stdout
    assert "solve" not in look().stdout  # its set is there
    for path in (tmp_path / "incoming").glob("*.hdf5"):
        path.unlink()
    gone = look()
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "its raw files are gone, and its Measurement Set is not there" in gone.stderr
    assert "no such group" in site.contimg("quicklook", "2026-03-02T20:03:11").stderr
