"""Reference catalogues of strips on disk: frozen by the first group, grown by what a person
adopts."""

import pandas as pd

from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.photometry.reference import Reference, about, sources_of_strip, with_new
from contimg.products import catalogue
from contimg.sky.calibrators import read_corrected
from contimg.sky.catalogues import DEFAULT_ALPHA
from contimg.sky.geometry import separation_deg
from contimg.store.files import found_json, lock
from contimg.store.parquet import read_about, read_table, write_table

_SAME_STRIP_DEG = 0.1
_SAME_ARCSEC = 15.0
_AROUND_DEG = 3.0  # of an image's centre: what is in it


def reference_of(config: Config, app_dec_deg: float) -> Reference:
    """The last version of a strip's reference catalogue; frozen from the sky catalogue by the first
    group of the strip."""
    paths = Paths.of(config)
    if (near := _near(paths, app_dec_deg)) is None:
        with lock(paths.state / "locks" / "reference.lock", wait=True, what="reference catalogue"):
            if (near := _near(paths, app_dec_deg)) is None:
                near = f"{app_dec_deg:+05.1f}.v1"
                freeze(config, near, app_dec_deg)
    return Reference(near, read_table(paths.reference(near)))


def _near(paths: Paths, app_dec_deg: float) -> str | None:
    for name in reversed(paths.references()):
        known = read_about(paths.reference(name))["app_dec_deg"]
        if abs(known - app_dec_deg) < _SAME_STRIP_DEG:
            return name
    return None


def freeze(config: Config, version: str, app_dec_deg: float) -> int:
    """Write the first version of a strip's reference; returns how many sources it has."""
    sky, options = read_corrected(config.catalogues, config.calibration), config.photometry
    table = sources_of_strip(sky, app_dec_deg, options.strip_half_deg, options.least_jy)
    words = about(version, sky, options.model_dump()) | {"app_dec_deg": app_dec_deg}
    write_table(Paths.of(config).reference(version), table, words)
    return len(table)


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
        both, new = with_new(known, others[list(known.columns)], _SAME_ARCSEC)
        if not len(new):
            raise RequestError(
                f"strip {strip}: {last} has all that its images show; groups that were measured "
                "before it may need contimg reprocess GROUP --from photometry"
            )
        version = f"{strip}.v{int(last.rpartition('.v')[2]) + 1}"
        words = read_about(paths.reference(last)) | {"version": version, "grown_from": last}
        write_table(paths.reference(version), both, words)
    return version, new, _groups_of(paths, strip, new)


def _groups_of(paths: Paths, strip: str, new: pd.DataFrame) -> list[str]:
    """Measured groups of a strip whose images, which are there still, have one of these places."""
    groups = []
    for group in paths.measured():
        image = found_json(paths.result(group, "image")) or {}
        if read_about(paths.photometry(group))["strip"] != strip or "centre_deg" not in image:
            continue
        away = separation_deg(new.ra_deg.values, new.dec_deg.values, *image["centre_deg"])
        if (away < _AROUND_DEG).any() and paths.image(group, "residual").exists():
            groups.append(group)
    return groups
