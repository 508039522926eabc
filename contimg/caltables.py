"""Calibration tables: solve, look at, apply. The reference implementation: CASA gaincal, bandpass, applycal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contimg import casa
from contimg import measurement_set as mset
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError

PREPARED_FLAGS = "prepared"


@dataclass(frozen=True)
class Solutions:
    """One calibration table. `gain` and `flags` are (nsolution, nchan, npol), `antenna` (nsolution,)."""

    gain: np.ndarray
    flags: np.ndarray
    antenna: np.ndarray
    snr: np.ndarray


def read(path: Path) -> Solutions:
    """A gain or bandpass table (CPARAM) or a delay table (FPARAM, ns)."""
    with mset.open_table(path) as table:
        column = "CPARAM" if "CPARAM" in table.colnames() else "FPARAM"
        return Solutions(*(table.getcol(c) for c in (column, "FLAG", "ANTENNA1", "SNR")))


def choose_reference_antenna(
    positions_m: np.ndarray, antennas: Sequence[int], flagged: np.ndarray, wanted: int | None = None
) -> list[int]:
    """Reference antennas, best first: those with the fewest flags, then those nearest to the middle of the array.

    positions_m  (nant, 3);  antennas: numbers that take part;  flagged: fraction of flagged data of each of those.
    An antenna without data is never chosen: `wanted` raises CalibrationError then.
    """
    antennas = np.asarray(antennas)
    healthy = flagged < 0.999
    if not healthy.any():
        raise CalibrationError("no antenna has unflagged data: no reference antenna")
    if wanted is not None and wanted not in antennas[healthy]:
        raise CalibrationError(
            f"reference antenna {wanted} has no unflagged data; choose another, or calibration.refant: auto"
        )
    distance = np.linalg.norm(positions_m[antennas] - np.median(positions_m[antennas[healthy]], axis=0), axis=1)
    best = np.round(flagged, 1) * 1e6 + distance
    order = [int(a) for a in antennas[np.argsort(best)] if healthy[np.flatnonzero(antennas == a)[0]]]
    return order if wanted is None else [wanted, *(a for a in order if a != wanted)]


def solve(
    ms: Path, outputs: Mapping[str, Path], refant: Sequence[str], options: CalibrationConfig, logfile: Path | None
) -> dict[str, dict]:
    """Solve for [K,] B and G against MODEL_DATA; tables appear under their names only when all are good.

    Pre-bandpass phases per integration (kept out of the final chain), bandpass per channel, then one amplitude and
    phase gain for the group. Nothing is normalised: the product of the tables turns correlator units into Jy.
    Returns quality numbers by kind. Raises CalibrationError when solutions are missing or mostly flagged.
    """
    tasks = casa.tasks(logfile)
    common = {
        "vis": str(ms),
        "refant": ",".join(refant[:8]),
        "uvrange": options.uvrange or "",
        "minsnr": options.min_snr,
    }
    partial = {kind: path.with_name(f".{path.name}.partial") for kind, path in outputs.items()}
    phases = outputs["G"].with_name(f".{outputs['G'].name}.prebandpass")
    outputs["G"].parent.mkdir(parents=True, exist_ok=True)
    for path in [*partial.values(), phases]:
        mset.remove(path)
    try:
        chain: list[str] = []
        if options.do_k:
            tasks.gaincal(caltable=str(partial["K"]), gaintype="K", solint="inf", parang=False, **common)
            _require(partial["K"], "delay")
            chain.append(str(partial["K"]))
        tasks.gaincal(caltable=str(phases), gaintype="G", calmode="p", solint="int", gaintable=chain, **common)
        _require(phases, "pre-bandpass phase")
        interp = ["nearest"] * len(chain)
        tasks.bandpass(
            caltable=str(partial["B"]), bandtype="B", solint="inf", combine="scan", solnorm=False,
            gaintable=[*chain, str(phases)], interp=[*interp, "linear"], **common,
        )  # fmt: skip
        _require(partial["B"], "bandpass")
        tasks.gaincal(
            caltable=str(partial["G"]), gaintype="G", calmode="ap", solint="inf", combine="scan",
            gaintable=[*chain, str(partial["B"])], interp=[*interp, "nearest"], **common,
        )  # fmt: skip
        _require(partial["G"], "gain")
        quality = {kind: _quality(path, options) for kind, path in partial.items()}
        for kind, path in outputs.items():
            mset.remove(path)
            partial[kind].rename(path)
        return quality
    finally:
        for path in [*partial.values(), phases]:
            mset.remove(path)


def _require(path: Path, what: str) -> None:
    if not path.is_dir():
        raise CalibrationError(f"CASA found no {what} solution at all; its log is in the log of this stage")


def _quality(path: Path, options: CalibrationConfig) -> dict:
    """Numbers of one table; raises CalibrationError when too much of it is flagged.

    Antennas without any data have flagged rows in a table; they do not count here.
    """
    table = read(path)
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    kept = np.isin(table.antenna, alive)
    flagged = float(table.flags[kept].mean()) if alive else 1.0
    if len(alive) < 4 or flagged > options.max_flagged:
        raise CalibrationError(
            f"{path.name}: {len(alive)} antennas have solutions (at least 4 needed) and {flagged:.0%} of theirs are "
            f"flagged (at most {options.max_flagged:.0%}): the calibrator is too faint, or the data are bad"
        )
    good = ~table.flags
    return {
        "antennas": len(alive),
        "flagged": flagged,
        "median_amplitude": float(np.median(np.abs(table.gain[good]))),
        "median_snr": float(np.median(table.snr[good])),
    }


def apply(ms: Path, tables: Mapping[str, Path], logfile: Path | None) -> None:
    """CORRECTED_DATA from DATA and the tables, on the flags that `prepare` left; may be repeated.

    Bandpass and gains are carried to another time as they are (nearest); the bandpass is linear in frequency, and flagged
    where it is flagged.
    """
    absent = [str(path) for path in tables.values() if not path.is_dir()]
    if absent:
        raise CalibrationError(f"{ms.name}: tables {absent} are gone. Remove its caltables.json to choose another set.")
    tasks = casa.tasks(logfile)
    mset.ensure_column(ms, "CORRECTED_DATA")
    restore_flags(ms, PREPARED_FLAGS)
    interp = {"K": "nearest", "B": "nearest,linearflag", "G": "nearest"}
    kinds = [kind for kind in ("K", "B", "G") if kind in tables]
    tasks.applycal(
        vis=str(ms), gaintable=[str(tables[k]) for k in kinds], interp=[interp[k] for k in kinds],
        calwt=False, applymode="calflag", flagbackup=False, parang=False,
    )  # fmt: skip


def save_flags(ms: Path, name: str) -> None:
    """Keep the FLAG column as a CASA flag version, replacing one of the same name."""
    agent = casa.tool("agentflagger")
    agent.open(str(ms))
    try:
        agent.saveflagversion(name, "contimg", "replace")
    finally:
        agent.done()


def restore_flags(ms: Path, name: str) -> None:
    """Put a CASA flag version back into the FLAG column."""
    agent = casa.tool("agentflagger")
    agent.open(str(ms))
    try:
        agent.restoreflagversion([name], "replace")
    finally:
        agent.done()
