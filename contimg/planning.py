"""What a run would do with each group, and why not: read-only, from one look at the folder and the databases."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from contimg import arrivals
from contimg.config import Config
from contimg.errors import InputError
from contimg.groups import FileGroup, numbers
from contimg.ingest import RUNNING, GroupStatus, has_news, known_groups, verdict
from contimg.paths import Paths
from contimg.registry import CalSet, active_sets, choose, validity
from contimg.uvh5 import inspect


@dataclass(frozen=True)
class Plan:
    """What would be done with a group."""

    group: FileGroup
    action: str  # run, done, waiting, collecting, failed, excluded
    reason: str
    missing: tuple[int, ...] = ()
    calibrators: tuple[str, ...] = ()  # best first; empty: a target
    calset: str | None = None  # the set it gets or has: the id of a calibrator group
    depends_on: str | None = None  # calset, when it is solved in this run
    mid_mjd: float | None = None
    app_dec_deg: float | None = None
    error: str | None = None
    not_before: str | None = None  # the watcher leaves it until then


def _pointing(group: FileGroup) -> tuple[float | None, float | None, str | None]:
    """Mid time and declination from the first file whose header can be read, or why there is none."""
    problem = "no file"
    for path in group.files.values():
        try:
            outline = inspect(path)
        except InputError as error:
            problem = str(error)
        else:
            return outline.mid_mjd, outline.app_dec_deg, None
    return None, None, problem


def make_plans(config: Config, now_s: float, only: Collection[str] = ()) -> dict[str, Plan]:
    """The plan of every group, by id.

    only  groups asked for by name: taken whatever their state, and without waiting for subbands that are missing, if
          there are `ingest.min_subbands`
    """
    paths, options = Paths.of(config), config.ingest
    known = known_groups(paths.ingest_db, only)
    plans, pending = {}, []
    for group in arrivals.look(config, known, now_s, wait=True):
        status = known.get(group.id, GroupStatus(group.id, "collecting"))
        common = {"group": group, "missing": group.missing(options.expected_subbands), "error": status.error,
                  "calibrators": status.calibrators, "mid_mjd": status.mid_mjd, "app_dec_deg": status.app_dec_deg,
                  "not_before": status.not_before}  # fmt: skip
        outcome, why = verdict(group, options, now_s)
        if group.id in only and len(group.members) >= options.min_subbands:
            pending.append((status, group, common))
        elif status.state == "completed" or paths.result(group.id, "index").exists():
            plans[group.id] = Plan(action="done", reason="imaged and indexed", **common)
        elif not group.members and not group.others:
            plans[group.id] = Plan(action="failed", reason="its raw files are gone", **common)
        elif status.state == "failed" and not has_news(group, status):
            plans[group.id] = Plan(action="failed", reason=status.error or "failed", **common)
        elif status.state in RUNNING and status.retry_count >= options.max_retries:
            reason = "its last attempt runs now, or died; attempts are spent"
            plans[group.id] = Plan(action="failed", reason=reason, **common)
        elif not arrivals.chosen(options, group.id):
            reason = "outside ingest.start, ingest.end or ingest.groups"
            plans[group.id] = Plan(action="excluded", reason=reason, **common)
        elif outcome != "ready":
            plans[group.id] = Plan(action=outcome, reason=why, **common)
        else:
            pending.append((status, group, common))
    plans |= _plan_pending(config, paths, pending)
    return dict(sorted(plans.items()))


def _plan_pending(config: Config, paths: Paths, pending: list) -> dict[str, Plan]:
    """Roles and calibration of the groups that could run."""
    if not pending:
        return {}
    from contimg.calibrators import find_candidates, read_calibrators  # astropy: only when there is work
    from contimg.skymodel import read_catalogue

    options = config.calibration
    pointed = []
    for status, group, common in pending:
        problem = None
        mid, dec = status.mid_mjd, status.app_dec_deg
        if group.outline:
            mid, dec = group.outline.mid_mjd, group.outline.app_dec_deg
        elif mid is None or dec is None:
            mid, dec, problem = _pointing(group)
        pointed.append((group, common, mid, dec, problem))
    known = [(i, p) for i, p in enumerate(pointed) if p[2] is not None]
    table = read_calibrators(config.catalogues.calibrators, read_catalogue(config.catalogues.sky), options)
    found = find_candidates(table, [p[2] for _, p in known], [p[3] for _, p in known], options)
    candidates = {i: tuple(c.name for c in names) for (i, _), names in zip(known, found, strict=True)}
    sets = active_sets(paths.registry_db)
    solved = {s.name for s in sets}
    for i, (group, _, mid, dec, _) in enumerate(pointed):
        if candidates.get(i) and group.id not in solved:
            start, end = validity(mid, options)
            sets.append(CalSet(group.id, mid, dec, valid_start_mjd=start, valid_end_mjd=end))
    plans = {}
    for i, (group, known_before, mid, dec, problem) in enumerate(pointed):
        common = known_before | {"mid_mjd": mid, "app_dec_deg": dec, "calibrators": candidates.get(i, ())}
        if problem is not None:
            plans[group.id] = Plan(action="run", reason=f"will fail: {problem}", **common)
            continue
        frozen = paths.result(group.id, "caltables")
        if frozen.exists():  # a set that came later changes nothing already chosen
            name, solved_here, why = json.loads(frozen.read_text())["set_name"], False, ", chosen earlier"
        else:
            choice = choose(sets, mid, dec, options)
            if choice.chosen is None:
                reason = f"waits for calibration: {choice.reason}"
                plans[group.id] = Plan(action="waiting", reason=reason, **common)
                continue
            name, solved_here = choice.chosen.name, not choice.chosen.tables
            why = ", solved in this run" if solved_here else ""
        reason = f"calibrated by {name}{why}"
        if name == group.id:
            reason = f"calibrates itself on {candidates[i][0]}" if candidates.get(i) else "calibrates itself"
        depends = name if solved_here else None
        plans[group.id] = Plan(action="run", reason=reason, calset=name, depends_on=depends, **common)
    return plans


def describe(plan: Plan) -> str:
    """A plan in plain words."""
    words = {
        "run": "to be imaged", "done": "done", "waiting": "waiting", "collecting": "incomplete", "failed": "failed",
        "excluded": "not asked for",
    }[plan.action]  # fmt: skip
    text = f"{words}: {plan.reason}"
    if plan.missing and plan.action == "run":
        text += f"; subbands {numbers(plan.missing)} are missing and will be flagged"
    if plan.action == "run" and plan.error:
        text += f" (last attempt: {plan.error})"
    return text
