"""A SLURM cluster: whose jobs are ours, and those that a dead run left."""

import functools
import os
import re
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version

from contimg.errors import ContimgError, LockError
from contimg.paths import Paths
from contimg.store.files import found_json

_MIN_JOB_AGE_S = 300  # SLURM's default
_WAIT_S = 120
_TIMEOUT_S = 60
# of the plugin's executor, as in 2.6.1
_PRIVATE_PARTS = ("run_uuid", "run_job", "_report_job_error_threadsafe")
_ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
    "REVOKED",
}


def prepare(executor) -> str:
    """The name that Snakemake's SLURM plugin (2.6.1) gives this run's jobs, by which they are found
    when the run has died. Has it announce every job, and report one that could not be submitted.

    It leaves out Snakemake's own announcement of jobs, from which the queue learns of them. What
    `run_job` raises is lost in its thread, and the job counts as running for ever.
    """
    if not type(executor).__module__.startswith("snakemake_executor_plugin_slurm"):
        raise ContimgError(
            f"executor {type(executor).__module__}: only SLURM's is known here, whose jobs can be "
            "found when their run has died. "
            "Use profiles/slurm, or profiles/local on one machine"
        )
    if absent := [name for name in _PRIVATE_PARTS if not hasattr(executor, name)]:
        raise ContimgError(
            f"snakemake-executor-plugin-slurm {version('snakemake-executor-plugin-slurm')} has "
            f"no {', '.join(absent)}: jobs of a run that died would not be found, and might work "
            "beside those of the next. Install what envs/requirements.txt says"
        )
    from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

    submit = executor.run_job

    @functools.wraps(submit)
    def run_job(job):
        try:
            job.log_info()
            submit(job)
        except Exception as error:  # whatever it is, the job does not run
            executor._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}")

    executor.run_job = run_job
    return executor.run_uuid


def left_jobs(paths: Paths) -> list[str]:
    """Ids of the jobs of the run that is, or was, on the cluster, that have not ended. Raises
    LockError if that cannot be known."""
    if not paths.cluster_mark.exists():
        return []
    if not (name := (found_json(paths.cluster_mark) or {}).get("jobs")):
        raise LockError(
            f"{paths.cluster_mark} does not say what its run's jobs are called: cancel those of "
            "user "
            f"{os.getuid()} that a dead run left, and remove it"
        )
    found = _slurm(
        "squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A|%T|%j"
    )
    rows = [line.split("|", 2) for line in found.splitlines() if line.count("|") >= 2]
    return [number for number, state, of in rows if of == name and state not in _ENDED]


def warn_of_short_memory(say: Callable[[str], None]) -> None:
    """A controller that forgets ended jobs before the plugin asks (every three minutes at least)
    leaves Snakemake waiting."""
    try:
        found = re.search(r"MinJobAge\s*=\s*(\d+)", _slurm("scontrol", "show", "config"))
    except LockError:
        return
    if found and int(found[1]) < _MIN_JOB_AGE_S:
        say(
            f"slurm.conf has MinJobAge={found[1]}, less than {_MIN_JOB_AGE_S} s: a job whose end "
            "is forgotten before it was seen counts as running for ever. Have it raised."
        )


class Stall:
    """Whether a run waits for jobs that are not there: SLURM forgot them, or did not answer when
    the plugin asked."""

    def __init__(self, paths: Paths, last_move: Callable[[], int], limit_s: float):
        self._paths, self._last_move, self._limit_s = paths, last_move, limit_s
        self._mark, self._since = -1, time.monotonic()

    def seen(self) -> bool:
        """To be asked now and then: nothing is in SLURM and nothing moved in the queue for the
        limit. Then counts anew."""
        try:
            idle = self._paths.cluster_mark.exists() and not left_jobs(self._paths)
        except LockError:
            idle = False
        mark, now = self._last_move(), time.monotonic()
        if not idle or mark != self._mark:
            self._mark, self._since = mark, now
        stalled = now - self._since > self._limit_s
        if stalled:
            self._since = now
        return stalled


def cancel_left_jobs(paths: Paths, say: Callable[[str], None], wait_s: float = _WAIT_S) -> None:
    """End the jobs of a run that died: this one does their work, and never beside them. Raises
    LockError if they do not end."""
    if not paths.cluster_mark.exists():
        return
    if not (left := left_jobs(paths)):
        paths.cluster_mark.unlink()
        return
    say(f"SLURM jobs {', '.join(left)} are left of a run that died: cancelled")
    _slurm("scancel", *left)
    end = time.monotonic() + wait_s
    while left_jobs(paths):
        if time.monotonic() > end:
            raise LockError(
                f"SLURM jobs {', '.join(left)} do not end: cancel them, and run it again"
            )
        time.sleep(1)
    paths.cluster_mark.unlink()


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        words = getattr(error, "stderr", "") or error
        raise LockError(
            f"{command[0]}: {words}: it is not known whether jobs of a dead run still run. Is "
            "SLURM there?"
        ) from None
    return done.stdout
