"""Delete what is no longer needed: Measurement Sets whose images are published and whole."""

import shutil
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from sqlalchemy import select

from contimg import db, ingest
from contimg.config import Config
from contimg.errors import LockError, ValidationError
from contimg.indexing import results_of
from contimg.paths import Paths
from contimg.products import Base, MeasurementSet
from contimg.stage import lock

_LEAVING = ".removed"


def prune(config: Config, now: datetime | None = None) -> tuple[list[str], list[str]]:
    """Delete the Measurement Sets that `retention` does not keep any longer, and mark their rows as pruned.

    Returns the groups that lost theirs, and what was in the way elsewhere, in words. A group is left alone while a stage
    works on it, unless the queue has it as completed, and unless every image of it reads back with the checksum it was
    written with.
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
    for group in sorted(completed & old.keys()):
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
        except (LockError, ValidationError, OSError) as error:
            problems.append(f"{paths.ms(group)} is kept: {error}")
    return pruned, problems


def _remove_leaving(paths: Paths) -> None:
    for path in paths.ms("*").parent.glob(f".*{_LEAVING}"):
        shutil.rmtree(path)


def verify_images(paths: Paths, group: str) -> None:
    """Raise ValidationError unless every published image of a group is there, and whole."""
    results = results_of(paths, group)
    if "index" not in results:
        raise ValidationError(f"group {group} has no index.json: its images were not verified")
    for path in map(Path, results["image"]["images"].values()):
        if not path.exists():
            raise ValidationError(f"{path} is not there. Image it again: contimg reprocess {group} --from image")
        if path.suffix == ".fits":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", AstropyUserWarning)
                    with fits.open(path, checksum=True) as hdus:
                        blank = hdus[0].data is None
            except (AstropyUserWarning, OSError, ValueError) as error:
                raise ValidationError(
                    f"{path}: {error}. Image it again: contimg reprocess {group} --from image"
                ) from None
            if blank:
                raise ValidationError(f"{path} holds no image. Image it again: contimg reprocess {group} --from image")
