"""Files that survive what happens: written beside their name, flushed to disk, checked, renamed;
JSON; locks."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contimg.errors import LockError, ProductError
from contimg.paths import lasting_files


def checksum(path: Path) -> str:
    """SHA-256 of a file (as `sha256sum` has it), or of a folder's files by name and content; lock
    files do not count."""
    if not path.is_dir():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in lasting_files(path):
        digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def altered(products: Iterable[tuple[str, str]]) -> list[str]:
    """Which of the products, given as (path, checksum), are gone or not what they were when they
    were recorded."""
    found = []
    for path, expected in products:
        if not Path(path).exists():
            found.append(f"{path} is not on disk")
        elif checksum(Path(path)) != expected:
            found.append(f"{path} was altered")
    return found


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path, since_ns: int = 0) -> None:
    """Have a file, or all files of a folder that were changed since then, and their names on disk,
    whatever happens next."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                file = os.path.join(folder, name)
                if not os.path.islink(file) and os.stat(file).st_mtime_ns >= since_ns:
                    _sync(file)
            _sync(folder)
    else:
        _sync(path)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, path: Path) -> None:
    """Give a finished file or folder its final name: a reader sees all of it or nothing, also after
    a power cut."""
    flush(partial)
    if path.is_dir():
        remove(path)
    os.replace(partial, path)
    _sync(path.parent)


def set_mark(path: Path) -> None:
    """Make an empty file that says that something is under way; on disk when this returns."""
    path.touch()
    _sync(path)
    _sync(path.parent)


@contextmanager
def replacing(path: Path, many: bool = False) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder to; it gets its name at the end, or is
    removed if anything fails.

    many  several processes may write it at once: the last one's stays
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{f'.{os.getpid()}' if many else ''}.partial")
    remove(partial)
    try:
        yield partial
        publish(partial, path)
    except BaseException:
        remove(partial)
        raise


def write_json(path: Path, values: dict) -> None:
    """Write a result."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> dict:
    """A result that must be there; raises ProductError, which names it, when it cannot be read."""
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProductError(
            f"{path}: cannot be read ({error}). The next run makes it again."
        ) from None
    if not isinstance(values, dict):
        raise ProductError(
            f"{path}: a JSON object expected, {type(values).__name__} found. The next run makes it "
            "again."
        )
    return values


def found_json(path: Path) -> dict | None:
    """A result, or None where there is none: not there, or left empty or cut off by a power cut."""
    try:
        return read_json(path)
    except ProductError:
        return None


@contextmanager
def lock(path: Path, wait: bool, what: str) -> Iterator[None]:
    """An flock that dies with its holder; without `wait`, LockError says who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:  # perhaps `holder_of`, which holds it for no time
                time.sleep(0.05)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockError(
                f"{what}: held by process {file.read().strip() or '?'} ({path}). Wait for it, or "
                "stop it."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def holder_of(path: Path) -> str | None:
    """Who holds a lock (process and host), or None if it is free; changes nothing."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "?"
    except FileNotFoundError:
        pass
    return None
