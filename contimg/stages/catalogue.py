"""The sources of a mosaic, and how complete and reliable their list is: what the rule `catalogue`
makes."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import Table

from contimg.config import Config
from contimg.errors import ValidationError
from contimg.imaging.interface import Beam
from contimg.mosaics import finding
from contimg.mosaics.combine import as_measured
from contimg.mosaics.files import read_mosaic
from contimg.mosaics.tracts import strip_of
from contimg.paths import Paths
from contimg.photometry.reference import name_of_place, nearest
from contimg.plots.mosaic import plot_curves
from contimg.plots.style import save_plot
from contimg.products.catalogue import spectral_indices
from contimg.products.mosaics import DAY, DEEP, strips_of, tract_and_day
from contimg.stages.job import Job
from contimg.store.files import checksum, read_json, remove, replacing
from contimg.store.identity import made_by
from contimg.store.parquet import read_table, write_table

log = logging.getLogger(__name__)
_SEED = 1  # of injected sources
_RELIABLE_SIGMA = 6.0
_SAME_BEAMS = 0.5
_PLACE_ARCSEC = 0.1  # what images are good to (docs/accuracy.md), beside the noise
ENDINGS = ("parquet", "fits", "vot", "csv")


def run(job: Job) -> dict:
    """The work of the rule; returns its result."""
    return list_sources(job.config, job.group, job.threads)


def list_sources(config: Config, name: str, threads: int) -> dict:
    """List the sources of a tract's deep image (`TRACT`) or of its day (`TRACT.SDAY`)."""
    paths, (tract, day) = Paths.of(config), tract_and_day(name)
    made = read_json(paths.result(name, DAY if day else DEEP))
    about = {"tract": tract, "strip": made["strip"], "sday": int(day) if day else None}
    files = {end: paths.mosaic(tract, day or DEEP, f"catalogue.{end}") for end in ENDINGS}
    if not made["images"]:
        for path in files.values():
            remove(path)
        return about | {"skipped": "there is no mosaic", "sources": 0}
    image_path = Path(made["images"]["fits"])
    if not image_path.exists():
        raise ValidationError(f"{image_path}: retention deleted it; no sources to list")
    total = read_mosaic(image_path, Path(made["images"]["weight.fits"]))
    with np.errstate(divide="ignore"):
        noise = as_measured(total.image, total.weight**-0.5)
    header, beam = fits.getheader(image_path), Beam(*made["beam_arcsec"])
    cell_arcsec = config.mosaics.cell_arcsec
    finder = finding.Finder(noise, header, threads, 60 * config.mosaics.finder_minutes)
    found = finder.find(total.image)
    log.info("%s: %d components", name, len(found))
    complete = finding.completeness(
        finder=finder,
        image=total.image,
        found=found,
        beam=beam,
        cell_arcsec=cell_arcsec,
        seed=_SEED,
    )
    reliable = finding.reliability(finder, total.image, found)
    found = _named(found, config, made, beam)
    above = reliable[reliable.snr - 0.25 >= _RELIABLE_SIGMA]
    numbers = {
        "sources": len(found),
        "islands": int(found.island.nunique()),
        "half_complete_snr": round(finding.half_complete(complete), 2),
        "injected": int(complete.injected.sum()),
        "false_above_6": int(above.false.sum()),
        "reliability_above_6": _share(above),
    }
    words = {
        "mosaic": name,
        "image": made["checksums"][made["images"]["fits"]],
        "units": finding.UNITS,
        **about,
        **numbers,
        **made_by(config),
    }
    _write(files, found, complete, reliable, words)
    save_plot(lambda: plot_curves(name, complete, reliable), paths.qa(name, "catalogue"))
    return about | {
        **numbers,
        "completeness": complete.round(4).to_dict("list"),
        "reliability": reliable.fillna(-1).round(4).to_dict("list"),
        "files": {end: str(path) for end, path in files.items()},
        "checksums": {str(path): checksum(path) for path in files.values()},
    }


def _share(rows: pd.DataFrame) -> float | None:
    real = int(rows.found.sum())
    return round(1 - float(rows.false.sum()) / real, 5) if real else None


def _named(found: pd.DataFrame, config: Config, made: dict, beam: Beam) -> pd.DataFrame:
    """With names, signal to noise, the reference's source at the place, and a spectral index where
    the bands of the groups' images allow it."""
    paths = Paths.of(config)
    places = zip(found.ra_deg, found.dec_deg, strict=True)
    found.insert(0, "name", [name_of_place(*place) for place in places])
    found["snr"] = found.peak_jy / found.noise_jy
    for axis in ("ra", "dec"):
        of_noise = found[f"{axis}_error_deg"]
        found[f"{axis}_error_deg"] = np.hypot(of_noise, _PLACE_ARCSEC / 3600)
    found["reference"], found["reference_jy"] = "", np.nan
    strip = strip_of(float(made["strip"]), strips_of(paths))
    versions = paths.references(strip)
    if versions and len(found):
        known = read_table(paths.reference(versions[-1]))
        away_arcsec, which = nearest(known, found)
        same = away_arcsec < _SAME_BEAMS * beam.major_arcsec
        found.loc[same, "reference"] = known.source.values[which[same]]
        found.loc[same, "reference_jy"] = known.flux_jy.values[which[same]]
    indices = spectral_indices(paths, _groups_of(paths, made))
    for column, k in (("alpha", 0), ("alpha_error", 1)):
        of_name = {name: one[k] for name, one in indices.items()}
        found[column] = found.reference.map(of_name).astype(float)
    return found


def _groups_of(paths: Paths, made: dict) -> list[str]:
    """Groups whose images a mosaic has."""
    if made.get("sday") is not None:
        return [group for group, one in made["inputs"].items() if one["used"]]
    groups: set[str] = set()
    for day, one in made["inputs"].items():
        if one["used"]:
            of_day = read_json(paths.result(f"{made['tract']}.{day}", DAY))
            groups |= {group for group, tile in of_day["inputs"].items() if tile["used"]}
    return sorted(groups)


def _write(
    files: dict[str, Path],
    found: pd.DataFrame,
    complete: pd.DataFrame,
    reliable: pd.DataFrame,
    words: dict,
) -> None:
    write_table(files["parquet"], found, words)
    table = Table.from_pandas(found)
    for name, unit in finding.UNITS.items():
        table[name].unit = unit
    kept = ("mosaic", "half_complete_snr", "reliability_above_6", "config", "commit", "version")
    table.meta = {key: words[key] for key in kept if words.get(key) is not None}
    curves = (("COMPLETENESS", complete), ("RELIABILITY", reliable))
    hdus = [fits.PrimaryHDU(), fits.table_to_hdu(_short(table))]
    hdus[1].name = "SOURCES"
    for name, curve in curves:
        hdus.append(fits.table_to_hdu(Table.from_pandas(curve)))
        hdus[-1].name = name
    with replacing(files["fits"]) as partial:
        fits.HDUList(hdus).writeto(partial, checksum=True)
    with replacing(files["vot"]) as partial:
        table.write(partial, format="votable")
    with replacing(files["csv"]) as partial:
        found.to_csv(partial, index=False)


def _short(table: Table) -> Table:
    """With keywords that FITS has room for."""
    short = {"half_complete_snr": "HALFSNR", "reliability_above_6": "RELIAB6"}
    table = table.copy()
    table.meta = {short.get(key, key.upper()): value for key, value in table.meta.items()}
    return table
