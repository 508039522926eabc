"""Numbers of light curves against what was put in."""

import numpy as np
import pytest

from contimg.photometry import variability
from contimg.photometry.variability import Curves

RNG_SEED, SOURCES, DAYS = 4, 4000, 60


@pytest.fixture(scope="module")
def noise():
    """Constant sources with honest errors, of 3 to 300 sigma, a fifth of the days missing."""
    rng = np.random.default_rng(RNG_SEED)
    mean = 10 ** rng.uniform(-2.5, -0.5, SOURCES)
    error = np.full((SOURCES, DAYS), 1e-3) * rng.uniform(0.7, 1.5, (SOURCES, DAYS))
    flux = mean[:, None] + rng.normal(0, error)
    flux[rng.random(flux.shape) < 0.2] = np.nan
    return Curves(flux, error, np.zeros_like(flux))


def test_constants_have_the_numbers_of_noise(noise):
    table = variability.numbers(noise, np.zeros(SOURCES))
    assert table.eta.mean() == pytest.approx(1, abs=0.01)
    assert table.eta.std() == pytest.approx(np.sqrt(2 / (0.8 * DAYS - 1)), rel=0.1)
    bright = table.mean_jy > 0.1
    assert table.modulation[bright].abs().median() < 0.01
    for lag in variability.LAGS_DAYS:  # the noise's part is taken out
        spread = table[f"sf_{lag}"][bright].mean() / table[f"sf_{lag}"][bright].std()
        assert abs(spread) < 5 / np.sqrt(bright.sum())
    # of 100,000 boxes or so the highest is 4 to 6 sigma, not 10
    assert 4 < table.flare.max() < 6.5
    assert 4 < table.dip.max() < 6.5


def test_false_alarms_are_as_many_as_is_said(noise):
    table = variability.numbers(noise, np.zeros(SOURCES))
    for most in (0.1, 1.0, 10.0):
        found = variability.candidates(table.assign(ra_deg=0.0), most)
        assert (found.reasons != "").sum() <= 3 * most + 2
    few = variability.candidates(table.assign(ra_deg=0.0), 10.0)
    assert (few.reasons != "").sum() >= 2  # nor are they far fewer


def test_systematics_are_measured_on_constants_by_the_beam(noise):
    rng = np.random.default_rng(5)
    beam = rng.uniform(0.2, 1, SOURCES)
    moved = np.where(beam > 0.5, 0.01, 0.03)[:, None] * rng.normal(size=noise.flux_jy.shape)
    curves = Curves(noise.flux_jy * (1 + moved), noise.error_jy, noise.of_day)
    found = variability.systematics(curves, beam)
    assert found[beam > 0.5] == pytest.approx(0.01, rel=0.15)
    assert found[beam < 0.5] == pytest.approx(0.03, rel=0.15)
    table = variability.numbers(curves, found)
    assert table.eta[table.mean_jy > 0.1].median() > 3
    assert table.eta_systematic.median() == pytest.approx(1, abs=0.1)
    assert (variability.candidates(table.assign(ra_deg=0.0), 0.1).reasons != "").sum() <= 3


def test_what_varies_is_told_in_words(noise):
    flux = noise.flux_jy.copy()
    row = int(np.argsort(np.abs(np.nanmean(flux, axis=1) - 0.05))[0])
    flux[row, 20:30] *= 0.5
    table = variability.numbers(Curves(flux, noise.error_jy, noise.of_day), np.zeros(SOURCES))
    table = variability.candidates(
        table.assign(ra_deg=0.0), 0.1, lambda day, ra: f"2026-03-{day:02d}"
    )
    assert table.false_alarms.idxmin() == row
    one = table.loc[row]
    assert (one.dip_days, one.dip_begin) == (10, 20)
    assert "over 10 days from 2026-03-20" in one.reasons
    assert one.modulation == pytest.approx(0.2, abs=0.05)
    assert one.sf_1 < one.sf_10  # it stays low for ten days


def test_with_few_days_nothing_is_said():
    curves = Curves(*np.full((3, 30, 2), 0.1))
    table = variability.numbers(curves, np.zeros(30))
    assert table.eta.isna().all()
    table = variability.candidates(table.assign(ra_deg=0.0), 0.1)
    assert (table.reasons == "").all()
