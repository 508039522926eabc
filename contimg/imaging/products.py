"""What every imager's result becomes: primary beam, headers, FITS and CASA images, a comparison with the catalogue."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from casacore import images
from scipy import optimize

from contimg import measurement_set as mset
from contimg.beam import drift_beam
from contimg.geometry import direction_cosines, meridian_icrs_deg, track
from contimg.imaging import Beam, Deconvolved, robust_rms
from contimg.paths import CASA_IMAGES, FITS_IMAGES

DETECTION_SIGMA = 5.0
GOOD_SIGMA = 20.0


@dataclass(frozen=True)
class Grid:
    """Pixels of an image. `cell_deg` is the ICRS angle: aberration is taken out of the apparent one."""

    npix: int
    cell_deg: float
    centre_deg: tuple[float, float]

    def wcs(self) -> WCS:
        """Celestial WCS (SIN projection, ICRS)."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---SIN", "DEC--SIN"]
        wcs.wcs.crval = self.centre_deg
        wcs.wcs.crpix = [self.npix // 2 + 1] * 2
        wcs.wcs.cdelt = [-self.cell_deg, self.cell_deg]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.radesys = "ICRS"
        return wcs

    def axes_lm(self) -> tuple[np.ndarray, np.ndarray]:
        """Direction cosines along x (falling) and y (growing)."""
        steps = (np.arange(self.npix) - self.npix // 2) * np.radians(self.cell_deg)
        return -steps, steps


def data_summary(ms: Path) -> dict:
    """Weights by integration and by channel, and the fraction of flagged cross-correlations, of what is imaged."""
    rows = mset.read_rows(ms)
    ntime = rows.shape[0]
    weights = mset.read_grid(ms, "WEIGHT_SPECTRUM", ntime)
    flags = mset.read_grid(ms, "FLAG", ntime)
    cross = rows.ant_1 != rows.ant_2
    used = np.where(flags, 0, weights)[:, cross]
    return {
        "time_weights": used.sum(axis=(1, 2, 3), dtype=np.float64),
        "freq_weights": used.sum(axis=(0, 1, 3), dtype=np.float64),
        "flagged": float(flags[:, cross].mean()),
        "time_mjd": rows.time_mjd,
        "integration_s": rows.integration_s,
    }


def primary_beam(ms: Path, options, app_dec_deg: float) -> tuple[Grid, np.ndarray, dict]:
    """Grid of the image, the drift-averaged primary beam on it, and the summary of the data that weighted it."""
    observation, summary = mset.read_observation(ms), data_summary(ms)
    ra, dec = observation.phase_centre_deg
    times = summary["time_mjd"]
    grid = Grid(options.imsize, options.cell_arcsec / 3600 / track(ra, dec, times).scale, (ra, dec))
    beam_ra, beam_dec = meridian_icrs_deg(times, np.radians(app_dec_deg))
    beam_lm = np.stack(direction_cosines(beam_ra, beam_dec, ra, dec), axis=1)
    l, m = grid.axes_lm()
    response = drift_beam(l, m, beam_lm, observation.freq_hz, summary["time_weights"], summary["freq_weights"])
    weight = summary["freq_weights"]
    summary["freq_hz"] = float(np.average(observation.freq_hz, weights=weight))
    summary["bandwidth_hz"] = len(observation.freq_hz) * observation.channel_width_hz
    return grid, response.astype(np.float32), summary


def header(grid: Grid, beam: Beam, summary: Mapping, unit: str, keywords: Mapping) -> fits.Header:
    """FITS header of a (1, 1, y, x) image."""
    celestial = grid.wcs().to_header()
    result = fits.Header()
    for key in ("CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT"):
        for axis in (1, 2):
            if f"{key}{axis}" in celestial:
                result[f"{key}{axis}"] = celestial[f"{key}{axis}"]
    result["CRPIX1"] = result["CRPIX2"] = float(grid.npix // 2 + 1)
    result.update({"RADESYS": "ICRS", "LONPOLE": 180.0, "LATPOLE": grid.centre_deg[1]})
    result.update(
        {
            "CTYPE3": "FREQ",
            "CRVAL3": summary["freq_hz"],
            "CRPIX3": 1.0,
            "CDELT3": summary["bandwidth_hz"],
            "CUNIT3": "Hz",
        }
    )
    result.update({"CTYPE4": "STOKES", "CRVAL4": 1.0, "CRPIX4": 1.0, "CDELT4": 1.0})
    result.update({"SPECSYS": "TOPOCENT", "BUNIT": unit, "BTYPE": "Intensity"})
    result.update({"BMAJ": beam.major_arcsec / 3600, "BMIN": beam.minor_arcsec / 3600, "BPA": beam.pa_deg})
    half_day = summary["integration_s"] / 2 / mset.DAY_S
    start, end = summary["time_mjd"][0] - half_day, summary["time_mjd"][-1] + half_day
    used = summary["time_weights"]
    middle = float(np.average(summary["time_mjd"], weights=used))
    result.update({
        "DATE-OBS": Time(start, format="mjd").isot, "DATE-END": Time(end, format="mjd").isot,
        "DATE-AVG": Time(middle, format="mjd").isot, "MJD-OBS": start, "MJD-END": end, "MJD-AVG": middle, "TIMESYS": "UTC",
        "EXPTIME": float((used > 0).sum() * summary["integration_s"]), "TELESCOP": "DSA-110", "INSTRUME": "DSA-110",
        "ORIGIN": "contimg", "FLAGFRAC": summary["flagged"],
    })  # fmt: skip
    result["OBJECT"] = keywords.get("OBJECT", "drift scan")
    for key, value in keywords.items():
        result[key] = value
    return result


def write_products(
    prefix_of, work: Path, grid: Grid, result: Deconvolved, pb: np.ndarray, summary: Mapping, options, keywords: Mapping
) -> dict[str, Path]:
    """Write every product into `work`, then move each to its final name (`prefix_of(suffix)`); returns them by suffix."""
    blank = np.where(pb >= options.beam_limit, pb, np.nan)
    arrays = {
        "image": (result.image, "Jy/beam"), "image.pbcor": (result.image / blank, "Jy/beam"), "pb": (pb, ""),
        "residual": (result.residual, "Jy/beam"), "model": (result.model, "Jy/pixel"), "psf": (result.psf, "Jy/beam"),
    }  # fmt: skip
    fits_of = {"image": "image.fits", "image.pbcor": "pbcor.fits", "pb": "pb.fits"}
    written: dict[str, Path] = {}
    for suffix in CASA_IMAGES:
        array, unit = arrays[suffix]
        as_fits = work / fits_of.get(suffix, f"{suffix}.scratch.fits")
        hdu = fits.PrimaryHDU(
            array.T[None, None].astype(np.float32), header(grid, result.beam, summary, unit, keywords)
        )
        hdu.writeto(as_fits, checksum=True, overwrite=True)
        images.image(str(as_fits)).saveas(str(work / suffix), overwrite=True)
        written[suffix] = work / suffix
        if suffix in fits_of and not options.skip_fits:
            written[fits_of[suffix]] = as_fits
        else:
            as_fits.unlink()
    final = {}
    for suffix in (*CASA_IMAGES, *FITS_IMAGES):
        target = prefix_of(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        mset.remove(target)
        if suffix in written:
            os.replace(written[suffix], target)
            final[suffix] = target
    return final


def fit_source(
    image: np.ndarray, wcs: WCS, beam: Beam, ra_deg: float, dec_deg: float
) -> tuple[float, float, float] | None:
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
    dx, dy = np.meshgrid(
        np.arange(-radius, radius + 1) + x0 - x, np.arange(-radius, radius + 1) + y0 - y, indexing="ij"
    )
    east, north = -dx * cell_arcsec, dy * cell_arcsec
    near = np.exp(-((east**2 + north**2) / (0.5 * beam.major_arcsec) ** 2))
    if not np.isfinite(stamp).all():
        return None

    def residual(q):
        return ((q[0] * beam.gaussian(east - q[1], north - q[2]) - stamp) * near).ravel()

    peak = np.unravel_index(np.argmax(stamp * near), stamp.shape)
    fit = optimize.least_squares(
        residual, [stamp[peak], east[peak], north[peak]], x_scale=[max(abs(stamp[peak]), 1e-6), 1, 1]
    )
    return tuple(float(v) for v in fit.x)


def compare_catalogue(
    result: Deconvolved, pb: np.ndarray, grid: Grid, rms_jy: float, catalogue: pd.DataFrame, freq_hz: float, options
) -> tuple[dict, pd.DataFrame]:
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
        fitted = fit_source(result.image, wcs, result.beam, source.ra_deg, source.dec_deg)
        if fitted is None:
            continue
        peak, east, north = fitted
        found = peak > DETECTION_SIGMA * rms_jy and np.hypot(east, north) < result.beam.major_arcsec
        rows.append(
            (
                source.name,
                source.ra_deg,
                source.dec_deg,
                expected,
                peak / response,
                east,
                north,
                peak / rms_jy,
                response,
                found,
            )
        )
    names = [
        "name",
        "ra_deg",
        "dec_deg",
        "catalogue_jy",
        "flux_jy",
        "east_arcsec",
        "north_arcsec",
        "snr",
        "beam",
        "found",
    ]
    table = pd.DataFrame(rows, columns=names).astype({"found": bool})
    good = table[table.found & (table.snr >= GOOD_SIGMA) & (table.beam >= 0.5)]
    ratio = good.flux_jy / good.catalogue_jy

    def number(value):
        return None if not len(good) or not np.isfinite(value) else round(float(value), 4)

    return {
        "expected": len(table),
        "found": int(table.found.sum()),
        "compared": len(good),
        "flux_ratio": number(ratio.median()),
        "flux_scatter": number(1.4826 * (ratio - ratio.median()).abs().median()),
        "offset_east_arcsec": number(good.east_arcsec.median()),
        "offset_north_arcsec": number(good.north_arcsec.median()),
        "offset_arcsec": number(np.hypot(good.east_arcsec, good.north_arcsec).median()),
    }, table


def noise_and_peak(result: Deconvolved, pb: np.ndarray) -> dict:
    """Robust rms of the residual inside the half-power beam, and the image's peak."""
    return {"rms_jy": robust_rms(result.residual[pb >= 0.5]), "peak_jy": float(np.nanmax(result.image))}
