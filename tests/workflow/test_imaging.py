"""The image stage on calibrated groups of the workflow: bright sources, quick looks, other imagers,
what goes wrong."""

import json
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from contimg import config as configuration
from contimg.errors import ImagingError
from contimg.imaging.interface import Diverged, backend
from contimg.stages.image import effective_options, image_group
from contimg.store.files import read_json
from contimg.visibilities import measurement_set as mset
from tests.accuracy import measure
from tests.conftest import CALIBRATOR_START, TARGET_START


@pytest.fixture
def imaged(first_run, tmp_path):
    """Image a group of the first run once more, with other options; (result of the stage, its FITS
    files by suffix)."""
    site, _ = first_run

    def image(which=TARGET_START, ms=None, **options):
        config = site.config.model_copy(
            update={
                "imaging": site.config.imaging.model_copy(update=options),
                "paths": site.config.paths.model_copy(update={"products": tmp_path}),
            }
        )
        converted, chosen = (
            read_json(site.paths.result(which, s)) for s in ("convert", "caltables")
        )
        result = image_group(
            ms or site.paths.ms(which), which, config, converted, chosen, 2, tmp_path / "stage.log"
        )
        return result, result["images"]

    return image


def truth(incoming, start):
    return incoming / f"truth.{start}.json"


def test_a_bright_source_that_drifts_leaves_with_its_beam(first_run, imaged, incoming, figure):
    """3C454.3 in its own group: 12 Jy, whose apparent flux changes by a sixth."""
    site, _ = first_run
    before = mset.read_grid(site.paths.ms(CALIBRATOR_START), "CORRECTED_DATA", 1)
    plain, files = imaged(CALIBRATOR_START, subtract_above_jy=None)
    left = measure(files["image.fits"], files["pbcor.fits"], truth(incoming, CALIBRATOR_START))
    better, files = imaged(CALIBRATOR_START)
    found = measure(files["image.fits"], files["pbcor.fits"], truth(incoming, CALIBRATOR_START))
    figure(
        f"12 Jy in the image: noise {plain['rms_jy'] * 1e3:.2f} mJy, without it "
        f"{better['rms_jy'] * 1e3:.2f}; {left}; {found}"
    )
    assert better["rms_jy"] < 0.9 * plain["rms_jy"]
    assert np.array_equal(
        before, mset.read_grid(site.paths.ms(CALIBRATOR_START), "CORRECTED_DATA", 1)
    )
    bright = max(better["subtracted"], key=lambda s: s["mean_apparent_jy"])
    assert bright["fitted_over_catalogue"] == pytest.approx(1, abs=0.005)
    assert bright["put_back"]
    assert 1.1 < bright["most_apparent_jy"] / bright["least_apparent_jy"] < 1.3
    found.check(least=8)
    image, header = fits.getdata(files["image.fits"]).squeeze(), fits.getheader(files["image.fits"])
    x, y = WCS(header).celestial.wcs_world2pix(bright["ra_deg"], bright["dec_deg"], 0)
    assert np.nanmax(image) == pytest.approx(bright["mean_apparent_jy"], rel=0.03)
    assert np.unravel_index(np.nanargmax(image), image.shape) == (round(float(y)), round(float(x)))


def test_a_quick_look_finds_what_is_bright_and_is_marked(first_run, imaged, incoming, figure):
    full = read_json(first_run[0].paths.result(TARGET_START, "image"))
    quick, files = imaged(mode="quick")
    assert files["pbcor.fits"].endswith(f"{TARGET_START}.quick.pbcor.fits")
    header = fits.getheader(files["pbcor.fits"])
    assert (header["IMGMODE"], header["QUALITY"]) == ("quick", "NON_SCIENCE")
    assert quick["imsize"] <= 512
    bright = [s for s in full["sources"] if s["found"] and s["snr"] > 20 and s["beam"] >= 0.5]
    seen = {s["name"]: s for s in quick["sources"] if s["found"]}
    ratio = [seen[s["name"]]["flux_jy"] / s["flux_jy"] for s in bright if s["name"] in seen]
    figure(
        f"quick look: {len(ratio)} of {len(bright)} sources, fluxes {np.median(ratio):.3f} of "
        f"full, scatter {np.std(ratio):.3f}, noise {quick['rms_jy'] / full['rms_jy']:.1f} times"
    )
    assert len(ratio) >= 0.9 * len(bright) > 5
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


def test_wsclean_gives_the_same_sky(imaged, incoming, figure):
    if not shutil.which("wsclean"):
        pytest.skip("NOT TESTED with WSClean: the program is not on this machine")
    _, files = imaged(backend="wsclean")
    found = measure(files["image.fits"], files["pbcor.fits"], truth(incoming, TARGET_START))
    figure(f"simulated target, wsclean: {found}")
    found.check(least=8)


def test_without_the_program_wsclean_is_refused_in_words(imaged, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImagingError, match="there is no program of that name"):
        imaged(backend="wsclean")


def test_a_clean_that_diverges_is_tried_more_safely_then_left_dirty(imaged, monkeypatch):
    result, _ = imaged(
        imsize=512, gain=0.95, mask_sigma=0.5, threshold_sigma=0.05, max_major_cycles=30
    )
    assert result["cleaned"] in ("safer settings", "dirty image")
    assert result["verdict"] != "good"
    assert f"cleaned: {result['cleaned']}" in result["verdict_reasons"]
    real, tried = backend("wgridder").deconvolve, []

    def diverging(request):
        tried.append(request.options)
        if request.options.niter:
            raise Diverged("residual peak 9 Jy/beam after 2 major cycles, dirty 1")
        return real(request)

    monkeypatch.setattr(backend("wgridder"), "deconvolve", diverging)
    result, files = imaged(imsize=512)
    assert [o.gain for o in tried[:2]] == [0.1, pytest.approx(0.1 / 3)]
    assert (result["cleaned"], result["iterations"]) == ("dirty image", 0)
    assert fits.getheader(files["image.fits"])["CLEANED"] == "dirty image"


def test_a_group_with_nothing_left_is_refused(first_run, imaged, tmp_path):
    copy = tmp_path / "flagged.ms"
    shutil.copytree(first_run[0].paths.ms(TARGET_START), copy)
    with mset.open_table(copy, readonly=False) as table:
        table.putcol("FLAG", np.ones_like(table.getcol("FLAG")))
    with pytest.raises(ImagingError, match="no visibility has both polarisations unflagged"):
        imaged(ms=copy)
    assert not list(tmp_path.glob("images/*"))


def test_what_is_said_of_an_image_is_json(imaged):
    result, files = imaged(
        imsize=512, skip_fits=True, uvrange=">50m", taper_arcsec=90.0, weighting="natural"
    )
    assert json.loads(json.dumps(result, allow_nan=False))["catalogue"]["found"] >= 0
    assert "pbcor.fits" not in files
    assert result["beam_minor_arcsec"] > 60
    assert effective_options(first := configuration.ImagingConfig()) is first


def test_the_slanted_image_is_the_same_sky(imaged, figure):
    """The image on the snapshot's own grid, as FITS describes it: every source is at its place."""
    result, files = imaged(slanted_fits=True)
    header = fits.getheader(files["slanted.fits"])
    assert result["transforms"] == "2-D"
    assert [header["PV2_1"], header["PV2_2"]] == pytest.approx([-x for x in result["plane"]])
    data, wcs = fits.getdata(files["slanted.fits"]).squeeze(), WCS(header).celestial
    plain = fits.getdata(files["image.fits"]).squeeze()
    plain_wcs = WCS(fits.getheader(files["image.fits"])).celestial
    shifts, ratios = [], []
    for one in result["sources"]:
        if one["found"] and one["snr"] > 50:
            where, there = (
                [float(v) for v in w.wcs_world2pix(one["ra_deg"], one["dec_deg"], 0)]
                for w in (plain_wcs, wcs)
            )
            middle = len(plain) // 2, len(data) // 2
            shifts.append(there[1] - middle[1] - where[1] + middle[0])
            peaks = [
                image[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].max()
                for image, (x, y) in ((plain, where), (data, there))
            ]
            ratios.append(peaks[1] / peaks[0])
    figure(f"slanted: {len(ratios)} sources, peaks {np.mean(ratios):.4f} +- {np.std(ratios):.4f}")
    assert len(ratios) > 5
    assert max(map(abs, shifts)) > 0.3  # pixels: it is another grid
    assert np.mean(ratios) == pytest.approx(1, abs=0.003)
    assert np.std(ratios) < 0.01
