"""What every imager's result becomes: primary beam, headers, FITS and CASA images, a comparison
with the catalogue."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from casacore import images

from contimg.config import ImagingConfig
from contimg.imaging.averaging import Averaged
from contimg.imaging.interface import Beam, Deconvolved
from contimg.imaging.plane import Plane
from contimg.imaging.restoring import model_of
from contimg.imaging.stokes import StokesI
from contimg.paths import CASA_IMAGES, COMPONENTS_FITS, IMAGE_SUFFIXES, SLANTED_FITS, SMEARING_FITS
from contimg.sky.beam import drift_beam
from contimg.sky.geometry import SITE_ITRF_M, direction_cosines, meridian_icrs_deg, sin_wcs, track
from contimg.store.files import publish, remove
from contimg.telescope import TELESCOPE
from contimg.visibilities import measurement_set as mset

_SMOOTH_PIXELS = 129


@dataclass(frozen=True)
class Grid:
    """Pixels of an image. `cell_deg` is the ICRS angle: aberration is taken out of the apparent
    one."""

    npix: int
    cell_deg: float
    centre_deg: tuple[float, float]

    def wcs(self) -> WCS:
        """Celestial WCS (SIN projection, ICRS)."""
        return sin_wcs(self.centre_deg, self.cell_deg, (self.npix, self.npix))

    def axes_lm(self) -> tuple[np.ndarray, np.ndarray]:
        """Direction cosines along x (falling) and y (growing)."""
        steps = (np.arange(self.npix) - self.npix // 2) * np.radians(self.cell_deg)
        return -steps, steps


def primary_beam(
    stokes: StokesI, averaged: Averaged, options: ImagingConfig
) -> tuple[Grid, np.ndarray, dict]:
    """Grid of the image, the primary beam on it, averaged over the drift with the image's own
    weights, and a summary of the data that weighted it."""
    observation, rows = stokes.observation, stokes.rows
    ra, dec = observation.phase_centre_deg
    grid = Grid(
        options.imsize, options.cell_arcsec / 3600 / track(ra, dec, rows.time_mjd).scale, (ra, dec)
    )
    beam_ra, beam_dec = meridian_icrs_deg(rows.time_mjd, np.radians(stokes.app_dec_deg))
    beam_lm = np.stack(direction_cosines(beam_ra, beam_dec, ra, dec), axis=1)
    time_weights, freq_weights = averaged.time_weights, averaged.freq_weights
    response = drift_beam(
        *grid.axes_lm(), beam_lm, observation.freq_hz, time_weights, freq_weights, stokes.beam
    )
    summary = {
        "time_weights": time_weights,
        "freq_weights": freq_weights,
        "flagged": 1
        - np.count_nonzero(stokes.weights) / (stokes.rows_used * len(observation.freq_hz)),
        "time_mjd": rows.time_mjd,
        "integration_s": rows.integration_s,
        "freq_hz": float(np.average(observation.freq_hz, weights=freq_weights)),
        "bandwidth_hz": len(observation.freq_hz) * observation.channel_width_hz,
        "exposure_s": float((time_weights > 0).sum() * rows.integration_s),
    }
    return grid, response, summary


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
    result.update(
        {"BMAJ": beam.major_arcsec / 3600, "BMIN": beam.minor_arcsec / 3600, "BPA": beam.pa_deg}
    )
    half_day = summary["integration_s"] / 2 / mset.DAY_S
    start, end = summary["time_mjd"][0] - half_day, summary["time_mjd"][-1] + half_day
    used = summary["time_weights"]
    middle = float(np.average(summary["time_mjd"], weights=used))
    result.update(
        {
            "DATE-OBS": Time(start, format="mjd").isot,
            "DATE-END": Time(end, format="mjd").isot,
            "DATE-AVG": Time(middle, format="mjd").isot,
            "MJD-OBS": start,
            "MJD-END": end,
            "MJD-AVG": middle,
            "TIMESYS": "UTC",
            "END_UTC": Time(end, format="mjd").isot,  # the Transients Pipeline's name for it
            "EXPTIME": summary["exposure_s"],
            "DURATION": (end - start) * mset.DAY_S,
            "TELESCOP": TELESCOPE.name,
            "INSTRUME": TELESCOPE.name,
            "OBSERVER": TELESCOPE.name,
            "ORIGIN": "contimg",
            "RESTFRQ": summary["freq_hz"],
            "EQUINOX": 2000.0,
            "OBSGEO-X": SITE_ITRF_M[0],
            "OBSGEO-Y": SITE_ITRF_M[1],
            "OBSGEO-Z": SITE_ITRF_M[2],
            "FLAGFRAC": summary["flagged"],
        }
    )
    result["OBJECT"] = keywords.get("OBJECT", "drift scan")
    for key, value in keywords.items():
        result[key] = value
    return result


def _write_fits(path: Path, array: np.ndarray, head: fits.Header, checksum: bool) -> None:
    """An (x, y) array as a (1, 1, y, x) image."""
    values = np.ascontiguousarray(array.T, dtype=np.float32)[None, None]
    fits.PrimaryHDU(values, head).writeto(path, checksum=checksum, overwrite=True)


def _write_components(
    path: Path,
    components: np.ndarray,
    restored_jy: np.ndarray,
    smearing: np.ndarray,
    grid: Grid,
    head: fits.Header,
) -> None:
    """The model as points between pixels, with fluxes as the dirty and as the restored image show
    them, and the smearing of the dirty image's peaks: with residual, psf and beam all that
    photometry needs."""
    few, _ = few_pixels(grid)
    names = (("X", "pixel"), ("Y", "pixel"), ("FLUX", "Jy"), ("RESTORED", "Jy"))
    values = (*components.T, restored_jy)
    columns = [
        fits.Column(name, "D", unit, array=array)
        for (name, unit), array in zip(names, values, strict=True)
    ]
    table = fits.BinTableHDU.from_columns(columns, name="COMPONENTS")
    smear = fits.ImageHDU(np.ascontiguousarray(smearing.T, np.float32), few.wcs().to_header())
    smear.name = "SMEARING"
    whole = fits.HDUList([fits.PrimaryHDU(None, head), table, smear])
    whole.writeto(path, checksum=True, overwrite=True)


@dataclass(frozen=True)
class Imaged:
    """An image as photometry needs it: arrays (npix, npix); components (n, 3) as the dirty image
    sees them; what smearing leaves of the dirty image's peaks, at some pixels, and their places in
    the image's own pixels."""

    image: np.ndarray
    residual: np.ndarray
    psf: np.ndarray
    pb: np.ndarray
    components: np.ndarray
    smearing: np.ndarray
    smearing_pixels: np.ndarray
    wcs: WCS


def read_imaged(images_of_group: Mapping[str, str]) -> Imaged:
    """Products of a group's image, by suffix."""

    def pixels(suffix: str) -> np.ndarray:
        return images.image(images_of_group[suffix]).getdata().squeeze().T

    with fits.open(images_of_group[COMPONENTS_FITS]) as hdus:
        wcs, few = WCS(hdus[0].header).celestial, hdus["SMEARING"]
        table = hdus["COMPONENTS"].data
        components = np.column_stack([table[name] for name in ("X", "Y", "FLUX")]).astype(float)
        smearing = few.data.T.astype(float)
        step = few.header["CDELT2"] / hdus[0].header["CDELT2"]
        places = (np.arange(len(smearing)) + 1 - few.header["CRPIX1"]) * step
        places += hdus[0].header["CRPIX1"] - 1
    with ThreadPoolExecutor(2) as pool:
        arrays = list(pool.map(pixels, ("image", "residual", "psf", "pb")))
    return Imaged(*arrays, components, smearing, places, wcs)


def few_pixels(grid: Grid) -> tuple[Grid, slice]:
    """Every so many pixels of an image, for smooth maps; the centre's is among them, in the
    middle."""
    step = -(-grid.npix // _SMOOTH_PIXELS)
    each_way = (grid.npix // 2) // step, (grid.npix - 1 - grid.npix // 2) // step
    centre, reach = grid.npix // 2, min(each_way)
    kept = slice(centre - reach * step, centre + reach * step + 1, step)
    return Grid(2 * reach + 1, grid.cell_deg * step, grid.centre_deg), kept


def write_products(
    *,
    prefix_of,
    work: Path,
    grid: Grid,
    image: np.ndarray,
    result: Deconvolved,
    pb: np.ndarray,
    smearing: np.ndarray,
    summary: Mapping,
    options,
    keywords: Mapping,
    dirty: tuple[np.ndarray, np.ndarray],
    slanted: tuple[np.ndarray, Plane] | None = None,
) -> dict[str, Path]:
    """Write every product into `work`, then move each to its final name (`prefix_of(suffix)`).

    Returns them by suffix. `dirty`: components (n, 3) as the dirty image sees them, and what
    smearing leaves of its peaks at `few_pixels`. `slanted`: the image on a plane's grid, too.

    Peaks are divided by beam `pb` and `smearing`. The latter is smooth: its file has few pixels.
    """
    blank = np.where(pb >= options.beam_limit, pb * smearing, np.nan)
    arrays = {
        "image": (image, "Jy/beam"),
        "image.pbcor": (image / blank, "Jy/beam"),
        "pb": (pb, ""),
        "residual": (result.residual, "Jy/beam"),
        "model": (model_of(result.components, grid.npix), "Jy/pixel"),
        "psf": (result.psf, "Jy/beam"),
    }
    fits_of = {"image": "image.fits", "image.pbcor": "pbcor.fits", "pb": "pb.fits"}

    def write(suffix: str) -> Path:
        array, unit = arrays[suffix]
        as_fits = work / fits_of.get(suffix, f"{suffix}.scratch.fits")
        head = header(grid, result.beam, summary, unit, keywords)
        _write_fits(as_fits, array, head, checksum=suffix in fits_of)
        images.image(str(as_fits)).saveas(str(work / suffix), overwrite=True)
        return as_fits

    written: dict[str, Path] = {}
    with ThreadPoolExecutor(2) as pool:  # checksums and copies of one beside the writes of another
        for suffix, as_fits in zip(CASA_IMAGES, pool.map(write, CASA_IMAGES), strict=True):
            written[suffix] = work / suffix
            if suffix in fits_of and not options.skip_fits:
                written[fits_of[suffix]] = as_fits
            else:
                as_fits.unlink()
    if not options.skip_fits:
        written[SMEARING_FITS] = work / SMEARING_FITS
        few, kept = few_pixels(grid)
        head = header(few, result.beam, summary, "", keywords)
        _write_fits(written[SMEARING_FITS], smearing[kept, kept], head, checksum=True)
    written[COMPONENTS_FITS] = work / COMPONENTS_FITS
    head = header(grid, result.beam, summary, "", keywords)
    as_dirty, of_dirty = dirty
    restored_jy = result.components[:, 2]
    _write_components(written[COMPONENTS_FITS], as_dirty, restored_jy, of_dirty, grid, head)
    if slanted is not None:
        written[SLANTED_FITS] = work / SLANTED_FITS
        values, plane = slanted
        wide = replace(grid, npix=len(values))
        of_plane = {"PV2_1": -plane.a, "PV2_2": -plane.b}
        head = header(wide, result.beam, summary, "Jy/beam", dict(keywords) | of_plane)
        _write_fits(written[SLANTED_FITS], values, head, checksum=True)
    final = {}
    for suffix in IMAGE_SUFFIXES:
        target = prefix_of(suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(target)
        if suffix in written:
            publish(written[suffix], target)
            final[suffix] = target
    return final
