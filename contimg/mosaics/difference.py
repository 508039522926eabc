"""What a day shows that other days do not: one sum less another, of the same pixels, hour angles
and restoring beam."""

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter

from contimg.imaging.interface import Beam
from contimg.imaging.peaks import bright_peaks
from contimg.mosaics.combine import Sum, as_measured

FLUX_ERROR = 0.03  # relative, of what is bright on both sides: gains and scales of a day
_SEEN_SIGMA = 5.0  # in the other days: the source is known
_AROUND_BEAMS = 3.0  # a bright source's errors reach so far
COLUMNS = ("x", "y", "flux_jy", "error_jy", "other_jy", "other_error_jy", "new")


def find_changes(
    *, day: Sum, others: Sum, beam: Beam, cell_arcsec: float, sigma: float
) -> tuple[pd.DataFrame, np.ndarray]:
    """Peaks above and holes below `sigma` in a day less the others: COLUMNS, places in pixels,
    fluxes in Jy, `new` where the others show nothing; and the difference, Jy/beam.

    The error is what the weights say, or what the difference's own blocks show where that is more;
    around what is bright, and `FLUX_ERROR` of it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = day.image - others.image
        expected = np.sqrt(1 / day.weight + 1 / others.weight)
        of_others = others.weight**-0.5
    there = np.isfinite(difference) & np.isfinite(expected)
    difference[~there], expected[~there] = np.nan, np.inf
    noise = as_measured(difference, expected)
    bright = np.where(np.abs(others.image) > _SEEN_SIGMA * of_others, np.abs(others.image), 0)
    side = max(3, round(_AROUND_BEAMS * beam.major_arcsec / cell_arcsec))
    bright = maximum_filter(bright.astype(np.float32), side)
    error = np.hypot(noise, FLUX_ERROR * bright)
    found = []
    for sign in (1, -1):
        snr = np.where(there, sign * difference / error, 0).astype(np.float32)
        peaks = bright_peaks(image=snr, beam=beam, cell_arcsec=cell_arcsec, least_jy=sigma)
        for x, y, height in peaks:
            at = round(x), round(y)
            other, its_error = float(others.image[at]), float(of_others[at])
            flux_jy = float(sign * height * error[at])
            seen = abs(other) > _SEEN_SIGMA * its_error
            found.append((x, y, flux_jy, float(error[at]), other, its_error, sign > 0 and not seen))
    return pd.DataFrame(found, columns=list(COLUMNS)), difference
