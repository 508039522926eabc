"""Are there fringes in a residual? A baseline or an antenna with bad data leaves stripes: power at
one spacing and angle that noise, weighted as it is, does not have."""

import numpy as np

from contimg.config import ValidationConfig
from contimg.findings import Finding, judged, unknown

_PIXELS = 1024  # of the middle
_ANGLES, _RADII = 24, 6
_FEW_CELLS = 40
_LEAST_WEIGHT = 0.02  # of the largest: elsewhere there is next to no data


def fringe_power(
    residual: np.ndarray, psf: np.ndarray, cell_arcsec: float
) -> tuple[float, float, float] | None:
    """Largest power of a residual in a sector of the uv plane, over that of the median sector, both
    by the weight that the psf shows; the spacing of the fringes (arcsec) and their position angle
    (deg, from north through east, across the stripes). None where there is too little to see.
    """
    number = min(_PIXELS, *residual.shape)
    inner = tuple(slice(n // 2 - number // 2, n // 2 - number // 2 + number) for n in psf.shape)
    window = np.hanning(number).astype(np.float32)
    window = window[:, None] * window
    power = np.abs(np.fft.rfft2(residual[inner] * window)) ** 2
    weight = np.abs(np.fft.rfft2(psf[inner] * window))
    u = np.fft.fftfreq(number, cell_arcsec)[:, None] + 0 * power
    v = np.fft.rfftfreq(number, cell_arcsec)[None] + 0 * power
    there = weight > _LEAST_WEIGHT * weight.max()
    spacing = np.hypot(u, v)[there]
    angle = np.degrees(np.arctan2(-u, v))[there] % 180  # x grows to the west
    edges = np.quantile(spacing, np.linspace(0, 1, _RADII + 1))
    ring = np.clip(np.searchsorted(edges, spacing, side="right") - 1, 0, _RADII - 1)
    sector = ring * _ANGLES + (angle * _ANGLES / 180).astype(int) % _ANGLES
    total = np.bincount(sector, power[there], _RADII * _ANGLES)
    expected = np.bincount(sector, weight[there], _RADII * _ANGLES)
    enough = np.bincount(sector, minlength=_RADII * _ANGLES) >= _FEW_CELLS
    if enough.sum() < _ANGLES:
        return None
    ratio = np.where(enough, total / np.where(expected > 0, expected, 1), 0)
    typical = np.median(ratio[enough])
    k = int(np.argmax(ratio))
    mine = sector == k
    at = float(np.average(spacing[mine], weights=power[there][mine]))
    return float(ratio[k] / typical), 1 / at, (k % _ANGLES + 0.5) * 180 / _ANGLES


def judge_fringes(found: tuple[float, float, float] | None, limits: ValidationConfig) -> Finding:
    """What is to be said of them."""
    if found is None:
        return unknown(name="fringes", why="too few baselines to look for fringes")
    ratio, spacing_arcsec, angle_deg = found
    return judged(
        name="fringes",
        value=ratio,
        warn=limits.warn_fringes,
        fail=limits.fail_fringes,
        unit="times",
        words=f"the residual has stripes every {spacing_arcsec:.0f} arcsec, at position angle "
        f"{angle_deg:.0f} deg, of {ratio:.1f} times the power of other spacings",
        cause="Bad data of a few baselines or of an antenna, or a bright source outside the image",
    )
