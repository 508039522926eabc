"""What every script of the workflow shares: log, lock, clock, result, last words; and ends when its
Snakemake has died.

The work is done in a child of the job's process. Its parent does nothing but wait: it keeps what
the child prints, says what became of one that was killed, or that CASA's own C++ ended, and kills
the child when the run has gone.
"""

import json
import logging
import os
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from contimg.config import Config, from_mapping
from contimg.errors import (
    ContimgError,
    InputError,
    NoCalibrationError,
    NotNow,
    ProductError,
    is_full,
)
from contimg.paths import CHANGING_MARK, Paths
from contimg.processes import RUN_ID, RUN_PID, die_with_parent, ended_before, kill_group
from contimg.store import db
from contimg.store.files import found_json, lock, set_mark, write_json

_VERSIONS = (
    "contimg",
    "snakemake",
    "casatools",
    "python-casacore",
    "ducc0",
    "radler",
    "numpy",
    "astropy",
)
_LAST_WORDS = 4000
_PADDING = " " * 2000  # room for the words of a disk that is full
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


@contextmanager
def stage(smk) -> Iterator[Stage]:
    """Run a script's work on one group; `smk` is Snakemake's script object.

    Log, named outputs and the group come from the rule: `log[0]`, `output.result`,
    `wildcards.group`. Any error is logged and noted for the queue, and ends the script with status
    1.
    """
    config = from_mapping(smk.config)
    paths, output = Paths.of(config), Path(smk.output.result)
    name = output.name.removesuffix(".json").rpartition(".")[2]
    running = Stage(name, smk.wildcards.group, config, paths, Path(smk.log[0]))
    running.logfile.parent.mkdir(parents=True, exist_ok=True)
    _in_a_child(running)
    if numba := sys.modules.get("numba"):
        numba.set_num_threads(max(1, min(smk.threads, numba.config.NUMBA_NUM_THREADS)))
    log_format = {"format": "%(asctime)s %(levelname)s %(message)s", "datefmt": "%Y-%m-%dT%H:%M:%S"}
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, **log_format)
    begin = time.perf_counter()
    try:
        with lock(paths.group_lock(running.group), wait=True, what=f"group {running.group}"):
            write_json(
                paths.error(running.group), _note(running, _WITHOUT_A_WORD) | {"padding": _PADDING}
            )
            log.info(
                "%s: group %s, run %s, attempt starts",
                name,
                running.group,
                os.environ.get(RUN_ID, "-"),
            )
            yield running
            seconds = round(time.perf_counter() - begin, 3)
            running.result |= {
                "stage": name,
                "group": running.group,
                "seconds": seconds,
                "finished_at": db.now(),
                "run": os.environ.get(RUN_ID),
                "host": platform.node(),
                **_used(),
                **_made_by(config),
                "versions": {p: version(p) for p in _VERSIONS},
            }
            write_json(output, running.result)
            paths.error(running.group).unlink(missing_ok=True)
            log.info("%s: done in %.1f s", name, seconds)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        log.error("%s", message if isinstance(error, ContimgError) else traceback.format_exc())
        _leave_word(running, message, isinstance(error, InputError), _waits_for(error))
        ms = getattr(smk.input, "ms", None)
        # casacore's own errors, of a table that a power cut left: not to be read again and again.
        if (
            ms
            and Path(ms).is_dir()
            and isinstance(error, RuntimeError | ProductError)
            and not is_full(error)
        ):
            set_mark(Path(ms) / CHANGING_MARK)
        sys.exit(1)


_WITHOUT_A_WORD = "ended without a word (killed, or out of memory?)"


def _note(
    running: Stage, error: str, permanent: bool = False, waits_for: str | None = None
) -> dict:
    """What the queue is told of an attempt that failed; `waits_for` room or calibration: nothing is
    wrong with the group."""
    return {
        "stage": running.name,
        "error": error,
        "permanent": permanent,
        "waits_for": waits_for,
        "log": str(running.logfile),
        "run": os.environ.get(RUN_ID),
        "at": db.now(),
    }


def _leave_word(
    running: Stage, error: str, permanent: bool = False, waits_for: str | None = None
) -> None:
    note = _note(running, error, permanent, waits_for)
    path = running.paths.error(running.group)
    try:
        write_json(path, note)
    except OSError:  # no room for another file: into the one that was written when the stage began
        with suppress(OSError), path.open("r+") as file:
            file.write(
                json.dumps(note | {"error": error[: _LAST_WORDS // 4]}).ljust(path.stat().st_size)
            )


def _waits_for(error: BaseException) -> str | None:
    if isinstance(error, NoCalibrationError):
        return "calibration"
    return "room" if is_full(error) or isinstance(error, NotNow) else None


def _in_a_child(running: Stage) -> None:
    """Go on in a child process; this one waits for it, and ends as it does."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        os.setpgid(0, 0)
        os.close(reader)
        for descriptor in (1, 2):  # CASA, radler and others print, too
            os.dup2(writer, descriptor)
        os.close(writer)
        return
    os.close(writer)
    with suppress(OSError):  # the child was faster
        os.setpgid(child, child)
    said = bytearray()
    listener = threading.Thread(target=_keep, args=(reader, running.logfile, said), daemon=True)
    listener.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: kill_group(child))
    orphaned = not ended_before(child, int(os.environ.get(RUN_PID, 0)))
    kill_group(child)  # it, when the run has gone; and the programs that it started
    _, status = os.waitpid(child, 0)
    listener.join(1)
    words = said.decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not orphaned:
        error = f"{_WITHOUT_A_WORD[:-1]}; {signal.Signals(-code).name})"
        full = is_full(words)
        if full:
            error = (
                f"StorageError: no room, or no quota, for {running.paths.products}. It goes "
                "on when there is some."
            )
        elif -code == signal.SIGABRT and words.strip():
            error = f"ended by a library: {words.strip().splitlines()[-1]}"
        _leave_word(running, error, waits_for="room" if full else None)
    if code:
        os.write(2, f"group {running.group}, {running.name}: {_last_line(running)}\n".encode())
    sys.stdout.flush()
    os._exit(min(255, abs(code)))


def _last_line(running: Stage) -> str:
    return (found_json(running.paths.error(running.group)) or {}).get(
        "error", f"failed; see {running.logfile}"
    )


def _keep(reader: int, logfile: Path, said: bytearray) -> None:
    """Write what comes from a pipe to the log, as far as the disk lets us; `said` has the end of
    it."""
    while block := os.read(reader, 1 << 16):
        said += block
        del said[:-_LAST_WORDS]
        with suppress(OSError), open(logfile, "ab", buffering=0) as file:
            file.write(block)


def _made_by(config: Config) -> dict:
    from contimg.store.identity import (
        made_by,  # catalogues: not in the processes that only want the lock
    )

    return {key: value for key, value in made_by(config).items() if key != "version"}


def _used() -> dict[str, float]:
    """Processor seconds of this process and those that it waited for, and the largest memory (GB)
    of one of them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in used), 2),
        "memory_gb": max(u.ru_maxrss for u in used) / 1e6,
    }
