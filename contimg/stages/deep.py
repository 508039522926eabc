"""All days of a tract as one, as a tree: days in weeks, weeks in all. What the rule `deep` makes.

A node is an image, its weights, and a JSON that lists the days in it; both files' headers have the
digest of that list, and a node whose files are not what its list says is none. A day that is new is
added to its week and to all; only where a day was made again, or files are not what the list says,
a node is made anew from what is below it.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

from contimg.config import Config
from contimg.findings import LEVELS
from contimg.imaging.interface import Beam
from contimg.mosaics.combine import Sum
from contimg.mosaics.files import read_mosaic, write_mosaic
from contimg.mosaics.tracts import Tract, tract_of
from contimg.paths import MOSAIC_ENDINGS, Paths
from contimg.plots.mosaic import plot_mosaic, plot_noise
from contimg.plots.style import save_plot
from contimg.products.mosaics import DAY
from contimg.stages.job import Job
from contimg.stages.mosaic import checksum_of, files_of, keywords, numbers, of_tract
from contimg.store.files import found_json, remove, write_json

log = logging.getLogger(__name__)
DAYS_A_WEEK = 7
SUM_OF = "SUMOF"  # keyword: digest of the days in a sum


@dataclass(frozen=True)
class _Node:
    """A sum on disk: `{stem}.json`, and beside it `{stem}.fits` and `{stem}.weight.fits`; of a
    week, whose days may be gone, with the digest in their names, so that what the list speaks of is
    there until another list is."""

    stem: Path
    by_digest: bool = False

    @property
    def list_path(self) -> Path:
        """The list."""
        return self._beside("json")

    def files(self, digest: str) -> list[Path]:
        """Image and weights of a sum with a digest."""
        return [
            self._beside(f"{digest}.{end}" if self.by_digest else end) for end in MOSAIC_ENDINGS
        ]

    def _beside(self, ending: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{ending}")

    def listed(self, kind: str) -> dict:
        """Its list: `days` with checksums, and what else is said of it; empty where the files are
        not what it says, or of another kind (pixels, beam)."""
        found = found_json(self.list_path) or {}
        if not found or found["kind"] != kind:
            return {}
        digest = digest_of(found["days"])
        files = self.files(digest)
        if not all(path.exists() for path in files):
            return {}
        same = all(fits.getheader(path).get(SUM_OF) == digest for path in files)
        return found if same else {}

    def read(self, days: Mapping[str, str]) -> Sum:
        """The sum of these days."""
        return read_mosaic(*self.files(digest_of(days)))

    def remove(self, but: Sequence[Path] = ()) -> None:
        """What is there of it, but some files."""
        for path in self.stem.parent.glob(f"{self.stem.name}.*fits"):
            if path not in but and ".catalogue." not in path.name:
                remove(path)
        if not but:
            remove(self.list_path)


def run(job: Job) -> dict:
    """The work of the rule; returns its result."""
    return add_days(job.config, job.group)


def digest_of(days: Mapping[str, str]) -> str:
    """Of a list of days with checksums."""
    return hashlib.sha256(json.dumps(dict(days), sort_keys=True).encode()).hexdigest()[:16]


def add_days(config: Config, name: str) -> dict:
    """Bring a tract's sums up to date with its days; returns the result of the rule."""
    paths, tract = Paths.of(config), tract_of(name, config.mosaics)
    made = {
        one.rpartition(".")[2]: found_json(paths.result(one, DAY)) or {}
        for one in paths.with_result(DAY, f"{name}.")
    }
    days = {day: one for day, one in made.items() if one.get("images")}
    about = of_tract(tract, config)
    tree = _Tree(config, tract, days)
    listed = tree.update()
    if not listed:
        return about | {"inputs": {day: tree.input(day, {}) for day in days}}
    held = listed["days"]
    # a day that is in the sum and has no image any more is said, too
    inputs = {day: tree.input(day, held) for day in sorted({*days, *held}, key=int)}
    save_plot(lambda: plot_noise(name, listed["history"]), paths.qa(name, "noise"))
    files = dict(zip(MOSAIC_ENDINGS, tree.whole.files(digest_of(held)), strict=True))
    return (
        about
        | listed["about"]
        | listed["numbers"]
        | {"inputs": inputs, "history": listed["history"], "sum_of": digest_of(held)}
        | files_of(files)
    )


def _of_days(days: Sequence[Mapping]) -> dict:
    """What days say of their sum."""
    return {
        "verdict": max((one["verdict"] for one in days), key=LEVELS.index),
        "begin_mjd": min(one["begin_mjd"] for one in days),
        "end_mjd": max(one["end_mjd"] for one in days),
        **{name: days[0][name] for name in ("freq_hz", "bandwidth_hz", "beam_arcsec")},
    }


class _Tree:
    """A tract's days, weeks, and all. `days`: results of the rule `mosaic`, by day; those with the
    pixels and the beam of the last one are summed."""

    def __init__(self, config: Config, tract: Tract, days: Mapping[str, Mapping]):
        self.config, self.paths, self.tract, self.days = config, Paths.of(config), tract, days
        self.whole = _Node(self.paths.mosaic(tract.name, "deep", "x").with_name("deep"))
        last = days[max(days, key=int)] if days else {}
        self.kind = self._kind_of(last) if days else ""
        self.pixels = json.dumps([list(tract.shape), 3600 * tract.cell_deg])

    @staticmethod
    def _kind_of(made: Mapping) -> str:
        return json.dumps([made["shape"], made["cell_arcsec"], made["beam_arcsec"]])

    def _same(self, day: str) -> bool:
        made = self.days[day]
        pixels = json.dumps([made["shape"], made["cell_arcsec"]])
        return self._kind_of(made) == self.kind and pixels == self.pixels

    def update(self) -> dict:
        """Bring all nodes up to date; returns the list of the whole, empty where there is none."""
        weeks: dict[int, list[str]] = defaultdict(list)
        for day in filter(self._same, self.days):
            weeks[int(day) // DAYS_A_WEEK].append(day)
        # weeks whose days were all withdrawn
        for path in self.paths.mosaic_week(self.tract.name, 0).parent.glob("*.json"):
            weeks.setdefault(int(path.stem), [])
        wanted: dict[str, str] = {}
        parts: list[tuple[_Node, dict[str, str]]] = []
        for week, members in sorted(weeks.items()):
            node = self._week(week)
            of_week = self._possible(node.listed(self.kind).get("days", {}), members)
            if not of_week:
                node.remove()
                continue
            self._bring(node, of_week, lambda mine=of_week: self._leaves(mine))
            parts.append((node, of_week))
            wanted |= of_week
        if not wanted:
            self.whole.remove()
            return {}
        return self._bring(self.whole, wanted, lambda: (node.read(days) for node, days in parts))

    def input(self, day: str, held: Mapping[str, str]) -> dict:
        """What is said of a day: whether it is in the sum as it is now, and as what."""
        made = self.days.get(day, {})
        now = checksum_of(made) if made else None
        used = bool(made) and held.get(day) == now
        return {
            "used": used,
            "in_sum": held.get(day),
            "reason": None if used else self._reason(day, held),
            "verdict": made.get("verdict"),
            "noise_jy": made.get("noise_jy"),
            "checksum": now,
        }

    def _reason(self, day: str, held: Mapping[str, str]) -> str:
        if day in held:
            return "the sum has it as it was; others of its week are not on disk any more"
        if not self._same(day):
            return f"it has other pixels or another beam: make tract/{self.tract.name} again"
        return "it is not on disk any more"

    def _week(self, week: int) -> _Node:
        return _Node(
            self.paths.mosaic_week(self.tract.name, week).with_name(str(week)), by_digest=True
        )

    def _files(self, day: str) -> list[Path]:
        return list(self.paths.mosaic_files(self.tract.name, day).values())

    def _on_disk(self, day: str) -> bool:
        return all(path.exists() for path in self._files(day))

    def _possible(self, held: Mapping[str, str], members: Sequence[str]) -> dict[str, str]:
        """Days of a week, with checksums, that its sum can have: as they are now, where they are on
        disk or in it already; the sum as it was, where it cannot be made anew."""
        now = {day: checksum_of(self.days[day]) for day in members}
        wanted = {d: s for d, s in now.items() if self._on_disk(d) or held.get(d) == s}
        adds_only = held.items() <= wanted.items()
        if adds_only or all(self._on_disk(day) for day in wanted):
            return wanted
        return dict(held)

    def _leaves(self, days: Mapping[str, str]) -> Iterator[Sum]:
        return (read_mosaic(*self._files(day)).as_one() for day in sorted(days))

    def _bring(
        self, node: _Node, wanted: Mapping[str, str], parts: Callable[[], Iterator[Sum]]
    ) -> dict:
        """Make a node hold the wanted days: by adding those that are new, or else of all its parts.
        Returns its list."""
        listed = node.listed(self.kind)
        held = listed.get("days", {})
        if listed and held == wanted:
            return listed
        new = {day: wanted[day] for day in wanted.keys() - held.keys()}
        history = listed.get("history", [])
        if listed and held.items() <= wanted.items() and all(map(self._on_disk, new)):
            total, left = node.read(held), self._leaves(new)
        else:
            total, left, history = Sum.empty(self.tract.shape), parts(), []
        for part in left:
            total.add(part)
            found = numbers(total)
            noise = {name: found[name] for name in ("noise_jy", "expected_noise_jy")}
            history = [*history, {"days": int(total.number.max()), **noise}]
        log.info("%s: %d days, %d new", node.stem, len(wanted), len(new))
        # of days that were withdrawn and cannot be taken out only the list is left
        of_days = [self.days[day] for day in wanted if day in self.days]
        about = _of_days(of_days) if of_days else listed["about"]
        inputs = {day: {"used": True, "verdict": about["verdict"]} for day in wanted}
        inputs |= {
            d: inputs[d] | {"verdict": self.days[d]["verdict"]} for d in wanted if d in self.days
        }
        centre = {"centre_deg": self.tract.centre_deg}
        words = keywords(
            about | found | centre | {"inputs": inputs},
            self.config,
            f"{self.tract.name} {len(wanted)} days",
        )
        image, weight = node.files(digest_of(wanted))
        write_mosaic(
            image=image,
            weight=weight,
            total=total,
            tract=self.tract,
            beam=Beam(*about["beam_arcsec"]),
            keywords=words | {SUM_OF: digest_of(wanted)},
        )
        if node is self.whole:
            title = f"{self.tract.name}: {len(wanted)} days"
            save_plot(
                lambda: plot_mosaic(title, total.image, total.weight, about | found | centre),
                self.paths.qa(self.tract.name, "mosaic"),
            )
        listed = {
            "kind": self.kind,
            "days": dict(wanted),
            "about": about,
            "numbers": found,
            "history": history,
        }
        write_json(node.list_path, listed)
        node.remove(but=[image, weight])
        return listed
