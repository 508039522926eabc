"""Where subband Measurement Sets wait to be concatenated: in memory (tmpfs) when it has room, else on disk.

tmpfs is memory: what is free there counts only as far as the machine has it available, and a run reserves what its
groups will take before another one may choose. The folder is chosen once a run, since Snakemake has to know it.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from contimg.config import Config
from contimg.errors import LockError, StorageError
from contimg.paths import TMPFS, Paths
from contimg.planning import Plan
from contimg.stage import holder_of, lock

_STAGED_PER_RAW = 1.0
"""Bytes of a subband Measurement Set per byte of its file (0.92 at full size), and some for its tables."""
_TABLES_BYTES = 40 << 20
_RESERVATION = "reserved"


def needed_bytes(config: Config, plans: Mapping[str, Plan], cores: int) -> int:
    """What the groups of a run take at once: those being converted, and those that wait for concat."""
    raw = [sum(f.size for f in p.group.members.values()) for p in plans.values() if p.action == "run"]
    at_once = min(len(raw), max(1, cores // config.conversion.workers) + 1)
    return at_once * int(_STAGED_PER_RAW * max(raw, default=0) + _TABLES_BYTES)


def choose(config: Config, plans: Mapping[str, Plan], cores: int) -> Path:
    """The folder for this run; looks, and changes nothing."""
    roots = Paths.of(config).staging_roots()
    if config.paths.staging != "auto":
        return Path(config.paths.staging)
    if config.conversion.staging != "auto":
        return roots[config.conversion.staging]
    return roots["tmpfs" if _tmpfs_room(config) >= needed_bytes(config, plans, cores) else "disk"]


def _tmpfs_room(config: Config) -> int:
    """Bytes of tmpfs that nobody uses, has reserved, or is to be left free."""
    if not TMPFS.is_dir():
        return 0
    free = min(shutil.disk_usage(TMPFS).free, _available_memory())
    for reservation in TMPFS.glob(f"contimg-*/{_RESERVATION}"):
        if reservation.parent not in Paths.of(config).staging_roots().values() and holder_of(reservation):
            size = int(reservation.with_suffix(".bytes").read_text())
            free -= max(0, size - _used(reservation.parent))
    return free - int(config.conversion.tmpfs_keep_free_gb * 1e9)


def _available_memory() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


def _used(folder: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in folder.rglob("*") if f.is_file())


@contextmanager
def reserved(config: Config, root: Path, size: int) -> Iterator[None]:
    """Hold `size` bytes of tmpfs for a run; on disk there is nothing to hold.

    Raises LockError when another run was faster: start again, and disk is chosen.
    """
    if TMPFS not in root.parents:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    amount = root / f"{_RESERVATION}.bytes"
    with lock(root / _RESERVATION, wait=False, what=f"staging in {root}"):
        amount.write_text(str(size))
        try:
            if config.conversion.staging == "auto" and _tmpfs_room(config) < size:
                raise LockError(f"another run reserved the memory of {TMPFS} that this one was to use: run it again")
            yield
        finally:
            amount.unlink(missing_ok=True)
            (root / _RESERVATION).unlink(missing_ok=True)
            remove_if_empty(root)


def remove_if_empty(root: Path) -> None:
    """Remove the folder of a run that has nothing staged any more."""
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()


def clean(paths: Paths, chosen: Path, keep: set[str]) -> None:
    """Remove what dead runs left; groups of this run may go on from theirs, and finished ones were kept by --notemp."""
    for root in {*paths.staging_roots().values(), chosen}:
        for folder in root.glob("????-??-??T??:??:??") if root.exists() else ():
            finished = paths.result(folder.name, "index").exists()
            if not finished and (root != chosen or folder.name not in keep):
                shutil.rmtree(folder, ignore_errors=True)
        remove_if_empty(root)


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise StorageError unless the file system of `folder` has `size` bytes free, before anything is written there."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{folder}: {free / 1e9:.1f} GB free, {what} needs {size / 1e9:.1f} GB. Make room (retention.* in the "
            f"configuration removes what is not needed any more), or choose another folder."
        )
