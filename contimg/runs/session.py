"""What a Snakemake process of ours works with: configuration, plan, targets, staging; the site, how
Snakemake is started, and why a run did not begin.

The Snakefile opens a session and asks it; jobs take the plan of their run from its snapshot.
"""

import functools
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from contimg.clock import now
from contimg.config import DEFAULT_CONFIG, Config, from_mapping
from contimg.errors import ContimgError, LockError, NotNow, RequestError, StateError, is_full
from contimg.paths import GROUP_PATTERN, LANES, Paths
from contimg.processes import CLUSTER_NODE, RUN_ID, announce_run
from contimg.products.mosaics import DAY, Piece
from contimg.queue.moves import is_converted
from contimg.queue.planning import Plan, from_json, make_plans, raw_bytes, targets
from contimg.store.db import mjd
from contimg.store.files import found_json, write_json
from contimg.store.identity import SOFTWARE
from contimg.store.staging import choose_root

NOT_NOW = 75
"""Exit status of a run that was refused because of another run, or for want of a disk
(EX_TEMPFAIL)."""
REFUSED = 78
"""Exit status of a run that cannot begin until somebody mends something (EX_CONFIG)."""


@dataclass(frozen=True)
class Session:
    """What a Snakemake process works with: the one that decides, or one of its jobs.

    asked       groups named on the command line, by themselves or by a day or a calibrator
    targets     what was named there that is more than a group's result: its groups
    pieces      tracts on sidereal days that are to be made, or looked at, by id
    of_target   ids of those that a target is of
    staging     where subband Measurement Sets wait for `concat`
    on_cluster  jobs, and their staging, are elsewhere
    decides     this is Snakemake's main process, not one that does a job
    """

    config: Config
    paths: Paths
    plans: Mapping[str, Plan]
    targets: Mapping[str, list[str]]
    asked: Collection[str]
    staging: Path
    cores: int
    on_cluster: bool
    decides: bool
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    of_target: Mapping[str, Collection[str]] = field(default_factory=dict)

    @property
    def lane(self) -> str:
        """Of the two kinds of runs that may be at work at once, the one that this is of."""
        return LANES[self.on_cluster]

    def to_run(self) -> list[str]:
        """Groups that run without being named: calibrator groups first, since others wait for
        their sets."""
        newest_first = self.config.ingest.order == "newest"
        ready = (group for group, plan in self.plans.items() if plan.action == "run")
        order = sorted(ready, reverse=newest_first)
        return sorted(order, key=lambda group: not self.plans[group].calibrators)

    def imaged(self, groups: Iterable[str]) -> list[str]:
        """Those that have images, or can have them."""
        return [group for group in groups if self.plans[group].action in ("run", "done")]

    def piece_of(self, tract: str, sday: str) -> Piece:
        """A tract on a day; one that this run has no business with is as it is."""
        return self.pieces.get(f"{tract}.{sday}") or Piece(tract, int(sday))

    @functools.cached_property
    def _with_mosaic(self) -> list[str]:
        return self.paths.with_result(DAY)

    def days_of(self, tract: str) -> list[str]:
        """Days of a tract that have a mosaic, or get one in this run; in order."""
        there = [name for name in self._with_mosaic if name.startswith(f"{tract}.")]
        mine = [one.id for one in self.pieces.values() if one.tract == tract]
        days = {name.rpartition(".")[2] for name in [*there, *mine]}
        return sorted(days, key=int)

    def plan_of(self, group: str) -> Plan:
        """The plan of a group to be worked on; raises RequestError for one that cannot be."""
        if group not in self.plans:
            raise RequestError(
                f"group {group} has no files in {self.paths.incoming}; see `contimg plan`"
            )
        plan = self.plans[group]
        if plan.calset is None:
            raise RequestError(f"group {group} cannot be imaged now: {plan.reason}")
        return plan

    def is_redone(self, group: str, stage: str | None = None) -> bool:
        """Whether a stage of a group (or any) is done again though it has a result."""
        plan = self.plans.get(group)
        return plan is not None and (stage in plan.redo if stage else bool(plan.redo))

    def raw_inputs(self, group: str) -> list[Path]:
        """A group's raw files that Snakemake is to look at, in order of subbands.

        It refuses outputs that are older than their inputs, though some files are dated in the
        future; the stage gets those all the same.
        """
        now_s, needed = time.time(), not is_converted(self.paths, group)

        def counts(path: Path) -> bool:
            return path.stat().st_mtime < now_s if path.exists() else needed

        return [path for _, path in sorted(self.plan_of(group).group.files.items()) if counts(path)]

    def chooses_first(self, group: str) -> bool:
        """A target chooses its calibration before anything is done with its data; a calibrator
        group cannot."""
        return not (self.plan_of(group).own_set or is_converted(self.paths, group))

    def waits_for(self, group: str) -> list[str]:
        """Other groups whose sets, solved in this run, a group is calibrated with."""
        return [other for other in self.plan_of(group).needs if other != group]

    def misused(self, *, touch: bool, local: bool) -> str | None:
        """Why nothing is begun with such options of Snakemake, in words."""
        if touch:
            return (
                "--touch would make stages done that are not: nothing was begun. "
                "contimg reprocess says what to do again"
            )
        if local == self.on_cluster:
            return (
                "--cores (and no --jobs) is for one machine, --jobs (and no --cores) for a "
                "cluster: nothing was begun"
            )
        return None

    def left_out(self) -> list[str]:
        """What is not in this run, and why: a line for each group."""
        return [
            f"not in this run: {plan.group.id} {plan.action}: {plan.reason}"
            for plan in self.plans.values()
            if plan.action in ("running", "waiting", "collecting", "failed")
        ] + [
            f"not in this run: {one.id}, which stays as it is: {one.frozen}"
            for one in self.pieces.values()
            if one.frozen
        ]

    def summary(self) -> str:
        """The plan in one line: the last message of a run, and the only one when there is nothing
        to do."""
        counts = Counter(plan.action for plan in self.plans.values())
        rest = [f"{n} {action}" for action, n in sorted(counts.items()) if action != "run"]
        begin = f"{counts['run']} groups imaged" if counts["run"] else "Nothing to be done"
        return (
            f"{'; '.join([begin, *rest])}. `contimg plan` says why, `contimg status` what came out."
        )


def open_session(
    values: Mapping,
    argv: Sequence[str],
    *,
    decides: bool,
    cores: int | None,
    nodes: int | None,
    keep_staged: bool,
    on_node: bool,
) -> Session:
    """The session of a Snakemake process; plans unless a run has done so already.

    values       the configuration, as Snakemake has it
    argv         the command line: a Snakefile is not told which targets were asked for
    cores        none on a cluster, whose profile has `jobs` (1 then in a dry-run; no executor is
                 known yet)
    nodes        jobs at a time
    keep_staged  --notemp: nothing will be removed when it was concatenated
    on_node      a job, on a node of a cluster

    Raises ContimgError. Reads only, but for the file that makes results look old (`Paths.again`),
    which is in Snakemake's own folder.
    """
    config = from_mapping(values)
    paths = Paths.of(config)
    snapshot = None if decides else snapshot_of_run(paths)
    if on_node:
        os.environ[CLUSTER_NODE] = "1"
        if snapshot is None:
            run_id = os.environ.get(RUN_ID)
            raise StateError(
                f"no plan of run {run_id} in {paths.state}: is it shared with this node?"
            )
    on_cluster = cores is None or (cores == 1 and nodes is not None)
    announce_run()
    named: dict[str, list[str]] = {}
    asked: set[str] = set()
    of_target: dict[str, list[str]] = {}
    if snapshot:
        plans, pieces = snapshot[0], snapshot[2]
    else:
        plans, named, asked, pieces, of_target = _planned(
            config, paths, argv if decides else (), LANES[on_cluster]
        )
    staging = (
        snapshot[1]
        if snapshot
        else choose_root(config, raw_bytes(plans), cores or 1, keep_staged, on_cluster)
    )
    if decides and any([*(plan.redo for plan in plans.values()), *_again(pieces)]):
        paths.again.parent.mkdir(exist_ok=True)
        # Of one content it would be the same file to Snakemake, however new.
        paths.again.write_text(f"{time.time_ns()}\n")
    return Session(
        config,
        paths,
        plans,
        named,
        asked,
        staging,
        cores or 1,
        on_cluster,
        decides,
        pieces,
        of_target,
    )


def _again(pieces: Mapping[str, Piece]) -> list[bool]:
    return [one.again for one in pieces.values()]


def _planned(
    config: Config, paths: Paths, argv: Sequence[str], lane: str
) -> tuple[dict[str, Plan], dict[str, list[str]], set[str], dict[str, Piece], dict[str, list[str]]]:
    """Plans, targets and groups asked for, tracts on days, and which of these targets are of.
    Groups are named by a target, or by a product that is one; the folder of the products may have
    such a name, too."""
    from snakemake.cli import get_argument_parser  # 1.3 s, which no other command is to wait for

    given = get_argument_parser().parse_known_args(list(argv))[0].targets if argv else ()
    words = [str(word).removeprefix(f"{paths.products}/") for word in given or ()]
    asked = set(re.findall(GROUP_PATTERN, " ".join(words)))
    plans = make_plans(config, time.time(), asked, lane)
    named = targets(words, plans)
    if more := set(chain(*named.values())) - asked:  # those of a day or a calibrator
        asked |= more
        plans = make_plans(config, time.time(), asked, lane)
    found, of_target = _pieces(config, words, plans, asked)
    for word in of_target.keys() - {"over"}:  # groups that are done need no look
        named[word] = sorted({g for name in of_target[word] for g in found[name].to_come})
    return plans, named, asked, found, of_target


def _pieces(
    config: Config, words: Sequence[str], plans: Mapping[str, Plan], asked: Collection[str]
) -> tuple[dict[str, Piece], dict[str, list[str]]]:
    """Tracts on days that are to be made, or looked at, by id; and which of them targets are of:
    those named, and `over`."""
    named = [word for word in words if word.startswith(("epoch/", "tract/"))]
    over = config.mosaics.make == "over"
    if not (named or over):
        return {}, {}
    from contimg.products import mosaics  # with the sky's own: not in every process

    mine = asked or {group for group, plan in plans.items() if plan.action == "run"}
    sky = mosaics.Sky(plans, config, mine if not named else plans.keys())
    of_words = mosaics.asked_pieces(named, sky, config)
    due = mosaics.due_pieces(sky, mjd(now())) if over else []
    found = mosaics.make_pieces(sorted({*due, *chain(*of_words.values())}), sky, config)
    of_target = {word: [f"{tract}.{day}" for tract, day in ids] for word, ids in of_words.items()}
    if over:
        names = {f"{tract}.{day}" for tract, day in due}
        old = mosaics.undone({name: found[name] for name in names}, config)
        of_target["over"] = sorted(old)
    wanted = {*chain(*of_target.values())}
    return {name: one for name, one in found.items() if name in wanted or one.frozen}, of_target


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


def snapshot_of_run(paths: Paths) -> tuple[dict[str, Plan], Path, dict[str, Piece]] | None:
    """Plans, staging folder and tracts of the run that this process works for; None if there is
    none.

    A job does not look at files and databases again: on a cluster's node it may see them otherwise.
    """
    path = paths.run_snapshot(os.environ.get(RUN_ID, "none"))
    if (snapshot := found_json(path)) is None:
        return None
    os.environ.setdefault(SOFTWARE, snapshot["software"])
    plans = {group: from_json(values) for group, values in snapshot["groups"].items()}
    tracts = {name: Piece.from_json(name, one) for name, one in snapshot.get("pieces", {}).items()}
    return plans, Path(snapshot["staging"]), tracts


def refused(config: Config, error: Exception) -> int:
    """A run did not begin: what `contimg status` and the page say of it, until one does. Returns
    the exit status."""
    if isinstance(error, LockError | NotNow) or is_full(error):
        return NOT_NOW
    with suppress(OSError):
        write_json(Paths.of(config).refusal, {"at": now(), "error": str(error)})
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
