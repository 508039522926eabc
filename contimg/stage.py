"""What every script of the workflow shares: log, lock, clock, result; and ends when its Snakemake has died."""

import errno
import fcntl
import json
import logging
import os
import platform
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from contimg import db
from contimg.config import Config, from_mapping
from contimg.errors import ContimgError, InputError, LockError, NotNow
from contimg.paths import Paths

RUN_PID = "CONTIMG_RUN_PID"
RUN_ID = "CONTIMG_RUN_ID"
CLUSTER_NODE = "CONTIMG_CLUSTER_NODE"  # set where a job runs for a Snakemake elsewhere
_VERSIONS = ("contimg", "snakemake", "casatools", "python-casacore", "ducc0", "radler", "numpy", "astropy")
log = logging.getLogger("contimg")


@dataclass
class Stage:
    """A running stage of one group. Fill `result`; it is written when the stage has succeeded."""

    name: str
    group: str
    config: Config
    paths: Paths
    logfile: Path
    result: dict = field(default_factory=dict)


def write_json(path: Path, values: dict) -> None:
    """Write beside and rename: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict:
    """A stage's result."""
    return json.loads(Path(path).read_text())


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
            raise LockError(f"{what}: held by process {file.read().strip() or '?'} ({path}). Wait for it, or stop it.") from None
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


def announce_run() -> None:
    """Tell the jobs that this process starts whose end is theirs too."""
    os.environ[RUN_PID] = str(os.getpid())


def end_with(pid: int) -> None:
    """Kill this process and its children when process `pid` ends.

    Snakemake's jobs survive a kill -9 of Snakemake. A watcher is forked, which sleeps on the pidfd and kills the job's
    process group members; CASA can hold the interpreter for minutes, so a thread would come too late.
    """
    job = os.getpid()
    if os.fork():
        return
    try:
        os.setsid()
        # Pipes to Snakemake and to a caller must not be held open by the watcher.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        _wait_for_end_of(pid, job)
    finally:
        _kill_tree(job)
        os._exit(0)


def _wait_for_end_of(*pids: int) -> None:
    """Return when one of the processes is gone."""
    poller = select.poll()
    try:
        for pid in pids:
            poller.register(os.pidfd_open(pid), select.POLLIN)
        poller.poll()
    except ProcessLookupError:
        return
    except OSError:  # no pidfd in this kernel or sandbox
        while all(Path(f"/proc/{pid}").exists() for pid in pids):
            time.sleep(0.5)


def _kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    doomed = [pid]
    for one in doomed:
        doomed.extend(c for c in children.get(one, []) if c != os.getpid())
    for one in doomed:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def stage(smk) -> Iterator[Stage]:
    """Run a script's work on one group; `smk` is Snakemake's script object.

    Log, named outputs and the group come from the rule: `log[0]`, `output.result`, `wildcards.group`. Any error is
    logged and noted for the queue, and ends the script with status 1.
    """
    if run_pid := os.environ.get(RUN_PID):
        end_with(int(run_pid))
    config = from_mapping(smk.config)
    paths = Paths.of(config)
    group, logfile, output = smk.wildcards.group, Path(smk.log[0]), Path(smk.output.result)
    logfile.parent.mkdir(parents=True, exist_ok=True)
    terminal = _output_to(logfile)
    if numba := sys.modules.get("numba"):
        numba.set_num_threads(max(1, min(smk.threads, numba.config.NUMBA_NUM_THREADS)))
    logging.basicConfig(
        filename=logfile, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    name = output.name.removesuffix(".json").rpartition(".")[2]
    running = Stage(name, group, config, paths, logfile)
    begin = time.perf_counter()
    try:
        with lock(paths.group_lock(group), wait=True, what=f"group {group}"):
            paths.error(group).unlink(missing_ok=True)
            log.info("%s: group %s, run %s, attempt starts", name, group, os.environ.get(RUN_ID, "-"))
            yield running
            seconds = round(time.perf_counter() - begin, 3)
            running.result |= {"stage": name, "group": group, "seconds": seconds, "finished_at": db.now(),
                               "run": os.environ.get(RUN_ID), "host": platform.node(), **_used(), **_made_by(config),
                               "versions": {p: version(p) for p in _VERSIONS}}  # fmt: skip
            write_json(output, running.result)
            log.info("%s: done in %.1f s", name, seconds)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        log.error("%s", message if isinstance(error, ContimgError) else traceback.format_exc())
        permanent = isinstance(error, InputError)
        values = {"stage": name, "error": message, "permanent": permanent, "log": str(logfile), "at": db.now(),
                  "not_now": isinstance(error, NotNow) or getattr(error, "errno", None) == errno.ENOSPC}  # fmt: skip
        write_json(paths.error(group), values)
        os.write(terminal, f"group {group}, {name}: {message}\n".encode())
        sys.exit(1)


def _made_by(config: Config) -> dict:
    from contimg.identity import made_by  # catalogues: not in the processes that only want the lock

    return {key: value for key, value in made_by(config).items() if key != "version"}


def _used() -> dict[str, float]:
    """Processor seconds of this process and those that it waited for, and the largest memory (GB) of one of them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"cpu_s": round(sum(u.ru_utime + u.ru_stime for u in used), 2), "memory_gb": max(u.ru_maxrss for u in used) / 1e6}


def _output_to(logfile: Path) -> int:
    """What CASA, radler and others print goes to the log; returns a descriptor of the former standard error."""
    terminal = os.dup(2)
    with logfile.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return terminal
