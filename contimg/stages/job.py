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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from contimg.chain import MAKING_MS, stage_of, stages_where
from contimg.clock import now
from contimg.config import Config, from_mapping
from contimg.errors import (
    ContimgError,
    InputError,
    NoCalibrationError,
    NotNow,
    ProductError,
    is_full,
)
from contimg.paths import CHANGING_MARK, Paths, staged
from contimg.processes import RUN_ID, RUN_PID, die_with_parent, ended_before, kill_group
from contimg.store.files import found_json, lock, read_json, set_mark, write_json

_VERSIONS = ("snakemake", "casatools", "python-casacore", "ducc0", "radler", "numpy", "astropy")
_LAST_WORDS = 4000
_PADDING = " " * 2000  # room for the words of a disk that is full
_READING_MS = set(stages_where(uses_ms=True)) - set(MAKING_MS)
log = logging.getLogger("contimg")


@dataclass
class Job:
    """One stage of one group, at work; or a rule beyond groups, whose `group` is what its results
    are called by (a tract, `TRACT.SDAY`).

    files    raw files by subband, for `convert`
    piece    for `mosaic`: what `products.mosaics.Piece.as_json` wrote
    pointing (mid MJD, apparent declination in deg), for `caltables`
    staging  the folder in which subband Measurement Sets wait, for `convert` and `concat`
    """

    stage: str
    group: str
    config: Config
    paths: Paths
    logfile: Path
    threads: int = 1
    files: Mapping[int, Path] = field(default_factory=dict)
    pointing: tuple[float, float] | None = None
    staging: Path | None = None
    piece: Mapping = field(default_factory=dict)

    @property
    def ms(self) -> Path:
        """The group's Measurement Set."""
        return self.paths.ms(self.group)

    @property
    def staged(self) -> list[Path]:
        """Subband Measurement Sets, from `convert` to `concat`."""
        return staged(self.staging, self.group, self.config)

    def result_of(self, stage: str) -> dict:
        """What an earlier stage of this group found."""
        return read_json(self.paths.result(self.group, stage))


def run_script(smk, work: Callable[[Job], dict]) -> None:
    """Do a stage's work for a script of Snakemake's, whose object `smk` is.

    Log, group and what the rule gives as parameters are taken from it. Any error is logged and
    noted for the queue, and ends the script with status 1.
    """
    config, params = from_mapping(smk.config), smk.params
    staged_in = getattr(smk.output, "subbands", None) or getattr(smk.input, "subbands", None)
    files = getattr(params, "files", None) or {}
    job = Job(
        stage_of(smk.rule),
        ".".join(smk.wildcards),
        config,
        Paths.of(config),
        Path(smk.log[0]),
        smk.threads,
        {subband: Path(path) for subband, path in files.items()},
        getattr(params, "pointing", None),
        Path(staged_in).parent if staged_in else None,
        getattr(params, "piece", None) or {},
    )
    run_job(job, work)


def run_job(job: Job, work: Callable[[Job], dict]) -> None:
    """Do a stage's work in a child process and write its result; ends this process with status 1
    when it fails."""
    job.logfile.parent.mkdir(parents=True, exist_ok=True)
    _in_a_child(job)
    if numba := sys.modules.get("numba"):
        numba.set_num_threads(max(1, min(job.threads, numba.config.NUMBA_NUM_THREADS)))
    log_format = {"format": "%(asctime)s %(levelname)s %(message)s", "datefmt": "%Y-%m-%dT%H:%M:%S"}
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, **log_format)
    try:
        with lock(job.paths.group_lock(job.group), wait=True, what=f"group {job.group}"):
            _work_and_record(job, work)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        log.error("%s", message if isinstance(error, ContimgError) else traceback.format_exc())
        _leave_word(job, message, isinstance(error, InputError), _waits_for(error))
        # casacore's own errors, of a table that a power cut left: not to be read again and again.
        is_damage = isinstance(error, RuntimeError | ProductError) and not is_full(error)
        of_group = job.ms.is_dir() and not job.ms.is_symlink()  # a link: a quick look
        if is_damage and job.stage in _READING_MS and of_group:
            set_mark(job.ms / CHANGING_MARK)
        sys.exit(1)


def _work_and_record(job: Job, work: Callable[[Job], dict]) -> None:
    begin = time.perf_counter()
    write_json(job.paths.error(job.group), _note(job, _WITHOUT_A_WORD) | {"padding": _PADDING})
    run_id = os.environ.get(RUN_ID)
    log.info("%s: group %s, run %s, attempt starts", job.stage, job.group, run_id or "-")
    result = work(job)
    seconds = round(time.perf_counter() - begin, 3)
    result |= {
        "stage": job.stage,
        "group": job.group,
        "seconds": seconds,
        "finished_at": now(),
        **by_whom(),
        **_used(),
        **_made_by(job.config),
    }
    write_json(job.paths.result(job.group, job.stage), result)
    job.paths.error(job.group).unlink(missing_ok=True)
    log.info("%s: done in %.1f s", job.stage, seconds)


def by_whom() -> dict:
    """Which run makes a result, and where."""
    return {"run": os.environ.get(RUN_ID), "host": platform.node()}


_WITHOUT_A_WORD = "ended without a word (killed, or out of memory?)"


def _note(job: Job, error: str, permanent: bool = False, waits_for: str | None = None) -> dict:
    """What the queue is told of an attempt that failed; `waits_for` room or calibration: nothing is
    wrong with the group."""
    return {
        "stage": job.stage,
        "error": error,
        "permanent": permanent,
        "waits_for": waits_for,
        "log": str(job.logfile),
        "run": os.environ.get(RUN_ID),
        "at": now(),
    }


def _leave_word(
    job: Job, error: str, permanent: bool = False, waits_for: str | None = None
) -> None:
    note = _note(job, error, permanent, waits_for)
    path = job.paths.error(job.group)
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


def _in_a_child(job: Job) -> None:
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
    listener = threading.Thread(target=_keep, args=(reader, job.logfile, said), daemon=True)
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
                f"StorageError: no room, or no quota, for {job.paths.products}. It goes "
                "on when there is some."
            )
        elif -code == signal.SIGABRT and words.strip():
            error = f"ended by a library: {words.strip().splitlines()[-1]}"
        _leave_word(job, error, waits_for="room" if full else None)
    if code:
        os.write(2, f"group {job.group}, {job.stage}: {_last_line(job)}\n".encode())
    sys.stdout.flush()
    os._exit(min(255, abs(code)))


def _last_line(job: Job) -> str:
    return (found_json(job.paths.error(job.group)) or {}).get("error", f"failed; see {job.logfile}")


def _keep(reader: int, logfile: Path, said: bytearray) -> None:
    """Write what comes from a pipe to the log, as far as the disk lets us; `said` has the end of
    it."""
    while block := os.read(reader, 1 << 16):
        said += block
        del said[:-_LAST_WORDS]
        with suppress(OSError), open(logfile, "ab", buffering=0) as file:
            file.write(block)


def _made_by(config: Config) -> dict:
    # It reads catalogues: not in the processes that only want the lock.
    from contimg.store.identity import made_by

    found = made_by(config)
    versions = {"contimg": found.pop("version")} | {name: version(name) for name in _VERSIONS}
    return found | {"versions": versions}


def _used() -> dict[str, float]:
    """Processor seconds of this process and those that it waited for, and the largest memory (GB)
    of one of them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in used), 2),
        "memory_gb": max(u.ru_maxrss for u in used) / 1e6,
    }
