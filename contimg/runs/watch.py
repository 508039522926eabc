"""The watcher: files in, groups into the queue, and one bounded Snakemake run after the other on
those that can go.

It looks at the folder when something happens there (watchdog), and every `ingest.poll_s` anyway
(network file systems send no events). Everything that it knows is in the queue and on disk: it can
be killed at any moment. It never imports CASA: the science happens in the Snakemake that it starts.
"""

import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from contimg.chain import LAST
from contimg.clock import now
from contimg.config import Config
from contimg.errors import ContimgError
from contimg.paths import Paths
from contimg.products import record
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.queue.planning import WATCHED, Plan, make_plans
from contimg.runs.recovery import refresh, settle_cluster
from contimg.runs.session import NOT_NOW, REFUSED, keep_newest, require_site, snakemake_command
from contimg.store import db
from contimg.store.files import found_json, holder_of, lock, write_json

log = logging.getLogger(__name__)
# at most this long into new files at a time, so that groups can start while an archive is looked at
_LOOK_S = 5.0
_LOGS_KEPT = 500
_LONGEST_WAIT_S = 600.0
# plan again after this long, though nothing has changed (somebody may have registered a
# calibration)
_IDLE_S = 60.0


@dataclass
class Refusals:
    """Runs that end before they begin: is it the workflow (configuration, disk), or one of the
    groups?

    After such a run its groups are tried alone. One with which no run begins is to blame only if a
    run with another one has begun in the meantime.
    """

    in_a_row: int = 0
    # groups of such a run that were not tried alone yet
    untried: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)  # alone, and refused; the latest last
    others_begin: bool = False

    def alone(self, ready: Sequence[str]) -> list[str]:
        """Groups to be tried alone, in order; empty when there is no need for it. `ready` is in the
        order preferred."""
        self.untried &= set(ready)
        self.tried = [group for group in self.tried if group in ready]
        if not self.untried and not self.tried:
            return []
        witness = [
            group for group in ready if group not in self.untried and group not in self.tried
        ][:1]
        return [*(group for group in ready if group in self.untried), *witness, *self.tried]

    def begun(self, batch: Sequence[str]) -> None:
        """A run has begun."""
        self.in_a_row, self.others_begin = 0, True
        self.untried -= set(batch)
        self.tried = [group for group in self.tried if group not in batch]

    def refused(self, batch: Sequence[str], killed: bool = False) -> str | None:
        """A run has ended before it began; returns the group that is to blame, if that can be
        said."""
        self.in_a_row += 1
        if killed:
            return None
        if not self.untried and not self.tried:
            self.untried, self.others_begin = set(batch), False
        if len(batch) > 1:
            return None
        (group,) = batch
        self.untried.discard(group)
        self.tried = [other for other in self.tried if other != group]
        if self.others_begin:
            return group
        self.tried.append(group)
        return None


class Watcher:
    """Feeds Snakemake. One at a time for a state folder; `watch` returns when it was told to
    stop."""

    def __init__(
        self,
        config: Config,
        configfiles: Sequence[Path],
        profile: str,
        snakefile: Path | None = None,
    ):
        self.config, self.paths = config, Paths.of(config)
        self._command = snakemake_command(profile, configfiles, snakefile)
        self._child: subprocess.Popen | None = None
        self._stamp = ""  # of the child
        self._batch: list[str] = []  # its groups
        self._mark = 0  # the queue's last move before it was started
        self._refusals = Refusals()
        self._not_before_s = self._settle_at_s = 0.0
        self._stops = 0  # signals that asked to stop
        self._waits_for: str | None = None
        self._problem: str | None = None  # said already
        self._refused: str | None = None  # why the last run did not begin
        self._idle_for: set[str] = set()  # pending groups of which none could go
        self._idle_until_s = 0.0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def watch(self) -> None:
        """Work until SIGTERM or SIGINT; raises LockError if another watcher is at work here."""
        require_site(self.config)
        with lock(
            self.paths.watch_lock,
            wait=False,
            what="another watcher is at work on this state folder",
        ):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            observer = self._observe()
            log.info(
                "watching %s; a group every run of at most %d",
                self.config.paths.incoming,
                self.config.ingest.groups_per_run,
            )
            os.environ[WATCHED] = "1"
            record.remake(self.config, log.warning)
            while not (self._stops and self._child is None):
                busy = False
                try:
                    busy = self._step()
                    self._problem = None
                    self._tell(None)
                except (
                    OSError,
                    SQLAlchemyError,
                    ContimgError,
                ) as error:  # a full disk, a lost mount: they come back
                    words = f"{type(error).__name__}: {error}"
                    if words != self._problem:  # it may last for hours
                        log.error("%s", words)
                    self._problem = words
                    with suppress(OSError):
                        self._tell(words)
                if not busy:
                    self._sleep()
            if observer:
                observer.stop()
            log.info("stopped")

    def _stop(self, *_) -> None:
        """Finish the running jobs and stop; the second time, stop at once."""
        self._stops += 1
        self._pass_on_stop()
        self._wake()

    def _pass_on_stop(self) -> None:
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGTERM if self._stops == 1 else signal.SIGKILL)

    def _wake(self) -> None:
        """From a signal handler or another thread: end the sleep."""
        with suppress(BlockingIOError):
            os.write(self._writer, b".")

    def _sleep(self) -> None:
        if select.select([self._reader], [], [], self.config.ingest.poll_s)[0]:
            if self._child is None and not self._stops:
                time.sleep(self.config.ingest.settle_s)  # a group's files come one after the other
            os.read(self._reader, 1 << 16)

    def _observe(self):
        """Events of the incoming folder, where the system gives them."""
        handler = FileSystemEventHandler()
        handler.on_created = handler.on_moved = handler.on_closed = self._seen
        observer = Observer()
        try:
            observer.schedule(handler, str(self.config.paths.incoming))
            observer.start()
        except OSError as error:
            log.warning(
                "no events from %s (%s): looking every %g s",
                self.config.paths.incoming,
                error,
                self.config.ingest.poll_s,
            )
            return None
        return observer

    def _seen(self, event: FileSystemEvent) -> None:
        if self._child is None:
            self._wake()

    def _step(self) -> bool:
        """One look at everything; True when there is more to look at."""
        if self._child is not None and self._child.poll() is not None:
            self._read_outcome()
        begin = time.monotonic()
        known = moves.known_groups(self.paths.ingest_db)
        groups = arrivals.look(self.config, known, time.time(), seconds=_LOOK_S)
        more = time.monotonic() - begin > _LOOK_S and bool(
            arrivals.new_files(self.config, known, groups, time.time())
        )
        for group, state in refresh(self.config, known, groups)[0].items():
            log.info("%s: its run died; now %s", group, state)
        if time.time() >= self._settle_at_s:
            settle_cluster(self.config, log.info)
            self._settle_at_s = time.time() + _IDLE_S
        now_known = moves.known_groups(self.paths.ingest_db, files=False)
        _say_news(known, now_known)
        if self._child is None and not self._stops and time.time() >= self._not_before_s:
            present = now()
            self._start_run(
                {
                    g
                    for g, s in now_known.items()
                    if s.state == "pending" and (s.not_before or "") <= present
                }
            )
        return more

    def _start_run(self, ready: set[str]) -> None:
        """Start Snakemake on those of the `ready` groups (pending, back-off over) that can go."""
        if (
            not ready
            or (ready == self._idle_for and time.time() < self._idle_until_s)
            or self._run_lock_is_held()
        ):
            return
        plans = make_plans(self.config, time.time())
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            moves.note_calibration(session, plans)
            self._mark = moves.last_move(session)
        newest_first = self.config.ingest.order == "newest"
        alone = self._refusals.alone(sorted(ready, reverse=newest_first))
        self._batch = next(
            filter(
                None,
                (choose_slice({g: plans[g]}, ready, newest_first, 1) for g in alone if g in plans),
            ),
            [],
        ) or choose_slice(plans, ready, newest_first, self.config.ingest.groups_per_run)
        if not self._batch:  # all wait for a calibration
            self._idle_for, self._idle_until_s = ready, time.time() + _IDLE_S
            return
        self._stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3]
        logfile = self.paths.run_log(self._stamp)
        logfile.parent.mkdir(parents=True, exist_ok=True)
        keep_newest(self.paths.run_log("*"), _LOGS_KEPT)
        targets = [str(self.paths.result(g, LAST)) for g in self._batch]
        targets += ["over"] * (self.config.mosaics.make == "over")
        log.info(
            "run %s: %d groups, %s to %s; %s",
            self._stamp,
            len(targets),
            min(self._batch),
            max(self._batch),
            logfile,
        )
        with logfile.open("w") as output:
            # A session of its own: Ctrl-C in a terminal reaches the watcher alone, which lets the
            # jobs finish.
            self._child = subprocess.Popen(
                [*self._command, "--", *targets],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        threading.Thread(target=self._wake_at_end_of, args=(self._child.pid,), daemon=True).start()
        if self._stops:
            self._pass_on_stop()

    def _wake_at_end_of(self, pid: int) -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # leaves the status for poll()
        self._wake()

    def _read_outcome(self) -> None:
        """What became of the groups of a run that has ended."""
        code, self._child = self._child.returncode, None
        options, now_s = self.config.ingest, time.time()
        with db.writing(self.paths.ingest_db, queue_tables.Base) as session:
            begun = moves.begun_since(session, self._mark, self._batch)
            rows = [session.get(queue_tables.Group, group) for group in sorted(begun)]
            counts = Counter(row.state for row in rows)
            for row in rows:
                if row.error and row.state in ("failed", "pending"):
                    log.error(
                        "%s: %s after attempt %d: %s",
                        row.group_id,
                        row.state,
                        row.retry_count,
                        row.error,
                    )
            not_now = self._stops or code in (NOT_NOW, REFUSED)
            blamed = (
                None if begun or not_now else self._refusals.refused(self._batch, killed=code < 0)
            )
            row = session.get(queue_tables.Group, blamed) if blamed else None
            if row is not None and row.state == "pending":
                error = f"no run begins with this group; see {self.paths.run_log(self._stamp)}"
                state = moves.attempt_failed(session, blamed, error, options, now_s)
                log.error("%s: %s: %s", blamed, state, error)
        words = (
            ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "nothing was begun"
        )
        log.info("run %s ended with status %d: %s", self._stamp, code, words)
        refused = (
            (found_json(self.paths.refusal) or {}).get("error")
            if code == REFUSED and not begun
            else None
        )
        if begun:
            self._refusals.begun(self._batch)
        elif refused:
            if refused != self._refused:
                log.error("no run begins: %s. Looking again every %g s", refused, _IDLE_S)
            self._not_before_s = now_s + _IDLE_S
        elif not_now:
            self._not_before_s = now_s + self.config.ingest.poll_s
        else:
            wait_s = min(
                options.retry_backoff_s * 2 ** (self._refusals.in_a_row - 1), _LONGEST_WAIT_S
            )
            self._not_before_s = now_s + wait_s
            log.error(
                "the run ended before it began; see %s. Next attempt in %g s, with one group",
                self.paths.run_log(self._stamp),
                wait_s,
            )

        self._refused = refused

    def _tell(self, problem: str | None) -> None:
        """For `contimg status`: what the watcher does now."""
        if self._refused:
            problem = f"no run begins: {self._refused}"
        if number := self._refusals.in_a_row:
            problem = (
                f"the last {number} runs ended before they began; see "
                f"{self.paths.run_log(self._stamp)}"
            )
        write_json(
            self.paths.watcher,
            {
                "pid": os.getpid(),
                "at": now(),
                "run": self._stamp if self._child else None,
                "groups": self._batch if self._child else [],
                "problem": problem,
            },
        )

    def _run_lock_is_held(self) -> bool:
        """Whether a run is at work here: an operator's, or one of a watcher that was killed."""
        holder = holder_of(self.paths.run_lock("local"))
        if holder and holder != self._waits_for:
            log.info("waiting for the run of process %s", holder)
        self._waits_for = holder
        return holder is not None


def _say_news(before: dict[str, moves.GroupStatus], after: dict[str, moves.GroupStatus]) -> None:
    """Groups that came, became complete, or failed for want of files."""
    for name, status in after.items():
        was = before[name].state if name in before else None
        if was is None:
            log.info("%s: new group, %s", name, status.state)
        elif was in ("collecting", "failed") and was != status.state:
            log.info("%s: %s%s", name, status.state, f": {status.error}" if status.error else "")


def choose_slice(
    plans: dict[str, Plan], ready: set[str], newest_first: bool, most: int
) -> list[str]:
    """Groups for one run: those that can go, in order, each calibrator group ahead of the targets
    that need it.

    ready  pending groups whose back-off is over; a target whose calibrator group is not among them
           stays
    """
    chosen: list[str] = []
    for group in sorted(plans, reverse=newest_first):
        plan = plans[group]
        needed = [g for g in dict.fromkeys((*plan.needs, group)) if g not in chosen]
        if plan.action != "run" or not {*plan.needs, group} <= ready:
            continue
        if len(chosen) + len(needed) <= most:
            chosen += needed
        elif most == 1 and not chosen:
            chosen = needed[:1]  # the calibrator group alone
    return chosen
