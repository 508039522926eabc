"""The slanted plane against phases that are computed directly."""

import ducc0
import numpy as np
import pytest
from astropy.wcs import WCS

from contimg.config import ImagingConfig
from contimg.imaging.averaging import Averaged
from contimg.imaging.backends import wgridder
from contimg.imaging.files import Grid
from contimg.imaging.interface import Beam, ImageRequest
from contimg.imaging.plane import Plane, between_grids, choose_way, fit_plane, regrid
from contimg.imaging.restoring import restore
from contimg.imaging.validation import fit_source
from contimg.imaging.weighting import image_weights
from contimg.simulate import station_positions
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, meridian_frame_m, meridian_icrs_deg, track
from tests.conftest import STATIONS

FREQ_HZ = 1.4e9
CELL_RAD = np.radians(3.0 / 3600)
DECLINATIONS = [-30.0, -10.0, 16.0, 54.0, 72.0, 85.0]


def uvw_of(dec_deg, ntime=24, every=1, interval_s=12.885):
    """uvw (nrow, 3) in metres of a group on the meridian."""
    positions, active = station_positions(STATIONS)
    stations = meridian_frame_m(positions[active][::every])
    one, two = np.triu_indices(len(stations), 1)
    mjd = 61101.8475 + np.arange(ntime) * interval_s / 86400
    ra, dec = meridian_icrs_deg(mjd[[ntime // 2]], np.radians(dec_deg))
    axes = track(float(ra[0]), float(dec[0]), mjd).axes
    return np.einsum("tij,bj->tbi", axes, stations[one] - stations[two]).reshape(-1, 3)


def phases(uvw_m, l, m):
    """Visibilities of a point source of 1 Jy, exactly."""
    n = np.sqrt(1 - l**2 - m**2)
    return np.exp(2j * np.pi * FREQ_HZ / SPEED_OF_LIGHT_M_S * (uvw_m @ [l, m, n - 1]))


@pytest.mark.parametrize("dec_deg", DECLINATIONS)
def test_a_group_is_a_plane_and_a_source_is_where_the_plane_puts_it(dec_deg):
    """The peak of a 2-D transform, and its place, for a source 1.35 deg off, in four directions."""
    uvw_m = uvw_of(dec_deg)
    plane = fit_plane(uvw_m=uvw_m, weights=np.ones(len(uvw_m)))
    assert plane.left_m < 0.04 * uvw_m[:, 2].std() + 5
    zenith = np.tan(np.radians(37.23 - dec_deg))
    assert plane.b == pytest.approx(-zenith, abs=0.02 * (1 + abs(zenith)))
    left = plane.without(uvw_m)
    assert left[:, 2].std() == pytest.approx(plane.left_m, rel=0.05)
    radius = np.sin(np.radians(1.35))
    for l, m in radius * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]):
        turned = phases(uvw_m, l, m)
        ls, ms = plane.slanted(l, m)
        # around the expected place: the response and its slope
        turns = 2 * np.pi * FREQ_HZ / SPEED_OF_LIGHT_M_S * uvw_m[:, :2]
        phase = np.angle(turned * np.exp(-1j * (turns @ [ls, ms])))
        loss = 1 - np.cos(phase).mean()
        assert loss < 1.3 * plane.loss(1.35, FREQ_HZ) + 1e-6
        shift = np.linalg.lstsq(turns, phase, rcond=None)[0]
        assert np.degrees(np.hypot(*shift)) * 3600 < 0.01


@pytest.mark.parametrize("plane", [Plane(0.002, -0.38, 0), Plane(-0.01, 2.4, 0), Plane(0, 0, 0)])
def test_slanted_and_plain_places_are_each_others_inverse(plane):
    l, m = np.radians(np.random.default_rng(1).uniform(-2.5, 2.5, (2, 1000)))
    back = plane.plain(*plane.slanted(l, m))
    assert np.abs(np.subtract(back, (l, m))).max() < 1e-15


def test_the_slanted_grid_is_that_of_fits():
    """PV2_1 = -a, PV2_2 = -b: astropy's places are ours to a microarcsecond."""
    plane, plain, slant = Plane(0.0123, -0.384, 0), WCS(naxis=2), WCS(naxis=2)
    for wcs in (plain, slant):
        wcs.wcs.ctype, wcs.wcs.crval = ["RA---SIN", "DEC--SIN"], (347.0, 16.0)
        wcs.wcs.crpix, wcs.wcs.cdelt = [1, 1], [-3 / 3600, 3 / 3600]
    slant.wcs.set_pv([(2, 1, -plane.a), (2, 2, -plane.b)])
    pixels = np.random.default_rng(2).uniform(-2000, 2000, (100, 2))
    l, m = plane.slanted(-pixels[:, 0] * CELL_RAD, pixels[:, 1] * CELL_RAD)
    sky = slant.wcs_pix2world(np.stack([-l, m], axis=1) / CELL_RAD, 0)
    assert np.abs(sky - plain.wcs_pix2world(pixels, 0)).max() * 3600 < 1e-6
    components = np.column_stack([pixels + 2500, np.ones(100)])
    ways = {"from_npix": 5000, "to_npix": 5400, "cell_rad": CELL_RAD}
    there = between_grids(components, to=plane.slanted, **ways)
    assert there[:, :2] - 2700 == pytest.approx(np.stack([-l, m], axis=1) / CELL_RAD)


@pytest.mark.parametrize("beam", [Beam(30, 15, 40), Beam(13, 12, -10)])
def test_regridding_is_what_the_slanted_image_is_between_its_pixels(beam):
    plane, npix, wide = Plane(0.3, -0.8, 0), 512, 560
    cell_rad = 10 * CELL_RAD  # the field of ten times as many pixels
    rng = np.random.default_rng(3)
    components = np.column_stack([*rng.uniform(20, wide - 20, (2, 60)), np.ones(60)])
    slanted = restore(
        residual=np.zeros((wide, wide)), components=components, beam=beam, cell_arcsec=3.0
    )
    found = regrid(image=slanted, plane=plane, npix=npix, cell_rad=cell_rad)
    i, j = np.meshgrid(np.arange(npix), np.arange(npix), indexing="ij")
    ls, ms = plane.slanted(-(i - npix / 2) * cell_rad, (j - npix / 2) * cell_rad)
    x, y = wide / 2 - ls / cell_rad, wide / 2 + ms / cell_rad
    expected = np.zeros((npix, npix))
    for one, two, _ in components:
        expected += beam.gaussian(-(x - one) * 3.0, (y - two) * 3.0)
    assert np.abs(found - expected).max() < 1e-3
    assert min((x % 1).std(), (y % 1).std()) > 0.2  # between the pixels, indeed


def way_of(uvw_m):
    return choose_way(
        uvw_m=uvw_m,
        weights=np.ones(len(uvw_m)),
        freq_hz=FREQ_HZ,
        edge_deg=1.77,
        npix=4800,
        cell_rad=CELL_RAD,
    )


@pytest.mark.parametrize(
    ("dec_deg", "ntime", "name"), [(16, 24, "2-D"), (16, 400, "slanted with w")]
)
def test_the_way_follows_what_is_left_of_w(dec_deg, ntime, name):
    uvw_m = uvw_of(dec_deg, ntime, every=4)
    way = way_of(uvw_m)
    assert way.name == name, way.notes
    assert 20 < way.margin < 60
    bent = uvw_m.copy()
    bent[:, 2] += np.random.default_rng(4).normal(0, 2 * uvw_m[:, 2].std(), len(bent))
    way = way_of(bent)
    assert (way.name, way.margin, way.plane.b) == ("w", 0, 0)


def test_w_on_the_slanted_grid_is_exact():
    """A transform of a long observation with what is left of w, against exact phases."""
    uvw_m = uvw_of(16.0, ntime=200, every=6)
    plane = fit_plane(uvw_m=uvw_m, weights=np.ones(len(uvw_m)))
    npix, i, j = 2500, 120, 2300
    cells = np.array([npix // 2 - i, j - npix // 2])
    turned = phases(uvw_m, *plane.plain(*(cells * CELL_RAD)))
    for with_w, least, most in ((True, 0.9995, 1.0005), (False, 0, 0.997)):
        image = ducc0.wgridder.vis2dirty(
            uvw=plane.without(uvw_m),
            freq=np.array([FREQ_HZ]),
            vis=turned.astype(np.complex64)[:, None],
            npix_x=npix,
            npix_y=npix,
            pixsize_x=CELL_RAD,
            pixsize_y=CELL_RAD,
            epsilon=1e-4,
            do_wgridding=with_w,
            flip_v=True,
            divide_by_n=False,
        )
        assert least < image[i, j] / len(uvw_m) < most


@pytest.mark.parametrize("dec_deg", [-10.0, 54.0, 72.0])
def test_images_are_right_at_every_declination(dec_deg, tmp_path, figure):
    """Exact phases in; fluxes and places of points out to 1.35 deg on the plain grid."""
    uvw_m = uvw_of(dec_deg, every=2)
    freq_hz = FREQ_HZ + np.arange(-3, 4) * 3e6
    npix, cell_arcsec = 2880, 3.6
    rng = np.random.default_rng(6)
    away, angle = np.radians(rng.uniform(0.1, 1.35, 12)), rng.uniform(0, 2 * np.pi, 12)
    away[0] = np.radians(1.35)
    l, m = np.sin(away) * np.cos(angle), np.sin(away) * np.sin(angle)
    flux_jy, depth = rng.uniform(0.2, 1, 12), np.sqrt(1 - np.sin(away) ** 2) - 1
    metres = uvw_m @ np.stack([l, m, depth])
    vis = np.zeros((len(uvw_m), len(freq_hz)), np.complex64)
    for c, hz in enumerate(freq_hz):
        vis[:, c] = np.exp(2j * np.pi * hz / SPEED_OF_LIGHT_M_S * metres) @ flux_jy
    vis += 0.3 * (rng.standard_normal(vis.shape) + 1j * rng.standard_normal(vis.shape))
    natural = np.full(vis.shape, 1 / 0.3**2, np.float32)
    options = ImagingConfig(imsize=npix, cell_arcsec=cell_arcsec)
    weights = image_weights(uvw_m=uvw_m, freq_hz=freq_hz, natural=natural, options=options)
    sums = (natural.sum(axis=1), natural.sum(axis=0))
    averaged = Averaged(uvw_m, freq_hz, vis, natural, weights, 1, 0.0, *sums)
    result = wgridder.deconvolve(ImageRequest(averaged, options, tmp_path, 2, None))
    image = restore(
        residual=result.residual,
        components=result.components,
        beam=result.beam,
        cell_arcsec=cell_arcsec,
    )
    assert result.notes["transforms"] == "2-D"
    grid = Grid(npix, cell_arcsec / 3600, (347.0, dec_deg))
    cell_rad = np.radians(cell_arcsec / 3600)
    pixels = npix // 2 - l / cell_rad, npix // 2 + m / cell_rad
    sky = np.stack(grid.wcs().wcs_pix2world(*pixels, 0), axis=1)
    found = np.array([fit_source(image, grid.wcs(), result.beam, *map(float, at)) for at in sky])
    ratio, offset = found[:, 0] / flux_jy, np.hypot(found[:, 1], found[:, 2])
    figure(
        f"Dec {dec_deg:+.0f}: fluxes {ratio.mean():.4f} +- {ratio.std():.4f}, offsets "
        f'{offset.mean():.3f}", {offset.max():.3f}" at most; w left '
        f"{result.notes['w_left_m']:.1f} m, loss {result.notes['plane_loss']:.1e}"
    )
    assert ratio.mean() == pytest.approx(1, abs=0.003)
    assert np.abs(ratio - 1).max() < 0.012
    assert offset.mean() < 0.1
