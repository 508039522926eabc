"""Gates without a catalogue: each fires on what is wrong, and stays quiet on what is right."""

import re

import numpy as np
import pytest

from contimg.calibration import gates
from contimg.config import GatesConfig
from contimg.findings import judged, of_level
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

OPTIONS = GatesConfig()
NANT, NTIME, NCHAN = 12, 12, 24
WIDTH_HZ, INTEGRATION_S, FREQ_HZ = 2e6, 12.9, 1.4e9
ONE, TWO = np.triu_indices(NANT)
NAMES = tuple(str(n + 1) for n in range(NANT))
SEFD_JY = 7000.0
SIGMA_JY = SEFD_JY / np.sqrt(2 * WIDTH_HZ * INTEGRATION_S)


@pytest.fixture(scope="module")
def uvw():
    """Baselines that turn as the sky does."""
    rng = np.random.default_rng(3)
    places = rng.uniform(-400, 400, (NANT, 2))
    flat = places[ONE] - places[TWO]
    angle = np.radians(1.3) * np.linspace(-0.5, 0.5, NTIME)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate(
        [np.einsum("ijt,bj->tbi", turn, flat), np.zeros((NTIME, len(ONE), 1))], axis=2
    )


def observed(
    uvw,
    flux_jy=10.0,
    east_arcsec=0.0,
    north_arcsec=0.0,
    sefd_jy=SEFD_JY,
    seed=0,
    constant_taken=True,
):
    """A source, through gains that were solved as one for all times: what is left of a wrong place
    is how its phase turns."""
    rng = np.random.default_rng(seed)
    shift = np.radians(np.array([east_arcsec, north_arcsec]) / 3600)
    phase = 2 * np.pi * FREQ_HZ / SPEED_OF_LIGHT_M_S * uvw[..., :2] @ shift
    if constant_taken:
        phase = phase - phase.mean(axis=0)
    sky = flux_jy * np.exp(1j * phase)[:, :, None, None]
    sigma = sefd_jy / np.sqrt(2 * WIDTH_HZ * INTEGRATION_S)
    shape = (NTIME, len(ONE), NCHAN, 2)
    noise = sigma * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return (sky + noise).astype(np.complex64)


def judge(data, uvw, flux_jy=10.0, sefd_jy=SEFD_JY, snr=None):
    model = np.full(data.shape[:3], flux_jy, np.complex64)
    flags = np.zeros(data.shape, bool)
    flags[:, ONE == TWO] = True
    by_antenna = np.full((NANT, 2), np.sqrt(sefd_jy / np.sqrt(2 * WIDTH_HZ * INTEGRATION_S)))
    promised = flux_jy * np.sqrt(NTIME * NCHAN * (NANT - 1) / 2) / SIGMA_JY
    return gates.after_solve(
        data=data,
        model=model,
        flags=flags,
        shares=np.ones(data.shape, np.float32),
        noise=by_antenna[ONE] * by_antenna[TWO],
        antenna_noise=by_antenna,
        ant_1=ONE,
        ant_2=TWO,
        uvw_m=uvw,
        snr=np.full((NANT, 2), promised if snr is None else snr),
        names=NAMES,
        freq_hz=FREQ_HZ,
        channel_width_hz=WIDTH_HZ,
        integration_s=INTEGRATION_S,
        one_gain=True,
        options=OPTIONS,
    )


def test_a_calibrator_in_its_place_passes(uvw):
    found = judge(observed(uvw), uvw)
    assert [one["level"] for one in found["findings"]] == ["good"] * 5
    assert found["sefd_jy"] == pytest.approx(SEFD_JY)
    assert found["snr"] == pytest.approx(found["promised_snr"], rel=1e-3)
    assert found["explained"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("east", "north"), [(60.0, 0.0), (0.0, -45.0), (-30.0, 80.0)])
def test_an_offset_is_measured_by_how_the_phase_turns(uvw, east, north):
    found = judge(observed(uvw, 20.0, east, north), uvw, 20.0)
    assert found["offset_east_arcsec"] == pytest.approx(
        east, abs=4 * found["offset_error_arcsec"] + 1
    )
    assert found["offset_north_arcsec"] == pytest.approx(
        north, abs=4 * found["offset_error_arcsec"] + 1
    )
    assert found["offset_error_arcsec"] < 8
    (words,) = of_level(found["findings"], "warn")
    assert "arcsec from its place" in words
    assert (
        "warn beyond 30 arcsec. Another source than the calibrator, or a wrong clock or declination"
        in words
    )


def test_the_error_of_an_offset_is_honest(uvw):
    """Pulls of the fit over noise alone."""
    pulls = []
    for seed in range(12):
        found = judge(observed(uvw, 5.0, seed=seed), uvw, 5.0)
        pulls.append(
            np.hypot(found["offset_east_arcsec"], found["offset_north_arcsec"])
            / found["offset_error_arcsec"]
        )
    assert 0.3 < np.median(pulls) < 2
    assert max(pulls) < 6


def test_another_sky_is_not_explained(uvw):
    elsewhere = observed(uvw, 10.0, 3000.0, 1000.0, constant_taken=False)
    found = judge(elsewhere, uvw)
    words = of_level(found["findings"], "fail")
    assert any(w.startswith("the model explains ") and "fail below 50 %" in w for w in words)


def test_signal_to_noise_of_8_where_165_are_promised_is_another_sky(uvw):
    found = judge(observed(uvw), uvw, snr=8.0)
    (words,) = of_level(found["findings"], "fail")
    assert words.startswith("signal to noise of the gains is 8, ")
    assert "that the model promises; fail below 20 %" in words


@pytest.mark.parametrize(
    ("sefd", "levels"),
    [
        (8016 * np.exp(0.27 * np.random.default_rng(1).standard_normal((96, 2))), ["good", "good"]),
        (
            np.where(np.arange(96)[:, None] % 3 == 0, np.nan, 8016.0) * np.ones(2),
            ["good", "good"],
        ),  # a third is dead
        (
            np.where(np.arange(96)[:, None] % 3 == 0, 80_000, 8016.0) * np.ones(2),
            ["good", "good"],
        ),  # or ill
        (np.full((30, 2), 150_000.0), ["fail", "good"]),
        (np.full((30, 2), 1500.0), ["fail", "good"]),
        (np.full((30, 2), 15_000.0), ["warn", "good"]),
        (7000 * np.exp(2.0 * np.random.default_rng(1).standard_normal((96, 2))), ["good", "fail"]),
        (np.full((30, 2), np.nan), ["unknown"]),
    ],
)
def test_receivers_are_what_receivers_are(sefd, levels):
    _, found = gates.of_receivers(sefd, [str(k) for k in range(len(sefd))], OPTIONS)
    assert [one.level for one in found] == levels


def test_noise_that_changed_since_the_set_was_solved():
    then = dict.fromkeys(NAMES, SEFD_JY)
    now = np.full((NANT, 2), np.sqrt(SIGMA_JY))
    given = {
        "channel_width_hz": WIDTH_HZ,
        "integration_s": INTEGRATION_S,
        "names": NAMES,
        "options": OPTIONS,
    }
    numbers, found = gates.after_apply(antenna_noise=now, of_set=then, **given)
    assert numbers["sefd_change"] == pytest.approx(1)
    assert {one.level for one in found} == {"good"}
    now[3] *= 2
    numbers, found = gates.after_apply(antenna_noise=now, of_set=then, **given)
    assert numbers["antennas_changed"] == ["4"]
    now[:] *= 2
    _, found = gates.after_apply(antenna_noise=now, of_set=then, **given)
    assert len([one for one in found if one.level == "fail"]) >= 1
    _, found = gates.after_apply(antenna_noise=now, of_set={}, **given)
    assert found[-1].level == "unknown"
    assert "not compared" in found[-1].words


def test_gains_against_a_neighbouring_set():
    rng = np.random.default_rng(2)
    freq_hz = np.linspace(1.31e9, 1.5e9, 32)
    places_m = rng.uniform(-500, 500, (NANT, 2))
    band = 1 + 0.1 * np.cos(np.linspace(0, 9, 32))
    other = 0.06 * np.exp(2j * np.pi * rng.random((NANT, 1, 2))) * band[None, :, None]
    given = {
        "other": other,
        "freq_hz": freq_hz,
        "places_m": places_m,
        "names": NAMES,
        "other_name": "yesterday",
        "hours": -24.0,
        "options": OPTIONS,
    }
    # all of them together: the reference antenna
    turned = other * np.exp(0.1j * rng.standard_normal((NANT, 1, 2))) * np.exp(1.5j)
    numbers, found = gates.against_other_set(gain=turned, **given)
    assert numbers["gains_change"] == pytest.approx(1)
    assert numbers["phase_gradient"] is None
    assert {one.level for one in found} == {"good"}
    swapped = turned.copy()
    swapped[[2, 7]] = swapped[[7, 2]]
    swapped[4, :, 0] *= 2
    _, found = gates.against_other_set(gain=swapped, **given)
    (words,) = [one.words for one in found if one.name == "antennas_odd"]
    assert words.startswith(
        "changed since set yesterday, 24.0 h earlier (more than 1.5 times, 60 deg, 2 ns): "
    )
    assert {"3", "8", "5"} >= set(words.rpartition(": ")[2].split(", ")) >= {"5"}
    numbers, found = gates.against_other_set(gain=other / 5, **given)
    assert numbers["gains_change"] == pytest.approx(0.2)
    assert [one.name for one in found if one.level == "fail"] == ["gains_change"]
    noise = 0.06 * rng.lognormal(0, 1.5, (NANT, 1, 2)) * np.ones((1, 32, 1))
    assert "antennas_gain_change" in [
        one.name for one in gates.against_other_set(gain=noise, **given)[1] if one.level == "fail"
    ]
    _, found = gates.against_other_set(gain=np.full((NANT, 32, 2), np.nan), **given)
    assert found[0].level == "unknown"


def test_one_antenna_later_is_a_cable_and_all_along_the_array_a_clock():
    rng = np.random.default_rng(3)
    freq_hz = np.linspace(1.31e9, 1.5e9, 64)
    places_m = rng.uniform(-500, 500, (NANT, 2))
    other = 0.06 * np.exp(2j * np.pi * rng.random((NANT, 64, 2)))
    given = {
        "other": other,
        "freq_hz": freq_hz,
        "places_m": places_m,
        "names": NAMES,
        "other_name": "x",
        "hours": 1.0,
        "options": OPTIONS,
    }
    late = other.copy()
    late[5] *= np.exp(2j * np.pi * 4e-9 * (freq_hz - freq_hz.mean()))[:, None]
    numbers, found = gates.against_other_set(gain=late, **given)
    assert [one.words.rpartition(": ")[2] for one in found if one.level == "warn"] == ["6"]
    assert numbers["gains_change_by_antenna"]["6"]["delay_ns"] == [4.0, 4.0]
    shift = np.radians(np.array([12.0, -3.0]) / 3600)
    turns = 2 * np.pi * freq_hz.mean() / 299792458.0 * (places_m @ shift)
    noise = np.exp(0.05j * rng.standard_normal((NANT, 1, 2)))
    moved = other * np.exp(1j * turns)[:, None, None] * noise
    moved[5] *= np.exp(2j)
    numbers, found = gates.against_other_set(gain=moved, **given)
    assert numbers["phase_gradient"]["east_arcsec"] == pytest.approx(12, abs=1)
    assert numbers["phase_gradient"]["north_arcsec"] == pytest.approx(-3, abs=1)
    words = [one.words for one in found if one.level == "warn"]
    assert [w.rpartition(": ")[2] for w in words if w.startswith("changed since")] == ["6"]
    assert any(re.search(r"a clock \(0\.(7|8)\d s\), or a position", w) for w in words)


def test_a_set_without_a_solution_is_judged_and_no_error(uvw):
    data = observed(uvw)
    nothing, unknown = np.zeros((len(ONE), 2)), np.full((NANT, 2), np.nan)
    found = gates.after_solve(
        data=data,
        model=np.ones(data.shape[:3], np.complex64),
        flags=np.ones(data.shape, bool),
        shares=np.ones(data.shape, np.float32),
        noise=nothing,
        antenna_noise=unknown,
        ant_1=ONE,
        ant_2=TWO,
        uvw_m=uvw,
        snr=np.zeros((NANT, 2)),
        names=NAMES,
        freq_hz=FREQ_HZ,
        channel_width_hz=WIDTH_HZ,
        integration_s=INTEGRATION_S,
        one_gain=True,
        options=OPTIONS,
    )
    assert {one["level"] for one in found["findings"]} == {"unknown"}
    assert found["explained"] is None


def test_a_limit_is_said_with_the_size_of_what_crossed_it():
    low = judged(
        name="x", value=0.1, warn=0.5, fail=0.2, words="share 10 %", percent=True, cause="Do this"
    )
    assert (low.level, low.words) == ("fail", "share 10 %; fail below 20 %. Do this")
    high = judged(name="x", value=3.0, warn=2.0, fail=5.0, words="thrice", unit="times")
    assert (high.level, high.words) == ("warn", "thrice; warn beyond 2 times")
    assert judged(name="x", value=float("nan"), warn=2.0, fail=5.0, words="?").level == "unknown"
    assert judged(name="x", value=None, warn=2.0, fail=5.0, words="?").value is None
