"""The division of the sky."""

import numpy as np
import pytest

from contimg.config import MosaicsConfig
from contimg.errors import RequestError
from contimg.mosaics.tracts import OVERLAP_DEG, STEP_DEG, crossed, strip_of, tract_of
from contimg.photometry.epochs import sidereal_day
from tests.mosaics.tiles import mjd_at

OPTIONS = MosaicsConfig()
NAMES = [f"+16.1_{ra:03d}" for ra in range(0, 360, STEP_DEG)]


def test_tracts_cover_a_strip_and_overlap_by_half_a_degree():
    tracts = [tract_of(name, OPTIONS) for name in NAMES]
    for ra in np.arange(0.05, 360, 0.7):
        for dec in (14.0, 16.1, 18.2):
            assert any(t.contains(ra, dec) for t in tracts), (ra, dec)
    for one, other in zip(tracts, tracts[1:] + tracts[:1], strict=True):
        border = other.centre_deg[0] - STEP_DEG / 2
        for dec in (14.0, 18.2):
            for aside in (-0.48, 0.48):
                ra = (border + aside * OVERLAP_DEG) % 360
                assert one.contains(ra, dec)
                assert other.contains(ra, dec)
    assert not tracts[0].contains(183.0, 16.1)
    assert tracts[0].cell_deg * tracts[0].shape[1] == pytest.approx(4.4, abs=0.01)


def test_pixels_are_those_of_the_wcs():
    tract = tract_of("-03.0_355", OPTIONS)
    ra, dec = np.array([354.8, 357.2, 0.1]), np.array([-4.1, -3.0, -1.2])
    assert np.array(tract.pixels_of(ra, dec)) == pytest.approx(
        np.array(tract.wcs().wcs_world2pix(ra, dec, 0)), abs=1e-6
    )


@pytest.mark.parametrize("name", ["+16.1_346", "+16.1_360", "16.1_345", "", "+16.1"])
def test_what_is_no_tract_is_refused(name):
    with pytest.raises(RequestError, match="no tract"):
        tract_of(name, OPTIONS)


@pytest.mark.parametrize("ra_deg", [0.3, 2.5, 100.0, 357.6])
def test_an_image_crosses_the_tracts_that_it_shows_on_the_day_of_their_sources(ra_deg):
    day = 9830
    found = dict(crossed(mjd_at(ra_deg, day), "+16.1", 2.0))
    for name in NAMES:
        tract = tract_of(name, OPTIONS)
        for ra in (ra_deg - 1.9 / np.cos(np.radians(16.1)), ra_deg + 1.9 / 0.96):
            if tract.contains(ra % 360, 16.1):
                assert found[name] == sidereal_day(mjd_at(ra_deg, day), ra % 360)
    assert len(found) <= 3


def test_a_strip_is_a_declination_that_is_known_or_new():
    assert strip_of(16.06, {}) == "+16.1"
    assert strip_of(16.049, {"+16.1": 16.06}) == "+16.1"
    assert strip_of(16.21, {"+16.1": 16.149}) == "+16.1"
    assert strip_of(-0.02, {"+16.1": 16.1}) == "-00.0"
    assert strip_of(16.31, {"+16.1": 16.1, "+16.2": 16.2}) == "+16.3"
