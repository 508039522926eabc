"""A Snakemake run and the queue: what happens at its start, at each of its jobs, and at its end.

Snakemake's `onstart` calls `begin`; the logger plugin calls `job_started`, `job_finished` and `job_failed` from the
same process. A dry-run has no `onstart`, so it leaves no trace.
"""

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from contimg import db, ingest
from contimg.config import Config
from contimg.errors import LockError
from contimg.paths import TMPFS, Paths
from contimg.planning import Plan, make_plans
from contimg.registry import Base as RegistryBase
from contimg.stage import RUN_ID, lock, read_json, write_json

log = logging.getLogger(__name__)

_STAGED_PER_RAW = 1.2
_TMPFS_RESERVE_BYTES = 2 << 30  # /dev/shm is memory, and others want some of it
_RESULT_OF = {"select": "caltables"}


def _one_at_a_time(method):
    """Serialise the plugin's events with the end of the run."""

    @functools.wraps(method)
    def locked(self, *args):
        with self._events:
            return method(self, *args)

    return locked


class Run:
    """The one run of this process."""

    def __init__(self, config: Config, plans: dict[str, Plan], staging: Path, asked: Collection[str] = ()):
        self.config, self.plans, self.paths = config, plans, Paths.of(config)
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        self._held = ExitStack()
        self._claimed: set[str] = set()
        self._lost: set[str] = set()  # groups that failed in this run
        self._staging = staging
        self.asked = asked  # groups asked for by name
        self._ended = False
        self._events = threading.Lock()  # the plugin's thread against the main one

    def begin(self) -> None:
        """Take the run lock, clean what dead runs left, bring the queue up to date. Raises LockError if another runs."""
        self._held.enter_context(
            lock(self.paths.run_lock, wait=False, what="another run is working on this state folder")
        )
        os.environ[RUN_ID] = self.id
        clean_staging(self.paths, self._staging, {g for g, p in self.plans.items() if p.action == "run"})
        now = make_plans(self.config, time.time(), self.asked)
        if any(_gist(now.get(g)) != _gist(p) for g, p in self.plans.items() if p.action == "run"):
            raise LockError("its groups changed while this run was planned (another one ended just now?): run it again")
        finished = {g for g in self.plans if self.paths.result(g, "index").exists()}
        now_s = time.time()
        with db.writing(self.paths.ingest_db, ingest.Base) as session:
            ingest.forget_collecting(session, self.plans)
            for plan in self.plans.values():
                if plan.action != "done" or session.get(ingest.Group, plan.group.id) is None:
                    ingest.record_files(session, plan.group, self.config.ingest, now_s)
                if plan.mid_mjd is not None:
                    ingest.note_pointing(
                        session, plan.group.id, plan.mid_mjd, plan.app_dec_deg, list(plan.calibrators)
                    )  # fmt: skip
            ingest.recover(session, finished, self.config.ingest.max_retries)
            for plan in self.plans.values():
                ingest.note_waiting(session, plan.group.id, plan.action == "waiting", plan.reason)
        with db.writing(self.paths.registry_db, RegistryBase):
            pass
        snapshot = {
            g: {"action": p.action, "reason": p.reason, "depends_on": p.depends_on} for g, p in self.plans.items()
        }
        write_json(
            self.paths.run_snapshot(self.id), {"run": self.id, "config": self.config.digest(), "groups": snapshot}
        )

    @_one_at_a_time
    def job_started(self, group: str, rule: str) -> None:
        """First job of a group: claim it."""
        if self._ended or group in self._claimed:
            return
        self._claimed.add(group)
        with db.writing(self.paths.ingest_db, ingest.Base) as session:
            row = session.get(ingest.Group, group)
            if row is None:
                return
            if row.state in ("completed", "failed") and group in self.asked:
                ingest.move(session, group, "pending", error=None, retry_count=0)
            stages = ("convert", "concat", "prepare", "solve", "apply", "image", "qa")
            earlier = [s for s in stages if self.paths.result(group, s).exists()]
            ingest.claim(session, group, self.id, resuming=bool(earlier))
        if earlier:
            log.info("group %s resumes after %s", group, earlier[-1])

    @_one_at_a_time
    def job_finished(self, group: str, rule: str) -> None:
        """A stage is done; the last one completes the group."""
        if not self._is_mine(group):
            return
        stage = _RESULT_OF.get(rule, rule)
        with db.writing(self.paths.ingest_db, ingest.Base) as session:
            ingest.stage_finished(session, group, stage, self.paths.result(group, stage))
            if rule == "index":
                ingest.move(session, group, "completed", error=None)

    @_one_at_a_time
    def job_failed(self, group: str, rule: str) -> None:
        """The attempt at a group failed: back to the queue, or failed for good."""
        if not self._is_mine(group):
            return
        with db.writing(self.paths.ingest_db, ingest.Base) as session:
            self._fail(session, group, f"{rule} failed; see {self.paths.log(group, rule)}")

    def _fail(self, session, group: str, error: str) -> None:
        """Spend an attempt; the stage's own words, where it left some, say why."""
        self._lost.add(group)
        permanent = False
        if self.paths.error(group).exists():
            noted = read_json(self.paths.error(group))
            error, permanent = f"{noted['stage']}: {noted['error']}", noted["permanent"]
        ingest.attempt_failed(session, group, error, self.config.ingest.max_retries, permanent)

    def _is_mine(self, group: str) -> bool:
        return not self._ended and group in self._claimed and group not in self._lost

    def end(self) -> None:
        """Settle what is still claimed, and release the lock.

        Events may still be on their way through Snakemake's logging thread: the results on disk decide.
        """
        with self._events:
            self._ended = True
            with db.writing(self.paths.ingest_db, ingest.Base) as session:
                for group in self._claimed - self._lost:
                    row = session.get(ingest.Group, group)
                    if row is None or row.owner != self.id:
                        continue
                    if self.paths.error(group).exists():
                        self._fail(session, group, "")
                    elif self.paths.result(group, "index").exists():
                        ingest.move(session, group, "completed", error=None)
                    else:
                        ingest.release(session, group)
            self._held.close()


def _gist(plan: Plan | None) -> tuple | None:
    """What a group's jobs follow from."""
    return plan and (plan.action, plan.calset, plan.depends_on, tuple(sorted(plan.group.files.items())))


def clean_staging(paths: Paths, chosen: Path, keep: set[str]) -> None:
    """Remove what dead runs left in staging; groups of this run may go on from theirs."""
    for root in {*paths.staging_roots().values(), chosen}:
        for folder in root.glob("????-??-??T??:??:??") if root.exists() else ():
            if root != chosen or folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def choose_staging(config: Config, plans: dict[str, Plan], cores: int) -> Path:
    """The folder for subband Measurement Sets in this run: tmpfs when it has room for those in flight, else disk.

    A group needs about its raw size, until it is concatenated.
    """
    if config.paths.staging != "auto":
        return Path(config.paths.staging)
    roots = Paths.of(config).staging_roots()
    if config.conversion.staging != "auto":
        return roots[config.conversion.staging]
    largest = 0
    for plan in plans.values():
        if plan.action == "run":
            largest = max(largest, sum(f.stat().st_size for f in plan.group.files.values() if f.exists()))
    groups = max(1, cores // config.conversion.workers) + 2  # converted at once, and waiting for concat
    needed = groups * _STAGED_PER_RAW * largest
    has_room = TMPFS.is_dir() and shutil.disk_usage(TMPFS).free - needed > _TMPFS_RESERVE_BYTES
    return roots["tmpfs" if has_room else "disk"]


current: Run | None = None
"""The run of this process, once it has begun; what the logger plugin looks at."""
