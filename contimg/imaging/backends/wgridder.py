"""Imaging in process: ducc0's wgridder for the Fourier transforms with w-term, radler for the
deconvolution."""

import logging
import time
from dataclasses import fields
from pathlib import Path

import ducc0
import numpy as np
import radler

from contimg.config import ImagingConfig
from contimg.errors import ImagingError
from contimg.imaging.averaging import Averaged, average, edge_deg, plan_averaging
from contimg.imaging.interface import Deconvolved, Diverged, ImageRequest, robust_rms
from contimg.imaging.restoring import fit_restoring_beam, highest_sidelobe
from contimg.imaging.stokes import StokesI
from contimg.imaging.weighting import expected_noise, image_weights
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

log = logging.getLogger(__name__)
_EPSILON = 1e-3  # of ducc: 1e-4 of the dirty image's rms
# Deep minor cycles where sidelobes are low: with one of 0.23 (96 antennas) a major gain of 0.95
# gives what 0.8 does, with one of 0.36 (32 antennas) it doubles the scatter of fluxes.
_MAJOR_GAINS, _MAJOR_GAIN_AT_NONE, _PER_SIDELOBE = (0.6, 0.95), 1.3, 1.5
_NEAR_THRESHOLD = 2.0
# of the mean weight: all of them together are no more than this
_NEGLIGIBLE, _WORTH_LEAVING_OUT = (1e-3, 0.8)


def prepare(stokes: StokesI, options: ImagingConfig, _: Path) -> Averaged:
    """Averaged visibilities, in memory."""
    averaged = average(stokes, plan_averaging(stokes, options, uniform=False), edge_deg(options))
    log.info("%d visibilities averaged to %d", stokes.vis.size, len(averaged.vis))
    return averaged


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean the request's visibilities; nothing is written back."""
    options = request.options
    threads = request.threads
    averaged = request.inputs
    begin = time.monotonic()
    npix, cell_rad = options.imsize, np.radians(options.cell_arcsec / 3600)
    weights = image_weights(
        uvw_lambda=averaged.uvw_lambda, natural=averaged.weights, options=options
    )
    keep = weights > _NEGLIGIBLE * weights.mean()
    if keep.mean() < _WORTH_LEAVING_OUT:  # with a taper, most of them go
        averaged = Averaged(*(getattr(averaged, one.name)[keep] for one in fields(averaged)))
        weights = weights[keep]
    uvw, vis, weights = averaged.uvw_lambda, averaged.vis[:, None], weights[:, None]
    sum_weights = float(weights.sum(dtype=np.float64))
    if not sum_weights > 0:
        raise ImagingError(f"every baseline is too long for pixels of {options.cell_arcsec} arcsec")
    notes = {
        "averaging_loss": float(np.average(averaged.loss, weights=weights[:, 0])),
        "visibilities": len(vis),
        "thermal_jy": expected_noise(weights=weights[:, 0], natural=averaged.weights),
    }
    # ducc's phase is exp(-2 pi i (u x + v y - w (n - 1))); with x to the west and v turned it is
    # ours: exp(+2 pi i (u l + v m + w (n - 1))). Wavelengths: frequency and speed of light cancel.
    common = {
        "epsilon": _EPSILON,
        "do_wgridding": True,
        "nthreads": threads,
        "divide_by_n": False,
        "flip_v": True,
        "uvw": uvw,
        "freq": np.array([SPEED_OF_LIGHT_M_S]),
        "pixsize_x": cell_rad,
        "pixsize_y": cell_rad,
    }

    def grid(visibilities):
        dirty = ducc0.wgridder.vis2dirty(
            vis=visibilities, wgt=weights, npix_x=npix, npix_y=npix, **common
        )
        dirty /= np.float32(sum_weights)
        return dirty

    psf = grid(np.ones_like(vis))
    beam = fit_restoring_beam(psf, options.cell_arcsec)
    sidelobe = highest_sidelobe(psf, beam, options.cell_arcsec)
    major_gain = float(np.clip(_MAJOR_GAIN_AT_NONE - _PER_SIDELOBE * sidelobe, *_MAJOR_GAINS))
    residual = grid(vis)
    dirty_rms, dirty_peak = robust_rms(residual), float(np.abs(residual).max())
    log.info(
        "beam %.1f x %.1f arcsec, highest sidelobe %.3f; dirty image: peak %.4g, rms %.4g Jy/beam, "
        "%.0f s",
        beam.major_arcsec,
        beam.minor_arcsec,
        sidelobe,
        dirty_peak,
        dirty_rms,
        time.monotonic() - begin,
    )
    model = np.zeros_like(residual)
    cycles, iterations, lowest = 0, 0, dirty_peak
    if options.niter:
        # radler keeps views: they must live on
        psf_t, residual_t, model_t = (_t(psf), _t(residual), _t(model))
        cleaner = radler.Radler(
            _settings(options, major_gain, cell_rad, threads),
            psf_t,
            residual_t,
            model_t,
            np.radians(beam.major_arcsec / 3600),
        )
        more, lowest_rms = True, dirty_rms
        while (
            more
            and cycles < options.max_major_cycles
            and time.monotonic() - begin < 60 * options.max_minutes
        ):
            more = cleaner.perform(cycles)
            iterations = int(cleaner.iteration_number)
            cycles += 1
            model = np.ascontiguousarray(model_t.T)
            cleaned = time.monotonic() - begin
            residual = grid(vis - ducc0.wgridder.dirty2vis(dirty=model, wgt=None, **common))
            residual_t[:] = residual.T
            peak, rms = float(np.abs(residual).max()), robust_rms(residual)
            log.info(
                "major cycle %d: %d iterations, residual peak %.4g, rms %.4g Jy/beam; %.0f s, "
                "%.0f s",
                cycles,
                iterations,
                peak,
                rms,
                cleaned,
                time.monotonic() - begin,
            )
            lowest, lowest_rms = min(lowest, peak), min(lowest_rms, rms)
            if (
                not np.isfinite(peak)
                or peak > max(2 * lowest, 10 * lowest_rms)
                or rms > 2 * lowest_rms
            ):
                raise Diverged(
                    f"residual peak {peak:.4g} Jy/beam after {cycles} major cycles, dirty "
                    f"{dirty_peak:.4g}"
                )
            # What another cycle would find: sources beyond the mask's level, or more than the
            # threshold where there are some.
            where = model != 0
            left = float(np.abs(residual[where]).max()) if where.any() else 0.0
            if peak <= options.mask_sigma * rms and left <= _NEAR_THRESHOLD * (
                options.threshold or options.threshold_sigma * rms
            ):
                break
    notes |= {"major_cycles": cycles, "iterations": iterations, "dirty_rms_jy": dirty_rms}
    return Deconvolved(residual, model, psf, beam, notes)


def _t(array: np.ndarray) -> np.ndarray:
    """A (y, x) copy in C order, as radler wants it."""
    return np.ascontiguousarray(array.T)


def _settings(
    options: ImagingConfig, major_gain: float, cell_rad: float, threads: int
) -> radler.Settings:
    settings = radler.Settings()
    settings.trimmed_image_width = settings.trimmed_image_height = options.imsize
    settings.pixel_scale.x = settings.pixel_scale.y = cell_rad
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
