"""Fluxes in parts of the band, from what the model leaves."""

import numpy as np
import pytest

from contimg.imaging.spectra import PARTS, InBand
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from tests.imaging.test_visibilities import average, image, observed

# Jy at the middle, to the east and north (arcsec), spectral index
SOURCES = ((0.5, 0.0, 0.0, -0.7), (0.3, 500.0, -300.0, 1.5), (0.2, -420.0, 350.0, 0.0))


def test_spectra_of_sources_that_were_cleaned_as_flat(tmp_path, figure):
    stokes = observed(nchan=64, ntime=6, every=2)
    freq_hz, uvw_m = stokes.observation.freq_hz, stokes.rows.uvw_m
    middle_hz = freq_hz.mean()
    u, v, w = (uvw_m[..., k, None] * freq_hz / SPEED_OF_LIGHT_M_S for k in range(3))
    for flux_jy, east, north, alpha in SOURCES:
        l, m = np.radians(east / 3600), np.radians(north / 3600)
        turns = u * l + v * m + w * (np.sqrt(1 - l**2 - m**2) - 1)
        stokes.vis[...] += flux_jy * (freq_hz / middle_hz) ** alpha * np.exp(2j * np.pi * turns)
    rng = np.random.default_rng(2)
    stokes.vis[...] += 1.2 * rng.normal(size=(*stokes.vis.shape, 2)).view(complex)[..., 0]
    stokes.weights[...] = 1 / 1.2**2
    result, _, options = image(stokes, tmp_path)
    in_band = InBand.of(stokes, average(stokes, options))
    jy, east, north, alpha = np.array(SOURCES).T
    l, m = np.radians(east / 3600), np.radians(north / 3600)
    whole = in_band._response(l, m, np.arange(len(in_band.freq_hz)))
    noise_jy = float(np.std(result.residual))
    fluxes, errors, at_hz = in_band.fluxes(
        left=result.left,
        components=result.components,
        cell_arcsec=options.cell_arcsec,
        x=options.imsize // 2 - east / options.cell_arcsec,
        y=options.imsize // 2 + north / options.cell_arcsec,
        flux_jy=jy / whole,
        noise_jy=noise_jy,
    )
    # the sky here has no beam: what was divided out comes back
    parts = np.array_split(np.arange(len(in_band.freq_hz)), PARTS)
    seen = fluxes * np.stack([in_band._response(l, m, part) for part in parts], axis=1)
    true = jy[:, None] * (at_hz / middle_hz) ** alpha[:, None]
    figure(f"fluxes in {PARTS} parts over the truth: {(seen / true).round(4).tolist()}")
    assert at_hz.shape == (PARTS,)
    assert errors[0] == pytest.approx(2 * noise_jy, rel=0.3)
    assert np.abs((seen - true) / errors).max() < 3.5
    assert ((seen - true) / errors).std() == pytest.approx(1, abs=0.5)
    ln_hz = np.log(at_hz / at_hz.mean())
    slope = (np.log(seen) @ ln_hz) / (ln_hz**2).sum()
    of_slope = (errors / fluxes).mean(axis=1) / np.sqrt((ln_hz**2).sum())
    figure(f"spectral indices {slope.round(2)} +- {of_slope.round(2)}, true {alpha}")
    assert np.abs((slope - alpha) / of_slope).max() < 3.5
    assert of_slope[0] < 0.15


def test_a_part_without_data_has_no_flux(tmp_path):
    stokes = observed([(0.5, 0.0, 0.0, 0.0)], noise_jy=0.5, nchan=16, ntime=4)
    stokes.weights[..., :4] = 0
    result, _, options = image(stokes, tmp_path, average_channels=1)
    in_band = InBand.of(stokes, average(stokes, options))
    middle = np.array([options.imsize // 2])
    fluxes, errors, at_hz = in_band.fluxes(
        left=result.left,
        components=result.components,
        cell_arcsec=options.cell_arcsec,
        x=middle,
        y=middle,
        flux_jy=np.array([0.5]),
        noise_jy=float(np.std(result.residual)),
    )
    assert np.isnan(fluxes[0]).tolist() == [True, False, False, False]
    assert fluxes[0, 1:] == pytest.approx(0.5, abs=5 * errors[0, 1])
    assert (np.diff(at_hz) > 0).all()
