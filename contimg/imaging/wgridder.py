"""Imaging in process: ducc0's wgridder for the Fourier transforms with w-term, radler for the deconvolution."""

import logging

import ducc0
import numpy as np
import radler
from numba import njit

from contimg import measurement_set as mset
from contimg.errors import ImagingError
from contimg.geometry import SPEED_OF_LIGHT_M_S
from contimg.imaging import Deconvolved, ImageRequest, robust_rms
from contimg.imaging.restoring import fit_restoring_beam, restore

log = logging.getLogger(__name__)

_EPSILON = 1e-4
_MAJOR_CYCLES = 12
_MAJOR_GAIN = 0.8
_MINOR_GAIN = 0.1


def stokes_i(data, flags, weights):
    """Stokes I visibilities and their weights, (nrow, nchan), from XX and YY; 0 where either is flagged.

    I = (XX + YY) / 2, with weight 1 / var(I) in Jy^-2.
    """
    good = ~flags.any(axis=-1) & (weights > 0).all(axis=-1)
    with np.errstate(divide="ignore"):
        weight = np.where(good, 4 / (1 / weights[..., 0] + 1 / weights[..., 1]), 0).astype(np.float32)
    return np.where(good, 0.5 * (data[..., 0] + data[..., 1]), 0).astype(np.complex64), weight


@njit(cache=True)
def _briggs(u, v, freq_over_c, weights, cells, cell_size, robust):
    """Imaging weights (nrow, nchan): Briggs (1995) with the density of the natural weights on the image's uv grid."""
    nrow, nchan = weights.shape
    half = cells // 2
    density = np.zeros((cells, half + 2))
    for pass_ in range(2):
        total, squares = 0.0, 0.0
        if pass_ == 1:
            for i in range(cells):
                for j in range(half + 2):
                    squares += density[i, j] ** 2
                    total += density[i, j]
            scale = (5 * 10.0**-robust) ** 2 / (squares / total)
        for r in range(nrow):
            for c in range(nchan):
                if weights[r, c] == 0:
                    continue
                x, y = u[r] * freq_over_c[c] / cell_size, v[r] * freq_over_c[c] / cell_size
                if y < 0:
                    x, y = -x, -y
                i, j = int(np.floor(x + 0.5)) + half, int(np.floor(y + 0.5))
                if i < 0 or i >= cells or j >= half + 2:
                    if pass_ == 1:
                        weights[r, c] = 0  # beyond the resolution of the pixels
                    continue
                if pass_ == 0:
                    density[i, j] += weights[r, c]
                else:
                    weights[r, c] /= 1 + density[i, j] * scale
    return weights


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean CORRECTED_DATA of a Measurement Set; nothing is written back."""
    options, threads = request.options, request.threads
    observation, rows = mset.read_observation(request.ms), mset.read_rows(request.ms)
    columns = (mset.read_grid(request.ms, c, 1)[0] for c in ("CORRECTED_DATA", "FLAG", "WEIGHT_SPECTRUM"))
    vis, natural = stokes_i(*columns)
    uvw = rows.uvw_m.reshape(-1, 3)
    keep = natural.any(axis=1)
    if not keep.any():
        raise ImagingError(f"{request.ms}: no visibility has both polarisations unflagged. Nothing to image.")
    uvw, vis, natural = np.ascontiguousarray(uvw[keep]), vis[keep], natural[keep]
    freq_hz = observation.freq_hz
    npix, cell_rad = options.imsize, np.radians(options.cell_arcsec / 3600)
    weights = _briggs(
        uvw[:, 0], uvw[:, 1], freq_hz / SPEED_OF_LIGHT_M_S, natural.copy(), npix, 1 / (npix * cell_rad), options.robust
    )
    sum_weights = float(weights.sum(dtype=np.float64))
    if not sum_weights > 0:
        raise ImagingError(f"{request.ms}: every baseline is too long for pixels of {options.cell_arcsec} arcsec")
    natural_safe = np.where(natural > 0, natural, 1)
    thermal = float(np.sqrt(np.sum(weights.astype(np.float64) ** 2 / natural_safe)) / sum_weights)
    # ducc's phase is exp(-2 pi i (u x + v y - w (n - 1))); with x to the west and v turned it is ours:
    # exp(+2 pi i (u l + v m + w (n - 1))).
    common = {"epsilon": _EPSILON, "do_wgridding": True, "nthreads": threads, "divide_by_n": False, "flip_v": True}

    def grid(visibilities):
        dirty = ducc0.wgridder.vis2dirty(
            uvw=uvw, freq=freq_hz, vis=visibilities, wgt=weights, npix_x=npix, npix_y=npix, pixsize_x=cell_rad,
            pixsize_y=cell_rad, **common,
        )  # fmt: skip
        return (dirty / np.float32(sum_weights)).astype(np.float32)

    def degrid(image):
        return ducc0.wgridder.dirty2vis(
            uvw=uvw, freq=freq_hz, dirty=image, pixsize_x=cell_rad, pixsize_y=cell_rad, wgt=None, **common
        )

    psf = grid(np.ones_like(vis))
    beam = fit_restoring_beam(psf, options.cell_arcsec)
    residual = grid(vis)
    dirty_rms, dirty_peak = robust_rms(residual), float(np.abs(residual).max())
    log.info("beam %.1f x %.1f arcsec, dirty image: peak %.4g, rms %.4g Jy/beam", beam.major_arcsec, beam.minor_arcsec,
             dirty_peak, dirty_rms)  # fmt: skip
    model = np.zeros_like(residual)
    cycles, iterations = 0, 0
    if options.niter:
        psf_t, residual_t, model_t = _t(psf), _t(residual), _t(model)  # radler keeps views: they must live on
        cleaner = radler.Radler(
            _settings(options, npix, cell_rad, threads),
            psf_t,
            residual_t,
            model_t,
            np.radians(beam.major_arcsec / 3600),
        )
        more = True
        while more and cycles < _MAJOR_CYCLES:
            more = cleaner.perform(cycles)
            cycles += 1
            model = np.ascontiguousarray(model_t.T)
            residual = grid(vis - degrid(model))
            residual_t[:] = residual.T
            log.info("major cycle %d: %d components' iterations, residual peak %.4g, rms %.4g Jy/beam", cycles,
                     cleaner.iteration_number, np.abs(residual).max(), robust_rms(residual))  # fmt: skip
        iterations = int(cleaner.iteration_number)
    residual_peak = float(np.abs(residual).max())
    if not np.isfinite(residual_peak) or residual_peak > 1.5 * dirty_peak:
        raise ImagingError(
            f"{request.ms}: the clean diverged (residual peak {residual_peak:.4g}, dirty {dirty_peak:.4g} Jy)"
        )
    image = restore(model, residual, beam, options.cell_arcsec, threads)
    notes = {"major_cycles": cycles, "iterations": iterations, "thermal_jy": thermal, "dirty_rms_jy": dirty_rms}
    return Deconvolved(image, residual, model, psf, beam, notes)


def _t(array: np.ndarray) -> np.ndarray:
    """A (y, x) copy in C order, as radler wants it."""
    return np.ascontiguousarray(array.T)


def _settings(options, npix: int, cell_rad: float, threads: int) -> radler.Settings:
    settings = radler.Settings()
    settings.trimmed_image_width = settings.trimmed_image_height = npix
    settings.pixel_scale.x = settings.pixel_scale.y = cell_rad
    settings.minor_iteration_count = options.niter
    settings.minor_loop_gain, settings.major_loop_gain = _MINOR_GAIN, _MAJOR_GAIN
    settings.major_iteration_count = _MAJOR_CYCLES
    settings.thread_count = threads
    settings.auto_mask_sigma = options.mask_sigma
    if options.threshold is None:
        settings.auto_threshold_sigma = options.threshold_sigma
    else:
        settings.absolute_threshold = options.threshold
    return settings
