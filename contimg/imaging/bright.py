"""Bright sources are fitted to the visibilities and taken out before imaging."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit, prange

from contimg.config import ImagingConfig
from contimg.imaging.stokes import StokesI
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, direction_cosines, meridian_vector, track
from contimg.sky.prediction import predict_integration
from contimg.sky.skymodel import Source, apparent_fluxes

log = logging.getLogger(__name__)
_FIT_CHANNELS = 96  # enough for a source that is to be subtracted
_MOST_BRIGHT = 12
_MOST_SHIFT_ARCSEC, _MOST_SLOPE, _LEAST_AMPLITUDE = 5.0, 3.0, 0.05
_CLEARLY_BETTER = 25.0  # of chi squared, for each amplitude


@dataclass(frozen=True)
class Subtracted:
    """A source that was taken out of the visibilities: as it was fitted, and its mean apparent flux
    at `freq_hz`."""

    source: Source
    mean_apparent_jy: float
    summary: dict


def bright_sources(
    sources: Sequence[Source], stokes: StokesI, options: ImagingConfig
) -> list[Source]:
    """Those whose apparent flux exceeds `subtract_above_jy` at some time, in the middle of the
    band; outside the image, which no clean reaches, `subtract_outside_above_jy`. The brightest come
    first, and there are not more than `_MOST_BRIGHT`."""
    if not sources:
        return []
    middle = np.array([stokes.observation.freq_hz.mean()])
    _, fluxes = apparent_fluxes(
        sources=sources, mjd=stokes.rows.time_mjd, pointing=_pointing(stokes), freq_hz=middle
    )
    most = fluxes.max(axis=(0, 2))
    places = np.array([[s.ra_deg, s.dec_deg] for s in sources]).T
    half = np.radians(options.imsize * options.cell_arcsec / 3600) / 2
    outside = (
        np.abs(direction_cosines(*places, *stokes.observation.phase_centre_deg)).max(axis=0) > half
    )
    level = np.where(outside, options.subtract_outside_above_jy, options.subtract_above_jy)
    chosen = [k for k in np.argsort(-most) if most[k] >= level[k]]
    return [sources[k] for k in chosen[:_MOST_BRIGHT]]


def subtract(
    sources: Sequence[Source], rest: Sequence[Source], stokes: StokesI
) -> tuple[list[Subtracted], list[str]]:
    """Fit bright sources to the visibilities (flux, spectral slope, position; per integration if
    that is clearly better) and subtract them, in place, with their beam at each integration and
    channel. Also returns the names of those not found.

    rest  the catalogue's other sources, which the fit takes as they are listed: a sparse array
          cannot tell all from all
    """
    if not sources:
        return [], []
    freq_hz, mjd = stokes.observation.freq_hz, stokes.rows.time_mjd
    number = len(sources)
    every = slice(None, None, max(1, len(freq_hz) * max(4, number) // (4 * _FIT_CHANNELS)))
    few_hz, log_freq = freq_hz[every], np.log(freq_hz / freq_hz.mean())
    predicted = _predictor(sources, stokes, few_hz)
    others = _predictor(rest, stokes, few_hz) if rest else lambda t: np.float32(0)
    normal, right = np.zeros((len(mjd), 4 * number, 4 * number)), np.zeros((len(mjd), 4 * number))
    for t in range(len(mjd)):
        models = np.stack([predicted(t, [k]) for k in range(number)])
        uv = stokes.rows.uvw_m[t, :, :2] / SPEED_OF_LIGHT_M_S
        vis, weights = stokes.vis[t, :, every] - others(t), stokes.weights[t, :, every]
        sums = _normal_equations(models, vis, weights, uv, few_hz, log_freq[every])
        normal[t], right[t] = (x.sum(axis=0) for x in sums)
    fit = _solve_bounded(normal.sum(axis=0), right.sum(axis=0)).reshape(number, 4)
    found = fit[:, 0] > 0
    absent = [one.name for one, there in zip(sources, found, strict=True) if not there]
    if absent:
        log.warning("bright sources %s were not found in the data: not subtracted", absent)
    if not found.any():
        return [], absent
    # Amplitudes by integration, on top of the common solution: better only when much more than
    # noise is explained.
    by_time = np.tile(fit[:, 0], (len(mjd), 1))
    amplitudes, gained = np.flatnonzero(found) * 4, 0.0
    for t in range(len(mjd)):
        rest = (right[t] - normal[t] @ fit.ravel())[amplitudes]
        change = np.linalg.lstsq(normal[t][np.ix_(amplitudes, amplitudes)], rest, rcond=1e-8)[0]
        gained += change @ rest
        by_time[t, found] += change
    varying = gained > _CLEARLY_BETTER * by_time[:, found].size
    fit = fit[found]
    by_time = by_time[:, found]
    sources = [one for one, there in zip(sources, found, strict=True) if there]
    scale = by_time / fit[:, 0] if varying else np.ones_like(by_time)
    fitted = [
        _as_fitted(source, stokes, values) for source, values in zip(sources, fit, strict=True)
    ]
    predicted = _predictor(fitted, stokes, freq_hz, scale)
    for t in range(len(mjd)):
        stokes.vis[t] -= predicted(t)
    weights = stokes.time_weights[:, None] * stokes.freq_weights
    _, apparent = apparent_fluxes(
        sources=fitted, mjd=mjd, pointing=_pointing(stokes), freq_hz=freq_hz
    )
    means = np.einsum("tsc,ts,tc->s", apparent, scale, weights) / weights.sum()
    taken = []
    tracks_jy = (apparent.mean(axis=2) * scale).T
    for source, was, values, mean_jy, track_jy in zip(
        fitted, sources, fit, means, tracks_jy, strict=True
    ):
        summary = {
            "name": source.name,
            "ra_deg": source.ra_deg,
            "dec_deg": source.dec_deg,
            "fitted_over_catalogue": float(values[0]),
            "catalogue_jy": float(was.flux_jy(freq_hz.mean())),
            "mean_apparent_jy": float(mean_jy),
            "least_apparent_jy": float(track_jy.min()),
            "most_apparent_jy": float(track_jy.max()),
            "by_integration": bool(varying),
            "put_back": False,
        }
        log.info("subtracted %s", summary)
        taken.append(Subtracted(source, float(mean_jy), summary))
    return taken, absent


def _solve_bounded(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares for (amplitude, slope, shifts) of each source; terms that come out of bounds
    are set to 0 and the rest is fitted again: a source that is not there, a spectrum no source has,
    another place."""
    free = normal.diagonal() > 0
    while True:
        size = np.sqrt(normal.diagonal()[free])
        fit = np.zeros(len(right))
        fit[free] = (
            np.linalg.lstsq(
                normal[np.ix_(free, free)] / np.outer(size, size), right[free] / size, rcond=1e-7
            )[0]
            / size
        )
        terms = fit.reshape(-1, 4)
        amplitude = np.where(terms[:, 0] > 0, terms[:, 0], np.inf)
        odd = np.zeros(terms.shape, bool)
        odd[:, 1] = np.abs(terms[:, 1] / amplitude) > _MOST_SLOPE
        odd[:, 2:] = (
            np.degrees(np.hypot(terms[:, 2], terms[:, 3]) / amplitude) * 3600 > _MOST_SHIFT_ARCSEC
        )[:, None]
        odd[terms[:, 0] < _LEAST_AMPLITUDE] = True
        odd = odd.ravel() & free
        if not odd.any():
            return fit
        free &= ~odd


def _pointing(stokes: StokesI) -> np.ndarray:
    return meridian_vector(np.radians(stokes.app_dec_deg))


def _predictor(sources, stokes: StokesI, freq_hz: np.ndarray, scale: np.ndarray | float = 1.0):
    """A function that gives the visibilities (nbaseline, nchan) of an integration, of all sources
    or of some."""
    rows, observation = stokes.rows, stokes.observation
    vectors, fluxes = apparent_fluxes(
        sources=sources, mjd=rows.time_mjd, pointing=_pointing(stokes), freq_hz=freq_hz
    )
    fluxes *= np.atleast_2d(scale)[..., None]
    axes = track(*observation.phase_centre_deg, rows.time_mjd).axes

    def predicted(t: int, which: slice | list[int] = slice(None)) -> np.ndarray:
        return predict_integration(
            vectors=vectors[t, which],
            fluxes_jy=fluxes[t, which],
            phase_axes=axes[t],
            positions_m=observation.positions_m,
            ant_1=rows.ant_1,
            ant_2=rows.ant_2,
            freq_hz=freq_hz,
        )

    return predicted


@njit(parallel=True, cache=True)
def _normal_equations(models, vis, weights, uv_s, freq_hz, log_freq):
    """Of V = sum_s M_s (a + b log_freq + 2 pi i (u dl + v dm)): normal (part, 4 ns, 4 ns) and right
    (part, 4 ns), to be added."""
    ns, nbaseline = models.shape[0], vis.shape[0]
    parts = 16
    normal, right = np.zeros((parts, 4 * ns, 4 * ns)), np.zeros((parts, 4 * ns))
    for part in prange(parts):
        real, imag = np.empty(4 * ns), np.empty(4 * ns)
        for b in range(part, nbaseline, parts):
            for c in range(vis.shape[1]):
                w = weights[b, c]
                if w > 0:
                    east = 2j * np.pi * uv_s[b, 0] * freq_hz[c]
                    north = 2j * np.pi * uv_s[b, 1] * freq_hz[c]
                    for s in range(ns):
                        m = models[s, b, c]
                        for k, factor in (
                            (0, 1 + 0j),
                            (1, log_freq[c] + 0j),
                            (2, east),
                            (3, north),
                        ):
                            real[4 * s + k], imag[4 * s + k] = (m * factor).real, (m * factor).imag
                    v = vis[b, c]
                    for i in range(4 * ns):
                        right[part, i] += w * (v.real * real[i] + v.imag * imag[i])
                        for j in range(i + 1):
                            normal[part, i, j] += w * (real[i] * real[j] + imag[i] * imag[j])
        for i in range(4 * ns):
            for j in range(i):
                normal[part, j, i] = normal[part, i, j]
    return normal, right


def _as_fitted(source: Source, stokes: StokesI, fit: np.ndarray) -> Source:
    """A source with the fitted flux, spectral index and position."""
    amplitude, slope = fit[0], fit[1] / fit[0]
    steeper = slope * np.log10(source.reference_hz / stokes.observation.freq_hz.mean())
    terms = list(source.log_flux) + [0.0] * (2 - len(source.log_flux))
    terms[0] += np.log10(amplitude) + steeper
    terms[1] += slope
    east_deg, north_deg = np.degrees(fit[2:] / amplitude)
    ra_deg = source.ra_deg + east_deg / np.cos(np.radians(source.dec_deg))
    return replace(
        source,
        log_flux=tuple(terms),
        ra_deg=float(ra_deg),
        dec_deg=float(source.dec_deg + north_deg),
    )
