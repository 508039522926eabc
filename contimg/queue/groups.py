"""Which files belong together: anchor clustering of file names, with the headers as the judge where
names are ambiguous.

The 16 nodes name their files by their own opening times, which differ by seconds, sometimes by a
minute; the next group starts 309 s later. The earliest file that belongs to no group yet is the
anchor of a new one and gives it its id; files within a tolerance after an anchor join it. The
rules, case by case, are in docs/ingest.md.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contimg.visibilities.uvh5 import Outline, parse_name, timestamp_s

_SAME_START_S = 1.0  # identical in the files of a group; a tenth of an integration
_DAY_S = 86400.0


@dataclass(frozen=True)
class RawFile:
    """A finished subband file by its name, and what is known of it."""

    path: Path
    timestamp: str
    subband: int
    size: int = 0
    changed_s: float = 0.0  # last change of its content (mtime), s since 1970; may be any date
    checked: bool = False  # whether it was looked into, as it is now
    outline: Outline | None = None  # what its header says, if that look found nothing wrong
    reason: str | None = None  # why it does not count
    # last change of it or its name on this disk (ctime)
    arrived_s: float = field(default=0.0, compare=False)
    # why it could not be looked into just now
    trouble: str | None = field(default=None, compare=False)

    @classmethod
    def named(cls, path: Path, size: int = 0, changed_s: float = 0.0, **known) -> "RawFile | None":
        """By its name, and what else is known; None when it is no finished subband file
        (incomplete, hidden, something else)."""
        parsed = parse_name(path.name)
        return cls(path, *parsed, size, changed_s, **known) if parsed else None

    @property
    def time_s(self) -> float:
        """Time in the name, s since 1970."""
        return timestamp_s(self.timestamp)

    def same_content(self, other: "RawFile | None") -> bool:
        """Whether nobody changed what is in it since `other` was seen."""
        return other is not None and self.size == other.size and self.changed_s == other.changed_s


@dataclass(frozen=True)
class FileGroup:
    """Files of one observation."""

    id: str
    # by subband: those that count, or would if a look into them finds nothing
    members: Mapping[int, RawFile]
    others: tuple[RawFile, ...] = ()  # those that do not, each with its reason

    @property
    def files(self) -> dict[int, Path]:
        """Paths of the members, by subband."""
        return {subband: member.path for subband, member in sorted(self.members.items())}

    @property
    def all_files(self) -> tuple[RawFile, ...]:
        """Members and others."""
        return (*self.members.values(), *self.others)

    @property
    def outline(self) -> Outline | None:
        """From the first integration that any member has, of those that were looked into, to the
        last one."""
        known = [m.outline for m in self.members.values() if m.outline]
        return _together(known) if known else None

    @property
    def waiting_since_s(self) -> float:
        """Since when (s since 1970) it waits for more: the arrival of its last file on this
        disk."""
        return max(
            (f.arrived_s or f.changed_s for f in self.all_files), default=timestamp_s(self.id)
        )

    def missing(self, expected_subbands: int) -> tuple[int, ...]:
        """Subbands of the set 0..N-1 that have no file."""
        return tuple(sb for sb in range(expected_subbands) if sb not in self.members)

    def is_checked(self) -> bool:
        """Whether all members were looked into."""
        return all(member.checked for member in self.members.values())

    def unchecked(self) -> list[RawFile]:
        """Members that were not looked into yet, or could not be."""
        return [member for _, member in sorted(self.members.items()) if not member.checked]

    def shortage(self, expected_subbands: int) -> str:
        """What it lacks, in words."""
        text = f"{len(self.members)} of {expected_subbands} subbands"
        if missing := self.missing(expected_subbands):
            text += f"; missing {numbers(missing)}"
            text += "".join(f"; {f.reason}" for f in self.others if f.subband in missing)
        if recent := [f.subband for f in self.unchecked() if not f.trouble]:
            text += f"; {numbers(recent)} came a moment ago, and will be looked into"
        return text + "".join(
            f"; {f.subband:02d} could not be looked into: {f.trouble}"
            for f in self.unchecked()
            if f.trouble
        )


def _together(outlines: Sequence[Outline]) -> Outline:
    """The observation that several files are parts of."""
    start, end = min(o.start_mjd for o in outlines), max(o.end_mjd for o in outlines)
    return replace(outlines[0], start_mjd=start, mid_mjd=0.5 * (start + end))


def numbers(subbands: Iterable[int]) -> str:
    """Subbands as they are written in messages."""
    return ", ".join(f"{sb:02d}" for sb in subbands)


def form_groups(
    files: Iterable[RawFile],
    tolerance_s: float,
    window_s: float,
    expected_subbands: int,
    fixed: Mapping[str, Collection[RawFile]] | None = None,
) -> list[FileGroup]:
    """Groups of `files` and of the `fixed` groups, in order of id.

    tolerance_s  files named at most this long after the anchor belong to it
    window_s     headers can join or part files of groups whose anchors are this close to each other
    fixed        files by id of groups that have left `collecting`: they stay, others may join

    Files with a reason never count; they are listed with the group that they are nearest to.
    """
    files, fixed = list(files), fixed or {}
    good = sorted((f for f in files if f.reason is None), key=_by_name)
    drafts = _by_names(good, tolerance_s, fixed)
    drafts = _by_headers(drafts, window_s, expected_subbands, fixed)
    groups = [_finish(group, drafts[group], fixed.get(group, ())) for group in sorted(drafts)]
    return _with_rejected(groups, [f for f in files if f.reason is not None], tolerance_s)


def _by_name(file: RawFile) -> tuple:
    return file.time_s, file.subband, file.path


def _by_names(files: list[RawFile], tolerance_s: float, fixed: Mapping) -> dict[str, list[RawFile]]:
    """Files by the id of their group, as far as names tell; `files` in order of time."""
    drafts: dict[str, list[RawFile]] = {group: [] for group in fixed}
    anchors = sorted((timestamp_s(group), group) for group in fixed)
    passed = 0  # anchors before this one are too early for the current file
    open_anchor: tuple[float, str] | None = None
    for file in files:
        time_s = file.time_s
        while passed < len(anchors) and time_s - anchors[passed][0] > tolerance_s:
            passed += 1
        if passed < len(anchors) and abs(time_s - anchors[passed][0]) <= tolerance_s:
            group = anchors[passed][1]
        elif open_anchor and time_s - open_anchor[0] <= tolerance_s:
            group = open_anchor[1]
        else:
            group = file.timestamp
            open_anchor = (time_s, group)
            drafts[group] = []
        drafts[group].append(file)
    return drafts


def _by_headers(
    drafts: dict[str, list[RawFile]], window_s: float, expected: int, fixed: Mapping
) -> dict[str, list[RawFile]]:
    """Let the headers judge where names are ambiguous: a subband twice, neighbours that are all
    incomplete; or wrong."""
    settled: dict[str, list[RawFile]] = {}
    pool: list[str] = []
    last_s: float | None = None
    for group in [*sorted(drafts, key=timestamp_s), None]:
        if group is not None:
            files = (*fixed.get(group, ()), *drafts[group])
            subbands = [f.subband for f in files]
            starts = [f.outline.start_mjd for f in files if f.outline]
            agree = not starts or (max(starts) - min(starts)) * _DAY_S < _SAME_START_S
            if agree and len(subbands) == len(set(subbands)) == expected:
                settled[group] = drafts[group]
                continue
        if pool and (group is None or timestamp_s(group) - last_s > window_s):
            settled |= _judge({g: drafts[g] for g in pool}, window_s, fixed, drafts)
            pool = []
        if group is not None:
            pool.append(group)
            last_s = timestamp_s(group)
    return settled


def _judge(
    pool: dict[str, list[RawFile]], window_s: float, fixed: Mapping, taken: Collection[str]
) -> dict[str, list[RawFile]]:
    """Sort the files of neighbouring ambiguous groups by `time_array[0]`; where it is not known, by
    the name."""
    starts = [
        (f.outline.start_mjd, group) for group in pool for f in fixed.get(group, ()) if f.outline
    ]
    sorted_files: dict[str, list[RawFile]] = {group: [] for group in pool if group in fixed}
    unknown: list[tuple[str, RawFile]] = []
    # where the files of a draft went
    went: dict[str, Counter] = {group: Counter() for group in pool}
    loose = [(group, file) for group, files in pool.items() for file in files]
    for group, file in sorted(loose, key=lambda pair: _by_name(pair[1])):
        if file.outline is None:
            unknown.append((group, file))
            continue
        key = next(
            (
                k
                for start, k in starts
                if abs(start - file.outline.start_mjd) * _DAY_S < _SAME_START_S
                and abs(timestamp_s(k) - file.time_s) <= window_s
            ),
            None,
        )
        if key is None:
            key = _free_id(
                file.timestamp, {*sorted_files, *taken} - (pool.keys() - sorted_files.keys())
            )
            starts.append((file.outline.start_mjd, key))
        sorted_files.setdefault(key, []).append(file)
        went[group][key] += 1
    for group, file in unknown:
        key = went[group].most_common(1)[0][0] if went[group] else group
        sorted_files.setdefault(key, []).append(file)
    return _with_parts(sorted_files, window_s, fixed)


def _with_parts(
    sorted_files: dict[str, list[RawFile]], window_s: float, fixed: Mapping
) -> dict[str, list[RawFile]]:
    """Files that lack integrations at the begin start later: those whose data lie within the time
    of another group, of which they are no subband, belong to that one."""
    spans, subbands = {}, {}
    for key, files in sorted_files.items():
        every = (*fixed.get(key, ()), *files)
        subbands[key] = {f.subband for f in every}
        if outlines := [f.outline for f in every if f.outline]:
            spans[key] = _together(outlines)
    margin = _SAME_START_S / _DAY_S
    for part in sorted(spans, key=lambda key: spans[key].end_mjd - spans[key].start_mjd):
        for whole in sorted(spans.keys() - {part}) if part in spans else ():
            one, other = spans[part], spans[whole]
            inside = (
                other.start_mjd - margin <= one.start_mjd and one.end_mjd <= other.end_mjd + margin
            )
            longer = other.end_mjd - other.start_mjd > one.end_mjd - one.start_mjd
            near = abs(timestamp_s(part) - timestamp_s(whole)) <= window_s
            both_fixed = part in fixed and whole in fixed
            if not (inside and longer and near) or both_fixed or subbands[part] & subbands[whole]:
                continue
            del spans[part]
            merged = sorted_files.pop(part) + sorted_files.pop(whole)
            first = next(
                (key for key in (part, whole) if key in fixed), min(part, whole, key=timestamp_s)
            )
            sorted_files[first], subbands[first] = merged, subbands.pop(part) | subbands.pop(whole)
            spans[first] = spans.pop(whole)
            break
    return sorted_files


def _free_id(timestamp: str, taken: Collection[str]) -> str:
    """The timestamp, or when another group has it, the first second after it that is free."""
    time = datetime.fromtimestamp(timestamp_s(timestamp), UTC)
    while timestamp in taken:
        time += timedelta(seconds=1)
        timestamp = f"{time:%Y-%m-%dT%H:%M:%S}"
    return timestamp


def _finish(group: str, files: list[RawFile], fixed: Collection[RawFile]) -> FileGroup:
    """One file a subband: those of a fixed group stay, else the earliest name counts; the odd ones
    are named."""
    outlines = [f.outline for f in (*fixed, *files) if f.outline]
    channels = Counter(o.channels for o in outlines).most_common(1)[0][0] if outlines else 0
    members: dict[int, RawFile] = {}
    others = []
    for file in (*fixed, *files):
        reason = None
        if file.outline and file.outline.channels != channels:
            reason = (
                f"{file.outline.channels} channels, the other files of its group have {channels}"
            )
        elif file.subband in members:
            reason = f"duplicate of {members[file.subband].path.name}"
        if reason:
            others.append(replace(file, reason=f"{file.path.name}: {reason}"))
        else:
            members[file.subband] = file
    return FileGroup(group, members, tuple(others))


def _with_rejected(
    groups: list[FileGroup], rejected: list[RawFile], tolerance_s: float
) -> list[FileGroup]:
    """Bad files join the nearest group of good ones, or make groups that have nothing else."""
    found = {g.id: g for g in groups}
    times = sorted((timestamp_s(g), g) for g in found)
    alone: list[tuple[float, str]] = []
    for file in sorted(rejected, key=_by_name):
        place = bisect(times, (file.time_s, ""))
        near = [
            (abs(time_s - file.time_s), group)
            for time_s, group in (*times[max(place - 1, 0) : place + 1], *alone[-1:])
        ]
        distance_s, group = min(near, default=(float("inf"), ""))
        if distance_s > tolerance_s:
            group = file.timestamp
            alone.append((file.time_s, group))
            found[group] = FileGroup(group, {})
        found[group] = replace(found[group], others=(*found[group].others, file))
    return [found[group] for group in sorted(found)]
