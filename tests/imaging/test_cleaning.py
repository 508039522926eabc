"""The clean of points: on skies that are known exactly, and against radler's."""

import numpy as np
import pytest

from contimg.config import ImagingConfig
from contimg.imaging import cleaning
from contimg.imaging.backends import wgridder
from contimg.imaging.files import Grid
from contimg.imaging.interface import Diverged, robust_rms
from contimg.imaging.validation import fit_source
from tests.imaging.test_visibilities import CENTRE_DEG, NOISE_JY, image, observed


def sky(number=12, seed=5):
    """Sources of 0.1 to 1 Jy within 22 arcmin, 3 arcmin from one another or more."""
    rng = np.random.default_rng(seed)
    places: list[np.ndarray] = []
    while len(places) < number:
        place = rng.uniform(-1300, 1300, 2)
        if all(np.hypot(*(place - other)) > 180 for other in places):
            places.append(place)
    return [(0.1 * 10 ** rng.random(), *place, 0.0) for place in places]


def fitted(result, restored, sources):
    """Flux of each source over its true one."""
    wcs, found = Grid(1024, 3 / 3600, CENTRE_DEG).wcs(), []
    for flux_jy, east, north, _ in sources:
        ra, dec = wcs.wcs_pix2world(512 - east / 3, 512 + north / 3, 0)
        found.append(fit_source(restored, wcs, result.beam, float(ra), float(dec))[0] / flux_jy)
    return np.array(found)


def test_points_are_cleaned_as_radler_cleans_them(tmp_path, monkeypatch, figure):
    """The same visibilities, transforms and thresholds: fluxes within 0.3 % of one another, noise
    within 2 %."""
    sources = sky()
    stokes = observed(sources, noise_jy=NOISE_JY / 2, every=1, nchan=48)
    ours, restored, _ = image(stokes, tmp_path, threshold_sigma=1.5)
    beam_rad = np.radians(ours.beam.major_arcsec / 3600)

    def radlers(psf, model, gain, options):
        return cleaning.RadlerCleaner(psf, model, gain, options, beam_rad, 2)

    monkeypatch.setattr(wgridder, "PointCleaner", radlers)
    theirs, reference, _ = image(stokes, tmp_path, threshold_sigma=1.5)
    noise = [robust_rms(one.residual) for one in (ours, theirs)]
    true = fitted(ours, restored, sources)
    ratio = true / fitted(theirs, reference, sources)
    figure(
        f"ours {true.mean():.5f} of true; over radler's: fluxes {ratio.mean():.5f}, scatter "
        f"{ratio.std():.5f}, noise {noise[0] / noise[1]:.4f}; {ours.notes['iterations']} and "
        f"{theirs.notes['iterations']} components in {ours.notes['major_cycles']} and "
        f"{theirs.notes['major_cycles']} cycles"
    )
    assert true.mean() == pytest.approx(1, abs=0.002)
    assert ratio.mean() == pytest.approx(1, abs=0.002)
    assert np.abs(ratio - 1).max() < 0.004  # of 0.1 Jy: 1 sigma
    assert noise[0] < 1.02 * noise[1]
    assert noise[0] == pytest.approx(ours.notes["thermal_jy"], rel=0.05)


def gaussian_psf(npix=256, fwhm=6.0):
    x = np.arange(npix) - npix // 2
    return np.exp(-4 * np.log(2) * (x[:, None] ** 2 + x**2) / fwhm**2).astype(np.float32)


def placed(psf, sources):
    image = np.zeros((128, 128), np.float32)
    for flux, i, j in sources:
        image += flux * psf[128 - i : 256 - i, 128 - j : 256 - j]
    return image


def test_a_minor_cycle_goes_as_deep_as_it_may_and_no_deeper():
    psf, options = gaussian_psf(), ImagingConfig(imsize=128, cell_arcsec=20)
    sources = [(1.0, 40, 50), (-0.3, 90, 20), (0.2, 90, 90), (0.03, 20, 100)]
    dirty, model = placed(psf, sources), np.zeros((128, 128), np.float32)
    cleaner = cleaning.PointCleaner(psf, model, 0.9, options)
    assert not cleaner.perform(dirty, rms_jy=0.01)  # 0.1 of the peak is above the threshold
    left = dirty - placed(psf, [(model[i, j], i, j) for i, j in np.argwhere(model)])
    assert 0.08 < np.abs(left).max() <= 0.1001
    assert cleaner.perform(left, rms_jy=0.01)
    assert set(map(tuple, np.argwhere(model))) == {(i, j) for _, i, j in sources[:3]}
    for flux, i, j in sources[:3]:
        assert model[i, j] == pytest.approx(flux, abs=0.016)
    assert model[20, 100] == 0  # 3 sigma is no source


def test_the_number_of_components_and_of_pixels_is_limited(monkeypatch):
    psf, model = gaussian_psf(), np.zeros((128, 128), np.float32)
    dirty = placed(psf, [(1.0, 40, 50), (0.5, 90, 90)])
    options = ImagingConfig(imsize=128, cell_arcsec=20, niter=5)
    cleaner = cleaning.PointCleaner(psf, model, 0.9, options)
    assert cleaner.perform(dirty, 0.001)
    assert cleaner.iterations == 5
    assert model.sum() == pytest.approx(1 - 0.9**5, rel=1e-4)
    monkeypatch.setattr(cleaning, "_MOST_PIXELS", 20)
    x, y, level = cleaning._candidates(dirty, np.zeros_like(dirty), 0.01, 0.005)
    assert 10 < len(x) <= 20
    assert level > 0.5
    assert (dirty[x, y] > level).all()


def test_a_clean_whose_residual_grows_is_given_up(tmp_path, monkeypatch):
    stokes = observed(sky(5), noise_jy=NOISE_JY, nchan=4)
    with pytest.raises(Diverged, match="a minor cycle grew"):
        image(stokes, tmp_path, gain=0.99)  # of neighbours that are one source
    whole = wgridder._Transforms.residual

    def worse(self, vis, model, exact):
        return whole(self, vis, -20 * model, exact)

    monkeypatch.setattr(wgridder._Transforms, "residual", worse)
    with pytest.raises(Diverged, match=r"residual peak .* after 1 major cycles"):
        image(stokes, tmp_path)


@pytest.mark.parametrize(("value", "peak"), [(-3, 3), (np.nan, np.inf), (np.inf, np.inf)])
def test_the_peak_of_an_image(value, peak):
    values = np.zeros((8, 8), np.float32)
    values[2, 3], values[2, 5] = value, 1
    assert cleaning.peak_of(values) == peak


def test_multiscale_keeps_what_is_extended(tmp_path):
    """A Gaussian of 60 arcsec, six beams: points leave a plateau, scales find its flux."""
    stokes = observed([(2.0, 200, 100, 60.0)], noise_jy=0.05, every=1, nchan=8)
    sums = [
        image(stokes, tmp_path, multiscale=multiscale, threshold_sigma=3.0)[0]
        .components[:, 2]
        .sum()
        for multiscale in (True, False)
    ]
    assert sums[0] == pytest.approx(2, rel=0.1)
