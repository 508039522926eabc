"""Imaging weights (natural, uniform, Briggs), and the noise that they let expect."""

import numpy as np
from numba import njit

from contimg.config import ImagingConfig


def image_weights(
    *, uvw_lambda: np.ndarray, natural: np.ndarray, options: ImagingConfig
) -> np.ndarray:
    """Weights (n,) of `imaging.weighting`, with the taper; 0 beyond the resolution of the pixels.

    Briggs (1995), chapter 3: density of the natural weights on the image's own uv grid.
    """
    cell_lambda = 1 / (options.imsize * np.radians(options.cell_arcsec / 3600))
    robust = {"natural": np.inf, "uniform": -np.inf}.get(options.weighting, options.robust)
    weights = _briggs(uvw_lambda, natural.copy(), options.imsize, cell_lambda, robust)
    if options.taper_arcsec:
        # A Gaussian of this FWHM in the image: exp(-(pi theta b)^2 / (4 ln 2)).
        squares = uvw_lambda[:, 0] ** 2 + uvw_lambda[:, 1] ** 2
        weights *= np.exp(
            -((np.pi * np.radians(options.taper_arcsec / 3600)) ** 2) / (4 * np.log(2)) * squares
        )
    return weights


@njit(cache=True)
def _briggs(uvw, weights, cells, cell_size, robust):
    half = cells // 2
    density = np.zeros((cells, half + 2), np.float32)
    for pass_ in range(2):
        scale = 0.0
        if pass_ == 1 and robust != np.inf:
            total, squares = 0.0, 0.0
            for i in range(cells):
                for j in range(half + 2):
                    squares += density[i, j] ** 2
                    total += density[i, j]
            scale = (5 * 10.0**-robust) ** 2 / (squares / total) if robust != -np.inf else np.inf
        for r in range(len(weights)):
            if weights[r] == 0:
                continue
            x, y = uvw[r, 0] / cell_size, uvw[r, 1] / cell_size
            if y < 0:
                x, y = -x, -y
            i, j = int(np.floor(x + 0.5)) + half, int(np.floor(y + 0.5))
            if i < 0 or i >= cells or j >= half + 2:
                if pass_ == 1:
                    weights[r] = 0
            elif pass_ == 0:
                density[i, j] += weights[r]
            elif scale == np.inf:
                weights[r] /= density[i, j]
            else:
                weights[r] /= 1 + density[i, j] * scale
    return weights


def expected_noise(*, weights: np.ndarray, natural: np.ndarray) -> float:
    """Noise of a weighted mean of visibilities, whose variances are 1 / natural."""
    used = natural > 0
    return float(
        np.sqrt(np.sum(weights[used].astype(np.float64) ** 2 / natural[used]))
        / weights.sum(dtype=np.float64)
    )
