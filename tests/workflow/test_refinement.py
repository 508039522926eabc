"""Own gains through the real workflow: data whose gains move, whose cables are exchanged, whose
catalogue has holes."""

import warnings

import casacore.tables as ct
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from contimg.calibration import tables as caltables
from contimg.simulate import Simulation, simulate_group
from contimg.store.files import read_json
from contimg.visibilities import casa
from contimg.visibilities import measurement_set as mset
from tests.accuracy import measure
from tests.conftest import CALIBRATOR_START, CATALOGUES, STATIONS, TARGET_START
from tests.workflow.conftest import make_site

IMAGES = {"imsize": 2560, "cell_arcsec": 5.0}
MOVED = {"moved_deg": 30.0, "moved_share": 0.05, "walk_deg": 5.0}
NOISE = {"sefd_jy": 8016.0, "sefd_scatter": 0.27}


def run(folder, sky, target=(), calibrator=(), **sections):
    """A calibrator group and a target, imaged; returns the site and the target's results."""
    incoming = folder / "incoming"
    common = {"antennas": 32, "channels": 6, "gain_seed": 3, **NOISE}
    groups = ((CALIBRATOR_START, 51, dict(calibrator)), (TARGET_START, 52, dict(target)))
    for start, seed, more in groups:
        simulate_group(incoming, Simulation(start=start, seed=seed, **common | more), sky, STATIONS)
    site = make_site(folder / "site", incoming, **({"imaging": IMAGES} | sections))
    outcome = site.snakemake()
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return site, results(site, TARGET_START)


def results(site, group):
    return {
        stage: read_json(site.paths.result(group, stage)) for stage in ("apply", "refine", "image")
    }


def accuracy(site, group, truth):
    paths = (site.paths.image(group, suffix) for suffix in ("image.fits", "pbcor.fits"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(*paths, truth)


def test_the_independent_sample_whose_gains_moved_comes_out_right(sample, tmp_path, figure):
    """Its target had 0.71 of its flux, 1.67 of thermal noise, and lay 1.8 arcsec off."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for path in sample.glob("moving/*/*.hdf5"):
        (incoming / path.name).symlink_to(path)
    site = make_site(tmp_path / "site", incoming, imaging=IMAGES)
    assert site.snakemake().returncode == 0
    target = "2026-01-26T22:37:38"
    found, values = (
        accuracy(site, target, sample / "moving" / "target" / "truth.json"),
        results(site, target),
    )
    noise = values["image"]["rms_jy"] / values["image"]["thermal_jy"]
    figure(f"sample/moving: {found}; noise {noise:.2f} of thermal; {values['refine']['refine']}")
    assert values["refine"]["refine"] == "ap"
    assert np.median(found.ratio) == pytest.approx(1, abs=0.02)
    assert np.median(found.offset_arcsec) < 0.45  # what noise makes of these sources
    assert np.hypot(np.median(found.east_arcsec), np.median(found.north_arcsec)) < 0.2
    assert noise < 1.3
    header = fits.getheader(site.paths.image(target, "pbcor.fits"))
    assert (header["REFINE"], header["REFSKY"]) == ("ap", "catalogue")
    assert header["FLUXSCAL"].endswith("catalogue sources")
    assert header["FLUXCATL"] == pytest.approx(1, abs=0.05)
    assert 0 < header["FLUXERR"] < 0.03
    assert header["FLUXSERR"] > 0
    # nobody else is calibrated with them
    listed = site.contimg("registry", "list", "--json").stdout
    assert "field" not in listed
    assert site.contimg("verify").returncode == 0
    _casa_applies_the_same(site, target)


def _casa_applies_the_same(site, group):
    """Bandpass, gains and the group's own gains, applied by CASA, are what is in CORRECTED_DATA."""
    ms = site.paths.ms(group)
    chosen = read_json(site.paths.result(group, "caltables"))
    own = read_json(site.paths.result(group, "refine"))["table"]
    ours, flags = (mset.read_grid(ms, name, 24) for name in ("CORRECTED_DATA", "FLAG"))
    casa.tasks().applycal(
        vis=str(ms),
        gaintable=[chosen["tables"]["B"], chosen["tables"]["G"], own],
        interp=["nearest,linearflag", "linear", "nearest"],
        calwt=False,
        applymode="calflag",
        flagbackup=False,
        parang=False,
    )
    theirs = mset.read_grid(ms, "CORRECTED_DATA", 24)
    assert np.abs(ours - theirs)[~flags].max() < 2e-5 * np.abs(theirs[~flags]).max()
    with ct.table(own, ack=False) as table:
        assert table.getkeyword("VisCal") == "G Jones"


@pytest.mark.long
def test_exchanged_cables_and_polarisations_are_named_where_people_look(sky, tmp_path):
    more = {"exchanged": ((18, 37),), "exchanged_polarisations": (27,), "moved_deg": 10.0}
    site, found = run(tmp_path, sky, more)
    named = {one["kind"]: one for one in found["refine"]["antennas"]}
    assert set(named) == {"exchanged", "polarisations"}
    assert set(named["exchanged"]["antennas"]) == {"18", "37"}
    assert named["polarisations"]["antennas"] == ["27"]
    assert set(found["image"]["used"]["antennas_lost"]) == {"18", "27", "37"}
    status = site.contimg("status").stdout
    why = " ".join(site.contimg("why", TARGET_START).stdout.split())
    assert "18 and 37: exchanged?" in " ".join(status.split()) or "18 and 37: exchanged?" in why
    assert "27: X and Y exchanged?" in why
    table = caltables.read(site.paths.field_gains(TARGET_START))
    assert table.flags[table.antenna == 17].all()


@pytest.mark.long
def test_without_a_catalogue_the_image_is_its_own(sky, tmp_path, figure):
    """Close to thermal noise, fluxes right to 2 %; and it says so."""
    table = pd.read_csv(CATALOGUES / "nvss_ra344_dec16.csv")
    table[table.ra_deg < 345.5].to_csv(tmp_path / "holes.csv", index=False)
    catalogues = {"sky": str(tmp_path / "holes.csv")}
    site, found = run(tmp_path, sky, MOVED | {"faint": 200}, catalogues=catalogues)
    truth = tmp_path / "incoming" / f"truth.{TARGET_START}.json"
    seen = accuracy(site, TARGET_START, truth)
    noise = found["image"]["rms_jy"] / found["image"]["thermal_jy"]
    figure(f"without a catalogue, gains moved by 30 deg: {seen}; noise {noise:.2f} of thermal")
    refined = found["refine"]
    assert (refined["refine"], refined["sky"]) == ("ap", "own image")
    assert refined["flux_scale"]["applied"] == "set"
    assert found["image"]["verdict"] == "unverified"
    assert noise < 1.2
    # the mean of 64 gains that moved by 5 % each
    moved = refined["flux_scale"]["set_error"]
    assert np.median(seen.ratio) == pytest.approx(1, abs=0.01 + 2 * moved)
    header = fits.getheader(site.paths.image(TARGET_START, "pbcor.fits"))
    assert header["REFSKY"] == "own image"


@pytest.mark.long
def test_cas_a_and_cyg_a_leave_and_antennas_stay(sky, tmp_path, figure):
    """Once five healthy antennas of one arm were dead, and 24 % of the data flagged."""
    far = {"far": ("Cas A", "Cyg A"), "moved_deg": 10.0}
    site, found = run(tmp_path, sky, far)
    noise = found["image"]["rms_jy"] / found["image"]["thermal_jy"]
    taken = {one["name"]: one for one in found["refine"]["far_sources"] if one["subtracted"]}
    prepared = read_json(site.paths.result(TARGET_START, "prepare"))
    figure(f"Cas A and Cyg A: {taken}; noise {noise:.2f} of thermal")
    assert taken.keys() == {"Cas A", "Cyg A"}
    assert taken["Cas A"]["apparent_jy"] == pytest.approx(6, rel=0.15)
    assert taken["Cyg A"]["apparent_jy"] == pytest.approx(5, rel=0.15)
    assert taken["Cas A"]["distance_deg"] == pytest.approx(42.9, abs=1)
    assert prepared["dead_antennas"] == []
    assert prepared["flagged"] < 0.1
    assert noise < 1.2
