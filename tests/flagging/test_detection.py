import numpy as np
import pytest

from contimg.config import FlaggingConfig
from contimg.flagging import detection

NANT, NTIME, NCHAN = 24, 24, 96
ONE, TWO = np.triu_indices(NANT)
WIDTH_HZ = 1e6


@pytest.fixture
def observation():
    """Noise of rms 1 and a 0.4 Jy source that drifts through the beam; a ripple in the band; gains
    differ."""
    rng = np.random.default_rng(5)
    shape = (NTIME, len(ONE), NCHAN, 2)
    data = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    sky = 0.4 * np.linspace(0.6, 1, NTIME)[:, None, None, None]
    delay = np.exp(2j * np.pi * rng.uniform(-0.01, 0.01, len(ONE))[:, None] * np.arange(NCHAN))
    data += (sky * delay[None, :, :, None]).astype(np.complex64)
    gain = rng.lognormal(0, 0.2, NANT)
    ripple = 1 + 0.2 * np.cos(np.linspace(0, 12, NCHAN))
    return (data * (gain[ONE] * gain[TWO])[None, :, None, None] * ripple[:, None]).astype(
        np.complex64
    ), rng


CELLS = detection.coherence_cells(np.full(len(ONE), 100.0), 0.21, 12.88, WIDTH_HZ)


def run(data, **options):
    flags = np.zeros(data.shape, bool)
    assert detection.mark_no_data(data, flags)[0] == 0
    return detection.flag(
        data=data, flags=flags, ant_1=ONE, ant_2=TWO, cells=CELLS, options=FlaggingConfig(**options)
    )


def test_clean_data_stay(observation):
    """FACTS: clipping noise took 2.4 % of the flux. Here, less than 1e-4 of the data may go."""
    found = run(observation[0])
    cross = ONE != TWO
    assert found.flags[:, cross].mean() < 1e-4
    assert found.flags[:, ~cross].all()
    assert found.dead_antennas == []


def test_interference_is_found_where_it_is(observation):
    data, rng = observation
    phase = np.exp(2j * np.pi * rng.random(data.shape)).astype(np.complex64)
    data[:, :, 30] += 20 * phase[:, :, 30]
    data[9] += 5 * phase[9]
    on = np.zeros(NTIME, bool)
    on[[2, 3, 13, 17]] = True
    data[on, :, 61] += 1.5 * phase[on, :, 61]  # weaker than the noise of one visibility
    found = run(data)
    cross = found.flags[:, ONE != TWO]
    assert 30 in found.rfi_channels
    assert found.rfi_integrations == [9]
    assert cross[on, :, 61].mean() > 0.99
    good = np.ones((NTIME, NCHAN), bool)
    good[:, 30] = good[9] = good[on, 61] = False
    assert cross.transpose(0, 2, 1, 3)[good].mean() < 2e-3


def test_a_strong_sample_on_one_baseline_is_cut(observation):
    data, _ = observation
    baseline = int(np.flatnonzero(ONE != TWO)[40])
    data[5, baseline, 50] *= 0
    data[5, baseline, 50] += 9 * np.abs(data[:, baseline]).mean()
    found = run(data)
    assert found.flags[5, baseline, 50].all()
    assert found.flags[:, ONE != TWO].mean() < 1e-4


def test_an_antenna_with_noise_only_is_dead(observation):
    data, rng = observation
    mine = ((ONE == 7) | (TWO == 7)) & (ONE != TWO)
    noise = rng.standard_normal((*data[:, mine].shape, 2)) @ [1, 1j]
    data[:, mine] = noise * np.abs(data[:, mine]).mean()
    found = run(data)
    assert found.dead_antennas == [7]
    assert found.flags[:, mine].all()
    assert found.flags[:, (ONE != TWO) & ~mine].mean() < 1e-4


@pytest.mark.parametrize("factor", [0.02, 50])
def test_an_antenna_with_odd_noise_goes(observation, factor):
    data, _ = observation
    mine = ((ONE == 7) ^ (TWO == 7)) & (ONE != TWO)
    data[:, mine] *= factor
    found = run(data)
    assert found.odd_antennas == [7]
    assert found.flags[:, mine].all()
    assert found.flags[:, (ONE != TWO) & ~mine].mean() < 1e-4


def test_a_sky_too_faint_to_tell_is_said_and_kills_nobody():
    rng = np.random.default_rng(1)
    shape = (NTIME, len(ONE), NCHAN, 2)
    found = run((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64))
    assert found.dead_antennas == []
    assert "too faint" in found.notes[0]


def test_zeros_are_no_data_and_strategy_none_detects_nothing(observation):
    data, _ = observation
    data[:, :, 10] = 0
    data[:, :, 30] *= 50
    found = run(data, strategy="none")
    assert found.flags[:, :, 10].all()
    assert not found.flags[:, ONE != TWO][:, :, 30].any()


def test_noise_is_the_rms_of_one_component():
    rng = np.random.default_rng(2)
    data = (
        0.7 * (rng.standard_normal((24, 30, 96, 2)) + 1j * rng.standard_normal((24, 30, 96, 2))) + 5
    )
    noise = detection.baseline_noise(data.astype(np.complex64), np.zeros(data.shape, bool))
    assert noise == pytest.approx(0.7, rel=0.08)  # 2000 samples each
    assert np.median(noise) == pytest.approx(0.7, rel=0.01)
