"""Flags before calibration: what is not data, dead antennas, radio interference.

Detection works on powers averaged over all baselines. Interference is seen by many of them at once,
so one time and channel is judged with the sensitivity of the whole array, and noise is not clipped:
cutting the tail of noise-dominated amplitudes would bias fluxes by per cents (FACTS: flagging).
Only samples far beyond any noise are cut one by one. Arrays are (time, baseline, channel,
polarisation).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import njit, prange
from scipy.ndimage import median_filter

from contimg.config import FlaggingConfig
from contimg.sky.geometry import SKY_TURNS_RAD_S

_RAYLEIGH_MEDIAN = 1.1774100225  # median of |x + iy| for unit rms of x and of y
_SECOND_DIFFERENCE = np.sqrt(6.0)  # rms of v[k-1] - 2 v[k] + v[k+1] per rms of v
# visibilities of a baseline that are enough for its noise: 1.2 % each, and antennas average it
_NOISE_SAMPLE = 8192
_CHANNELS_AROUND = 11
_POWER_TIMES, _LOUD = 6, 1.1  # integrations for a baseline's power; times the median one's
# Cells in which the sky of the beam is coherent: so long that sources in the far sidelobes, whose
# fringes turn faster, are not.
_COHERENCE_CELL_S, _COHERENCE_CELL_HZ = 160.0, 4e6
_BEAM_EDGE = 0.026  # direction cosine: the half-power point
_MOST_TURNS = 0.3  # of a source there, in a cell
_NO_COHERENCE = (
    0.01  # of the median antenna's: what is left of interference gives a dead antenna as much
)
_COHERENCE_SIGMA = 4.0


@dataclass
class Flagging:
    """Flags and what was found on the way."""

    flags: np.ndarray  # (ntime, nbaseline, nchan, npol)
    by_row: np.ndarray | None = None  # fraction of flags (ntime, nbaseline)
    by_channel: np.ndarray | None = None  # of cross-correlations (nchan,)
    # by reason, of all cross-correlations, each counted once
    fractions: dict[str, float] = field(default_factory=dict)
    dead_antennas: list[int] = field(default_factory=list)  # noise without sky
    odd_antennas: list[int] = field(default_factory=list)  # far too much noise, or too little
    # by antenna, relative to the array's median
    coherence: dict[int, float] = field(default_factory=dict)
    rfi_channels: list[int] = field(default_factory=list)
    rfi_integrations: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@njit(parallel=True, cache=True)
def mark_no_data(data, flags):
    """Flag what is exactly zero, in place; returns how many values are not finite, and how many are
    not zero."""
    ntime, nbaseline, nchan, npol = data.shape
    odd, nonzero = np.zeros(nbaseline, np.int64), np.zeros(nbaseline, np.int64)
    for b in prange(nbaseline):
        for t in range(ntime):
            for c in range(nchan):
                for p in range(npol):
                    v = data[t, b, c, p]
                    odd[b] += not (np.isfinite(v.real) and np.isfinite(v.imag))
                    nonzero[b] += v != 0
                    flags[t, b, c, p] |= v == 0
    return odd.sum(), nonzero.sum()


@njit(parallel=True, cache=True)
def fractions_by_row(flags):
    """Fraction of flags of every time and baseline."""
    ntime, nbaseline, nchan, npol = flags.shape
    share = np.zeros((ntime, nbaseline))
    for t in prange(ntime):
        for b in range(nbaseline):
            count = 0
            for c in range(nchan):
                for p in range(npol):
                    count += flags[t, b, c, p]
            share[t, b] = count / (nchan * npol)
    return share


@njit(parallel=True, cache=True)
def _flags_by_channel(flags, use):
    """Fraction of flags of every channel, of the baselines in `use`."""
    ntime, nbaseline, nchan, npol = flags.shape
    counts = np.zeros((ntime, nchan))
    for t in prange(ntime):
        for b in range(nbaseline):
            if use[b]:
                for c in range(nchan):
                    for p in range(npol):
                        counts[t, c] += flags[t, b, c, p]
    return counts.sum(axis=0) / max(1, ntime * use.sum() * npol)


def shadowed(
    *, uvw_m: np.ndarray, ant_1: np.ndarray, ant_2: np.ndarray, diameters_m: np.ndarray
) -> np.ndarray:
    """Which rows (ntime, nbaseline) have an antenna that another one stands in front of.

    Two dishes overlap when sqrt(u^2 + v^2) is less than the mean of their diameters. The one in the
    shadow is farther from the source: uvw = r_1 - r_2, so antenna 2 where w > 0. All its baselines
    are lost (CASA, flagdata mode 'shadow'). Only dishes that take part are seen.
    """
    reach_m = (diameters_m[ant_1] + diameters_m[ant_2]) / 2
    overlap = (np.hypot(uvw_m[..., 0], uvw_m[..., 1]) < reach_m) & (ant_1 != ant_2)
    rows = np.zeros(uvw_m.shape[:2], bool)
    for t, b in zip(*np.nonzero(overlap), strict=True):
        hidden = ant_2[b] if uvw_m[t, b, 2] > 0 else ant_1[b]
        rows[t] |= (ant_1 == hidden) | (ant_2 == hidden)
    return rows


@njit(parallel=True, cache=True)
def baseline_noise(data, flags):
    """Robust rms (nbaseline, npol) of one component, from second differences along the channels."""
    ntime, nbaseline, nchan, npol = data.shape
    noise = np.zeros((nbaseline, npol))
    step = max(1, ntime * nchan // _NOISE_SAMPLE)
    for b in prange(nbaseline):
        sample = np.empty((ntime // step + 1) * max(nchan - 2, 0))
        for p in range(npol):
            count = 0
            for t in range(0, ntime, step):
                for c in range(1, nchan - 1):
                    if not (flags[t, b, c - 1, p] or flags[t, b, c, p] or flags[t, b, c + 1, p]):
                        sample[count] = abs(
                            data[t, b, c - 1, p] - 2 * data[t, b, c, p] + data[t, b, c + 1, p]
                        )
                        count += 1
            if count:
                noise[b, p] = np.median(sample[:count]) / (_RAYLEIGH_MEDIAN * _SECOND_DIFFERENCE)
    return noise


@njit(parallel=True, cache=True)
def _array_power(data, flags, noise, use):
    """Mean over baselines of |V|^2 / noise^2, and the number of baselines, (ntime, nchan, npol)."""
    ntime, nbaseline, nchan, npol = data.shape
    power = np.zeros((ntime, nchan, npol))
    count = np.zeros((ntime, nchan, npol))
    for t in prange(ntime):
        for b in range(nbaseline):
            if not use[b]:
                continue
            for c in range(nchan):
                for p in range(npol):
                    if not flags[t, b, c, p] and noise[b, p] > 0:
                        v = data[t, b, c, p]
                        power[t, c, p] += (v.real**2 + v.imag**2) / noise[b, p] ** 2
                        count[t, c, p] += 1
        for c in range(nchan):
            for p in range(npol):
                power[t, c, p] = power[t, c, p] / count[t, c, p] if count[t, c, p] else np.nan
    return power, count


@njit(parallel=True, cache=True)
def _baseline_power(data, flags, noise):
    """Mean of |V|^2 / noise^2 of each baseline (nbaseline,), in some integrations; NaN where there
    is nothing."""
    ntime, nbaseline, nchan, npol = data.shape
    power = np.full(nbaseline, np.nan)
    step = max(1, ntime // _POWER_TIMES)
    for b in prange(nbaseline):
        total, count = 0.0, 0
        for t in range(0, ntime, step):
            for c in range(nchan):
                for p in range(npol):
                    if not flags[t, b, c, p] and noise[b, p] > 0:
                        v = data[t, b, c, p]
                        total += (v.real**2 + v.imag**2) / noise[b, p] ** 2
                        count += 1
        if count:
            power[b] = total / count
    return power


def quiet_baselines(*, data, flags, noise, cross: np.ndarray) -> np.ndarray:
    """Baselines (nbaseline,) that interference is looked for on: not those that see far more than
    most do.

    Interference is on all of them; a source in the far sidelobes is on the short ones of one arm,
    where its beats with the field go up and down along the channels, on all of these alike.
    """
    power = _baseline_power(data, flags, noise)
    known = cross & np.isfinite(power)
    if not known.any():
        return cross
    with np.errstate(invalid="ignore"):
        quiet = known & (power <= _LOUD * np.median(power[known]))
    return quiet


@njit(parallel=True, cache=True)
def _clip_samples(data, flags, noise, sigma):
    """Flag samples beyond 1.3 x the baseline's median amplitude + sigma x its noise, in place;
    returns their number."""
    ntime, nbaseline, nchan, npol = data.shape
    found = np.zeros(nbaseline, np.int64)
    step = max(1, ntime * nchan // _NOISE_SAMPLE)
    for b in prange(nbaseline):
        sample = np.empty((ntime // step + 1) * nchan)
        for p in range(npol):
            count = 0
            for t in range(0, ntime, step):
                for c in range(nchan):
                    if not flags[t, b, c, p]:
                        sample[count] = abs(data[t, b, c, p])
                        count += 1
            if count == 0:
                continue
            limit = 1.3 * np.median(sample[:count]) + sigma * noise[b, p]
            for t in range(ntime):
                for c in range(nchan):
                    if not flags[t, b, c, p] and abs(data[t, b, c, p]) > limit:
                        flags[t, b, c, p] = True
                        found[b] += 1
    return found.sum()


@njit(parallel=True, cache=True)
def _coherent_power(data, flags, noise, times, channels):
    """Per baseline: mean over cells of the power of their mean V / noise, and its standard error.

    The power is the product of the means of a cell's even and odd samples: what is noise in one is
    another noise in the other, so that none need be subtracted, nor known; fringes of a far source,
    which turn from sample to sample, count as noise.

    times, channels  size of the cells of each baseline, (nbaseline,)
    """
    ntime, nbaseline, nchan, npol = data.shape
    excess = np.full(nbaseline, np.nan)
    error = np.full(nbaseline, np.nan)
    for b in prange(nbaseline):
        total, squares, cells = 0.0, 0.0, 0
        for p in range(npol):
            if not noise[b, p] > 0:
                continue
            for t0 in range(0, ntime, times[b]):
                for c0 in range(0, nchan, channels[b]):
                    even, odd, n_even, n_odd = 0j, 0j, 0, 0
                    for t in range(t0, min(t0 + times[b], ntime)):
                        for c in range(c0, min(c0 + channels[b], nchan)):
                            if not flags[t, b, c, p]:
                                if (t + c) % 2:
                                    odd += data[t, b, c, p]
                                    n_odd += 1
                                else:
                                    even += data[t, b, c, p]
                                    n_even += 1
                    if n_even and n_odd:
                        power = (even * np.conj(odd)).real / (n_even * n_odd * noise[b, p] ** 2)
                        total += power
                        squares += power**2
                        cells += 1
        if cells:
            excess[b] = total / cells
            error[b] = np.sqrt(squares) / cells
    return excess, error


def coherence_cells(
    length_m, wavelength_m: float, integration_s: float, channel_width_hz: float
) -> tuple[np.ndarray, np.ndarray]:
    """Integrations and channels (nbaseline,) of cells in which a source at the edge of the beam
    turns by `_MOST_TURNS` at most.

    A source in the far sidelobes turns fifty times as fast and is averaged away, on all but the
    shortest baselines. Gains are not known here: delays of antennas (up to some 50 ns) bound the
    width.
    """
    edge_m = np.maximum(np.asarray(length_m, float), 1.0) * _BEAM_EDGE
    longest_s = np.minimum(
        _MOST_TURNS * wavelength_m / (edge_m * SKY_TURNS_RAD_S), _COHERENCE_CELL_S
    )
    widest_hz = np.minimum(_MOST_TURNS * 299792458.0 / edge_m, _COHERENCE_CELL_HZ)
    times, channels = np.floor(longest_s / integration_s), np.floor(widest_hz / channel_width_hz)
    return np.maximum(times, 2).astype(np.int64), np.maximum(channels, 1).astype(np.int64)


def _excess(values: np.ndarray, floor: np.ndarray | float) -> np.ndarray:
    """Residuals in units of their robust scatter, which is at least `floor`."""
    finite = values[np.isfinite(values)]
    scatter = 1.4826 * np.median(np.abs(finite - np.median(finite))) if finite.size else 0.0
    return np.where(np.isfinite(values), values, 0) / np.maximum(scatter, floor)


def _smooth_drift(level: np.ndarray) -> np.ndarray:
    """Quadratic through ln(level) against time, outliers clipped: how power follows sources through
    the beam."""
    x = np.linspace(-1, 1, len(level))
    y = np.log(np.where(level > 0, level, np.nan))
    good = np.isfinite(y)
    good &= np.abs(y - np.nanmedian(y)) < 2
    for _ in range(6):
        if good.sum() < 4:
            return np.full(len(level), np.nanmedian(level))
        fit = np.polyval(np.polyfit(x[good], y[good], 2), x)
        residual = np.abs(y - fit)
        good = np.isfinite(y) & (residual <= 3 * max(1.4826 * np.median(residual[good]), 1e-3))
    return np.exp(fit)


def rfi_times_channels(
    *, power: np.ndarray, count: np.ndarray, options: FlaggingConfig
) -> tuple[np.ndarray, list, list]:
    """Interference in array-averaged power (ntime, nchan, npol).

    Returns flags (ntime, nchan), the channels and the integrations that are flagged as a whole.
    Bands and drifts are smooth: a persistent carrier stands out against the neighbouring channels,
    a burst against the drift of the total power, an intermittent carrier against both.
    """
    ntime, nchan, npol = power.shape
    bad = np.zeros((ntime, nchan), bool)
    channels, integrations = np.zeros(nchan, bool), np.zeros(ntime, bool)
    sigma = options.channel_sigma
    for p in range(npol):
        one = np.where(count[..., p] > 0, power[..., p], np.nan)
        if not np.isfinite(one).any():
            continue
        baselines = max(1.0, float(np.median(count[..., p][count[..., p] > 0])))
        with np.errstate(invalid="ignore", divide="ignore"):
            spectrum = _nanmedian(one, 0)
            around = _neighbours(spectrum[None])[0]
            channels |= _excess(spectrum / around - 1, 1.25 / np.sqrt(baselines * ntime)) > sigma
            shape = np.where(channels, np.nan, spectrum)
            level = _nanmedian(one / shape, 1)
            step = level / _smooth_drift(level) - 1
            integrations |= (step > 0.1) & (
                _excess(step, 1.25 / np.sqrt(baselines * nchan)) > sigma
            )
            flat = one / around / level[:, None]
            flat[integrations] = np.nan
            flat[:, channels] = np.nan
            bad |= _excess(flat / _neighbours(flat) - 1, 1 / np.sqrt(baselines)) > sigma
    bad[:, channels] = True
    bad[integrations] = True
    channels |= (
        bad[~integrations].mean(axis=0) > options.max_channel_fraction
        if not integrations.all()
        else False
    )
    integrations |= (
        bad[:, ~channels].mean(axis=1) > options.max_time_fraction if not channels.all() else False
    )
    bad[:, channels] = True
    bad[integrations] = True
    return bad, np.flatnonzero(channels).tolist(), np.flatnonzero(integrations).tolist()


def _nanmedian(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of what is finite; NaN where nothing is."""
    some = np.isfinite(values).any(axis=axis, keepdims=True)
    result = np.nanmedian(np.where(some, values, 0), axis=axis)
    return np.where(some.squeeze(axis), result, np.nan)


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Running median along the channels (last axis), holes filled with the row's median first.

    At the ends of the band the values are continued by point reflection, so that a slope there is
    no excess; the point is a median of three, so that interference in the last channel is one.
    """
    filled = np.where(np.isfinite(values), values, _nanmedian(values, 1)[:, None])
    half = _CHANNELS_AROUND // 2
    if filled.shape[1] <= half:
        return np.broadcast_to(np.median(filled, axis=1, keepdims=True), filled.shape)
    first, last = (np.median(end, axis=1, keepdims=True) for end in (filled[:, :3], filled[:, -3:]))
    padded = np.concatenate(
        [2 * first - filled[:, half:0:-1], filled, 2 * last - filled[:, -2 : -half - 2 : -1]],
        axis=1,
    )
    return median_filter(padded, size=(1, _CHANNELS_AROUND), mode="nearest")[:, half:-half]


_TOO_FAINT = "sky too faint"


def dead_antennas(
    *, data, flags, noise, ant_1, ant_2, times, channels, threshold
) -> tuple[list[int], dict[int, float], str]:
    """Antennas that take part in noise but not in the sky: (numbers, relative coherence by antenna,
    note).

    The power of visibilities averaged over small cells (`coherence_cells`), less that of noise,
    does not depend on the phases of the gains, so it needs no calibration; relative to the noise it
    does not depend on their amplitudes either. A dead antenna has less than `threshold` of the
    median one's, and none beyond what noise and left interference give: one that sees less of the
    sky than others do (their arm sees a bright source in the sidelobes) lives. So does one that has
    power within single integrations: it is elsewhere than its place in the list says (exchanged
    cables), and its fringes turn from one to the next.
    """
    found = _without_power(data, flags, noise, ant_1, ant_2, times, channels, threshold)
    dead, relative, note = found
    if dead:
        one = np.ones_like(times), np.maximum(channels, 2)
        still, _, too_faint = _without_power(data, flags, noise, ant_1, ant_2, *one, threshold)
        if not too_faint.startswith(_TOO_FAINT):
            dead = [a for a in dead if a in still]
    return dead, relative, note


def _without_power(
    data, flags, noise, ant_1, ant_2, times, channels, threshold
) -> tuple[list[int], dict[int, float], str]:
    """As of `dead_antennas`, for cells of one size."""
    excess, error = _coherent_power(data, flags, noise, times, channels)
    antennas = np.unique(np.concatenate([ant_1, ant_2]))
    per_antenna, errors = {}, {}
    for antenna in antennas:
        mine = ((ant_1 == antenna) ^ (ant_2 == antenna)) & np.isfinite(excess)
        if mine.any():
            per_antenna[int(antenna)] = float(np.median(excess[mine]))
            errors[int(antenna)] = float(np.median(error[mine])) * 1.2533 / np.sqrt(mine.sum())
    if not per_antenna:
        return [], {}, "no unflagged cross-correlation: dead antennas unknown"
    typical = float(np.median(list(per_antenna.values())))
    scatter = float(np.nanmedian(error)) / np.sqrt(len(antennas))
    relative = {a: value / typical for a, value in per_antenna.items()} if typical > 0 else {}
    if typical < 10 * scatter:
        return (
            [],
            relative,
            f"{_TOO_FAINT} ({typical / scatter:.1f} sigma per antenna) to tell a dead antenna",
        )
    none = {a: max(_COHERENCE_SIGMA * errors[a], _NO_COHERENCE * typical) for a in per_antenna}
    dead = [a for a, r in relative.items() if r < threshold and per_antenna[a] < none[a]]
    weak = sum(r < threshold for r in relative.values()) - len(dead)
    note = (
        f"{weak} antennas have less than {threshold:.0%} of the median coherent power, and are "
        "not dead"
        if weak
        else ""
    )
    return dead, relative, note


def odd_antennas(
    *, noise: np.ndarray, ant_1: np.ndarray, ant_2: np.ndarray, factor: float
) -> list[int]:
    """Antennas whose noise is `factor` times larger or smaller than the median antenna's, in any
    polarisation."""
    antennas = np.unique(np.concatenate([ant_1, ant_2]))
    level = np.full((len(antennas), noise.shape[1]), np.nan)
    for k, antenna in enumerate(antennas):
        mine = ((ant_1 == antenna) ^ (ant_2 == antenna))[:, None] & (noise > 0)
        level[k] = [
            np.median(noise[mine[:, p], p]) if mine[:, p].any() else np.nan
            for p in range(noise.shape[1])
        ]
    with np.errstate(invalid="ignore"):
        away = np.abs(np.log(level / np.nanmedian(level, axis=0)))
        return antennas[(away > np.log(factor)).any(axis=1)].tolist()


@njit(parallel=True, cache=True)
def _flag_times_channels(flags, bad):
    """Flag times and channels (ntime, nchan) on all baselines, in place."""
    ntime, nbaseline, nchan, npol = flags.shape
    for t in prange(ntime):
        for b in range(nbaseline):
            for c in range(nchan):
                if bad[t, c]:
                    for p in range(npol):
                        flags[t, b, c, p] = True


def flag(
    *,
    data,
    flags,
    ant_1,
    ant_2,
    cells: tuple[np.ndarray, np.ndarray],
    options: FlaggingConfig,
    shadow: np.ndarray | None = None,
    find_rfi: Callable[[np.ndarray], None] | None = None,
) -> Flagging:
    """All flags of a group.

    data, flags       (ntime, nbaseline, nchan, npol); `flags` marks what conversion found to be no
                      data, and is changed
    ant_1, ant_2      (nbaseline,) antenna indices
    cells             in which the sky is coherent: `coherence_cells`
    shadow            rows (ntime, nbaseline) of shadowed antennas
    find_rfi          adds the flags of another strategy than `mad` in place (contimg.rfi)

    Autocorrelations are flagged; fractions count cross-correlations only. Antennas are judged when
    interference is out of the way: a dead one takes part in it as the others do.
    """
    cross = ant_1 != ant_2
    result = Flagging(flags=flags)
    before = 0.0

    def note(reason: str) -> None:
        nonlocal before
        result.by_row = fractions_by_row(flags)
        after = float(result.by_row[:, cross].mean())
        result.fractions[reason] = after - before
        before = after

    note("no_data")
    if shadow is not None:
        flags[shadow] = True
        note("shadow")
    flags[:, ~cross] = True
    if options.strategy == "mad":
        noise = baseline_noise(data, flags)
        quiet = quiet_baselines(data=data, flags=flags, noise=noise, cross=cross)
        power, count = _array_power(data, flags, noise, quiet)
        bad, result.rfi_channels, result.rfi_integrations = rfi_times_channels(
            power=power, count=count, options=options
        )
        _flag_times_channels(flags, bad)
        note("rfi_times_channels")
        _clip_samples(data, flags, noise, options.sample_sigma)
        note("rfi_samples")
    elif find_rfi is not None:
        find_rfi(flags)
        note("rfi")
    noise = baseline_noise(data, flags)
    times, channels = cells
    dead, coherence, remark = dead_antennas(
        data=data,
        flags=flags,
        noise=noise,
        ant_1=ant_1,
        ant_2=ant_2,
        times=times,
        channels=channels,
        threshold=options.dead_coherence,
    )
    result.dead_antennas, result.coherence = dead, coherence
    result.odd_antennas = odd_antennas(
        noise=noise, ant_1=ant_1, ant_2=ant_2, factor=options.odd_noise_factor
    )
    if remark:
        result.notes.append(remark)
    for reason, antennas in (("dead_antennas", dead), ("odd_antennas", result.odd_antennas)):
        flags[:, np.isin(ant_1, antennas) | np.isin(ant_2, antennas)] = True
        note(reason)
    result.by_channel = _flags_by_channel(flags, cross)
    return result
