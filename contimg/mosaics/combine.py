"""Tiles (images of groups) as one: each regridded to the tract's pixels, weighed by what its beam
leaves of the signal and by its noise.

With a tile's value T (Jy/beam, before the beam is divided out), what beam and smearing leave B, and
its noise s, a pixel is

    sum(B T / s^2) / sum(B^2 / s^2)

which is the sum of T / B with the weights w = (B / s)^2; the noise is sum(w) ** -0.5. The sum's
numerator is kept as image times weight.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.imaging.interface import Beam, robust_rms
from contimg.imaging.restoring import restore
from contimg.imaging.sampling import TAPS, value_at
from contimg.mosaics.tracts import Tract, frame_of

BLOCK = 64  # pixels on a side of what noise is measured in


@dataclass(frozen=True)
class Tile:
    """An image of a group, arrays (npix, npix) on a SIN grid.

    residual         Jy/beam, before the beam is divided out
    components       (n, 3): x, y in pixels, Jy as the restored image shows them
    pb               response of the primary beam; below `beam_limit` nothing is used
    smearing         what smearing leaves of peaks, at every `smearing_step` pixels around the
                     middle
    noise_jy         of the residual, Jy/beam
    """

    residual: np.ndarray
    components: np.ndarray
    pb: np.ndarray
    smearing: np.ndarray
    smearing_step: int
    centre_deg: tuple[float, float]
    cell_deg: float
    noise_jy: float
    beam_limit: float


@dataclass(frozen=True)
class Sum:
    """Of tiles, or of days: image (nx, ny) in Jy/beam, NaN where there is nothing; weight in
    Jy^-2; how many tiles (or days) there are."""

    image: np.ndarray
    weight: np.ndarray
    number: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "Sum":
        """Of nothing."""
        nothing = np.full(shape, np.nan, np.float32)
        return cls(nothing, np.zeros(shape, np.float32), np.zeros(shape, np.uint16))

    def as_one(self) -> "Sum":
        """The same, counted as one: a day among days."""
        return Sum(self.image, self.weight, (self.weight > 0).astype(np.uint16))

    def add(self, other: "Sum") -> None:
        """One more, in place: numerators and weights add up."""
        _add(self.image, self.weight, self.number, other.image, other.weight, other.number)


def add_tile(total: Sum, tract: Tract, tile: Tile, beam: Beam) -> int:
    """Add a tile to a tract's sum, with `beam` as restoring beam; returns on how many pixels."""
    turn = frame_of(*tile.centre_deg) @ frame_of(*tract.centre_deg).T  # (l, m, n) to the tile's
    cells = np.radians([tract.cell_deg, tile.cell_deg])
    box = _box(tract, tile, turn, cells)
    if box is None:
        return 0
    (x0, x1), (y0, y1) = box
    value, left = np.zeros((2, x1 - x0, y1 - y0), np.float32)
    origin = np.array([tract.shape[0] // 2 - x0, tract.shape[1] // 2 - y0])
    _regrid(
        value,
        left,
        tile.residual,
        tile.pb,
        tile.smearing,
        tile.smearing_step,
        tile.beam_limit,
        turn,
        cells,
        origin,
    )
    components = _moved(tile, turn, cells, origin)
    value = restore(
        residual=value, components=components, beam=beam, cell_arcsec=3600 * tract.cell_deg
    )
    part = (slice(x0, x1), slice(y0, y1))
    return _weigh(
        total.image[part], total.weight[part], total.number[part], value, left, tile.noise_jy
    )


def _box(
    tract: Tract, tile: Tile, turn: np.ndarray, cells: np.ndarray
) -> tuple[tuple[int, int], ...] | None:
    """Pixels of the tract that the tile may have, from its edge; None where it has none."""
    if turn[2, 2] < 0.9:
        return None
    npix = len(tile.residual)
    along = np.linspace(0, npix - 1, 33)
    edges = [(along, 0 * along), (along, 0 * along + npix - 1)]
    edges += [(y, x) for x, y in edges]
    x, y = (np.concatenate([edge[k] for edge in edges]) for k in (0, 1))
    middle = np.array([n // 2 for n in tract.shape])
    places = _to_tract(np.column_stack([x, y]), npix, turn, cells) + middle
    low = np.maximum(np.floor(places.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(places.max(axis=0)).astype(int) + 1, tract.shape)
    return None if (low >= high).any() else tuple(zip(low, high, strict=True))


def _to_tract(places: np.ndarray, npix: int, turn: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) of a tile as pixels from the tract's centre."""
    l, m = (places - npix // 2).T * cells[1] * np.array([[-1], [1]])
    n = np.sqrt(np.maximum(1 - l**2 - m**2, 0))
    l, m, _ = turn.T @ np.stack([l, m, n])
    return np.column_stack([-l, m]) / cells[0]


def _moved(tile: Tile, turn: np.ndarray, cells: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """A tile's components in the pixels of a part of the tract."""
    if not len(tile.components):
        return tile.components
    places = _to_tract(tile.components[:, :2], len(tile.residual), turn, cells) + origin
    return np.column_stack([places, tile.components[:, 2]])


@njit(cache=True)
def _between(image, x, y):
    """Bilinear; at the edge, the edge's."""
    nx, ny = image.shape
    x, y = min(max(x, 0.0), nx - 1.0), min(max(y, 0.0), ny - 1.0)
    i, j = min(int(x), nx - 2), min(int(y), ny - 2)
    a, b = x - i, y - j
    low = (1 - b) * image[i, j] + b * image[i, j + 1]
    return (1 - a) * low + a * ((1 - b) * image[i + 1, j] + b * image[i + 1, j + 1])


@njit(parallel=True, cache=True)
def _regrid(value, left, residual, pb, smearing, step, beam_limit, turn, cells, origin):
    """The tile's residual, and what beam and smearing leave (0: nothing to be used)."""
    npix, middle = len(residual), len(smearing) // 2
    for i in prange(value.shape[0]):
        l = -(i - origin[0]) * cells[0]
        for j in range(value.shape[1]):
            m = (j - origin[1]) * cells[0]
            n = np.sqrt(1 - l * l - m * m)
            x = npix // 2 - (turn[0, 0] * l + turn[0, 1] * m + turn[0, 2] * n) / cells[1]
            y = npix // 2 + (turn[1, 0] * l + turn[1, 1] * m + turn[1, 2] * n) / cells[1]
            if min(x, y) < TAPS or max(x, y) > npix - 1 - TAPS:
                continue
            beam = _between(pb, x, y)
            if not beam >= beam_limit:
                continue
            few_x, few_y = middle + (x - npix // 2) / step, middle + (y - npix // 2) / step
            left[i, j] = beam * _between(smearing, few_x, few_y)
            value[i, j] = value_at(residual, x, y)


@njit(parallel=True, cache=True)
def _weigh(image, weight, number, value, left, noise_jy):
    pixels = 0
    for i in prange(value.shape[0]):
        for j in range(value.shape[1]):
            if left[i, j] > 0:
                mine = (left[i, j] / noise_jy) ** 2
                both = weight[i, j] + mine
                was = image[i, j] * weight[i, j] if weight[i, j] > 0 else 0.0
                image[i, j] = (was + mine * value[i, j] / left[i, j]) / both
                weight[i, j] = both
                number[i, j] += 1
                pixels += 1
    return pixels


@njit(parallel=True, cache=True)
def _add(image, weight, number, other, other_weight, other_number):
    for i in prange(image.shape[0]):
        for j in range(image.shape[1]):
            mine = other_weight[i, j]
            if mine > 0:
                both = weight[i, j] + mine
                was = image[i, j] * weight[i, j] if weight[i, j] > 0 else 0.0
                image[i, j] = (was + mine * other[i, j]) / both
                weight[i, j] = both
                number[i, j] += other_number[i, j]


def without(total: Sum, part: Sum) -> Sum:
    """What a sum has without one that is in it: the weights' difference is exact to rounding; where
    that is all there is, nothing."""
    weight = total.weight - part.weight
    weight[weight < 1e-4 * total.weight] = 0
    rest = np.nan_to_num(total.image) * total.weight - np.nan_to_num(part.image) * part.weight
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.where(weight > 0, rest / weight, np.nan).astype(np.float32)
    return Sum(image, weight, total.number - part.number)


def noise_of_blocks(image: np.ndarray) -> np.ndarray:
    """Robust noise of blocks of pixels (x, y); NaN where half of a block or more has no value."""
    nx, ny = (n // BLOCK for n in image.shape)
    found = np.full((nx, ny), np.nan, np.float32)
    for i in range(nx):
        for j in range(ny):
            block = image[i * BLOCK : (i + 1) * BLOCK : 2, j * BLOCK : (j + 1) * BLOCK : 2]
            good = block[np.isfinite(block)]
            if 2 * good.size > block.size:
                found[i, j] = robust_rms(good)
    return found


def as_measured(image: np.ndarray, expected_jy: np.ndarray) -> np.ndarray:
    """Noise at every pixel: what is expected, or what the blocks around it show where that is
    more."""
    with np.errstate(invalid="ignore"):
        blocks = noise_of_blocks(image / expected_jy)
    blocks = np.where(np.isfinite(blocks), np.maximum(blocks, 1), 1).astype(np.float32)
    if not blocks.size:
        return expected_jy
    x, y = ((np.arange(n) + 0.5) / BLOCK - 0.5 for n in image.shape)
    rows = np.stack([np.interp(y, np.arange(blocks.shape[1]), row) for row in blocks])
    more = np.stack([np.interp(x, np.arange(blocks.shape[0]), row) for row in rows.T], axis=1)
    return expected_jy * more.astype(np.float32)
