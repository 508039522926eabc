"""Delete what is no longer needed: Measurement Sets whose images are published and whole, old
tables, old images."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from contimg.calibration import registry
from contimg.chain import LAST
from contimg.clock import now
from contimg.config import Config
from contimg.errors import ContimgError, LockError, ValidationError
from contimg.paths import FAST_SUFFIX, IMAGE_SUFFIXES, Paths
from contimg.products import mosaics
from contimg.products.record import bytes_on_disk
from contimg.products.tables import Base, Image, MeasurementSet, Mosaic
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.store.files import altered, lock
from contimg.telescope import TELESCOPE

_LEAVING = ".removed"
_AT_ONCE = 32  # of a kind; a run that ends holds up the next one


def due(config: Config, now: datetime | None = None) -> dict[str, list[str]]:
    """Groups (or sets) whose Measurement Sets, images and tables `retention` does not keep any
    longer. Read-only.

    A Measurement Set stays unless the queue has its group as completed, and while the only image is
    a quick look.
    """
    paths, options, now = Paths.of(config), config.retention, now or datetime.now(UTC)
    found: dict[str, list[str]] = {
        "measurement_sets": [],
        "images": [],
        "tables": [],
        "mosaics": [],
    }

    def before(days: float) -> str:
        return db.utc((now - timedelta(days=days)).timestamp())

    if options.mosaics_days is not None:
        found["mosaics"] = mosaics.in_deep(config, before(options.mosaics_days))
    if options.measurement_sets_days is options.images_days is options.tables_days is None:
        return found
    completed = {
        g
        for g, s in moves.known_groups(paths.ingest_db, files=False).items()
        if s.state == "completed"
    }
    with db.reading(paths.products_db) as session:
        if session is not None and options.measurement_sets_days is not None:
            kept = select(MeasurementSet.group_id).where(
                MeasurementSet.status == "ok",
                MeasurementSet.stage == LAST,
                MeasurementSet.processed_at <= before(options.measurement_sets_days),
                select(Image.id)
                .where(
                    Image.ms_path == MeasurementSet.path, Image.science, Image.deleted_at.is_(None)
                )
                .exists(),
            )
            found["measurement_sets"] = sorted(completed.intersection(session.scalars(kept)))
        if session is not None and options.images_days is not None:
            old = select(Image.group_id).where(Image.deleted_at.is_(None)).group_by(Image.group_id)
            newest = func.max(Image.created_at) <= before(options.images_days)
            found["images"] = sorted(completed.intersection(session.scalars(old.having(newest))))
    if options.tables_days is not None:
        limit_mjd = db.mjd(now.isoformat()) - options.tables_days
        ours = paths.caltable("x", "B").parent  # imported tables stay where they are
        expired = (
            t
            for t in registry.all_tables(paths.registry_db)
            if max(t.valid_end_mjd, db.mjd(t.created_at)) < limit_mjd
            and Path(t.path).parent == ours
        )
        found["tables"] = sorted({table.set_name for table in expired if Path(table.path).exists()})
    return found


def prune(config: Config, now: datetime | None = None) -> tuple[dict[str, list[str]], list[str]]:
    """Delete what is `due`, and mark its rows.

    Returns what was deleted, by kind, and what was in the way elsewhere, in words. A group is left
    alone while a stage works on it; its Measurement Set stays unless every image is as it was when
    it was indexed.
    """
    paths = Paths.of(config)
    try:
        # two runs may end at once
        with lock(paths.retention_lock, wait=False, what="retention is at work"):
            return _prune(config, paths, now)
    except LockError as error:
        return {}, [str(error)]


def _prune(
    config: Config, paths: Paths, now: datetime | None
) -> tuple[dict[str, list[str]], list[str]]:
    _remove_leaving(paths)  # of a run that was killed
    removers: dict[str, Callable] = {
        "measurement_sets": _prune_ms,
        "images": _prune_images,
        "tables": _prune_tables,
        "mosaics": _prune_mosaics,
    }
    gone: dict[str, list[str]] = {}
    problems: list[str] = []
    for kind, names in due(config, now).items():
        gone[kind] = []
        for name in names[:_AT_ONCE]:
            try:
                with lock(paths.group_lock(name.removesuffix(FAST_SUFFIX)), wait=False, what=name):
                    removers[kind](paths, name)
                gone[kind].append(name)
            except (ContimgError, SQLAlchemyError, OSError, ValueError) as error:
                problems.append(f"{kind.replace('_', ' ')} of {name}: kept: {error}")
        _remove_leaving(paths)
    return gone, problems


def _prune_ms(paths: Paths, group: str) -> None:
    verify_images(paths, group)
    files = [paths.ms(group), paths.flag_versions(group)]
    with _completed(paths, group), _leaving(files), db.writing(paths.products_db, Base) as session:
        row = session.scalar(select(MeasurementSet).where(MeasurementSet.group_id == group))
        if row is None or Path(row.path).resolve() != paths.ms(group).resolve():
            raise ValidationError(f"ms_index has another path for it than {paths.ms(group)}")
        row.status = "pruned"


def _prune_images(paths: Paths, group: str) -> None:
    files = [
        paths.image(group, suffix, quick) for suffix in IMAGE_SUFFIXES for quick in (False, True)
    ]
    files.append(paths.field_gains(group))
    with _completed(paths, group), _leaving(files), db.writing(paths.products_db, Base) as session:
        for image in session.scalars(select(Image).where(Image.group_id == group)):
            image.deleted_at, image.unpublishable = now(), "it was deleted by retention"


@contextmanager
def _completed(paths: Paths, group: str) -> Iterator[None]:
    """Keep the queue from giving a group out again; raises ValidationError if it has."""
    with db.writing(paths.ingest_db, queue_tables.Base) as session:
        if (row := session.get(queue_tables.Group, group)) is None or row.state != "completed":
            raise ValidationError("it is to be done again")
        yield


def _prune_mosaics(paths: Paths, name: str) -> None:
    tract, day = mosaics.tract_and_day(name)
    files = [*paths.mosaic_files(tract, day).values(), paths.hips(name)]
    with _leaving(files), db.writing(paths.products_db, Base) as session:
        session.get(Mosaic, (mosaics.DAY, name)).deleted_at = now()


def _prune_tables(paths: Paths, name: str) -> None:
    table = next(t for t in registry.all_tables(paths.registry_db) if t.set_name == name)
    with db.reading(paths.ingest_db) as session:
        inside = queue_tables.Group.mid_mjd.between(table.valid_start_mjd, table.valid_end_mjd)
        wanted = select(queue_tables.Group.group_id).where(
            queue_tables.Group.state != "completed", inside
        )
        if session is not None and (group := session.scalar(wanted.limit(1))):
            raise ValidationError(f"group {group} may need them yet")
    registry.retire(paths.registry_db, name, registry.GONE)
    with _leaving(
        [Path(t.path) for t in registry.all_tables(paths.registry_db) if t.set_name == name]
    ):
        pass


@contextmanager
def _leaving(files: list[Path]) -> Iterator[None]:
    """Take products out of the way, to be removed when the databases say so; back to their places
    if that fails."""
    moved = [(path, path.with_name(f".{path.name}{_LEAVING}")) for path in files if path.exists()]
    for path, aside in moved:
        path.rename(aside)
    try:
        yield
    except BaseException:
        for path, aside in moved:
            aside.rename(path)
        raise


def _remove_leaving(paths: Paths) -> None:
    for folder in (
        paths.ms("x").parent,
        paths.image("x", "pb").parent,
        paths.caltable("x", "B").parent,
        paths.hips("x").parent,
        *(paths.products / "mosaics").glob("*"),
    ):
        for path in folder.glob(f".*{_LEAVING}"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )


def verify_images(paths: Paths, group: str) -> None:
    """Raise ValidationError unless every image of a group is as it was when `index` recorded it."""
    with db.reading(paths.products_db) as session:
        query = select(Image.path, Image.checksum).where(
            Image.group_id == group, Image.deleted_at.is_(None)
        )
        images = [] if session is None else session.execute(query).all()
    if not images or not all(expected for _, expected in images):
        raise ValidationError(f"group {group} has no verified images in {paths.products_db.name}")
    if wrong := altered(tuple(row) for row in images):
        raise ValidationError(f"{'; '.join(wrong)}. Image it again: contimg reprocess {group}")


def room(config: Config) -> dict:
    """Disk left, what a group takes (mean of the last hundred), and for how many hours of observing
    that is. Read-only.

    With retention of Measurement Sets, what may be deleted counts as left.
    """
    paths = Paths.of(config)
    sizes: Sequence[int] = ()
    deleted = {"measurement_sets": 0, "images": 0}
    with db.reading(paths.products_db) as session:
        if session is not None:
            known = select(MeasurementSet.bytes).where(MeasurementSet.bytes.is_not(None))
            sizes = session.scalars(known.order_by(MeasurementSet.mid_mjd.desc()).limit(100)).all()
            pruned = select(func.count()).where(MeasurementSet.status == "pruned")
            gone = select(func.count(Image.group_id.distinct())).where(
                Image.deleted_at.is_not(None)
            )
            deleted = {"measurement_sets": session.scalar(pruned), "images": session.scalar(gone)}
    folder = next(p for p in (paths.products, *paths.products.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    mean = sum(sizes) / len(sizes) if sizes else None
    may_go = due(config)
    freed = sum(bytes_on_disk(paths.ms(group)) for group in may_go["measurement_sets"])
    return {
        "free_bytes": free,
        "bytes_a_group": mean,
        "bytes_that_may_go": freed,
        "hours_left": (free + freed) / mean * TELESCOPE.group_s / 3600 if mean else None,
        "may_be_deleted": {kind: len(names) for kind, names in may_go.items()},
        "deleted": deleted,
    }
