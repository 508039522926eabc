"""Fluxes of known sources in one image, all of them together.

The dirty image at the place of source i is the sum over all sources j of their apparent fluxes F_j
times the psf between the two: A F = d with A_ij = psf(x_i - x_j). With natural weights that is the
least-squares fit of all sources to the visibilities; with others a weighted one. It has no clean
bias, and neighbours' sidelobes are in it.

d is put together from the residual, which knows far sidelobes exactly, and the clean's components.
Components that belong to no source of the list and together exceed the noise are sources that the
list does not have: they are unknowns, too.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import linalg
from scipy.fft import irfft2, rfft2
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from contimg.imaging.interface import Beam, robust_rms
from contimg.imaging.sampling import SINC, STEPS, TAPS, sample, value_at

_NEAR = 0.7  # of the beam's major axis: a component that belongs to a source
_HANGS = 0.5  # of the beam: components that are one source
_FOUND_SIGMA = 5.0
_LOCAL_BEAMS = 15  # half the side of the box in which a source's noise is measured
_NOISE_PATCH = 1024  # pixels on a side, from which the noise's correlation is taken


@dataclass(frozen=True)
class Forced:
    """Apparent fluxes (Jy) of n sources, their errors from noise, the local noise (Jy/beam), and
    the same from the cleaned image: its value there, and a restoring beam's height there.

    unlisted  (k, 4): x, y, flux and its error of what the clean found and the list does not have
    """

    flux_jy: np.ndarray
    error_jy: np.ndarray
    noise_jy: np.ndarray
    peak_jy: np.ndarray
    fit_jy: np.ndarray
    unlisted: np.ndarray


def forced_fluxes(
    *,
    residual: np.ndarray,
    psf: np.ndarray,
    image: np.ndarray,
    components: np.ndarray,
    beam: Beam,
    cell_arcsec: float,
    x: np.ndarray,
    y: np.ndarray,
) -> Forced:
    """Fluxes at places x, y (n,) in pixels, between them too.

    residual, psf, image  (npix, npix), (x, y): Jy/beam; psf 1 at (npix/2, npix/2)
    components            (m, 3): x, y in pixels, and Jy as the dirty image sees them
    """
    listed = np.column_stack([x, y])
    unlisted = _unlisted(components, listed, beam.major_arcsec / cell_arcsec, robust_rms(residual))
    places = np.concatenate([listed, unlisted])
    if not len(places):  # a hole of the catalogue, and nothing bright
        return Forced(*np.zeros((5, 0)), np.zeros((0, 4)))
    seen = sample(residual, *places.T) + _dirty(psf, components, places)
    inverse = linalg.pinvh(_psf_between(psf, places))
    flux_jy = inverse @ seen
    left = _without(residual, psf, np.column_stack([places, flux_jy]), components)
    noise_jy = _local_noise(left, places, _LOCAL_BEAMS * beam.major_arcsec / cell_arcsec)
    correlation = _noise_between(left, places)
    variance = np.einsum("ij,jk,ik->i", inverse, correlation, inverse, optimize=True)
    error_jy = np.sqrt(np.maximum(variance, 0))
    number = len(x)
    return Forced(
        flux_jy[:number],
        (error_jy * noise_jy)[:number],
        noise_jy[:number],
        sample(image, x, y),
        _fitted_heights(image, x, y, beam, cell_arcsec),
        np.column_stack([unlisted, flux_jy[number:], (error_jy * noise_jy)[number:]]),
    )


def _unlisted(
    components: np.ndarray, listed: np.ndarray, beam: float, noise_jy: float
) -> np.ndarray:
    """Places (k, 2) of what the clean found farther than `_NEAR` beams (of so many pixels) from any
    source of the list: the middle of components that hang together."""
    if len(listed) and len(components):
        away, _ = cKDTree(listed).query(components[:, :2])
        components = components[away > _NEAR * beam]
    if not len(components):
        return np.empty((0, 2))
    pairs = cKDTree(components[:, :2]).sparse_distance_matrix(
        cKDTree(components[:, :2]), _HANGS * beam
    )
    number, which = csgraph.connected_components(pairs, directed=False)
    flux_jy = np.bincount(which, components[:, 2], number)
    weight = np.abs(components[:, 2])
    total = np.maximum(np.bincount(which, weight, number), 1e-12)
    middle = [np.bincount(which, weight * v, number) / total for v in components[:, :2].T]
    return np.stack(middle, axis=1)[np.abs(flux_jy) > _FOUND_SIGMA * noise_jy]


@njit(parallel=True, cache=True)
def _dirty(psf, components, places):
    """What the dirty image of components is at places."""
    cx, cy = psf.shape[0] // 2, psf.shape[1] // 2
    found = np.zeros(len(places))
    for s in prange(len(places)):
        for k in range(len(components)):
            dx, dy = places[s, 0] - components[k, 0], places[s, 1] - components[k, 1]
            found[s] += components[k, 2] * value_at(psf, cx + dx, cy + dy)
    return found


@njit(parallel=True, cache=True)
def _psf_between(psf, places):
    """A: (n, n), symmetric."""
    cx, cy = psf.shape[0] // 2, psf.shape[1] // 2
    found = np.eye(len(places))
    for i in prange(len(places)):
        for j in range(i):
            dx, dy = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
            found[i, j] = found[j, i] = value_at(psf, cx + dx, cy + dy)
    return found


def _without(
    residual: np.ndarray, psf: np.ndarray, sources: np.ndarray, components: np.ndarray
) -> np.ndarray:
    """The residual of the sources in place of their components: noise, and what the list does not
    have."""
    moved = np.zeros_like(residual)
    _spread(moved, sources, 1.0)
    _spread(moved, components, -1.0)
    centred = np.roll(psf, [-(n // 2) for n in psf.shape], axis=(0, 1))
    shown = rfft2(moved, workers=2) * rfft2(centred, workers=2)
    return residual - irfft2(shown, s=residual.shape, workers=2)


@njit(cache=True)
def _spread(image, points, sign):
    """Add points (n, 3) of x, y and Jy to the pixels around them, by the sinc that reads them."""
    for k in range(len(points)):
        i0, j0 = int(np.floor(points[k, 0])), int(np.floor(points[k, 1]))
        along = SINC[int(np.round((points[k, 0] - i0) * STEPS))]
        across = SINC[int(np.round((points[k, 1] - j0) * STEPS))]
        for a in range(2 * TAPS):
            i = i0 + a - TAPS + 1
            for b in range(2 * TAPS):
                j = j0 + b - TAPS + 1
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    image[i, j] += sign * points[k, 2] * along[a] * across[b]


def _noise_between(residual: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Correlation (n, n) of the noise at places, from the middle of the residual; beyond what that
    shows: none."""
    side = min(_NOISE_PATCH, *residual.shape)
    middle = tuple(slice((n - side) // 2, (n - side) // 2 + side) for n in residual.shape)
    patch = residual[middle].astype(float)
    limit = 5 * robust_rms(patch)
    power = np.abs(rfft2(np.clip(patch, -limit, limit), workers=2)) ** 2
    power[0, 0] = 0
    correlation = np.fft.fftshift(irfft2(power, s=patch.shape))
    correlation /= correlation.max()
    keep = side // 4
    centre = tuple(slice(n // 2 - keep, n // 2 + keep + 1) for n in correlation.shape)
    return _psf_between(np.ascontiguousarray(correlation[centre]), places)


def _local_noise(residual: np.ndarray, places: np.ndarray, half: float) -> np.ndarray:
    """Noise around each place, never less than half of the image's: on a lattice of boxes."""
    side = max(8, int(2 * half))
    whole = robust_rms(residual)
    boxes = [max(1, n // side) for n in residual.shape]
    parts = [np.array_split(rows, boxes[1], axis=1) for rows in np.array_split(residual, boxes[0])]
    found = np.array([[robust_rms(part[::2, ::2]) for part in row] for row in parts])
    found = np.where(np.isfinite(found) & (found > 0), found, whole)
    index = [
        np.clip((places[:, k] / n * count).astype(int), 0, count - 1)
        for k, (n, count) in enumerate(zip(residual.shape, boxes, strict=True))
    ]
    return np.maximum(found[tuple(index)], whole / 2)


def _fitted_heights(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, beam: Beam, cell_arcsec: float
) -> np.ndarray:
    """Height of a restoring beam at each place, least squares within its half-power ellipse; NaN
    at the image's edge."""
    quadratic = beam.quadratic() * cell_arcsec**2 * np.array([1, -1, 1])  # x grows to the west
    reach = int(np.ceil(0.75 * beam.major_arcsec / cell_arcsec))
    return _heights(image, np.asarray(x, float), np.asarray(y, float), quadratic, reach)


@njit(parallel=True, cache=True)
def _heights(image, x, y, quadratic, reach):
    nx, ny = image.shape
    found = np.full(len(x), np.nan)
    for s in prange(len(x)):
        i0, j0 = int(np.floor(x[s] + 0.5)), int(np.floor(y[s] + 0.5))
        if not (reach <= i0 < nx - reach and reach <= j0 < ny - reach):
            continue
        above, below = 0.0, 0.0
        for i in range(i0 - reach, i0 + reach + 1):
            for j in range(j0 - reach, j0 + reach + 1):
                dx, dy = i - x[s], j - y[s]
                exponent = quadratic[0] * dx**2 + quadratic[1] * dx * dy + quadratic[2] * dy**2
                if exponent < 0.7:
                    height = np.exp(-exponent)
                    above += height * image[i, j]
                    below += height**2
        if below > 0:
            found[s] = above / below
    return found
