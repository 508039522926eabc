"""What a run would do with each group, and why not: read-only, from one look at the folder and the
databases."""

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from contimg.calibration.registry import CalSet, active_sets, choose_set, refused_sets, validity
from contimg.chain import FIRST, LAST, STAGES, following, stages_where
from contimg.config import CalibrationConfig, Config
from contimg.errors import RequestError
from contimg.paths import CHANGING_MARK, FAST_SUFFIX, LANES, Paths, set_name
from contimg.queue import arrivals
from contimg.queue.groups import FileGroup, RawFile, numbers
from contimg.queue.moves import GroupStatus, completeness, has_news, known_groups, lane_of
from contimg.queue.tables import RUNNING
from contimg.store.files import found_json, holder_of
from contimg.visibilities.uvh5 import Outline

WATCHED = "CONTIMG_WATCHED"
_SAME_MTIME_S = 1e-3


@dataclass(frozen=True)
class Plan:
    """What would be done with a group."""

    group: FileGroup
    action: str  # run, running (another run has it), done, waiting, collecting, failed
    reason: str
    missing: tuple[int, ...] = ()
    calibrators: tuple[str, ...] = ()  # best first; empty: a target
    calset: str | None = None  # the set it gets or has
    # the calibrator group of the set, when it is solved in this run (or, waiting, in another)
    depends_on: str | None = None
    # the group of the set on the other side in time, when that is solved in this run, too
    depends_also: str | None = None
    mid_mjd: float | None = None
    app_dec_deg: float | None = None
    error: str | None = None
    not_before: str | None = None  # the watcher leaves it until then
    attempts: int = 0  # that failed
    # stages to do again though they have results: other files, another set, or half-written
    redo: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Groups whose sets, solved in this run, it is calibrated with."""
        return tuple(group for group in (self.depends_on, self.depends_also) if group)

    @property
    def own_set(self) -> bool:
        """Whether the group is calibrated by itself."""
        return self.calset is not None and self.calset.removesuffix(FAST_SUFFIX) == self.group.id


def make_plans(
    config: Config,
    now_s: float,
    only: Collection[str] = (),
    lane: str = "local",
    alone: bool = False,
) -> dict[str, Plan]:
    """The plan of every group that `ingest` asks for, by id.

    only   groups asked for by name: taken, whatever `ingest` says and their state is, unless
           another run has them, and without waiting for subbands that are missing, if there are
           `ingest.min_subbands`
    lane   of the run that is planned
    alone  the caller holds the lock of that lane

    New files are looked into; not where a watcher does that (WATCHED in the environment).
    """
    paths, options = Paths.of(config), config.ingest
    watched = WATCHED in os.environ
    known = known_groups(paths.ingest_db, only, span=options.span(only))
    groups = arrivals.look(
        config, known, now_s, seconds=0 if watched else math.inf, wait=not watched, also=only
    )
    busy = {
        other
        for other in LANES
        if not (alone and other == lane) and holder_of(paths.run_lock(other))
    }
    # jobs of a run that died may go on: the next run there ends them
    if lane != "cluster" and paths.cluster_mark.exists():
        busy.add("cluster")
    plans, pending = {}, []
    elsewhere = {g: s for g, s in known.items() if s.state in RUNNING and lane_of(s.owner) in busy}
    for group in groups:
        status = known.get(group.id, GroupStatus(group.id, "collecting"))
        common: dict[str, Any] = {
            "group": group,
            "missing": group.missing(options.expected_subbands),
            "error": status.error,
            "calibrators": status.calibrators,
            "mid_mjd": status.mid_mjd,
            "app_dec_deg": status.app_dec_deg,
            "not_before": status.not_before,
            "attempts": status.retry_count,
            "redo": (FIRST,) if status.state == "failed" and has_news(group, status) else (),
        }
        outcome, why = completeness(group, options, now_s)
        has_index = (
            status.state != "completed" and found_json(paths.result(group.id, LAST)) is not None
        )
        if group.id in elsewhere:
            plans[group.id] = Plan(action="running", reason=f"run {status.owner} has it", **common)
        elif group.id in only and len(group.members) >= options.min_subbands and group.is_checked():
            pending.append((group, common))
        elif status.state == "completed" or has_index:
            plans[group.id] = Plan(action="done", reason="imaged and indexed", **common)
        elif not group.members and not group.others:
            plans[group.id] = Plan(action="failed", reason="its raw files are gone", **common)
        elif status.state == "failed" and not has_news(group, status):
            plans[group.id] = Plan(action="failed", reason=status.error or "failed", **common)
        elif (
            status.state in RUNNING
            and lane_of(status.owner) == "local"
            and status.retry_count >= options.max_retries
        ):
            reason = "its last attempt runs now, or died; attempts are spent"
            plans[group.id] = Plan(action="failed", reason=reason, **common)
        elif outcome != "ready":
            plans[group.id] = Plan(action=outcome, reason=why, **common)
        else:
            pending.append((group, common))
    plans |= _plan_pending(config, paths, pending, elsewhere)
    return dict(sorted(plans.items()))


@dataclass(frozen=True)
class _Choices:
    """What groups can be calibrated with.

    sets      usable now, or solved in this run or by another one
    refused   the others, by name, and why
    unsolved  calibrator groups that other runs have, whose sets are nobody's yet
    """

    sets: list[CalSet]
    refused: Mapping[str, str]
    unsolved: Mapping[str, GroupStatus]


def _plan_pending(
    config: Config,
    paths: Paths,
    pending: list[tuple[FileGroup, dict]],
    elsewhere: Mapping[str, GroupStatus],
) -> dict[str, Plan]:
    """Roles and calibration of the groups that could run.

    elsewhere  groups that other runs have
    """
    if not pending:
        return {}
    options = config.calibration
    candidates = _candidates(config, [group for group, _ in pending])
    # A calibrator group that is to be solved again has no register.json: its old set is not what it
    # will be.
    unfit = {g.id for g, _ in pending if _is_unfit(paths.result(g.id, "register"), options)}
    again = {
        group.id
        for group, _ in pending
        if candidates[group.id]
        and (group.id in unfit or not paths.result(group.id, "register").exists())
    }
    choices = _choices(paths, options, again, elsewhere)
    solved = {s.group for s in choices.sets if s.science or options.fast}
    to_come: dict[str, Outline | GroupStatus] = {
        group.id: group.outline
        for group, _ in pending
        if candidates[group.id] and group.id not in solved
    }
    to_come |= {g: s for g, s in choices.unsolved.items() if s.mid_mjd is not None}
    for of_group, where in to_come.items():
        if (own := set_name(of_group, options.fast)) not in choices.refused:
            choices.sets.append(_set_to_come(own, where, options))
    return {
        group.id: _plan_one(
            paths, options, group, known, candidates[group.id], choices, group.id in unfit
        )
        for group, known in pending
    }


def _candidates(config: Config, groups: list[FileGroup]) -> dict[str, tuple[str, ...]]:
    """Calibrators that each group has in its beam, the best first."""
    # astropy: only when there is work
    from contimg.sky.calibrators import find_candidates, read_calibrators
    from contimg.sky.catalogues import read_sky

    options, lists = config.calibration, config.catalogues
    table = read_calibrators(lists.calibrators, read_sky(lists.sky), options)
    mjd = [group.outline.mid_mjd for group in groups]
    found = find_candidates(table, mjd, [g.outline.app_dec_deg for g in groups], options)
    return {g.id: tuple(c.name for c in names) for g, names in zip(groups, found, strict=True)}


def _choices(
    paths: Paths,
    options: CalibrationConfig,
    again: Collection[str],
    elsewhere: Mapping[str, GroupStatus],
) -> _Choices:
    """Usable sets and refused ones, without those of groups that are solved again."""
    unsolved = {
        group: status
        for group, status in elsewhere.items()
        if status.calibrators and not paths.result(group, "register").exists()
    }
    replaced = {*again, *unsolved}
    sets, refused = _usable_sets(paths)
    refused = {
        name: why
        for name, why in refused.items()
        if name.removesuffix(FAST_SUFFIX) not in replaced or why.startswith("retired")
    }
    return _Choices([s for s in sets if s.group not in replaced], refused, unsolved)


def _set_to_come(name: str, where: Outline | GroupStatus, options: CalibrationConfig) -> CalSet:
    """A set that is not solved yet, as far as others may choose it."""
    start, end = validity(where.mid_mjd, options)
    return CalSet(
        name,
        where.mid_mjd,
        where.app_dec_deg,
        valid_start_mjd=start,
        valid_end_mjd=end,
        science=not options.fast,
    )


def _plan_one(
    paths: Paths,
    options: CalibrationConfig,
    group: FileGroup,
    known: Mapping[str, Any],
    candidates: tuple[str, ...],
    choices: _Choices,
    unfit: bool,
) -> Plan:
    """The plan of one group.

    unfit  its own set is of fast mode, which science must not use
    """
    mid_mjd, dec_deg = group.outline.mid_mjd, group.outline.app_dec_deg
    frozen = _frozen_choice(paths, group.id, choices.sets, choices.refused, options)
    redo = known["redo"] + _not_to_be_believed(paths, group)
    if unfit:
        redo += stages_where(calibrators=True)
    if frozen is None and paths.result(group.id, "caltables").exists():
        redo += tuple(stage for stage in following("caltables") if stage != LAST)
    common: dict[str, Any] = dict(known) | {
        "mid_mjd": mid_mjd,
        "app_dec_deg": dec_deg,
        "calibrators": candidates,
        "redo": redo,
    }
    if frozen:  # a set that came later changes nothing already chosen
        name, solved_here, why = frozen, False, ", chosen earlier"
        beyond = None
    else:
        # those refused are told from these
        near = [s for s in choices.sets if abs(s.mid_mjd - mid_mjd) * 12 <= options.validity_h]
        choice = choose_set(near or choices.sets, mid_mjd, dec_deg, options)
        if choice.chosen is None:
            own = set_name(group.id, options.fast)
            reason = f"waits for calibration: {choice.reason}{_of_refused(choices.refused, own)}"
            return Plan(action="waiting", reason=reason, **common)
        other = choice.chosen.group
        if other in choices.unsolved:
            owner = choices.unsolved[other].owner
            reason = f"waits for calibration: run {owner} solves {other}"
            return Plan(action="waiting", reason=reason, depends_on=other, **common)
        name, solved_here, beyond = choice.chosen.name, not choice.chosen.tables, choice.beyond
        why = ", solved in this run" if solved_here else ""
    reason = f"calibrated by {name}{why}"
    if name.removesuffix(FAST_SUFFIX) == group.id:
        reason = f"calibrates itself on {candidates[0]}" if candidates else "calibrates itself"
    if name.endswith(FAST_SUFFIX):
        reason += ", NON_SCIENCE"
    depends = name.removesuffix(FAST_SUFFIX) if solved_here else None
    also = beyond.group if beyond and not beyond.tables else None
    also = None if also in choices.unsolved else also
    return Plan(
        action="run", reason=reason, calset=name, depends_on=depends, depends_also=also, **common
    )


def _of_refused(refused: Mapping[str, str], own: str) -> str:
    """What is to be said of sets that may not be used, to a group that has none."""
    if own in refused:
        return f"; its own set {refused[own]}"
    if refused:
        return f"; {len(refused)} sets failed or were retired (`contimg registry list`)"
    return ""


def _usable_sets(paths: Paths) -> tuple[list[CalSet], dict[str, str]]:
    """Active sets whose tables are on disk; and the others by name, with the reason."""
    active, refused = active_sets(paths.registry_db), refused_sets(paths.registry_db)
    for one in active:
        if absent := [path for _, path in one.tables if not Path(path).is_dir()]:
            refused[one.name] = f"{', '.join(absent)} not on disk"
    return [s for s in active if s.name not in refused], refused


def _is_unfit(result: Path, options: CalibrationConfig) -> bool:
    """Whether a stage's result is from fast mode, which science must not use."""
    return not options.fast and not (found_json(result) or {}).get("science", True)


def _not_to_be_believed(paths: Paths, group: FileGroup) -> tuple[str, ...]:
    """Stages of a group to be done again: whose results cannot be read, and `convert` where its
    files are others now, or a stage was killed while it wrote into the Measurement Set."""
    results = {
        stage: found_json(path)
        for stage in STAGES
        if (path := paths.result(group.id, stage)).exists()
    }
    broken = [stage for stage, values in results.items() if values is None]
    refined = paths.result(group.id, "refine")  # the second result of `apply`
    if refined.exists() and found_json(refined) is None:
        broken.append("apply")
    if (paths.ms(group.id) / CHANGING_MARK).exists() or _has_other_files(
        results.get("convert"), group
    ):
        broken.insert(0, FIRST)
    return tuple(dict.fromkeys(broken))


def _has_other_files(converted: Mapping | None, group: FileGroup) -> bool:
    """Whether a group was converted from other files than it has now, or than these were."""
    if not converted or "seen" not in converted:
        return False
    now = {str(file.path): file for file in group.members.values()}
    return now.keys() != converted["seen"].keys() or any(
        size != now[path].size or abs(mtime_ns / 1e9 - now[path].changed_s) > _SAME_MTIME_S
        for path, (size, mtime_ns) in converted["seen"].items()
    )


def _frozen_choice(
    paths: Paths,
    group: str,
    sets: Collection[CalSet],
    refused: Collection[str],
    options: CalibrationConfig,
) -> str | None:
    """The set that a group chose earlier; None when it chose none, or one that is not for science,
    or when that is, before it was applied, not to be used any more or was solved again."""
    path = paths.result(group, "caltables")
    if not path.exists() or _is_unfit(path, options):
        return None
    if (chosen := found_json(path)) is None:
        return None
    name, sums = chosen["set_name"], chosen.get("checksums")
    if paths.result(group, "apply").exists():
        return name
    now = next((list(s.checksums) for s in sets if s.name == name), sums)
    return None if name in refused or (sums is not None and now != sums) else name


def stale(config: Config) -> list[tuple[str, str, str]]:
    """Calibrated groups that would now get another set: (group, set it has, what would be chosen
    now and why)."""
    paths, found = Paths.of(config), []
    sets, _ = _usable_sets(paths)
    for path in sorted(paths.result("x", "caltables").parent.glob("*.caltables.json")):
        group = path.name.removesuffix(".caltables.json")
        converted = paths.result(group, "convert")
        chosen, outline = found_json(path), found_json(converted)
        if chosen is None or outline is None:
            continue
        has = chosen["set_name"]
        choice = choose_set(sets, outline["mid_mjd"], outline["app_dec_deg"], config.calibration)
        if choice.chosen is None or choice.chosen.name != has:
            found.append(
                (group, has, f"{choice.chosen.name if choice.chosen else 'none'}: {choice.reason}")
            )
    return found


def targets(words: Iterable[str], plans: Mapping[str, Plan]) -> dict[str, list[str]]:
    """What is asked for by names like day/2026-01-25, calibrator/3C48 (in the beam) or
    group/2026-01-25T22:26:05: the groups.

    Raises RequestError when there are none.
    """
    of_kind = {
        "day": lambda plan, name: plan.group.id[:10] == name,
        "calibrator": lambda plan, name: name in plan.calibrators,
        "group": lambda plan, name: plan.group.id == name,
    }
    found = {}
    for word in words:
        kind, _, name = word.partition("/")
        if kind in of_kind and name:
            found[word] = [group for group, plan in plans.items() if of_kind[kind](plan, name)]
            if not found[word]:
                raise RequestError(f"{word}: there is no such group here; see `contimg plan`")
    return found


def raw_bytes(plans: Mapping[str, Plan]) -> list[int]:
    """Bytes of the raw files of each group that is to run."""
    return [
        sum(f.size for f in p.group.members.values()) for p in plans.values() if p.action == "run"
    ]


def as_json(plan: Plan) -> dict:
    """What the jobs of a run need to know of a plan, on whatever machine they are."""
    files = {str(subband): str(path) for subband, path in plan.group.files.items()}
    return {field.name: getattr(plan, field.name) for field in fields(plan)} | {
        "group": plan.group.id,
        "files": files,
    }


def from_json(values: Mapping) -> Plan:
    """What `as_json` wrote."""
    members = {int(subband): RawFile.named(Path(path)) for subband, path in values["files"].items()}
    rest: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in values.items()
        if k not in ("group", "files")
    }
    return Plan(group=FileGroup(values["group"], members), **rest)


def describe(plan: Plan) -> str:
    """A plan in plain words."""
    words = {
        "run": "to be imaged",
        "running": "being worked on",
        "done": "done",
        "waiting": "waiting",
        "collecting": "incomplete",
        "failed": "failed",
    }[plan.action]
    text = f"{words}: {plan.reason}"
    if plan.missing and plan.action == "run":
        text += f"; subbands {numbers(plan.missing)} are missing and will be flagged"
    if plan.action == "run" and plan.error:
        text += f" (last attempt: {plan.error})"
    return text


def made_otherwise(config: Config, digest: str, group: str, plan: Plan) -> bool:
    """Whether a finished group was imaged with another configuration or catalogue than those of
    this digest (`identity.science_digest`); such a change reruns nothing."""
    result = found_json(Paths.of(config).result(group, LAST)) if plan.action == "done" else None
    return result is not None and result.get("config") != digest
