"""What fluxes and offsets that depend on the place say, on tables that are known exactly."""

import numpy as np
import pandas as pd
import pytest

from contimg.config import ValidationConfig
from contimg.imaging.places import beam_of_fluxes, frame_of_offsets, match_words, search

LIMITS = ValidationConfig()
FWHM_DEG = 2.71


def table(number=40, points=(0.0, 0.0), fwhm=(FWHM_DEG, FWHM_DEG), seed=1, odd=0.1):
    """Sources whose fluxes were divided by a round beam of FWHM_DEG, seen through another."""
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(-1.6, 1.6, (2, number))
    shape = 4 * np.log(2)
    taken = np.exp(-shape * (east**2 + north**2) / FWHM_DEG**2)
    real = np.exp(
        -shape * (((east - points[0]) / fwhm[0]) ** 2 + ((north - points[1]) / fwhm[1]) ** 2)
    )
    ratio = real / taken * (1 + rng.normal(0, 0.02, number))
    ratio[rng.random(number) < odd] *= 1.5  # variable
    return pd.DataFrame(
        {
            "flux_jy": 0.1 * ratio,
            "catalogue_jy": 0.1,
            "east_deg": east,
            "north_deg": north,
            "snr": 50.0,
            "beam": taken,
            "found": True,
            "east_arcsec": rng.normal(0, 0.2, number),
            "north_arcsec": rng.normal(0, 0.2, number),
        }
    )


def test_nothing_is_said_of_the_right_beam():
    numbers, findings = beam_of_fluxes(table(), LIMITS)
    assert [one.level for one in findings] == ["good", "good"]
    assert numbers["fwhm_east_deg"] == pytest.approx(FWHM_DEG, abs=0.1)
    _, (frame,) = frame_of_offsets(table(), 30.0, LIMITS)
    assert frame.level == "good"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((0.15, 0.0), "to the east"),
        ((-0.15, 0.0), "to the west"),
        ((0.0, 0.2), "to the north:"),
        ((-0.12, -0.12), "to the south-west"),
    ],
)
def test_where_the_dishes_point_is_in_the_fluxes(points, words):
    numbers, (slope, radius) = beam_of_fluxes(table(points=points), LIMITS)
    assert slope.level == "warn"
    assert words in slope.words
    assert radius.level == "good"
    assert numbers["pointing_east_deg"] == pytest.approx(points[0], abs=0.02)
    assert numbers["pointing_north_deg"] == pytest.approx(points[1], abs=0.02)


def test_how_wide_the_beam_is_is_in_the_fluxes():
    numbers, (slope, radius) = beam_of_fluxes(table(fwhm=(3.2, 2.5)), LIMITS)
    assert (slope.level, radius.level) == ("good", "warn")
    assert numbers["fwhm_east_deg"] == pytest.approx(3.2, abs=0.15)
    assert numbers["fwhm_north_deg"] == pytest.approx(2.5, abs=0.15)


def test_too_few_or_too_scattered_fluxes_say_nothing():
    _, (few,) = beam_of_fluxes(table(number=5), LIMITS)
    wild = table(number=12)
    wild["flux_jy"] *= np.exp(np.random.default_rng(2).normal(0, 1.0, 12))
    _, (scattered,) = beam_of_fluxes(wild, LIMITS)
    assert few.level == scattered.level == "unknown"


def test_a_rotation_and_a_scale_are_named():
    turned = table()
    turned["east_arcsec"] += 3.0 * turned.north_deg / 1.35
    turned["north_arcsec"] -= 3.0 * turned.east_deg / 1.35
    numbers, (frame,) = frame_of_offsets(turned, 30.0, LIMITS)
    assert frame.level == "warn"
    assert numbers["rotation_arcsec"] == pytest.approx(3.0, abs=0.3)
    assert numbers["scale_arcsec"] == pytest.approx(0.0, abs=0.3)


@pytest.mark.parametrize(
    ("signs", "shift_arcsec", "words"),
    [
        ((1, 1), (30.0, 0.0), "time_array is 2.1 s late?"),
        ((1, 1), (-60.0, 2.0), "4.2 s early?"),
        ((1, 1), (0.0, -1440.0), "-0.40 north) off: declination in"),
        ((-1, -1), (0.0, 0.0), "when turned by 180 deg: conjugated data"),
        ((-1, 1), (20.0, 20.0), "when mirrored east to west"),
    ],
)
def test_the_sky_is_found_where_it_went(signs, shift_arcsec, words):
    rng = np.random.default_rng(3)
    expected = rng.uniform(-1.8, 1.8, (60, 2))
    found = (expected[:25] + np.array(shift_arcsec) / 3600) * signs
    found = np.vstack([found + rng.normal(0, 1 / 3600, found.shape), rng.uniform(-1, 1, (10, 2))])
    match = search(found, expected, 1.0, 40 / 3600)
    assert words in match_words(match, len(found), 16.0)
    assert match.agree >= 20


def test_another_sky_matches_nowhere():
    rng = np.random.default_rng(4)
    one, other = rng.uniform(-1.8, 1.8, (40, 2)), rng.uniform(-1.8, 1.8, (80, 2))
    assert search(one, other, 1.0, 40 / 3600) is None
