"""What may be published: one question with one answer, for rows, headers, pages, archives and
whoever asks."""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import select, update

from contimg.calibration import registry
from contimg.config import Config, ValidationConfig
from contimg.paths import Paths
from contimg.products import mosaics
from contimg.products.tables import Base, Image
from contimg.store import db
from contimg.store.files import found_json

ACTIVE = "active"  # status of a set that may be used


def unpublishable(image: Mapping, options: ValidationConfig) -> list[str]:
    """Why an image must not be published, in words; empty for one that may.

    image  columns of `products.Image`: type, mode, science, verdict, set_status, deleted_at
    """
    found = []
    if image["verdict"] not in options.publish:
        found.append(f"its verdict is {image['verdict']}")
    if image["set_status"] != ACTIVE:
        found.append(f"its calibration set is {image['set_status']}")
    if image["mode"] == "quick":
        found.append("it is a quick look")
    elif not image["science"]:
        found.append("it is not for science: fast calibration, or a gate failed")
    if image["type"] not in ("pbcor", "quick_pbcor"):
        found.append("it is not corrected for the primary beam")
    if image["deleted_at"]:
        found.append("it was deleted by retention")
    return found


def set_status(name: str, checksums: str, known: Mapping[str, tuple[str, str, str]]) -> str:
    """Status now of the set that an image was made with.

    checksums  of its tables when it was applied
    known      status, notes and checksums of each registered set
    """
    if name not in known:
        return "not in the registry"
    status, notes, now = known[name]
    if status == "retired" and notes == registry.GONE:  # its time was over; what it made stays
        return ACTIVE
    if status != ACTIVE:
        return f"{status}: {notes or 'no reason given'}"
    return ACTIVE if not checksums or checksums == now else "solved again since, with other tables"


def known_sets(paths: Paths) -> dict[str, tuple[str, str, str]]:
    """Status, notes and the tables' checksums of every registered set."""
    sets: dict[str, tuple[str, str, str]] = {}
    for table in registry.all_tables(paths.registry_db):
        _, _, sums = sets.get(table.set_name, ("", "", ""))
        sets[table.set_name] = (table.status, table.notes, f"{sums} {table.checksum}".strip())
    return sets


def mark(config: Config) -> list[str]:
    """Bring the rows of images up to date with the registry; returns the groups whose images
    changed.

    Whatever changes a set calls this. It may be repeated, and a run's begin does.
    """
    paths, changed = Paths.of(config), set()
    if not paths.products_db.exists():
        return []
    sets = known_sets(paths)
    of_image = ("type", "mode", "science", "verdict", "deleted_at")
    more = (
        Image.id,
        Image.group_id,
        Image.cal_set,
        Image.cal_checksums,
        Image.set_status,
        Image.unpublishable,
    )
    with db.writing(paths.products_db, Base) as session:
        for row in session.execute(
            select(*more, *(getattr(Image, name) for name in of_image))
        ).all():
            status = (
                set_status(row.cal_set, row.cal_checksums or "", sets) if row.cal_set else ACTIVE
            )
            values = {name: getattr(row, name) for name in of_image} | {"set_status": status}
            why = "; ".join(unpublishable(values, config.validation)) or None
            if (row.set_status, row.unpublishable) != (status, why):
                session.execute(
                    update(Image)
                    .where(Image.id == row.id)
                    .values(set_status=status, unpublishable=why)
                )
                changed.add(row.group_id)
        if changed:
            session.flush()
            mosaics.mark(session)
    return sorted(changed)


def check(config: Config) -> list[str]:
    """Whether the tables of the active sets are what they were: a set that is not is failed, and
    its images are marked. Returns what is wrong, in words."""
    wrong = registry.condemn_altered(Paths.of(config).registry_db)
    mark(config)
    return wrong


def images_of_set(config: Config, name: str) -> list[str]:
    """Groups that have images made with a set."""
    with db.reading(Paths.of(config).products_db) as session:
        if session is None:
            return []
        query = (
            select(Image.group_id)
            .where(Image.cal_set == name, Image.deleted_at.is_(None))
            .distinct()
        )
        return sorted(session.scalars(query))


def _beam_of(paths: Paths, group: str) -> dict:
    return (found_json(paths.result(group, "image")) or {}).get("primary_beam", {})


def images_of_beam(paths: Paths, name: str) -> list[str]:
    """Groups whose images were corrected with a fitted beam."""
    return [
        group
        for group in paths.with_result("image")
        if Path(_beam_of(paths, group).get("path") or "").stem == name
    ]
