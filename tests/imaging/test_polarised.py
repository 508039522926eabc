"""Stokes Q of an unpolarised sky is noise, unless X and Y are not calibrated alike."""

from dataclasses import replace

import numpy as np
import pytest

from contimg.config import ValidationConfig
from contimg.imaging.polarised import judge_q, noise_of_q
from contimg.imaging.stokes import _stokes_i
from tests.imaging.test_visibilities import NOISE_JY, observed


def q_of(ratio, flagged=0.0):
    """A field of 7 Jy in which Y has `ratio` times the amplitude of X."""
    stokes = observed([(5.0, 600, -900, 0), (2.0, -1500, 300, 0)], nchan=16, ntime=4)
    rng = np.random.default_rng(2)
    shape = (*stokes.vis.shape, 2)
    noise = rng.normal(0, NOISE_JY, (*shape, 2)).view(complex)[..., 0]
    data = (stokes.vis[..., None] * [1, ratio] + noise).astype(np.complex64)
    flags = rng.random(shape) < flagged
    weights = np.full(shape, 1 / NOISE_JY**2, np.float32)
    both = (
        np.zeros((*stokes.vis.shape[:2], 8), np.complex64),
        np.zeros((*stokes.vis.shape[:2], 8), np.float32),
    )
    use = np.ones(stokes.vis.shape[1], bool)
    for t in range(len(data)):
        _stokes_i(
            data[t],
            flags[t],
            weights[t],
            use,
            stokes.vis[t],
            stokes.weights[t],
            both[0][t],
            both[1][t],
        )
    return noise_of_q(replace(stokes, polarised=both), 2)


@pytest.mark.parametrize("flagged", [0.0, 0.3])
def test_q_of_an_unpolarised_sky_is_noise(flagged):
    ratio = q_of(1.0, flagged)
    assert ratio == pytest.approx(1, abs=0.05)
    assert judge_q(ratio, ValidationConfig()).level == "good"


def test_x_and_y_that_differ_are_named():
    found = judge_q(q_of(0.6), ValidationConfig())
    assert found.level == "warn"
    assert "X and Y see different skies" in found.words
    assert judge_q(None, ValidationConfig()).level == "unknown"
