"""Parts of the data against the whole, on visibilities that are known exactly."""

from dataclasses import replace

import numpy as np
import pytest

from contimg.calibration import consistency, gates
from contimg.calibration.refine import Coarse
from contimg.config import GatesConfig
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

LIMITS, NANT = GatesConfig(), 20
FREQ_HZ = np.linspace(1.32e9, 1.49e9, 32)


@pytest.fixture(scope="module")
def field():
    """(coarse data, model, uvw): five sources, two polarisations, noise."""
    rng = np.random.default_rng(1)
    one, two = np.triu_indices(NANT, 1)
    places = rng.normal(0, 300, (NANT, 3)) * [1, 1, 0]
    uvw_m = np.broadcast_to(places[one] - places[two], (6, len(one), 3))
    turns = 2j * np.pi * uvw_m[..., None, :2] * FREQ_HZ[:, None] / SPEED_OF_LIGHT_M_S
    model = sum(
        flux * np.exp(turns @ np.radians(rng.uniform(-1, 1, 2)))
        for flux in (1.0, 0.5, 0.4, 0.3, 0.2)
    ).astype(np.complex64)
    noise = rng.normal(0, 0.5, (*model.shape, 2, 2)).view(complex)[..., 0]
    data = (model[..., None] + noise).astype(np.complex64)
    weights = np.full(data.shape, 4.0, np.float32)
    return Coarse(data, weights, one, two, NANT), model, uvw_m


def judged(coarse, model, uvw_m, gain=None):
    gain = np.ones((6, NANT, 2), complex) if gain is None else gain
    found = consistency.sums(coarse=coarse, model=model, gain=gain, uvw_m=uvw_m, freq_hz=FREQ_HZ)
    numbers, findings = consistency.judge(found=found, freq_hz=FREQ_HZ, limits=LIMITS)
    return numbers, {one.name: one for one in findings}


def test_the_same_story_everywhere_is_good(field):
    numbers, found = judged(*field)
    assert {one.level for one in found.values()} == {"good"}
    band = numbers["band"]
    pulls = (np.array(band["amplitude"]) - 1) / band["amplitude_error"]
    assert np.sqrt(np.mean(pulls**2)) == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    ("where", "name", "words"),
    [
        ((slice(None), slice(None), slice(6, 8)), "parts_band", "at 1356 MHz are 0.70 times"),
        ((slice(4, 6),), "parts_time", "in integrations 4 to 5 are 0.70 times"),
        ((..., 1), "parts_polarisations", "fluxes in XX are 1.18"),
    ],
)
def test_a_part_with_less_flux_is_named(field, where, name, words):
    coarse, model, uvw_m = field
    data = coarse.data.copy()
    data[where] *= 0.7
    _, found = judged(replace(coarse, data=data), model, uvw_m)
    assert found[name].level == "warn"
    assert words in found[name].words
    assert {one.level for key, one in found.items() if key != name} == {"good"}


def test_a_shift_of_the_sky_is_measured(field):
    coarse, model, uvw_m = field
    shift = np.radians(np.array([0.8, -0.5]) / 3600)
    turns = uvw_m[..., None, :2] * FREQ_HZ[:, None] / SPEED_OF_LIGHT_M_S
    data = (coarse.data * np.exp(2j * np.pi * (turns @ shift))[..., None]).astype(np.complex64)
    numbers, _ = judged(replace(coarse, data=data), model, uvw_m)
    assert np.mean(numbers["time"]["east_arcsec"]) == pytest.approx(0.8, abs=0.1)
    assert np.mean(numbers["time"]["north_arcsec"]) == pytest.approx(-0.5, abs=0.1)


def test_gains_are_taken_into_account(field):
    coarse, model, uvw_m = field
    gain = np.exp(1j * np.random.default_rng(2).normal(0, 1, (6, NANT, 2)))
    product = gain[:, coarse.ant_1] * gain[:, coarse.ant_2].conj()
    data = (coarse.data * product[:, :, None]).astype(np.complex64)
    _, found = judged(replace(coarse, data=data), model, uvw_m, gain)
    assert {one.level for one in found.values()} == {"good"}


def test_a_sky_too_faint_says_nothing(field):
    coarse, model, uvw_m = field
    _, found = judged(replace(coarse, weights=coarse.weights * 1e-5), model, uvw_m)
    assert {one.level for one in found.values()} == {"unknown"}


@pytest.mark.parametrize("east_arcsec", [5.0, 30.0, -97.0])
def test_a_gradient_is_found_through_wraps(east_arcsec):
    rng = np.random.default_rng(3)
    places_m = rng.uniform(-1200, 1200, (48, 2))
    turns = 2 * np.pi * 1.4e9 / SPEED_OF_LIGHT_M_S * places_m
    phase = turns @ np.radians(np.array([east_arcsec, 2.0]) / 3600)
    phase = phase[:, None] + rng.normal(0, 0.1, (48, 2)) + 0.7
    phase[7] += 2.0  # and a cable
    common = np.angle(np.exp(1j * phase).mean())
    phase = np.angle(np.exp(1j * (phase - common)))
    numbers, _ = gates.gradient_of(phase, np.ones((48, 2), bool), places_m, 1.4e9)
    assert numbers["east_arcsec"] == pytest.approx(east_arcsec, abs=0.5)
    assert numbers["north_arcsec"] == pytest.approx(2.0, abs=0.5)
    still = rng.uniform(-np.pi, np.pi, (48, 2))
    assert gates.gradient_of(still, np.ones((48, 2), bool), places_m, 1.4e9)[0] is None


def test_a_dish_that_points_aside_is_found_as_a_source_drifts_by():
    rng = np.random.default_rng(4)
    aside = rng.normal(0, 0.1, NANT)
    east_deg, fwhm_deg = np.linspace(-0.6, 0.6, 24), 2.7
    voltage = np.exp(-2 * np.log(2) * (east_deg[:, None] - aside) ** 2 / fwhm_deg**2)
    voltage /= np.exp(-2 * np.log(2) * east_deg[:, None] ** 2 / fwhm_deg**2)
    gain = voltage[..., None] * [1.1, 0.9] + rng.normal(0, 0.005, (24, NANT, 2))
    error = np.full(gain.shape, 0.005)
    found, of_it = consistency.pointing_east_deg(
        gain=gain, error=error, east_deg=east_deg, fwhm_deg=fwhm_deg
    )
    pulls = (found - (aside - np.median(aside))) / of_it
    assert np.sqrt(np.mean(pulls**2)) < 2
    assert of_it.max() < 0.02
