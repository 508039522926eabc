"""Imaging in process: ducc0's gridder for the Fourier transforms, on the slanted plane of the
snapshot; minor cycles of `contimg.imaging.cleaning`."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ducc0
import numpy as np
from numba import njit, prange

from contimg.config import ImagingConfig
from contimg.errors import ImagingError
from contimg.imaging.averaging import Averaged, edge_deg
from contimg.imaging.cleaning import PointCleaner, RadlerCleaner, major_gain, peak_of, thresholds
from contimg.imaging.interface import Beam, Deconvolved, Diverged, ImageRequest, Left, robust_rms
from contimg.imaging.plane import between_grids, choose_way, regrid
from contimg.imaging.restoring import components_of, fit_restoring_beam, highest_sidelobe
from contimg.imaging.stokes import StokesI

log = logging.getLogger(__name__)
_EPSILON = 1e-3  # of ducc: 1e-4 of the dirty image's rms
_EPSILON_OF_REST = 1e-2  # the same of a residual: 0.003 of the noise
_NEAR_THRESHOLD = 2.0
_LAST = 1.6  # of the mask's level
# of the mean weight: all of them together are no more than this
_NEGLIGIBLE, _WORTH_LEAVING_OUT = (1e-3, 0.8)


def prepare(averaged: Averaged, stokes: StokesI, workdir: Path) -> Averaged:
    """Visibilities in memory, as they are."""
    return averaged


@dataclass(frozen=True)
class _Transforms:
    """Between visibilities (nrow, nchan) and images of npix pixels on a plane; uvw in metres, with
    what the plane leaves of w."""

    uvw_m: np.ndarray
    freq_hz: np.ndarray
    weights: np.ndarray
    npix: int
    cell_rad: float
    threads: int
    with_w: bool  # always, not only where it is to be exact
    scratch: np.ndarray  # (nrow, nchan), complex64

    def image(self, vis: np.ndarray, exact: bool = False) -> np.ndarray:
        """Dirty image, Jy/beam."""
        epsilon = _EPSILON_OF_REST if exact else _EPSILON
        dirty = ducc0.wgridder.vis2dirty(
            vis=vis,
            wgt=self.weights,
            npix_x=self.npix,
            npix_y=self.npix,
            # threads add up in any order: rounded less, the clean seldom takes another way
            double_precision_accumulation=True,
            **self._common(exact, epsilon),
        )
        dirty /= np.float32(self.weights.sum(dtype=np.float64))
        return dirty

    def residual(self, vis: np.ndarray, model: np.ndarray, exact: bool) -> np.ndarray:
        """Dirty image of the visibilities without a model (Jy/pixel). Exact: with w. A source that
        drifts through the beam's slope has another mean plane than the group, and in 2-D another
        place, by 0.3 arcsec at most; the exact residual knows."""
        left = ducc0.wgridder.dirty2vis(
            dirty=model, wgt=None, vis=self.scratch, **self._common(exact, _EPSILON)
        )
        _subtract_from(vis, left)
        return self.image(left, exact)

    def _common(self, exact: bool, epsilon: float) -> dict:
        # ducc's phase is exp(-2 pi i (u x + v y - w (n - 1))); with x to the west and v turned it
        # is ours: exp(+2 pi i (u l + v m + w (n - 1))).
        return {
            "epsilon": epsilon,
            "do_wgridding": exact or self.with_w,
            "nthreads": self.threads,
            "divide_by_n": False,
            "flip_v": True,
            "uvw": self.uvw_m,
            "freq": self.freq_hz,
            "pixsize_x": self.cell_rad,
            "pixsize_y": self.cell_rad,
        }


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean the request's visibilities; nothing is written back."""
    options, begin = request.options, time.monotonic()
    averaged = _that_count(request.inputs)
    if not averaged.weights.any():
        raise ImagingError(f"every baseline is too long for pixels of {options.cell_arcsec} arcsec")
    npix, cell_rad = options.imsize, np.radians(options.cell_arcsec / 3600)
    way = choose_way(
        uvw_m=averaged.uvw_m,
        weights=averaged.weights.sum(axis=1, dtype=np.float64),
        freq_hz=float(averaged.freq_hz.mean()),
        edge_deg=edge_deg(options),
        npix=npix,
        cell_rad=cell_rad,
    )
    transforms = _Transforms(
        way.plane.without(averaged.uvw_m),
        averaged.freq_hz,
        averaged.weights,
        npix + 2 * way.margin,
        cell_rad,
        request.threads,
        way.with_w,
        np.ones_like(averaged.vis),
    )
    psf = transforms.image(transforms.scratch)
    beam = fit_restoring_beam(psf, options.cell_arcsec)
    residual = transforms.image(averaged.vis)
    log.info(
        "%s: %s; beam %.1f x %.1f arcsec; %.1f s",
        way.name,
        way.notes,
        beam.major_arcsec,
        beam.minor_arcsec,
        time.monotonic() - begin,
    )
    cleaned = _Clean(transforms, averaged.vis, psf, beam, residual, options)
    cleaned.run(begin)
    plain = regrid(image=cleaned.residual, plane=way.plane, npix=npix, cell_rad=cell_rad)
    inner = slice(way.margin, way.margin + npix)
    return Deconvolved(
        plain,
        between_grids(
            components_of(cleaned.model),
            to=way.plane.plain,
            from_npix=transforms.npix,
            to_npix=npix,
            cell_rad=cell_rad,
        ),
        np.ascontiguousarray(psf[inner, inner]),
        beam,
        cleaned.notes | {"transforms": way.name} | way.notes,
        (cleaned.residual, way.plane) if options.slanted_fits else None,
        # the last look left them there
        Left(averaged.uvw_m, averaged.freq_hz, transforms.scratch, averaged.weights, npix)
        if cleaned.cycles
        else None,
    )


@njit(parallel=True, cache=True)
def _subtract_from(vis, model):
    """vis - model, into model."""
    for r in prange(len(vis)):
        for c in range(vis.shape[1]):
            model[r, c] = vis[r, c] - model[r, c]


def _that_count(averaged: Averaged) -> Averaged:
    """Without the rows that have next to no weight: with a taper, most of them."""
    by_row = averaged.weights.sum(axis=1)
    keep = by_row > _NEGLIGIBLE * by_row.mean()
    if not 0 < keep.mean() < _WORTH_LEAVING_OUT:
        return averaged
    names = ("uvw_m", "vis", "natural", "weights")
    return replace(averaged, **{name: getattr(averaged, name)[keep] for name in names})


class _Clean:
    """Major cycles: minor cycles on a residual, and the residual anew from the visibilities, until
    nothing is left above the thresholds. The last one has w."""

    def __init__(
        self,
        transforms: _Transforms,
        vis: np.ndarray,
        psf: np.ndarray,
        beam: Beam,
        residual: np.ndarray,
        options: ImagingConfig,
    ):
        self.transforms, self.vis, self.options = transforms, vis, options
        self.residual, self.model, self.cycles = residual, np.zeros_like(residual), 0
        self.rms_jy, self.peak_jy = robust_rms(residual), float(peak_of(residual))
        self.lowest = self.peak_jy, self.rms_jy
        self.notes = {"dirty_rms_jy": self.rms_jy}
        gain = major_gain(highest_sidelobe(psf, beam, options.cell_arcsec))
        if options.multiscale:
            beam_rad = np.radians(beam.major_arcsec / 3600)
            self.cleaner = RadlerCleaner(
                psf, self.model, gain, options, beam_rad, transforms.threads
            )
        else:
            self.cleaner = PointCleaner(psf, self.model, gain, options)

    def run(self, begin: float) -> None:
        """Clean; raises Diverged."""
        options = self.options
        limit = begin + 60 * options.max_minutes
        last = False
        while options.niter and self.cycles < options.max_major_cycles:
            was, peak_jy = self.cleaner.iterations, self.peak_jy
            at_threshold = self.cleaner.perform(self.residual, self.rms_jy)
            done, self.cycles = time.monotonic() - begin, self.cycles + 1
            # What came down to the threshold from hardly more than the mask's level is clean.
            last = at_threshold and peak_jy <= _LAST * thresholds(self.rms_jy, options)[0]
            last |= self.cleaner.iterations in (was, options.niter) or time.monotonic() > limit
            self._look(last)
            log.info(
                "major cycle %d%s: %d iterations, residual peak %.4g, rms %.4g Jy/beam; %.1f s, "
                "%.1f s",
                self.cycles,
                ", exact" if last else "",
                self.cleaner.iterations,
                self.peak_jy,
                self.rms_jy,
                done,
                time.monotonic() - begin,
            )
            if last or self._is_clean():
                break
        if not (last or self.transforms.with_w):
            self._look(True)
        self.notes |= {"major_cycles": self.cycles, "iterations": self.cleaner.iterations}

    def _look(self, exact: bool) -> None:
        """The residual anew; raises Diverged where it is worse than it was."""
        self.residual = self.transforms.residual(self.vis, self.model, exact)
        self.peak_jy, self.rms_jy = (float(peak_of(self.residual)), robust_rms(self.residual))
        peak, rms = self.lowest = tuple(map(min, self.lowest, (self.peak_jy, self.rms_jy)))
        if (
            not np.isfinite(self.peak_jy)
            or self.peak_jy > max(2 * peak, 10 * rms)
            or self.rms_jy > 2 * rms
        ):
            raise Diverged(
                f"residual peak {self.peak_jy:.4g} Jy/beam after {self.cycles} major cycles, "
                f"{peak:.4g} before"
            )

    def _is_clean(self) -> bool:
        """Whether another cycle would find nothing: no source beyond the mask's level, nor more
        than the threshold where there are some."""
        mask_level, stop = thresholds(self.rms_jy, self.options)
        inside = np.abs(self.residual[self.model != 0])
        return self.peak_jy <= mask_level and inside.max(initial=0) <= _NEAR_THRESHOLD * stop
