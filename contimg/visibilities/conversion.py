"""UVH5 subband files to one full-band Measurement Set.

The correlator stops fringes on the meridian of each integration, at the pointing's apparent
declination. Conversion moves every integration to one phase centre, the ICRS position of the
meridian at mid time: with p = r.(k_0 - k_m) the path of a station between the two directions, a row
(1, 2) of the Measurement Set is

    DATA = V_12 exp(+2 pi i nu (p_2 - p_1) / c),    V_12 = conj(V_file) when the file has (1, 2),
                                                    V_file when (2, 1),

and every row has ant_1 <= ant_2. uvw are recomputed in float64 from station positions; channels
ascend.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit

from contimg.errors import InputError, SubbandError, ValidationError
from contimg.processes import die_with_parent
from contimg.sky.geometry import (
    SPEED_OF_LIGHT_M_S,
    meridian_frame_m,
    meridian_icrs_deg,
    meridian_vector,
    track,
)
from contimg.store.files import replacing
from contimg.telescope import TELESCOPE
from contimg.visibilities import measurement_set as mset
from contimg.visibilities.measurement_set import Observation, Rows
from contimg.visibilities.uvh5 import SubbandHeader, opened_data, read_header

_SAME_TIME_S = 1e-3
_OTHER = "It belongs to another observation: move it to where that lies, or copy it again."
# share of zeros that no other subband has: a copy that stalled, a node that stopped writing


@njit(cache=True)
def _move_to_phase_centre(
    raw, flags, nsamples, full, conjugate, path_m, first, step, out, out_flags, out_weights, mean
):
    """Phase, orient and reverse rows (nrow, nchan, npol); `first`, `step`: nu / c of the ascending
    channels.

    `mean` (nrow, npol) gets the mean weight; returns how many visibilities are not zero.
    """
    nrow, nchan, npol = raw.shape
    nonzero = 0
    for row in range(nrow):
        cycles, more = path_m[row] * first, path_m[row] * step
        turn = np.exp(2j * np.pi * (cycles - np.floor(cycles)))
        turn_more = np.exp(2j * np.pi * (more - np.floor(more)))
        for p in range(npol):
            mean[row, p] = 0
        for c in range(nchan):
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
                nonzero += value != 0
                out[row, c, p] = value * turn
                flagged = flags[row, nchan - 1 - c, p]
                out_flags[row, c, p] = flagged
                out_weights[row, c, p] = 0 if flagged else weight
                mean[row, p] += out_weights[row, c, p] / nchan
            turn *= turn_more
    return nonzero


def channel_blocks(
    headers: Mapping[int, SubbandHeader], expected_subbands: int
) -> dict[int, float]:
    """Lowest channel frequency (Hz) of every subband 0..N-1 on one regular grid.

    Frequencies come from the headers. For a missing subband it follows from the order of those
    present (trap: never from the label alone). Raises InputError when the subbands do not tile a
    band.
    """
    nchan = {len(h.freq_hz) for h in headers.values()}
    widths = np.array([h.channel_width_hz for h in headers.values()])
    if len(nchan) > 1 or np.ptp(widths) > 1:
        raise InputError(
            f"subbands have different channels: {sorted(nchan)} channels, widths "
            f"{np.unique(widths)} Hz"
        )
    step_hz = max(nchan) * widths[0]
    lowest = {sb: float(h.freq_hz.min()) for sb, h in headers.items()}
    reference = min(headers)
    place = {sb: (lowest[sb] - lowest[reference]) / step_hz for sb in headers}
    regular_hz = np.arange(max(nchan)) * widths[0]
    for header in headers.values():
        if (
            np.abs(np.sort(header.freq_hz) - header.freq_hz.min() - regular_hz).max()
            > 1e-3 * widths[0]
        ):
            raise InputError(
                f"{header.path}: its channels are not {widths[0]:.1f} Hz apart throughout. Was it "
                "rewritten?"
            )
    off_grid = [sb for sb, x in place.items() if abs(x - round(x)) > 1e-3]
    if off_grid or len({round(x) for x in place.values()}) < len(place):
        raise InputError(
            f"subbands {off_grid or sorted(place)} overlap, or leave the channel grid of subband "
            f"{reference}"
        )
    slopes = {round(place[sb]) / (sb - reference) for sb in headers if sb != reference}
    if slopes not in ({1.0}, {-1.0}):
        if len(headers) == expected_subbands and not slopes - {float(round(s)) for s in slopes}:
            return lowest
        if len(headers) == 1:
            raise InputError(
                f"subband {reference} is alone: in which direction the other "
                f"{expected_subbands - 1} would lie takes two files"
            )
        raise InputError(
            "subband numbers and frequencies do not run together "
            f"({ {sb: float(x) for sb, x in place.items()} }): cannot place missing subbands"
        )
    return {
        sb: lowest[reference] + slopes.copy().pop() * (sb - reference) * step_hz
        for sb in range(expected_subbands)
    }


def group_times(headers: Mapping[int, SubbandHeader]) -> np.ndarray:
    """The integrations that any file has, (ntime,): files may end early, or lack some.

    Raises SubbandError for a file whose times fall between those of the longest.
    """
    longest = max(headers.values(), key=lambda header: len(header.time_mjd))
    step = longest.integration_s / mset.DAY_S
    known: dict[int, float] = {}
    for header in [longest, *headers.values()]:
        steps = (header.time_mjd - longest.time_mjd[0]) / step
        off_s = np.abs(steps - np.round(steps)).max() * longest.integration_s
        if off_s > _SAME_TIME_S * max(1.0, np.abs(steps).max()) or not set(np.round(steps)) & set(
            np.round((longest.time_mjd - longest.time_mjd[0]) / step)
        ):
            raise SubbandError(
                f"{header.path}: {len(header.time_mjd)} integrations from MJD "
                f"{header.time_mjd[0]:.7f}, expected times of "
                f"{longest.path.name}, from MJD {longest.time_mjd[0]:.7f}. {_OTHER}"
            )
        for number, time_mjd in zip(np.round(steps).astype(int), header.time_mjd, strict=True):
            known.setdefault(int(number), float(time_mjd))
    return np.array([known[number] for number in sorted(known)])


def _check_same_observation(headers: Mapping[int, SubbandHeader], first: SubbandHeader) -> None:
    for header in headers.values():
        differs = None
        if not (
            np.array_equal(header.ant_1, first.ant_1) and np.array_equal(header.ant_2, first.ant_2)
        ):
            differs = "other baselines, or in another order"
        elif abs(header.app_dec_rad - first.app_dec_rad) > 1e-9:
            differs = (
                f"declination {np.degrees(header.app_dec_rad):.6f} deg, expected "
                f"{np.degrees(first.app_dec_rad):.6f}"
            )
        elif not np.array_equal(header.positions_m, first.positions_m, equal_nan=True):
            differs = "other antenna positions"
        if differs:
            raise SubbandError(f"{header.path}: {differs} as in {first.path.name}. {_OTHER}")


@dataclass(frozen=True)
class GroupPlan:
    """What a group's headers say about the Measurement Set to be written."""

    headers: Mapping[int, SubbandHeader]
    lowest_hz: Mapping[int, float]  # lowest channel of every subband, missing ones too
    reference: SubbandHeader  # of one subband, with the group's times
    observation: Observation  # with the reference's channels
    rows: Rows
    path_m: np.ndarray  # (ntime, nbaseline): p_2 - p_1 of each row's antennas
    conjugate: np.ndarray  # (nbaseline,)

    def channels_hz(self, subband: int) -> np.ndarray:
        """Ascending channels of a subband."""
        return (
            self.lowest_hz[subband]
            + np.arange(len(self.reference.freq_hz)) * self.reference.channel_width_hz
        )

    def places(self, subband: int) -> np.ndarray:
        """Which of a file's integrations is each of the group's, (ntime,); -1 where it has none."""
        times_mjd = self.headers[subband].time_mjd
        nearest = np.abs(times_mjd[None] - self.rows.time_mjd[:, None]).argmin(axis=1)
        apart_s = np.abs(times_mjd[nearest] - self.rows.time_mjd) * mset.DAY_S
        return np.where(apart_s < self.rows.integration_s / 2, nearest, -1)

    @property
    def short(self) -> list[int]:
        """Subbands whose files lack integrations."""
        return [
            sb
            for sb, header in self.headers.items()
            if len(header.time_mjd) < len(self.rows.time_mjd)
        ]


def plan_group(files: Mapping[int, Path], expected_subbands: int, telescope_name: str) -> GroupPlan:
    """Read the headers and lay out the group; raises SubbandError or InputError naming the file
    that does not fit."""
    headers = {sb: read_header(path) for sb, path in sorted(files.items())}
    for sb, header in headers.items():
        if np.any(np.diff(header.freq_hz) > 0) and len(header.freq_hz) > 1:
            raise SubbandError(
                f"{header.path}: frequencies ascend, expected them to descend. Was it rewritten?"
            )
        if sb >= expected_subbands:
            raise InputError(f"{header.path}: subband {sb} is outside 0..{expected_subbands - 1}")
    reference = replace(headers[min(headers)], time_mjd=group_times(headers))
    _check_same_observation(headers, reference)
    lowest_hz = channel_blocks(headers, expected_subbands)
    return GroupPlan(headers, lowest_hz, reference, *_plan_rows(reference, telescope_name))


def _plan_rows(
    header: SubbandHeader, telescope_name: str
) -> tuple[Observation, Rows, np.ndarray, np.ndarray]:
    """Observation (with the header's channels), rows, path_m and conjugate of GroupPlan."""
    centre = meridian_icrs_deg(header.mid_mjd, header.app_dec_rad)
    ra, dec = float(centre[0]), float(centre[1])
    axes = track(ra, dec, header.time_mjd).axes
    index = {int(number): i for i, number in enumerate(header.antenna_numbers)}
    one = np.array([index[int(n)] for n in header.ant_1])
    two = np.array([index[int(n)] for n in header.ant_2])
    placed, known = np.isfinite(header.positions_m).all(axis=1), header.diameters_m > 0
    for what, has in (("position", placed), ("diameter", known)):
        if odd := [header.antenna_names[a] for a in np.unique([one, two]) if not has[a]]:
            raise SubbandError(
                f"{header.path}: stations {', '.join(odd)} take part and have no {what}. Mend the "
                "header."
            )
    # CASA wants numbers also for stations that take no part.
    positions_m = np.where(placed[:, None], header.positions_m, 0.0)
    stations = meridian_frame_m(positions_m)
    keep = one <= two
    ant_1, ant_2 = np.where(keep, one, two), np.where(keep, two, one)
    uvw = np.einsum("tax,bx->tba", axes, stations[ant_1] - stations[ant_2])
    path = (axes[:, 2] - meridian_vector(header.app_dec_rad)) @ (
        stations[ant_2] - stations[ant_1]
    ).T
    half = header.integration_s / 2 / mset.DAY_S
    observation = Observation(
        phase_centre_deg=(ra, dec),
        freq_hz=np.sort(header.freq_hz),
        channel_width_hz=header.channel_width_hz,
        antenna_names=header.antenna_names,
        positions_m=positions_m,
        diameters_m=np.where(known, header.diameters_m, TELESCOPE.dish_diameter_m),
        telescope_name=telescope_name,
        time_range_mjd=(float(header.time_mjd[0] - half), float(header.time_mjd[-1] + half)),
        field_name=f"drift_{ra / 15:05.2f}h{dec:+06.2f}d",
    )
    return observation, Rows(header.time_mjd, header.integration_s, ant_1, ant_2, uvw), path, keep


class Seconds:
    """Where the time goes: each call books what passed since the last."""

    def __init__(self):
        self.by_step = dict.fromkeys(("load_s", "phase_s", "write_s"), 0.0)
        self._clock = time.perf_counter()

    def spent(self, step: str) -> None:
        """On loading, phasing or writing."""
        now = time.perf_counter()
        self.by_step[step] += now - self._clock
        self._clock = now


@dataclass(frozen=True)
class _Job:
    """One subband: where it comes from, where it goes, and the group's geometry."""

    source: Path | None  # None: no file; its channels are kept, without rows
    output: Path
    observation: Observation  # with the subband's channels
    rows: Rows
    path_m: np.ndarray  # (ntime, nbaseline)
    conjugate: np.ndarray  # (nbaseline,)
    places: np.ndarray | None  # GroupPlan.places of the file
    full: float  # sample count of a full integration


def _convert_one(job: _Job) -> dict:
    """Write one subband's Measurement Set; what it took, and how many visibilities are not zero.

    A tile at a time, from the file into buffers that stay in the cache, and out again: one pass
    over the visibilities.
    """
    seconds = Seconds()
    nchan = len(job.observation.freq_hz)
    with replacing(job.output) as partial:
        if job.source is None:
            nothing = replace(
                job.rows,
                ant_1=job.rows.ant_1[:0],
                ant_2=job.rows.ant_2[:0],
                uvw_m=job.rows.uvw_m[:, :0],
            )
            with mset.creating(partial, job.observation, nothing, nchan):
                return {**seconds.by_step, "nonzero": 0}
        ntime, nbaseline = job.rows.shape
        path_m, conjugate = job.path_m.ravel(), np.tile(job.conjugate, ntime)
        wavenumber = (
            job.observation.freq_hz[0] / SPEED_OF_LIGHT_M_S,
            job.observation.channel_width_hz / SPEED_OF_LIGHT_M_S,
        )
        mean = np.zeros((ntime * nbaseline, 2), np.float32)
        nonzero = 0
        with (
            opened_data(job.source) as source,
            mset.creating(partial, job.observation, job.rows, nchan) as table,
        ):
            step = mset.tile_rows(nbaseline, nchan)
            buffers = {
                name: np.empty((step, nchan, 2), dtype)
                for name, dtype in mset.SPECTRUM_COLUMNS.items()
            }
            seconds.spent("write_s")
            for first in range(0, len(mean), step):
                rows = slice(first, min(first + step, len(mean)))
                raw, flags, nsamples = source.read(rows.start, rows.stop, nbaseline, job.places)
                seconds.spent("load_s")
                filled = {name: buffer[: len(raw)] for name, buffer in buffers.items()}
                nonzero += _move_to_phase_centre(
                    raw,
                    flags,
                    nsamples,
                    job.full,
                    conjugate[rows],
                    path_m[rows],
                    *wavenumber,
                    *filled.values(),
                    mean[rows],
                )
                seconds.spent("phase_s")
                for name, values in filled.items():
                    table.putcol(name, values, first, len(raw))
                seconds.spent("write_s")
            mset.put_row_weights(table, mean)
        seconds.spent("write_s")
    return {**seconds.by_step, "nonzero": nonzero}


def convert_parallel(
    plan: GroupPlan, outputs: Sequence[Path], workers: int, progress: Callable[[str], None]
) -> dict:
    """Each subband to its Measurement Set, several at once; sums of the seconds, and what is not
    zero by subband."""
    sources = [plan.headers[sb].path if sb in plan.headers else None for sb in range(len(outputs))]
    done = []
    # the workers share the geometry; nothing to import again
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        min(workers, len(outputs)), mp_context=context, initializer=die_with_parent
    ) as pool:
        full = max(pool.map(full_samples, [source for source in sources if source]))
        jobs = [
            _Job(
                source,
                output,
                replace(plan.observation, freq_hz=plan.channels_hz(sb)),
                plan.rows,
                plan.path_m,
                plan.conjugate,
                plan.places(sb) if source else None,
                full or 1.0,
            )
            for sb, (source, output) in enumerate(zip(sources, outputs, strict=True))
        ]
        for job, result in zip(jobs, pool.map(_convert_one, jobs), strict=True):
            done.append(result)
            progress(
                f"{job.output.name}: "
                + (job.source.name if job.source else "no file, channels kept")
            )
    sums = {name: sum(result[name] for result in done) for name in ("load_s", "phase_s", "write_s")}
    return sums | {
        "nonzero": {sb: result["nonzero"] for sb, result in enumerate(done) if sources[sb]}
    }


def full_samples(path: Path) -> float:
    """Largest sample count in a file."""
    with opened_data(path) as source:
        return source.full_samples()


def concat_subbands(subbands: Sequence[Path], output: Path) -> dict:
    """One Measurement Set with one ascending spectral window from Measurement Sets that share rows.

    Each tile is read and written once. Channels of a subband without rows are flagged, with weight
    0. Returns the result for `{group}.concat.json`; raises ValidationError when the parts do not
    fit.
    """
    observations = {path: mset.read_observation(path) for path in subbands}
    order = sorted(subbands, key=lambda path: observations[path].freq_hz[0])
    freq_hz = np.concatenate([observations[path].freq_hz for path in order])
    width = observations[order[0]].channel_width_hz
    if len(freq_hz) > 1 and np.abs(np.diff(freq_hz) - width).max() > 1e-3 * width:
        raise ValidationError(
            f"{output.name}: the subbands do not make one regular band of {width:.1f} Hz channels"
        )
    row_weights = {path: mset.read_row_weights(path) for path in order}
    with_rows = [path for path in order if len(row_weights[path])]
    if not with_rows:
        raise ValidationError(f"{output.name}: no subband has any row")
    rows = mset.read_rows(with_rows[0])
    nchan = len(observations[order[0]].freq_hz)
    nrow = rows.shape[0] * rows.shape[1]
    for path in with_rows:
        if len(row_weights[path]) != nrow:
            raise ValidationError(f"{path}: {len(row_weights[path])} rows, expected {nrow}")
    whole = replace(observations[order[0]], freq_hz=freq_hz)
    with replacing(output) as partial, mset.creating(partial, whole, rows, nchan) as table:
        _copy_tiles(order, table, nrow, mset.tile_rows(rows.shape[1], nchan), nchan)
        mset.put_row_weights(
            table, sum(row_weights[path] for path in with_rows) / np.float32(len(order))
        )
    return {
        "channels": len(freq_hz),
        "channel_width_hz": width,
        "band_hz": [float(freq_hz[0] - width / 2), float(freq_hz[-1] + width / 2)],
        "integrations": rows.shape[0],
        "baselines": rows.shape[1],
        "ms_bytes": sum(f.stat().st_size for f in output.rglob("*") if f.is_file()),
    }


def _copy_tiles(subbands: Sequence[Path], table, nrow: int, step: int, nchan: int) -> None:
    """Each tile of the full band, in the order in which it lies in the file, from the subband that
    has it."""
    with ExitStack() as stack:
        parts = [stack.enter_context(mset.open_table(path)) for path in subbands]
        for name, dtype in mset.SPECTRUM_COLUMNS.items():
            buffer = np.empty((step, nchan, 2), dtype)
            nothing = np.full(buffer.shape, name == "FLAG", dtype)
            for first in range(0, nrow, step):
                count = min(step, nrow - first)
                for place, part in enumerate(parts):
                    if part.nrows():
                        part.getcolnp(name, buffer[:count], first, count)
                    values = buffer if part.nrows() else nothing
                    channels = [place * nchan, 0], [(place + 1) * nchan - 1, 1]
                    table.putcolslice(name, values[:count], *channels, startrow=first, nrow=count)
