"""From a calibrated Measurement Set to images: one interface, several imagers, the same products.

A backend takes an ImageRequest and gives a Deconvolved: arrays on the request's grid in apparent
Jy. What the beam does to them, headers and files are common (contimg.imaging.files).

Image arrays are (x, y): x grows to the west (RA falls), y to the north; the phase centre is pixel
(n/2, n/2).
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np

from contimg.config import ImagingConfig
from contimg.imaging.plane import Plane

_ENOUGH_PIXELS = 1_000_003  # for the noise; no divisor of an image's width


@dataclass(frozen=True)
class Beam:
    """Restoring beam: full widths at half maximum, position angle from north through east."""

    major_arcsec: float
    minor_arcsec: float
    pa_deg: float

    def gaussian(self, dx_arcsec: np.ndarray, dy_arcsec: np.ndarray) -> np.ndarray:
        """Response at offsets to the east and to the north, 1 at the centre."""
        a, b, c = self.quadratic()
        return np.exp(-(a * dx_arcsec**2 + b * dx_arcsec * dy_arcsec + c * dy_arcsec**2))

    def quadratic(self) -> np.ndarray:
        """Coefficients of east^2, east north and north^2 (arcsec) in the exponent, which is
        negative."""
        pa = np.radians(self.pa_deg)
        along = np.array([np.sin(pa), np.cos(pa)]) / self.major_arcsec
        across = np.array([np.cos(pa), -np.sin(pa)]) / self.minor_arcsec
        form = np.outer(along, along) + np.outer(across, across)
        return 4 * np.log(2) * np.array([form[0, 0], 2 * form[0, 1], form[1, 1]])


@dataclass(frozen=True)
class ImageRequest:
    """What to image and how."""

    inputs: object  # what the backend's `prepare` made of the visibilities
    options: ImagingConfig
    workdir: Path  # for a backend's scratch files
    threads: int
    logfile: Path | None


class Diverged(Exception):
    """The clean made things worse."""


@dataclass(frozen=True)
class Left:
    """Visibilities (nrow, nchan) that the model leaves, with the image's weights; uvw_m (nrow, 3),
    freq_hz (nchan,); of an image of npix pixels."""

    uvw_m: np.ndarray
    freq_hz: np.ndarray
    vis: np.ndarray
    weights: np.ndarray
    npix: int


@dataclass
class Deconvolved:
    """What an imager gives: (npix, npix) arrays in Jy/beam, and the components of its model (n, 3):
    x, y in pixels (between them, too) and Jy. `slanted`: the residual as it was made, and its
    plane, where that is another grid. `left`: visibilities, by an imager that has them."""

    residual: np.ndarray
    components: np.ndarray
    psf: np.ndarray
    beam: Beam
    notes: dict = field(default_factory=dict)
    slanted: tuple[np.ndarray, Plane] | None = None
    left: Left | None = None


def robust_rms(values: np.ndarray) -> float:
    """Standard deviation from the median absolute deviation, after clipping at 5 sigma: noise
    without sources."""
    values = values.ravel()[:: max(1, values.size // _ENOUGH_PIXELS)]
    sample = values[np.isfinite(values)]
    for _ in range(3):
        centre = np.median(sample)
        sigma = 1.4826 * np.median(np.abs(sample - centre))
        sample = sample[np.abs(sample - centre) <= 5 * sigma]
    return float(sigma)


def backend(name: str):
    """The module of an imager: `prepare(averaged, stokes, workdir)` gives its inputs,
    `deconvolve(request)` a Deconvolved."""
    return import_module(f"contimg.imaging.backends.{name}")
