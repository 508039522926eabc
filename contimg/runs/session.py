"""What a process of a run needs before anything runs: the site, the plan, how Snakemake is started,
what was refused."""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from contimg.config import DEFAULT_CONFIG, Config
from contimg.errors import ContimgError, LockError, NotNow, is_full
from contimg.paths import Paths
from contimg.processes import RUN_ID
from contimg.queue.planning import Plan, from_json
from contimg.store import db
from contimg.store.files import found_json, write_json
from contimg.store.identity import COMMIT

NOT_NOW = 75
"""Exit status of a run that was refused because of another run, or for want of a disk
(EX_TEMPFAIL)."""
REFUSED = 78
"""Exit status of a run that cannot begin until somebody mends something (EX_CONFIG)."""


def require_site(config: Config) -> None:
    """Raise ContimgError unless the databases are this host's, and what a run writes to can be
    written to."""
    paths = Paths.of(config)
    require_databases_here(config)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        cache = Path("/nonexistent/.cache")
    needed = {
        "paths.products": paths.products,
        "paths.state": paths.state,
        "paths.databases": paths.databases,
        "Snakemake's working folder": Path(".snakemake").absolute(),
        "the cache (XDG_CACHE_HOME, else ~/.cache)": cache,
    }
    for what, folder in needed.items():
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ContimgError(
                f"{folder}: {what} cannot be written to by user {os.geteuid()} ({there} is not "
                "theirs)"
            )
    if config.paths.databases:
        write_json(
            paths.databases_host, {"host": socket.gethostname(), "databases": str(paths.databases)}
        )


def require_databases_here(config: Config) -> None:
    """Raise ContimgError on a host that sees the state folder, where another host has the
    databases. Reads only."""
    paths = Paths.of(config)
    owner = (found_json(paths.databases_host) or {}) if config.paths.databases else {}
    if owner and owner.get("host") != socket.gethostname():
        raise ContimgError(
            f"the databases of {paths.state} are on host {owner.get('host')}: do this there. (If "
            "they were moved here for good: "
            f"remove {paths.databases_host}, once nothing runs there any more.)"
        )


def snapshot_of_run(paths: Paths) -> tuple[dict[str, Plan], Path] | None:
    """Plans and staging folder of the run that this process works for; None if there is none.

    A job does not look at files and databases again: on a cluster's node it may see them otherwise.
    """
    path = paths.run_snapshot(os.environ.get(RUN_ID, "none"))
    if (snapshot := found_json(path)) is None:
        return None
    os.environ.setdefault(COMMIT, snapshot.get("commit", "unknown"))
    return {group: from_json(values) for group, values in snapshot["groups"].items()}, Path(
        snapshot["staging"]
    )


def refused(config: Config, error: Exception) -> int:
    """A run did not begin: what `contimg status` and the page say of it, until one does. Returns
    the exit status."""
    if isinstance(error, LockError | NotNow) or is_full(error):
        return NOT_NOW
    with suppress(OSError):
        write_json(Paths.of(config).refusal, {"at": db.now(), "error": str(error)})
    return REFUSED


def snakemake_command(
    profile: str, configfiles: Sequence[Path], snakefile: Path | None = None
) -> list[str]:
    """How Snakemake is started, with the default configuration and those on top of it."""
    files = [str(f) for f in (DEFAULT_CONFIG, *configfiles)]
    other = ["--snakefile", str(snakefile)] if snakefile else []
    return [sys.executable, "-m", "snakemake", "--profile", profile, *other, "--configfile", *files]


def keep_newest(pattern: Path, number: int) -> None:
    """Remove all but the last files of a kind, whose names are in order of time."""
    for path in sorted(pattern.parent.glob(pattern.name))[:-number]:
        path.unlink(missing_ok=True)
