"""Apply tables to data: one pass, by station names."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg.calibration.casa_tasks import apply_casa
from contimg.calibration.tables import Solutions, read, read_for_stations, stations_of
from contimg.errors import CalibrationError
from contimg.sky.geometry import SITE_ITRF_M, meridian_frame_m
from contimg.telescope import TELESCOPE
from contimg.visibilities import flag_versions
from contimg.visibilities import measurement_set as mset

_MOST_TURN_RAD = np.radians(120.0)  # between two sets: a phase that went farther is not followed


@dataclass(frozen=True)
class Calibrating:
    """Calibrated data and flags (ntime, nbaseline, nchan, npol), their rows; 1 / gain (nant, nchan,
    npol) in the middle of the group, where it is known; what changed between two sets."""

    data: np.ndarray
    flags: np.ndarray
    rows: mset.Rows
    inverse: np.ndarray | None = None
    change: dict | None = None


def calibrated(
    ms: Path,
    tables: Mapping[str, Path],
    logfile: Path | None,
    other: Mapping[str, Path] | None = None,
    share: float = 0.0,
) -> Calibrating:
    """What CORRECTED_DATA shall be, of DATA and the tables, on the flags that `prepare` left.

    other, share  tables of a set on the other side in time, and its share (0 to 1) in gains that
                  are interpolated between both

    Gains in intervals are linear in amplitude and phase inside the group that they were solved on;
    another group gets their mean. One pass over the data where the tables are a bandpass on the
    data's own channels and gains; delays, and bandpasses of other channels, are CASA's
    (`apply_casa`, into the Measurement Set).
    """
    mset.require_whole(ms)
    tables = {kind: Path(path) for kind, path in tables.items()}
    absent = [str(path) for path in tables.values() if not path.is_dir()]
    if absent:
        raise CalibrationError(
            f"{ms.name}: tables {absent} are gone. Choose again: contimg reprocess GROUP --from "
            "caltables"
        )
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    solutions = per_antenna(tables, observation, rows.time_mjd)
    if solutions is None:
        for path in tables.values():
            if stations_of(path) != list(observation.antenna_names):
                raise CalibrationError(
                    f"{path}: its antennas are not those of {ms}, in the same order, as CASA needs "
                    "them. Choose another set."
                )
        apply_casa(ms, tables, logfile)
        data, flags = (
            mset.read_grid(ms, name, rows.shape[0]) for name in ("CORRECTED_DATA", "FLAG")
        )
        return Calibrating(data, flags, rows)
    data = mset.read_grid(ms, "DATA", rows.shape[0])
    flags = flag_versions.read(ms, rows.shape[0])
    inverse, flagged = solutions
    change = None
    if other and (theirs := per_antenna(other, observation, rows.time_mjd)) is not None:
        (inverse, flagged), change = between(solutions, theirs, share)
    correct_all(
        data=data, flags=flags, ant_1=rows.ant_1, ant_2=rows.ant_2, inverse=inverse, flagged=flagged
    )
    middle = np.where(flagged, np.nan, inverse)[len(inverse) // 2]
    return Calibrating(data, flags, rows, middle, change)


def between(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], share: float
) -> tuple[tuple[np.ndarray, np.ndarray], dict]:
    """1 / gain and flags (1, nant, nchan, npol) between two sets: amplitudes and phases linear in
    time, each antenna and polarisation for itself, phases unwrapped from the middle of the band.
    Where the other set has none, or its phase has gone too far to be followed, the one is taken.

    Also what changed: the factor in the flux scale, rms of phases and of amplitudes, the share that
    was interpolated. The common phase of a polarisation is arbitrary, and left alone.
    """
    inverse, flagged = one
    use = ~(flagged[:1] | other[1][:1])
    ratio = np.where(use, other[0][:1] / np.where(use, inverse[:1], 1), np.nan)
    nchan = ratio.shape[2]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of antennas without any solution
        middle = ratio[:, :, nchan // 4 : nchan - nchan // 4]
        turned = np.nanmean(middle / np.abs(middle), axis=2, keepdims=True)
        common = np.nansum(turned, axis=1, keepdims=True)
        centre = np.angle(turned * np.conj(common))
        phase = centre + np.angle(ratio * np.conj(common) * np.exp(-1j * centre))
        size = np.nanmedian(np.abs(ratio), axis=2)[0]
    near = np.abs(centre) < _MOST_TURN_RAD
    factor = np.where(near & use, np.abs(ratio) ** share * np.exp(1j * share * phase), 1)
    known = np.isfinite(size)
    change = {
        "flux_ratio": float(np.nanmedian(size[known]) ** 2) if known.any() else None,
        "amplitude_rms": float(np.std(size[known])) if known.any() else None,
        "phase_rms_deg": float(np.degrees(np.sqrt(np.nanmean(centre**2)))) if known.any() else None,
        "interpolated": float((near & use).mean() / max(use.mean(), 1e-9)),
    }
    return (inverse * np.nan_to_num(factor, nan=1.0), flagged), change


def per_antenna(
    tables: Mapping[str, Path], observation: mset.Observation, time_mjd: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """1 / gain and flags (1 or ntime, nant, nchan, npol) of a bandpass and gains; None when the
    tables are other.

    Stations go by name: those that the tables do not have are flagged. Raises CalibrationError when
    they have none of them.
    """
    if set(tables) != {"B", "G"}:
        return None
    bandpass, gains = (
        read_for_stations(tables[kind], observation.antenna_names) for kind in ("B", "G")
    )
    if not len(bandpass.antenna):
        raise CalibrationError(
            f"{tables['B']}: has none of the stations of this observation. Choose another set."
        )
    with mset.open_table(f"{tables['B']}::SPECTRAL_WINDOW") as window:
        freq_hz = window.getcell("CHAN_FREQ", 0)
    same = bandpass.gain.shape[1] == len(observation.freq_hz) and gains.gain.shape[1] == 1
    if not same or len(np.unique(bandpass.antenna)) < len(bandpass.antenna):
        return None
    if np.abs(freq_hz - observation.freq_hz).max() > 1e-3 * observation.channel_width_hz:
        return None
    nant = len(observation.antenna_names)
    inverse = np.ones((nant, *bandpass.gain.shape[1:]), complex)
    flagged = np.ones((nant, *bandpass.gain.shape[1:]), bool)
    flagged[bandpass.antenna] = bandpass.flags
    inverse[bandpass.antenna] = 1 / np.where(bandpass.flags, 1, bandpass.gain)
    gain = _gains_at(gains, nant, time_mjd)[:, :, None]
    lost = np.isnan(gain)
    return inverse / np.where(lost, 1, gain), flagged | lost


@dataclass(frozen=True)
class BandGains:
    """Bandpass times mean gains of a set's stations: gain (nant, nchan, npol), NaN where flagged,
    freq_hz (nchan,), places_m (nant, 2) to the east and north."""

    names: list[str]
    gain: np.ndarray
    freq_hz: np.ndarray
    places_m: np.ndarray

    def of(self, names: Sequence[str]) -> np.ndarray:
        """Gains of some stations, in this order."""
        return self.gain[[self.names.index(name) for name in names]]


def band_gains(tables: Mapping[str, Path]) -> BandGains:
    """Of every station with solutions."""
    bandpass, gains = read(tables["B"]), read(tables["G"])
    names = stations_of(tables["B"])
    mean = _gains_at(gains, len(names), np.array([np.inf]))[0]
    values = np.where(bandpass.flags, np.nan, bandpass.gain) * mean[bandpass.antenna][:, None]
    with mset.open_table(f"{tables['B']}::SPECTRAL_WINDOW") as window:
        freq_hz = window.getcell("CHAN_FREQ", 0)
    with mset.open_table(f"{tables['B']}::ANTENNA") as antenna:
        position_m = meridian_frame_m(antenna.getcol("POSITION") - SITE_ITRF_M)[bandpass.antenna]
    c, s = np.cos(TELESCOPE.latitude_rad), np.sin(TELESCOPE.latitude_rad)
    places_m = np.stack([position_m[:, 1], c * position_m[:, 2] - s * position_m[:, 0]], axis=1)
    return BandGains([names[a] for a in bandpass.antenna], values, freq_hz, places_m)


def _gains_at(gains: Solutions, nant: int, time_mjd: np.ndarray) -> np.ndarray:
    """Gains (1 or ntime, nant, npol), NaN where there is none: linear in time inside their group,
    else their mean."""
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
                found[:, a, p] = size * np.exp(
                    1j * np.interp(time_mjd, when, np.unwrap(np.angle(values)))
                )
            else:
                found[0, a, p] = np.abs(values).mean() * np.exp(1j * np.angle(values.mean()))
    return found


def correct_all(*, data, flags, ant_1, ant_2, inverse: np.ndarray, flagged: np.ndarray) -> None:
    """`correct` with solutions for all times, or for each: (1 or ntime, nant, nchan, npol)."""
    step = len(data) // len(inverse)
    for k in range(len(inverse)):
        part = slice(k * step, (k + 1) * step)
        correct(
            data[part],
            flags[part],
            ant_1,
            ant_2,
            np.ascontiguousarray(inverse[k]),
            np.ascontiguousarray(flagged[k]),
        )


@njit(parallel=True, cache=True)
def correct(data, flags, ant_1, ant_2, inverse, flagged):
    """V_12 / (g_1 conj(g_2)) in place, and flags where a solution is flagged: applymode 'calflag'
    of CASA's applycal.

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


@njit(parallel=True, cache=True)
def correct_in_time(data, weights, ant_1, ant_2, gain):
    """Take gains (ntime, nant, npol) out of data (ntime, nbaseline, nchan, npol) in place; weights
    grow by their power."""
    ntime, nbaseline, nchan, npol = data.shape
    for b in prange(nbaseline):
        for t in range(ntime):
            for p in range(npol):
                product = gain[t, ant_1[b], p] * np.conj(gain[t, ant_2[b], p])
                factor = np.complex64(1 / product)
                size = np.float32(product.real**2 + product.imag**2)
                for c in range(nchan):
                    data[t, b, c, p] *= factor
                    weights[t, b, c, p] *= size
