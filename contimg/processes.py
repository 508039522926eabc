"""Processes that end with those that they work for."""

import ctypes
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ended_before(child: int, run: int) -> bool:
    """Wait for the end of a child or of another process (0: none); whether it was the child's. It
    is not reaped."""

    def ended() -> bool:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    try:
        poller = select.poll()
        poller.register(os.pidfd_open(child), select.POLLIN)
        if run:
            poller.register(os.pidfd_open(run), select.POLLIN)
        poller.poll()
    except ProcessLookupError:  # the run is gone already
        pass
    except OSError:  # no pidfd in this kernel or sandbox
        while not ended() and (not run or Path(f"/proc/{run}").exists()):
            time.sleep(0.5)
    return ended()


def kill_group(child: int) -> None:
    """SIGKILL a child that was not reaped yet, so that the number is its own, and what it
    started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


RUN_PID = "CONTIMG_RUN_PID"
RUN_ID = "CONTIMG_RUN_ID"
CLUSTER_NODE = "CONTIMG_CLUSTER_NODE"  # set where a job runs for a Snakemake elsewhere


def announce_run() -> None:
    """Tell the jobs that this process starts whose end is theirs too."""
    os.environ[RUN_PID] = str(os.getpid())
