"""Sources that a group's own image shows, where no catalogue knows them."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np

from contimg.calibration.field import Calibrated
from contimg.calibration.refine import Coarse
from contimg.config import Config, ImagingConfig
from contimg.imaging import files
from contimg.imaging.averaging import average
from contimg.imaging.interface import Diverged, ImageRequest, backend, robust_rms
from contimg.imaging.peaks import bright_peaks
from contimg.imaging.restoring import expected_beam, restore
from contimg.imaging.smearing import Smeared
from contimg.imaging.stokes import StokesI
from contimg.sky.catalogues import DEFAULT_ALPHA
from contimg.sky.skymodel import Source

_FIELD_DEG = 3.6  # on a side
_SIGMAS = 20.0
_LEAST_BEAM = 0.1
_PIXELS_A_BEAM = 4.0
_MOST_PIXELS = 4096


def own_sources(
    *, one: Calibrated, coarse: Coarse, freq_hz: np.ndarray, width_hz: float, config: Config
) -> list[Source]:
    """Point sources above 20 sigma in an image of averaged data, with the fluxes that the beam made
    them of."""
    stokes = _stokes(one, coarse, freq_hz, width_hz)
    options = _options(stokes, config)
    averaged = average(stokes, options)
    grid, pb, summary = files.primary_beam(stokes, averaged, options)
    with tempfile.TemporaryDirectory(prefix="contimg-own-") as work:
        imager = backend(options.backend)
        inputs = imager.prepare(averaged, stokes, Path(work))
        request = ImageRequest(inputs, options, Path(work), numba.get_num_threads(), None)
        try:
            result = imager.deconvolve(request)
        except Diverged:
            dirty = options.model_copy(update={"niter": 0})
            result = imager.deconvolve(replace(request, options=dirty))
    image = restore(
        residual=result.residual,
        components=result.components,
        beam=result.beam,
        cell_arcsec=options.cell_arcsec,
    )
    least_jy = _SIGMAS * robust_rms(result.residual[pb >= 0.5])
    smeared = Smeared.of(stokes, averaged, *grid.axes_lm())
    response = pb * smeared.left(result.beam, *grid.axes_lm())
    wcs, sources = grid.wcs(), []
    for x, y, peak_jy in bright_peaks(
        image=image, beam=result.beam, cell_arcsec=options.cell_arcsec, least_jy=least_jy
    ):
        pixel = round(x), round(y)
        if pb[pixel] < _LEAST_BEAM:
            continue
        ra_deg, dec_deg = wcs.wcs_pix2world(x, y, 0)
        flux_jy = peak_jy / response[pixel] * (1.4e9 / summary["freq_hz"]) ** DEFAULT_ALPHA
        name = f"own {len(sources)}"
        sources.append(Source.power_law(name, float(ra_deg), float(dec_deg), float(flux_jy)))
    return sources


def _stokes(one: Calibrated, coarse: Coarse, freq_hz: np.ndarray, width_hz: float) -> StokesI:
    """Stokes I of averaged data."""
    first, second = coarse.weights[..., 0], coarse.weights[..., 1]
    both = (first > 0) & (second > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(both, 4 * first * second / (first + second), 0).astype(np.float32)
    vis = np.where(both, coarse.data.mean(axis=-1), 0).astype(np.complex64)
    observation = replace(one.observation, freq_hz=freq_hz)
    used = np.count_nonzero(coarse.ant_1 != coarse.ant_2) * len(vis)
    return StokesI(observation, one.rows, vis, weights, one.app_dec_deg, used, width_hz, one.beam)


def _options(stokes: StokesI, config: Config) -> ImagingConfig:
    """A quick image of the beam, fine enough for positions."""
    plain = {"backend": "wgridder", "weighting": "briggs", "robust": 0.0, "taper_arcsec": None}
    plain |= {"multiscale": False, "slanted_fits": False, "mode": "full", "uvrange": None}
    few = {"niter": 4000, "max_major_cycles": 4, "threshold": None, "threshold_sigma": 3.0}
    options = config.imaging.model_copy(update=plain | few | {"average_channels": 1})
    beam = expected_beam(stokes.rows, stokes.observation.freq_hz, options)
    finest = _FIELD_DEG * 3600 / _MOST_PIXELS
    cell_arcsec = max(beam.minor_arcsec / _PIXELS_A_BEAM, finest) if beam else finest
    imsize = 64 * int(np.ceil(_FIELD_DEG * 3600 / cell_arcsec / 64))
    return options.model_copy(update={"cell_arcsec": float(cell_arcsec), "imsize": imsize})
