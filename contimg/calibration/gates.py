"""Is calibrated data what calibrated data look like? Gates after `solve` and `apply` that need no
catalogue of the field.

A solver always solves: of noise, too. What cannot be had from noise, or from another sky than the
model's, are: the signal to noise that the model's amplitude promises, receivers of the noise that
receivers have, coherent power that the model explains, a calibrator that stays in its place while
the sky turns, gains like those of yesterday.

Arrays are (time, baseline, channel, polarisation); data are calibrated, in Jy, in the Measurement
Set's convention. The noise of a visibility is sigma = sqrt(SEFD_1 SEFD_2) / sqrt(2 width time) in
each of its real and imaginary part (Thompson, Moran & Swenson 2017, eq. 6.50).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.config import GatesConfig
from contimg.findings import Finding, judged, unknown
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

_CELL = (2, 2e6)  # integrations, Hz: in which sources of the whole beam are coherent
_SIGNIFICANT = 6.0  # errors: an offset of less is none
_FEW = 3  # antennas: with fewer, nothing is said of each
_MAD = 1.4826
_SEARCHED_ARCSEC, _STEP_ARCSEC = 180.0, 3.0  # shifts of the sky that phases are tried with
_STRAIGHT = 0.6  # of the scatter of phases: a gradient that leaves more explains little


@dataclass(frozen=True)
class Sums:
    """What the gates need of calibrated data D and their model M.

    product    sum over channels of D conj(M) (ntime, nbaseline, npol), and `power` of |M|^2, as
               weighted
    coherent   excess over noise of |mean of D|^2 in small cells, in units of the noise's
               (nbaseline, npol); `left` of D - M
    """

    product: np.ndarray
    power: np.ndarray
    coherent: np.ndarray
    left: np.ndarray


@njit(parallel=True, cache=True)
def _sums(data, model, flags, shares, noise, cross, times, channels):
    """The arrays of `Sums`; noise (nbaseline, npol) is the rms of one component."""
    ntime, nbaseline, nchan, npol = data.shape
    product = np.zeros((ntime, nbaseline, npol), np.complex128)
    power = np.zeros((ntime, nbaseline, npol))
    coherent, left = np.zeros((nbaseline, npol)), np.zeros((nbaseline, npol))
    for b in prange(nbaseline):
        if not cross[b]:
            continue
        for p in range(npol):
            if not noise[b, p] > 0:
                continue
            for t0 in range(0, ntime, times):
                for c0 in range(0, nchan, channels):
                    mean, rest, n = 0j, 0j, 0
                    for t in range(t0, min(t0 + times, ntime)):
                        for c in range(c0, min(c0 + channels, nchan)):
                            if not flags[t, b, c, p]:
                                m, w = model[t, b, c], shares[t, b, c, p]
                                v = data[t, b, c, p]
                                product[t, b, p] += w * v * np.conj(m)
                                power[t, b, p] += w * (m.real**2 + m.imag**2)
                                mean += v
                                rest += v - m
                                n += 1
                    if n:
                        of_noise = 2 * noise[b, p] ** 2 / n
                        coherent[b, p] += ((mean.real**2 + mean.imag**2) / n**2 - of_noise) / noise[
                            b, p
                        ] ** 2
                        left[b, p] += ((rest.real**2 + rest.imag**2) / n**2 - of_noise) / noise[
                            b, p
                        ] ** 2
    return product, power, coherent, left


def sums(*, data, model, flags, shares, noise, ant_1, ant_2, channel_width_hz: float) -> Sums:
    """One pass over calibrated data, model (ntime, nbaseline, nchan), flags and shares of full
    integrations."""
    times, width_hz = _CELL
    channels = max(1, int(width_hz / channel_width_hz))
    return Sums(*_sums(data, model, flags, shares, noise, ant_1 != ant_2, times, channels))


def sefd_jy(
    *, antenna_noise: np.ndarray, channel_width_hz: float, integration_s: float
) -> np.ndarray:
    """System equivalent flux densities (nant, npol) of noises per antenna (Jy^(1/2); their products
    are those of baselines)."""
    return antenna_noise**2 * np.sqrt(2 * channel_width_hz * integration_s)


def promised_snr(
    *, power, ant_1, ant_2, nant: int, channel_width_hz: float, integration_s: float, sefd: float
) -> np.ndarray:
    """Signal to noise of each antenna's gain (nant, npol) that a model of summed `power`
    (nbaseline, npol) gives to receivers of one SEFD: |g| / error, as the solver counts it (both
    components of the error together)."""
    variance = sefd**2 / (2 * channel_width_hz * integration_s)
    total = np.zeros((nant, power.shape[1]))
    np.add.at(total, ant_1, power)
    np.add.at(total, ant_2, power)
    return np.sqrt(total / (2 * variance))


def explained(*, found: Sums, ant_1, ant_2, nant: int) -> tuple[float, np.ndarray]:
    """Share of the coherent power that the model explains: of all, and of each antenna's baselines
    (nant,); NaN where there is no coherent power to be explained."""

    def share(coherent: float, left: float) -> float:
        return 1 - left / coherent if coherent > 0 else np.nan

    by_antenna = np.full(nant, np.nan)
    for a in np.unique(np.concatenate([ant_1, ant_2])):
        mine = (ant_1 == a) ^ (ant_2 == a)
        by_antenna[a] = share(found.coherent[mine].sum(), found.left[mine].sum())
    return share(found.coherent.sum(), found.left.sum()), by_antenna


def offset_arcsec(
    *, found: Sums, noise, uvw_m, ant_1, ant_2, freq_hz: float
) -> tuple[float, float, float]:
    """Place of the model in data that were calibrated with it: offset to the east and north, and
    its error, in arcsec.

    Gains constant in time take up a wrong place at the middle of the observation, but not that
    fringes then turn otherwise than the model's: the phase is 2 pi nu / c ((u - <u>) l + (v - <v>)
    m). The error is from the scatter of the antennas' own fits, so that gains which drift count.
    NaN where there are too few antennas or integrations.
    """
    # (ntime, nbaseline)
    weights = np.where(noise > 0, found.power / np.where(noise > 0, noise, 1) ** 2, 0).sum(axis=2)
    imaginary = np.where(noise > 0, found.product.imag / np.where(noise > 0, noise, 1) ** 2, 0).sum(
        axis=2
    )
    total = weights.sum(axis=0)
    if (total > 0).sum() < 2 * _FEW or len(weights) < 2:
        return np.nan, np.nan, np.nan
    turns = 2 * np.pi * freq_hz / SPEED_OF_LIGHT_M_S * uvw_m[..., :2]
    mean = np.einsum("tb,tbk->bk", weights, turns) / np.where(total > 0, total, 1)[:, None]
    turns = turns - mean
    phase = imaginary - weights * (imaginary.sum(axis=0) / np.where(total > 0, total, 1))
    normal = np.einsum("tb,tbi,tbj->bij", weights, turns, turns)
    right = np.einsum("tbi,tb->bi", turns, phase)

    def fitted(some) -> np.ndarray:
        matrix = normal[some].sum(axis=0)
        if np.linalg.cond(matrix) > 1e12:
            return np.full(2, np.nan)
        return np.degrees(np.linalg.solve(matrix, right[some].sum(axis=0))) * 3600

    if not np.isfinite(everything := fitted(slice(None))).all():
        return np.nan, np.nan, np.nan
    antennas = np.unique(np.concatenate([ant_1[total > 0], ant_2[total > 0]]))
    each = np.array([fitted((ant_1 == a) ^ (ant_2 == a)) for a in antennas])
    # Each baseline is in two antennas' fits.
    scatter = (
        _MAD
        * np.nanmedian(np.abs(each - np.nanmedian(each, axis=0)), axis=0)
        * np.sqrt(2 / len(antennas))
    )
    return float(everything[0]), float(everything[1]), float(np.hypot(*scatter))


def of_receivers(
    sefd: np.ndarray, names: Sequence[str], options: GatesConfig
) -> tuple[dict, list[Finding]]:
    """SEFDs (nant, npol), NaN where unknown: their numbers by station, and what is to be said of
    them."""
    known = sefd[np.isfinite(sefd) & (sefd > 0)]
    by_station = {
        name: round(float(np.median(s[s > 0])), 1)
        for name, s in zip(names, sefd, strict=True)
        if (s > 0).any()
    }
    if not len(known):
        return {"sefd_jy_by_antenna": by_station}, [
            unknown(name="sefd", why="the noise of the receivers is not known")
        ]
    median = float(np.median(known))
    scatter = float(_MAD * np.median(np.abs(np.log(known / median))))
    numbers = {"sefd_jy": median, "sefd_scatter": scatter, "sefd_jy_by_antenna": by_station}
    times = median / options.sefd_jy
    found = [
        judged(
            name="sefd",
            value=max(times, 1 / times),
            warn=options.warn_sefd_factor,
            fail=options.fail_sefd_factor,
            unit="times",
            words=f"noise of the median receiver is {median:.0f} Jy, {times:.2g} times the "
            f"{options.sefd_jy:g} Jy that they have",
            cause="The gains are wrong by the root of that: probably the calibrator is not there, "
            "or has not the model's flux. "
            "Look at the set's page; contimg registry retire SET if it is wrong",
        ),
        judged(
            name="sefd_scatter",
            value=scatter,
            warn=options.warn_sefd_scatter,
            fail=options.fail_sefd_scatter,
            words=f"noise of the receivers scatters by {scatter:.2f} in its logarithm",
            cause="Gains were probably fitted to noise, or most antennas are ill",
        ),
    ]
    return numbers, found


def after_solve(
    *,
    data,
    model,
    flags,
    shares,
    noise,
    antenna_noise,
    ant_1,
    ant_2,
    uvw_m,
    snr,
    names: Sequence[str],
    freq_hz: float,
    channel_width_hz: float,
    integration_s: float,
    one_gain: bool,
    options: GatesConfig,
) -> dict:
    """Numbers and findings for a new calibration set.

    data, model, flags, shares  calibrated with the set, as above
    noise, antenna_noise        rms of one component: (nbaseline, npol), and (nant, npol) of which
                                it is the product
    uvw_m                       (ntime, nbaseline, 3)
    snr                         of the gains, (nant, npol), 0 where there is none
    one_gain                    each antenna has one gain for all integrations
    """
    found = sums(
        data=data,
        model=model,
        flags=flags,
        shares=shares,
        noise=noise,
        ant_1=ant_1,
        ant_2=ant_2,
        channel_width_hz=channel_width_hz,
    )
    sefd = sefd_jy(
        antenna_noise=antenna_noise, channel_width_hz=channel_width_hz, integration_s=integration_s
    )
    promised = promised_snr(
        power=found.power.sum(axis=0),
        ant_1=ant_1,
        ant_2=ant_2,
        nant=len(names),
        channel_width_hz=channel_width_hz,
        integration_s=integration_s,
        sefd=options.sefd_jy,
    )
    whole, each = explained(found=found, ant_1=ant_1, ant_2=ant_2, nant=len(names))
    offset = (np.nan, np.nan, np.nan)
    if one_gain:
        offset = offset_arcsec(
            found=found, noise=noise, uvw_m=uvw_m, ant_1=ant_1, ant_2=ant_2, freq_hz=freq_hz
        )
    numbers, findings = {}, []
    for more, said in (
        of_receivers(sefd, names, options),
        _of_snr(snr, promised, options),
        _of_explained(whole, each, names, options),
        _of_place(*offset, options),
    ):
        numbers |= more
        findings += said
    numbers = {
        k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in numbers.items()
    }
    return numbers | {"findings": [one.as_json() for one in findings]}


def _of_snr(
    snr: np.ndarray, promised: np.ndarray, options: GatesConfig
) -> tuple[dict, list[Finding]]:
    """Signal to noise of the gains (nant, npol) against what the model promises."""
    both = (promised > 0) & (snr > 0)
    share, measured, expected = (
        float(np.median(values[both])) if both.any() else np.nan
        for values in (snr / np.where(both, promised, 1), snr, promised)
    )
    finding = judged(
        name="snr",
        value=share,
        warn=options.warn_snr_share,
        fail=options.fail_snr_share,
        percent=True,
        words=f"signal to noise of the gains is {measured:.0f}, {share:.0%} of the "
        f"{expected:.0f} that the model promises",
        cause="The data hold another sky than the model, or gains that moved: is the "
        "calibrator where the header says?",
    )
    return {"snr": measured, "promised_snr": expected}, [finding]


def _of_explained(
    whole: float, each: np.ndarray, names: Sequence[str], options: GatesConfig
) -> tuple[dict, list[Finding]]:
    """The share of the coherent power that the model explains, of all and of each antenna."""
    findings = [
        judged(
            name="explained",
            value=whole,
            warn=options.warn_explained,
            fail=options.fail_explained,
            percent=True,
            words=f"the model explains {whole:.0%} of the coherent power",
            cause="Something else is in the beam, or the calibrator is not: a wrong header, or a "
            "sky catalogue with holes. "
            "Compare declination and time of the headers with the log of the telescope",
        )
    ]
    worst = [names[a] for a in np.flatnonzero(each < options.fail_explained)]
    if 0 < len(worst) <= len(names) // 2 and whole >= options.fail_explained:
        words = (
            f"the data of {len(worst)} antennas do not fit the model: {', '.join(worst)}; "
            f"warn below {options.fail_explained:.0%}. Cables, or the antennas themselves"
        )
        findings.append(Finding("explained_by_antenna", "warn", words, float(len(worst))))
    return {"explained": whole}, findings


def _of_place(
    east: float, north: float, error: float, options: GatesConfig
) -> tuple[dict, list[Finding]]:
    """An offset of the calibrator (arcsec), and what is to be said of it."""
    numbers = {
        "offset_east_arcsec": east,
        "offset_north_arcsec": north,
        "offset_error_arcsec": error,
    }
    if not np.isfinite(error):
        why = "the place of the calibrator is not known: gains in intervals, or too few antennas"
        return numbers, [unknown(name="offset", why=why)]
    away = float(np.hypot(east, north))
    finding = judged(
        name="offset",
        value=away if away > _SIGNIFICANT * error else 0.0,
        warn=options.warn_offset_arcsec,
        unit="arcsec",
        fail=options.fail_offset_arcsec,
        words=f"the calibrator is {away:.1f} +- {error:.1f} arcsec from its place ({east:+.1f} "
        f"east, {north:+.1f} north)",
        cause="Another source than the calibrator, or a wrong clock or declination",
    )
    return numbers, [finding]


def after_apply(
    *,
    antenna_noise,
    channel_width_hz: float,
    integration_s: float,
    names: Sequence[str],
    of_set: Mapping[str, float],
    options: GatesConfig,
) -> tuple[dict, list[Finding]]:
    """Receivers of a calibrated group, and against those of the observation that its set was solved
    on.

    of_set  SEFD by station then; empty where it is not known
    """
    sefd = sefd_jy(
        antenna_noise=antenna_noise, channel_width_hz=channel_width_hz, integration_s=integration_s
    )
    numbers, findings = of_receivers(sefd, names, options)
    now = numbers["sefd_jy_by_antenna"]
    ratio = {name: now[name] / of_set[name] for name in now if of_set.get(name)}
    if len(ratio) < _FEW:
        return numbers, [
            *findings,
            unknown(
                name="sefd_change", why="noise when the set was solved is not known: not compared"
            ),
        ]
    moved = {
        name: r for name, r in ratio.items() if abs(np.log(r)) > np.log(options.antenna_sefd_change)
    }
    typical = float(np.median(list(ratio.values())))
    findings += [
        judged(
            name="sefd_change",
            value=max(typical, 1 / typical),
            warn=options.warn_sefd_change,
            fail=options.fail_sefd_change,
            unit="times",
            words=f"noise is {typical:.2f} times that of the set's own observation",
            cause="Gains changed since the calibrator: choose a nearer set, or look at the "
            "receivers",
        ),
        judged(
            name="antennas_changed",
            value=len(moved) / len(ratio),
            warn=options.warn_antennas_changed,
            percent=True,
            fail=options.fail_antennas_changed,
            words=f"{len(moved)} of {len(ratio)} antennas have another noise than when the "
            f"set was solved{': ' + ', '.join(moved) if moved else ''}",
            cause="Cables, amplifiers or attenuators changed since",
        ),
    ]
    return numbers | {"sefd_change": typical, "antennas_changed": sorted(moved)}, findings


def against_other_set(
    *,
    gain: np.ndarray,
    other: np.ndarray,
    freq_hz: np.ndarray,
    places_m: np.ndarray,
    names: Sequence[str],
    other_name: str,
    hours: float,
    options: GatesConfig,
) -> tuple[dict, list[Finding]]:
    """Gains (nant, nchan, npol) against a neighbouring set's, antenna by antenna: amplitude, phase
    in the middle of the band, delay; NaN where unknown.

    places_m  of the antennas, to the east and north, (nant, 2)

    What all antennas share is the calibrator's flux or the correlator's scale; a phase that grows
    along the array is a clock or a position; what one of them has alone is a cable.
    """
    amplitude, phase, delay_s = _change(gain, other, freq_hz)
    known = np.isfinite(amplitude) & (amplitude > 0)
    if known.sum() < 2 * _FEW:
        why = f"set {other_name} shares too few antennas: gains not compared"
        return {}, [unknown(name="gains_change", why=why)]
    typical = float(np.median(amplitude[known]))
    gradient, fitted = gradient_of(phase, known, places_m, float(freq_hz.mean()))
    left_deg = np.degrees(np.abs(np.angle(np.exp(1j * (phase - fitted)))))
    delay_ns = 1e9 * np.abs(delay_s - np.nanmedian(delay_s))
    with np.errstate(invalid="ignore"):
        louder = known & (
            np.abs(np.log(np.where(known, amplitude, 1) / typical))
            > np.log(options.antenna_gain_change)
        )
        turned = known & (left_deg > options.antenna_phase_change_deg)
        later = known & (delay_ns > options.antenna_delay_change_ns)
    by_antenna = {
        names[a]: {
            "amplitude": [_rounded(r, 3) for r in amplitude[a]],
            "phase_deg": [_rounded(d, 1) for d in left_deg[a]],
            "delay_ns": [_rounded(1e9 * d, 3) for d in delay_s[a]],
        }
        for a in np.flatnonzero(known.any(axis=1))
    }
    when = f"set {other_name}, {abs(hours):.1f} h {'later' if hours > 0 else 'earlier'}"
    findings = _of_change(
        typical=typical,
        share=float(louder[known].mean()),
        odd=[names[a] for a in np.flatnonzero((louder | turned | later).any(axis=1))],
        when=when,
        options=options,
    )
    if gradient and (away := gradient["arcsec"]) > options.gradient_arcsec:
        words = (
            f"phases moved along the array since {when}, as if the sky were {away:.1f} arcsec off "
            f"({gradient['east_arcsec']:+.1f} east, {gradient['north_arcsec']:+.1f} north): a "
            f"clock ({abs(gradient['east_arcsec']) / 15:.2f} s), or a position"
        )
        findings.append(Finding("gradient", "warn", words, away))
    return {
        "compared_with": other_name,
        "hours": hours,
        "gains_change": typical,
        "gains_change_by_antenna": by_antenna,
        "phase_gradient": gradient,
    }, findings


def _change(
    gain: np.ndarray, other: np.ndarray, freq_hz: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Amplitude ratio, phase in the middle of the band less what all share, and delay (s) of gains
    (nant, nchan, npol) over others; (nant, npol), NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of antennas without any solution
        ratio = gain / other
        amplitude = np.nanmedian(np.abs(ratio), axis=1)
        unit = np.where(np.isfinite(ratio), ratio / np.abs(ratio), 0)
        nchan = len(freq_hz)
        apart = max(1, nchan // 16)
        steps = (unit[:, apart:] * np.conj(unit[:, :-apart])).sum(axis=1)
        step_hz = apart * (freq_hz[-1] - freq_hz[0]) / max(1, nchan - 1)
        delay_s = np.where(steps != 0, np.angle(steps) / (2 * np.pi * step_hz), np.nan)
        straight = np.exp(-2j * np.pi * delay_s[:, None] * (freq_hz - freq_hz.mean())[:, None])
        middle = np.nansum(unit * straight, axis=1)
        phase = np.where(middle != 0, np.angle(middle), np.nan)
        common = np.nanmean(np.exp(1j * phase), axis=0)
        phase = np.angle(np.exp(1j * (phase - np.angle(common))))
    return amplitude, phase, delay_s


def gradient_of(
    phase: np.ndarray, known: np.ndarray, places_m: np.ndarray, freq_hz: np.ndarray
) -> tuple[dict | None, np.ndarray]:
    """The phase that grows along the array as a shift of the sky, and what it is at each antenna
    (nant, npol); None and 0 where it explains little."""
    use = known & np.isfinite(phase)
    rows, _ = np.nonzero(use)
    values = phase[use]
    turns = 2 * np.pi * freq_hz / SPEED_OF_LIGHT_M_S * (places_m - places_m[rows].mean(axis=0))
    design, kept = turns[rows], np.ones(len(values), bool)
    if len(values) < 3 * _FEW:
        return None, np.zeros_like(phase)
    fit = _best_shift(design, values)
    for _ in range(5):  # one odd antenna is none
        turned = np.exp(1j * (values - design @ fit))  # far apart, phases wrap
        common = np.angle(turned[kept].sum())
        left = np.angle(turned * np.exp(-1j * common))
        fit = fit + np.linalg.lstsq(design[kept], left[kept], rcond=None)[0]
        left = np.angle(np.exp(1j * (values - design @ fit - common)))
        scatter = _MAD * np.median(np.abs(left))
        kept = np.abs(left) <= max(3 * scatter, 1e-6)
    if scatter > _STRAIGHT * _MAD * np.median(np.abs(values)):
        return None, np.zeros_like(phase)
    east, north = np.degrees(fit) * 3600
    numbers = {
        "east_arcsec": round(float(east), 2),
        "north_arcsec": round(float(north), 2),
        "arcsec": round(float(np.hypot(east, north)), 2),
        "left_deg": round(float(np.degrees(scatter)), 2),
    }
    return numbers, np.broadcast_to((turns @ fit)[:, None] + common, phase.shape)


def _best_shift(design: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """The shift (rad, to the east and north) that most phases agree with, wrapped or not, to a
    step of the search."""
    steps = np.radians(np.arange(-_SEARCHED_ARCSEC, _SEARCHED_ARCSEC + 1, _STEP_ARCSEC) / 3600)
    east, north = (np.exp(-1j * design[:, k, None] * steps) for k in (0, 1))
    agree = np.abs((east * np.exp(1j * phases)[:, None]).T @ north)
    # of those that agree as well, the nearest
    agree -= 1e-3 * len(phases) * np.hypot(*np.meshgrid(steps, steps, indexing="ij")) / steps[-1]
    k, m = np.unravel_index(np.argmax(agree), agree.shape)
    return np.array([steps[k], steps[m]])


def _of_change(
    *, typical: float, share: float, odd: Sequence[str], when: str, options: GatesConfig
) -> list[Finding]:
    """What is to be said of gains that are `typical` times those of another set, a `share` of them
    changed beyond that, and the antennas that are `odd`."""
    findings = [
        judged(
            name="gains_change",
            value=max(typical, 1 / typical),
            warn=options.warn_gain_change,
            fail=options.fail_gain_change,
            unit="times",
            words=f"gains are {typical:.2f} times those of {when}",
            cause="The calibrator has not the flux of the model, is not there, or the correlator's "
            "scale was changed",
        ),
        judged(
            name="antennas_gain_change",
            value=share,
            warn=options.warn_antennas_changed,
            fail=options.fail_antennas_changed,
            percent=True,
            words=f"{share:.0%} of the gains changed in amplitude since {when}",
            cause="Probably fitted to noise, or cables were moved",
        ),
    ]
    if odd:
        limits = (
            f"{options.antenna_gain_change:g} times, {options.antenna_phase_change_deg:g} deg, "
            f"{options.antenna_delay_change_ns:g} ns"
        )
        words = f"changed since {when} (more than {limits}): {', '.join(odd)}"
        findings.append(Finding("antennas_odd", "warn", words, len(odd)))
    return findings


def _rounded(value: float, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
