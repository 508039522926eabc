"""What lies in the incoming folder: listing, a look into every new file, groups. Read-only."""

import errno
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from contimg.config import Config, IngestConfig
from contimg.errors import SubbandError
from contimg.groups import FileGroup, RawFile, cluster
from contimg.ingest import RUNNING, GroupStatus, finished_files
from contimg.paths import Paths
from contimg.uvh5 import inspect, parse_name


def look(
    config: Config, known: Mapping[str, GroupStatus], now_s: float, seconds: float = float("inf"), wait: bool = False,
    also: Collection[str] = (),
) -> list[FileGroup]:  # fmt: skip
    """Groups asked for, of the files in the incoming folder and of those that the queue remembers.

    known    what the queue says; ids are fixed once a group has left `collecting`
    also     groups asked for by name, whatever `ingest` asks for; files of others are not looked at
    seconds  how long to look into new files; the rest stays unchecked, for the next time
    wait     whether to wait for files that were written to a moment ago (at most `ingest.settle_s`)

    A file that was seen before, and has not changed, is not opened again; nor are those of finished groups.
    """
    options = config.ingest
    first, last = options.span(also)
    known = {group: status for group, status in known.items() if first <= group <= last}
    files = _files(config, known, first, last)
    groups = _clustered(files, known, options)
    if wait:
        complete = [f for g in groups if not g.missing(options.expected_subbands) for f in g.members.values()]
        rest_s = options.settle_s - (now_s - max((f.changed_s for f in complete if not f.checked), default=0.0))
        if 0 < rest_s <= options.settle_s:
            time.sleep(rest_s)
            return look(config, known, time.time(), seconds, also=also)
    deadline = time.monotonic() + seconds
    looked = {f.path: _check(files[f.path]) for f in new_files(config, known, groups, now_s) if time.monotonic() < deadline}
    groups = _clustered(files | looked, known, options) if looked else groups
    return [group for group in groups if options.takes(group.id) or group.id in also]


def new_files(config: Config, known: Mapping[str, GroupStatus], groups: list[FileGroup], now_s: float) -> list[RawFile]:
    """Files that have settled, and that nobody has looked into, in the order in which their groups are wanted."""
    options, paths = config.ingest, Paths.of(config)
    new = []
    for group in reversed(groups) if options.order == "newest" else groups:
        files = [f for f in group.all_files if not f.checked]
        if not files:
            continue
        status = known.get(group.id)
        if status and status.state in (*RUNNING, "completed"):  # it is begun: only what came since then is new
            recorded = {f.path for f in status.files}
            files = [f for f in files if f.path not in recorded]
        elif paths.result(group.id, "index").exists():
            continue
        new += [f for f in files if now_s - f.changed_s >= options.settle_s]
    return new


def _files(config: Config, known: Mapping[str, GroupStatus], first: str, last: str) -> dict[Path, RawFile]:
    """Every finished subband file named so, with what was found when it was looked into, if it is still the same."""
    finished = finished_files(Paths.of(config).ingest_db)
    seen = _listed(config.paths.incoming, config.ingest.expected_subbands, first, last, finished)
    for status in known.values():
        for recorded in status.files:
            file = seen.get(recorded.path)
            if status.state == "completed" and recorded.reason is None:
                seen[recorded.path] = recorded  # its raw files may be gone, or others now: it is done
            elif file is None:
                if recorded.path.exists() and recorded.path.parent != config.paths.incoming:
                    stat = recorded.path.stat()
                    file = RawFile.named(recorded.path, stat.st_size, stat.st_ctime)
                    seen[recorded.path] = _remember(file, recorded)
            else:
                seen[recorded.path] = _remember(file, recorded)
    return seen


def _listed(folder: Path, expected_subbands: int, first: str, last: str, passed_over: set[str]) -> dict[Path, RawFile]:
    if not folder.exists():
        return {}
    seen = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            parsed = parse_name(entry.name)
            if parsed is None or parsed[1] >= expected_subbands or not first <= parsed[0] <= last or entry.path in passed_over:
                continue
            try:
                stat = entry.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):  # gone since the folder was listed, or a dangling link
                    continue
                raise
            path = folder / entry.name
            seen[path] = RawFile(path, *parsed, stat.st_size, stat.st_ctime)
    return seen


def _remember(file: RawFile, recorded: RawFile) -> RawFile:
    """What an earlier look found; only what the file itself is guilty of, not that it was a duplicate."""
    if not recorded.checked or not recorded.same_content(file):
        return file
    if recorded.outline and recorded.reason is None:
        return recorded
    return replace(file, checked=True, outline=recorded.outline, reason=None if recorded.outline else recorded.reason)


def _clustered(files: Mapping[Path, RawFile], known: Mapping[str, GroupStatus], options: IngestConfig) -> list[FileGroup]:
    fixed = {
        group: [now for f in status.files if f.reason is None and (now := files.get(f.path)) and now.reason is None]
        for group, status in known.items() if status.state != "collecting"
    }  # fmt: skip
    taken = {f.path for members in fixed.values() for f in members}
    window_s = options.chunk_minutes * 60
    return cluster(
        [f for path, f in files.items() if path not in taken],
        min(options.tolerance_s, window_s), window_s, options.expected_subbands, fixed,
    )  # fmt: skip


def _check(file: RawFile) -> RawFile:
    """Look into a file: its outline, or the reason why it does not count; not checked if the disk would not let us."""
    try:
        return replace(file, checked=True, outline=inspect(file.path))
    except SubbandError as error:
        return replace(file, checked=True, reason=f"{type(error).__name__}: {error}")
    except OSError:
        return file
