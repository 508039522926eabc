"""Do parts of calibrated data tell the same story as the whole? Flux and place of the catalogued
sky in each part of the band and of the time; X against Y; gains that moved as if the sky had.

With V = a M (1 + 2 pi i (u dl + v dm)) for all sources together, amplitude and shift are
independent of each other in least squares: M and i u M are orthogonal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.calibration.refine import Coarse
from contimg.config import GatesConfig
from contimg.findings import Finding, judged, unknown
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S

_SIGNIFICANT = 6.0  # errors
_BAND_PARTS, _TIME_PARTS = 16, 3
_KNOWN = 0.03  # relative error of a part's flux: with more, nothing is said of parts


@dataclass(frozen=True)
class Parts:
    """Of parts of the data, (npart,): amplitude of the sky model, and its shift to the east and
    north in arcsec, each with the error that noise makes; NaN where there are no data."""

    amplitude: np.ndarray
    amplitude_error: np.ndarray
    shift_arcsec: np.ndarray  # (npart, 2)
    shift_error_arcsec: np.ndarray

    def as_json(self) -> dict:
        """For a result."""
        return {
            name: np.where(np.isfinite(values), values, 0).round(5).tolist()
            for name, values in (
                ("amplitude", self.amplitude),
                ("amplitude_error", self.amplitude_error),
                ("east_arcsec", self.shift_arcsec[:, 0]),
                ("north_arcsec", self.shift_arcsec[:, 1]),
                ("shift_error_arcsec", self.shift_error_arcsec[:, 0]),
            )
        }


@njit(parallel=True, cache=True)
def _sums(data, weights, model, gain, one, two, uv_m, waves_per_m):
    """Of each integration, channel and polarisation: w Re(V M*), w |M|^2, and the right and the
    normal terms of a shift (rad)."""
    ntime, nbaseline, nchan, npol = data.shape
    sums = np.zeros((ntime, nchan, npol, 7))
    for tc in prange(ntime * nchan):
        t, c = tc // nchan, tc % nchan
        for b in range(nbaseline):
            m = model[t, b, c]
            u = 2 * np.pi * uv_m[t, b, 0] * waves_per_m[c]
            v = 2 * np.pi * uv_m[t, b, 1] * waves_per_m[c]
            for p in range(npol):
                w = weights[t, b, c, p]
                if w > 0:
                    product = gain[t, one[b], p] * np.conj(gain[t, two[b], p])
                    seen = m * product
                    value = w * data[t, b, c, p] * np.conj(seen)
                    power = w * (seen.real**2 + seen.imag**2)
                    sums[t, c, p, 0] += value.real
                    sums[t, c, p, 1] += power
                    sums[t, c, p, 2] += u * value.imag
                    sums[t, c, p, 3] += v * value.imag
                    sums[t, c, p, 4] += u * u * power
                    sums[t, c, p, 5] += u * v * power
                    sums[t, c, p, 6] += v * v * power
    return sums


def sums(*, coarse: Coarse, model: np.ndarray, gain: np.ndarray, uvw_m, freq_hz) -> np.ndarray:
    """What `parts` needs of data without gains (ntime, nant, npol): (ntime, nchan, npol, 7)."""
    uv_m = np.ascontiguousarray(uvw_m[..., :2])
    waves_per_m = freq_hz / SPEED_OF_LIGHT_M_S
    data, weights, one, two = coarse.data, coarse.weights, coarse.ant_1, coarse.ant_2
    return _sums(data, weights, model, np.ascontiguousarray(gain), one, two, uv_m, waves_per_m)


def parts(found: np.ndarray) -> Parts:
    """From sums (npart, 7)."""
    right, power = found[:, 0], found[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = np.where(power > 0, right / power, np.nan)
        error = 1 / np.sqrt(power)
        east_2, cross, north_2 = found[:, 4], found[:, 5], found[:, 6]
        area = east_2 * north_2 - cross**2
        shift = np.stack(
            [
                (north_2 * found[:, 2] - cross * found[:, 3]) / area,
                (east_2 * found[:, 3] - cross * found[:, 2]) / area,
            ],
            axis=1,
        )
        shift_error = np.sqrt(np.stack([north_2, east_2], axis=1) / area[:, None])
    scale = np.where(np.abs(amplitude) > 0.1, amplitude, np.nan)[:, None]
    arcsec = np.degrees(1) * 3600
    return Parts(amplitude, error, shift / scale * arcsec, np.abs(shift_error / scale) * arcsec)


def pointing_east_deg(
    *, gain: np.ndarray, error: np.ndarray, east_deg: np.ndarray, fwhm_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far to the east of the array each antenna points, and the error, (nant,): from the slope
    of its amplitude while one source drifts through the beam.

    gain, error  free gains (ntime, nant, npol) against a model through the array's beam
    east_deg     of the source from the tracked direction, (ntime,)

    The voltage beam exp(-2 ln 2 x^2 / F^2), d aside, makes ln|g| = 4 ln 2 x d / F^2 + constant.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(np.abs(gain) > 0, np.log(np.abs(gain)), np.nan)
        weight = np.where(np.isfinite(size) & np.isfinite(error), 1 / error**2, 0)
        size = np.where(weight > 0, size, 0)
        total = weight.sum(axis=(0, 2))
        x = np.broadcast_to(east_deg[:, None, None], size.shape)
        middle = (weight * x).sum(axis=(0, 2)) / total
        # X and Y have amplitudes of their own
        mean = (weight * size).sum(axis=0) / weight.sum(axis=0)
        away = x - middle[:, None]
        power = (weight * away**2).sum(axis=(0, 2))
        slope = (weight * away * (size - mean)).sum(axis=(0, 2)) / power
        per_slope = fwhm_deg**2 / (4 * np.log(2))
        aside = slope * per_slope
        return aside - np.nanmedian(aside), per_slope / np.sqrt(power)


def judge(
    *, found: np.ndarray, freq_hz: np.ndarray, limits: GatesConfig
) -> tuple[dict, list[Finding]]:
    """Numbers and findings from `sums`."""
    ntime, nchan = found.shape[:2]
    whole = parts(found.sum(axis=(0, 1, 2))[None])
    band_parts = _BAND_PARTS if nchan % _BAND_PARTS == 0 else min(4, nchan)
    by_channel = found.sum(axis=(0, 2))
    channels = np.array_split(np.arange(nchan), band_parts)
    band = parts(np.stack([by_channel[part].sum(axis=0) for part in channels]))
    times = np.array_split(np.arange(ntime), min(_TIME_PARTS, ntime))
    by_time = found.sum(axis=(1, 2))
    time = parts(np.stack([by_time[part].sum(axis=0) for part in times]))
    polarisations = parts(found.sum(axis=(0, 1)))
    numbers = {
        "band": band.as_json(),
        "time": time.as_json(),
        "polarisations": polarisations.as_json(),
    }
    if not whole.amplitude_error[0] * np.sqrt(band_parts) < _KNOWN:
        why = "the catalogue's sky is too faint to compare parts of the band and of the time"
        return numbers, [unknown(name="parts", why=why)]
    middle_mhz = [freq_hz[part].mean() / 1e6 for part in channels]
    of_band = [f"at {mhz:.0f} MHz" for mhz in middle_mhz]
    of_time = [f"in integrations {part[0]} to {part[-1]}" for part in times]
    findings = [
        _odd(
            band,
            of_band,
            "band",
            limits,
            "A subband with another one's data, another time or "
            "gains of its own: see the spectra and the bandpass",
        ),
        _odd(
            time,
            of_time,
            "time",
            limits,
            "Gains that move in amplitude, a beam that points elsewhere, or interference",
        ),
        _odd(
            polarisations,
            ["in XX", "in YY"],
            "polarisations",
            limits,
            "Gains of one polarisation changed, or X and Y were exchanged",
        ),
    ]
    return numbers, findings


def _odd(parts: Parts, names: Sequence[str], name: str, limits: GatesConfig, cause: str) -> Finding:
    """The part whose flux is farthest from that of the others."""
    known = np.isfinite(parts.amplitude)
    if known.sum() < 2:
        return unknown(name=f"parts_{name}", why=f"{name}: fewer than two parts to compare")
    typical = float(np.median(parts.amplitude[known]))
    if known.sum() == 2:
        typical = float(np.mean(parts.amplitude[known]))
    away = np.where(known, np.abs(parts.amplitude / typical - 1), 0)
    away[away * typical < _SIGNIFICANT * parts.amplitude_error] = 0
    k = int(np.argmax(away))
    odd = [names[i] for i in np.flatnonzero(away > limits.warn_parts)]
    others = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    ratio = parts.amplitude[k] / typical
    return judged(
        name=f"parts_{name}",
        value=float(away[k]),
        warn=limits.warn_parts,
        fail=limits.fail_parts,
        percent=True,
        words=f"fluxes {names[k]} are {ratio:.2f} times those of the rest{others}",
        cause=cause,
    )
