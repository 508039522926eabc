"""Which tracts the images of a site show on which sidereal days, what mosaics were made of, and
which are not what they should be.

Every Snakemake process reads this module: the sky's own (astropy) only where a tract is asked for.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from contimg.clock import now
from contimg.config import Config
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.products.sources import Base as SourcesBase
from contimg.products.sources import Change, Difference
from contimg.products.tables import Base, Image, Mosaic, columns_of
from contimg.queue.moves import known_groups
from contimg.queue.planning import Plan
from contimg.store import db
from contimg.store.files import altered, found_json

_NAMED = 4  # days in a message
_AFTER_DAYS = 0.02  # a group's files come this long after the sky has gone past
DAY, DEEP, DIFFERENCE, CATALOGUE = "mosaic", "deep", "difference", "catalogue"  # rules
HIPS = "hips"
ALONE = "there is no other day"  # why a day was not compared


@dataclass(frozen=True)
class Piece:
    """A tract on a sidereal day.

    groups   whose images may show it
    refused  those of them that are left out, and why
    seen     checksums of the images that groups had before this run; None: must not be published
    to_come  groups that this run images
    again    it was made of other images than there are now
    alone    when it was compared with other days there were none
    frozen   why it stays as it is, whatever became of its images
    """

    tract: str
    sday: int
    groups: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, str | None] = field(default_factory=dict)
    to_come: tuple[str, ...] = ()
    again: bool = False
    alone: bool = False
    frozen: str = ""

    @property
    def id(self) -> str:
        """What its results are called by."""
        return f"{self.tract}.{self.sday}"

    def as_json(self) -> dict:
        """For the jobs of a run."""
        return {k: v for k, v in asdict(self).items() if k not in ("tract", "sday")}

    @classmethod
    def from_json(cls, name: str, values: Mapping) -> "Piece":
        """What `as_json` wrote."""
        tract, day = tract_and_day(name)
        groups, to_come = (tuple(values[key]) for key in ("groups", "to_come"))
        return cls(tract, int(day), **{**values, "groups": groups, "to_come": to_come})


def tract_and_day(name: str) -> tuple[str, str]:
    """Of `TRACT.SDAY`, or of `TRACT`, which has no day ("")."""
    strip, _, rest = name.partition("_")
    first, _, day = rest.partition(".")
    return f"{strip}_{first}", day


def strips_of(paths: Paths) -> dict[str, float]:
    """Strips that are known, and what they point to (deg), as photometry has it."""
    from contimg.products.references import strip_declination

    names = {name.partition(".v")[0] for name in paths.references()}
    return {name: strip_declination(paths, name) for name in sorted(names)}


class Sky:
    """Which groups of a site show which tracts on which days.

    `open` are those that may have another image soon, or their first: at work elsewhere, waiting,
    or pending and not of this run.
    """

    def __init__(self, plans: Mapping[str, Plan], config: Config, mine: Collection[str]):
        from contimg.mosaics.tracts import crossed, strip_of

        paths = Paths.of(config)
        strips = strips_of(paths)
        reach_deg = config.imaging.imsize / 2 * config.imaging.cell_arcsec / 3600
        self.reach_deg = reach_deg
        self.shown: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.state: dict[str, tuple[str, str]] = {}  # done, run, open, failed; and why

        def add(group: str, mid_mjd: float | None, dec_deg: float | None, state: str, why: str):
            if mid_mjd is None or dec_deg is None:
                return
            self.state[group] = state, why
            for one in crossed(mid_mjd, strip_of(dec_deg, strips), reach_deg):
                self.shown[one].append(group)

        for group, plan in plans.items():
            state = {"done": "done", "failed": "failed"}.get(plan.action, "open")
            if plan.action == "run" and group in mine:
                state = "run"
            add(group, plan.mid_mjd, plan.app_dec_deg, state, f"{plan.action}: {plan.reason}")
        for group, status in known_groups(paths.ingest_db, files=False).items():
            if group not in plans and status.state == "completed":  # beyond ingest.start and end
                add(group, status.mid_mjd, status.app_dec_deg, "done", "done")

    def of_state(self, tract: str, day: int, *states: str) -> list[str]:
        """Groups of a tract's day that are in one of these states."""
        return [g for g in sorted(self.shown[tract, day]) if self.state[g][0] in states]


def _what_there_is(there: Collection[tuple[str, int]]) -> str:
    """The latest days of strips that have images, as targets."""
    days = sorted({(day, name.partition("_")[0]) for name, day in there}, reverse=True)
    words = [f"epoch/{strip}/{day}" for day, strip in days[:_NAMED]]
    return f"There are {', '.join(words)}" if words else "No strip has images yet"


def asked_pieces(words: Iterable[str], sky: Sky, config: Config) -> dict[str, list]:
    """What is asked for by names like epoch/+16.1/9830 or tract/+16.1_345: tracts and days. Raises
    RequestError where no group that is done, or to be imaged, shows any."""
    from contimg.mosaics.tracts import tract_of

    there = [one for one in sky.shown if sky.of_state(*one, "done", "run")]
    found = {}
    for word in words:
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
                f"{word}: no image that is done, or to be made, shows any of it. "
                f"{_what_there_is(there)}. contimg tracts "
                "lists what there is"
            )
    return found


def due_pieces(sky: Sky, mjd: float) -> list[tuple[str, int]]:
    """Tracts and days that the sky has gone past (`mosaics.make: over`), none of whose groups is
    open."""
    from contimg.mosaics.tracts import STEP_DEG
    from contimg.photometry.epochs import mjd_of_turns

    past = []
    for tract, day in sky.shown:
        end_deg = int(tract.partition("_")[2]) + STEP_DEG + 1.5 * sky.reach_deg
        end_mjd = float(mjd_of_turns(day + end_deg / 360)) + _AFTER_DAYS
        usable = sky.of_state(tract, day, "done", "run")
        if mjd > end_mjd and usable and not sky.of_state(tract, day, "open"):
            past.append((tract, day))
    return sorted(past)


def make_pieces(wanted: Collection[tuple[str, int]], sky: Sky, config: Config) -> dict[str, Piece]:
    """These tracts on their days, by id."""
    if not wanted:
        return {}
    paths = Paths.of(config)
    images, made, alone = _images(paths), _made(paths), _alone(paths)
    options = options_digest(config)
    found = {}
    for tract, day in wanted:
        one = _piece(tract, day, sky, images, made(f"{tract}.{day}"), options)
        found[one.id] = replace(one, alone=one.id in alone)
    return found


def _piece(
    tract: str,
    day: int,
    sky: Sky,
    images: Mapping[str, Mapping],
    made: Mapping | None,
    options: str,
) -> Piece:
    groups = sorted(sky.shown[tract, day])
    to_come = tuple(sky.of_state(tract, day, "run"))
    used = {g for g, one in made["inputs"].items() if one["used"]} if made else set()
    refused: dict[str, str] = {}
    seen: dict[str, str | None] = {}
    frozen = ""
    for group in groups:
        state, why = sky.state[group]
        image = images.get(group)
        if state == "run":
            continue
        if state != "done" or image is None:
            refused[group] = why if state != "done" else "it has no image in the index"
            if group in used and state == "open":
                frozen = f"{group}, which it has, is at work or waits ({why})"
        elif image["deleted_at"]:
            refused[group] = "retention deleted its image"
            if group in used:
                frozen = f"retention deleted the image of {group}, which it has"
                seen[group] = made["inputs"][group]["checksum"]
        else:
            seen[group] = None if image["unpublishable"] else image["checksum"]
            if image["unpublishable"]:
                refused[group] = image["unpublishable"]
    differs = made is not None and (made["seen"] != seen or made["options"] != options)
    if frozen and differs:
        return Piece(tract, day, frozen=frozen)
    again = bool(made and not to_come and differs)
    return Piece(tract, day, tuple(groups), refused, seen, to_come, again)


def undone(found: Mapping[str, Piece], config: Config) -> list[str]:
    """Those whose results are not there, or older than what they follow from."""
    paths, days = Paths.of(config), Counter(one.tract for one in found.values())

    def age(name: str, rule: str) -> int:
        path = paths.result(name, rule)
        return path.stat().st_mtime_ns if path.exists() else 0

    missing = []
    for name, one in found.items():
        if one.frozen:
            continue
        day, deep = age(name, DAY), age(one.tract, DEEP)
        follow = [deep, age(name, DIFFERENCE)]
        for rule, which in ((CATALOGUE, config.mosaics.catalogues), (HIPS, config.mosaics.hips)):
            follow += [age(name, rule)] if "day" in which else []
            if "deep" in which and age(one.tract, rule) < deep:
                follow.append(0)
        is_old = not day or min(follow) < day
        if is_old or one.again or one.to_come or (one.alone and days[one.tract] > 1):
            missing.append(name)
    return missing


def _has(session: Session | None, table: Any) -> bool:
    """Whether a database is there and has a table; an earlier contimg's has not."""
    if session is None:
        return False
    name = table.__tablename__
    asked = f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{name}'"
    return session.connection().exec_driver_sql(asked).first() is not None


def _alone(paths: Paths) -> set[str]:
    """Days of tracts that had no other day to be compared with."""
    with db.reading(paths.sources_db) as session:
        if not _has(session, Difference):
            return set()
        rows = session.execute(select(Difference.tract, Difference.sday).where(Difference.alone))
        return {f"{row.tract}.{row.sday}" for row in rows}


def _made(paths: Paths):
    """Gives what a tract's day was made of: inputs, seen, options; None where it was not made. From
    the index, or, where that was not told of it yet, from its result."""
    rows = {row["name"]: row for row in listed(paths, kind=DAY)}

    def made(name: str) -> Mapping | None:
        path = paths.result(name, DAY)
        if not path.exists():
            return None
        row = rows.get(name)
        if row is None or row["changed_ns"] != path.stat().st_mtime_ns:
            return found_json(path)
        return row

    return made


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


def options_digest(config: Config) -> str:
    """Of the configuration that mosaics follow from."""
    names = {"cell_arcsec", "height_deg", "beam_arcsec", "most_beam_off"}
    words = config.mosaics.model_dump_json(include=names)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def mark(session: Session) -> None:
    """Which mosaics must not be published, as their images are now; in a session of the index."""
    reasons: dict[str, str] = {}
    rows = session.execute(
        select(Image.group_id, Image.unpublishable).where(
            Image.type == "pbcor", Image.unpublishable.is_not(None), Image.deleted_at.is_(None)
        )
    )
    bad = {row.group_id: row.unpublishable for row in rows}
    days: dict[tuple[str, str], str | None] = {}
    row: Any
    for row in session.execute(
        select(Mosaic.name, Mosaic.tract, Mosaic.sday, Mosaic.inputs, Mosaic.checksum).where(
            Mosaic.kind == DAY
        )
    ):
        used = [group for group, one in json.loads(row.inputs).items() if one["used"]]
        if wrong := [group for group in used if group in bad]:
            reasons[row.name] = f"it has the image of {wrong[0]}: {bad[wrong[0]]}"
        days[row.tract, str(row.sday)] = None if row.name in reasons else row.checksum
    for row in session.execute(
        select(Mosaic.name, Mosaic.tract, Mosaic.inputs).where(Mosaic.kind == DEEP)
    ):
        for day, one in json.loads(row.inputs).items():
            if one["in_sum"] and days.get((row.tract, day), one["in_sum"]) != one["in_sum"]:
                reasons[row.name] = f"it has day {day} as it must not be any more"
    for row in session.execute(select(Mosaic.kind, Mosaic.name, Mosaic.unpublishable)).all():
        if row.unpublishable != reasons.get(row.name):
            this = (Mosaic.kind == row.kind, Mosaic.name == row.name)
            why = reasons.get(row.name)
            session.execute(update(Mosaic).where(*this).values(unpublishable=why))


def record(config: Config) -> int:
    """Bring the index up to date with the mosaics that are there, and the sources with what they
    show; returns how many rows are new."""
    return _record_images(Paths.of(config)) + _record_changes(Paths.of(config))


def _record_changes(paths: Paths) -> int:
    there = {name: paths.result(name, DIFFERENCE) for name in paths.with_result(DIFFERENCE)}
    with db.reading(paths.sources_db) as session:
        if not there and not (_has(session, Difference) and session.scalar(select(Difference))):
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
    others, alone = len(made.get("others", ())), made.get("skipped") == ALONE
    session.add(Difference(**of_day, others=others, alone=alone, changed_ns=changed_ns))
    if made.get("too_many"):  # the image is at fault
        return
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
    if not there and not listed(paths):  # as on most sites at the end of most runs
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
        session.flush()
        mark(session)
    return new


def _row(kind: str, name: str, made: Mapping, changed_ns: int) -> Mosaic:
    images = made["images"]
    path = images.get("fits")
    return Mosaic(
        kind=kind,
        name=name,
        tract=made["tract"],
        strip=made["strip"],
        sday=made.get("sday"),
        path=path,
        weight_path=images.get("weight.fits"),
        checksum=made.get("checksums", {}).get(images.get("fits")),
        bytes=made.get("bytes"),
        verdict=made["verdict"],
        inputs=json.dumps(made["inputs"]),
        options=made["options"],
        seen=json.dumps(made.get("seen", {})),
        used=sum(one["used"] for one in made["inputs"].values()),
        created_at=now(),
        changed_ns=changed_ns,
        deleted_at=now() if path and not Path(path).exists() else None,
        unpublishable=None,
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


def in_deep(config: Config, before: str) -> list[str]:
    """Days, made before a time (UTC), that the sums of their tracts have as they are and that were
    compared with others: their images are not needed any more."""
    paths = Paths.of(config)
    wanted = [CATALOGUE] * ("day" in config.mosaics.catalogues) + [HIPS] * (
        "day" in config.mosaics.hips
    )
    sums = {row["tract"]: row["inputs"] for row in listed(paths, kind=DEEP)}
    followed = set(paths.with_result(DIFFERENCE)).intersection(*map(paths.with_result, wanted))
    followed -= _alone(paths)
    found = []
    for row in listed(paths, kind=DAY):
        held = sums.get(row["tract"], {}).get(str(row["sday"]), {})
        same = held.get("in_sum") == row["checksum"]
        is_old = row["path"] and not row["deleted_at"] and row["created_at"] <= before
        if is_old and same and row["name"] in followed:
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
        if not _has(session, Mosaic):
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
    days = {one: groups for one, groups in days.items() if groups}
    if at is not None and not days:
        raise RequestError(f"{about['name']}: none of its images shows {at[0]:g},{at[1]:g}")
    return {"mosaic": about, "days": days}


def _shows(paths: Paths, group: str, at: tuple[float, float]) -> bool:
    from contimg.sky.geometry import separation_deg

    imaged = found_json(paths.result(group, "image"))
    if imaged is None:
        return True  # better one too many
    away = separation_deg(imaged["centre_deg"][0], imaged["centre_deg"][1], at[0], at[1])
    return float(away) < imaged["diameter_deg"] / 2


def not_made(config: Config) -> dict[str, int]:
    """Targets (epoch/STRIP/DAY) with images that are done and in no mosaic, and how many tracts
    each has; the latest day first."""
    there = {(row["tract"], row["sday"]) for row in listed(Paths.of(config), kind=DAY)}
    missing = Counter(
        f"epoch/{tract.partition('_')[0]}/{day}"
        for tract, day in Sky({}, config, ()).shown
        if (tract, day) not in there
    )
    order = sorted(missing, key=lambda name: int(name.rpartition("/")[2]), reverse=True)
    return {name: missing[name] for name in order}


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
        if not _has(session, Mosaic):
            return []
        asked = select(Mosaic).order_by(Mosaic.tract, Mosaic.sday)
        for column, value in ((Mosaic.kind, kind), (Mosaic.tract, tract), (Mosaic.strip, strip)):
            asked = asked.where(column == value) if value else asked
        rows = [columns_of(row) for row in session.scalars(asked)]
    for row in rows:
        row["inputs"], row["seen"] = json.loads(row["inputs"]), json.loads(row["seen"])
    return rows
