"""Validate a Measurement Set, flag it; put the model into it; weigh it. The steps around CASA that change columns."""

from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg import flagging, rfi
from contimg import measurement_set as mset
from contimg.catalogues import read_stations
from contimg.config import FlaggingConfig
from contimg.errors import ValidationError
from contimg.geometry import SPEED_OF_LIGHT_M_S, meridian_frame_m, track

_UVW_TOLERANCE_M = 1e-3
_STATION_TOLERANCE_M = 0.05
_REMEDY = {"station_offset_m": "Was a station moved or renamed? Bring catalogues.stations up to date, or mend the header."}


@njit(parallel=True, cache=True)
def _reweigh(weights, sigma, row_weight):
    """Scale weights (ntime, nbaseline, nchan, npol) in place to `row_weight` (nbaseline, npol) for a full integration.

    They may have been scaled before; `sigma` (ntime, nbaseline, npol), which describes DATA and is written once, keeps the
    mean share of samples of a row. Returns the new mean of each row.
    """
    ntime, nbaseline, nchan, npol = weights.shape
    mean = np.zeros((ntime, nbaseline, npol), np.float32)
    for t in prange(ntime):
        for b in range(nbaseline):
            for p in range(npol):
                total = 0.0
                for c in range(nchan):
                    total += weights[t, b, c, p]
                if not (total > 0 and sigma[t, b, p] > 0):
                    for c in range(nchan):
                        weights[t, b, c, p] = 0
                    continue
                factor = row_weight[b, p] * nchan / (total * sigma[t, b, p] ** 2)
                for c in range(nchan):
                    weights[t, b, c, p] *= factor
                mean[t, b, p] = factor * total / nchan
    return mean


def validate(ms: Path, observation: mset.Observation, rows: mset.Rows, stations: Path) -> dict:
    """Check what conversion promised; returns each check with its number, raises ValidationError on the first failure."""
    freq_hz = observation.freq_hz
    step = np.diff(freq_hz)
    tracking = track(*observation.phase_centre_deg, rows.time_mjd)
    positions = meridian_frame_m(observation.positions_m)
    baselines = positions[rows.ant_1] - positions[rows.ant_2]
    uvw_error = np.abs(np.einsum("tax,bx->tba", tracking.axes, baselines) - rows.uvw_m).max()
    length_error = np.abs(np.linalg.norm(rows.uvw_m, axis=2) - np.linalg.norm(baselines, axis=1)).max()
    time_step_s = np.diff(rows.time_mjd) * mset.DAY_S
    lost = np.maximum(np.round(time_step_s / rows.integration_s), 1) - 1  # integrations that no file has
    off_s = float(np.abs(time_step_s - (lost + 1) * rows.integration_s).max()) if len(time_step_s) else 0.0
    antennas = np.unique(np.concatenate([rows.ant_1, rows.ant_2]))
    checks = {
        "integrations": rows.shape[0],
        "baselines": rows.shape[1],
        "channels": len(freq_hz),
        "channel_step_error_hz": float(np.abs(step - observation.channel_width_hz).max()) if len(step) else 0.0,
        "baseline_length_error_m": float(length_error),
        "uvw_error_m": float(uvw_error),
        "time_step_error_s": off_s,
        "integrations_lost": int(lost.sum()),
        "station_offset_m": _station_offset_m(observation, antennas, stations),
    }
    limits = {
        "channel_step_error_hz": 1e-3 * observation.channel_width_hz,
        "baseline_length_error_m": _UVW_TOLERANCE_M,
        "uvw_error_m": _UVW_TOLERANCE_M,
        "time_step_error_s": 1.0,
        "station_offset_m": _STATION_TOLERANCE_M,
    }
    for name, limit in limits.items():
        if not checks[name] <= limit:
            raise ValidationError(
                f"{ms}: {name} is {checks[name]:.4g}, expected at most {limit:.4g}. {_REMEDY.get(name, 'Convert it again.')}"
            )
    return checks


def _station_offset_m(observation: mset.Observation, antennas: np.ndarray, stations: Path) -> float:
    """Largest distance of an antenna that takes part from its station in the catalogue; stations go by name."""
    catalogue = read_stations(stations)
    names = [observation.antenna_names[a] for a in antennas]
    unknown = [name for name in names if name not in catalogue]
    if unknown:
        raise ValidationError(f"antennas {unknown} are not in {stations}, expected all of them. {_REMEDY['station_offset_m']}")
    expected = np.array([catalogue[name] for name in names])
    return float(np.linalg.norm(observation.positions_m[antennas] - expected, axis=1).max())


def prepare(ms: Path, options: FlaggingConfig, stations: Path, logfile: Path | None = None) -> dict:
    """Validate and flag in place, starting from the flags that conversion found (weight 0). Returns the result.

    stations  catalogue of the array, which the antennas' positions are compared with
    """
    mset.require_whole(ms)
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    checks = validate(ms, observation, rows, stations)
    ntime = rows.shape[0]
    cross = rows.ant_1 != rows.ant_2
    if not cross.any():
        raise ValidationError(f"{ms}: no cross-correlations, expected some: nothing to image.")
    data = mset.read_grid(ms, "DATA", ntime)
    flags = mset.read_grid(ms, "WEIGHT_SPECTRUM", ntime) <= 0
    odd, nonzero = flagging.mark_no_data(data, flags)
    checks["values_not_finite"], checks["values_not_zero"] = int(odd), int(nonzero)
    if odd:
        raise ValidationError(f"{ms}: DATA has {odd} values that are not finite, expected none. Convert it again.")
    if not nonzero:
        raise ValidationError(f"{ms}: every visibility is zero. The correlator wrote no data: nothing to image.")
    ant_1, ant_2 = rows.ant_1, rows.ant_2
    shadow = flagging.shadowed(rows.uvw_m, ant_1, ant_2, observation.diameters_m)
    find_rfi = rfi.finder(options.strategy, ms, data, logfile)
    cells = flagging.coherence_cells(
        np.linalg.norm(rows.uvw_m[ntime // 2], axis=1), SPEED_OF_LIGHT_M_S / observation.freq_hz.mean(), rows.integration_s,
        observation.channel_width_hz,
    )  # fmt: skip
    found = flagging.flag(data, flags, ant_1, ant_2, cells, options, shadow, find_rfi)
    checks["flagged"] = float(found.by_row[:, cross].mean())
    if checks["flagged"] == 1:
        raise ValidationError(f"{ms}: every visibility is flagged ({found.fractions}). Nothing to image.")
    mset.write_columns(ms, FLAG=flags)
    names = observation.antenna_names
    by_baseline = found.by_row.mean(axis=0)
    antennas = np.unique(np.concatenate([ant_1, ant_2]))
    return {
        "checks": checks,
        "strategy": options.strategy,
        "flagged": checks["flagged"],
        "flagged_by": found.fractions,
        "flagged_by_antenna": {
            names[a]: round(float(by_baseline[cross & ((ant_1 == a) | (ant_2 == a))].mean()), 4) for a in antennas
        },
        "flagged_by_channel": found.by_channel.round(4).tolist(),
        "flagged_by_integration": found.by_row[:, cross].mean(axis=1).round(4).tolist(),
        "flagged_by_length": _by_length(np.linalg.norm(rows.uvw_m.mean(axis=0), axis=1)[cross], by_baseline[cross]),
        "dead_antennas": [names[a] for a in found.dead_antennas],
        "odd_antennas": [names[a] for a in found.odd_antennas],
        "coherence_by_antenna": {names[a]: round(r, 3) for a, r in found.coherence.items()},
        "rfi_channels": found.rfi_channels,
        "rfi_integrations": found.rfi_integrations,
        "notes": found.notes,
    }


def _by_length(length_m: np.ndarray, flagged: np.ndarray) -> list[dict]:
    """Fraction of flags by baseline length, in ten bins of as many baselines each."""
    order = np.argsort(length_m)
    return [
        {
            "from_m": round(float(length_m[some[0]]), 1), "to_m": round(float(length_m[some[-1]]), 1),
            "flagged": round(float(flagged[some].mean()), 4),
        }
        for some in np.array_split(order, min(10, len(order)))
    ]  # fmt: skip


def model_amplitude(ms: Path, model: np.ndarray) -> float:
    """Median amplitude in Jy of a model (ntime, nbaseline, nchan); raises ValidationError when it is zero."""
    amplitude = float(np.median(np.abs(model)))
    if not amplitude > 0:
        raise ValidationError(f"{ms}: the sky model is zero: no solution would mean anything. Check the catalogues.")
    return amplitude


def write_model(ms: Path, model: np.ndarray) -> float:
    """MODEL_DATA from (ntime, nbaseline, nchan) for both polarisations; returns its median amplitude in Jy."""
    amplitude = model_amplitude(ms, model)
    mset.write_columns(ms, MODEL_DATA=np.repeat(model[..., None], 2, axis=-1))
    return amplitude


def shares(ms: Path, rows: mset.Rows) -> np.ndarray:
    """Share of a full integration's samples in each visibility (ntime, nbaseline, nchan, npol), as conversion wrote it."""
    return _scaled(ms, rows, np.ones((rows.shape[1], 2)))[0]


def _scaled(ms: Path, rows: mset.Rows, row_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights, sigma = (mset.read_grid(ms, name, rows.shape[0]) for name in ("WEIGHT_SPECTRUM", "SIGMA"))
    return weights, _reweigh(weights, sigma, row_weight)


def weigh(ms: Path, data: np.ndarray, flags: np.ndarray, rows: mset.Rows, nant: int) -> tuple[dict, np.ndarray]:
    """Check calibrated data and write WEIGHT and WEIGHT_SPECTRUM in Jy^-2, from the scatter of the data themselves.

    data, flags  CORRECTED_DATA and its flags, (ntime, nbaseline, nchan, npol)

    Short integrations keep their smaller share. Returns what was found, and the antennas' noises (`antenna_noise`); raises
    ValidationError when nothing is usable.
    """
    cross = rows.ant_1 != rows.ant_2
    flagged, amplitude, odd = _survey(data, flags, cross)
    if flagged == 1:
        raise ValidationError(f"{ms}: every visibility is flagged after calibration. The set does not fit this group.")
    if odd:
        raise ValidationError(f"{ms}: CORRECTED_DATA has {odd} unflagged values that are not finite.")
    if not amplitude > 0:
        raise ValidationError(f"{ms}: CORRECTED_DATA is zero. The calibration was not applied.")
    noise, by_antenna = antenna_noise(data, flags, rows.ant_1, rows.ant_2, nant)
    if not (noise[cross] > 0).any():
        raise ValidationError(f"{ms}: the noise cannot be measured: that takes 3 channels side by side, unflagged.")
    with np.errstate(divide="ignore", invalid="ignore"):
        row_weight = np.where(noise > 0, 1 / noise**2, np.nan)  # (nbaseline, npol)
    # Rows that are flagged as a whole get a typical weight: FLAG keeps them out, and 0 would mean no data for good.
    row_weight = np.where(np.isfinite(row_weight), row_weight, np.nanmedian(row_weight[cross]))
    weights, mean = _scaled(ms, rows, row_weight)
    mset.write_columns(ms, WEIGHT_SPECTRUM=weights, WEIGHT=mean)
    return {
        "mean_amplitude_jy": float(amplitude),
        "median_noise_jy": float(np.median(noise[cross][noise[cross] > 0])),
        "flagged": float(flagged),
    }, by_antenna


@njit(parallel=True, cache=True)
def _survey(data, flags, cross):
    """Of the cross-correlations: fraction of flags, mean amplitude of the others, number of those that are not finite."""
    ntime, nbaseline, nchan, npol = data.shape
    good, odd, total = np.zeros(nbaseline, np.int64), np.zeros(nbaseline, np.int64), np.zeros(nbaseline)
    for b in prange(nbaseline):
        if cross[b]:
            for t in range(ntime):
                for c in range(nchan):
                    for p in range(npol):
                        if not flags[t, b, c, p]:
                            size = abs(data[t, b, c, p])
                            good[b] += 1
                            if np.isfinite(size):
                                total[b] += size
                            else:
                                odd[b] += 1
    every = max(1, ntime * cross.sum() * nchan * npol)
    return 1 - good.sum() / every, total.sum() / max(1, good.sum()), odd.sum()


def antenna_noise(data, flags, ant_1: np.ndarray, ant_2: np.ndarray, nant: int) -> tuple[np.ndarray, np.ndarray]:
    """Rms of one component of every baseline (nbaseline, npol), 0 where there is none, as products of antennas' noises, and
    these (nant, npol), NaN where unknown.

    From second differences along the channels; a least-squares fit of ln(noise) of each antenna steadies it.
    """
    noise, cross = flagging.baseline_noise(data, flags), ant_1 != ant_2
    fitted, by_antenna = np.zeros_like(noise), np.full((nant, noise.shape[1]), np.nan)
    for p in range(noise.shape[1]):
        rows = np.flatnonzero(cross & (noise[:, p] > 0))
        antennas, index = np.unique(np.concatenate([ant_1[rows], ant_2[rows]]), return_inverse=True)
        design = np.zeros((len(rows), len(antennas)))
        design[np.arange(len(rows)), index[: len(rows)]] = 1
        design[np.arange(len(rows)), index[len(rows) :]] = 1
        if len(rows) < len(antennas) or len(antennas) < 3:
            fitted[rows, p] = noise[rows, p]
            continue
        solution, *_ = np.linalg.lstsq(design, np.log(noise[rows, p]), rcond=None)
        fitted[rows, p], by_antenna[antennas, p] = np.exp(design @ solution), np.exp(solution)
    return fitted, by_antenna
