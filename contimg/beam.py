"""Primary beam of a uniformly lit 4.65 m dish, and what a drift scan makes of it."""

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.special import j1

from contimg.geometry import SPEED_OF_LIGHT_M_S

DISH_DIAMETER_M = 4.65
_COARSE_PIXELS = 257
_PROFILE_POINTS = 4096


def airy_power(sin_theta: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
    """Power response (2 J1(x) / x)^2, x = pi D sin(theta) nu / c; arguments broadcast; 1 on axis (Born & Wolf 8.5.2)."""
    x = np.pi * DISH_DIAMETER_M / SPEED_OF_LIGHT_M_S * np.asarray(sin_theta) * freq_hz
    x = np.where(np.abs(x) < 1e-6, 1e-6, x)
    return (2 * j1(x) / x) ** 2


def beam_track(vectors: np.ndarray, pointing: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
    """Response (ntime, nsource, nchan) towards apparent unit vectors (ntime, nsource, 3) of a dish on `pointing` (3,)."""
    sin_theta = np.linalg.norm(np.cross(vectors, pointing), axis=-1)
    return airy_power(sin_theta[..., None], freq_hz)


def drift_beam(l, m, track_lm, freq_hz, time_weights, freq_weights) -> np.ndarray:
    """Primary-beam power averaged over a drift scan, on an image grid.

    l, m          direction cosines from the phase centre along the two image axes, shapes (nx,) and (ny,)
    track_lm      beam centre at each integration in the same frame, shape (ntime, 2)
    freq_hz       channel frequencies, shape (nchan,)
    time_weights  sum of the data's weights at each integration, shape (ntime,)
    freq_weights  sum of the data's weights in each channel, shape (nchan,)

    Returns shape (nx, ny). The beam varies over degrees, so it is computed on a coarse grid and interpolated by a
    bicubic spline (error below 1e-6).
    """
    coarse_l = np.linspace(l.min(), l.max(), _COARSE_PIXELS)
    coarse_m = np.linspace(m.min(), m.max(), _COARSE_PIXELS)
    grid_l, grid_m = np.meshgrid(coarse_l, coarse_m, indexing="ij")
    grid_n = np.sqrt(np.clip(1 - grid_l**2 - grid_m**2, 0, 1))
    sin_grid = np.linspace(0, min(1.0, 3 * np.hypot(np.abs(l).max(), np.abs(m).max()) + 0.1), _PROFILE_POINTS)
    profile = airy_power(sin_grid[:, None], freq_hz) @ (freq_weights / freq_weights.sum())
    average = np.zeros_like(grid_l)
    for (l0, m0), weight in zip(track_lm, time_weights / time_weights.sum(), strict=True):
        n0 = np.sqrt(1 - l0**2 - m0**2)
        cosine = grid_l * l0 + grid_m * m0 + grid_n * n0
        average += weight * np.interp(np.sqrt(np.clip(1 - cosine**2, 0, 1)), sin_grid, profile)
    order_l, order_m = np.argsort(l), np.argsort(m)
    fine = RectBivariateSpline(coarse_l, coarse_m, average)(l[order_l], m[order_m])
    return fine[np.argsort(order_l)][:, np.argsort(order_m)]
