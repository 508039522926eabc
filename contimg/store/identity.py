"""What made a product: configuration, content of the catalogues, software. Goes into results,
headers and provenance."""

import hashlib
import json
import os
import sqlite3
import subprocess
from contextlib import closing
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contimg.config import Config
from contimg.errors import ConfigError
from contimg.store.files import checksum
from contimg.telescope import DSA110, TELESCOPE

INDEXED = (".sqlite", ".sqlite3")  # endings of sky catalogues in their indexed form
SOFTWARE = "CONTIMG_SOFTWARE"  # version and commit, found once for all jobs of a run
# What decides nothing of the science: where things are, how fast and by whom they are done, what is
# said of them and kept.
_NOT_SCIENCE: Any = {
    "paths": True,
    "ingest": True,
    "validation": True,
    "retention": True,
    "catalogues": True,
    "gates": True,
    "mosaics": True,
    "notify": True,
    "page": True,
    "conversion": {"workers", "staging", "tmpfs_keep_free_gb", "telescope_name"},
    "photometry": {"update_minutes", "most_false", "reference_days", "catalogue_scatter"},
    "imaging": {"skip_fits", "slanted_fits", "max_minutes", "beam_file"},
}


@lru_cache(16)
def _checksum(path: Path, size: int, mtime_ns: int) -> str:
    return checksum(path)


def _of_file(path: Path) -> str:
    try:
        seen = path.stat()
        return _checksum(path, seen.st_size, seen.st_mtime_ns)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. See catalogues and imaging.beam_file."
        ) from None


def catalogue_checksums(config: Config) -> dict[str, str]:
    """SHA-256 of the content of each catalogue."""
    lists = config.catalogues
    return {name: _of_catalogue(path) for name, path in lists.model_dump().items()}


def _of_catalogue(path: Path) -> str:
    """Of a file; an indexed sky catalogue tells what its content was made of. Without the half
    second that pandas and astropy take to start: every stage asks."""
    if path.suffix not in INDEXED:
        return _of_file(path)
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            return connection.execute("SELECT value FROM about WHERE key = 'checksum'").fetchone()[
                0
            ]
    except (sqlite3.Error, TypeError) as error:
        raise ConfigError(
            f"{path}: no indexed sky catalogue ({error}). Make it with `contimg catalog`."
        ) from None


def science_digest(config: Config) -> str:
    """Short hash of what decides the science and of nothing else: the content of files, not their
    names."""
    values = config.model_dump(mode="json", exclude=_NOT_SCIENCE)
    for name in ("allow", "deny"):
        values["calibration"][name] = sorted(values["calibration"][name])
    values["catalogues"] = catalogue_checksums(config)
    if TELESCOPE != DSA110:
        values["telescope"] = TELESCOPE.model_dump(mode="json")
    values["imaging"]["beam_file"] = config.imaging.beam_file and _of_file(config.imaging.beam_file)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def software() -> tuple[str, str]:
    """(version, commit) of this software. In a clone, as it is now: the version counts the commits
    since the last tag, and both end in "+changes" where files differ; elsewhere the version that
    was installed, and "unknown"."""
    version_of, _, commit = (os.environ.get(SOFTWARE) or " ".join(_of_clone())).partition(" ")
    return version_of, commit


@lru_cache(1)
def _of_clone() -> tuple[str, str]:
    folder = Path(__file__).parents[2]

    def git(*words: str) -> str:
        # not that of somebody else's clone, which this one is installed into
        if not (folder / ".git").exists():
            raise FileNotFoundError
        command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        changes = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        commit = git("rev-parse", "HEAD") + changes
    except (OSError, subprocess.SubprocessError):
        return version("contimg"), "unknown"
    try:
        return git("describe", "--tags", "--match", "v*").removeprefix("v") + changes, commit
    except subprocess.SubprocessError:  # no tag was fetched
        return version("contimg") + changes, commit


def made_by(config: Config) -> dict:
    """Digest of the configuration, checksums of the catalogues, version and commit of the
    software."""
    return {
        "config": science_digest(config),
        "catalogues": catalogue_checksums(config),
        "version": software()[0],
        "commit": software()[1],
    }
