"""Imaging with WSClean, where the program is on the machine (Debian: `apt install wsclean`)."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from astropy.io import fits

from contimg.errors import ImagingError
from contimg.imaging.averaging import Averaged, write_measurement_set
from contimg.imaging.interface import Deconvolved, Diverged, ImageRequest
from contimg.imaging.restoring import components_of, fit_restoring_beam
from contimg.imaging.stokes import StokesI


def prepare(averaged: Averaged, stokes: StokesI, workdir: Path) -> Path:
    """A scratch Measurement Set."""
    if shutil.which("wsclean") is None:
        raise ImagingError(
            "imaging.backend is wsclean, and there is no program of that name. Install it, or use "
            "wgridder."
        )
    return write_measurement_set(averaged, stokes, workdir / "averaged.ms")


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean."""
    options, name = request.options, str(request.workdir / "wsclean")
    weighting = (
        ["briggs", str(options.robust)] if options.weighting == "briggs" else [options.weighting]
    )
    command = [
        "wsclean",
        "-name",
        name,
        "-size",
        *2 * [str(options.imsize)],
        "-scale",
        f"{options.cell_arcsec}asec",
        "-weight",
        *weighting,
        "-niter",
        str(options.niter),
        "-gain",
        str(options.gain),
        "-mgain",
        "0.8",
        "-nmiter",
        str(options.max_major_cycles),
        "-auto-mask",
        str(options.mask_sigma),
        "-pol",
        "I",
        "-data-column",
        "DATA",
        "-no-update-model-required",
        "-j",
        str(request.threads),
    ]
    command += (
        ["-auto-threshold", str(options.threshold_sigma)]
        if options.threshold is None
        else ["-threshold", str(options.threshold)]
    )
    command += ["-multiscale"] if options.multiscale else []
    command += ["-taper-gaussian", f"{options.taper_arcsec}asec"] if options.taper_arcsec else []
    with open(request.logfile or "/dev/null", "a") as log:
        outcome = subprocess.run(
            [*command, str(request.inputs)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=request.workdir,
            check=False,
        )
    if outcome.returncode:
        raise ImagingError(
            f"wsclean ended with status {outcome.returncode}; what it said is in the log of this "
            "stage"
        )
    products = ("dirty", "psf", *(("residual", "model") if options.niter else ()))
    arrays = {product: _read(Path(f"{name}-{product}.fits")) for product in products}
    dirty = arrays.pop("dirty")
    residual, model = arrays.get("residual", dirty), arrays.get("model", np.zeros_like(dirty))
    peak, dirty_peak = (float(np.abs(values).max()) for values in (residual, dirty))
    if not np.isfinite(peak) or peak > 1.5 * dirty_peak:
        raise Diverged(f"residual peak {peak:.4g} Jy/beam, dirty {dirty_peak:.4g}")
    beam = fit_restoring_beam(arrays["psf"], options.cell_arcsec)
    return Deconvolved(residual, components_of(model), arrays["psf"], beam)


def _read(path: Path) -> np.ndarray:
    """An image of the program, (1, 1, y, x), as (x, y)."""
    return np.ascontiguousarray(fits.getdata(path).squeeze().T.astype(np.float32))
