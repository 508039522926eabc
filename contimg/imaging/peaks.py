"""Peaks of an image, as points."""

import numpy as np
from scipy.ndimage import maximum_filter

from contimg.imaging.interface import Beam


def bright_peaks(
    *, image: np.ndarray, beam: Beam, cell_arcsec: float, least_jy: float
) -> np.ndarray:
    """The highest pixels within a beam that exceed a level: (n, 3), x, y in pixels (between them,
    too) and Jy."""
    reach = int(np.ceil(beam.major_arcsec / cell_arcsec))
    is_peak = (image == maximum_filter(image, size=2 * reach + 1)) & (image > least_jy)
    is_peak[[0, -1]] = is_peak[:, [0, -1]] = False
    found = []
    for x, y in np.argwhere(is_peak):
        peak_jy, dx, dy = _peak(image[x - 1 : x + 2, y - 1 : y + 2])
        found.append((x + dx, y + dy, peak_jy))
    return np.array(found).reshape(-1, 3)


def _peak(stamp: np.ndarray) -> tuple[float, float, float]:
    """Peak and its place in 3 x 3 pixels: of the parabolas through the logarithm along each
    axis."""
    if not (stamp > 0).all():
        return float(stamp[1, 1]), 0.0, 0.0
    log, place = np.log(stamp), []
    top = log[1, 1]
    for before, after in ((log[0, 1], log[2, 1]), (log[1, 0], log[1, 2])):
        curve, slope = before + after - 2 * log[1, 1], (after - before) / 2
        step = -slope / curve if curve < 0 else 0.0
        place.append(float(np.clip(step, -0.5, 0.5)))
        top += slope * place[-1] + curve * place[-1] ** 2 / 2
    return float(np.exp(top)), *place
