"""All days of a tract as one, as a tree: days in weeks, weeks in all. What the rule `deep` makes.

A node is an image, its weights, and a JSON that lists the days in it; both files' headers have the
digest of that list. A day that is new is added to its week and to all; only where a day was made
again, or files are not what the list says, a node is made anew from what is below it.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

from contimg.config import Config
from contimg.findings import LEVELS
from contimg.imaging.interface import Beam
from contimg.mosaics.combine import Sum
from contimg.mosaics.files import read_mosaic, write_mosaic
from contimg.mosaics.tracts import Tract, tract_of
from contimg.paths import Paths
from contimg.plots.mosaic import plot_mosaic, plot_noise
from contimg.plots.style import save_plot
from contimg.products.mosaics import DAY
from contimg.stages.job import Job
from contimg.stages.mosaic import checksum_of, files_of, keywords, numbers
from contimg.store.files import found_json, write_json

log = logging.getLogger(__name__)
DAYS_A_WEEK = 7
_SUM_OF = "SUMOF"
_ENDINGS = ("fits", "weight.fits")


@dataclass(frozen=True)
class _Node:
    """A sum on disk; `name(ending)` is a file of it."""

    name: Callable[[str], Path]

    @property
    def files(self) -> list[Path]:
        """Image and weights."""
        return [self.name(ending) for ending in _ENDINGS]

    def listed(self) -> dict:
        """Its list: `days` with checksums, and what else is said of it; empty where the files are
        not what it says."""
        found = found_json(self.name("json")) or {}
        if not found or not all(path.exists() for path in self.files):
            return {}
        same = all(
            fits.getheader(path).get(_SUM_OF) == _digest(found["days"]) for path in self.files
        )
        return found if same else {}

    def read(self) -> Sum:
        """The sum."""
        return read_mosaic(*self.files)


def run(job: Job) -> dict:
    """The work of the rule; returns its result."""
    return add_days(job.config, job.group)


def add_days(config: Config, name: str) -> dict:
    """Bring a tract's sums up to date with its days; returns the result of the rule."""
    paths, tract = Paths.of(config), tract_of(name, config.mosaics)
    made = {
        one.rpartition(".")[2]: found_json(paths.result(one, DAY)) or {}
        for one in paths.with_result(DAY, f"{name}.")
    }
    days = {day: one for day, one in made.items() if one.get("images")}
    about = {
        "tract": name,
        "strip": tract.strip,
        "centre_deg": list(tract.centre_deg),
        "shape": list(tract.shape),
        "cell_arcsec": 3600 * tract.cell_deg,
        "region": tract.region,
        "options": max((one["options"] for one in days.values()), default=""),
        "images": {},
        "inputs": {},
        "verdict": "none",
        "coverage": 0.0,
    }
    if not days:
        return about
    tree = _Tree(config, tract, days)
    listed = tree.update()
    used = {day: days[day] for day in listed["days"]}
    inputs = {
        day: {
            "used": listed["days"].get(day) == checksum_of(one),
            "reason": tree.reason(day, listed["days"]),
            "verdict": one["verdict"],
            "noise_jy": one["noise_jy"],
            "checksum": checksum_of(one),
        }
        for day, one in days.items()
    }
    save_plot(lambda: plot_noise(name, listed["history"]), paths.qa(name, "noise"))
    return (
        about
        | _of_days(used)
        | listed["numbers"]
        | {"inputs": inputs, "history": listed["history"]}
        | files_of(dict(zip(_ENDINGS, tree.whole.files, strict=True)))
    )


def _digest(days: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(days), sort_keys=True).encode()).hexdigest()[:16]


def _of_days(days: Mapping[str, Mapping]) -> dict:
    """What days say of their sum."""
    some = next(iter(days.values()))
    return {
        "verdict": max((one["verdict"] for one in days.values()), key=LEVELS.index),
        "begin_mjd": min(one["begin_mjd"] for one in days.values()),
        "end_mjd": max(one["end_mjd"] for one in days.values()),
        "freq_hz": some["freq_hz"],
        "bandwidth_hz": some["bandwidth_hz"],
        "beam_arcsec": some["beam_arcsec"],
    }


class _Tree:
    """A tract's days, weeks, and all. `days`: results of the rule `mosaic`, by day."""

    def __init__(self, config: Config, tract: Tract, days: Mapping[str, Mapping]):
        self.config, self.paths, self.tract, self.days = config, Paths.of(config), tract, days
        self.whole = _Node(lambda ending: self.paths.mosaic(tract.name, "deep", ending))

    def update(self) -> dict:
        """Bring all nodes up to date; returns the list of the whole."""
        weeks: dict[int, list[str]] = defaultdict(list)
        for day in self.days:
            weeks[int(day) // DAYS_A_WEEK].append(day)
        wanted: dict[str, str] = {}
        for week, members in sorted(weeks.items()):
            node = self._week(week)
            of_week = self._possible(node.listed().get("days", {}), members)
            self._bring(node, of_week, lambda mine=of_week: self._leaves(mine))
            wanted |= of_week
        return self._bring(
            self.whole, wanted, lambda: map(_Node.read, map(self._week, sorted(weeks)))
        )

    def reason(self, day: str, used: Mapping[str, str]) -> str | None:
        """Why a day as it is now is not in the sum."""
        if used.get(day) == checksum_of(self.days[day]):
            return None
        if day in used:
            return "it was made again; others of its week are not on disk any more"
        return "it is not on disk any more"

    def _week(self, week: int) -> _Node:
        return _Node(lambda ending: self.paths.mosaic_week(self.tract.name, week, ending))

    def _leaf(self, day: str) -> _Node:
        return _Node(lambda ending: self.paths.mosaic(self.tract.name, day, ending))

    def _on_disk(self, day: str) -> bool:
        return all(path.exists() for path in self._leaf(day).files)

    def _possible(self, held: Mapping[str, str], members: list[str]) -> dict[str, str]:
        """Days of a week, with checksums, that its sum can have: as they are now, where they are on
        disk or in it already; the sum as it was, where it cannot be made anew."""
        now = {day: checksum_of(self.days[day]) for day in members}
        wanted = {d: s for d, s in now.items() if self._on_disk(d) or held.get(d) == s}
        adds_only = held.items() <= wanted.items()
        if adds_only or all(self._on_disk(day) for day in wanted):
            return wanted
        return dict(held)

    def _leaves(self, days: Mapping[str, str]) -> Iterator[Sum]:
        return (self._leaf(day).read().as_one() for day in sorted(days))

    def _bring(
        self, node: _Node, wanted: Mapping[str, str], parts: Callable[[], Iterator[Sum]]
    ) -> dict:
        """Make a node hold the wanted days: by adding those that are new, or else of all its parts.
        Returns its list."""
        listed = node.listed()
        held = listed.get("days", {})
        if listed and held == wanted:
            return listed
        new = {day: wanted[day] for day in wanted.keys() - held.keys()}
        history = listed.get("history", [])
        if listed and held.items() <= wanted.items() and all(map(self._on_disk, new)):
            total, parts_left = node.read(), self._leaves(new)
        else:
            total, parts_left, history = Sum.empty(self.tract.shape), parts(), []
        for part in parts_left:
            total.add(part)
            found = numbers(total)
            history = [*history, {"days": int(total.number.max()), **_noise(found)}]
        log.info("%s: %d days, %d new", node.name("fits"), len(wanted), len(new))
        used = {day: self.days[day] for day in wanted}
        about = _of_days(used) | found | {"centre_deg": self.tract.centre_deg}
        about["inputs"] = {
            day: {"used": True, "verdict": one["verdict"]} for day, one in used.items()
        }
        words = keywords(about, self.config, f"{self.tract.name} {len(wanted)} days")
        write_mosaic(
            image=node.name("fits"),
            weight=node.name("weight.fits"),
            total=total,
            tract=self.tract,
            beam=Beam(*about["beam_arcsec"]),
            keywords=words | {_SUM_OF: _digest(wanted)},
        )
        if node is self.whole:
            title = f"{self.tract.name}: {len(wanted)} days"
            save_plot(
                lambda: plot_mosaic(title, total.image, total.weight, about),
                self.paths.qa(self.tract.name, "mosaic"),
            )
        listed = {"days": dict(wanted), "numbers": found, "history": history}
        write_json(node.name("json"), listed)
        return listed


def _noise(found: Mapping) -> dict:
    return {name: found[name] for name in ("noise_jy", "expected_noise_jy")}
