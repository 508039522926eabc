"""Bright sources are fitted to the visibilities and taken out before imaging."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from contimg.calibration.field import Seen
from contimg.config import ImagingConfig
from contimg.imaging.stokes import StokesI
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, direction_cosines, meridian_vector
from contimg.sky.skymodel import Source, apparent_fluxes

log = logging.getLogger(__name__)
_FIT_CHANNELS = 16  # enough for sources that are to be subtracted
_MOST_BRIGHT = 30
_MOST_SHIFT_ARCSEC, _MOST_SLOPE, _LEAST_AMPLITUDE = 5.0, 3.0, 0.05
_CLEARLY_BETTER = 25.0  # of chi squared, for each amplitude


@dataclass(frozen=True)
class Subtracted:
    """A source that was taken out of the visibilities: as it was fitted, and its mean apparent flux
    at `freq_hz`, as an image has it."""

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
        sources=sources,
        mjd=stokes.rows.time_mjd,
        pointing=_pointing(stokes),
        freq_hz=middle,
        beam=stokes.beam,
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
    sources: Sequence[Source],
    rest: Sequence[Source],
    stokes: StokesI,
    image_weights: np.ndarray | None = None,
) -> tuple[list[Subtracted], list[str]]:
    """Fit bright sources to the visibilities (flux, spectral slope, position; per integration if
    that is clearly better) and subtract them, in place, with their beam at each integration and
    channel. Also returns the names of those not found.

    rest           the catalogue's other sources, which the fit takes as they are listed: a sparse
                   array cannot tell all from all
    image_weights  (ntime, nchan) by which an image averages the sources; default: the data's
    """
    if not sources:
        return [], []
    freq_hz, mjd = stokes.observation.freq_hz, stokes.rows.time_mjd
    log_freq, every = np.log(freq_hz / freq_hz.mean()), max(1, len(freq_hz) // _FIT_CHANNELS)
    number, few = len(sources), slice(every // 2, None, every)
    averaged_hz = stokes.averaged_hz
    predicted = _seen(stokes, sources).predictor(freq_hz=freq_hz[few], averaged_hz=averaged_hz)
    others = (
        _seen(stokes, rest).predictor(freq_hz=freq_hz[few], averaged_hz=averaged_hz)
        if rest
        else lambda t: np.float32(0)
    )
    normal, right = np.zeros((len(mjd), 4 * number, 4 * number)), np.zeros((len(mjd), 4 * number))
    for t in range(len(mjd)):
        turns = stokes.rows.uvw_m[t, :, :2, None] / SPEED_OF_LIGHT_M_S * freq_hz[few]
        root = np.sqrt(stokes.weights[t, :, few])
        normal[t], right[t] = _normal_equations(
            models=[predicted(t, [k]) * root for k in range(number)],
            vis=(stokes.vis[t, :, few] - others(t)) * root,
            turns=turns,
            log_freq=log_freq[few],
        )
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
    predicted = _seen(stokes, fitted).predictor(scale=scale, averaged_hz=averaged_hz)
    for t in range(len(mjd)):
        stokes.vis[t] -= predicted(t)
    _, apparent = apparent_fluxes(
        sources=fitted, mjd=mjd, pointing=_pointing(stokes), freq_hz=freq_hz, beam=stokes.beam
    )
    taken = []
    apparent *= scale[..., None]
    if image_weights is None:
        image_weights = stokes.weights.sum(axis=1, dtype=float)
    for source, was, values, track_jy in zip(
        fitted, sources, fit, apparent.transpose(1, 0, 2), strict=True
    ):
        summary = {
            "name": source.name,
            "ra_deg": source.ra_deg,
            "dec_deg": source.dec_deg,
            "fitted_over_catalogue": float(values[0]),
            "catalogue_jy": float(was.flux_jy(freq_hz.mean())),
            "mean_apparent_jy": float(np.average(track_jy, weights=image_weights)),
            "least_apparent_jy": float(track_jy.mean(axis=1).min()),
            "most_apparent_jy": float(track_jy.mean(axis=1).max()),
            "by_integration": bool(varying),
            "put_back": False,
        }
        log.info("subtracted %s", summary)
        taken.append(Subtracted(source, summary["mean_apparent_jy"], summary))
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


def _seen(stokes: StokesI, sources: Sequence[Source]) -> Seen:
    return Seen(stokes.observation, stokes.rows, stokes.app_dec_deg, sources, stokes.beam)


def _pointing(stokes: StokesI) -> np.ndarray:
    return meridian_vector(np.radians(stokes.app_dec_deg))


def _normal_equations(
    *, models: Sequence[np.ndarray], vis: np.ndarray, turns: np.ndarray, log_freq: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of V = sum_s M_s (a + b log_freq + 2 pi i (u dl + v dm)), in least squares: normal (4 ns, 4
    ns) and right (4 ns).

    models, vis  (nbaseline, nchan), times the root of the weights; turns: u, v in wavelengths,
                 (nbaseline, 2, nchan)
    """
    size = vis.size
    terms = np.empty((4 * len(models), 2 * size))
    for s, model in enumerate(models):
        east, north = (2j * np.pi * turns[:, k] * model for k in (0, 1))
        for k, term in enumerate((model, model * log_freq, east, north)):
            terms[4 * s + k, :size], terms[4 * s + k, size:] = term.real.ravel(), term.imag.ravel()
    # the four terms are of very different size
    scale = np.sqrt(np.einsum("ij,ij->i", terms, terms))
    terms /= np.where(scale > 0, scale, 1)[:, None]
    values = np.concatenate([vis.real.ravel(), vis.imag.ravel()])
    return (terms @ terms.T) * np.outer(scale, scale), (terms @ values) * scale


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
