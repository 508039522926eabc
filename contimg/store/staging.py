"""Where subband Measurement Sets wait to be concatenated: in memory (tmpfs) when it has room, else
on disk.

tmpfs is memory: what is free there counts only as far as the machine has it available, and a run
reserves what its groups will take before another one may choose. The folder is chosen once a run,
since Snakemake has to know it.
"""

import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from contimg.chain import LAST
from contimg.config import Config
from contimg.errors import LockError, StorageError
from contimg.paths import TMPFS, Paths
from contimg.store.files import holder_of, lock

_STAGED_PER_RAW = 1.0
"""Bytes of a subband Measurement Set per byte of its file (0.92 at full size), and some for its
tables."""
_TABLES_BYTES = 40 << 20
_GROUP = "????-??-??T??:??:??"
_LEFT_AFTER_S = 3600


def needed_bytes(config: Config, raw_bytes: Sequence[int], cores: int) -> int:
    """What the groups of a run, each with so many bytes of raw files, take at once: those being
    converted or concatenated, and one that waits."""
    at_once = min(len(raw_bytes), max(1, cores // config.conversion.workers) + 1)
    return at_once * int(_STAGED_PER_RAW * max(raw_bytes, default=0) + _TABLES_BYTES)


def choose_root(
    config: Config, raw_bytes: Sequence[int], cores: int, keep: bool = False, cluster: bool = False
) -> Path:
    """The folder for this run; looks, and changes nothing.

    keep     nothing will be removed when it was concatenated (--notemp): not in memory then
    cluster  the folder is on other machines, and their jobs see whether it has room; never the one
             of a run here: this host may be a node too
    """
    roots = Paths.of(config).staging_roots()
    if cluster:
        on_disk = config.conversion.staging == "disk" and config.paths.staging == "auto"
        # the latter has the project's tag in its name
        shared = roots["disk"] if on_disk else roots["tmpfs"]
        root = shared.parent if config.paths.staging == "auto" else Path(config.paths.staging)
        return root / f"{shared.name}-node"
    # a folder of our own in it: it may hold other things, and other projects
    if config.paths.staging != "auto":
        return Path(config.paths.staging) / roots["tmpfs"].name
    if config.conversion.staging != "auto":
        return roots[config.conversion.staging]
    tmpfs = roots["tmpfs"]
    needed = needed_bytes(config, raw_bytes, cores) + _left_free(config)
    has_room = not keep and _can_be_ours(tmpfs) and _tmpfs_room(tmpfs.name) >= needed
    return roots["tmpfs" if has_room else "disk"]


def _left_free(config: Config) -> int:
    return int(config.conversion.tmpfs_keep_free_gb * 1e9)


def _tmpfs_room(mine: str = "") -> int:
    """Bytes of tmpfs that nobody uses, or has reserved other than for the folder `mine`."""
    if not TMPFS.is_dir():
        return 0
    free = min(shutil.disk_usage(TMPFS).free, _available_memory())
    for reservation in TMPFS.glob("contimg-*.*.reserved"):
        folder, _, size = reservation.name.removesuffix(".reserved").rpartition(".")
        if size.isdecimal() and folder != mine and _is_held(reservation):
            free -= max(0, int(size) - _used(TMPFS / folder))
    return free


def _is_held(reservation: Path) -> bool:
    try:
        return holder_of(reservation) is not None
    except OSError:  # of another user, who does not show it
        return False


def _available_memory() -> int:
    return psutil.virtual_memory().available


def _used(folder: Path) -> int:
    """Bytes in a folder that others may be changing."""
    used = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                used += os.stat(os.path.join(where, name)).st_blocks * 512
    return used


def _can_be_ours(root: Path) -> bool:
    """Whether a folder is this user's, or not there yet; anybody can make one in tmpfs, or a link,
    under any name."""
    try:
        found = os.lstat(root)
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def make(root: Path) -> None:
    """Make a staging folder that nobody else can read or write; raises StorageError if it is
    somebody else's."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    if not _can_be_ours(root):
        raise StorageError(
            f"{root} belongs to another user, or is no folder. Set conversion.staging to disk, or "
            "paths.staging."
        )
    root.chmod(0o700)


@contextmanager
def reserved(config: Config, root: Path, size: int) -> Iterator[None]:
    """Hold `size` bytes of tmpfs for a run, for as long as it lives; on disk there is nothing to
    hold.

    Raises LockError when another run was faster: start again, and disk is chosen.
    """
    # Left by a run that was killed: one at a time works on a state folder.
    for left in TMPFS.glob(f"{root.name}.*.reserved"):
        left.unlink(missing_ok=True)
    if TMPFS not in root.parents:
        make(root)
        yield
        return
    reservation = TMPFS / f"{root.name}.{size}.reserved"
    try:
        with lock(reservation, wait=False, what=f"staging in {root}"):
            free_choice = config.paths.staging == config.conversion.staging == "auto"
            if free_choice and _tmpfs_room(root.name) < size + _left_free(config):
                raise LockError(
                    f"another run reserved the memory of {TMPFS} that this one was to use: run it "
                    "again"
                )
            make(root)
            yield
    finally:
        reservation.unlink(missing_ok=True)
        remove_if_empty(root)


def clean(paths: Paths, chosen: Path, keep: set[str], cluster: bool = False) -> None:
    """Remove what dead runs left (here, or on a cluster as far as it is seen from here); groups in
    `keep` may go on from theirs, and finished ones on disk were kept by --notemp."""
    roots = paths.staging_roots()
    for root in {chosen} if cluster else {*roots.values(), chosen}:
        for folder in root.glob(_GROUP):
            asked_for = root != roots["tmpfs"] and paths.result(folder.name, LAST).exists()
            if not (root == chosen and folder.name in keep) and (
                not asked_for or any(folder.glob(".*.partial"))
            ):
                remove_group(root, folder.name)
        remove_if_empty(root)


def remove_if_empty(root: Path) -> None:
    """Remove a staging folder that has nothing in it any more."""
    with suppress(OSError):  # not empty, or not there
        root.rmdir()


def remove_group(root: Path, group: str) -> None:
    """Remove what a group has in staging."""
    shutil.rmtree(root / group, ignore_errors=True)


def sweep(paths: Paths, root: Path, group: str) -> None:
    """On a node of a cluster: remove what jobs left there that were killed, and what an earlier
    attempt left of `group`."""
    for folder in root.glob(_GROUP):
        with suppress(FileNotFoundError):
            old = (
                time.time() - folder.stat().st_mtime > _LEFT_AFTER_S
                and holder_of(paths.group_lock(folder.name)) is None
            )
            if old or folder.name == group:
                remove_group(root, folder.name)


def require_room(needs: Iterable[tuple[Path, int]], what: str) -> None:
    """Raise StorageError unless there is room for all bytes that will go to folders, before
    anything is written there."""
    by_device: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        folder.mkdir(parents=True, exist_ok=True)
        device = folder.stat().st_dev
        by_device[device] = (folder, by_device.get(device, (folder, 0))[1] + size)
    for folder, size in by_device.values():
        free = shutil.disk_usage(folder).free
        if TMPFS in folder.parents:
            free = min(free, _available_memory())
        if free < size:
            raise StorageError(
                f"{folder}: {free / 1e9:.1f} GB free, {what} needs {size / 1e9:.1f} GB. Make room "
                "(retention.* in the "
                "configuration removes what is not needed any more), or choose another folder."
            )
