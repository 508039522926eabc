"""What the queue and the results say, as plain values: for the command line, and for whoever else
asks. Read-only."""

import time
from collections import Counter
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select

from contimg.clock import now
from contimg.config import Config, as_utc
from contimg.errors import AbsentError, RequestError
from contimg.paths import Paths
from contimg.products.mosaics import failures
from contimg.products.record import results_of
from contimg.products.tables import Image
from contimg.queue import moves
from contimg.queue.moves import GroupStatus
from contimg.queue.planning import describe, make_plans
from contimg.queue.tables import RUNNING, WAITING, Group, History, SubbandFile
from contimg.store import db
from contimg.store.files import found_json, holder_of
from contimg.visibilities.uvh5 import changed_since

_HALF_STRIP_DEG = 0.05
RECENT = 10  # groups of each kind in a status
_TO_COME = ("collecting", "pending")


def status(config: Config, everything: bool = False) -> dict:
    """Counts, what runs now, how far behind real time, and the latest groups of each kind."""
    paths, now_s = Paths.of(config), time.time()
    counts: Counter = Counter()
    groups, running, pace = [], [], {}
    with db.reading(paths.ingest_db) as session:
        if session is not None:
            for state, stage, number in session.execute(
                select(Group.state, Group.processing_stage, func.count()).group_by(
                    Group.state, Group.processing_stage
                )
            ):
                counts["waiting" if (state, stage) == ("pending", WAITING) else state] += number
            rows = select(Group).order_by(Group.group_id.desc())
            kinds = (("completed",), ("failed",), RUNNING, _TO_COME)
            latest = [
                row
                for states in kinds
                for row in session.scalars(
                    rows.where(Group.state.in_(states)).limit(None if everything else RECENT)
                )
            ]
            groups = [
                _group(row, paths) | _mend(session, row, config)
                for row in sorted(latest, key=lambda row: row.group_id)
            ]
            running = [
                {
                    "group": row.group_id,
                    "stage": row.running_stage,
                    "since": row.running_since,
                    "run": row.owner,
                    "attempt": row.retry_count + 1,
                    "alive": moves.is_alive(row, config.ingest, now_s),
                }
                for row in session.scalars(
                    select(Group).where(Group.state.in_(RUNNING[1:])).order_by(Group.group_id)
                )
            ]
            pace = _pace(session, now_s)
    watcher, backlog = _watcher(paths), holder_of(paths.backlog_lock)
    for group in groups:
        group |= _publication(paths, group["group"])
    return {
        "counts": dict(counts),
        "running": running,
        **pace,
        "must_not_be_used": _not_to_be_used(paths),
        "mosaics_failed": failures(paths),
        "watcher": watcher,
        "backlog": backlog,
        "refused": found_json(paths.refusal),
        "groups": groups,
    }


def failed(config: Config) -> list[dict]:
    """Every failed group, with why; by group."""
    query = select(Group.group_id, Group.error).where(Group.state == "failed")
    with db.reading(Paths.of(config).ingest_db) as session:
        rows = () if session is None else session.execute(query.order_by(Group.group_id))
        return [{"group": row.group_id, "error": row.error} for row in rows]


def how_to_mend(config: Config, group: str) -> dict:
    """What brings a failed group back."""
    with db.reading(Paths.of(config).ingest_db) as session:
        row = None if session is None else session.get(Group, group)
        return {} if row is None else _mend(session, row, config)


def _not_to_be_used(paths: Paths) -> int:
    """Number of groups whose full image failed, or has a calibration set that must not be used any
    more."""
    with db.reading(paths.products_db) as session:
        if session is None:
            return 0
        full = (Image.type == "pbcor", Image.deleted_at.is_(None), Image.unpublishable.is_not(None))
        return session.scalar(select(func.count(Image.group_id.distinct())).where(*full))


def _publication(paths: Paths, group: str) -> dict:
    """Whether a group's image may be published, and the status of its calibration set; nothing
    before there is one."""
    with db.reading(paths.products_db) as session:
        query = select(Image.set_status, Image.unpublishable).where(
            Image.group_id == group,
            Image.type.in_(("pbcor", "quick_pbcor")),
            Image.deleted_at.is_(None),
        )
        row = None if session is None else session.execute(query.order_by(Image.type)).first()
    if row is None:
        return {}
    return {
        "calibration_set": row.set_status,
        "publishable": "yes" if row.unpublishable is None else f"no: {row.unpublishable}",
    }


def _pace(session, now_s: float) -> dict:
    """Whether it keeps up: the oldest group that could be done and is not, arrivals and images of
    the last hour."""
    waits = Group.processing_stage.is_(None) | (Group.processing_stage != WAITING)
    due = (Group.state == "pending") & waits & (func.coalesce(Group.not_before, "") <= now())
    # complete, or asked for again
    asked = History.state_from.in_(("collecting", "completed", "failed"))
    since = func.max(History.at)
    query = select(Group.group_id, since).join(History, History.group_id == Group.group_id)
    first = session.execute(
        query.where(due | Group.state.in_(RUNNING), asked, History.state_to == "pending")
        .group_by(Group.group_id)
        .order_by(since)
        .limit(1)
    ).first()
    hour_ago = db.utc(now_s - 3600)
    return {
        "behind_s": now_s - datetime.fromisoformat(first[1]).timestamp() if first else 0.0,
        "oldest_unfinished": first[0] if first else None,
        "observed_until": session.scalar(select(func.max(Group.group_id))),
        "imaged_until": session.scalar(
            select(func.max(Group.group_id)).where(Group.state == "completed")
        ),
        "arrived_last_hour": session.scalar(
            select(func.count()).where(Group.received_at >= hour_ago)
        ),
        "imaged_last_hour": session.scalar(
            select(func.count(History.group_id.distinct())).where(
                History.at >= hour_ago, History.state_to == "completed"
            )
        ),
    }


def _watcher(paths: Paths) -> dict | None:
    """What the watcher does now; None when there is none."""
    holder = holder_of(paths.watch_lock)
    # it has only begun
    problem = f"{paths.watcher} cannot be read" if paths.watcher.exists() else None
    unknown = {"pid": holder, "at": "-", "run": None, "groups": [], "problem": problem}
    return None if holder is None else found_json(paths.watcher) or unknown


def _group(row: Group, paths: Paths) -> dict:
    results = results_of(paths, row.group_id)
    found = {
        "group": row.group_id,
        "state": row.state,
        "stage": row.processing_stage,
        "error": row.error,
        "retry_count": row.retry_count,
        "not_before": row.not_before,
        "seconds": {stage: r["seconds"] for stage, r in results.items() if stage != "index"},
    }
    if image := results.get("image"):
        keys = (
            "beam_major_arcsec",
            "beam_minor_arcsec",
            "beam_pa_deg",
            "rms_jy",
            "catalogue",
            "verdict",
            "verdict_reasons",
        )
        found |= {key: image[key] for key in keys}
        if used := image.get("used"):
            found |= {
                "data_share": round(used["data_share"], 3),
                "antennas_lost": used["antennas_lost"],
            }
        found["image"] = image["images"].get("pbcor.fits") or image["images"]["image.pbcor"]
    return found


def _mend(session, row: Group, config: Config) -> dict:
    """What brings a failed group back."""
    if row.state != "failed":
        return {}
    if moves.usable_files(session, row.group_id) < config.ingest.min_subbands:
        return {
            "mend": f"put good files of the missing subbands into {config.paths.incoming}: the "
            "group comes back by itself"
        }
    return {"mend": f"mend the cause, then: contimg retry {row.group_id}"}


def story(config: Config, group: str) -> dict | None:
    """What the queue and the results know of a group: state, seconds, files, attempts, logs; None
    if it is not in the queue."""
    paths = Paths.of(config)
    with db.reading(paths.ingest_db) as session:
        row = session.get(Group, group) if session is not None else None
        if row is None:
            return None
        keys = (
            "received_at",
            "last_update",
            "running_stage",
            "running_since",
            "owner",
            "host",
            "pid",
            "heartbeat",
            "mid_mjd",
            "app_dec_deg",
            "calibrators",
            "checkpoint_path",
        )
        known = (
            _group(row, paths)
            | _publication(paths, group)
            | _mend(session, row, config)
            | {key: getattr(row, key) for key in keys}
        )
        moves = select(History).where(History.group_id == group).order_by(History.id)
        columns = ("at", "state_from", "state_to", "stage", "owner", "error")
        known["history"] = [
            {c: getattr(move, c) for c in columns} for move in session.scalars(moves)
        ]
        recorded = (
            select(SubbandFile)
            .where(SubbandFile.group_id == group)
            .order_by(SubbandFile.subband_idx)
        )
        known["files"] = [
            {"subband": f.subband_idx, "path": f.path, "size": f.size, "reason": f.reason}
            for f in session.scalars(recorded)
        ]
    results = results_of(paths, group)
    if chosen := results.get("caltables"):
        known["calibrated_by"] = (
            f"{chosen['set_name']} on {chosen['cal_field']} ({chosen['flux_scale']}): "
            f"{chosen['reason']}"
        )
    if changed := changed_since(results.get("convert", {}).get("seen", {})):
        known["changed_since_read"] = (
            f"{', '.join(changed)}; to use what they hold now: contimg reprocess {group}"
        )
    known["logs"] = [str(path) for path in sorted((paths.products / "logs").glob(f"*/{group}.*"))]
    return known


def why(config: Config, group: str) -> dict:
    """Everything known about one group, its plan included. Raises RequestError if nothing is."""
    known, absent = story(config, group), None
    try:
        plan = make_plans(config, time.time()).get(group)
    except AbsentError as error:  # what is known of it is told all the same
        plan, absent = None, str(error)
    if plan is None and known is None:
        raise RequestError(
            f"group {group}: no such group in {config.paths.incoming} or in the queue"
        )
    unknown = {"group": group, "state": "not in the queue yet", "logs": []}
    known = unknown | {"plan": describe(plan) if plan else absent} | (known or {})
    if files := plan.group.all_files if plan and plan.action != "done" else ():
        known["missing_subbands"] = list(plan.missing)
        known["files"] = [
            {"subband": f.subband, "path": str(f.path), "size": f.size, "reason": f.reason}
            for f in sorted(files, key=lambda f: (f.subband, f.path))
        ]
    return known


def finished(
    config: Config,
    names: Collection[str] = (),
    start: str | None = None,
    end: str | None = None,
    dec_deg: float | None = None,
    calibration_set: str | None = None,
    verdict: str | None = None,
) -> list[str]:
    """Groups named, or finished and failed ones that fit all that is given, in order: times, strip
    (declination to 0.1 deg), calibration set and verdict of the image."""
    paths = Paths.of(config)
    if names and all(one is None for one in (start, end, dec_deg, calibration_set, verdict)):
        return list(names)
    query = (
        select(Group.group_id)
        .where(Group.state.in_(("completed", "failed")))
        .order_by(Group.group_id)
    )
    query = query.where(Group.group_id.in_(names)) if names else query
    query = query.where(Group.group_id >= as_utc(start)) if start else query
    query = query.where(Group.group_id < as_utc(end)) if end else query
    query = (
        query
        if dec_deg is None
        else query.where(func.abs(Group.app_dec_deg - dec_deg) <= _HALF_STRIP_DEG + 1e-6)
    )
    with db.reading(paths.ingest_db) as session:
        found = [] if session is None else session.scalars(query).all()
    if calibration_set is None and verdict is None:
        return list(found)
    images = select(Image.group_id).where(
        Image.deleted_at.is_(None), Image.type.in_(("pbcor", "quick_pbcor"))
    )
    images = images.where(Image.cal_set == calibration_set) if calibration_set else images
    images = images.where(Image.verdict == verdict) if verdict else images
    with db.reading(paths.products_db) as session:
        fits = set() if session is None else set(session.scalars(images))
    return [group for group in found if group in fits]


def incomplete(config: Config) -> list[dict]:
    """Groups that lack subbands: which, why, and until when they wait."""
    found = []
    now_s, options = time.time(), config.ingest
    recorded = moves.known_groups(Paths.of(config).ingest_db, files=False)
    for name, plan in make_plans(config, now_s).items():
        status = recorded.get(name, GroupStatus(name, "collecting"))
        if plan.action not in ("collecting", "failed") or not (
            plan.missing or plan.action == "collecting"
        ):
            continue
        until_s = plan.group.waiting_since_s + options.collecting_timeout_s
        found.append(
            {
                "group": name,
                "state": status.state,
                "have": len(plan.group.members),
                "expected": options.expected_subbands,
                "missing": list(plan.missing),
                "waits_until": db.utc(until_s) if plan.action == "collecting" else None,
                "reason": plan.reason,
            }
        )
    return found
