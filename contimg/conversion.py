"""UVH5 subband files to one full-band Measurement Set.

The correlator stops fringes on the meridian of each integration, at the pointing's apparent declination. Conversion
moves every integration to one phase centre, the ICRS position of the meridian at mid time: with p = r.(k_0 - k_m) the
path of a station between the two directions, a row (1, 2) of the Measurement Set is

    DATA = V_12 exp(+2 pi i nu (p_2 - p_1) / c),    V_12 = conj(V_file) when the file has (1, 2), V_file when (2, 1),

and every row has ant_1 <= ant_2. uvw are recomputed in float64 from station positions; channels ascend.
"""

import ctypes
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numba import njit

from contimg import measurement_set as mset
from contimg.errors import InputError, SubbandError, ValidationError
from contimg.geometry import SPEED_OF_LIGHT_M_S, meridian_frame_m, meridian_icrs_deg, meridian_vector, track
from contimg.measurement_set import Observation, Rows
from contimg.uvh5 import SubbandHeader, read_data, read_header

_SAME_TIME_S = 1e-3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@njit(cache=True)
def _move_to_phase_centre(raw, flags, nsamples, full, conjugate, path_m, wavenumber, out, out_flags, out_weights):
    """Phase, orient and reverse rows (nrow, nchan, npol); `wavenumber` = nu / c of the ascending channels."""
    nrow, nchan, npol = raw.shape
    for row in range(nrow):
        for c in range(nchan):
            cycles = path_m[row] * wavenumber[c]
            angle = 2 * np.pi * (cycles - np.floor(cycles))
            turn = complex(np.cos(angle), np.sin(angle))
            for p in range(npol):
                value = raw[row, nchan - 1 - c, p]
                weight = nsamples[row, nchan - 1 - c, p] / full
                finite = np.isfinite(value.real) and np.isfinite(value.imag)
                if not finite or not weight > 0:
                    out[row, c, p] = 0
                    out_flags[row, c, p] = True
                    out_weights[row, c, p] = 0
                    continue
                if conjugate[row]:
                    value = np.conj(value)
                out[row, c, p] = value * turn
                flagged = flags[row, nchan - 1 - c, p]
                out_flags[row, c, p] = flagged
                out_weights[row, c, p] = 0 if flagged else weight


def channel_blocks(headers: Mapping[int, SubbandHeader], expected_subbands: int) -> dict[int, float]:
    """Lowest channel frequency (Hz) of every subband 0..N-1 on one regular grid.

    Frequencies come from the headers. For a missing subband it follows from the order of those present (trap: never
    from the label alone). Raises InputError when the subbands do not tile a band.
    """
    nchan = {len(h.freq_hz) for h in headers.values()}
    widths = np.array([h.channel_width_hz for h in headers.values()])
    if len(nchan) > 1 or np.ptp(widths) > 1:
        raise InputError(f"subbands have different channels: {sorted(nchan)} channels, widths {np.unique(widths)} Hz")
    step_hz = nchan.pop() * widths[0]
    lowest = {sb: float(h.freq_hz.min()) for sb, h in headers.items()}
    reference = min(headers)
    place = {sb: (lowest[sb] - lowest[reference]) / step_hz for sb in headers}
    off_grid = [sb for sb, x in place.items() if abs(x - round(x)) > 1e-3]
    if off_grid or len({round(x) for x in place.values()}) < len(place):
        raise InputError(
            f"subbands {off_grid or sorted(place)} overlap, or leave the channel grid of subband {reference}"
        )
    slopes = {round(place[sb]) / (sb - reference) for sb in headers if sb != reference}
    if slopes not in ({1.0}, {-1.0}):
        if len(headers) == expected_subbands and not slopes - {float(round(s)) for s in slopes}:
            return lowest
        raise InputError(
            f"subband numbers and frequencies do not run together ({place}): cannot place missing subbands"
        )
    return {sb: lowest[reference] + slopes.copy().pop() * (sb - reference) * step_hz for sb in range(expected_subbands)}


def _check_same_observation(headers: Mapping[int, SubbandHeader]) -> None:
    first = headers[min(headers)]
    for header in headers.values():
        differs = None
        if header.time_mjd.shape != first.time_mjd.shape:
            differs = f"{len(header.time_mjd)} integrations, expected {len(first.time_mjd)}"
        elif np.abs(header.time_mjd - first.time_mjd).max() * mset.DAY_S > _SAME_TIME_S:
            differs = f"first integration at MJD {header.time_mjd[0]:.7f}, expected {first.time_mjd[0]:.7f}"
        elif not (np.array_equal(header.ant_1, first.ant_1) and np.array_equal(header.ant_2, first.ant_2)):
            differs = "other baselines, or in another order"
        elif abs(header.app_dec_rad - first.app_dec_rad) > 1e-9:
            differs = (
                f"declination {np.degrees(header.app_dec_rad):.6f} deg, expected {np.degrees(first.app_dec_rad):.6f}"
            )
        elif not np.array_equal(header.positions_m, first.positions_m):
            differs = "other antenna positions"
        if differs:
            raise SubbandError(
                f"{header.path}: {differs} as in {first.path.name}. It belongs to another observation: remove it."
            )


def plan_rows(header: SubbandHeader) -> tuple[Observation, Rows, np.ndarray, np.ndarray]:
    """Geometry of a group: observation (with the header's channels), rows, the path (ntime, nbaseline) in m from the
    meridian to the phase centre for each row's antennas (p_2 - p_1), and which rows are conjugated (nbaseline,)."""
    centre = meridian_icrs_deg(header.mid_mjd, header.app_dec_rad)
    ra, dec = float(centre[0]), float(centre[1])
    axes = track(ra, dec, header.time_mjd).axes
    stations = meridian_frame_m(header.positions_m)
    index = {int(number): i for i, number in enumerate(header.antenna_numbers)}
    one = np.array([index[int(n)] for n in header.ant_1])
    two = np.array([index[int(n)] for n in header.ant_2])
    keep = one <= two
    ant_1, ant_2 = np.where(keep, one, two), np.where(keep, two, one)
    uvw = np.einsum("tax,bx->tba", axes, stations[ant_1] - stations[ant_2])
    path = (axes[:, 2] - meridian_vector(header.app_dec_rad)) @ (stations[ant_2] - stations[ant_1]).T
    half = header.integration_s / 2 / mset.DAY_S
    observation = Observation(
        phase_centre_deg=(ra, dec),
        freq_hz=np.sort(header.freq_hz),
        channel_width_hz=header.channel_width_hz,
        antenna_names=header.antenna_names,
        positions_m=header.positions_m,
        diameters_m=header.diameters_m,
        telescope_name="",
        time_range_mjd=(float(header.time_mjd[0] - half), float(header.time_mjd[-1] + half)),
        field_name=f"drift_{ra / 15:05.2f}h{dec:+06.2f}d",
    )
    return observation, Rows(header.time_mjd, header.integration_s, ant_1, ant_2, uvw), path, keep


def _convert_one(job: tuple) -> dict[str, float]:
    """Write one subband's Measurement Set; seconds of loading, phasing and writing."""
    source, output, observation, rows, path, conjugate = job
    clock = [time.perf_counter()]
    with mset.replacing(output) as partial:
        if source is None:  # a missing subband: its channels, no rows
            nothing = replace(rows, ant_1=rows.ant_1[:0], ant_2=rows.ant_2[:0], uvw_m=rows.uvw_m[:, :0])
            mset.create(partial, observation, nothing)
            return {"load_s": 0.0, "phase_s": 0.0, "write_s": 0.0}
        raw, flags, nsamples = read_data(source)
        clock.append(time.perf_counter())
        full = float(np.nanmax(nsamples)) if nsamples.size else 0.0
        if not full > 0:
            raise SubbandError(f"{source}: no visibility has any sample. Remove it.")
        data, out_flags = np.empty_like(raw), np.empty(raw.shape, np.bool_)
        weights = np.empty(raw.shape, np.float32)
        wavenumber = observation.freq_hz / SPEED_OF_LIGHT_M_S
        _move_to_phase_centre(
            raw,
            flags,
            nsamples,
            full,
            np.tile(conjugate, len(path)),
            path.ravel(),
            wavenumber,
            data,
            out_flags,
            weights,
        )
        clock.append(time.perf_counter())
        mset.create(partial, observation, rows)
        mset.write_columns(partial, DATA=data, FLAG=out_flags, WEIGHT_SPECTRUM=weights)
        clock.append(time.perf_counter())
    return dict(zip(("load_s", "phase_s", "write_s"), np.diff(clock).tolist(), strict=True))


def _die_with_parent() -> None:
    """A worker whose job was killed must not go on holding the group's lock."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def convert_group(
    files: Mapping[int, Path],
    outputs: Mapping[int, Path],
    telescope_name: str,
    workers: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict:
    """Write the Measurement Sets of all subbands of `outputs`; those without a file get no rows.

    Returns the result recorded in `{group}.convert.json`. Raises SubbandError naming the file that is at fault.
    """
    begin = time.perf_counter()
    headers = {sb: read_header(path) for sb, path in sorted(files.items())}
    for sb, header in headers.items():
        if np.any(np.diff(header.freq_hz) > 0) and len(header.freq_hz) > 1:
            raise SubbandError(f"{header.path}: frequencies ascend, expected them to descend. Was it rewritten?")
        if sb not in outputs:
            raise InputError(f"{header.path}: subband {sb} is outside 0..{len(outputs) - 1}")
    _check_same_observation(headers)
    lowest_hz = channel_blocks(headers, len(outputs))
    reference = headers[min(headers)]
    observation, rows, path, conjugate = plan_rows(reference)
    observation = replace(observation, telescope_name=telescope_name)
    offsets_hz = np.arange(len(reference.freq_hz)) * reference.channel_width_hz
    jobs = [
        (files.get(sb), output, replace(observation, freq_hz=lowest_hz[sb] + offsets_hz), rows, path, conjugate)
        for sb, output in sorted(outputs.items())
    ]
    header_s = time.perf_counter() - begin
    timings = []
    context = multiprocessing.get_context("fork")  # the workers share the geometry; nothing to import again
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_die_with_parent) as pool:
        for job, timing in zip(jobs, pool.map(_convert_one, jobs), strict=True):
            timings.append(timing)
            progress(f"{job[1].name}: " + ("no file, channels kept" if job[0] is None else job[0].name))
    return {
        "writer": "parallel-subband",
        "subbands": sorted(files),
        "missing_subbands": sorted(set(outputs) - set(files)),
        "files": {str(sb): str(path) for sb, path in sorted(files.items())},
        "mid_mjd": reference.mid_mjd,
        "app_dec_deg": float(np.degrees(reference.app_dec_rad)),
        "phase_centre_deg": list(observation.phase_centre_deg),
        "shape": [*rows.shape, len(offsets_hz), 2],
        "load_s": header_s + sum(t["load_s"] for t in timings),
        "phase_s": sum(t["phase_s"] for t in timings),
        "write_s": sum(t["write_s"] for t in timings),
    }


def concat_subbands(subbands: Mapping[int, Path], output: Path) -> dict:
    """One Measurement Set with one ascending spectral window from the subbands' Measurement Sets.

    Channels of a subband without rows are flagged, with weight 0. Returns the result for `{group}.concat.json`.
    """
    observations = {sb: mset.read_observation(path) for sb, path in subbands.items()}
    order = sorted(subbands, key=lambda sb: observations[sb].freq_hz[0])
    freq_hz = np.concatenate([observations[sb].freq_hz for sb in order])
    width = observations[order[0]].channel_width_hz
    if np.abs(np.diff(freq_hz) - width).max() > 1e-3 * width:
        raise ValidationError(f"{output.name}: the subbands do not make one regular band of {width:.1f} Hz channels")
    with_rows = [sb for sb in order if _row_count(subbands[sb])]
    if not with_rows:
        raise ValidationError(f"{output.name}: no subband has any row")
    rows = mset.read_rows(subbands[with_rows[0]])
    nchan = len(observations[order[0]].freq_hz)
    with mset.replacing(output) as partial:
        mset.create(partial, replace(observations[order[0]], freq_hz=freq_hz), rows, chan_tile=nchan)
        weight = np.zeros((rows.shape[0] * rows.shape[1], 2), np.float32)
        nonzero = 0
        with mset.open_table(partial, readonly=False) as table:
            for place, sb in enumerate(order):
                first, last = [place * nchan, 0], [(place + 1) * nchan - 1, 1]
                if sb not in with_rows:
                    shape = (len(weight), nchan, 2)
                    table.putcolslice("DATA", np.zeros(shape, np.complex64), first, last)
                    table.putcolslice("FLAG", np.ones(shape, bool), first, last)
                    table.putcolslice("WEIGHT_SPECTRUM", np.zeros(shape, np.float32), first, last)
                    continue
                with mset.open_table(subbands[sb]) as source:
                    if source.nrows() != len(weight):
                        raise ValidationError(f"{subbands[sb]}: {source.nrows()} rows, expected {len(weight)}")
                    for column in ("DATA", "FLAG", "WEIGHT_SPECTRUM"):
                        values = source.getcol(column)
                        table.putcolslice(column, values, first, last)
                        if column == "DATA":
                            nonzero += int(np.count_nonzero(values))
                        elif column == "WEIGHT_SPECTRUM":
                            weight += values.mean(axis=1) / len(order)
            table.putcol("WEIGHT", weight)
            # SIGMA describes DATA and keeps the share of samples of a row: preparation.relative_weights.
            table.putcol("SIGMA", np.where(weight > 0, 1 / np.sqrt(np.maximum(weight, 1e-30)), 0).astype(np.float32))
        if nonzero == 0:
            raise InputError(
                f"{output.name}: every visibility is zero. The correlator wrote no data: nothing to image."
            )
    return {
        "channels": len(freq_hz),
        "channel_width_hz": width,
        "band_hz": [float(freq_hz[0] - width / 2), float(freq_hz[-1] + width / 2)],
        "integrations": rows.shape[0],
        "baselines": rows.shape[1],
        "missing_subbands": [sb for sb in order if sb not in with_rows],
        "ms_bytes": sum(f.stat().st_size for f in output.rglob("*") if f.is_file()),
    }


def _row_count(path: Path) -> int:
    with mset.open_table(path) as table:
        return table.nrows()
