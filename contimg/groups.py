"""Which files belong together: anchor clustering of file names.

The 16 nodes name their files by their own opening times, which differ by seconds, sometimes by a minute; the next
group starts 309 s later. The earliest file that belongs to no group yet is the anchor of a new one and gives it its
id; files within `tolerance_s` after an anchor join it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from contimg.uvh5 import parse_name


@dataclass(frozen=True)
class FileGroup:
    """Files of one observation."""

    id: str
    files: Mapping[int, Path]  # by subband
    duplicates: tuple[Path, ...] = field(default=())  # a second file of a subband: kept aside, named, not used

    def waiting_since_s(self) -> float:
        """Since when (s since 1970) it waits for more: its time, or the arrival of its last file on this disk."""
        arrivals = [path.stat().st_ctime for path in self.files.values() if path.exists()]
        return max([timestamp_s(self.id), *arrivals])

    def missing(self, expected_subbands: int) -> tuple[int, ...]:
        """Subbands of the set 0..N-1 that have no file."""
        return tuple(sb for sb in range(expected_subbands) if sb not in self.files)


def timestamp_s(timestamp: str) -> float:
    """Seconds since 1970 of a file-name timestamp (UTC)."""
    return datetime.fromisoformat(timestamp).replace(tzinfo=UTC).timestamp()


def cluster(
    paths: Iterable[Path], span_s: float, known: Mapping[str, Mapping[int, Path]] | None = None
) -> list[FileGroup]:
    """Groups of `paths`, oldest first.

    span_s  files named at most this long after the anchor belong to it
    known   groups fixed earlier (id: files by subband): their ids stay, late files join them

    Of two files of one subband the earlier name counts; the other is a duplicate. Names that are no finished subband
    files are passed over.
    """
    known = known or {}
    taken = {path for files in known.values() for path in files.values()}
    files: dict[str, dict[int, Path]] = {group: dict(members) for group, members in known.items()}
    duplicates: dict[str, list[Path]] = {group: [] for group in known}
    named = [(*parsed, path) for path in paths if path not in taken and (parsed := parse_name(path.name))]
    anchors = sorted((timestamp_s(group), group) for group in known)
    fixed = 0  # anchors before this one start too early for the current file
    open_anchor: tuple[float, str] | None = None
    for timestamp, subband, path in sorted(named):
        time_s = timestamp_s(timestamp)
        while fixed < len(anchors) and time_s - anchors[fixed][0] > span_s:
            fixed += 1
        if fixed < len(anchors) and abs(time_s - anchors[fixed][0]) <= span_s:
            group = anchors[fixed][1]
        elif open_anchor and time_s - open_anchor[0] <= span_s:
            group = open_anchor[1]
        else:
            group = timestamp
            open_anchor = (time_s, timestamp)
            files[group], duplicates[group] = {}, []
        if subband in files[group]:
            duplicates[group].append(path)
        else:
            files[group][subband] = path
    return [FileGroup(group, files[group], tuple(duplicates[group])) for group in sorted(files)]
