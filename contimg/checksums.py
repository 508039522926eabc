"""SHA-256 of files and of folders: whether a product is still what it was."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from contimg.paths import lasting_files


def checksum(path: Path) -> str:
    """SHA-256 of a file (as `sha256sum` has it), or of a folder's files by name and content; lock files do not count."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in lasting_files(path):
        digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def altered(products: Iterable[tuple[str, str]]) -> list[str]:
    """Which of the products, given as (path, checksum), are gone or not what they were when they were recorded."""
    found = []
    for path, expected in products:
        if not Path(path).exists():
            found.append(f"{path} is not on disk")
        elif checksum(Path(path)) != expected:
            found.append(f"{path} was altered")
    return found
