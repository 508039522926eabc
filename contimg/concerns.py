"""What is wrong now: a cause each, in words, with the command that mends it. For the page's
headline, `contimg status` and messages. Read-only."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from contimg.config import Config
from contimg.paths import GROUP_PATTERN, Paths
from contimg.products.retention import room
from contimg.products.tables import Image
from contimg.report import failed, how_to_mend
from contimg.report import status as status_of
from contimg.store import db

WARN, FAIL = "warn", "fail"
_BEHIND_S = 600.0  # from here on it is said; from notify.behind_minutes on it is wrong
_RECENT_S = 86400.0
_GROUP = re.compile(GROUP_PATTERN)
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Concern:
    """One cause."""

    key: str  # the same for as long as it is the same cause
    level: str  # warn or fail
    words: str
    mend: str  # what to do
    place_deg: tuple[float, float] | None = None  # of a candidate in the sky
    ends: bool = True  # that it is not seen any more means that it is over

    @property
    def kind(self) -> str:
        """What sort of thing is wrong: watcher, failed, disk, ..."""
        return self.key.partition(" ")[0]


def duration(seconds: float) -> str:
    """A time span for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.0f} days"


def concerns(config: Config, status: Mapping) -> list[Concern]:
    """What is wrong with the pipeline, the gravest first. `status` is that of contimg.report."""
    found = [
        *_work(config, status),
        *_data(config, status),
        *_groups(config),
        *_images(config),
        *(
            Concern(_key("mosaic", line), WARN, line, "mend the cause; the next run makes it")
            for line in status["mosaics_failed"]
        ),
    ]
    return sorted(found, key=lambda one: one.level != FAIL)


def _work(config: Config, status: Mapping) -> Iterator[Concern]:
    """The watcher, runs, how far behind, the disk."""
    watcher, behind_s = status["watcher"], status.get("behind_s", 0)
    if watcher and watcher["problem"]:
        words = f"the watcher has a problem: {watcher['problem']}"
        mend = "mend the cause: it goes on by itself"
        yield Concern(_key("watcher", watcher["problem"]), FAIL, words, mend)
    elif refused := status["refused"]:
        words = f"the last run did not begin ({refused['at']}): {refused['error']}"
        mend = "mend the cause, then: snakemake --profile local"
        yield Concern(_key("refused", refused["error"]), FAIL, words, mend)
    if watcher is None and _watched(config):
        words = "no watcher is at work: nothing is done with what comes"
        yield Concern("nowatcher", WARN, words, "contimg watch --configfile YOURS")
    if behind_s > _BEHIND_S:
        grave = behind_s > 60 * config.notify.behind_minutes
        words = f"behind by {duration(behind_s)}: {status['oldest_unfinished']} is not done"
        mend = "contimg status says what runs; contimg backlog gives old groups to a cluster"
        level = FAIL if grave else WARN  # told again when it becomes grave
        yield Concern(f"behind {level}", level, words, mend)
    disk = (status.get("disk") or room(config)) if _watched(config) else {"hours_left": None}
    if disk["hours_left"] is not None and disk["hours_left"] < config.notify.disk_hours:
        words = (
            f"the disk of {config.paths.products} does for {disk['hours_left']:.1f} h more "
            f"({disk['free_bytes'] / 1e9:.0f} GB)"
        )
        yield Concern("disk", FAIL, words, "contimg retention says what may go")


def _watched(config: Config) -> bool:
    """Whether a watcher has ever been at work here: data are expected, day and night."""
    return Paths.of(config).watcher.exists()


def _data(config: Config, status: Mapping) -> Iterator[Concern]:
    """Whether data come, and can be calibrated."""
    if (newest := status.get("observed_until")) and _watched(config):
        age_s = (
            datetime.now(UTC) - datetime.fromisoformat(newest).replace(tzinfo=UTC)
        ).total_seconds()
        if age_s > 60 * config.notify.silent_minutes:
            words = f"the newest data are {duration(age_s)} old ({newest})"
            mend = f"look whether the telescope writes to {config.paths.incoming}"
            yield Concern("silent", WARN, words, mend)
    if waiting := status["counts"].get("waiting", 0):
        waits = _plural(waiting, "group waits for a calibration", "groups wait for a calibration")
        mend = "contimg registry lists sets; a group with a calibrator makes one by itself"
        yield Concern("calibration", WARN, f"{waiting} {waits}", mend)


def _groups(config: Config) -> Iterator[Concern]:
    """Failed groups, by cause."""
    known = [(one["group"], one["error"] or "") for one in failed(config)]
    for key, group, others, why in _by_cause("failed", known):
        mend = how_to_mend(config, group).get("mend", "the next look says")
        yield Concern(key, FAIL, f"{group}{others} failed: {why}", mend)


def _by_cause(kind: str, known: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str, str]]:
    """Of groups and why each is wrong, in order: for each cause its key, its last group, how many
    more, and why."""
    causes = defaultdict(list)
    for group, why in known:
        causes[_key(kind, why)].append((group, why))
    for key, mine in causes.items():
        group, why = mine[-1]
        yield key, group, f" and {len(mine) - 1} more" if len(mine) > 1 else "", why


def _images(config: Config) -> Iterator[Concern]:
    """Images of the last day that must not be used, by cause."""
    since = db.utc(datetime.now(UTC).timestamp() - _RECENT_S)
    bad = (Image.type == "pbcor", Image.deleted_at.is_(None), Image.unpublishable.is_not(None))
    query = select(Image.group_id, Image.unpublishable).where(*bad, Image.created_at >= since)
    with db.reading(Paths.of(config).products_db) as session:
        rows = () if session is None else session.execute(query.order_by(Image.group_id))
        known = [(row.group_id, row.unpublishable) for row in rows]
    for key, group, others, why in _by_cause("image", known):
        words = f"the image of {group}{others} must not be used: {why}"
        mend = f"contimg why {group} says why"
        yield Concern(key, WARN, words, mend, ends=False)


def candidates(config: Config) -> list[Concern]:
    """What is new or varies in the sky."""
    from contimg.products import catalogue  # with pandas: not in every command

    paths = Paths.of(config)
    found = [
        Concern(
            f"new {one['name']}",
            WARN,
            f"new: {one['name']}, {1e3 * one['flux_jy']:.1f} mJy ({one['strip']})",
            "contimg sources --new",
            (one["ra_deg"], one["dec_deg"]),
            ends=False,
        )
        for one in catalogue.new_sources(paths)
    ]
    rows, _ = catalogue.sources(paths, variable=True, order="false_alarms")
    return found + [
        Concern(
            f"variable {one['source']}",
            WARN,
            f"varies: {one['source']}, {1e3 * one['mean_jy']:.1f} mJy in the mean, eta "
            f"{one['eta']:.1f}",
            f"contimg lightcurve {one['source']}",
            (one["ra_deg"], one["dec_deg"]),
            ends=False,
        )
        for one in rows
    ]


def look(config: Config) -> list[Concern]:
    """What is wrong now, and, where notify.candidates says so, what is new in the sky."""
    found = concerns(config, status_of(config))
    return found + (candidates(config) if config.notify.candidates else [])


def headline(status: Mapping, found: Sequence[Concern]) -> tuple[str, str]:
    """(good, warn or fail; in words) how it is, in one line: the gravest, and how many more."""
    if found:
        words = found[0].words[0].upper() + found[0].words[1:]
        more = len(found) - 1
        return found[0].level, words + (f"; {more} {_plural(more, 'thing')} more" if more else "")
    if not status["counts"]:
        return WARN, "The queue is empty: nothing came yet"
    if status["watcher"]:
        return "good", "Keeping up"
    return WARN, f"Up to date, until {status['observed_until']}; no watcher"


def _plural(number: int, one: str, many: str | None = None) -> str:
    return one if number == 1 else many or f"{one}s"


def _key(kind: str, words: str) -> str:
    """The same for the same cause, whichever group and number it names."""
    cause = _NUMBER.sub("#", _GROUP.sub("GROUP", words))
    return f"{kind} {hashlib.sha256(cause.encode()).hexdigest()[:12]}"
