"""Calibration tables: solve, look at, apply. The reference implementation: CASA gaincal, bandpass, applycal."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import casacore.tables as ct
import numpy as np
from numba import njit, prange

from contimg import casa
from contimg import measurement_set as mset
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError, ContimgError
from contimg.files import publish, remove
from contimg.solver import Gains

PREPARED_FLAGS = "prepared"


@dataclass(frozen=True)
class Solutions:
    """One calibration table. `gain` and `flags` are (nsolution, nchan, npol), `antenna` and `time_mjd` (nsolution,)."""

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
        raise CalibrationError(f"reference antenna {wanted} has no unflagged data; choose another, or calibration.refant: auto")
    distance = np.linalg.norm(positions_m[antennas] - np.median(positions_m[antennas[healthy]], axis=0), axis=1)
    best = np.round(flagged, 1) * 1e6 + distance
    order = [int(a) for a in antennas[np.argsort(best)] if healthy[np.flatnonzero(antennas == a)[0]]]
    return order if wanted is None else [wanted, *(a for a in order if a != wanted)]


def solve_casa(
    ms: Path,
    outputs: Mapping[str, Path],
    refant: Sequence[str],
    options: CalibrationConfig,
    logfile: Path | None,
    phase_channels: tuple[int, int],
) -> dict[str, dict]:
    """Solve with CASA for [K,] B and G against MODEL_DATA; tables appear under their names only when all are good.

    Pre-bandpass phases per integration (kept out of the final chain), bandpass per channel, then one amplitude and
    phase gain for the group. Nothing is normalised: the product of the tables turns correlator units into Jy.
    Returns quality numbers by kind. Raises CalibrationError when solutions are missing or mostly flagged.
    """
    tasks = casa.tasks(logfile)
    common = {"vis": str(ms), "refant": ",".join(refant[:8]), "uvrange": options.uvrange or "", "minsnr": options.min_snr}
    phases = outputs["G"].with_name(f".{outputs['G'].name}.prebandpass")
    remove(phases)
    try:
        with _publishing(outputs) as partial:
            chain: list[str] = []
            if options.do_k:
                tasks.gaincal(caltable=str(partial["K"]), gaintype="K", solint="inf", parang=False, **common)
                _require(partial["K"], "delay")
                chain.append(str(partial["K"]))
            tasks.gaincal(
                caltable=str(phases),
                gaintype="G",
                calmode="p",
                solint="int",
                gaintable=chain,
                spw=f"0:{phase_channels[0]}~{phase_channels[1] - 1}",
                **common,
            )
            _require(phases, "pre-bandpass phase")
            interp = ["nearest"] * len(chain)
            tasks.bandpass(
                caltable=str(partial["B"]), bandtype="B", solint="inf", combine="scan", solnorm=False,
                fillgaps=options.fill_channels,
                gaintable=[*chain, str(phases)], interp=[*interp, "linear"], **common,
            )  # fmt: skip
            _require(partial["B"], "bandpass")
            tasks.gaincal(
                caltable=str(partial["G"]), gaintype="G", calmode="ap", combine="scan",
                solint=f"{options.gain_interval_s}s" if options.gain_interval_s else "inf",
                gaintable=[*chain, str(partial["B"])], interp=[*interp, "nearest"], **common,
            )  # fmt: skip
            _require(partial["G"], "gain")
            quality = {kind: quality_of(path, kind) for kind, path in partial.items()}
        return quality
    finally:
        remove(phases)


@contextmanager
def _publishing(outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Names beside `outputs` to write to; renamed together at the end, removed if anything fails. A table that would be replaced
    by one with the same solutions stays: to what was calibrated with it, it is the same (casacore leaves some bytes unset)."""
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
        return _stations(one) == _stations(other) and all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    except (ContimgError, RuntimeError):  # none there, or a damaged one
        return False


def write_solutions(
    ms: Path, mjd: np.ndarray, outputs: Mapping[str, Path], solutions: Mapping[str, Gains], refant: int, repeated: int = 1
) -> dict[str, dict]:
    """Write B and G as CASA tables, which appear under their names together; returns quality by kind.

    mjd       middle of each interval of the gains
    repeated  channels of the bandpass that are one solution
    """
    bandpass, gain = solutions["B"], solutions["G"]
    shaped = {"B": (bandpass, np.array([np.mean(mjd)])), "G": (_as_rows(gain), np.asarray(mjd))}
    with _publishing(outputs) as partial:
        for kind, path in partial.items():
            _write(path, kind, *shaped[kind], ms, refant)
        return {kind: quality_of(path, kind, repeated) for kind, path in partial.items()}


def _as_rows(gain: Gains) -> Gains:
    """Gains of (nant, ninterval, npol) as one row for an interval and antenna: (ninterval * nant, 1, npol)."""

    def rows(values):
        return np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(-1, 1, values.shape[2])

    return Gains(*(rows(values) for values in (gain.gain, gain.flags, gain.error, gain.snr)))


def _write(path: Path, kind: str, solutions: Gains, mjd: np.ndarray, ms: Path, refant: int) -> None:
    """A `B Jones` or `G Jones` table with a row for each time and antenna, as CASA 6.7 writes it."""
    nrow, nchan, _ = solutions.gain.shape
    nant = nrow // len(mjd)
    scalars = {"TIME": 0.0, "FIELD_ID": 0, "SPECTRAL_WINDOW_ID": 0, "ANTENNA1": 0, "ANTENNA2": 0, "INTERVAL": 0.0,
               "SCAN_NUMBER": 0, "OBSERVATION_ID": 0}  # fmt: skip
    arrays = {"CPARAM": 0j, "PARAMERR": 0.0, "FLAG": False, "SNR": 0.0, "WEIGHT": 0.0}
    columns = [ct.makescacoldesc(name, value) for name, value in scalars.items()]
    for name, value in arrays.items():
        valuetype = {complex: "complex", float: "float", bool: "bool"}[type(value)]
        columns.append(ct.makearrcoldesc(name, value, ndim=-1, valuetype=valuetype))
    with closing(ct.table(str(path), ct.maketabdesc(columns), nrow=nrow, ack=False)) as table:
        table.putinfo({"type": "Calibration", "subType": f"{kind} Jones", "readme": ""})
        keywords = {"ParType": "Complex", "MSName": ms.name, "VisCal": f"{kind} Jones", "PolBasis": "unknown"}
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


def _require(path: Path, what: str) -> None:
    if not path.is_dir():
        raise CalibrationError(f"CASA found no {what} solution at all; its log is in the log of this stage")


def quality_of(path: Path, kind: str, repeated: int = 1) -> dict:
    """Numbers of one table; raises CalibrationError unless it is a calibration table of that kind.

    Antennas without any data have flagged rows in a table; they do not count here. Scatter is that of a solution about its
    neighbours in frequency (second differences), which noise and interference make, and smooth bandpasses do not.
    """
    with mset.open_table(path) as opened:
        found = opened.getkeywords().get("VisCal", "no calibration table")
    if found != f"{kind} Jones":
        raise CalibrationError(f"{path}: {found}, expected {kind} Jones")
    table = read(path)
    alive = [a for a in np.unique(table.antenna) if not table.flags[table.antenna == a].all()]
    if not alive:
        return {"antennas": 0, "flagged": 1.0, "median_amplitude": 0.0, "median_snr": 0.0, "amplitude_scatter": 0.0,
                "phase_scatter_deg": 0.0}  # fmt: skip
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
    """Robust rms of single values, from their differences to the mean of two neighbours; 0 where there are none."""
    if not about_neighbours.size:
        return 0.0
    return float(1.4826 * np.median(np.abs(about_neighbours - np.median(about_neighbours))) / np.sqrt(1.5))


def problems(quality: Mapping[str, Mapping], options: CalibrationConfig) -> list[str]:
    """Why a set must not be used, in words; empty for a good one."""
    limits = {
        "antennas": (options.min_antennas, -1), "flagged": (options.max_flagged, 1), "median_snr": (options.min_median_snr, -1),
        "amplitude_scatter": (options.max_amplitude_scatter, 1), "phase_scatter_deg": (options.max_phase_scatter_deg, 1),
    }  # fmt: skip
    return [
        f"{kind}: {name} is {numbers[name]:.3g}, expected {'at most' if sign > 0 else 'at least'} {limit:g}"
        for kind, numbers in quality.items()
        for name, (limit, sign) in limits.items()
        if not (numbers[name] - limit) * sign <= 0
    ]


def apply(ms: Path, tables: Mapping[str, Path], logfile: Path | None) -> tuple[np.ndarray, np.ndarray, mset.Rows]:
    """CORRECTED_DATA from DATA and the tables, on the flags that `prepare` left; may be repeated.

    Gains in intervals are linear in amplitude and phase inside the group that they were solved on; another group gets
    their mean. One pass over the data where the tables are a bandpass on the data's own channels and gains; delays, and
    bandpasses of other channels, are CASA's (`apply_casa`). Returns CORRECTED_DATA, its
    flags, both (ntime, nbaseline, nchan, npol), and the rows.
    """
    mset.require_whole(ms)
    tables = {kind: Path(path) for kind, path in tables.items()}
    absent = [str(path) for path in tables.values() if not path.is_dir()]
    if absent:
        raise CalibrationError(f"{ms.name}: tables {absent} are gone. Choose again: contimg reprocess GROUP --from caltables")
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    solutions = per_antenna(tables, observation, rows.time_mjd)
    if solutions is None:
        for path in tables.values():
            if _stations(path) != list(observation.antenna_names):
                raise CalibrationError(
                    f"{path}: its antennas are not those of {ms}, in the same order, as CASA needs them. Choose another set."
                )
        apply_casa(ms, tables, logfile)
        return *(mset.read_grid(ms, name, rows.shape[0]) for name in ("CORRECTED_DATA", "FLAG")), rows
    data = mset.read_grid(ms, "DATA", rows.shape[0])
    flags = prepared_flags(ms, rows.shape[0])
    correct_all(data, flags, rows.ant_1, rows.ant_2, *solutions)
    mset.write_columns(ms, CORRECTED_DATA=data, FLAG=flags)
    return data, flags, rows


def per_antenna(
    tables: Mapping[str, Path], observation: mset.Observation, time_mjd: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """1 / gain and flags (1 or ntime, nant, nchan, npol) of a bandpass and gains; None when the tables are other.

    Stations go by name: those that the tables do not have are flagged. Raises CalibrationError when they have none of them.
    """
    if set(tables) != {"B", "G"}:
        return None
    bandpass, gains = (_of_stations(tables[kind], observation.antenna_names) for kind in ("B", "G"))
    if not len(bandpass.antenna):
        raise CalibrationError(f"{tables['B']}: has none of the stations of this observation. Choose another set.")
    with mset.open_table(f"{tables['B']}::SPECTRAL_WINDOW") as window:
        freq_hz = window.getcell("CHAN_FREQ", 0)
    same = bandpass.gain.shape[1] == len(observation.freq_hz) and gains.gain.shape[1] == 1
    if not same or len(np.unique(bandpass.antenna)) < len(bandpass.antenna):
        return None
    if np.abs(freq_hz - observation.freq_hz).max() > 1e-3 * observation.channel_width_hz:
        return None
    nant = len(observation.antenna_names)
    inverse, flagged = (np.ones((nant, *bandpass.gain.shape[1:]), complex), np.ones((nant, *bandpass.gain.shape[1:]), bool))
    flagged[bandpass.antenna] = bandpass.flags
    inverse[bandpass.antenna] = 1 / np.where(bandpass.flags, 1, bandpass.gain)
    gain = _gains_at(gains, nant, time_mjd)[:, :, None]
    lost = np.isnan(gain)
    return inverse / np.where(lost, 1, gain), flagged | lost


def _stations(table: Path) -> list[str]:
    """Names of a table's antennas, in its order."""
    with mset.open_table(f"{table}::ANTENNA") as antenna:
        return list(antenna.getcol("NAME"))


def _of_stations(table: Path, names: Sequence[str]) -> Solutions:
    """Solutions of a table for the stations `names`; their antennas are places in that list."""
    solutions, places = read(table), {name: place for place, name in enumerate(names)}
    antenna = np.array([places.get(name, -1) for name in _stations(table)])[solutions.antenna]
    return Solutions(*(values[antenna >= 0] for values in astuple(replace(solutions, antenna=antenna))))


def middle_gains(tables: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Bandpass times gains of each station, (npol,): median amplitude, phase in the middle of the band; NaN where flagged."""
    bandpass, gains = read(tables["B"]), read(tables["G"])
    names = _stations(tables["B"])
    mean = _gains_at(gains, len(names), np.array([np.inf]))[0]
    values = np.where(bandpass.flags, np.nan, bandpass.gain)
    nchan = values.shape[1]
    middle = values[:, nchan // 2 - nchan // 32 : nchan // 2 + nchan // 32 + 1]
    found = {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of antennas without any solution
        for row, a in enumerate(bandpass.antenna):
            turned = np.nanmean(middle[row], axis=0)
            found[names[a]] = mean[a] * np.nanmedian(np.abs(values[row]), axis=0) * turned / np.abs(turned)
    return found


def snr_by_antenna(path: Path, nant: int) -> np.ndarray:
    """Signal to noise of an antenna's gains, all intervals together, (nant, npol); 0 where there is none."""
    gains = read(path)
    total = np.zeros((nant, gains.gain.shape[2]))
    np.add.at(total, gains.antenna, np.where(gains.flags, 0, gains.snr)[:, 0] ** 2)
    return np.sqrt(total)


def _gains_at(gains: Solutions, nant: int, time_mjd: np.ndarray) -> np.ndarray:
    """Gains (1 or ntime, nant, npol), NaN where there is none: linear in time inside their group, else their mean."""
    times = np.unique(gains.time_mjd)
    inside = len(times) > 1 and abs(times.mean() - time_mjd.mean()) < np.ptp(time_mjd) / 2
    found = np.full((len(time_mjd) if inside else 1, nant, gains.gain.shape[2]), np.nan, complex)
    for a in np.unique(gains.antenna):
        mine = gains.antenna == a
        for p in range(found.shape[2]):
            good = mine & ~gains.flags[:, 0, p]
            values, when = gains.gain[good, 0, p], gains.time_mjd[good]
            if not len(values):
                continue
            if inside:
                size = np.interp(time_mjd, when, np.abs(values))
                found[:, a, p] = size * np.exp(1j * np.interp(time_mjd, when, np.unwrap(np.angle(values))))
            else:
                found[0, a, p] = np.abs(values).mean() * np.exp(1j * np.angle(values.mean()))
    return found


def correct_all(data, flags, ant_1, ant_2, inverse: np.ndarray, flagged: np.ndarray) -> None:
    """`correct` with solutions for all times, or for each: (1 or ntime, nant, nchan, npol)."""
    step = len(data) // len(inverse)
    for k in range(len(inverse)):
        part = slice(k * step, (k + 1) * step)
        correct(data[part], flags[part], ant_1, ant_2, np.ascontiguousarray(inverse[k]), np.ascontiguousarray(flagged[k]))


@njit(parallel=True, cache=True)
def correct(data, flags, ant_1, ant_2, inverse, flagged):
    """V_12 / (g_1 conj(g_2)) in place, and flags where a solution is flagged: applymode 'calflag' of CASA's applycal.

    data, flags       (ntime, nbaseline, nchan, npol)
    inverse, flagged  1 / g and whether it is flagged, (nant, nchan, npol)
    """
    ntime, nbaseline, nchan, npol = data.shape
    for b in prange(nbaseline):
        one, two = ant_1[b], ant_2[b]
        for c in range(nchan):
            for p in range(npol):
                factor = np.complex64(inverse[one, c, p] * np.conj(inverse[two, c, p]))
                bad = flagged[one, c, p] or flagged[two, c, p]
                for t in range(ntime):
                    if bad:
                        flags[t, b, c, p] = True
                    else:
                        data[t, b, c, p] *= factor


def apply_casa(ms: Path, tables: Mapping[str, Path], logfile: Path | None) -> None:
    """The same with CASA's applycal, for any tables; the bandpass is linear in frequency, and flagged where it is flagged."""
    tasks = casa.tasks(logfile)
    mset.ensure_column(ms, "CORRECTED_DATA")
    restore_flags(ms, PREPARED_FLAGS)
    interp = {"K": "nearest", "B": "nearest,linearflag", "G": "linear"}
    kinds = [kind for kind in ("K", "B", "G") if kind in tables]
    with mset.changing(ms):
        tasks.applycal(
            vis=str(ms), gaintable=[str(tables[k]) for k in kinds], interp=[interp[k] for k in kinds],
            calwt=False, applymode="calflag", flagbackup=False, parang=False,
        )  # fmt: skip


def prepared_flags(ms: Path, ntime: int) -> np.ndarray:
    """The flags that `prepare` left, whatever was done since: (ntime, nbaseline, nchan, npol)."""
    return mset.read_grid(Path(f"{ms}.flagversions") / f"flags.{PREPARED_FLAGS}", "FLAG", ntime)


def save_flags(ms: Path, name: str) -> None:
    """Keep the FLAG column as a CASA flag version, instead of all there are: one may be left half-written."""
    with mset.changing(ms):
        remove(Path(f"{ms}.flagversions"))
        with _agent(ms) as agent:
            agent.saveflagversion(name, "contimg", "replace")


def restore_flags(ms: Path, name: str) -> None:
    """Put a CASA flag version back into the FLAG column."""
    with mset.changing(ms), _agent(ms) as agent:
        agent.restoreflagversion([name], "replace")


@contextmanager
def _agent(ms: Path) -> Iterator:
    agent = casa.tool("agentflagger")
    agent.open(str(ms))
    try:
        yield agent
    finally:
        agent.done()
