"""What a run would do with each group, and why not: read-only, from one look at the folder and the databases."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from contimg import db
from contimg.config import Config
from contimg.errors import InputError
from contimg.groups import FileGroup, cluster
from contimg.ingest import RUNNING, Group, SubbandFile
from contimg.paths import RAW_PATTERN, Paths
from contimg.registry import CalSet, active_sets, choose, validity
from contimg.uvh5 import parse_name, read_pointing


@dataclass(frozen=True)
class GroupStatus:
    """A group as the queue, or without one the folder, knows it."""

    group: FileGroup
    state: str = "collecting"
    retry_count: int = 0
    error: str | None = None
    calibrators: tuple[str, ...] = ()  # as recorded
    mid_mjd: float | None = None
    app_dec_deg: float | None = None
    sizes: Mapping[Path, int] = field(default_factory=dict)  # of the files that count, as recorded


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


def known_groups(paths: Paths) -> dict[str, GroupStatus]:
    """What the queue says of every group; empty without a database."""
    with db.reading(paths.ingest_db) as session:
        if session is None:
            return {}
        files: dict[str, dict[int, Path]] = {}
        sizes: dict[str, dict[Path, int]] = {}
        for file in session.scalars(select(SubbandFile).where(SubbandFile.reason.is_(None))):
            files.setdefault(file.group_id, {})[file.subband_idx] = Path(file.path)
            sizes.setdefault(file.group_id, {})[Path(file.path)] = file.size
        return {
            row.group_id: GroupStatus(
                FileGroup(row.group_id, files.get(row.group_id, {})), row.state, row.retry_count, row.error,
                tuple(json.loads(row.calibrators or "[]")), row.mid_mjd, row.app_dec_deg,
                sizes.get(row.group_id, {}),
            )
            for row in session.scalars(select(Group))
        }  # fmt: skip


def scan(config: Config, known: dict[str, GroupStatus]) -> list[FileGroup]:
    """Groups of the files in the incoming folder and of those the queue remembers.

    Ids are fixed once a group has left `collecting`. Files that are gone no longer belong to a group that still needs
    them.
    """
    expected = config.ingest.expected_subbands
    span_s = min(config.ingest.tolerance_s, config.ingest.chunk_minutes * 60)
    fixed, loose = {}, set()
    for name, status in known.items():
        if status.state == "collecting":
            loose |= set(status.group.files.values())
        elif status.state == "completed":
            fixed[name] = status.group.files
        else:
            fixed[name] = {sb: path for sb, path in status.group.files.items() if path.exists()}
    found = set(config.paths.incoming.glob(RAW_PATTERN)) | {path for path in loose if path.exists()}
    named = [path for path in sorted(found) if (parsed := parse_name(path.name)) and parsed[1] < expected]
    return cluster(named, span_s, fixed)


def _pointing(group: FileGroup) -> tuple[float | None, float | None, str | None]:
    """Mid time and declination from the first file whose header can be read, or why there is none."""
    problem = "no file"
    for path in group.files.values():
        try:
            return *read_pointing(path), None
        except InputError as error:
            problem = str(error)
    return None, None, problem


def make_plans(config: Config, now_s: float, only: Collection[str] = ()) -> dict[str, Plan]:
    """The plan of every group, by id. `only`: groups asked for by name, whatever their state."""
    paths = Paths.of(config)
    known = known_groups(paths)
    plans, pending = {}, []
    for group in scan(config, known):
        status = known.get(group.id, GroupStatus(group))
        missing = group.missing(config.ingest.expected_subbands)
        common = {"group": group, "missing": missing, "calibrators": status.calibrators, "mid_mjd": status.mid_mjd,
                  "app_dec_deg": status.app_dec_deg, "error": status.error}  # fmt: skip
        if not group.files:
            plans[group.id] = Plan(action="failed", reason="its raw files are gone", **common)
        elif group.id in only:
            pending.append((status, group, missing))
        elif status.state == "completed" or paths.result(group.id, "index").exists():
            plans[group.id] = Plan(action="done", reason="imaged and indexed", **common)
        elif status.state == "failed" and not _has_news(status, group):
            plans[group.id] = Plan(action="failed", reason=status.error or "failed", **common)
        elif status.state in RUNNING and status.retry_count >= config.ingest.max_retries:
            reason = "its last attempt runs now, or died; attempts are spent"
            plans[group.id] = Plan(action="failed", reason=reason, **common)
        elif not _chosen(config, group.id):
            plans[group.id] = Plan(
                action="excluded", reason="outside ingest.start, ingest.end or ingest.groups", **common
            )
        elif missing and not (_is_late(config, group, now_s) and len(group.files) >= config.ingest.min_subbands):
            numbers = ", ".join(f"{sb:02d}" for sb in missing)
            reason = f"{len(group.files)} of {config.ingest.expected_subbands} subbands; missing {numbers}"
            action = "failed" if _is_late(config, group, now_s) else "collecting"
            plans[group.id] = Plan(action=action, reason=reason, **common)
        else:
            pending.append((status, group, missing))
    plans |= _plan_pending(config, paths, pending)
    return dict(sorted(plans.items()))


def _has_news(status: GroupStatus, group: FileGroup) -> bool:
    """Whether a file of a failed group came late or was replaced (its size tells)."""
    return any(status.sizes.get(path) != path.stat().st_size for path in group.files.values())


def _chosen(config: Config, group_id: str) -> bool:
    ingest = config.ingest
    if ingest.groups and group_id not in ingest.groups:
        return False
    return (ingest.start is None or group_id >= ingest.start) and (ingest.end is None or group_id < ingest.end)


def _is_late(config: Config, group: FileGroup, now_s: float) -> bool:
    return now_s - group.waiting_since_s() > config.ingest.collecting_timeout_s


def _plan_pending(config: Config, paths: Paths, pending: list) -> dict[str, Plan]:
    """Roles and calibration of the groups that could run."""
    if not pending:
        return {}
    from contimg.calibrators import find_candidates, read_calibrators  # astropy: only when there is work
    from contimg.skymodel import read_catalogue

    options = config.calibration
    pointed = []
    for status, group, missing in pending:
        problem = None
        mid, dec = status.mid_mjd, status.app_dec_deg
        if mid is None or dec is None:
            mid, dec, problem = _pointing(group)
        pointed.append((group, missing, mid, dec, problem, status))
    known = [(i, p) for i, p in enumerate(pointed) if p[2] is not None]
    table = read_calibrators(config.catalogues.calibrators, read_catalogue(config.catalogues.sky), options)
    found = find_candidates(table, [p[2] for _, p in known], [p[3] for _, p in known], options)
    candidates = {i: tuple(c.name for c in names) for (i, _), names in zip(known, found, strict=True)}
    sets = active_sets(paths.registry_db)
    solved = {s.name for s in sets}
    for i, (group, _, mid, dec, _, _) in enumerate(pointed):
        if candidates.get(i) and group.id not in solved:
            start, end = validity(mid, options)
            sets.append(CalSet(group.id, mid, dec, valid_start_mjd=start, valid_end_mjd=end))
    plans = {}
    for i, (group, missing, mid, dec, problem, status) in enumerate(pointed):
        common = {"group": group, "missing": missing, "mid_mjd": mid, "app_dec_deg": dec, "error": status.error,
                  "calibrators": candidates.get(i, ())}  # fmt: skip
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
        text += f"; subbands {', '.join(f'{sb:02d}' for sb in plan.missing)} are missing and will be flagged"
    if plan.action == "run" and plan.error:
        text += f" (last attempt: {plan.error})"
    return text
