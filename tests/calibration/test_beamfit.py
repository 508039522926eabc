"""The beam from sources that drift through it, on fluxes that are known exactly; the true beam is
that of the simulator."""

import numpy as np
import pytest

from contimg.calibration.beamfit import Measured, airy_fwhm_deg, fit_beam
from contimg.calibration.beams import choose_beam, known_beams, retire_beam, write_beam
from contimg.config import ImagingConfig
from contimg.errors import CalibrationError, ConfigError
from contimg.simulate import _airy_power
from contimg.sky.beam import AIRY

FREQ_HZ, DRIFT_DEG, DEC_DEG = 1.405e9, 1.24, 16.1
TIMES = ((np.arange(24) + 0.5) / 24 - 0.5) * DRIFT_DEG


def response(east, north, wide, points):
    """Averaged over a group's drift."""
    along = np.sin(np.radians(east[:, None] - TIMES - points[0])) / wide[0]
    up = np.sin(np.radians(north[:, None] - points[1])) / wide[1]
    away = np.arcsin(np.hypot(along, up))
    return _airy_power(away.ravel(), np.array([FREQ_HZ])).reshape(away.shape).mean(axis=1)


def seen(seed, wide, points, groups=16, odd=0.05):
    """A strip of sources in so many groups; a few of them vary, or are none of the catalogue's."""
    rng = np.random.default_rng(seed)
    number = 70 * groups
    place = np.stack([rng.uniform(-3, groups * 1.24 + 3, number), rng.uniform(-2.4, 2.4, number)])
    flux_jy = np.minimum(0.02 * (1 - rng.random(number)) ** (-1 / 1.1), 5.0)
    catalogue_jy = flux_jy * np.exp(rng.normal(0, 0.08, number))
    rows, rms_jy = [], 0.0006
    for group in range(groups):
        east, north = place[0] - group * DRIFT_DEG, place[1]
        expected = catalogue_jy * response(east, north, (1, 1), (0, 0))
        chosen = np.flatnonzero((np.hypot(east, north) < 2.6) & (expected > 10 * rms_jy))
        scale = np.exp(rng.normal(0, 0.01))
        true = flux_jy * scale * response(east, north, wide, points)
        wrong = rng.random(number) < odd
        apparent_jy = np.where(wrong, true * 1.4, true) + rng.normal(0, rms_jy, number)
        rows += [
            (group, i, east[i], north[i], apparent_jy[i], rms_jy, catalogue_jy[i]) for i in chosen
        ]
    group, source, *values = np.array(rows).T
    return Measured(group.astype(int), source.astype(int), *values)


@pytest.mark.parametrize(
    ("wide", "points"), [((1.18, 1.18), (0.15, 0.0)), ((1.07, 0.96), (0.0, -0.1)), ((1, 1), (0, 0))]
)
def test_widths_and_pointing_are_found(wide, points):
    pulls = []
    for seed in range(2):
        fit = fit_beam(seen(seed, wide, points), FREQ_HZ, DRIFT_DEG)
        true_deg = airy_fwhm_deg(FREQ_HZ) * np.array(wide)
        assert fit.fwhm_east_deg == pytest.approx(true_deg[0], rel=0.01)
        assert fit.fwhm_north_deg == pytest.approx(true_deg[1], rel=0.01)
        assert fit.east_deg == pytest.approx(points[0], abs=0.01)
        assert fit.north_deg == pytest.approx(points[1], abs=0.01)
        # along the drift no catalogue is needed
        assert fit.ratios_fwhm_east_deg == pytest.approx(true_deg[0], rel=0.01)
        assert fit.ratios_east_deg == pytest.approx(points[0], abs=0.01)
        assert fit.chi2 < 1.5
        pulls += [
            (fit.fwhm_east_deg - true_deg[0]) / fit.fwhm_east_error_deg,
            (fit.fwhm_north_deg - true_deg[1]) / fit.fwhm_north_error_deg,
            (fit.east_deg - points[0]) / fit.east_error_deg,
            (fit.north_deg - points[1]) / fit.north_error_deg,
        ]
    assert np.sqrt(np.mean(np.square(pulls))) < 1.6


def test_a_fitted_beam_is_the_one_that_images_are_made_with(tmp_path):
    fit = fit_beam(seen(5, (1.2, 1.1), (0.12, 0.05)), FREQ_HZ, DRIFT_DEG)
    folder, options = tmp_path / "beams", ImagingConfig(beam="fitted")
    with pytest.raises(
        ConfigError, match=r"no active beam of declination 16\.1.*contimg instrument DAY"
    ):
        choose_beam(options, folder, DEC_DEG, 61000.0, 1.0)
    for first in (60000.0, 61000.0):
        write_beam(
            folder / f"{first:.0f}.fits",
            fit,
            app_dec_deg=DEC_DEG,
            first_mjd=first,
            last_mjd=first + 1,
            groups=["2026-01-25T22:26:05"],
        )
    assert [one["first_mjd"] for one in known_beams(folder)] == [60000.0, 61000.0]
    beam, said = choose_beam(options, folder, DEC_DEG, 60990.0, 1.0)  # the nearest in time
    assert said["beam"] == "fitted 61000"
    with pytest.raises(ConfigError, match="no active beam of declination 18"):
        choose_beam(options, folder, 18.1, 60990.0, 1.0)
    east, north = np.meshgrid(np.linspace(-1.8, 1.8, 13), np.linspace(-1.8, 1.8, 13))
    for freq_hz in (FREQ_HZ, 1.32e9, 1.49e9):
        found = beam.power(np.sin(np.radians(east)), np.sin(np.radians(north)), freq_hz)
        along = np.sin(np.radians(east - 0.12)) / 1.2
        up = np.sin(np.radians(north - 0.05)) / 1.1
        away = np.arcsin(np.hypot(along, up)).ravel()
        true = _airy_power(away, np.array([freq_hz])).reshape(east.shape)
        assert found == pytest.approx(true, abs=0.01)
    assert choose_beam(ImagingConfig(), folder, DEC_DEG, 60990.0, 1.0)[0] is AIRY
    # a person said that it is wrong: the other one is chosen, also when it is written again
    retire_beam(folder, "61000", "made on a day of storm")
    write_beam(
        folder / "61000.fits",
        fit,
        app_dec_deg=DEC_DEG,
        first_mjd=61000.0,
        last_mjd=61001.0,
        groups=["2026-01-25T22:26:05"],
    )
    said = choose_beam(options, folder, DEC_DEG, 60990.0, 1.0)[1]
    assert said["beam"] == "fitted 60000"
    assert [(one["status"], one["notes"]) for one in known_beams(folder)] == [
        ("active", ""),
        ("retired", "made on a day of storm"),
    ]
    with pytest.raises(CalibrationError, match="beam 62000 is not in"):
        retire_beam(folder, "62000", "no such")


def test_too_little_is_no_beam():
    few = seen(1, (1, 1), (0, 0), groups=1)
    with pytest.raises(ValueError, match="too few for a beam"):
        fit_beam(few, FREQ_HZ, DRIFT_DEG)
