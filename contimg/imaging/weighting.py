"""Imaging weights (natural, uniform, Briggs), and the noise that they let expect.

Rows are (nrow, 3) of uvw in metres, channels (nchan,) in Hz; weights are (nrow, nchan)."""

import numpy as np
from numba import njit, prange

from contimg.config import ImagingConfig
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S


def image_weights(
    *, uvw_m: np.ndarray, freq_hz: np.ndarray, natural: np.ndarray, options: ImagingConfig
) -> np.ndarray:
    """Weights of `imaging.weighting`, with the taper; 0 beyond the resolution of the pixels.

    Briggs (1995), chapter 3: density of the natural weights on the image's own uv grid.
    """
    cells = options.imsize
    # of the uv grid, in wavelengths: the cells a metre of each channel is long
    per_m = freq_hz / SPEED_OF_LIGHT_M_S * cells * np.radians(options.cell_arcsec / 3600)
    uv_m = np.ascontiguousarray(uvw_m[:, :2])
    weights = np.ascontiguousarray(natural, dtype=np.float32).copy()
    density = _density(uv_m, per_m, weights, cells)
    robust = {"natural": np.inf, "uniform": -np.inf}.get(options.weighting, options.robust)
    scale = 0.0
    if np.isfinite(robust) and (total := density.sum(dtype=np.float64)) > 0:
        scale = (5 * 10.0**-robust) ** 2 * total / np.sum(density**2, dtype=np.float64)
    # A Gaussian of this FWHM in the image: exp(-(pi theta b)^2 / (4 ln 2)).
    taper_rad = np.radians((options.taper_arcsec or 0) / 3600)
    taper_m2 = (np.pi * taper_rad * freq_hz / SPEED_OF_LIGHT_M_S) ** 2 / (4 * np.log(2))
    _weigh(uv_m, per_m, weights, density, scale, robust == -np.inf, taper_m2)
    return weights


@njit(inline="always")
def _cell(u, v, per_m, half):
    """Cell of half the uv plane, v >= 0; the other half is its mirror image."""
    if v < 0:
        u, v = -u, -v
    return int(np.floor(u * per_m + 0.5)) + half, int(np.floor(v * per_m + 0.5))


@njit(cache=True)
def _density(uv_m, per_m, weights, cells):
    """Sum of the weights in each cell."""
    half = cells // 2
    density = np.zeros((cells, half + 2), np.float32)
    for r in range(len(uv_m)):
        u, v = uv_m[r]
        for c in range(len(per_m)):
            if weights[r, c] > 0:
                i, j = _cell(u, v, per_m[c], half)
                if 0 <= i < cells and j < half + 2:
                    density[i, j] += weights[r, c]
    return density


@njit(parallel=True, cache=True)
def _weigh(uv_m, per_m, weights, density, scale, uniform, taper_m2):
    cells, height = density.shape
    half = cells // 2
    for r in prange(len(uv_m)):
        u, v = uv_m[r]
        for c in range(len(per_m)):
            if weights[r, c] > 0:
                i, j = _cell(u, v, per_m[c], half)
                if not (0 <= i < cells and j < height):
                    weights[r, c] = 0
                elif uniform:
                    weights[r, c] /= density[i, j]
                else:
                    weights[r, c] /= 1 + density[i, j] * scale
                if taper_m2[c] > 0:
                    weights[r, c] *= np.exp(-taper_m2[c] * (u * u + v * v))


def expected_noise(*, weights: np.ndarray, natural: np.ndarray) -> float:
    """Noise of a weighted mean of visibilities, whose variances are 1 / natural."""
    variance, total = _noise_sums(weights, natural)
    return float(np.sqrt(variance) / total)


@njit(cache=True)
def _noise_sums(weights, natural):
    variance, total = 0.0, 0.0
    for r in range(weights.shape[0]):
        for c in range(weights.shape[1]):
            if natural[r, c] > 0:
                variance += weights[r, c] * weights[r, c] / natural[r, c]
                total += weights[r, c]
    return variance, total
