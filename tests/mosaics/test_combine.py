"""Tiles as one image: fluxes, places, noise, seams; sums of days."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from contimg.config import MosaicsConfig
from contimg.imaging.interface import robust_rms
from contimg.imaging.restoring import restore
from contimg.mosaics.combine import Sum, add_tile, without
from contimg.mosaics.tracts import tract_of
from tests.mosaics.tiles import BEAM, CELL_DEG, Sky, tile

OPTIONS = MosaicsConfig(cell_arcsec=3600 * CELL_DEG, height_deg=2.0)
NOISE_JY = 1e-3
DEC_DEG = 16.1


def mosaic(rng, tract, sky: Sky, spread=(0.8, 1.6), spacing_deg: float = 0.75) -> Sum:
    """Tiles of a day over a tract, each with its own noise and a grid that is a little off."""
    total = Sum.empty(tract.shape)
    for away in np.arange(-4, 4.1, spacing_deg):
        ra, cell = (tract.centre_deg[0] + away) % 360, 1 + rng.uniform(-1e-4, 1e-4)
        one = tile(rng, sky, ra, DEC_DEG + 0.1, NOISE_JY * rng.uniform(*spread), cell)
        add_tile(total, tract, one, BEAM)
    return total


@pytest.fixture(scope="module", params=["+16.1_355", "+16.1_100"])
def made(request):
    """A tract (one of them ends at 0 h), its sky, and a day."""
    rng = np.random.default_rng(5)
    tract = tract_of(request.param, OPTIONS)
    middle = tract.centre_deg[0]
    sky = Sky.of(rng, (middle - 3, middle + 3), (DEC_DEG - 0.8, DEC_DEG + 0.8), 300)
    return tract, sky, mosaic(rng, tract, sky)


def peaks(total: Sum, x: np.ndarray, y: np.ndarray):
    """Height and place of the peak near each place, by a parabola through 3 x 3 pixels."""
    i, j = np.round([x, y]).astype(int)
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    design = np.array([[1, a, b, a * a, a * b, b * b] for a, b in around])
    log = np.log([total.image[i + a, j + b] for a, b in around])
    c = np.linalg.lstsq(design, log, rcond=None)[0]
    turn = np.stack([[2 * c[3], c[4]], [c[4], 2 * c[5]]]).transpose(2, 0, 1)
    off = np.linalg.solve(turn, -c[1:3].T[..., None])[..., 0]
    height = np.exp(c[0] + 0.5 * (c[1:3].T * off).sum(axis=1))
    return height, i + off[:, 0], j + off[:, 1]


def alone(sky: Sky, apart_deg: float) -> np.ndarray:
    dx = (sky.ra_deg[:, None] - sky.ra_deg + 180) % 360 - 180
    away = np.hypot(dx * np.cos(np.radians(DEC_DEG)), sky.dec_deg[:, None] - sky.dec_deg)
    away[np.diag_indices(len(away))] = 9
    return away.min(axis=1) > apart_deg


def test_fluxes_and_places_are_those_of_the_sky(made):
    tract, sky, total = made
    x, y = tract.pixels_of(sky.ra_deg, sky.dec_deg)
    inside = (np.minimum(x, y) > 9) & (x < tract.shape[0] - 9) & (y < tract.shape[1] - 9)
    use = inside & alone(sky, 0.03) & (sky.flux_jy > 0.05)
    weight = map_coordinates(total.weight, [x[use], y[use]], order=0)
    height, found_x, found_y = peaks(total, x[use], y[use])
    ratio, error = height / sky.flux_jy[use], weight**-0.5 / sky.flux_jy[use]
    assert use.sum() > 20
    assert np.average(ratio, weights=error**-2) == pytest.approx(1, abs=0.003)
    off_arcsec = np.hypot(found_x - x[use], found_y - y[use]) * OPTIONS.cell_arcsec
    assert np.median(off_arcsec) < 0.1
    assert ((ratio - 1) / error).std() == pytest.approx(1, abs=0.35)


def test_noise_is_what_the_weights_say(made):
    _, _, total = made
    noise = robust_rms(total.image * np.sqrt(total.weight))
    assert noise == pytest.approx(1, abs=0.05)


def test_no_tile_leaves_a_seam(made):
    """Across the border of a tile the mean image does not jump: columns on both sides of places
    where the number of tiles changes."""
    _, _, total = made
    weighed = total.image * np.sqrt(total.weight)  # in sigma
    middle = weighed.shape[1] // 2
    number = total.number[:, middle].astype(int)
    borders = np.flatnonzero(np.diff(number)) + 1
    borders = borders[(borders > 40) & (borders < len(number) - 40)]
    assert len(borders) > 8
    beam_pixels = BEAM.major_arcsec / OPTIONS.cell_arcsec
    for border in borders:
        sides = []
        for side in (slice(border - 24, border), slice(border, border + 24)):
            part = weighed[side, middle - 60 : middle + 60]
            sides.append(np.median(part))
        expected = 1.25 * np.sqrt(2 * 2 * beam_pixels**2 / (24 * 120))  # of medians of noise
        assert abs(sides[1] - sides[0]) < 0.5 + expected


def test_a_tile_that_is_alone_comes_out_as_it_was():
    """Without noise, at places between all pixels."""
    rng = np.random.default_rng(3)
    tract = tract_of("+16.1_100", OPTIONS)
    ra, dec = tract.centre_deg
    sky = Sky(ra + rng.uniform(-0.5, 0.5, 40), dec + rng.uniform(-0.5, 0.5, 40), np.full(40, 0.1))
    sky = Sky(*(v[alone(sky, 0.05)] for v in (sky.ra_deg, sky.dec_deg, sky.flux_jy)))
    for share in (1.0, 0.5):  # as components; in the residual
        one = tile(rng, sky, ra + 0.3, dec - 0.1, 1e-7)
        if share < 1:
            as_image = tile(
                rng, replace(sky, flux_jy=sky.flux_jy * 1e-12), ra + 0.3, dec - 0.1, 1e-7
            )
            residual = restore(
                residual=as_image.residual,
                components=one.components,
                beam=BEAM,
                cell_arcsec=3600 * one.cell_deg,
            )
            one = replace(as_image, residual=residual, components=np.zeros((0, 3)))
        total = Sum.empty(tract.shape)
        add_tile(total, tract, one, BEAM)
        x, y = tract.pixels_of(sky.ra_deg, sky.dec_deg)
        height, found_x, found_y = peaks(total, x, y)
        assert height == pytest.approx(0.1, rel=1e-3)
        # a beam that falls across a source moves its peak: 0.03 arcsec half a degree off
        assert np.hypot(found_x - x, found_y - y).max() * OPTIONS.cell_arcsec < 0.08


def test_days_add_up_and_can_be_taken_out_again():
    rng = np.random.default_rng(8)
    tract = tract_of("+16.1_100", OPTIONS)
    sky = Sky.of(rng, (100, 105), (DEC_DEG - 0.8, DEC_DEG + 0.8), 50)
    days = [mosaic(rng, tract, sky, spacing_deg=1.5) for _ in range(3)]
    total = Sum.empty(tract.shape)
    for day in days:
        total.add(day)
    good = total.weight > 0
    expected = sum(np.nan_to_num(d.image) * d.weight.astype(float) for d in days)[good]
    expected /= sum(d.weight.astype(float) for d in days)[good]
    np.testing.assert_allclose(total.image[good], expected, atol=1e-6)
    assert np.isnan(total.image[~good]).all()
    rest, both = without(total, days[2]), Sum.empty(tract.shape)
    both.add(days[0])
    both.add(days[1])
    good = both.weight > 0.01 * both.weight.max()
    np.testing.assert_allclose(rest.image[good], both.image[good], atol=1e-5)


def test_what_is_elsewhere_adds_nothing():
    rng = np.random.default_rng(9)
    tract = tract_of("+16.1_100", OPTIONS)
    sky = Sky.of(rng, (200, 201), (16, 16.2), 3)
    total = Sum.empty(tract.shape)
    for ra in (200.0, 110.0, 282.5):
        assert add_tile(total, tract, tile(rng, sky, ra, DEC_DEG, NOISE_JY), BEAM) == 0
    assert not total.weight.any()
