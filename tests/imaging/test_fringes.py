"""Stripes in a residual are told from noise that is weighted as the data are."""

import numpy as np
import pytest

from contimg.config import ValidationConfig
from contimg.imaging.fringes import fringe_power, judge_fringes

CELL_ARCSEC, PIXELS = 5.0, 512


def residual_and_psf(stripes=0.0, spacing_arcsec=60.0, angle_deg=30.0):
    """Noise with the power that an elongated array gives, and stripes."""
    rng = np.random.default_rng(1)
    u, v = np.meshgrid(*2 * [np.fft.fftfreq(PIXELS, CELL_ARCSEC)], indexing="ij")
    weight = np.exp(-((u * 60) ** 2) - (v * 25) ** 2)
    psf = np.fft.fftshift(np.fft.ifft2(weight).real)
    noise = np.fft.fft2(rng.normal(size=(PIXELS, PIXELS)))
    noise = np.fft.ifft2(noise * np.sqrt(weight)).real
    x, y = np.meshgrid(*2 * [np.arange(PIXELS) * CELL_ARCSEC], indexing="ij")
    away = -x * np.sin(np.radians(angle_deg)) + y * np.cos(np.radians(angle_deg))
    fringes = np.cos(2 * np.pi * away / spacing_arcsec)
    return noise / noise.std() + stripes * fringes, psf


def test_noise_has_no_stripes():
    found = fringe_power(*residual_and_psf(), CELL_ARCSEC)
    assert found[0] < 2.5
    assert judge_fringes(found, ValidationConfig()).level == "good"


@pytest.mark.parametrize(("spacing_arcsec", "angle_deg"), [(60.0, 30.0), (90.0, 120.0)])
def test_stripes_are_named_with_spacing_and_angle(spacing_arcsec, angle_deg):
    found = fringe_power(*residual_and_psf(0.8, spacing_arcsec, angle_deg), CELL_ARCSEC)
    assert found[0] > 4
    assert found[1] == pytest.approx(spacing_arcsec, rel=0.1)
    assert found[2] == pytest.approx(angle_deg, abs=8)
    said = judge_fringes(found, ValidationConfig())
    assert said.level == "warn"
    assert "the residual has stripes every" in said.words
    assert judge_fringes(None, ValidationConfig()).level == "unknown"
