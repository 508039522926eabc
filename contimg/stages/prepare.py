"""The stage `prepare`: validate a Measurement Set, and flag it in place."""

from pathlib import Path

import numpy as np

from contimg.config import FlaggingConfig
from contimg.errors import ValidationError
from contimg.flagging import detection, external
from contimg.flagging.checks import validate
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.stages.job import Job
from contimg.visibilities import flag_versions
from contimg.visibilities import measurement_set as mset


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    stations = job.config.catalogues.stations
    result = prepare(job.ms, job.config.flagging, stations, job.logfile)
    flag_versions.save(job.ms)
    return result


def prepare(ms: Path, options: FlaggingConfig, stations: Path, logfile: Path | None = None) -> dict:
    """Validate and flag in place, starting from the flags that conversion found (weight 0). Returns
    the result.

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
    odd, nonzero = detection.mark_no_data(data, flags)
    checks["values_not_finite"], checks["values_not_zero"] = int(odd), int(nonzero)
    if odd:
        raise ValidationError(
            f"{ms}: DATA has {odd} values that are not finite, expected none. Convert it again."
        )
    if not nonzero:
        raise ValidationError(
            f"{ms}: every visibility is zero. The correlator wrote no data: nothing to image."
        )
    ant_1, ant_2 = rows.ant_1, rows.ant_2
    shadow = detection.shadowed(
        uvw_m=rows.uvw_m, ant_1=ant_1, ant_2=ant_2, diameters_m=observation.diameters_m
    )
    find_rfi = external.finder(options.strategy, ms, data, logfile)
    cells = detection.coherence_cells(
        np.linalg.norm(rows.uvw_m[ntime // 2], axis=1),
        SPEED_OF_LIGHT_M_S / observation.freq_hz.mean(),
        rows.integration_s,
        observation.channel_width_hz,
    )
    found = detection.flag(
        data=data,
        flags=flags,
        ant_1=ant_1,
        ant_2=ant_2,
        cells=cells,
        options=options,
        shadow=shadow,
        find_rfi=find_rfi,
    )
    checks["flagged"] = float(found.by_row[:, cross].mean())
    if checks["flagged"] == 1:
        raise ValidationError(
            f"{ms}: every visibility is flagged ({found.fractions}). Nothing to image."
        )
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
            names[a]: round(float(by_baseline[cross & ((ant_1 == a) | (ant_2 == a))].mean()), 4)
            for a in antennas
        },
        "flagged_by_channel": found.by_channel.round(4).tolist(),
        "flagged_by_integration": found.by_row[:, cross].mean(axis=1).round(4).tolist(),
        "flagged_by_length": _by_length(
            np.linalg.norm(rows.uvw_m.mean(axis=0), axis=1)[cross], by_baseline[cross]
        ),
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
            "from_m": round(float(length_m[some[0]]), 1),
            "to_m": round(float(length_m[some[-1]]), 1),
            "flagged": round(float(flagged[some].mean()), 4),
        }
        for some in np.array_split(order, min(10, len(order)))
    ]
