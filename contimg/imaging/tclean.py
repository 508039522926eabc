"""Imaging with CASA tclean (gridder wproject): the reference, and what other observatories would use."""

import numpy as np
from casacore import images

from contimg import casa
from contimg.errors import ImagingError
from contimg.imaging import Deconvolved, ImageRequest
from contimg.imaging.restoring import fit_restoring_beam, restore

_WPROJECT_PLANES = 64
_STOP_SIGMA = 3.5  # without a mask, below this the clean digs in noise (FACTS: 1-2 % of the flux at 3-4 sigma)


def deconvolve(request: ImageRequest) -> Deconvolved:
    """Image and clean CORRECTED_DATA of a Measurement Set; the primary beam is left to the common code."""
    options = request.options
    tasks = casa.tasks(request.logfile)
    name = str(request.workdir / "tclean")
    summary = tasks.tclean(
        vis=str(request.ms), imagename=name, datacolumn="corrected", stokes="I", specmode="mfs",
        imsize=options.imsize, cell=f"{options.cell_arcsec}arcsec", gridder="wproject",
        wprojplanes=_WPROJECT_PLANES, pblimit=-0.01, weighting="briggs", robust=options.robust,
        deconvolver="hogbom", gain=0.1, niter=options.niter, cyclefactor=0.5, restoration=False,
        threshold=f"{options.threshold}Jy" if options.threshold is not None else "0Jy",
        nsigma=0.0 if options.threshold is not None else _STOP_SIGMA, savemodel="none", interactive=False,
        fullsummary=False,
    )  # fmt: skip
    arrays = {product: _read(f"{name}.{product}", request.ms) for product in ("residual", "model", "psf")}
    if not np.isfinite(arrays["residual"]).all() or not arrays["psf"].any():
        raise ImagingError(f"{request.ms}: tclean's image is not finite. Nothing to publish.")
    # CASA 6.7.0 fits this array's psf unreliably (58" x 25" where the main lobe is 30" x 15"): the beam is fitted here.
    beam = fit_restoring_beam(arrays["psf"], options.cell_arcsec)
    image = restore(arrays["model"], arrays["residual"], beam, options.cell_arcsec, request.threads)
    notes = {
        "major_cycles": int(summary.get("nmajordone", 0)),
        "iterations": int(summary.get("iterdone", 0)),
    }
    return Deconvolved(image, **arrays, beam=beam, notes=notes)


def _read(name: str, ms) -> np.ndarray:
    """A product of tclean, (stokes, freq, y, x), as (x, y)."""
    try:
        return np.ascontiguousarray(images.image(name).getdata().squeeze().T.astype(np.float32))
    except RuntimeError as error:
        raise ImagingError(f"{ms}: tclean left no {name} ({error}); CASA's log is in this stage's log") from None
