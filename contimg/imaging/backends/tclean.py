"""Imaging with CASA tclean (gridder wproject): the reference, and what other observatories would
use."""

from pathlib import Path

import numpy as np
from casacore import images

from contimg.errors import ImagingError
from contimg.imaging.averaging import Averaged, write_measurement_set
from contimg.imaging.interface import Deconvolved, Diverged, ImageRequest
from contimg.imaging.restoring import components_of, fit_restoring_beam
from contimg.imaging.stokes import StokesI
from contimg.visibilities import casa

_WPROJECT_PLANES = 64
# without a mask, below this the clean digs in noise (FACTS: 1-2 % of the flux at 3-4 sigma)
_STOP_SIGMA = 3.5
_DIVERGED = (5, 6)  # CASA's stop codes
_SCALES_OF_BEAM = (0, 1, 3)


def prepare(averaged: Averaged, stokes: StokesI, workdir: Path) -> Path:
    """A scratch Measurement Set."""
    return write_measurement_set(averaged, stokes, workdir / "averaged.ms")


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean."""
    options = request.options
    tasks = casa.tasks(request.logfile)
    name = str(request.workdir / "tclean")
    scales = [round(s * 20 / options.cell_arcsec) for s in _SCALES_OF_BEAM]
    deconvolver = (
        {"deconvolver": "multiscale", "scales": scales}
        if options.multiscale
        else {"deconvolver": "hogbom"}
    )
    weighting = {"briggs": {"weighting": "briggs", "robust": options.robust}}.get(
        options.weighting, {"weighting": options.weighting}
    )
    summary = tasks.tclean(
        vis=str(request.inputs),
        imagename=name,
        datacolumn="data",
        stokes="I",
        specmode="mfs",
        imsize=options.imsize,
        cell=f"{options.cell_arcsec}arcsec",
        gridder="wproject",
        wprojplanes=_WPROJECT_PLANES,
        pblimit=-0.01,
        gain=options.gain,
        niter=options.niter,
        cyclefactor=0.5,
        nmajor=options.max_major_cycles if options.niter else -1,
        restoration=False,
        threshold=f"{options.threshold}Jy" if options.threshold is not None else "0Jy",
        nsigma=0.0 if options.threshold is not None else _STOP_SIGMA,
        savemodel="none",
        interactive=False,
        uvtaper=[f"{options.taper_arcsec}arcsec"] if options.taper_arcsec else [],
        fullsummary=False,
        **weighting,
        **deconvolver,
    )
    arrays = {product: _read(f"{name}.{product}") for product in ("residual", "model", "psf")}
    if not arrays["psf"].any():
        raise ImagingError("tclean's point spread function is blank. Nothing to publish.")
    if summary.get("stopcode") in _DIVERGED or not np.isfinite(arrays["residual"]).all():
        raise Diverged(f"tclean stopped with code {summary.get('stopcode')}")
    # CASA 6.7.0 fits this array's psf unreliably (58" x 25" where the main lobe is 30" x 15"): the
    # beam is fitted here.
    beam = fit_restoring_beam(arrays["psf"], options.cell_arcsec)
    notes = {
        "major_cycles": int(summary.get("nmajordone", 0)),
        "iterations": int(summary.get("iterdone", 0)),
    }
    components = components_of(arrays.pop("model"))
    return Deconvolved(**arrays, components=components, beam=beam, notes=notes)


def _read(name: str) -> np.ndarray:
    """A product of tclean, (stokes, freq, y, x), as (x, y)."""
    try:
        return np.ascontiguousarray(images.image(name).getdata().squeeze().T.astype(np.float32))
    except RuntimeError as error:
        raise ImagingError(
            f"tclean left no {name} ({error}); CASA's log is in this stage's log"
        ) from None
