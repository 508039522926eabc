"""Delete what is no longer needed: Measurement Sets whose images are published and whole."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from contimg import db, ingest
from contimg.config import Config
from contimg.errors import ContimgError, ValidationError
from contimg.indexing import bytes_on_disk, verified_bytes
from contimg.paths import Paths
from contimg.products import Base, MeasurementSet
from contimg.stage import lock, read_json

_LEAVING = ".removed"
_AT_ONCE = 32  # Measurement Sets; a run that ends holds up the next one


def prune(config: Config, now: datetime | None = None) -> tuple[list[str], list[str]]:
    """Delete the Measurement Sets that `retention` does not keep any longer, and mark their rows as pruned.

    Returns the groups that lost theirs, and what was in the way elsewhere, in words. A group is left alone while a stage
    works on it, unless the queue has it as completed, and unless every image of it is as it was when it was verified.
    """
    days = config.retention.measurement_sets_days
    paths = Paths.of(config)
    if days is None:
        return [], []
    before = db.utc(((now or datetime.now(UTC)) - timedelta(days=days)).timestamp())
    completed = {g for g, s in ingest.known_groups(paths.ingest_db).items() if s.state == "completed"}
    with db.reading(paths.products_db) as session:
        query = select(MeasurementSet.path).where(MeasurementSet.status == "ok", MeasurementSet.processed_at <= before)
        old = {} if session is None else {Path(path).stem: path for path in session.scalars(query)}
    _remove_leaving(paths)  # of a run that was killed
    pruned, problems = [], []
    for group in sorted(g for g in completed & old.keys() if _has_science(paths, g)):
        if len(pruned) >= _AT_ONCE:
            break
        try:
            with lock(paths.group_lock(group), wait=False, what=f"group {group}"):
                verify_images(paths, group)
                for path in (paths.ms(group), paths.flag_versions(group)):
                    if path.exists():
                        path.rename(path.with_name(f".{path.name}{_LEAVING}"))
                with db.writing(paths.products_db, Base) as session:
                    session.get(MeasurementSet, old[group]).status = "pruned"
            pruned.append(group)
            _remove_leaving(paths)
        except (ContimgError, SQLAlchemyError, OSError, ValueError) as error:
            problems.append(f"{paths.ms(group)} is kept: {error}")
    return pruned, problems


def _has_science(paths: Paths, group: str) -> bool:
    """Whether the image that a group has is one for science: after a quick look the data are still wanted."""
    result = paths.result(group, "image")
    return not result.exists() or read_json(result).get("science", True)


def _remove_leaving(paths: Paths) -> None:
    for path in paths.ms("*").parent.glob(f".*{_LEAVING}"):
        shutil.rmtree(path, ignore_errors=True)


def verify_images(paths: Paths, group: str) -> None:
    """Raise ValidationError unless every image of a group is as it was when `index` read it back."""
    index = paths.result(group, "index")
    sizes = read_json(index).get("image_bytes") if index.exists() else None
    if not sizes:
        raise ValidationError(f"group {group} has no verified images in its index.json")
    for name, size in sizes.items():
        path = Path(name)
        found = verified_bytes(path) if path.suffix == ".fits" and path.exists() else bytes_on_disk(path)
        if found != size:
            raise ValidationError(f"{path} has {found} bytes, expected {size}. Image it again: contimg reprocess {group}")
