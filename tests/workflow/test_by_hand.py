"""Stages by hand: `contimg stage NAME GROUP`."""

import pytest

from contimg.chain import STAGES
from contimg.simulate import Simulation, simulate_group
from contimg.store.files import read_json
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
