"""Calibration sets: which tables are valid when and where, and which of them a group gets.

A set is what one calibrator group's solve produced: its tables of kinds [K,] B and G under one set name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import CheckConstraint, UniqueConstraint, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from contimg import db
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError


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
    quality: Mapped[float]
    status: Mapped[str]
    notes: Mapped[str]


@dataclass(frozen=True)
class CalSet:
    """A calibration set, as far as choosing needs to know it."""

    name: str  # id of the calibrator group
    mid_mjd: float
    app_dec_deg: float
    cal_field: str = ""
    flux_scale: str = ""
    quality: float = 0.0  # median signal-to-noise of the gains: breaks ties
    valid_start_mjd: float = float("-inf")
    valid_end_mjd: float = float("inf")
    tables: tuple[tuple[str, str], ...] = ()  # (kind, path) in the order of application; empty: not solved yet


@dataclass(frozen=True)
class Choice:
    """The set a group gets, and what became of the others."""

    chosen: CalSet | None
    considered: tuple[tuple[str, str], ...]  # (set name, why or why not)

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


def choose(sets: Iterable[CalSet], mid_mjd: float, app_dec_deg: float, options: CalibrationConfig) -> Choice:
    """The set nearest in mid time among those valid at this time and declination; ties go to the better one.

    A pure function of its arguments: a closed day gives the same choices in whatever order it is processed.
    """
    valid, considered = [], []
    for one in sorted(sets, key=lambda s: (abs(s.mid_mjd - mid_mjd), -s.quality, s.name)):
        hours = (one.mid_mjd - mid_mjd) * 24
        off_deg = abs(one.app_dec_deg - app_dec_deg)
        if not one.valid_start_mjd <= mid_mjd <= one.valid_end_mjd or abs(hours) > options.validity_h:
            considered.append((one.name, f"{abs(hours):.1f} h away, valid for {options.validity_h:g} h"))
        elif off_deg > options.dec_tolerance_deg:
            considered.append(
                (one.name, f"{off_deg:.2f} deg off in declination, valid for {options.dec_tolerance_deg:g} deg")
            )
        elif valid:
            considered.append((one.name, f"valid, but {abs(hours):.2f} h away: not the nearest"))
        else:
            valid.append(one)
            when = "same group" if abs(hours) < 1e-3 else f"{abs(hours):.2f} h {'later' if hours > 0 else 'earlier'}"
            considered.append((one.name, f"nearest valid set ({when}, {off_deg:.2f} deg off in declination)"))
    return Choice(valid[0] if valid else None, tuple(considered))


def active_sets(path: Path) -> list[CalSet]:
    """All active sets, in order of time; empty without a database. Read-only."""
    with db.reading(path) as session:
        if session is None:
            return []
        query = select(CalTable).where(CalTable.status == "active").order_by(CalTable.set_name, CalTable.order_index)
        by_set: dict[str, list[CalTable]] = {}
        for row in session.scalars(query):
            by_set.setdefault(row.set_name, []).append(row)
        return [
            CalSet(
                name, rows[0].mid_mjd, rows[0].app_dec_deg, rows[0].cal_field, rows[0].flux_scale, rows[0].quality,
                rows[0].valid_start_mjd, rows[0].valid_end_mjd, tuple((r.table_type, r.path) for r in rows),
            )
            for name, rows in by_set.items()
        ]  # fmt: skip


def register(path: Path, calset: CalSet, refant: str, status: str = "active", notes: str = "") -> None:
    """Record a set whose tables are in place; replaces an earlier registration of the same set."""
    absent = [p for _, p in calset.tables if not Path(p).is_dir()]
    if absent or not calset.tables:
        raise CalibrationError(f"set {calset.name}: tables {absent or '(none)'} are not there. Solve it again.")
    with db.writing(path, Base) as session:
        session.execute(delete(CalTable).where(CalTable.set_name == calset.name))
        session.add_all(
            CalTable(
                set_name=calset.name, path=table, table_type=kind, order_index=i, cal_field=calset.cal_field,
                refant=refant, created_at=db.now(), valid_start_mjd=calset.valid_start_mjd,
                valid_end_mjd=calset.valid_end_mjd, mid_mjd=calset.mid_mjd, app_dec_deg=calset.app_dec_deg,
                flux_scale=calset.flux_scale, quality=calset.quality, status=status, notes=notes,
            )
            for i, (kind, table) in enumerate(calset.tables)
        )  # fmt: skip


def register_solved(path: Path, solved: Mapping, options: CalibrationConfig) -> dict:
    """Register what `{group}.solve.json` describes; returns the result for `{group}.register.json`."""
    start, end = validity(solved["mid_mjd"], options)
    calset = CalSet(
        solved["group"], solved["mid_mjd"], solved["app_dec_deg"], solved["calibrator"], solved["flux_scale"],
        solved["quality"]["G"]["median_snr"], start, end, tuple(solved["tables"].items()),
    )  # fmt: skip
    register(path, calset, solved["refant"])
    return {"set_name": calset.name, "valid_start_mjd": start, "valid_end_mjd": end}


def select_for(path: Path, mid_mjd: float, app_dec_deg: float, options: CalibrationConfig) -> dict:
    """Choose among the registered sets; a set whose tables are gone is refused.

    Returns the result for `{group}.caltables.json`. Raises CalibrationError if no set fits.
    """
    sets = active_sets(path)
    gone = {s.name for s in sets if any(not Path(p).is_dir() for _, p in s.tables)}
    choice = choose([s for s in sets if s.name not in gone], mid_mjd, app_dec_deg, options)
    choice = Choice(
        choice.chosen, choice.considered + tuple((name, "its tables are not on disk") for name in sorted(gone))
    )
    if choice.chosen is None:
        raise CalibrationError(f"no valid calibration set at MJD {mid_mjd:.4f}, dec {app_dec_deg:.2f}: {choice.reason}")
    chosen = choice.chosen
    return {
        "set_name": chosen.name, "reason": choice.reason, "tables": dict(chosen.tables), "cal_field": chosen.cal_field,
        "flux_scale": chosen.flux_scale, "set_mid_mjd": chosen.mid_mjd,
        "considered": [{"set": name, "why": why} for name, why in choice.considered],
    }  # fmt: skip
