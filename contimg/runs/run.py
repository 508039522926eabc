"""A Snakemake run and the queue: what happens at its start, at each of its jobs, and at its end.

Snakemake's `onstart` calls `begin`; the logger plugin calls `job_started`, `job_finished` and
`job_failed` from the same process. A dry-run has no `onstart`, so it leaves no trace.
"""

import functools
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from contimg.calibration.registry import Base as RegistryBase
from contimg.chain import LAST, STAGES, stage_of, stages_where
from contimg.errors import ContimgError, LockError, RequestError, StateError, is_full
from contimg.processes import RUN_ID
from contimg.products import mosaics, publishing, record, retention
from contimg.products import tables as product_tables
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.queue.planning import Plan, as_json, make_plans, raw_bytes
from contimg.runs import slurm
from contimg.runs.recovery import refresh, settle_cluster
from contimg.runs.session import Session, keep_newest, require_site
from contimg.store import db, staging
from contimg.store.files import found_json, lock, write_json
from contimg.store.identity import SOFTWARE, science_digest, software

_BEATS_PER_LEASE = 4
_SNAPSHOTS_KEPT = 200


def lend_library(rules: Path | str) -> None:
    """Scripts find this library where the workflow's rules are: with --sdm conda they run in an
    environment of packages alone."""
    clone, others = str(Path(rules).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (clone, others)))


def _one_at_a_time(method):
    """Serialise the plugin's events with the end of the run."""

    @functools.wraps(method)
    def locked(self, *args):
        with self._events:
            return method(self, *args)

    return locked


class Run:
    """The one run of this process.

    begun_by  its session: plans of all groups, what was asked for, where its jobs are
    jobs      rules that have jobs in it, by group
    say       tells a line to whoever looks on
    of_slurm  what its jobs are called on a cluster
    """

    def __init__(
        self,
        begun_by: Session,
        jobs: Mapping[str, Collection[str]],
        say: Callable[[str], None] = print,
        of_slurm: str = "",
    ):
        self.config, self.paths = begun_by.config, begun_by.paths
        self.plans, self.asked = begun_by.plans, begun_by.asked
        self.lane, self._on_cluster = begun_by.lane, begun_by.on_cluster
        self._staging, self._cores = begun_by.staging, begun_by.cores
        self._pieces = begun_by.pieces
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}" + (
            "-cluster" if self._on_cluster else ""
        )
        needed = {other for group in jobs for other in self.plans[group].needs}
        self._of_slurm = of_slurm
        self._jobs, self._groups, self._say = jobs, sorted(needed.union(jobs)), say
        self._held = ExitStack()
        self._claimed: set[str] = set()
        self._lost: set[str] = set()  # groups that failed in this run, or were taken from it
        self._events = threading.Lock()  # the plugin's thread against the main one
        self._ended = threading.Event()

    def begin(self) -> None:
        """Take the lane's lock, clean what dead runs left, bring the queue up to date, claim the
        run's groups.

        Raises LockError if another run has the lane, or one of the groups; whatever it raises,
        nothing is claimed then.
        """
        try:
            self._begin()
        except BaseException:
            if self._claimed:
                with (
                    suppress(SQLAlchemyError, StateError),
                    db.writing(self.paths.ingest_db, queue_tables.Base) as session,
                ):
                    for group in self._claimed:
                        moves.release(session, group)
            self._claimed.clear()
            raise

    def _begin(self) -> None:
        require_site(self.config)
        self._take_lane()
        now = make_plans(self.config, time.time(), self.asked, self.lane, alone=True)
        self._require_unchanged(now)
        record.remake(self.config, self._say)
        known = moves.known_groups(self.paths.ingest_db, self.asked)
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            moves.respell(session)
        refresh(self.config, known, [plan.group for plan in now.values()], self.lane)
        # before a group is claimed: from then on there may be jobs
        if self._on_cluster and shutil.which("squeue"):
            write_json(self.paths.cluster_mark, {"run": self.id, "jobs": self._of_slurm})
            slurm.warn_of_short_memory(self._say)
        self._claim_all()
        self._forget_what_is_done_again()
        record.reconcile(self.config, self._say)
        if changed := publishing.mark(self.config):
            self._say(
                f"the calibration sets of {', '.join(changed)} are not what they were: see contimg "
                "registry list"
            )
        self._write_down()
        self.paths.refusal.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()

    def _take_lane(self) -> None:
        """The lane's lock; what dead runs left; the databases; room for staging."""
        what = f"another run ({self.lane}) is working on this state folder"
        self._held.enter_context(lock(self.paths.run_lock(self.lane), wait=False, what=what))
        os.environ[RUN_ID] = self.id
        os.environ[SOFTWARE] = " ".join(software())
        if self._on_cluster:
            slurm.cancel_left_jobs(self.paths, self._say)
        else:
            settle_cluster(self.config, self._say)
        mine = {g for g, plan in self.plans.items() if plan.action == "run"}
        staging.clean(self.paths, self._staging, mine, self._on_cluster)
        for path, base in (
            (self.paths.registry_db, RegistryBase),
            (self.paths.products_db, product_tables.Base),
        ):
            with db.writing(path, base):
                pass
        if not self._on_cluster:
            needed = staging.needed_bytes(self.config, raw_bytes(self.plans), self._cores)
            self._held.enter_context(staging.reserved(self.config, self._staging, needed))

    def _require_unchanged(self, now: Mapping[str, Plan]) -> None:
        """Raise LockError where the plan is not what it was when Snakemake made its DAG,
        RequestError where a set would be solved again beside groups calibrated with it."""
        if any(_gist(now.get(g)) != _gist(self.plans[g]) for g in self._groups):
            raise LockError(
                "its groups changed while this run was planned (another one ended just now?): run "
                "it again"
            )
        again = [
            group
            for group in self.asked
            if "solve" in self._jobs.get(group, ())
            and not self.plans[group].redo
            and self.paths.result(group, "register").exists()
        ]
        if again:
            raise RequestError(
                f"{', '.join(sorted(again))}: the set that others were calibrated with would be "
                "solved again beside them; --forcerun is for apply and later stages. Use "
                "contimg reprocess GROUP --from solve."
            )

    def _claim_all(self) -> None:
        """The run's groups are its own; raises LockError if another run has one."""
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            for group in self.asked:
                row = session.get(queue_tables.Group, group) if group in self._groups else None
                if row is not None and row.state in ("completed", "failed", "collecting"):
                    moves.move(session, group, "pending", error=None, retry_count=0)
            moves.note_calibration(session, self.plans)
            try:
                for group in self._groups:
                    self._claim(session, group)
            except StateError as error:
                self._claimed.clear()
                raise LockError(
                    f"{error}: another run has it, or had it a moment ago: run it again"
                ) from None

    def _forget_what_is_done_again(self) -> None:
        """Remove the results of what is to be done again: it is not done, should this run not come
        to it. Raises LockError for groups whose old results Snakemake took for good."""
        surprised = []
        for group in self._groups:
            stages = [stage_of(rule) for rule in self._jobs.get(group, ())]
            redo = [s for s in self.plans[group].redo if self.paths.result(group, s).exists()]
            # Snakemake goes by the disk's clock, which may be ahead of ours
            if not set(redo) <= set(stages):
                surprised.append(group)
            again = [stage for stage in STAGES if stage in (*stages, *redo)]
            moves.remove_results(self.paths, group, again)
        if surprised:
            raise LockError(
                f"{', '.join(surprised)}: other files or another calibration came, its old results "
                "are gone: run it again"
            )

    def _write_down(self) -> None:
        """What this run is, for its jobs, and for provenance."""
        digest = science_digest(self.config)
        if not self.paths.config(digest).exists():
            write_json(self.paths.config(digest), self.config.model_dump(mode="json"))
        about = {
            "run": self.id,
            "command": shlex.join(sys.argv),
            "config": digest,
            "software": os.environ[SOFTWARE],
            "staging": str(self._staging),
            "jobs": self._of_slurm,
            "groups": {group: as_json(self.plans[group]) for group in self._groups},
            "pieces": {name: one.as_json() for name, one in self._pieces.items()},
        }
        write_json(self.paths.run_snapshot(self.id), about)
        mine = self.paths.run_snapshot("*-cluster" if self._on_cluster else "*[0-9]")
        keep_newest(mine, _SNAPSHOTS_KEPT)

    def _beat(self) -> None:
        """Signs of life, until the run ends."""
        while not self._ended.wait(self.config.ingest.lease_s / _BEATS_PER_LEASE):
            try:
                with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
                    moves.beat(session, self.id)
            except SQLAlchemyError as error:  # a full disk, or one that went away; it may come back
                self._say(f"the queue could not be told that this run lives: {error}")

    @_one_at_a_time
    def job_started(self, group: str, rule: str) -> None:
        """A stage begins; with the first one the group is at work."""
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            if not self._holds(session, group):
                return
            if session.get(queue_tables.Group, group).state == "in_progress":
                stages = [
                    s
                    for s in STAGES
                    if s not in ("register", "caltables") and self.paths.result(group, s).exists()
                ]
                moves.start(session, group, resuming=bool(stages))
                if stages:
                    self._say(f"group {group} resumes after {stages[-1]}")
            # A cluster's jobs are told when they are submitted: which stage runs, and whether one
            # does, is not known here.
            if not self._on_cluster:
                moves.stage_started(session, group, stage_of(rule))

    def _claim(self, session, group: str) -> None:
        """Hold a group from the run's begin on, so that no other run takes it; raises StateError if
        one has it."""
        moves.claim(session, group, self.id)
        self._claimed.add(group)

    @_one_at_a_time
    def job_finished(self, group: str, rule: str) -> None:
        """A stage is done; the last one completes the group."""
        stage = stage_of(rule)
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            if not self._holds(session, group):
                return
            self._note(group, stage)  # the index first: the queue never knows more
            moves.stage_finished(session, group, stage, self.paths.result(group, stage))
            moves.record_performance(session, group, record.results_of(self.paths, group))
            if stage == LAST:
                moves.move(session, group, "completed", error=None)

    @_one_at_a_time
    def job_failed(self, group: str, rule: str) -> None:
        """The attempt at a group failed: back to the queue, or failed for good."""
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            if self._holds(session, group):
                self._fail(session, group, rule)

    def _fail(self, session, group: str, rule: str | None) -> None:
        """Spend an attempt; the stage's own words, where it left some, say why."""
        self._lost.add(group)
        if noted := self._noted(group):
            error, permanent = f"{noted['stage']}: {noted['error']}", noted["permanent"]
            rule = noted["stage"]
        else:
            if self._on_cluster:  # a job is many stages
                left = [
                    stage
                    for stage in stages_where(on_node=True)
                    if not self.paths.result(group, stage).exists()
                ]
                rule = left[0] if left else rule
            words = f"{rule} ended without a word (killed, or out of memory?)"
            error, permanent = f"{words}; see {self.paths.log(group, rule)}", False
        # convert's own output Snakemake removes, at this moment
        if rule != "convert" and not self._on_cluster:
            staging.remove_group(self._staging, group)
        waits_for = noted.get("waits_for") if noted else "room" if self._is_full(group) else None
        # A node's disk is not known to come back.
        spent = waits_for is None or (waits_for == "room" and self._on_cluster)
        self._note(group, rule or "", error)
        moves.attempt_failed(
            session, group, error, self.config.ingest, time.time(), permanent, spent
        )

    def _is_full(self, group: str) -> bool:
        """Whether a stage could not even leave a word: nothing can be written beside the products
        now."""
        probe = self.paths.error(group).with_suffix(".probe")
        try:
            write_json(probe, {"padding": " " * 4096})
            probe.unlink()
        except OSError as error:
            return is_full(error)
        return False

    def _note(self, group: str, stage: str, reason: str | None = None) -> None:
        """Tell the index; when it cannot be written, the queue is not held up by that."""
        try:
            record.note(self.config, group, stage, reason)
        except (ContimgError, SQLAlchemyError, OSError, ValueError) as error:
            self._say(
                f"group {group}, {stage}: {self.paths.products_db.name} could not be told: {error}"
            )

    def _noted(self, group: str) -> dict | None:
        """What a stage said when it failed in this run."""
        noted = found_json(self.paths.error(group))
        return noted if noted and noted.get("run") == self.id else None

    def _holds(self, session, group: str) -> bool:
        """Whether the group is still this run's: a run that seemed dead (suspended) may have lost
        it."""
        if self._ended.is_set() or group not in self._claimed or group in self._lost:
            return False
        row = session.get(queue_tables.Group, group)
        if row is None or row.owner != self.id:
            self._lost.add(group)
            if row is not None and row.state == "completed":
                return False
            self._say(f"group {group} was taken from this run, which gave no sign of life")
            return False
        return True

    def end(self) -> None:
        """Settle what is still claimed, and release the lock.

        Events may still be on their way through Snakemake's logging thread: the results on disk
        decide.
        """
        with self._events:
            # Snakemake's own cancelling misses jobs that it was about to submit
            if self._on_cluster:
                try:
                    slurm.cancel_left_jobs(self.paths, self._say)
                except (
                    LockError
                ) as error:  # their groups stay with this run until the next one has ended them
                    self._say(f"{error}")
                    self._lost |= self._claimed
            try:
                self._settle()
            except (
                SQLAlchemyError
            ) as error:  # a full disk, say: the next run finds out from the results and the notes
                self._say(f"the queue could not be told how this run ended: {error}")
            self._ended.set()
            try:
                for group in () if self._on_cluster else self._lost:
                    staging.remove_group(self._staging, group)
                for folder in (*(self._staging / group for group in self._claimed), self._staging):
                    # what is in one belongs to a group that goes on from it
                    staging.remove_if_empty(folder)
                gone, problems = retention.prune(self.config)
                for kind, names in gone.items():
                    if names:
                        self._say(
                            f"retention: deleted the {kind.replace('_', ' ')} of {', '.join(names)}"
                        )
                for problem in problems:
                    self._say(f"retention: {problem}")
                self._record_mosaics()
                self._update_lightcurves()
            finally:
                self._held.close()

    def _record_mosaics(self) -> None:
        """Tell the index of the mosaics that were made."""
        try:
            mosaics.record(self.config)
            for failed in mosaics.failures(self.paths) if self._pieces else ():
                self._say(f"not made: {failed}")
        except (ContimgError, SQLAlchemyError, OSError, ValueError, KeyError) as error:
            what = f"{type(error).__name__}: {error}"
            self._say(f"{self.paths.products_db.name} could not be told of mosaics: {what}")

    def _update_lightcurves(self) -> None:
        """Bring light curves up to date, where that is due; what is wrong with them stops no
        run."""
        minutes, mark = self.config.photometry.update_minutes, self.paths.lightcurves_at
        last_s = mark.stat().st_mtime if mark.exists() else 0
        if minutes is None or time.time() - last_s < 60 * minutes:
            return
        from contimg.products import lightcurves  # coordinates: not to be read for every dry-run

        try:
            updated = lightcurves.update(self.config)
        except Exception as error:  # whatever it is: the run is done
            what = f"{type(error).__name__}: {error}"
            self._say(f"light curves are not up to date: {what}. See contimg lightcurves")
            return
        if updated.days:
            self._say(f"light curves: {updated.days} days, {updated.candidates} candidates")

    def _settle(self) -> None:
        """What became of the groups that are still claimed."""
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            for group in sorted(self._claimed - self._lost):
                row = session.get(queue_tables.Group, group)
                if row is None or row.state == "completed" or not self._holds(session, group):
                    continue
                stage = row.running_stage
                if row.state == "in_progress":
                    moves.release(session, group)
                elif self._noted(group) or (stage and not self.paths.result(group, stage).exists()):
                    self._fail(session, group, stage)
                elif self.paths.result(group, LAST).exists():
                    moves.record_performance(session, group, record.results_of(self.paths, group))
                    moves.move(session, group, "completed", error=None)
                else:
                    moves.release(session, group)


def _gist(plan: Plan | None) -> tuple | None:
    """What a group's jobs follow from."""
    return (
        None
        if plan is None
        else (plan.action, plan.calset, plan.depends_on, tuple(sorted(plan.group.files.items())))
    )


current: Run | None = None
"""The run of this process, once it has begun; what the logger plugin looks at."""
