"""The snapshot is a plane: w = a u + b v, and the slanted grid on which a 2-D transform images it.

Over a group the array turns little: its baselines lie in one plane to metres. With w = a u + b v
the phase of a visibility, 2 pi (u l + v m + w (n - 1)), is 2 pi (u l' + v m') with

    l' = l + a (n - 1),  m' = m + b (n - 1):

the slant orthographic projection of FITS (SIN with PV2_1 = -a, PV2_2 = -b; Calabretta & Greisen
2002, section 5.1.5; Cornwell, Voronkov & Humphreys 2012 for the fit). |b| is about the tangent of
the zenith distance. l grows to the east, m to the north; n = sqrt(1 - l^2 - m^2).

Pixels are (x, y) of an image in which x grows to the west and the phase centre is (npix/2, npix/2).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

_NEGLIGIBLE_LOSS = 1e-3  # of a peak at the edge of the field: then 2-D transforms do
_WORTH_SLANTING = 0.5  # of w must go with the plane
_MOST_MARGIN = 0.3  # of the image's width
_TAPS = 8  # of the kernel that regrids
_BETA = 5.65  # of its Kaiser-Bessel window: least error for beams of 4 to 5 pixels
_STEPS = 2048  # of the kernel's table, a pixel


@dataclass(frozen=True)
class Plane:
    """w = a u + b v + what is `left` (weighted rms, m)."""

    a: float
    b: float
    left_m: float

    def loss(self, radius_deg: float, freq_hz: float) -> float:
        """Share of a peak, so far from the phase centre, that a 2-D transform loses: half the
        mean square of the phase 2 pi w (n - 1)."""
        turns = self.left_m * freq_hz / SPEED_OF_LIGHT_M_S * (1 - np.cos(np.radians(radius_deg)))
        return float((2 * np.pi * turns) ** 2 / 2)

    def without(self, uvw_m: np.ndarray) -> np.ndarray:
        """uvw (..., 3) with what is left of w."""
        left = uvw_m.copy()
        left[..., 2] -= self.a * uvw_m[..., 0] + self.b * uvw_m[..., 1]
        return left

    def slanted(self, l, m) -> tuple[np.ndarray, np.ndarray]:
        """(l', m') of direction cosines (l, m)."""
        depth = np.sqrt(1 - l**2 - m**2) - 1
        return l + self.a * depth, m + self.b * depth

    def plain(self, l, m) -> tuple[np.ndarray, np.ndarray]:
        """(l, m) of slanted ones: the inverse of `slanted`."""
        square, linear = 1 + self.a**2 + self.b**2, 1 - self.a * l - self.b * m
        radius = l**2 + m**2
        depth = -radius / (linear + np.sqrt(linear**2 - square * radius))
        return l - self.a * depth, m - self.b * depth

    def margin(self, npix: int, cell_rad: float) -> int:
        """Pixels that a slanted image needs beyond each side to cover a plain one of npix."""
        half = npix / 2 * cell_rad
        l, m = np.meshgrid([-half, 0, half], [-half, 0, half])
        beyond = np.abs(np.subtract(self.slanted(l, m), (l, m))).max() / cell_rad
        return int(np.ceil(beyond)) + _TAPS


def fit_plane(*, uvw_m: np.ndarray, weights: np.ndarray) -> Plane:
    """Least squares over rows, uvw (nrow, 3) with weights (nrow,); no plane (0, 0) where the rows
    do not define one."""
    u, v, w = uvw_m.T.astype(np.float64)
    matrix = np.array([[weights @ (u * u), weights @ (u * v)], [0, weights @ (v * v)]])
    matrix[1, 0] = matrix[0, 1]
    a = b = 0.0
    if np.linalg.cond(matrix) < 1e12:
        a, b = np.linalg.solve(matrix, [weights @ (u * w), weights @ (v * w)])
    left = np.average((w - a * u - b * v) ** 2, weights=weights)
    return Plane(float(a), float(b), float(np.sqrt(left)))


def between_grids(
    components: np.ndarray, *, to, from_npix: int, to_npix: int, cell_rad: float
) -> np.ndarray:
    """Components (n, 3), x, y in pixels and Jy, of one grid at their places on another; `to` is
    `slanted` or `plain` of a plane."""
    x, y, flux_jy = components.T
    l, m = to(-(x - from_npix // 2) * cell_rad, (y - from_npix // 2) * cell_rad)
    return np.stack([to_npix // 2 - l / cell_rad, to_npix // 2 + m / cell_rad, flux_jy], axis=1)


@dataclass(frozen=True)
class Way:
    """How an image is made: on which plane, whether every transform has w or only the last ones,
    and how many pixels more than the image the slanted grid has on each side."""

    name: str
    plane: Plane
    with_w: bool
    margin: int
    notes: dict


def choose_way(
    *,
    uvw_m: np.ndarray,
    weights: np.ndarray,
    freq_hz: float,
    edge_deg: float,
    npix: int,
    cell_rad: float,
) -> Way:
    """2-D where what is left of w costs nothing; the slanted grid with w where the plane takes most
    of w; plain w where there is no plane."""
    flat, plane = Plane(0.0, 0.0, 0.0), fit_plane(uvw_m=uvw_m, weights=weights)
    all_w_m = float(np.sqrt(np.average(uvw_m[:, 2] ** 2, weights=weights)))
    loss, margin = plane.loss(edge_deg, freq_hz), plane.margin(npix, cell_rad)
    notes = {"plane": [plane.a, plane.b], "w_left_m": plane.left_m, "w_m": all_w_m}
    notes |= {"plane_loss": loss, "plane_edge_deg": edge_deg}
    if margin <= _MOST_MARGIN * npix and loss < _NEGLIGIBLE_LOSS:
        return Way("2-D", plane, False, margin, notes)
    if margin <= _MOST_MARGIN * npix and plane.left_m < _WORTH_SLANTING * all_w_m:
        return Way("slanted with w", plane, True, margin, notes)
    return Way("w", flat, True, 0, notes)


def _kernel_table() -> np.ndarray:
    """A Kaiser-Bessel windowed sinc, by distance in pixels: (1 + _TAPS / 2) * _STEPS values."""
    distance = np.arange((_TAPS // 2 + 1) * _STEPS) / _STEPS
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (2 * distance / _TAPS) ** 2, 0, None)))
    window = np.where(distance <= _TAPS / 2, window / np.i0(_BETA), 0)
    return (np.sinc(distance) * window).astype(np.float32)


_TABLE = _kernel_table()


def regrid(*, image: np.ndarray, plane: Plane, npix: int, cell_rad: float) -> np.ndarray:
    """A slanted image on the plain grid of npix pixels; its own grid is as wide or wider.

    The kernel's error is below 1e-3 of a peak for a beam of four pixels or more (tests).
    """
    if (plane.a, plane.b) == (0, 0) and image.shape == (npix, npix):
        return image
    return _regrid(image, npix, cell_rad, plane.a, plane.b, _TABLE)


@njit(parallel=True, cache=True)
def _regrid(image, npix, cell_rad, a, b, table):
    out = np.empty((npix, npix), np.float32)
    cx, cy = image.shape[0] // 2, image.shape[1] // 2
    half = _TAPS // 2
    for i in prange(npix):
        l = -(i - npix // 2) * cell_rad
        wx, wy = np.empty(_TAPS, np.float32), np.empty(_TAPS, np.float32)
        for j in range(npix):
            m = (j - npix // 2) * cell_rad
            depth = np.sqrt(1 - l * l - m * m) - 1
            x = cx + i - npix // 2 - a * depth / cell_rad
            y = cy + j - npix // 2 + b * depth / cell_rad
            x0, y0 = int(np.floor(x)) - half + 1, int(np.floor(y)) - half + 1
            sum_x, sum_y = np.float32(0), np.float32(0)
            for k in range(_TAPS):
                wx[k] = table[int(abs(x - x0 - k) * _STEPS + 0.5)]
                wy[k] = table[int(abs(y - y0 - k) * _STEPS + 0.5)]
                sum_x += wx[k]
                sum_y += wy[k]
            value = np.float32(0)
            for p in range(_TAPS):
                line = np.float32(0)
                for q in range(_TAPS):
                    line += wy[q] * image[x0 + p, y0 + q]
                value += wx[p] * line
            out[i, j] = value / (sum_x * sum_y)
    return out
