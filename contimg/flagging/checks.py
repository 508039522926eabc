"""Does a Measurement Set hold what conversion promised?"""

from pathlib import Path

import numpy as np

from contimg.errors import ValidationError
from contimg.sky.catalogues import read_stations
from contimg.sky.geometry import meridian_frame_m, track
from contimg.visibilities import measurement_set as mset

_UVW_TOLERANCE_M = 1e-3
_STATION_TOLERANCE_M = 0.05
_REMEDY = {
    "station_offset_m": "Was a station moved or renamed? Bring catalogues.stations up to date, or "
    "mend the header."
}


def validate(ms: Path, observation: mset.Observation, rows: mset.Rows, stations: Path) -> dict:
    """Check what conversion promised; returns each check with its number, raises ValidationError on
    the first failure."""
    freq_hz = observation.freq_hz
    step = np.diff(freq_hz)
    tracking = track(*observation.phase_centre_deg, rows.time_mjd)
    positions = meridian_frame_m(observation.positions_m)
    baselines = positions[rows.ant_1] - positions[rows.ant_2]
    uvw_error = np.abs(np.einsum("tax,bx->tba", tracking.axes, baselines) - rows.uvw_m).max()
    length_error = np.abs(
        np.linalg.norm(rows.uvw_m, axis=2) - np.linalg.norm(baselines, axis=1)
    ).max()
    time_step_s = np.diff(rows.time_mjd) * mset.DAY_S
    # integrations that no file has
    lost = np.maximum(np.round(time_step_s / rows.integration_s), 1) - 1
    off_s = (
        float(np.abs(time_step_s - (lost + 1) * rows.integration_s).max())
        if len(time_step_s)
        else 0.0
    )
    antennas = np.unique(np.concatenate([rows.ant_1, rows.ant_2]))
    checks = {
        "integrations": rows.shape[0],
        "baselines": rows.shape[1],
        "channels": len(freq_hz),
        "channel_step_error_hz": float(np.abs(step - observation.channel_width_hz).max())
        if len(step)
        else 0.0,
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
                f"{ms}: {name} is {checks[name]:.4g}, expected at most {limit:.4g}. "
                f"{_REMEDY.get(name, 'Convert it again.')}"
            )
    return checks


def _station_offset_m(observation: mset.Observation, antennas: np.ndarray, stations: Path) -> float:
    """Largest distance of an antenna that takes part from its station in the catalogue; stations go
    by name."""
    catalogue = read_stations(stations)
    names = [observation.antenna_names[a] for a in antennas]
    unknown = [name for name in names if name not in catalogue]
    if unknown:
        raise ValidationError(
            f"antennas {unknown} are not in {stations}, expected all of them. "
            f"{_REMEDY['station_offset_m']}"
        )
    expected = np.array([catalogue[name] for name in names])
    return float(np.linalg.norm(observation.positions_m[antennas] - expected, axis=1).max())
