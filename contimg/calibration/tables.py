"""Calibration tables in CASA's format: read, write, look at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import casacore.tables as ct
import numpy as np

from contimg.calibration.solver import Gains
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError, ContimgError
from contimg.store.files import publish, remove
from contimg.visibilities import measurement_set as mset


@dataclass(frozen=True)
class Solutions:
    """One calibration table. `gain` and `flags` are (nsolution, nchan, npol), `antenna` and
    `time_mjd` (nsolution,)."""

    gain: np.ndarray
    flags: np.ndarray
    antenna: np.ndarray
    snr: np.ndarray
    time_mjd: np.ndarray


def read(path: Path) -> Solutions:
    """A gain or bandpass table (CPARAM) or a delay table (FPARAM, ns)."""
    with mset.open_table(path) as table:
        column = "CPARAM" if "CPARAM" in table.colnames() else "FPARAM"
        columns = [table.getcol(c) for c in (column, "FLAG", "ANTENNA1", "SNR", "TIME")]
        return Solutions(*columns[:-1], columns[-1] / mset.DAY_S)


def choose_reference_antenna(
    *,
    positions_m: np.ndarray,
    antennas: Sequence[int],
    flagged: np.ndarray,
    wanted: int | None = None,
) -> list[int]:
    """Reference antennas, best first: those with the fewest flags, then those nearest to the middle
    of the array.

    positions_m  (nant, 3);  antennas: numbers that take part;  flagged: fraction of flagged data of
                 each of those.
    An antenna without data is never chosen: `wanted` raises CalibrationError then.
    """
    antennas = np.asarray(antennas)
    healthy = flagged < 0.999
    if not healthy.any():
        raise CalibrationError("no antenna has unflagged data: no reference antenna")
    if wanted is not None and wanted not in antennas[healthy]:
        raise CalibrationError(
            f"reference antenna {wanted} has no unflagged data; choose another, or "
            "calibration.refant: auto"
        )
    distance = np.linalg.norm(
        positions_m[antennas] - np.median(positions_m[antennas[healthy]], axis=0), axis=1
    )
    best = np.round(flagged, 1) * 1e6 + distance
    order = [
        int(a) for a in antennas[np.argsort(best)] if healthy[np.flatnonzero(antennas == a)[0]]
    ]
    return order if wanted is None else [wanted, *(a for a in order if a != wanted)]


@contextmanager
def publishing(outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Names beside `outputs` to write to; renamed together at the end, removed if anything fails. A
    table that would be replaced by one with the same solutions stays: to what was calibrated with
    it, it is the same (casacore leaves some bytes unset)."""
    partial = {kind: path.with_name(f".{path.name}.partial") for kind, path in outputs.items()}
    for kind, path in partial.items():
        outputs[kind].parent.mkdir(parents=True, exist_ok=True)
        remove(path)
    try:
        yield partial
        for kind, path in outputs.items():
            if not _same(path, partial[kind]):
                publish(partial[kind], path)
    finally:
        for path in partial.values():
            remove(path)


def _same(one: Path, other: Path) -> bool:
    try:
        pairs = zip(astuple(read(one)), astuple(read(other)), strict=True)
        return stations_of(one) == stations_of(other) and all(
            np.array_equal(a, b, equal_nan=True) for a, b in pairs
        )
    except (ContimgError, RuntimeError):  # none there, or a damaged one
        return False


def write_solutions(
    ms: Path,
    mjd: np.ndarray,
    outputs: Mapping[str, Path],
    solutions: Mapping[str, Gains],
    refant: int,
    repeated: int = 1,
) -> dict[str, dict]:
    """Write B and G as CASA tables, which appear under their names together; returns quality by
    kind.

    mjd       middle of each interval of the gains
    repeated  channels of the bandpass that are one solution
    """
    bandpass, gain = solutions["B"], solutions["G"]
    shaped = {"B": (bandpass, np.array([np.mean(mjd)])), "G": (_as_rows(gain), np.asarray(mjd))}
    with publishing(outputs) as partial:
        for kind, path in partial.items():
            _write(path, kind, *shaped[kind], ms, refant)
        return {kind: quality_of(path, kind, repeated) for kind, path in partial.items()}


def write_gains(ms: Path, mjd: np.ndarray, path: Path, gain: Gains, refant: int) -> None:
    """A `G Jones` table of gains (nant, ninterval, npol), with the middle of each interval."""
    with publishing({"G": path}) as partial:
        _write(partial["G"], "G", _as_rows(gain), np.asarray(mjd), ms, refant)


def _as_rows(gain: Gains) -> Gains:
    """Gains of (nant, ninterval, npol) as one row for an interval and antenna: (ninterval * nant,
    1, npol)."""

    def rows(values):
        return np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(-1, 1, values.shape[2])

    return Gains(*(rows(values) for values in (gain.gain, gain.flags, gain.error, gain.snr)))


def _write(path: Path, kind: str, solutions: Gains, mjd: np.ndarray, ms: Path, refant: int) -> None:
    """A `B Jones` or `G Jones` table with a row for each time and antenna, as CASA 6.7 writes
    it."""
    nrow, nchan, _ = solutions.gain.shape
    nant = nrow // len(mjd)
    scalars = {
        "TIME": 0.0,
        "FIELD_ID": 0,
        "SPECTRAL_WINDOW_ID": 0,
        "ANTENNA1": 0,
        "ANTENNA2": 0,
        "INTERVAL": 0.0,
        "SCAN_NUMBER": 0,
        "OBSERVATION_ID": 0,
    }
    arrays = {"CPARAM": 0j, "PARAMERR": 0.0, "FLAG": False, "SNR": 0.0, "WEIGHT": 0.0}
    columns = [ct.makescacoldesc(name, value) for name, value in scalars.items()]
    for name, value in arrays.items():
        valuetype = {complex: "complex", float: "float", bool: "bool"}[type(value)]
        columns.append(ct.makearrcoldesc(name, value, ndim=-1, valuetype=valuetype))
    with closing(ct.table(str(path), ct.maketabdesc(columns), nrow=nrow, ack=False)) as table:
        table.putinfo({"type": "Calibration", "subType": f"{kind} Jones", "readme": ""})
        keywords = {
            "ParType": "Complex",
            "MSName": ms.name,
            "VisCal": f"{kind} Jones",
            "PolBasis": "unknown",
        }
        for name, value in keywords.items():
            table.putkeyword(name, value)
        for name in ("TIME", "INTERVAL"):
            table.putcolkeyword(name, "QuantumUnits", ["s"])
        table.putcolkeyword("TIME", "MEASINFO", {"type": "epoch", "Ref": "UTC"})
        table.putcol("TIME", np.repeat(mjd * mset.DAY_S, nant))
        table.putcol("SCAN_NUMBER", np.ones(nrow, np.int32))
        table.putcol("ANTENNA1", np.tile(np.arange(nant, dtype=np.int32), len(mjd)))
        table.putcol("ANTENNA2", np.full(nrow, refant, np.int32))
        table.putcol("CPARAM", solutions.gain.astype(np.complex64))
        table.putcol("PARAMERR", solutions.error.astype(np.float32))
        table.putcol("FLAG", solutions.flags)
        table.putcol("SNR", solutions.snr.astype(np.float32))
        for name in ("OBSERVATION", "ANTENNA", "FIELD", "SPECTRAL_WINDOW", "HISTORY"):
            with mset.open_table(f"{ms}::{name}") as source:
                source.copy(str(path / name), deep=True).close()
            table.putkeyword(name, f"Table: {path / name}")
    if nchan == 1:
        with mset.open_table(path / "SPECTRAL_WINDOW", readonly=False) as window:
            band_hz = window.getcell("CHAN_WIDTH", 0).sum()
            middle_hz = window.getcell("CHAN_FREQ", 0).mean()
            for name in ("CHAN_WIDTH", "EFFECTIVE_BW", "RESOLUTION"):
                window.putcell(name, 0, np.array([band_hz]))
            window.putcell("CHAN_FREQ", 0, np.array([middle_hz]))
            window.putcell("NUM_CHAN", 0, 1)


def quality_of(path: Path, kind: str, repeated: int = 1) -> dict:
    """Numbers of one table; raises CalibrationError unless it is a calibration table of that kind.

    Antennas without any data have flagged rows in a table; they do not count here. Scatter is that
    of a solution about its neighbours in frequency (second differences), which noise and
    interference make, and smooth bandpasses do not.
    """
    with mset.open_table(path) as opened:
        found = opened.getkeywords().get("VisCal", "no calibration table")
    if found != f"{kind} Jones":
        raise CalibrationError(f"{path}: {found}, expected {kind} Jones")
    table = read(path)
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    if not alive:
        return {
            "antennas": 0,
            "flagged": 1.0,
            "median_amplitude": 0.0,
            "median_snr": 0.0,
            "amplitude_scatter": 0.0,
            "phase_scatter_deg": 0.0,
        }
    kept = np.isin(table.antenna, alive)
    good = ~table.flags
    gain = np.where(table.flags, np.nan, table.gain)[kept, ::repeated]
    smooth = (gain[:, :-2] + gain[:, 2:]) / 2 if gain.shape[1] > 2 else gain[:, :0]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (gain[:, 1:-1] / smooth) if smooth.size else smooth
    relative = relative[np.isfinite(relative)]
    amplitude, phase_deg = np.abs(relative) - 1, np.angle(relative, deg=True)
    return {
        "antennas": len(alive),
        "flagged": float(table.flags[kept].mean()),
        "median_amplitude": float(np.median(np.abs(table.gain[good]))),
        "median_snr": float(np.median(table.snr[good])),
        "amplitude_scatter": _scatter(amplitude),
        "phase_scatter_deg": _scatter(phase_deg),
    }


def _scatter(about_neighbours: np.ndarray) -> float:
    """Robust rms of single values, from their differences to the mean of two neighbours; 0 where
    there are none."""
    if not about_neighbours.size:
        return 0.0
    return float(
        1.4826 * np.median(np.abs(about_neighbours - np.median(about_neighbours))) / np.sqrt(1.5)
    )


def problems(quality: Mapping[str, Mapping], options: CalibrationConfig) -> list[str]:
    """Why a set must not be used, in words; empty for a good one."""
    limits = {
        "antennas": (options.min_antennas, -1),
        "flagged": (options.max_flagged, 1),
        "median_snr": (options.min_median_snr, -1),
        "amplitude_scatter": (options.max_amplitude_scatter, 1),
        "phase_scatter_deg": (options.max_phase_scatter_deg, 1),
    }
    return [
        f"{kind}: {name} is {numbers[name]:.3g}, expected {'at most' if sign > 0 else 'at least'} "
        f"{limit:g}"
        for kind, numbers in quality.items()
        for name, (limit, sign) in limits.items()
        if not (numbers[name] - limit) * sign <= 0
    ]


def stations_of(table: Path) -> list[str]:
    """Names of a table's antennas, in its order."""
    with mset.open_table(f"{table}::ANTENNA") as antenna:
        return list(antenna.getcol("NAME"))


def read_for_stations(table: Path, names: Sequence[str]) -> Solutions:
    """Solutions of a table for the stations `names`; their antennas are places in that list."""
    solutions, places = read(table), {name: place for place, name in enumerate(names)}
    antenna = np.array([places.get(name, -1) for name in stations_of(table)])[solutions.antenna]
    return Solutions(
        *(values[antenna >= 0] for values in astuple(replace(solutions, antenna=antenna)))
    )


def snr_by_antenna(path: Path, nant: int) -> np.ndarray:
    """Signal to noise of an antenna's gains, all intervals together, (nant, npol); 0 where there is
    none."""
    gains = read(path)
    total = np.zeros((nant, gains.gain.shape[2]))
    np.add.at(total, gains.antenna, np.where(gains.flags, 0, gains.snr)[:, 0] ** 2)
    return np.sqrt(total)
