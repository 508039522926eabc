"""Reference catalogues of strips on disk: frozen by the first group, grown by what a person
adopts."""

import pandas as pd
from sqlalchemy import select

from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.photometry.reference import Reference, about, sources_of_strip, with_new
from contimg.products import catalogue
from contimg.products.sources import MeasuredGroup
from contimg.sky.calibrators import read_corrected
from contimg.sky.catalogues import DEFAULT_ALPHA
from contimg.sky.geometry import separation_deg
from contimg.store import db
from contimg.store.files import found_json, lock
from contimg.store.parquet import read_about, read_table, write_table

STRIP_DEG = 0.1  # farther off, it is another strip
_AROUND_DEG = 3.0  # of an image's centre: what is in it


def reference_of(config: Config, app_dec_deg: float) -> Reference:
    """The last version of a strip's reference catalogue; frozen from the sky catalogue by the first
    group of the strip that it has a source for."""
    paths = Paths.of(config)
    if (near := _near(paths, app_dec_deg)) is None:
        with lock(paths.state / "locks" / "reference.lock", wait=True, what="reference catalogue"):
            if (near := _near(paths, app_dec_deg)) is None:
                near = f"{app_dec_deg:+05.1f}.v1"
                table = freeze(config, near, app_dec_deg)
                if not len(table):
                    return Reference(near, table)
    return Reference(near, read_table(paths.reference(near)))


def _near(paths: Paths, app_dec_deg: float) -> str | None:
    """The last version of the nearest strip, where one is near."""
    strips = {name.partition(".v")[0] for name in paths.references()}
    away = {strip: abs(strip_declination(paths, strip) - app_dec_deg) for strip in sorted(strips)}
    nearest = min(away, key=lambda strip: away[strip], default=None)
    if nearest is None or away[nearest] >= STRIP_DEG:
        return None
    return paths.references(nearest)[-1]


def strip_declination(paths: Paths, strip: str) -> float:
    """What a strip points to, deg: that of the group which froze its reference."""
    versions = paths.references(strip)
    return read_about(paths.reference(versions[0]))["app_dec_deg"] if versions else float(strip)


def freeze(config: Config, version: str, app_dec_deg: float) -> pd.DataFrame:
    """Write the first version of a strip's reference, unless it is empty; returns it."""
    sky, options = read_corrected(config.catalogues, config.calibration), config.photometry
    table = sources_of_strip(sky, app_dec_deg, options.strip_half_deg, options.least_jy)
    words = about(version, sky, options.model_dump()) | {"app_dec_deg": app_dec_deg}
    if len(table):
        write_table(Paths.of(config).reference(version), table, words)
    return table


def adopt(config: Config, strip: str) -> tuple[str, pd.DataFrame, list[str]]:
    """Another version of a strip's reference, with what its images show and it does not have: its
    name, what is new, and the groups whose images show these places.

    Fluxes are ours, at our frequency with the usual index. Raises RequestError when nothing is new.
    """
    paths = Paths.of(config)
    found = pd.DataFrame(catalogue.new_sources(paths, strip))
    versions = paths.references(strip)
    if not len(found) or not versions:
        raise RequestError(f"strip {strip}: nothing is new. contimg sources --new lists what is")
    with lock(paths.state / "locks" / "reference.lock", wait=True, what="reference catalogue"):
        last = paths.references(strip)[-1]
        others = found.rename(columns={"name": "source"}).assign(alpha=DEFAULT_ALPHA)
        known = read_table(paths.reference(last))
        both, new = with_new(known, others[list(known.columns)], catalogue.SAME_ARCSEC)
        version = f"{strip}.v{int(last.rpartition('.v')[2]) + 1}"
        words = read_about(paths.reference(last)) | {"version": version, "grown_from": last}
        write_table(paths.reference(version), both, words)
    return version, new, _groups_of(paths, strip, new)


def _groups_of(paths: Paths, strip: str, new: pd.DataFrame) -> list[str]:
    """Measured groups of a strip whose images, which are there still, have one of these places."""
    with db.reading(paths.sources_db) as session:
        asked = select(MeasuredGroup.group_id).where(MeasuredGroup.strip == strip)
        names = [] if session is None else sorted(session.scalars(asked))
    groups = []
    for group in names:
        if not paths.image(group, "residual").exists():
            continue
        image = found_json(paths.result(group, "image")) or {}
        if "centre_deg" not in image:
            continue
        away = separation_deg(new.ra_deg.values, new.dec_deg.values, *image["centre_deg"])
        if (away < _AROUND_DEG).any():
            groups.append(group)
    return groups
