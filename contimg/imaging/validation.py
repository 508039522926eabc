"""Is an image right? Noise, and a comparison with the catalogue."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from astropy.wcs import WCS
from scipy import optimize

from contimg.config import ImagingConfig, ValidationConfig
from contimg.imaging import Beam

DETECTION_SIGMA = 5.0
GOOD_SIGMA = 20.0


def fit_source(image: np.ndarray, wcs: WCS, beam: Beam, ra_deg: float, dec_deg: float) -> tuple[float, float, float] | None:
    """Peak, and offsets to the east and north (arcsec) from a position, of a restoring beam fitted around it.

    None outside the image. The fit uses pixels within 0.75 of the beam's major axis.
    """
    x, y = (float(v) for v in wcs.wcs_world2pix(ra_deg, dec_deg, 0))
    cell_arcsec = wcs.wcs.cdelt[1] * 3600
    radius = max(2, int(np.ceil(0.75 * beam.major_arcsec / cell_arcsec)))
    x0, y0 = round(x), round(y)
    if not (radius <= x0 < image.shape[0] - radius and radius <= y0 < image.shape[1] - radius):
        return None
    stamp = image[x0 - radius : x0 + radius + 1, y0 - radius : y0 + radius + 1].astype(float)
    dx, dy = np.meshgrid(np.arange(-radius, radius + 1) + x0 - x, np.arange(-radius, radius + 1) + y0 - y, indexing="ij")
    east, north = -dx * cell_arcsec, dy * cell_arcsec
    near = np.exp(-((east**2 + north**2) / (0.5 * beam.major_arcsec) ** 2))
    if not np.isfinite(stamp).all():
        return None

    def residual(q):
        return ((q[0] * beam.gaussian(east - q[1], north - q[2]) - stamp) * near).ravel()

    peak = np.unravel_index(np.argmax(stamp * near), stamp.shape)
    fit = optimize.least_squares(residual, [stamp[peak], east[peak], north[peak]], x_scale=[max(abs(stamp[peak]), 1e-6), 1, 1])
    return tuple(float(v) for v in fit.x)


def compare_catalogue(
    image: np.ndarray, beam: Beam, pb: np.ndarray, grid, rms_jy: float, catalogue: pd.DataFrame, freq_hz: float,
    options: ImagingConfig,
) -> tuple[dict, pd.DataFrame]:  # fmt: skip
    """Catalogue sources in the image: found, flux ratios, offsets. Returns a summary and the table behind it.

    Ratios and offsets count sources above GOOD_SIGMA at beam responses over a half. The catalogue's fluxes are taken to
    the image's frequency with their spectral indices.
    """
    wcs = grid.wcs()
    rows = []
    x, y = wcs.wcs_world2pix(catalogue.ra_deg.values, catalogue.dec_deg.values, 0)
    inside = (
        np.isfinite(x)
        & np.isfinite(y)
        & (np.abs(x - grid.npix / 2) < grid.npix / 2)
        & (np.abs(y - grid.npix / 2) < grid.npix / 2)
    )
    for source, i, j in zip(
        catalogue[inside].itertuples(), x[inside].round().astype(int), y[inside].round().astype(int), strict=True
    ):
        response = pb[min(i, grid.npix - 1), min(j, grid.npix - 1)]
        if response < options.beam_limit:
            continue
        expected = source.flux_jy * (freq_hz / 1.4e9) ** source.alpha
        if expected * response < DETECTION_SIGMA * rms_jy:
            continue
        fitted = fit_source(image, wcs, beam, source.ra_deg, source.dec_deg)
        if fitted is None:
            continue
        peak, east, north = fitted
        found = peak > DETECTION_SIGMA * rms_jy and np.hypot(east, north) < beam.major_arcsec
        rows.append(
            (source.name, source.ra_deg, source.dec_deg, expected, peak / response, east, north, peak / rms_jy, response, found)
        )
    names = ["name", "ra_deg", "dec_deg", "catalogue_jy", "flux_jy", "east_arcsec", "north_arcsec", "snr", "beam", "found"]
    table = pd.DataFrame(rows, columns=names).astype({"found": bool})
    good = table[table.found & (table.snr >= GOOD_SIGMA) & (table.beam >= 0.5)]
    ratio = good.flux_jy / good.catalogue_jy

    def number(value):
        return None if not len(good) or not np.isfinite(value) else round(float(value), 4)

    bright = table[(table.catalogue_jy * table.beam >= GOOD_SIGMA * rms_jy) & (table.beam >= 0.5)]
    return {
        "expected": len(table),
        "found": int(table.found.sum()),
        "bright_expected": len(bright),
        "bright_found": int(bright.found.sum()),
        "compared": len(good),
        "flux_ratio": number(ratio.median()),
        "flux_scatter": number(1.4826 * (ratio - ratio.median()).abs().median()),
        "offset_east_arcsec": number(good.east_arcsec.median()),
        "offset_north_arcsec": number(good.north_arcsec.median()),
        "offset_arcsec": number(np.hypot(good.east_arcsec, good.north_arcsec).median()),
    }, table


def verdict(numbers: Mapping, check: Mapping, cleaned: str, limits: ValidationConfig) -> tuple[str, list[str]]:
    """good, warn or fail, and why. What cannot be compared for want of sources is not judged."""
    found = [("noise over the thermal expectation", numbers["rms_jy"] / numbers["thermal_jy"], limits.warn_rms, limits.fail_rms)]
    if check["compared"] >= limits.min_compared:
        found += [
            ("flux ratio off 1 by", abs(check["flux_ratio"] - 1), limits.warn_flux, limits.fail_flux),
            ("offset in arcsec", np.hypot(check["offset_east_arcsec"], check["offset_north_arcsec"]),
             limits.warn_offset_arcsec, limits.fail_offset_arcsec),
        ]  # fmt: skip
    if check["bright_expected"] >= limits.min_compared:
        lost = 1 - check["bright_found"] / check["bright_expected"]
        found.append(("bright catalogue sources lost", lost, limits.warn_lost, limits.fail_lost))
    worst, reasons = 0 if cleaned == "as asked" else 1, [] if cleaned == "as asked" else [f"cleaned: {cleaned}"]
    for what, value, warn, fail in found:
        level = 0 if value <= warn else 1 if value <= fail else 2
        if level:
            reasons.append(f"{what} {value:.3g}, expected at most {warn:g}")
        worst = max(worst, level)
    return ("good", "warn", "fail")[worst], reasons
