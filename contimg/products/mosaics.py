"""Which tracts the images of a site show on which sidereal days, what mosaics were made of, and
which are not what they should be.

Every Snakemake process reads this module: the sky's own (astropy) only where a tract is asked for.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, or_, select

from contimg.clock import now
from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.products.sources import Base as SourcesBase
from contimg.products.sources import Change, Difference
from contimg.products.tables import Base, Image, Mosaic, columns_of
from contimg.queue.planning import Plan
from contimg.store import db
from contimg.store.files import altered, found_json

_AFTER_DAYS = 0.02  # a group's files come this long after the sky has gone past
DAY, DEEP, DIFFERENCE, CATALOGUE = "mosaic", "deep", "difference", "catalogue"  # rules


@dataclass(frozen=True)
class Piece:
    """A tract on a sidereal day.

    groups   whose images may show it: done, or in this run
    refused  done groups whose images must not be published, and why
    to_come  groups of this run among them
    again    it was made of other images than there are now
    alone    when it was compared with other days there were none
    """

    tract: str
    sday: int
    groups: tuple[str, ...]
    refused: Mapping[str, str]
    to_come: tuple[str, ...]
    again: bool
    alone: bool

    @property
    def id(self) -> str:
        """What its results are called by."""
        return f"{self.tract}.{self.sday}"

    def as_json(self) -> dict:
        """For the jobs of a run."""
        return {
            "groups": list(self.groups),
            "refused": dict(self.refused),
            "to_come": list(self.to_come),
            "again": self.again,
            "alone": self.alone,
        }

    @classmethod
    def from_json(cls, name: str, values: Mapping) -> "Piece":
        """What `as_json` wrote."""
        tract, day = tract_and_day(name)
        groups, to_come = (tuple(values[key]) for key in ("groups", "to_come"))
        again, alone = values["again"], values["alone"]
        return cls(tract, int(day), groups, values["refused"], to_come, again, alone)


def tract_and_day(name: str) -> tuple[str, str]:
    """Of `TRACT.SDAY`, or of `TRACT`, which has no day ("")."""
    strip, _, rest = name.partition("_")
    first, _, day = rest.partition(".")
    return f"{strip}_{first}", day


def strips_of(paths: Paths) -> set[str]:
    """Strips that are known."""
    return {name.partition(".v")[0] for name in paths.references()}


def crossed_by(plan: Plan, config: Config, strips: Collection[str]) -> list[tuple[str, int]]:
    """Tracts and days that a group's image may show."""
    from contimg.mosaics.tracts import crossed, strip_of

    if plan.mid_mjd is None or plan.app_dec_deg is None:
        return []
    reach_deg = config.imaging.imsize / 2 * config.imaging.cell_arcsec / 3600
    return crossed(plan.mid_mjd, strip_of(plan.app_dec_deg, strips), reach_deg)


def asked_pieces(
    words: Iterable[str], plans: Mapping[str, Plan], config: Config
) -> dict[str, list[tuple[str, int]]]:
    """What is asked for by names like epoch/+16.1/9830 or tract/+16.1_345: tracts and days. Raises
    RequestError where no group that is done, or to be imaged, shows any."""
    named = [word for word in words if word.startswith(("epoch/", "tract/"))]
    if not named:
        return {}
    from contimg.mosaics.tracts import tract_of

    there = set(_shown(plans, config))
    found = {}
    for word in named:
        kind, _, name = word.partition("/")
        if kind == "tract":
            tract_of(name, config.mosaics)
            found[word] = sorted(one for one in there if one[0] == name)
        else:
            strip, _, day = name.partition("/")
            found[word] = sorted(
                one for one in there if one[0].partition("_")[0] == strip and str(one[1]) == day
            )
        if not found[word]:
            raise RequestError(
                f"{word}: no image that is done, or to be made, shows any of it. contimg tracts "
                "lists what there is"
            )
    return found


def _shown(plans: Mapping[str, Plan], config: Config) -> dict[tuple[str, int], list[str]]:
    """Groups that are done or to be imaged, by tract and day."""
    strips, found = strips_of(Paths.of(config)), defaultdict(list)
    for group, plan in plans.items():
        if plan.action in ("run", "done"):
            for one in crossed_by(plan, config, strips):
                found[one].append(group)
    return found


def due_pieces(plans: Mapping[str, Plan], config: Config, mjd: float) -> list[tuple[str, int]]:
    """Tracts and days that the sky has gone past (`mosaics.make: over`): no group that shows them
    is at work elsewhere, waits, or is to come."""
    from contimg.mosaics.tracts import STEP_DEG
    from contimg.photometry.epochs import mjd_of_turns

    strips, open_ones = strips_of(Paths.of(config)), set()
    for plan in plans.values():
        if plan.action in ("running", "waiting", "collecting"):
            open_ones |= set(crossed_by(plan, config, strips))
    past = []
    for tract, day in _shown(plans, config):
        end_deg = int(tract.partition("_")[2]) + STEP_DEG
        reach_deg = config.imaging.imsize / 2 * config.imaging.cell_arcsec / 3600
        end_mjd = float(mjd_of_turns(day + (end_deg + 1.5 * reach_deg) / 360)) + _AFTER_DAYS
        if mjd > end_mjd and (tract, day) not in open_ones:
            past.append((tract, day))
    return sorted(past)


def make_pieces(
    wanted: Collection[tuple[str, int]], plans: Mapping[str, Plan], config: Config
) -> dict[str, Piece]:
    """These tracts on their days, by id."""
    if not wanted:
        return {}
    paths = Paths.of(config)
    shown, images = _shown(plans, config), _images(paths)
    made, alone = {row["name"]: row for row in listed(paths, kind=DAY)}, _alone(paths)
    found = {}
    for tract, day in wanted:
        groups = shown[tract, day]
        to_come = tuple(g for g in groups if plans[g].action == "run")
        refused = {
            g: images[g]["unpublishable"]
            for g in groups
            if g not in to_come and g in images and images[g]["unpublishable"]
        }
        was = made.get(f"{tract}.{day}")
        again = bool(was and not to_come and _is_other(config, was, groups, images))
        left_alone = f"{tract}.{day}" in alone
        one = Piece(tract, day, tuple(groups), refused, to_come, again, left_alone)
        found[one.id] = one
    return found


def undone(found: Mapping[str, Piece], paths: Paths) -> list[str]:
    """Those that have no result, or not the right one."""
    there, days = set(paths.with_result(DIFFERENCE)), Counter(one.tract for one in found.values())
    return [
        name
        for name, one in found.items()
        if one.again or one.to_come or name not in there or (one.alone and days[one.tract] > 1)
    ]


def _alone(paths: Paths) -> set[str]:
    """Days of tracts that had no other day to be compared with."""
    with db.reading(paths.sources_db) as session:
        if session is None:
            return set()
        rows = session.execute(
            select(Difference.tract, Difference.sday).where(Difference.others == 0)
        )
        return {f"{row.tract}.{row.sday}" for row in rows}


def _images(paths: Paths) -> dict[str, dict[str, Any]]:
    """Checksum, what is against publishing, and deletion, of every group's image."""
    with db.reading(paths.products_db) as session:
        if session is None:
            return {}
        names = ("group_id", "checksum", "unpublishable", "deleted_at")
        rows = session.execute(
            select(*(getattr(Image, name) for name in names)).where(Image.type == "pbcor")
        )
        return {row.group_id: dict(row._mapping) for row in rows}


def _is_other(
    config: Config, made: Mapping, groups: Collection[str], images: Mapping[str, Mapping]
) -> bool:
    """Whether a mosaic (its row) was made of other images than there are now, or otherwise. Images
    that were deleted since count as they were."""
    seen = {
        group: None if one["against"] else one["checksum"]
        for group, one in made["inputs"].items()
        if one["checksum"]
    }
    there: dict[str, str | None] = {}
    for group in groups:
        image = images.get(group)
        if image is None or (image["deleted_at"] and group not in seen):
            continue
        as_it_is = None if image["unpublishable"] else image["checksum"]
        there[group] = seen[group] if image["deleted_at"] else as_it_is
    return there != seen or made["options"] != options_digest(config)


def options_digest(config: Config) -> str:
    """Of the configuration that mosaics follow from."""
    names = {"cell_arcsec", "height_deg", "beam_arcsec", "most_beam_off"}
    words = config.mosaics.model_dump_json(include=names)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def record(config: Config) -> int:
    """Bring the index up to date with the mosaics that are there, and the sources with what they
    show; returns how many rows are new."""
    return _record_images(Paths.of(config)) + _record_changes(Paths.of(config))


def _record_changes(paths: Paths) -> int:
    there = {name: paths.result(name, DIFFERENCE) for name in paths.with_result(DIFFERENCE)}
    if not there and not paths.sources_db.exists():
        return 0
    new = 0
    with db.writing(paths.sources_db, SourcesBase) as session:
        known = {f"{row.tract}.{row.sday}": row for row in session.scalars(select(Difference))}
        for name in sorted(known.keys() | there.keys()):
            row, path = known.get(name), there.get(name)
            changed_ns = path.stat().st_mtime_ns if path else None
            if row and row.changed_ns == changed_ns:
                continue
            if row:
                of_day = (Change.tract == row.tract, Change.sday == row.sday)
                session.execute(delete(Change).where(*of_day))
                session.delete(row)
                session.flush()
            if path and (made := found_json(path)):
                _add_changes(session, made, changed_ns)
                new += 1
    return new


def _add_changes(session, made: Mapping, changed_ns: int) -> None:
    of_day = {name: made[name] for name in ("tract", "strip", "sday")}
    others = len(made.get("others", ())) if "skipped" not in made else 0
    session.add(Difference(**of_day, others=others, changed_ns=changed_ns))
    names = ("ra_deg", "dec_deg", "flux_jy", "error_jy", "snr", "new")
    session.add_all(
        Change(**of_day, mid_mjd=made["mid_mjd"], **{name: one[name] for name in names})
        for one in made["changes"]
    )


def _record_images(paths: Paths) -> int:
    there = {
        (kind, name): path.stat().st_mtime_ns
        for kind in (DAY, DEEP)
        for name in paths.with_result(kind)
        if (path := paths.result(name, kind)).exists()
    }
    if not there and not paths.products_db.exists():
        return 0
    with db.writing(paths.products_db, Base) as session:
        known = {
            (row.kind, row.name): row.changed_ns
            for row in session.execute(select(Mosaic.kind, Mosaic.name, Mosaic.changed_ns))
        }
        new = 0
        for (kind, name), changed_ns in there.items():
            if known.get((kind, name)) == changed_ns:
                continue
            if made := found_json(paths.result(name, kind)):
                session.execute(delete(Mosaic).where(Mosaic.kind == kind, Mosaic.name == name))
                session.add(_row(kind, name, made, changed_ns))
                new += 1
        for kind, name in known.keys() - there.keys():
            session.execute(delete(Mosaic).where(Mosaic.kind == kind, Mosaic.name == name))
    return new


def _row(kind: str, name: str, made: Mapping, changed_ns: int) -> Mosaic:
    images = made["images"]
    return Mosaic(
        kind=kind,
        name=name,
        tract=made["tract"],
        strip=made["strip"],
        sday=made.get("sday"),
        path=images.get("fits"),
        weight_path=images.get("weight.fits"),
        checksum=made.get("checksums", {}).get(images.get("fits")),
        bytes=made.get("bytes"),
        verdict=made["verdict"],
        inputs=json.dumps(made["inputs"]),
        options=made["options"],
        used=sum(one["used"] for one in made["inputs"].values()),
        created_at=now(),
        changed_ns=changed_ns,
        deleted_at=None,
        centre_ra_deg=made["centre_deg"][0],
        centre_dec_deg=made["centre_deg"][1],
        width=made["shape"][0],
        height=made["shape"][1],
        cell_arcsec=made["cell_arcsec"],
        region=made["region"],
        beam_major_arcsec=made.get("beam_arcsec", (None,))[0],
        beam_minor_arcsec=made.get("beam_arcsec", (None, None))[1],
        **{name: made.get(name) for name in _NUMBERS},
    )


_NUMBERS = (
    "coverage",
    "noise_jy",
    "expected_noise_jy",
    "noise_ratio",
    "begin_mjd",
    "end_mjd",
    "freq_hz",
    "bandwidth_hz",
)


def in_deep(paths: Paths, before: str) -> list[str]:
    """Days, made before a time (UTC), that the sums of their tracts have as they are and that were
    compared with others: their images are not needed any more."""
    compared = {row["name"] for row in listed(paths, kind=DAY)} - _alone(paths)
    sums = {row["tract"]: row["inputs"] for row in listed(paths, kind=DEEP)}
    there = set(paths.with_result(DIFFERENCE))
    found = []
    for row in listed(paths, kind=DAY):
        held = sums.get(row["tract"], {}).get(str(row["sday"]), {})
        same = held.get("used") and held["checksum"] == row["checksum"]
        is_old = row["path"] and not row["deleted_at"] and row["created_at"] <= before
        if is_old and same and row["name"] in compared & there:
            found.append(row["name"])
    return found


def verify(paths: Paths) -> Iterator[str]:
    """What is not as its result or its list says, in words."""
    deleted = {row["name"] for row in listed(paths, kind=DAY) if row["deleted_at"]}
    known = set()
    for rule in (DAY, DEEP, CATALOGUE):
        for name in paths.with_result(rule):
            sums = (found_json(paths.result(name, rule)) or {}).get("checksums", {})
            known |= sums.keys()
            if rule == DAY and name in deleted:
                continue
            yield from altered(sums.items())
    for path in sorted((paths.products / "mosaics").glob("*/[!.]*.*")):
        if path.suffix != ".json" and str(path) not in known:
            yield f"{path} is of no mosaic's result"


def provenance(paths: Paths, name: str, at: tuple[float, float] | None) -> dict | None:
    """The days and groups that a mosaic is made of, by its name (`TRACT`, `TRACT.SDAY`) or its
    file; of a place (RA, Dec in deg), only those whose images show it. None: no mosaic."""
    with db.reading(paths.products_db) as session:
        if session is None:
            return None
        fits = or_(Mosaic.name == name, Mosaic.path == name)
        row = session.scalars(select(Mosaic).where(fits)).first()
        if row is None:
            return None
        about = columns_of(row) | {"inputs": json.loads(row.inputs)}
    names = [about["name"]]
    if about["kind"] == DEEP:
        names = [f"{about['tract']}.{d}" for d, one in about["inputs"].items() if one["used"]]
    days = {}
    for one in names:
        made = found_json(paths.result(one, DAY)) or {"inputs": {}}
        groups = [group for group, tile in made["inputs"].items() if tile["used"]]
        days[one] = [group for group in groups if at is None or _shows(paths, group, at)]
    return {"mosaic": about, "days": {one: groups for one, groups in days.items() if groups}}


def _shows(paths: Paths, group: str, at: tuple[float, float]) -> bool:
    from contimg.sky.geometry import separation_deg

    imaged = found_json(paths.result(group, "image"))
    if imaged is None:
        return True  # better one too many
    away = separation_deg(imaged["centre_deg"][0], imaged["centre_deg"][1], at[0], at[1])
    return float(away) < imaged["diameter_deg"] / 2


def failures(paths: Paths) -> list[str]:
    """What could not be made, why, and what to do, a line each."""
    found = []
    for path in sorted(paths.error("x").parent.glob("[+-]*.json")):
        note = found_json(path) or {}
        if "error" in note and not note.get("waits_for"):
            found.append(f"{path.stem}, {note['stage']}: {note['error']}; see {note['log']}")
    return found


def listed(
    paths: Paths, *, kind: str | None = None, tract: str | None = None, strip: str | None = None
) -> list[dict]:
    """Rows of mosaics, by tract and day."""
    with db.reading(paths.products_db) as session:
        if session is None:
            return []
        asked = select(Mosaic).order_by(Mosaic.tract, Mosaic.sday)
        for column, value in ((Mosaic.kind, kind), (Mosaic.tract, tract), (Mosaic.strip, strip)):
            asked = asked.where(column == value) if value else asked
        rows = [columns_of(row) for row in session.scalars(asked)]
    for row in rows:
        row["inputs"] = json.loads(row["inputs"])
    return rows
