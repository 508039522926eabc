"""A SLURM cluster: whose jobs are ours, and those that a dead run left."""

import functools
import os
import subprocess
import time
from collections.abc import Callable

from contimg.errors import LockError
from contimg.paths import Paths

_WAIT_S = 120
_TIMEOUT_S = 60
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
          "REVOKED"}  # fmt: skip


def job_prefix(paths: Paths) -> str:
    """How the names of a state folder's jobs begin."""
    return f"contimg-{paths.tag}"


def prepare(paths: Paths, executor) -> None:
    """Have Snakemake's SLURM plugin (2.6.1) name this run's jobs so that they are found when the run has died, announce every
    job, and report one that could not be submitted.

    Its option for the names (jobname_prefix) is the command line's; when a Snakefile is parsed there are no settings yet. It
    leaves out Snakemake's own announcement of jobs, from which the queue learns of them. What `run_job` raises is lost in its
    thread, and the job counts as running for ever.
    """
    if not hasattr(executor, "run_uuid"):
        return
    from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

    executor.run_uuid, submit = f"{job_prefix(paths)}_{executor.run_uuid}", executor.run_job

    @functools.wraps(submit)
    def run_job(job):
        try:
            job.log_info()
            submit(job)
        except Exception as error:  # whatever it is, the job does not run
            executor._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error}")

    executor.run_job = run_job


def left_jobs(paths: Paths) -> list[str]:
    """Ids of the jobs of this state folder that have not ended. Raises LockError if that cannot be known."""
    found = _slurm("squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%A %T %j")
    rows = [line.split(maxsplit=2) for line in found.splitlines()]
    return [number for number, state, name in rows if name.startswith(f"{job_prefix(paths)}_") and state not in _ENDED]


def cancel_left_jobs(paths: Paths, say: Callable[[str], None]) -> None:
    """End the jobs of a run that died: this one does their work, and never beside them. Raises LockError if they do not end."""
    if not paths.cluster_mark.exists():
        return
    if not (left := left_jobs(paths)):
        paths.cluster_mark.unlink()
        return
    say(f"SLURM jobs {', '.join(left)} are left of a run that died: cancelled")
    _slurm("scancel", *left)
    end = time.monotonic() + _WAIT_S
    while left_jobs(paths):
        if time.monotonic() > end:
            raise LockError(f"SLURM jobs {', '.join(left)} do not end: cancel them, and run it again")
        time.sleep(1)
    paths.cluster_mark.unlink()


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        words = getattr(error, "stderr", "") or error
        raise LockError(f"{command[0]}: {words}: it is not known whether jobs of a dead run still run. Is SLURM there?") from None
    return done.stdout
