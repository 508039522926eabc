"""Antenna gains by least squares (StEFCal: Salvini & Wijnholds 2014, A&A 571, A97), two passes over
the data.

    V_12 = g_1 conj(g_2) M_12 + noise

A solution over many times and channels, whose model changes from one to the next, is that of the
sums

    A_12 = sum w V_12 conj(M_12),   W_12 = sum w |M_12|^2:   minimise sum_12 W_12 |A_12 / W_12 - g_1
                                    conj(g_2)|^2

(V itself must not be averaged: the model turns within the average.) As CASA's gaincal and bandpass
do: phases per integration first, kept out of the result; the bandpass per channel with these
applied; one gain per antenna over all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit, prange

_TOLERANCE = 1e-9
_MOST_ITERATIONS = 400
_LEAST_BASELINES = 4


@dataclass(frozen=True)
class Gains:
    """Solutions of one kind: (nantenna, nchan, npol), antennas by their number in the Measurement
    Set."""

    gain: np.ndarray
    flags: np.ndarray
    error: np.ndarray
    snr: np.ndarray


@njit(parallel=True, cache=True)
def _sums_by_time(data, model, flags, weights, cross, first, last):
    """A and W of every integration over channels [first, last), (ntime, nbaseline, npol)."""
    ntime, nbaseline, _, npol = data.shape
    a = np.zeros((ntime, nbaseline, npol), np.complex128)
    w = np.zeros((ntime, nbaseline, npol))
    for t in prange(ntime):
        for b in range(nbaseline):
            if cross[b]:
                for c in range(first, last):
                    m = model[t, b, c]
                    power = m.real**2 + m.imag**2
                    for p in range(npol):
                        if not flags[t, b, c, p]:
                            a[t, b, p] += weights[t, b, c, p] * data[t, b, c, p] * np.conj(m)
                            w[t, b, p] += weights[t, b, c, p] * power
    return a, w


@njit(parallel=True, cache=True)
def _sums_by_channel(data, model, flags, weights, cross, turn):
    """Sums over time, each (nbaseline, nchan, npol): A, W, sum w |V|^2 and number of values, twice:
    first with V turned by `turn` (ntime, nbaseline, npol), without the integrations where that is
    0, then as they are."""
    ntime, nbaseline, nchan, npol = data.shape
    shape = (nbaseline, nchan, npol)
    turned, plain = np.zeros(shape, np.complex128), np.zeros(shape, np.complex128)
    w_turned, total_turned, count_turned = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    w, total, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for b in prange(nbaseline):
        if cross[b]:
            for t in range(ntime):
                for c in range(nchan):
                    m = model[t, b, c]
                    power = m.real**2 + m.imag**2
                    for p in range(npol):
                        if not flags[t, b, c, p]:
                            v = data[t, b, c, p]
                            weight = weights[t, b, c, p]
                            product = weight * v * np.conj(m)
                            size = weight * (v.real**2 + v.imag**2)
                            plain[b, c, p] += product
                            w[b, c, p] += weight * power
                            total[b, c, p] += size
                            count[b, c, p] += weight > 0
                            if turn[t, b, p] != 0:
                                turned[b, c, p] += product * turn[t, b, p]
                                w_turned[b, c, p] += weight * power
                                total_turned[b, c, p] += size
                                count_turned[b, c, p] += weight > 0
    return (turned, w_turned, total_turned, count_turned), (plain, w, total, count)


@njit(cache=True)
def _stefcal(a, w, one, two, nant, reference, phase_only):
    """Gains (nant,) of sums (nbaseline,), 0 where an antenna has too few baselines."""
    full_a = np.zeros((nant, nant), np.complex128)
    full_w = np.zeros((nant, nant))
    for b in range(len(one)):
        if w[b] > 0 and one[b] != two[b]:
            value, weight = a[b], w[b]
            if phase_only:  # as CASA: unit amplitudes, and weights that know how large they were
                size = abs(value) / weight
                value, weight = value * size, weight * size**2
            full_a[one[b], two[b]], full_a[two[b], one[b]] = value, np.conj(value)
            full_w[one[b], two[b]] = full_w[two[b], one[b]] = weight
    alive = np.ones(nant, np.bool_)
    for _ in range(nant):
        changed = False
        for i in range(nant):
            if alive[i]:
                baselines = 0
                for j in range(nant):
                    baselines += full_w[i, j] > 0 and alive[j]
                if baselines < _LEAST_BASELINES:
                    alive[i] = False
                    changed = True
        if not changed:
            break
    gain = np.zeros(nant, np.complex128)
    top, bottom = 0.0, 0.0
    for i in range(nant):
        if alive[i]:
            for j in range(nant):
                if alive[j]:
                    top += abs(full_a[i, j])
                    bottom += full_w[i, j]
    if bottom == 0:
        return gain
    size = 1.0 if phase_only else np.sqrt(top / bottom)
    for i in range(nant):
        if alive[i]:
            towards = full_a[i, reference]
            gain[i] = size * (towards / abs(towards) if abs(towards) > 0 else 1.0)
    new = np.zeros(nant, np.complex128)
    for iteration in range(_MOST_ITERATIONS):
        for i in range(nant):
            if alive[i]:
                up, down = 0j, 0.0
                for j in range(nant):
                    if alive[j]:
                        up += full_a[i, j] * gain[j]
                        down += full_w[i, j] * (gain[j].real ** 2 + gain[j].imag ** 2)
                if phase_only:
                    new[i] = up / abs(up) if abs(up) > 0 else gain[i]
                else:
                    new[i] = up / down if down > 0 else 0j
        change, scale = 0.0, 0.0
        for i in range(nant):
            change += abs(new[i] - gain[i]) ** 2
            scale += abs(new[i]) ** 2
            gain[i] = (new[i] + gain[i]) / 2 if iteration % 2 else new[i]
            if phase_only and abs(gain[i]) > 0:
                gain[i] /= abs(gain[i])
        if iteration > 1 and change <= _TOLERANCE**2 * scale:
            break
    return gain


@njit(parallel=True, cache=True)
def _solve_all(a, w, one, two, nant, reference, phase_only):
    """Gains (nant, nunit) of sums (nbaseline, nunit)."""
    gains = np.zeros((nant, a.shape[1]), np.complex128)
    for k in prange(a.shape[1]):
        gains[:, k] = _stefcal(
            np.ascontiguousarray(a[:, k]),
            np.ascontiguousarray(w[:, k]),
            one,
            two,
            nant,
            reference,
            phase_only,
        )
    return gains


def phase_channels(flagged_by_channel: np.ndarray) -> tuple[int, int]:
    """Channels [first, last) for phases before there is a bandpass: the quarter of the band with
    the fewest flags.

    Over all of it the delays of the antennas (some ns) would take the coherence away. Of equals,
    the middle one.
    """
    nchan = len(flagged_by_channel)
    width = max(1, nchan // 4)
    starts = sorted(range(nchan - width + 1), key=lambda first: abs(first - (nchan - width) // 2))
    sums = np.concatenate([[0.0], np.cumsum(flagged_by_channel)])
    best = min(starts, key=lambda first: round(sums[first + width] - sums[first], 2))
    return best, best + width


def solve(
    *,
    data,
    model,
    flags,
    weights,
    ant_1,
    ant_2,
    nant: int,
    reference: list[int],
    min_snr: float,
    phase_channels: tuple[int, int],
    intervals: int = 1,
    phase_only: bool = False,
    fill: int = 0,
) -> tuple[Gains, Gains]:
    """Bandpass (nchan solutions) and gains (`intervals` solutions, of as many integrations each) of
    a calibrator group.

    data, flags, weights  (ntime, nbaseline, nchan, npol); model (ntime, nbaseline, nchan) in Jy
    ant_1, ant_2          (nbaseline,) antenna numbers below nant
    reference             reference antennas, best first: the first has phase 0 where it has
                          solutions
    phase_only            of the gains, not of the bandpass
    fill                  gaps of the bandpass up to so many channels are interpolated, in amplitude
                          and phase

    Nothing is normalised: bandpass times gain turns Jy into the data's units.
    """
    cross = ant_1 != ant_2
    by_time, weight_by_time = _sums_by_time(data, model, flags, weights, cross, *phase_channels)
    phases = solve_grid(
        by_time.transpose(1, 0, 2),
        weight_by_time.transpose(1, 0, 2),
        ant_1,
        ant_2,
        nant,
        reference,
        True,
    )
    phases = _referred(phases, reference)
    # (ntime, nbaseline, npol); 0 where a phase is not known
    turn = (np.conj(phases[ant_1]) * phases[ant_2]).transpose(1, 0, 2)
    turned, plain = _sums_by_channel(data, model, flags, weights, cross, turn)
    bandpass = _referred(solve_grid(*turned[:2], ant_1, ant_2, nant, reference, False), reference)
    bandpass, flagged, error = _judge(bandpass, *turned, ant_1, ant_2, min_snr)
    _fill_gaps(bandpass, flagged, error, fill)
    use = ~(flagged[ant_1] | flagged[ant_2])
    safe = np.where(flagged, 1, bandpass)
    product = safe[ant_1] * np.conj(safe[ant_2])
    sums = [plain]
    if intervals > 1:
        parts = [
            slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(data)), intervals)
        ]
        sums = [
            _sums_by_channel(*(x[p] for x in (data, model, flags, weights)), cross, turn[p])[1]
            for p in parts
        ]
    corrected, kept, power, number = (
        np.stack([np.where(use, one[k] / by, 0).sum(axis=1) for one in sums], axis=1)
        for k, by in enumerate((product, 1, np.abs(product) ** 2, 1))
    )
    gain = _referred(
        solve_grid(corrected, kept, ant_1, ant_2, nant, reference, phase_only), reference
    )
    gain, gain_flagged, gain_error = _judge(
        gain, corrected, kept, power, number, ant_1, ant_2, min_snr
    )
    return tuple(
        Gains(g, f, e, np.where(f, 0, np.abs(g) / np.where(e > 0, e, 1)))
        for g, f, e in ((bandpass, flagged, error), (gain, gain_flagged, gain_error))
    )


@njit(parallel=True, cache=True)
def averaged(data, flags, weights, times, channels):
    """Weighted means over so many integrations and channels: data, whether a value has none,
    weights."""
    ntime, nbaseline, nchan, npol = data.shape
    shape = ((ntime + times - 1) // times, nbaseline, (nchan + channels - 1) // channels, npol)
    mean, weight = np.zeros(shape, np.complex64), np.zeros(shape, np.float32)
    for b in prange(nbaseline):
        for t in range(ntime):
            for c in range(nchan):
                for p in range(npol):
                    if not flags[t, b, c, p]:
                        w = weights[t, b, c, p]
                        mean[t // times, b, c // channels, p] += w * data[t, b, c, p]
                        weight[t // times, b, c // channels, p] += w
        for t in range(shape[0]):
            for c in range(shape[2]):
                for p in range(npol):
                    if weight[t, b, c, p] > 0:
                        mean[t, b, c, p] /= weight[t, b, c, p]
    return mean, weight <= 0, weight


def _fill_gaps(gain, flags, error, widest: int) -> None:
    """Interpolate flagged channels between good ones in place, in amplitude and phase, where there
    are at most `widest`."""
    for a, p in np.argwhere(flags.any(axis=1) & ~flags.all(axis=1)):
        good = np.flatnonzero(~flags[a, :, p])
        for left, right in pairwise(good):
            if 1 < right - left <= widest + 1:
                gap, share = slice(left + 1, right), np.arange(1, right - left) / (right - left)
                one, two = gain[a, left, p], gain[a, right, p]
                size = np.abs(one) + share * (np.abs(two) - np.abs(one))
                gain[a, gap, p] = size * np.exp(1j * (np.angle(one) + share * np.angle(two / one)))
                flags[a, gap, p] = False
                error[a, gap, p] = max(error[a, left, p], error[a, right, p])


def solve_grid(a, w, ant_1, ant_2, nant, reference, phase_only) -> np.ndarray:
    """Gains (nant, nunit, npol) of sums (nbaseline, nunit, npol)."""
    nbaseline, nunit, npol = a.shape
    flat = [np.ascontiguousarray(x).reshape(nbaseline, nunit * npol) for x in (a, w)]
    used, index = np.unique(np.concatenate([ant_1, ant_2]), return_inverse=True)
    one, two = index[:nbaseline], index[nbaseline:]
    place = int(np.searchsorted(used, reference[0]))
    gains = np.zeros((nant, nunit * npol), complex)
    gains[used] = _solve_all(*flat, one, two, len(used), place, phase_only)
    return gains.reshape(nant, nunit, npol)


def _referred(gains: np.ndarray, reference: list[int]) -> np.ndarray:
    """Phases relative to the first reference antenna that has solutions; where it has none, as
    little turned as can be from the unit before."""
    gains = gains.copy()
    for p in range(gains.shape[2]):
        best = next((a for a in reference if gains[a, :, p].any()), reference[0])
        before = None
        for k in range(gains.shape[1]):
            now = gains[:, k, p]
            if now[best] != 0:
                towards = now[best]
            elif before is not None:
                towards = np.vdot(before, now)
            else:
                towards = next((now[a] for a in reference if now[a] != 0), 0)
            if towards != 0:
                gains[:, k, p] = now * np.conj(towards) / abs(towards)
            if now.any():
                before = gains[:, k, p].copy()
    return gains


def _judge(
    gains, a, w, total, count, ant_1, ant_2, min_snr
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gains with 1 where they are flagged, flags, and errors, from the scatter about the
    solution."""
    product = gains[ant_1] * np.conj(gains[ant_2])
    known = product != 0
    chi2 = np.where(
        known, total - 2 * (np.conj(product) * a).real + np.abs(product) ** 2 * w, 0
    ).sum(axis=0)
    values = np.where(known, count, 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        parameters = np.count_nonzero(gains, axis=0)
        # of a complex value at weight 1, as CASA has it
        variance = np.maximum(chi2, 0) / np.maximum(values - parameters, 1)
        information = np.zeros(gains.shape)
        power = np.abs(gains) ** 2
        np.add.at(information, ant_1, w * power[ant_2])
        np.add.at(information, ant_2, w * power[ant_1])
        error = np.sqrt(variance / information)
        flagged = (gains == 0) | ~(np.abs(gains) >= min_snr * error)
    return np.where(flagged, 1, gains), flagged, np.where(flagged, 0, error)
