"""Where an image comes from, and whether all that the databases speak of is there and unaltered.
Read-only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select

from contimg.calibration import registry
from contimg.chain import LAST, STAGES
from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import CASA_IMAGES, FAST_SUFFIX, Paths
from contimg.products import mosaics
from contimg.products.record import results_of
from contimg.products.tables import Image, MeasurementSet, QaArtifact, columns_of
from contimg.queue import moves
from contimg.store import db
from contimg.store.files import altered, found_json
from contimg.visibilities.uvh5 import changed_since

_OF_STAGE = ("seconds", "finished_at", "host", "run", "config", "catalogues", "commit", "versions")


def provenance(config: Config, name: str, at: tuple[float, float] | None = None) -> dict:
    """The chain of an image (its path, file name or group) back to the raw files: checksums,
    tables, configuration, versions, commands and seconds; of a mosaic, those of its images, or only
    of those that show a place (`at`: RA, Dec in deg). Raises RequestError if nothing is known of
    it."""
    paths = Paths.of(config)
    if (found := mosaics.provenance(paths, name, at)) is not None:
        groups = sorted({group for mine in found["days"].values() for group in mine})
        return found | {"groups": {group: _of_tile(config, group) for group in groups}}
    if at is not None:
        raise RequestError(f"{name}: a place is for mosaics; a group's image is of one group")
    with db.reading(paths.products_db) as session:
        fits = or_(
            Image.path == name,
            Image.path.endswith(f"/{name}", autoescape=True),
            Image.group_id == name,
        )
        query = select(Image).where(fits, Image.deleted_at.is_(None)).order_by(Image.id)
        rows = [] if session is None else [columns_of(row) for row in session.scalars(query)]
    for row in rows:
        row["software"] = json.loads(row["software"] or "{}")
    if not rows:
        raise RequestError(
            f"{name}: no such image, and no group with images, in {paths.products_db}"
        )
    group = rows[0]["group_id"]
    results = results_of(paths, group)
    chosen = results.get("caltables", {})
    refined = found_json(paths.result(group, "refine")) or {}
    calibrator = chosen.get("set_name", "").removesuffix(FAST_SUFFIX)
    of_calibrator = results_of(paths, calibrator) if calibrator else {}
    sums = chosen.get("checksums", [])
    other = rows[0]["mode"] != results.get("image", {}).get("mode")
    return {
        "group": group,
        "images": rows,
        "warning": "the group was imaged again in another mode since: stages, set and commands are "
        "of that"
        if other
        else None,
        "raw_files": _raw_files(results),
        "calibration": {
            "set": chosen.get("set_name"),
            "status": rows[0]["set_status"],
            "why": chosen.get("reason"),
            "flux_scale": chosen.get("flux_scale"),
            "between": (chosen.get("between") or {}).get("set_name"),
            "own_gains": {
                name: refined.get(name) for name in ("refine", "sky", "table", "flux_scale")
            },
            "tables": [
                {"kind": kind, "path": path, "sha256": sha}
                for (kind, path), sha in zip(chosen.get("tables", {}).items(), sums, strict=False)
            ],
            "raw_files": _raw_files(of_calibrator)
            if calibrator not in ("", group)
            else "those above",
            "solved": _when(of_calibrator.get("solve", {})),
        },
        "stages": [
            {"stage": s} | {key: results[s].get(key) for key in _OF_STAGE}
            for s in STAGES
            if s in results
        ],
        "catalogues": results.get("image", {}).get("catalogues"),
        "commit": results.get("image", {}).get("commit"),
        "commands": results.get("index", {}).get("runs", {}),
        "configuration": _configuration(paths, rows[0]["config"]),
    }


def _when(result: dict) -> dict:
    return {key: result[key] for key in ("seconds", "finished_at") if key in result}


def _of_tile(config: Config, group: str) -> dict:
    try:
        return provenance(config, group)
    except RequestError:  # retention deleted its images
        results = results_of(Paths.of(config), group)
        return {"group": group, "images": [], "raw_files": _raw_files(results)}


def _raw_files(results: dict) -> list[dict]:
    converted = results.get("convert", {})
    sums = converted.get("sha256", {})
    return [
        {"subband": int(sb), "path": path, "sha256": sums.get(sb)}
        for sb, path in converted.get("files", {}).items()
    ]


def _configuration(paths: Paths, digest: str | None) -> dict:
    return {"digest": digest, "values": found_json(paths.config(digest)) if digest else None}


def verify(config: Config) -> Iterator[str]:
    """What is missing, altered, or not in the databases, in words; nothing when all is well. Reads
    every product once."""
    paths = Paths.of(config)
    queue = moves.known_groups(paths.ingest_db, files=False)
    done = {group for group, status in queue.items() if status.state == "completed"}
    with db.reading(paths.products_db) as session:

        def rows(table: type) -> list[Any]:
            return [] if session is None else list(session.scalars(select(table)))

        images, artifacts, sets = rows(Image), rows(QaArtifact), rows(MeasurementSet)
        kept = [one for one in images if one.deleted_at is None]
        expected = {row.path: row.checksum for row in [*kept, *artifacts]}
        of_sets = [(row.path, row.status, row.group_id) for row in sets]
        indexed = {row.group_id for row in images}
    for group in sorted(done):
        index = paths.result(group, LAST)
        if group not in indexed:
            yield f"group {group} is completed, and has no image in {paths.products_db.name}"
        if changed := changed_since(results_of(paths, group).get("convert", {}).get("seen", {})):
            words = (
                f"group {group}: {', '.join(changed)} changed after the image's data were "
                f"read: contimg reprocess {group}"
            )
            yield words
        # also the products that have no row of their own
        if any(row.group_id == group for row in kept):
            expected = (found_json(index) or {}).get("checksums", {}) | expected
    for path in sorted(paths.result("x", "y").parent.glob("[!.]*.json")):
        if found_json(path) is None:
            words = (
                f"{path} cannot be read: empty, or cut off; the next run that needs it "
                "makes it again"
            )
            yield words
    for path, sha256 in sorted(expected.items()):
        yield from altered([(path, sha256)])
    for path, status, group in of_sets:
        if (status == "pruned") == Path(path).exists() and (group in done or status == "pruned"):
            words = (
                f"{path} is {'on' if status == 'pruned' else 'not on'} disk, and {status} in "
                "ms_index"
            )
            yield words
    yield from mosaics.verify(paths)
    tables = registry.all_tables(paths.registry_db)
    yield from altered((t.path, t.checksum) for t in tables if t.status == "active")
    known = expected.keys() | {path for path, *_ in of_sets} | {t.path for t in tables}
    known |= {str(paths.field_gains(group)) for group in done}
    # of two modes, index.json has the last one's files
    modes = {(row.group_id, row.type.startswith("quick_")) for row in kept}
    known |= {
        str(paths.image(group, suffix, quick)) for group, quick in modes for suffix in CASA_IMAGES
    }
    plots = paths.qa("x", "y").parents[1].glob("*")
    for folder in (
        paths.image("x", "pb").parent,
        paths.ms("x").parent,
        paths.caltable("x", "B").parent,
        *plots,
    ):
        for path in sorted(folder.glob("[!.]*")):
            of_group = (
                path.name[:19] if folder.name in ("images", "ms", "caltables") else folder.name
            )
            if of_group in done and path.suffix != ".flagversions" and str(path) not in known:
                yield f"{path} is in no database"
