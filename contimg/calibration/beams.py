"""Which primary beam a group's model and image are made with: the Airy disk, one that was fitted to
images of the strip (`contimg instrument`), or a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contimg.calibration.beamfit import BeamFit
from contimg.config import ImagingConfig
from contimg.errors import CalibrationError, ConfigError
from contimg.sky.beam import AIRY, Beam, read_beam
from contimg.store.files import checksum, found_json, replacing, write_json

_REACH_DEG, _STEP_DEG = 4.0, 0.05
_FIT_KEYWORDS = {
    "fwhm_east_deg": "FWHMEAST",
    "fwhm_north_deg": "FWHMNORT",
    "fwhm_east_error_deg": "FWEASERR",
    "fwhm_north_error_deg": "FWNORERR",
    "east_error_deg": "AXEASERR",
    "north_error_deg": "AXNORERR",
    "taper": "TAPER",
    "taper_error": "TAPERERR",
    "chi2": "CHI2",
    "measurements": "NMEASURE",
    "sources": "NSOURCE",
    "groups": "NGROUP",
}


def write_beam(
    path: Path,
    fit: BeamFit,
    *,
    app_dec_deg: float,
    first_mjd: float,
    last_mjd: float,
    groups: Sequence[str],
) -> None:
    """A fitted beam as a map (FITS; `sky.beam.read_beam`), with the strip and the days it is of."""
    from astropy.io import fits

    steps = np.arange(-_REACH_DEG, _REACH_DEG + _STEP_DEG / 2, _STEP_DEG)
    power = fit.power(steps[None, :], steps[:, None])
    header = fits.Header()
    for axis, name in ((1, "EAST"), (2, "NORTH")):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = name, "deg"
        header[f"CRPIX{axis}"], header[f"CRVAL{axis}"] = len(steps) // 2 + 1.0, 0.0
        header[f"CDELT{axis}"] = _STEP_DEG
    header["CRVAL3"] = fit.freq_hz
    header["AXISEAST"], header["AXISNORT"] = fit.east_deg, fit.north_deg
    header["BEAMDEC"], header["MJD-BEG"], header["MJD-END"] = app_dec_deg, first_mjd, last_mjd
    for name, keyword in _FIT_KEYWORDS.items():
        header[keyword] = getattr(fit, name)
    for group in groups:
        header.add_history(group)
    with replacing(path) as partial:
        fits.PrimaryHDU(power.astype(np.float32), header).writeto(partial, checksum=True)


def known_beams(folder: Path) -> list[dict]:
    """What is said of each fitted beam, by its header, and whether it may be used; the oldest
    first."""
    from astropy.io import fits

    found = []
    for path in sorted(folder.glob("*.fits")):
        header = fits.getheader(path)
        numbers = {name: header[keyword] for name, keyword in _FIT_KEYWORDS.items()}
        decided = found_json(_decision(path))
        found.append(
            {
                "name": path.stem,
                "path": str(path),
                "status": "retired" if decided else "active",
                "notes": decided["notes"] if decided else "",
                "app_dec_deg": header["BEAMDEC"],
                "first_mjd": header["MJD-BEG"],
                "last_mjd": header["MJD-END"],
                "east_deg": header["AXISEAST"],
                "north_deg": header["AXISNORT"],
                **numbers,
            }
        )
    return sorted(found, key=lambda one: one["first_mjd"])


def _decision(path: Path) -> Path:
    """Beside a fitted beam: that somebody retired it."""
    return path.with_name(f".{path.stem}.retired.json")


def retire_beam(folder: Path, name: str, reason: str) -> None:
    """Never choose a fitted beam again, also when its groups are fitted once more."""
    path = folder / f"{name}.fits"
    if not path.is_file():
        raise CalibrationError(f"beam {name} is not in {folder}. See `contimg registry beams`.")
    write_json(_decision(path), {"beam": name, "status": "retired", "notes": reason})


def choose_beam(
    options: ImagingConfig,
    folder: Path,
    app_dec_deg: float,
    mid_mjd: float,
    dec_tolerance_deg: float,
) -> tuple[Beam, dict]:
    """The beam that `imaging.beam` and `beam_file` name, for a group; and what is said of it, for
    results and headers.

    folder  of fitted beams; the nearest in time of the strip is taken. Raises ConfigError when a
            fitted one was asked for and there is none.
    """
    if options.beam_file:
        return read_beam(options.beam_file), _said(
            f"file {options.beam_file.name}", options.beam_file
        )
    if options.beam == "airy":
        return AIRY, {"beam": "airy", "path": None, "checksum": None}
    near = [
        one
        for one in known_beams(folder)
        if abs(one["app_dec_deg"] - app_dec_deg) <= dec_tolerance_deg and one["status"] == "active"
    ]
    if not near:
        raise ConfigError(
            f"imaging.beam is fitted, and no active beam of declination {app_dec_deg:.1f} +- "
            f"{dec_tolerance_deg:g} is in {folder}. Fit one: contimg instrument DAY --fit (with "
            "images made with imaging.beam: airy), or choose airy"
        )

    def away(one: dict) -> float:
        return max(one["first_mjd"] - mid_mjd, mid_mjd - one["last_mjd"], 0.0)

    best = Path(min(near, key=away)["path"])
    return read_beam(best), _said(f"fitted {best.stem}", best)


def _said(words: str, path: Path) -> dict:
    return {"beam": words, "path": str(path), "checksum": checksum(path)}
