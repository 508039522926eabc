"""What is imaged: Stokes I of CORRECTED_DATA, without bright sources and averaged; read once, never written back.

Visibilities follow the Measurement Set's convention (contimg.geometry). Averaging over channels takes flux from sources far
from the phase centre on long baselines, so short ones are averaged over more: the loss at the 30 % point of the beam,
weighted as the image is, stays below `MAX_LOSS`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg import measurement_set as mset
from contimg.config import ImagingConfig
from contimg.errors import ImagingError
from contimg.geometry import SPEED_OF_LIGHT_M_S, direction_cosines, meridian_vector, track
from contimg.prediction import predict_integration
from contimg.skymodel import Source, apparent_fluxes

log = logging.getLogger(__name__)

MAX_LOSS = 0.003
_PLANNED_LOSS = 0.9 * MAX_LOSS  # planned with the weights of whole rows
_BEAM_EDGE_DEG = 1.77  # the beam's 30 % point at 1.4 GHz
_MOST_CHANNELS = 48
_PLANNED_FREQUENCIES = 16
_FIT_CHANNELS = 96  # enough for a source that is to be subtracted
_MOST_BRIGHT = 12
_MOST_SHIFT_ARCSEC, _MOST_SLOPE, _LEAST_AMPLITUDE = 5.0, 3.0, 0.05
_CLEARLY_BETTER = 25.0  # of chi squared, for each amplitude


@dataclass(frozen=True)
class StokesI:
    """Stokes I of the cross-correlations: visibilities (ntime, nbaseline, nchan) and weights in Jy^-2, 0 where flagged."""

    observation: mset.Observation
    rows: mset.Rows
    vis: np.ndarray
    weights: np.ndarray
    app_dec_deg: float
    rows_used: int  # of ntime * nbaseline: cross-correlations in the uvrange

    @property
    def time_weights(self) -> np.ndarray:
        """Sum of the weights of each integration."""
        return self.weights.sum(axis=(1, 2), dtype=np.float64)

    @property
    def freq_weights(self) -> np.ndarray:
        """Sum of the weights of each channel."""
        return self.weights.sum(axis=(0, 1), dtype=np.float64)


@dataclass(frozen=True)
class Averaged:
    """Averaged visibilities: uvw in wavelengths (n, 3), visibilities (n,), natural weights in Jy^-2 (n,)."""

    uvw_lambda: np.ndarray
    vis: np.ndarray
    weights: np.ndarray
    loss: np.ndarray  # (n,): what the averaging takes from a source at the edge of the field


@njit(parallel=True, cache=True)
def _stokes_i(data, flags, weights, use, vis, weight):
    """I = (XX + YY) / 2 with weight 1 / var(I); 0 where either is flagged. data (nbaseline, nchan, 2)."""
    for b in prange(len(use)):
        for c in range(data.shape[1]):
            one, two = weights[b, c, 0], weights[b, c, 1]
            if use[b] and not (flags[b, c, 0] or flags[b, c, 1]) and one > 0 and two > 0:
                vis[b, c] = np.float32(0.5) * (data[b, c, 0] + data[b, c, 1])
                weight[b, c] = 4 * one * two / (one + two)
            else:
                vis[b, c] = 0
                weight[b, c] = 0


def read_stokes_i(ms: Path, app_dec_deg: float, uvrange: str | None = None) -> StokesI:
    """One pass over CORRECTED_DATA, FLAG and WEIGHT_SPECTRUM. Raises ImagingError when nothing is left to image."""
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    ntime, nbaseline = rows.shape
    nchan = len(observation.freq_hz)
    vis = np.empty((ntime, nbaseline, nchan), np.complex64)
    weights = np.empty(vis.shape, np.float32)
    data, flags = np.empty((nbaseline, nchan, 2), np.complex64), np.empty((nbaseline, nchan, 2), bool)
    spectrum = np.empty(flags.shape, np.float32)
    use = (rows.ant_1 != rows.ant_2) & ~mset.outside(uvrange, rows.uvw_m, observation.freq_hz)
    with mset.open_table(ms) as table:
        for t in range(ntime):
            for name, values in (("CORRECTED_DATA", data), ("FLAG", flags), ("WEIGHT_SPECTRUM", spectrum)):
                table.getcolnp(name, values, t * nbaseline, nbaseline)
            _stokes_i(data, flags, spectrum, use[t], vis[t], weights[t])
    if not weights.any():
        raise ImagingError(f"{ms}: no visibility has both polarisations unflagged. Nothing to image.")
    return StokesI(observation, rows, vis, weights, app_dec_deg, np.count_nonzero(use))


# -- bright sources ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subtracted:
    """A source that was taken out of the visibilities: as it was fitted, and its mean apparent flux at `freq_hz`."""

    source: Source
    mean_apparent_jy: float
    summary: dict


def bright_sources(sources: Sequence[Source], stokes: StokesI, options: ImagingConfig) -> list[Source]:
    """Those whose apparent flux exceeds `subtract_above_jy` at some time, in the middle of the band; outside the image, which no
    clean reaches, `subtract_outside_above_jy`. The brightest come first, and there are not more than `_MOST_BRIGHT`."""
    if not sources:
        return []
    middle = np.array([stokes.observation.freq_hz.mean()])
    _, fluxes = apparent_fluxes(sources, stokes.rows.time_mjd, _pointing(stokes), middle)
    most = fluxes.max(axis=(0, 2))
    places = np.array([[s.ra_deg, s.dec_deg] for s in sources]).T
    half = np.radians(options.imsize * options.cell_arcsec / 3600) / 2
    outside = np.abs(direction_cosines(*places, *stokes.observation.phase_centre_deg)).max(axis=0) > half
    level = np.where(outside, options.subtract_outside_above_jy, options.subtract_above_jy)
    chosen = [k for k in np.argsort(-most) if most[k] >= level[k]]
    return [sources[k] for k in chosen[:_MOST_BRIGHT]]


def subtract(sources: Sequence[Source], rest: Sequence[Source], stokes: StokesI) -> tuple[list[Subtracted], list[str]]:
    """Fit bright sources to the visibilities (flux, spectral slope, position; per integration if that is clearly better) and
    subtract them, in place, with their beam at each integration and channel. Also returns the names of those not found.

    rest  the catalogue's other sources, which the fit takes as they are listed: a sparse array cannot tell all from all
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
    # Amplitudes by integration, on top of the common solution: better only when much more than noise is explained.
    by_time = np.tile(fit[:, 0], (len(mjd), 1))
    amplitudes, gained = np.flatnonzero(found) * 4, 0.0
    for t in range(len(mjd)):
        rest = (right[t] - normal[t] @ fit.ravel())[amplitudes]
        change = np.linalg.lstsq(normal[t][np.ix_(amplitudes, amplitudes)], rest, rcond=1e-8)[0]
        gained += change @ rest
        by_time[t, found] += change
    varying = gained > _CLEARLY_BETTER * by_time[:, found].size
    fit, by_time, sources = fit[found], by_time[:, found], [one for one, there in zip(sources, found, strict=True) if there]
    scale = by_time / fit[:, 0] if varying else np.ones_like(by_time)
    fitted = [_as_fitted(source, stokes, values) for source, values in zip(sources, fit, strict=True)]
    predicted = _predictor(fitted, stokes, freq_hz, scale)
    for t in range(len(mjd)):
        stokes.vis[t] -= predicted(t)
    weights = stokes.time_weights[:, None] * stokes.freq_weights
    _, apparent = apparent_fluxes(fitted, mjd, _pointing(stokes), freq_hz)
    means = np.einsum("tsc,ts,tc->s", apparent, scale, weights) / weights.sum()
    taken = []
    tracks_jy = (apparent.mean(axis=2) * scale).T
    for source, was, values, mean_jy, track_jy in zip(fitted, sources, fit, means, tracks_jy, strict=True):
        summary = {
            "name": source.name, "ra_deg": source.ra_deg, "dec_deg": source.dec_deg, "fitted_over_catalogue": float(values[0]),
            "catalogue_jy": float(was.flux_jy(freq_hz.mean())), "mean_apparent_jy": float(mean_jy),
            "least_apparent_jy": float(track_jy.min()), "most_apparent_jy": float(track_jy.max()),
            "by_integration": bool(varying), "put_back": False,
        }  # fmt: skip
        log.info("subtracted %s", summary)
        taken.append(Subtracted(source, float(mean_jy), summary))
    return taken, absent


def _solve_bounded(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares for (amplitude, slope, shifts) of each source; terms that come out of bounds are set to 0 and the rest is
    fitted again: a source that is not there, a spectrum no source has, another place."""
    free = normal.diagonal() > 0
    while True:
        size = np.sqrt(normal.diagonal()[free])
        fit = np.zeros(len(right))
        fit[free] = np.linalg.lstsq(normal[np.ix_(free, free)] / np.outer(size, size), right[free] / size, rcond=1e-7)[0] / size
        terms = fit.reshape(-1, 4)
        amplitude = np.where(terms[:, 0] > 0, terms[:, 0], np.inf)
        odd = np.zeros(terms.shape, bool)
        odd[:, 1] = np.abs(terms[:, 1] / amplitude) > _MOST_SLOPE
        odd[:, 2:] = (np.degrees(np.hypot(terms[:, 2], terms[:, 3]) / amplitude) * 3600 > _MOST_SHIFT_ARCSEC)[:, None]
        odd[terms[:, 0] < _LEAST_AMPLITUDE] = True
        odd = odd.ravel() & free
        if not odd.any():
            return fit
        free &= ~odd


def _pointing(stokes: StokesI) -> np.ndarray:
    return meridian_vector(np.radians(stokes.app_dec_deg))


def _predictor(sources, stokes: StokesI, freq_hz: np.ndarray, scale: np.ndarray | float = 1.0):
    """A function that gives the visibilities (nbaseline, nchan) of an integration, of all sources or of some."""
    rows, observation = stokes.rows, stokes.observation
    vectors, fluxes = apparent_fluxes(sources, rows.time_mjd, _pointing(stokes), freq_hz)
    fluxes *= np.atleast_2d(scale)[..., None]
    axes = track(*observation.phase_centre_deg, rows.time_mjd).axes
    places = observation.positions_m, rows.ant_1, rows.ant_2

    def predicted(t: int, which: slice | list[int] = slice(None)) -> np.ndarray:
        return predict_integration(vectors[t, which], fluxes[t, which], axes[t], *places, freq_hz)

    return predicted


@njit(parallel=True, cache=True)
def _normal_equations(models, vis, weights, uv_s, freq_hz, log_freq):
    """Of V = sum_s M_s (a + b log_freq + 2 pi i (u dl + v dm)): normal (part, 4 ns, 4 ns) and right (part, 4 ns), to be added."""
    ns, nbaseline = models.shape[0], vis.shape[0]
    parts = 16
    normal, right = np.zeros((parts, 4 * ns, 4 * ns)), np.zeros((parts, 4 * ns))
    for part in prange(parts):
        real, imag = np.empty(4 * ns), np.empty(4 * ns)
        for b in range(part, nbaseline, parts):
            for c in range(vis.shape[1]):
                w = weights[b, c]
                if w > 0:
                    east, north = 2j * np.pi * uv_s[b, 0] * freq_hz[c], 2j * np.pi * uv_s[b, 1] * freq_hz[c]
                    for s in range(ns):
                        m = models[s, b, c]
                        for k, factor in ((0, 1 + 0j), (1, log_freq[c] + 0j), (2, east), (3, north)):
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
    return replace(source, log_flux=tuple(terms), ra_deg=float(ra_deg), dec_deg=float(source.dec_deg + north_deg))


# -- averaging -------------------------------------------------------------------------------------------------------------


def edge_deg(options: ImagingConfig) -> float:
    """How far from the phase centre a source must not lose flux: the beam's 30 % point, or the corner of a smaller image."""
    return min(_BEAM_EDGE_DEG, options.imsize * options.cell_arcsec / 3600 / np.sqrt(2))


def smearing(length_m: np.ndarray, width_hz: float, channels: np.ndarray, edge_deg: float) -> np.ndarray:
    """Share of the amplitude that averaging over so many channels takes from a source `edge_deg` off, on top of what one
    channel takes: 1 - sinc(n x) / sinc(x), x = width * delay (Bridle & Schwab 1999)."""
    x = width_hz * length_m * np.sin(np.radians(edge_deg)) / SPEED_OF_LIGHT_M_S
    return 1 - np.sinc(channels * x) / np.sinc(x)


def plan_averaging(stokes: StokesI, options: ImagingConfig, uniform: bool) -> np.ndarray:
    """How many channels to average on each baseline (nbaseline,): the most that keep the loss below MAX_LOSS, weighted as the
    image is (with the weights at some frequencies); `uniform`: the same number on all."""
    rows, freq_hz, width_hz = stokes.rows, stokes.observation.freq_hz, stokes.observation.channel_width_hz
    nchan = len(freq_hz)
    if options.average_channels:
        return np.full(rows.shape[1], options.average_channels)
    return _plan(_lengths(rows), _baseline_weights(stokes, options), width_hz, nchan, uniform, edge_deg(options))


def _baseline_weights(stokes: StokesI, options: ImagingConfig) -> np.ndarray:
    """About the sum of the image's weights on each baseline, from those at some frequencies."""
    freq_hz, rows = stokes.observation.freq_hz, stokes.rows
    few_hz = freq_hz[:: max(1, len(freq_hz) // _PLANNED_FREQUENCIES)]
    uvw = (rows.uvw_m[:, :, None] * few_hz[:, None] / SPEED_OF_LIGHT_M_S).reshape(-1, 3)
    weights = image_weights(uvw, np.repeat(stokes.weights.sum(axis=2).ravel(), len(few_hz)), options)
    return weights.reshape(*rows.shape, -1).sum(axis=(0, 2))


def _lengths(rows: mset.Rows) -> np.ndarray:
    return np.hypot(*rows.uvw_m.mean(axis=0)[:, :2].T)


def _plan(length_m: np.ndarray, weights: np.ndarray, width_hz: float, nchan: int, uniform: bool, edge: float) -> np.ndarray:
    if not weights.any():
        weights = np.ones_like(length_m)
    most = min(_MOST_CHANNELS, nchan)
    x = np.maximum(width_hz * length_m * np.sin(np.radians(edge)) / SPEED_OF_LIGHT_M_S, 1e-9)

    # The fewest visibilities, sum 1 / n, for a given loss, sum w (x n)^2, have n proportional to (w x^2)^(-1/3).
    shape = np.maximum(weights / weights.sum(), 1e-3 / len(x)) * x**2
    shape = (shape / np.median(shape)) ** (-1 / 3)

    def channels(factor: float) -> np.ndarray:
        return np.clip(np.floor(factor * shape + 0.5), 1, most).astype(np.int64)

    def loss(counts) -> float:
        return float(np.average(smearing(length_m, width_hz, counts, edge), weights=weights))

    if uniform:
        counts = [n for n in range(1, most + 1) if nchan % n == 0 and loss(np.full(len(x), n)) <= _PLANNED_LOSS]
        return np.full(len(x), max(counts, default=1))
    factors = [factor for factor in np.geomspace(0.1, 100, 600) if loss(channels(factor)) <= _PLANNED_LOSS]
    return channels(max(factors, default=0))


def average(stokes: StokesI, counts: np.ndarray, edge_deg: float) -> Averaged:
    """Weighted means over `counts` channels of each baseline, at their weighted mean frequency; weight 0 where all is flagged."""
    ntime, _, nchan = stokes.vis.shape
    starts = np.concatenate([[0], np.cumsum(-(-nchan // counts))])
    size = starts[-1]
    uvw, vis, weights = (np.empty((ntime * size, 3)), np.empty(ntime * size, np.complex64), np.empty(ntime * size, np.float32))
    per_m = stokes.observation.freq_hz / SPEED_OF_LIGHT_M_S
    for t in range(ntime):
        part = slice(t * size, (t + 1) * size)
        _average(
            stokes.vis[t], stokes.weights[t], stokes.rows.uvw_m[t], counts, starts, per_m, vis[part], weights[part], uvw[part]
        )
    loss = smearing(_lengths(stokes.rows), stokes.observation.channel_width_hz, counts, edge_deg).astype(np.float32)
    return Averaged(uvw, vis, weights, np.tile(np.repeat(loss, np.diff(starts)), ntime))


@njit(parallel=True, cache=True)
def _average(vis, weights, uvw_m, counts, starts, per_m, out, out_weights, uvw):
    nchan = vis.shape[1]
    for b in prange(len(counts)):
        for k in range(starts[b + 1] - starts[b]):
            total, weight, where = np.complex64(0), np.float32(0), 0.0
            first, last = k * counts[b], min((k + 1) * counts[b], nchan)
            for c in range(first, last):
                w = weights[b, c]
                total += w * vis[b, c]
                weight += w
                where += w * per_m[c]
            i = starts[b] + k
            out_weights[i] = weight
            out[i] = total / weight if weight > 0 else np.complex64(0)
            scale = where / weight if weight > 0 else 0.5 * (per_m[first] + per_m[last - 1])
            for axis in range(3):
                uvw[i, axis] = uvw_m[b, axis] * scale


# -- imaging weights -------------------------------------------------------------------------------------------------------


def image_weights(uvw_lambda: np.ndarray, natural: np.ndarray, options: ImagingConfig) -> np.ndarray:
    """Weights (n,) of `imaging.weighting`, with the taper; 0 beyond the resolution of the pixels.

    Briggs (1995), chapter 3: density of the natural weights on the image's own uv grid.
    """
    cell_lambda = 1 / (options.imsize * np.radians(options.cell_arcsec / 3600))
    robust = {"natural": np.inf, "uniform": -np.inf}.get(options.weighting, options.robust)
    weights = _briggs(uvw_lambda, natural.copy(), options.imsize, cell_lambda, robust)
    if options.taper_arcsec:
        # A Gaussian of this FWHM in the image: exp(-(pi theta b)^2 / (4 ln 2)).
        squares = uvw_lambda[:, 0] ** 2 + uvw_lambda[:, 1] ** 2
        weights *= np.exp(-((np.pi * np.radians(options.taper_arcsec / 3600)) ** 2) / (4 * np.log(2)) * squares)
    return weights


@njit(cache=True)
def _briggs(uvw, weights, cells, cell_size, robust):
    half = cells // 2
    density = np.zeros((cells, half + 2), np.float32)
    for pass_ in range(2):
        scale = 0.0
        if pass_ == 1 and robust != np.inf:
            total, squares = 0.0, 0.0
            for i in range(cells):
                for j in range(half + 2):
                    squares += density[i, j] ** 2
                    total += density[i, j]
            scale = (5 * 10.0**-robust) ** 2 / (squares / total) if robust != -np.inf else np.inf
        for r in range(len(weights)):
            if weights[r] == 0:
                continue
            x, y = uvw[r, 0] / cell_size, uvw[r, 1] / cell_size
            if y < 0:
                x, y = -x, -y
            i, j = int(np.floor(x + 0.5)) + half, int(np.floor(y + 0.5))
            if i < 0 or i >= cells or j >= half + 2:
                if pass_ == 1:
                    weights[r] = 0
            elif pass_ == 0:
                density[i, j] += weights[r]
            elif scale == np.inf:
                weights[r] /= density[i, j]
            else:
                weights[r] /= 1 + density[i, j] * scale
    return weights


def write_measurement_set(stokes: StokesI, options: ImagingConfig, path: Path) -> Path:
    """Averaged visibilities for an imager that reads files: DATA with XX = YY = I, as many channels in one on all baselines."""
    observation, rows = stokes.observation, stokes.rows
    ntime, nbaseline, nchan = stokes.vis.shape
    counts = plan_averaging(stokes, options, uniform=True)
    channels = int(counts[0])
    few = -(-nchan // channels)
    weight = np.maximum(stokes.freq_weights, 1e-30)
    parts = [slice(k, k + channels) for k in range(0, nchan, channels)]
    freq_hz = np.array([np.average(observation.freq_hz[p], weights=weight[p]) for p in parts])
    coarse = replace(observation, freq_hz=freq_hz, channel_width_hz=observation.channel_width_hz * channels)
    starts, per_m, size = np.arange(nbaseline + 1) * few, observation.freq_hz / SPEED_OF_LIGHT_M_S, nbaseline * few
    vis, weights, uvw = np.empty(size, np.complex64), np.empty(size, np.float32), np.empty((size, 3))
    row_weights = np.empty((ntime, nbaseline), np.float32)
    with mset.creating(path, coarse, rows, few) as table:
        for t in range(ntime):
            _average(stokes.vis[t], stokes.weights[t], rows.uvw_m[t], counts, starts, per_m, vis, weights, uvw)
            data, weight = (np.repeat(values.reshape(nbaseline, few, 1), 2, axis=2) for values in (vis, weights))
            for name, values in (("DATA", data), ("FLAG", weight == 0), ("WEIGHT_SPECTRUM", weight / 2)):
                table.putcol(name, values, t * nbaseline, nbaseline)
            row_weights[t] = weight.sum(axis=(1, 2)) / 4
        mset.put_row_weights(table, np.repeat(row_weights.reshape(-1, 1) / few, 2, axis=1))
    return path


def expectations(stokes: StokesI, options: ImagingConfig) -> dict:
    """For an imager that does not say so: the noise (Jy/beam) to be expected of the image's weights, and what uniform averaging
    takes from a source at the edge."""
    averaged = average(stokes, plan_averaging(stokes, options, uniform=False), edge_deg(options))
    weights = image_weights(averaged.uvw_lambda, averaged.weights, options)
    counts, width_hz = plan_averaging(stokes, options, uniform=True), stokes.observation.channel_width_hz
    loss = smearing(_lengths(stokes.rows), width_hz, counts, edge_deg(options))
    return {"thermal_jy": expected_noise(weights, averaged.weights),
            "averaging_loss": float(np.average(loss, weights=_baseline_weights(stokes, options)))}  # fmt: skip


def expected_noise(weights: np.ndarray, natural: np.ndarray) -> float:
    """Noise of a weighted mean of visibilities, whose variances are 1 / natural."""
    used = natural > 0
    return float(np.sqrt(np.sum(weights[used].astype(np.float64) ** 2 / natural[used])) / weights.sum(dtype=np.float64))
