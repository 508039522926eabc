import numpy as np
import pytest

from contimg.errors import ImagingError
from contimg.imaging.files import Grid
from contimg.imaging.interface import Beam, robust_rms
from contimg.imaging.restoring import components_of, fit_restoring_beam, model_of, restore
from contimg.imaging.stokes import _stokes_i
from contimg.imaging.validation import fit_source

CELL = 3.0


def offsets(npix):
    x = (np.arange(npix) - npix // 2) * CELL
    return -x[:, None], x[None, :]  # east, north


@pytest.mark.parametrize(
    "beam", [Beam(30, 15, -88), Beam(46, 10, 30), Beam(20, 20, 0), Beam(28, 14, 2)]
)
def test_the_restoring_beam_of_a_gaussian_is_that_gaussian(beam):
    found = fit_restoring_beam(beam.gaussian(*offsets(200)), CELL)
    assert found.major_arcsec == pytest.approx(beam.major_arcsec, rel=1e-3)
    assert found.minor_arcsec == pytest.approx(beam.minor_arcsec, rel=1e-3)
    if beam.major_arcsec > beam.minor_arcsec:
        assert abs((found.pa_deg - beam.pa_deg + 90) % 180 - 90) < 0.1


def test_restoring_keeps_peak_and_place_on_and_between_pixels():
    beam, blank = Beam(30, 15, 40), np.zeros((200, 200), np.float32)
    east, north = offsets(200)
    for x, y in ((120.0, 90.0), (120.3, 89.6), (-2.0, 100.0), (500.0, 0.0)):
        image = restore(
            residual=blank, components=np.array([[x, y, 2.0]]), beam=beam, cell_arcsec=CELL
        )
        expected = 2 * beam.gaussian(east + (x - 100) * CELL, north - (y - 100) * CELL)
        assert np.abs(image - expected).max() < 1e-6
    assert not blank.any()


def test_a_model_and_its_components():
    model = np.zeros((64, 64), np.float32)
    model[3, 5], model[10, 0] = 1.5, -0.2
    components = components_of(model)
    assert components.tolist() == [[3, 5, 1.5], [10, 0, pytest.approx(-0.2)]]
    assert np.array_equal(model_of(components, 64), model)
    between = np.array([[3.4, 5.4, 1.0], [2.6, 4.6, 0.5], [70.0, 1.0, 9.0]])
    assert model_of(between, 64)[3, 5] == model_of(between, 64).sum() == 1.5


def test_cells_too_coarse_for_the_psf_are_refused():
    with pytest.raises(ImagingError, match="use smaller cells"):
        fit_restoring_beam(Beam(4, 3, 0).gaussian(*offsets(64)), CELL)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.3, -0.8), (-4.0, 5.0)])
def test_a_source_is_measured_between_pixels(shift):
    beam, grid = Beam(30, 15, -88), Grid(200, CELL / 3600, (347.0, 16.0))
    east, north = offsets(200)
    image = 0.35 * beam.gaussian(east - 60 - shift[0], north + 90 - shift[1])
    ra, dec = grid.wcs().wcs_pix2world(100 - 60 / CELL, 100 - 90 / CELL, 0)
    peak, found_east, found_north = fit_source(image, grid.wcs(), beam, float(ra), float(dec))
    assert peak == pytest.approx(0.35, rel=1e-3)
    assert (found_east, found_north) == pytest.approx(shift, abs=0.02)


def test_sources_at_the_edge_are_not_measured():
    grid = Grid(200, CELL / 3600, (347.0, 16.0))
    ra, dec = grid.wcs().wcs_pix2world(2, 100, 0)
    assert (
        fit_source(np.ones((200, 200)), grid.wcs(), Beam(30, 15, 0), float(ra), float(dec)) is None
    )


def test_robust_rms_ignores_sources():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 3, 100_000)
    noise[:500] += 1000
    assert robust_rms(noise) == pytest.approx(3, rel=0.02)


def test_stokes_i_and_its_weight():
    rng = np.random.default_rng(0)
    data = np.full((200_000, 1, 2), 5 + 0j)
    sigma = np.array([1.0, 2.0])
    data += (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)) * sigma
    weights = np.broadcast_to(1 / sigma**2, data.shape).astype(np.float32)
    data, use = data.astype(np.complex64), np.ones(len(data), bool)
    vis, weight = np.empty(data.shape[:2], np.complex64), np.empty(data.shape[:2], np.float32)
    polarised, of_polarised = np.zeros_like(vis), np.zeros_like(weight)
    none = np.zeros(data.shape, bool)
    _stokes_i(data, none, weights, use, vis, weight, polarised, of_polarised)
    assert polarised.mean() == pytest.approx(0, abs=0.02)
    assert polarised.real.var() == pytest.approx(1 / of_polarised[0, 0], rel=0.02)
    assert vis.mean() == pytest.approx(5, abs=0.02)
    assert vis.real.var() == pytest.approx(1 / weight[0, 0], rel=0.02)
    flags = np.zeros(data.shape, bool)
    flags[7, 0, 1] = True
    use[3] = False
    polarised[:], of_polarised[:] = 0, 0
    _stokes_i(data, flags, weights, use, vis, weight, polarised, of_polarised)
    assert not of_polarised[[3, 7], 0].any()
    assert not weight[[3, 7], 0].any()
    assert weight[8, 0] > 0
