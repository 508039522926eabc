"""Minor cycles: components from a residual and a psf.

A cleaner takes the residual of a major cycle and adds components to its `model` (Jy/pixel), on the
same grid. It says whether it has come down to the threshold, so that what is left is what an exact
residual shows.
"""

from dataclasses import dataclass

import numpy as np
import radler
from numba import njit, prange

from contimg.config import ImagingConfig
from contimg.imaging.interface import Diverged

# Deep minor cycles where sidelobes are low: with one of 0.23 (96 antennas) a major gain of 0.95
# gives what 0.8 does, with one of 0.36 (32 antennas) it doubles the scatter of fluxes.
_MAJOR_GAINS, _MAJOR_GAIN_AT_NONE, _PER_SIDELOBE = (0.6, 0.95), 1.3, 1.5
_MOST_PIXELS = 200_000  # that one minor cycle looks at
_TILE = 64  # pixels on a side
_NOTHING = 0.3  # of the level: a sidelobe that the next major cycle sees to


def major_gain(sidelobe: float) -> float:
    """By how much minor cycles lower the peak before the next major cycle, for a highest sidelobe
    of the psf."""
    return float(np.clip(_MAJOR_GAIN_AT_NONE - _PER_SIDELOBE * sidelobe, *_MAJOR_GAINS))


def thresholds(rms_jy: float, options: ImagingConfig) -> tuple[float, float]:
    """Levels (Jy/beam) that a new component must exceed, and down to which those that are there are
    cleaned."""
    stop = options.threshold_sigma * rms_jy if options.threshold is None else options.threshold
    return max(options.mask_sigma * rms_jy, stop), stop


@dataclass
class PointCleaner:
    """Point components (Hogbom 1974), the psf subtracted at every pixel that can become one.

    Which these are: those of the model, and pixels of the residual above the level that this
    minor cycle goes down to (Clark 1980). A pixel enters the model above `mask_sigma`; inside the
    model the clean goes on to the threshold.
    """

    psf: np.ndarray
    model: np.ndarray
    major_gain: float
    options: ImagingConfig
    iterations: int = 0

    def __post_init__(self):
        self._far = _sidelobes_beyond(self.psf)

    def perform(self, residual: np.ndarray, rms_jy: float) -> bool:
        """One minor cycle on a residual with this noise; whether it came down to the threshold."""
        options = self.options
        mask_level, stop = thresholds(rms_jy, options)
        level = max(stop, (1 - self.major_gain) * float(peak_of(residual)))
        x, y, level = _candidates(residual, self.model, level, mask_level)
        tiles = (x // _TILE).astype(np.int64) * _tiles(residual.shape[1]) + y // _TILE
        order = np.argsort(tiles, kind="stable")
        x, y = x[order], y[order]
        number = _tiles(residual.shape[0]) * _tiles(residual.shape[1])
        starts = np.searchsorted(tiles[order], np.arange(number + 1))
        values, flux = residual[x, y], self.model[x, y]
        done, grown = _hogbom(
            values,
            flux,
            x,
            y,
            self.psf,
            self._far,
            starts,
            _tiles(residual.shape[1]),
            np.float32(options.gain),
            np.float32(level),
            np.float32(mask_level),
            options.niter - self.iterations,
        )
        if grown:
            raise Diverged(f"a minor cycle grew: {done} components made twice the highest residual")
        self.iterations += done
        self.model[x, y] = flux
        return level <= stop or self.iterations >= options.niter


@njit(parallel=True, cache=True)
def peak_of(image):
    """The largest absolute value; infinite where one is no number."""
    most = np.zeros(len(image), np.float32)
    for i in prange(len(image)):
        for value in image[i]:
            if np.isnan(value):
                most[i] = np.inf
            most[i] = max(most[i], abs(value))
    return most.max()


def _candidates(
    residual: np.ndarray, model: np.ndarray, level: float, mask_level: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Pixels (x, y) that can be cleaned down to a level, and the level, which is higher where there
    are too many of them."""
    x, y = _above(residual, model, max(level, mask_level))
    if len(x) > _MOST_PIXELS:
        sizes = np.abs(residual[x, y])
        level = max(level, float(np.partition(sizes, -_MOST_PIXELS)[-_MOST_PIXELS]))
        x, y = x[sizes > level], y[sizes > level]
    return x, y, level


@njit(parallel=True, cache=True)
def _above(residual, model, level):
    """Pixels whose residual exceeds the level, or that are in the model."""
    nx, ny = residual.shape
    starts = np.zeros(nx + 1, np.int64)
    for i in prange(nx):
        for j in range(ny):
            if abs(residual[i, j]) > level or model[i, j] != 0:
                starts[i + 1] += 1
    starts = np.cumsum(starts)
    x, y = np.empty(starts[nx], np.int32), np.empty(starts[nx], np.int32)
    for i in prange(nx):
        k = starts[i]
        for j in range(ny):
            if abs(residual[i, j]) > level or model[i, j] != 0:
                x[k], y[k] = i, j
                k += 1
    return x, y


def _tiles(pixels: int) -> int:
    """Number of tiles along a side."""
    return -(-pixels // _TILE)


def _sidelobes_beyond(psf: np.ndarray) -> np.ndarray:
    """Highest sidelobe of a psf at so many pixels from its centre in x, and in y, and beyond:
    (2, n), falling."""
    size = np.abs(psf)
    found = []
    for along, n in zip((size.max(axis=1), size.max(axis=0)), psf.shape, strict=True):
        away = np.zeros(n // 2 + 1, np.float32)
        np.maximum.at(away, np.abs(np.arange(n) - n // 2), along)
        found.append(np.maximum.accumulate(away[::-1])[::-1])
    most = max(map(len, found))
    return np.stack([np.pad(one, (0, most - len(one))) for one in found])


@njit(parallel=True, cache=True, fastmath=True)
def _hogbom(values, flux, x, y, psf, far, starts, width, gain, level, mask_level, most):
    """Subtract components from `values` until none exceeds the level; returns their number, and
    whether they made things worse.

    Pixels lie in tiles, `width` of them side by side, which begin at `starts`; a component changes
    those tiles in which the psf counts, by its peak and the level.
    """
    cx, cy = psf.shape[0] // 2, psf.shape[1] // 2
    number = len(starts) - 1
    best, peaks = np.zeros(number, np.int64), np.zeros(number, np.float32)
    first_x, last_x, first_y, last_y = 0, number // width - 1, 0, width - 1
    add, ox, oy = np.float32(0), 0, 0
    done, highest = 0, np.float32(0)
    while True:
        for tile_x in prange(first_x, last_x + 1):
            for tile in range(tile_x * width + first_y, tile_x * width + last_y + 1):
                most_here, there = np.float32(0), -1
                for k in range(starts[tile], starts[tile + 1]):
                    i, j = x[k] + ox, y[k] + oy
                    if add != 0 and 0 <= i < psf.shape[0] and 0 <= j < psf.shape[1]:
                        values[k] -= add * psf[i, j]
                    if abs(values[k]) > most_here and (flux[k] != 0 or abs(values[k]) > mask_level):
                        most_here, there = abs(values[k]), k
                best[tile], peaks[tile] = there, most_here
        tile = np.argmax(peaks)
        if done >= most or not peaks[tile] > level:
            return done, False
        if done == 0:
            highest = peaks[tile]
        if peaks[tile] > 2 * highest:
            return done, True
        k = best[tile]
        # All components of this source together are about its peak.
        nothing = _NOTHING * level / peaks[tile]
        add = gain * values[k]
        flux[k] += add
        done += 1
        ox, oy = cx - x[k], cy - y[k]
        reach_x = np.searchsorted(-far[0], -nothing)
        reach_y = np.searchsorted(-far[1], -nothing)
        first_x = max(0, (x[k] - reach_x) // _TILE)
        last_x = min(number // width - 1, (x[k] + reach_x) // _TILE)
        first_y, last_y = (
            max(0, (y[k] - reach_y) // _TILE),
            min(width - 1, (y[k] + reach_y) // _TILE),
        )


class RadlerCleaner:
    """radler's clean: multiscale (Offringa & Smirnov 2017), or the reference for ours."""

    def __init__(
        self,
        psf: np.ndarray,
        model: np.ndarray,
        major_gain: float,
        options: ImagingConfig,
        beam_major_rad: float,
        threads: int,
    ):
        self.model, self.iterations, self._cycles = model, 0, 0
        # radler keeps views, (y, x) in C order: they must live on
        self._arrays = [np.ascontiguousarray(a.T) for a in (psf, np.zeros_like(psf), model)]
        settings = _settings(options, major_gain, model.shape, threads)
        self._radler = radler.Radler(settings, *self._arrays, beam_major_rad)

    def perform(self, residual: np.ndarray, _: float) -> bool:
        """As of `PointCleaner`; radler measures the noise itself."""
        self._arrays[1][:] = residual.T
        more = self._radler.perform(self._cycles)
        self._cycles += 1
        self.iterations = int(self._radler.iteration_number)
        self.model[:] = self._arrays[2].T
        return not more


def _settings(
    options: ImagingConfig, major_gain: float, shape: tuple[int, int], threads: int
) -> radler.Settings:
    settings = radler.Settings()
    settings.trimmed_image_width, settings.trimmed_image_height = shape
    settings.pixel_scale.x = settings.pixel_scale.y = np.radians(options.cell_arcsec / 3600)
    settings.minor_iteration_count = options.niter
    settings.minor_loop_gain, settings.major_loop_gain = options.gain, major_gain
    settings.major_iteration_count = options.max_major_cycles
    settings.thread_count = threads
    settings.auto_mask_sigma = options.mask_sigma
    if options.multiscale:
        settings.algorithm_type = radler.AlgorithmType.multiscale
    if options.threshold is None:
        settings.auto_threshold_sigma = options.threshold_sigma
    else:
        settings.absolute_threshold = options.threshold
    return settings
