"""An image's values between its pixels."""

import numpy as np
from numba import njit, prange

TAPS = 6  # each way, of the windowed sinc
STEPS = 1024  # of a pixel, in its table


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """An image's values between its pixels: a sinc in Kaiser's window, for what is band-limited.
    Outside the image: 0."""
    return _sample(image, np.asarray(x, float), np.asarray(y, float))


def _sinc_table() -> np.ndarray:
    """Weights of the pixels around a place, for each fraction of a pixel (Kaiser's window)."""
    fraction = np.arange(STEPS + 1)[:, None] / STEPS
    away = np.arange(2 * TAPS) - TAPS + 1 - fraction
    inside = np.clip(1 - (away / TAPS) ** 2, 0, None)
    found = np.sinc(away) * np.i0(6.0 * np.sqrt(inside)) * (inside > 0)
    return found / found.sum(axis=1, keepdims=True)


SINC = _sinc_table()


@njit(parallel=True, cache=True)
def _sample(image, x, y):
    found = np.zeros(len(x))
    for s in prange(len(x)):
        found[s] = value_at(image, x[s], y[s])
    return found


@njit(cache=True)
def value_at(image, x, y):
    """One of them; for compiled loops."""
    i0, j0 = int(np.floor(x)), int(np.floor(y))
    if i0 < 0 or j0 < 0 or i0 >= image.shape[0] or j0 >= image.shape[1]:
        return 0.0
    along = SINC[int(np.round((x - i0) * STEPS))]
    across = SINC[int(np.round((y - j0) * STEPS))]
    total = 0.0
    for a in range(2 * TAPS):
        i = i0 + a - TAPS + 1
        if 0 <= i < image.shape[0]:
            row = 0.0
            for b in range(2 * TAPS):
                j = j0 + b - TAPS + 1
                if 0 <= j < image.shape[1]:
                    row += across[b] * image[i, j]
            total += along[a] * row
    return total
