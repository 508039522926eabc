"""The stage `photometry`: fluxes of all known sources in a group's image."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import map_coordinates

from contimg.calibration.beamfit import airy_fwhm_deg
from contimg.calibration.beams import known_beams
from contimg.config import Config
from contimg.imaging.files import Imaged, read_imaged
from contimg.imaging.interface import Beam
from contimg.imaging.spectra import PARTS
from contimg.paths import COMPONENTS_FITS, Paths
from contimg.photometry.forced import forced_fluxes
from contimg.photometry.reference import Reference
from contimg.products.references import reference_of
from contimg.sky.geometry import direction_cosines
from contimg.stages.job import Job
from contimg.store.files import checksum
from contimg.store.identity import made_by
from contimg.store.parquet import write_table

log = logging.getLogger(__name__)
_FOUND_SIGMA = 6.0
UNITS = {
    "ra_deg": "deg, ICRS",
    "dec_deg": "deg, ICRS",
    "mjd": "UTC, middle of the group",
    "flux_jy": "Jy at the image's frequency, beam and smearing divided out",
    "error_jy": "Jy, one sigma of the noise",
    "beam_error": "relative, of what the beam is not known to",
    "noise_jy": "Jy/beam around the source, before the beam is divided out",
    "peak_jy": "Jy: the cleaned image there, beam and smearing divided out",
    "fit_jy": "Jy: a restoring beam fitted to it there",
    **{
        f"{what}_{part + 1}_jy": f"Jy in part {part + 1} of the band (spectra_hz), bright ones only"
        for part in range(PARTS)
        for what in ("flux", "error")
    },
    "beam": "response of the primary beam",
    "smearing": "what integrations and channels leave of the dirty image's peak",
    "east_deg": "deg from the image's centre, to the east",
    "north_deg": "deg from the image's centre, to the north",
}


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    converted, imaged, refined = map(job.result_of, ("convert", "image", "refine"))
    return measure(job.group, job.config, converted, imaged, refined)


def measure(
    group: str, config: Config, converted: Mapping, imaged: Mapping, refined: Mapping
) -> dict:
    """Measure the strip's reference sources in a group's image; returns the result for
    `{group}.photometry.json`."""
    paths, path = Paths.of(config), Paths.of(config).photometry(group)
    why = _why_not(imaged, group)
    if why:
        path.unlink(missing_ok=True)
        paths.unlisted(group).unlink(missing_ok=True)
        return {"sources": 0, "skipped": why}
    reference = reference_of(config, converted["app_dec_deg"])
    image = read_imaged(imaged["images"])
    table, unlisted = _measured(image, imaged, reference, config)
    scale = refined.get("flux_scale") or {}
    of_scale = scale.get("error" if scale.get("applied") == "catalogue" else "set_error")
    mid_mjd = (imaged["start_mjd"] + imaged["end_mjd"]) / 2
    table.insert(3, "mjd", mid_mjd)
    words = {
        "group": group,
        "mid_mjd": mid_mjd,
        "app_dec_deg": converted["app_dec_deg"],
        "strip": reference.version.partition(".v")[0],
        "reference": reference.version,
        "freq_hz": imaged["freq_hz"],
        "bandwidth_hz": imaged["bandwidth_hz"],
        "exposure_s": imaged["exposure_s"],
        "scale_error": of_scale,
        "primary_beam": imaged["primary_beam"],
        "verdict": imaged["verdict"],
        "image": checksum(Path(imaged["images"]["image"])),
        "units": UNITS,
        **made_by(config),
    }
    _add_spectra(table, imaged["spectra"])
    words["spectra_hz"] = imaged["spectra"]["freq_hz"]
    write_table(paths.unlisted(group), unlisted, words)
    write_table(path, table, words)
    bright = table[table.flux_jy > 20 * table.error_jy]
    ratio = bright.fit_jy / bright.flux_jy
    log.info("%d sources of %s", len(table), reference.version)
    return {
        "sources": len(table),
        "above_5_sigma": int((table.flux_jy > 5 * table.error_jy).sum()),
        "unlisted": len(unlisted),
        "reference": reference.version,
        "scale_error": of_scale,
        "fit_over_flux": None if not len(bright) else round(float(ratio.median()), 4),
        "table": str(path),
    }


def _why_not(imaged: Mapping, group: str) -> str:
    """Why an image's sources are not measured; empty where they are."""
    if imaged["mode"] != "full":
        return "a quick image"
    if COMPONENTS_FITS not in imaged["images"]:
        return f"an earlier contimg made the image: contimg reprocess {group} --from image"
    return ""


def _add_spectra(table: pd.DataFrame, spectra: Mapping) -> None:
    """Fluxes of bright sources in parts of the band, as columns."""
    for part in range(PARTS):
        for key in ("flux_jy", "error_jy"):
            of_part = {name: values[part] for name, values in spectra[key].items()}
            name = f"{key.removesuffix('_jy')}_{part + 1}_jy"
            table[name] = table.source.map(of_part).astype(float)


def _measured(
    image: Imaged, imaged: Mapping, reference: Reference, config: Config
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every reference source inside the image and its beam; and what it shows beside them."""
    options, npix = config.imaging, len(image.residual)
    centre = imaged["centre_deg"]
    radius_deg = npix * image.wcs.wcs.cdelt[1] * np.sqrt(0.5)
    sources = reference.around(*centre, radius_deg)
    x, y = image.wcs.wcs_world2pix(sources.ra_deg.values, sources.dec_deg.values, 0)
    inside = (np.minimum(x, y) >= 1) & (np.maximum(x, y) <= npix - 2)
    beam_at = map_coordinates(image.pb, [x, y], order=1, mode="nearest")
    use = inside & (beam_at >= options.beam_limit)
    sources, x, y, beam_at = sources[use].reset_index(drop=True), x[use], y[use], beam_at[use]
    restoring = Beam(
        imaged["beam_major_arcsec"], imaged["beam_minor_arcsec"], imaged["beam_pa_deg"]
    )
    found = forced_fluxes(
        residual=image.residual,
        psf=image.psf,
        image=image.image,
        components=image.components,
        beam=restoring,
        cell_arcsec=imaged["cell_arcsec"],
        x=x,
        y=y,
    )
    smearing = _smearing_at(image, x, y)
    left = beam_at * smearing
    east_deg, north_deg = (
        np.degrees(v)
        for v in direction_cosines(sources.ra_deg.values, sources.dec_deg.values, *centre)
    )
    table = pd.DataFrame(
        {
            "source": sources.source.astype(str),
            "ra_deg": sources.ra_deg,
            "dec_deg": sources.dec_deg,
            "flux_jy": found.flux_jy / left,
            "error_jy": found.error_jy / left,
            "beam_error": _beam_error(imaged, config, east_deg, north_deg),
            "noise_jy": found.noise_jy,
            "peak_jy": found.peak_jy / left,
            "fit_jy": found.fit_jy / left,
            "beam": beam_at,
            "smearing": smearing,
            "east_deg": east_deg,
            "north_deg": north_deg,
        }
    )
    return table, _not_listed(image, found.unlisted, options.beam_limit)


def _smearing_at(image: Imaged, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    first, step = image.smearing_pixels[0], np.diff(image.smearing_pixels[:2])[0]
    places = [(v - first) / step for v in (x, y)]
    return map_coordinates(image.smearing, places, order=1, mode="nearest")


def _not_listed(image: Imaged, unlisted: np.ndarray, beam_limit: float) -> pd.DataFrame:
    """Places and fluxes of what exceeds its error `_FOUND_SIGMA` times, inside the beam."""
    x, y, flux_jy, error_jy = unlisted.T
    beam_at = map_coordinates(image.pb, [x, y], order=1, mode="nearest")
    use = (beam_at >= beam_limit) & (flux_jy > _FOUND_SIGMA * error_jy)
    left = (beam_at * _smearing_at(image, x, y))[use]
    ra, dec = image.wcs.wcs_pix2world(x[use], y[use], 0)
    return pd.DataFrame(
        {
            "ra_deg": ra,
            "dec_deg": dec,
            "flux_jy": flux_jy[use] / left,
            "error_jy": error_jy[use] / left,
        }
    )


def _beam_error(
    imaged: Mapping, config: Config, east_deg: np.ndarray, north_deg: np.ndarray
) -> np.ndarray:
    """Relative error of the primary beam at places: of its widths and its pointing, as if it were
    a Gaussian (ln B = -4 ln 2 (x/w)^2)."""
    options = config.photometry
    width_deg = airy_fwhm_deg(imaged["freq_hz"])
    errors = 2 * (options.beam_width_error,), 2 * (options.beam_pointing_error_deg,)
    widths, points = (width_deg, width_deg), (0.0, 0.0)
    for one in known_beams(Paths.of(config).beams):
        if one["path"] == imaged["primary_beam"]["path"]:
            widths = one["fwhm_east_deg"], one["fwhm_north_deg"]
            points = one["east_deg"], one["north_deg"]
            errors = (
                tuple(one[f"fwhm_{axis}_error_deg"] / one[f"fwhm_{axis}_deg"] for axis in _AXES),
                tuple(one[f"{axis}_error_deg"] for axis in _AXES),
            )
    total = 0.0
    for k, offset_deg in enumerate((east_deg, north_deg)):
        slope = 8 * np.log(2) * (offset_deg - points[k]) / widths[k] ** 2  # of ln B, per deg
        total = total + (slope * (offset_deg - points[k]) * errors[0][k]) ** 2
        total = total + (slope * errors[1][k]) ** 2
    return np.sqrt(total)


_AXES = ("east", "north")
