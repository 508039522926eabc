"""What lies in the incoming folder: listing, a look into every new file, groups. Read-only."""

import errno
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from contimg.chain import LAST
from contimg.config import Config, IngestConfig
from contimg.errors import AbsentError, SubbandError
from contimg.paths import Paths
from contimg.queue.groups import FileGroup, RawFile, form_groups
from contimg.queue.moves import GroupStatus, finished_files, needs_no_files
from contimg.queue.tables import RUNNING
from contimg.visibilities.uvh5 import inspect, parse_name


def look(
    config: Config,
    known: Mapping[str, GroupStatus],
    now_s: float,
    seconds: float = float("inf"),
    wait: bool = False,
    also: Collection[str] = (),
) -> list[FileGroup]:
    """Groups asked for, of the files in the incoming folder and of those that the queue remembers.

    known    what the queue says; ids are fixed once a group has left `collecting`
    also     groups asked for by name, whatever `ingest` asks for; files of others are not looked at
    seconds  how long to look into new files; the rest stays unchecked, for the next time
    wait     whether to wait for files that were written to a moment ago (at most `ingest.settle_s`)

    A file that was seen before, and has not changed, is not opened again; nor are those of finished
    groups.
    """
    options = config.ingest
    first, last = options.span(also)
    known = {group: status for group, status in known.items() if first <= group <= last}
    files = _files(config, known, first, last)
    groups = _clustered(files, known, options)
    if wait:
        complete = [
            f for g in groups if not g.missing(options.expected_subbands) for f in g.unchecked()
        ]
        rest_s = options.settle_s - min(
            (_quiet_s(f, now_s) for f in complete), default=options.settle_s
        )
        if rest_s > 0:
            time.sleep(rest_s)
            return look(config, known, time.time(), seconds, also=also)
    deadline = time.monotonic() + seconds
    given_up_s = now_s - options.collecting_timeout_s
    looked = {
        f.path: _check(files[f.path], given_up_s)
        for f in new_files(config, known, groups, now_s)
        if time.monotonic() < deadline
    }
    groups = _clustered(files | looked, known, options) if looked else groups
    return [group for group in groups if options.takes(group.id) or group.id in also]


def new_files(
    config: Config, known: Mapping[str, GroupStatus], groups: list[FileGroup], now_s: float
) -> list[RawFile]:
    """Files that have settled, and that nobody has looked into, in the order in which their groups
    are wanted."""
    options, paths = config.ingest, Paths.of(config)
    new = []
    for group in reversed(groups) if options.order == "newest" else groups:
        files = [f for f in group.all_files if not f.checked]
        if not files:
            continue
        status = known.get(group.id)
        # it is begun: only what came since then is new
        if status and status.state in (*RUNNING, "completed"):
            recorded = {f.path for f in status.files}
            files = [f for f in files if f.path not in recorded]
        elif paths.result(group.id, LAST).exists():
            continue
        new += [f for f in files if _quiet_s(f, now_s) >= options.settle_s]
    return new


# files that the disk's clock has in our future, and since when we know them
_ahead: dict[Path, tuple[RawFile, float]] = {}


def _quiet_s(file: RawFile, now_s: float) -> float:
    """For how long nobody has written to a file, s; where the disk's clock is ahead of ours, since
    it was first seen so."""
    if file.arrived_s <= now_s:
        _ahead.pop(file.path, None)
        return now_s - file.arrived_s
    first, since_s = _ahead.get(file.path, (None, 0.0))
    if first is None or (first.size, first.changed_s, first.arrived_s) != (
        file.size,
        file.changed_s,
        file.arrived_s,
    ):
        since_s = time.monotonic()
        _ahead[file.path] = file, since_s
    return time.monotonic() - since_s


def _files(
    config: Config, known: Mapping[str, GroupStatus], first: str, last: str
) -> dict[Path, RawFile]:
    """Every finished subband file named so, with what was found when it was looked into, if it is
    still the same."""
    finished = finished_files(Paths.of(config).ingest_db)
    folder, paths = config.paths.incoming.resolve(), Paths.of(config)
    seen = _listed(folder, config.ingest.expected_subbands, first, last, finished)
    for status in known.values():
        for recorded in status.files:
            file = seen.get(recorded.path)
            if recorded.reason is None and (
                status.state == "completed" or (file is None and needs_no_files(paths, status))
            ):
                seen[recorded.path] = (
                    recorded  # its raw files may be gone, or others now: it is done
                )
            elif file is None:
                if recorded.path.exists() and recorded.path.parent != folder:
                    stat = recorded.path.stat()
                    file = RawFile.named(
                        recorded.path, stat.st_size, stat.st_mtime, arrived_s=stat.st_ctime
                    )
                    seen[recorded.path] = _remember(file, recorded)
            else:
                seen[recorded.path] = _remember(file, recorded)
    return seen


def _listed(
    folder: Path, expected_subbands: int, first: str, last: str, passed_over: set[str]
) -> dict[Path, RawFile]:
    seen = {}
    if not folder.is_dir():
        raise AbsentError(
            f"{folder}: the incoming folder (paths.incoming) is not there: is the disk mounted, "
            "the name right?"
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            parsed = parse_name(entry.name)
            if (
                parsed is None
                or parsed[1] >= expected_subbands
                or not first <= parsed[0] <= last
                or entry.path in passed_over
            ):
                continue
            try:
                stat = entry.stat()
            except OSError as error:
                # gone since the folder was listed, or a dangling link
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    continue
                raise
            path = folder / entry.name
            seen[path] = RawFile(
                path, *parsed, stat.st_size, stat.st_mtime, arrived_s=stat.st_ctime
            )
    return seen


def _remember(file: RawFile, recorded: RawFile) -> RawFile:
    """What an earlier look found; only what the file itself is guilty of, not that it was a
    duplicate."""
    if not recorded.same_content(file):
        return file
    if not recorded.checked:
        # of one that could not be looked into for long
        return replace(file, reason=recorded.reason)
    if recorded.outline and recorded.reason is None:
        return replace(recorded, changed_s=file.changed_s, arrived_s=file.arrived_s)
    return replace(
        file,
        checked=True,
        outline=recorded.outline,
        reason=None if recorded.outline else recorded.reason,
    )


def _clustered(
    files: Mapping[Path, RawFile], known: Mapping[str, GroupStatus], options: IngestConfig
) -> list[FileGroup]:
    fixed = {
        group: [
            now
            for f in status.files
            if f.reason is None and (now := files.get(f.path)) and now.reason is None
        ]
        for group, status in known.items()
        if status.state != "collecting"
    }
    taken = {f.path for members in fixed.values() for f in members}
    window_s = options.chunk_minutes * 60
    return form_groups(
        [f for path, f in files.items() if path not in taken],
        min(options.tolerance_s, window_s),
        window_s,
        options.expected_subbands,
        fixed,
    )


def _check(file: RawFile, given_up_s: float) -> RawFile:
    """Look into a file: its outline, or the reason why it does not count. One that the disk would
    not let us look into may be good a moment later; it does not count if it came before
    `given_up_s`."""
    try:
        return replace(file, checked=True, outline=inspect(file.path), reason=None)
    except SubbandError as error:
        return replace(file, checked=True, reason=f"{type(error).__name__}: {error}")
    except OSError as error:
        late = file.arrived_s < given_up_s
        return replace(
            file,
            trouble=str(error),
            reason=f"{file.path}: the disk does not give it: {error}" if late else None,
        )
