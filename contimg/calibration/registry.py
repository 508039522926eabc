"""Calibration sets: which tables are valid when and where, and which of them a group gets.

A set is what one calibrator group's solve produced: its tables of kinds [K,] B and G under one set
name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from sqlalchemy import CheckConstraint, UniqueConstraint, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from contimg.clock import now
from contimg.config import CalibrationConfig, GatesConfig
from contimg.errors import CalibrationError, ContimgError, NoCalibrationError
from contimg.findings import Finding, of_level, unknown
from contimg.paths import FAST_SUFFIX
from contimg.store import db
from contimg.store.files import altered, checksum, found_json, write_json

_SAME_GROUP_H = 1e-3
GONE = "its time is over: tables deleted by retention"


class Base(DeclarativeBase):
    """Tables of cal_registry.sqlite3."""


class CalTable(Base):
    """One calibration table of a set."""

    __tablename__ = "caltables"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'retired', 'failed')"),
        CheckConstraint("table_type IN ('K', 'B', 'G')"),
        UniqueConstraint("set_name", "table_type"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    set_name: Mapped[str]
    path: Mapped[str] = mapped_column(unique=True)
    table_type: Mapped[str]
    order_index: Mapped[int]
    cal_field: Mapped[str]
    refant: Mapped[str]
    created_at: Mapped[str]
    valid_start_mjd: Mapped[float]
    valid_end_mjd: Mapped[float]
    mid_mjd: Mapped[float]
    app_dec_deg: Mapped[float]
    flux_scale: Mapped[str]
    quality: Mapped[float]  # median signal to noise of the gains
    numbers: Mapped[str]  # quality of this table, JSON
    checksum: Mapped[str]
    software: Mapped[str]  # versions, JSON
    science: Mapped[bool]  # false: from fast mode, NON_SCIENCE
    status: Mapped[str]
    notes: Mapped[str]


@dataclass(frozen=True)
class CalSet:
    """A calibration set, as far as choosing needs to know it."""

    name: str  # id of the calibrator group, with paths.FAST_SUFFIX if it is not for science
    mid_mjd: float
    app_dec_deg: float
    cal_field: str = ""
    flux_scale: str = ""
    quality: float = 0.0  # median signal-to-noise of the gains: breaks ties
    valid_start_mjd: float = float("-inf")
    valid_end_mjd: float = float("inf")
    # (kind, path) in the order of application; empty: not solved yet
    tables: tuple[tuple[str, str], ...] = ()
    checksums: tuple[str, ...] = ()  # of the tables, when they were registered
    science: bool = True

    @property
    def group(self) -> str:
        """The calibrator group."""
        return self.name.removesuffix(FAST_SUFFIX)


@dataclass(frozen=True)
class Choice:
    """The set a group gets, and what became of the others."""

    chosen: CalSet | None
    considered: tuple[tuple[str, str], ...]  # (set name, why or why not)
    # the nearest valid set on the other side in time: gains between the two are interpolated
    beyond: CalSet | None = None

    @property
    def reason(self) -> str:
        """In words, for the operator."""
        if self.chosen:
            return dict(self.considered)[self.chosen.name]
        if not self.considered:
            return "no calibration set is known"
        return "; ".join(f"{name}: {why}" for name, why in self.considered[:3])


def validity(mid_mjd: float, options: CalibrationConfig) -> tuple[float, float]:
    """Window in which a set solved at `mid_mjd` is valid: both ways."""
    return mid_mjd - options.validity_h / 24, mid_mjd + options.validity_h / 24


def choose_set(
    sets: Iterable[CalSet], mid_mjd: float, app_dec_deg: float, options: CalibrationConfig
) -> Choice:
    """The set nearest in mid time among those valid at this time and declination; ties go to the
    better one.

    A pure function of its arguments: a closed day gives the same choices in whatever order it is
    processed.
    """
    valid, considered = [], []
    for one in sorted(
        sets, key=lambda s: (abs(s.mid_mjd - mid_mjd), not s.science, -s.quality, s.name)
    ):
        hours = (one.mid_mjd - mid_mjd) * 24
        off_deg = abs(one.app_dec_deg - app_dec_deg)
        if not one.science and not options.fast:
            considered.append((one.name, "NON_SCIENCE: solved in fast mode"))
        elif (
            not one.valid_start_mjd <= mid_mjd <= one.valid_end_mjd
            or abs(hours) > options.validity_h
        ):
            considered.append(
                (one.name, f"{abs(hours):.1f} h away, valid for {options.validity_h:g} h")
            )
        elif off_deg > options.dec_tolerance_deg:
            considered.append(
                (
                    one.name,
                    f"{off_deg:.2f} deg off in declination, valid for "
                    f"{options.dec_tolerance_deg:g} deg",
                )
            )
        elif valid:
            valid.append(one)
            considered.append((one.name, f"valid, but {abs(hours):.2f} h away: not the nearest"))
        else:
            valid.append(one)
            when = (
                "same group"
                if abs(hours) < _SAME_GROUP_H
                else f"{abs(hours):.2f} h {'later' if hours > 0 else 'earlier'}"
            )
            considered.append(
                (one.name, f"nearest valid set ({when}, {off_deg:.2f} deg off in declination)")
            )
    chosen = valid[0] if valid else None
    return Choice(chosen, tuple(considered), _beyond(chosen, valid, mid_mjd))


def _beyond(chosen: CalSet | None, valid: Sequence[CalSet], mid_mjd: float) -> CalSet | None:
    """The nearest valid set with the group between it and the chosen one; none for a set's own
    group."""
    if chosen is None or abs(chosen.mid_mjd - mid_mjd) * 24 < _SAME_GROUP_H:
        return None
    across = (
        one
        for one in valid
        if (one.mid_mjd - mid_mjd) * (chosen.mid_mjd - mid_mjd) < 0
        and one.science == chosen.science
    )
    return next(across, None)


def active_sets(path: Path) -> list[CalSet]:
    """All active sets, in order of time; empty without a database. Read-only."""
    with db.reading(path) as session:
        if session is None:
            return []
        query = (
            select(CalTable)
            .where(CalTable.status == "active")
            .order_by(CalTable.set_name, CalTable.order_index)
        )
        by_set: dict[str, list[CalTable]] = {}
        for row in session.scalars(query):
            by_set.setdefault(row.set_name, []).append(row)
        return [
            CalSet(
                name,
                rows[0].mid_mjd,
                rows[0].app_dec_deg,
                rows[0].cal_field,
                rows[0].flux_scale,
                rows[0].quality,
                rows[0].valid_start_mjd,
                rows[0].valid_end_mjd,
                tuple((r.table_type, r.path) for r in rows),
                tuple(r.checksum for r in rows),
                rows[0].science,
            )
            for name, rows in by_set.items()
        ]


def register(
    path: Path,
    calset: CalSet,
    refant: str,
    status: str = "active",
    notes: str = "",
    numbers: Mapping = MappingProxyType({}),
    software: Mapping = MappingProxyType({}),
) -> None:
    """Record a set whose tables are in place; replaces an earlier registration of the same set."""
    absent = [p for _, p in calset.tables if not Path(p).is_dir()]
    if absent or not calset.tables:
        raise CalibrationError(
            f"set {calset.name}: tables {absent or '(none)'} are not there. Solve it again."
        )
    sums = [checksum(Path(table)) for _, table in calset.tables]
    with db.writing(path, Base) as session:
        session.execute(delete(CalTable).where(CalTable.set_name == calset.name))
        session.add_all(
            CalTable(
                set_name=calset.name,
                path=table,
                table_type=kind,
                order_index=i,
                cal_field=calset.cal_field,
                refant=refant,
                created_at=now(),
                valid_start_mjd=calset.valid_start_mjd,
                valid_end_mjd=calset.valid_end_mjd,
                mid_mjd=calset.mid_mjd,
                app_dec_deg=calset.app_dec_deg,
                flux_scale=calset.flux_scale,
                quality=calset.quality,
                numbers=json.dumps(numbers.get(kind, {})),
                checksum=sums[i],
                software=json.dumps(dict(software)),
                status=status,
                notes=notes,
                science=calset.science,
            )
            for i, (kind, table) in enumerate(calset.tables)
        )


def _solved_set(solved: Mapping, options: CalibrationConfig) -> CalSet:
    """The set that `{group}.solve.json` describes."""
    return CalSet(
        solved["set_name"],
        solved["mid_mjd"],
        solved["app_dec_deg"],
        solved["calibrator"],
        solved["flux_scale"],
        solved["quality"]["G"]["median_snr"],
        *validity(solved["mid_mjd"], options),
        tuple(solved["tables"].items()),
        science=solved["science"],
    )


def register_solved(
    path: Path,
    solved: Mapping,
    options: CalibrationConfig,
    gates_options: GatesConfig | None = None,
) -> dict:
    """Register what `{group}.solve.json` describes, as failed when its quality is not good enough;
    returns the result for `{group}.register.json`, with its gains against those of the nearest
    other set."""
    calset = _solved_set(solved, options)
    numbers, findings = _against_others(path, calset, options, gates_options or GatesConfig())
    wrong = [*solved["problems"], *of_level(findings, "fail")]
    status, notes = ("failed", "; ".join(wrong)) if wrong else ("active", "")
    refused = refused_sets(path).get(calset.name, "")
    # before the registry was lost
    if not refused and (decided := found_json(_decision(Path(calset.tables[0][1])))):
        refused = f"retired: {decided['notes']}"
    # an operator's word is not undone by solving again
    if refused.startswith("retired") and not refused.endswith(GONE):
        status, notes = "retired", refused.removeprefix("retired: ")
    register(path, calset, solved["refant"], status, notes, solved["quality"], solved["versions"])
    return {
        "set_name": calset.name,
        "science": calset.science,
        "valid_start_mjd": calset.valid_start_mjd,
        "valid_end_mjd": calset.valid_end_mjd,
        "status": status,
        "notes": notes,
        "gates": numbers | {"findings": [one.as_json() for one in findings]},
    }


def _against_others(
    path: Path, calset: CalSet, options: CalibrationConfig, limits: GatesConfig
) -> tuple[dict, list[Finding]]:
    """Gains of a new set against those of its neighbours in time, the nearest active sets before
    and after it whose tables are there."""
    others = [s for s in active_sets(path) if s.name != calset.name and s.science == calset.science]
    others = [
        s for s in others if abs(s.app_dec_deg - calset.app_dec_deg) <= options.dec_tolerance_deg
    ]
    others = [
        s
        for s in others
        if {"B", "G"} <= dict(s.tables).keys()
        and all(Path(table).is_dir() for _, table in s.tables)
    ]
    if not others or not {"B", "G"} <= dict(calset.tables).keys():
        return {}, [
            unknown(name="gains_change", why="no other set of this declination: gains not compared")
        ]
    from contimg.calibration import (
        apply as application,  # python-casacore and numba: not in the processes that only choose
    )

    mine = application.band_gains({kind: Path(table) for kind, table in calset.tables})
    by_hours = sorted(others, key=lambda s: abs(s.mid_mjd - calset.mid_mjd))
    nearest = by_hours[0]
    sides = [
        s for s in by_hours if (s.mid_mjd > calset.mid_mjd) != (nearest.mid_mjd > calset.mid_mjd)
    ]
    numbers, findings = _against(mine, calset, nearest, limits)
    neighbours = [numbers]
    if sides:  # what it differs in from the one beyond cannot be its own fault alone
        more, said = _against(mine, calset, sides[0], limits)
        neighbours.append(more)
        findings += [replace(one, level="warn") if one.level == "fail" else one for one in said]
    return numbers | {"neighbours": [one for one in neighbours if one]}, findings


def _against(
    mine, calset: CalSet, other: CalSet, limits: GatesConfig
) -> tuple[dict, list[Finding]]:
    """Gains of a new set against those of one other."""
    from contimg.calibration import apply as application
    from contimg.calibration import gates

    try:
        theirs = application.band_gains({kind: Path(table) for kind, table in other.tables})
    except (ContimgError, RuntimeError) as error:  # the other set's fault, not this one's
        why = f"set {other.name} cannot be read ({error}): gains not compared"
        return {}, [unknown(name="gains_change", why=why)]
    names = [name for name in mine.names if name in theirs.names]
    if not names or not np.array_equal(mine.freq_hz, theirs.freq_hz):
        what = "channels" if names else "stations"
        why = f"set {other.name} is of other {what}: gains not compared"
        return {}, [unknown(name="gains_change", why=why)]
    return gates.against_other_set(
        gain=mine.of(names),
        other=theirs.of(names),
        freq_hz=mine.freq_hz,
        places_m=mine.places_m[[mine.names.index(name) for name in names]],
        names=names,
        other_name=other.name,
        hours=(other.mid_mjd - calset.mid_mjd) * 24,
        options=limits,
    )


def refused_sets(path: Path) -> dict[str, str]:
    """Sets that must not be used (failed, retired), and why."""
    with db.reading(path) as session:
        if session is None:
            return {}
        query = select(CalTable).where(CalTable.status != "active")
        return {
            row.set_name: f"{row.status}: {row.notes or 'no reason given'}"
            for row in session.scalars(query)
        }


def all_tables(path: Path) -> list[CalTable]:
    """Every row, in order of set and application."""
    with db.reading(path) as session:
        if session is None:
            return []
        rows = session.scalars(
            select(CalTable).order_by(CalTable.mid_mjd, CalTable.set_name, CalTable.order_index)
        ).all()
        session.expunge_all()
        return list(rows)


def retire(path: Path, name: str, reason: str) -> None:
    """Mark a set as not to be used any more; what was calibrated with it stays as it is. Also said
    beside its tables, should the registry be lost."""
    with db.writing(path, Base) as session:
        rows = session.scalars(select(CalTable).where(CalTable.set_name == name)).all()
        if not rows:
            raise CalibrationError(f"set {name} is not registered. See `contimg registry list`.")
        with suppress(OSError):  # imported tables may be where we must not write
            write_json(
                _decision(Path(rows[0].path)), {"set": name, "status": "retired", "notes": reason}
            )
        for row in rows:
            row.status, row.notes = "retired", reason


def _decision(table: Path) -> Path:
    """Beside a set's first table: that somebody retired it."""
    return table.with_name(f".{table.name}.retired.json")


def remake(path: Path, solved: Mapping[str, Mapping], options: CalibrationConfig) -> list[str]:
    """Sets that have results and are not in the registry (it was damaged, and moved aside) are
    registered again, as they were judged then; returns their names.

    solved  by set: `solve.json` with the "register" result in it, and "checksums" that its tables
            had, if they are known
    """
    known, again = {table.set_name for table in all_tables(path)}, []
    for name, result in sorted(solved.items()):
        tables = tuple(result["tables"].items())
        if name in known or not tables or not all(Path(table).is_dir() for _, table in tables):
            continue
        judged = result["register"] | (found_json(_decision(Path(tables[0][1]))) or {})
        if wrong := altered(
            zip((table for _, table in tables), result.get("checksums", ()), strict=False)
        ):
            judged |= {"status": "failed", "notes": "; ".join(wrong)}
        register(
            path,
            _solved_set(result, options),
            result["refant"],
            judged["status"],
            judged["notes"],
            result["quality"],
            result["versions"],
        )
        again.append(name)
    return again


def _condemn(path: Path, name: str, why: str) -> None:
    """A set whose tables are not what they were is failed, so that nothing is planned with it."""
    with db.writing(path, Base) as session:
        for row in session.scalars(select(CalTable).where(CalTable.set_name == name)):
            row.status, row.notes = "failed", why


def condemn_altered(path: Path) -> list[str]:
    """Fail every active set whose tables are gone or altered; returns what is wrong with them, in
    words."""
    found = []
    for one in active_sets(path):
        wrong = altered(zip((table for _, table in one.tables), one.checksums, strict=True))
        if wrong:
            _condemn(path, one.name, "; ".join(wrong))
            found += wrong
    return found


def select_for(path: Path, mid_mjd: float, app_dec_deg: float, options: CalibrationConfig) -> dict:
    """Choose among the registered sets; one whose tables are gone or altered is refused.

    Returns the result for `{group}.caltables.json`. Raises NoCalibrationError if no set fits.
    """
    sets = active_sets(path)
    refused = refused_sets(path)
    while True:
        choice = choose_set(
            [s for s in sets if s.name not in refused], mid_mjd, app_dec_deg, options
        )
        chosen = choice.chosen
        wrong = {
            one.name: "; ".join(altered(zip(dict(one.tables).values(), one.checksums, strict=True)))
            for one in (chosen, choice.beyond)
            if one
        }
        wrong = {name: words for name, words in wrong.items() if words}
        if not wrong:
            break
        for name, words in wrong.items():
            refused[name] = words
            _condemn(path, name, words)
    choice = Choice(chosen, tuple(refused.items()) + choice.considered, choice.beyond)
    if chosen is None:
        raise NoCalibrationError(
            f"no valid calibration set at MJD {mid_mjd:.4f}, dec {app_dec_deg:.2f}: {choice.reason}"
        )
    return {
        "set_name": chosen.name,
        "reason": choice.reason,
        "tables": dict(chosen.tables),
        "cal_field": chosen.cal_field,
        "science": chosen.science,
        "checksums": list(chosen.checksums),
        "flux_scale": chosen.flux_scale,
        "set_mid_mjd": chosen.mid_mjd,
        "between": _as_other(choice.beyond, chosen, mid_mjd),
        "considered": [{"set": name, "why": why} for name, why in choice.considered],
    }


def _as_other(beyond: CalSet | None, chosen: CalSet, mid_mjd: float) -> dict | None:
    """A set on the other side in time, and its share in gains interpolated between the two."""
    if beyond is None or {"B", "G"} != dict(beyond.tables).keys() | dict(chosen.tables).keys():
        return None
    return {
        "set_name": beyond.name,
        "tables": dict(beyond.tables),
        "checksums": list(beyond.checksums),
        "set_mid_mjd": beyond.mid_mjd,
        "share": (mid_mjd - chosen.mid_mjd) / (beyond.mid_mjd - chosen.mid_mjd),
    }


def import_set(
    path: Path,
    name: str,
    tables: Mapping[str, str],
    mid_mjd: float,
    app_dec_deg: float,
    cal_field: str,
    flux_scale: str,
    refant: str,
    options: CalibrationConfig,
) -> None:
    """Register tables that were solved elsewhere, by kind. Raises CalibrationError unless there are
    a B and a G."""
    if not {"B", "G"} <= tables.keys() <= {"K", "B", "G"}:
        raise CalibrationError(
            f"set {name}: tables of kinds {sorted(tables)}, expected B and G, and perhaps K"
        )
    registered = all_tables(path)
    if name in {t.set_name for t in registered}:
        raise CalibrationError(f"set {name} is registered already. Choose another name.")
    ordered = tuple(
        (kind, str(Path(tables[kind]).resolve())) for kind in ("K", "B", "G") if kind in tables
    )
    if known := {t.path for t in registered} & {table for _, table in ordered}:
        raise CalibrationError(f"set {name}: {sorted(known)} belong to another set already")
    from contimg.calibration import tables as caltables  # python-casacore

    quality = {kind: caltables.quality_of(Path(table), kind) for kind, table in ordered}
    if wrong := caltables.problems(quality, options):
        raise CalibrationError(f"set {name}: {'; '.join(wrong)}")
    start, end = validity(mid_mjd, options)
    snr = quality["G"]["median_snr"]
    calset = CalSet(name, mid_mjd, app_dec_deg, cal_field, flux_scale, snr, start, end, ordered)
    register(path, calset, refant, notes="imported", numbers=quality)


def describe_sets(path: Path) -> list[dict]:
    """Every set with its tables, for people and programs."""
    sets: dict[str, dict] = {}
    for row in all_tables(path):
        one = sets.setdefault(
            row.set_name,
            {
                "set": row.set_name,
                "status": row.status,
                "science": row.science,
                "calibrator": row.cal_field,
                "flux_scale": row.flux_scale,
                "mid_mjd": row.mid_mjd,
                "dec_deg": round(row.app_dec_deg, 3),
                "valid_from": db.utc_of_mjd(row.valid_start_mjd)[:16],
                "valid_until": db.utc_of_mjd(row.valid_end_mjd)[:16],
                "snr": round(row.quality, 1),
                "refant": row.refant,
                "created_at": row.created_at,
                "software": json.loads(row.software),
                "notes": row.notes,
                "tables": [],
            },
        )
        one["tables"].append(
            {
                "kind": row.table_type,
                "path": row.path,
                "sha256": row.checksum,
                "quality": json.loads(row.numbers),
            }
        )
    return list(sets.values())
