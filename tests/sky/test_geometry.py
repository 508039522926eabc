import json

import numpy as np
import pytest
from astropy.time import Time

from contimg.errors import ContimgError
from contimg.simulate import station_positions
from contimg.sky.beam import airy_power, drift_beam
from contimg.sky.geometry import (
    apparent_vectors,
    direction_cosines,
    meridian_frame_m,
    meridian_icrs_deg,
    meridian_vector,
    separation_deg,
    track,
)
from tests.conftest import STATIONS


def test_phase_centre_against_the_independent_sample(sample):
    for group in ("calibrator", "target"):
        truth = json.loads((sample / group / "truth.json").read_text())
        ra, dec = meridian_icrs_deg(truth["mid_mjd"], np.radians(truth["args"]["dec"]))
        assert separation_deg(ra, dec, *truth["centre"]) * 3600 < 1e-3


@pytest.mark.parametrize("mjd", [61065.93, 61156.5, 61247.6])
@pytest.mark.parametrize("ra", [0.001, 91.0, 271.0])
def test_uvw_against_pyuvdata(mjd, ra):
    """ICRS uvw within 1 mm on 2.7 km, also at RA 6 h and 18 h, where the pole of date is off most
    (trap 16)."""
    from pyuvdata import utils

    positions, active = station_positions(STATIONS)
    dec = 30.0
    from contimg.sky.geometry import SITE
    from contimg.telescope import TELESCOPE

    jd = np.array([mjd + 2400000.5])
    app_ra, app_dec = utils.phasing.calc_app_coords(
        lon_coord=np.radians(ra),
        lat_coord=np.radians(dec),
        coord_frame="icrs",
        time_array=jd,
        telescope_loc=SITE,
    )
    frame_pa = utils.phasing.calc_frame_pos_angle(
        time_array=jd,
        app_ra=app_ra,
        app_dec=app_dec,
        telescope_loc=SITE,
        ref_frame="icrs",
        offset_pos=np.radians(
            1e-3
        ),  # its default of half a degree turns the field by up to 3 arcsec
    )
    lst = utils.get_lst_for_time(jd, telescope_loc=SITE)
    theirs = utils.phasing.calc_uvw(
        app_ra=app_ra.repeat(len(positions)),
        app_dec=app_dec.repeat(len(positions)),
        frame_pa=frame_pa.repeat(len(positions)),
        lst_array=lst.repeat(len(positions)),
        use_ant_pos=True,
        antenna_positions=np.vstack([[0, 0, 0], positions]),
        antenna_numbers=np.arange(len(positions) + 1),
        ant_1_array=np.zeros(len(positions), int),
        ant_2_array=np.arange(1, len(positions) + 1),
        telescope_lat=TELESCOPE.latitude_rad,
        telescope_lon=TELESCOPE.longitude_rad,
    )
    ours = meridian_frame_m(positions) @ track(ra, dec, np.array([mjd])).axes[0].T
    longest = np.linalg.norm(positions[active], axis=1).max()
    assert longest > 1000
    assert np.abs(ours - theirs).max() < 1e-3


def test_north_is_icrs_north_not_the_pole_of_date():
    """A source due north of the centre keeps u = 0 in our frame; in the frame of date it is off by
    precession."""
    mjd = np.array([61156.5])
    axes = track(90.0, 16.0, mjd).axes[0]
    north = apparent_vectors(np.array([90.0]), np.array([17.35]), mjd)[0, 0]
    assert abs(np.degrees(north @ axes[0])) * 3600 < 0.1
    centre = apparent_vectors(np.array([90.0]), np.array([16.0]), mjd)[0, 0]
    east_of_date = np.cross([0, 0, 1], centre)
    of_date = np.degrees(north @ (east_of_date / np.linalg.norm(east_of_date))) * 3600
    assert 10 < abs(of_date) < 15  # FACTS: 12.8 arcsec at 1.35 deg


def test_aberration_scale_is_the_apparent_size_of_the_field():
    mjd = np.array([61065.94])
    tracking = track(347.7, 16.0, mjd)
    edge = apparent_vectors(np.array([347.7]), np.array([17.35]), mjd)[0, 0]
    apparent_deg = np.degrees(np.arcsin(edge @ tracking.axes[0, 1]))
    assert abs(apparent_deg / tracking.scale - 1.35) * 3600 < 0.05
    assert 2e-5 < abs(tracking.scale - 1) < 1.1e-4


def test_separation_does_not_wrap_at_0h():
    assert separation_deg(359.999, 0, 0.001, 0) == pytest.approx(0.002)


def test_half_power_width_of_the_dish():
    half = np.sin(np.radians(2.71 / 2))
    assert airy_power(half, 1.4e9) == pytest.approx(0.5, abs=0.005)
    assert airy_power(0.0, 1.4e9) == pytest.approx(1)
    assert (np.diff(airy_power(np.sin(np.radians(np.linspace(0, 2.9, 50))), 1.4e9)) < 0).all()


def test_drift_beam_against_a_direct_sum():
    mjd = 61065.94 + np.arange(24) * 12.884902 / 86400
    dec = np.radians(16.15)
    centre = [float(x) for x in meridian_icrs_deg(mjd.mean(), dec)]
    beam_lm = np.stack(direction_cosines(*meridian_icrs_deg(mjd, dec), *centre), axis=1)
    freq, time_weights = np.linspace(1.31e9, 1.5e9, 16), np.linspace(1, 2, 24)
    l = m = np.radians(np.linspace(-2, 2, 41))
    grid = drift_beam(-l, m, beam_lm, freq, time_weights, np.ones(16))
    for i, j in ((20, 20), (5, 30), (35, 35), (0, 20)):
        direction = np.array([-l[i], m[j], np.sqrt(1 - l[i] ** 2 - m[j] ** 2)])
        beams = np.c_[beam_lm, np.sqrt(1 - (beam_lm**2).sum(1))]
        sin_theta = np.linalg.norm(np.cross(direction, beams), axis=1)
        direct = np.average(airy_power(sin_theta[:, None], freq).mean(1), weights=time_weights)
        assert grid[i, j] == pytest.approx(direct, abs=2e-5)
    assert grid[20, 20] == pytest.approx(0.954, abs=0.005)  # FACTS: mean 0.95 at the phase centre


def test_the_tracked_direction_is_where_its_icrs_position_is_seen():
    mjd = np.array([61065.94])
    ra, dec = meridian_icrs_deg(mjd, np.radians(16.15))
    seen = apparent_vectors(ra, dec, mjd)[0, 0]
    assert np.degrees(np.linalg.norm(seen - meridian_vector(np.radians(16.15)))) * 3600 < 1e-3


def test_observations_of_today_have_an_earth_and_those_beyond_its_predictions_are_refused():
    today = Time.now().mjd
    assert np.isfinite(meridian_icrs_deg(today, 0.3)).all()
    assert np.isfinite(apparent_vectors([10.0], [16.0], [today])).all()
    with pytest.raises(
        ContimgError, match=r"no UT1 after MJD .*: pip install -U astropy-iers-data"
    ):
        meridian_icrs_deg(today + 4000, 0.3)


def test_the_copied_earth_orientation_is_astropys(tmp_path, monkeypatch):
    """UT1 and polar motion from the copy, which is made, used, and made anew when it is damaged."""
    from astropy.time import Time
    from astropy.utils import iers

    from contimg.sky import earth_orientation

    times = Time(np.linspace(58000, earth_orientation.last_mjd() - 1, 500), format="mjd")
    iers.earth_orientation_table.set(None)
    own = iers.earth_orientation_table.get()
    expected = own.ut1_utc(times), *own.pm_xy(times), *own.dcip_xy(times)
    monkeypatch.setattr(earth_orientation, "CACHE", tmp_path / "new")
    copy = earth_orientation._copy_of_tables()
    for damage in (None, b"", b"\x93NUMPY junk"):
        if damage is not None:
            copy.write_bytes(damage)
        for _ in range(2):
            iers.earth_orientation_table.set(None)
            table = earth_orientation._read(copy)
            found = table.ut1_utc(times), *table.pm_xy(times), *table.dcip_xy(times)
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one.value, other.value, equal_nan=True)
            assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    iers.earth_orientation_table.set(table)
