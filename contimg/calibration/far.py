"""Sources in the far sidelobes of the dishes (Cas A, Cyg A, Tau A, Vir A, the Sun): fitted to
calibrated data and taken out, when they matter.

Their fringes turn so fast that the correlator's own averaging leaves them on few baselines; there
they are looked for channel by channel. How much is nothing is known from the same fit to places
beside the source where nothing is. Arrays are (time, baseline, channel, polarisation), in Jy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from contimg.calibration.solver import solve_grid
from contimg.sky.far import FarSource
from contimg.sky.geometry import track
from contimg.sky.prediction import Smearing, predict_integration
from contimg.visibilities import measurement_set as mset

_SEEN, _LEFT = 0.3, 0.03  # of the amplitude, after smearing: to find a source, and to take it out
_BESIDE_RAD = np.radians([-6.0, -3.0, 3.0, 6.0])  # of hour angle, of declination: nothing is there
_TIMES, _CHANNELS = 4, 64  # that a source is looked for in
_CLEARLY = 3.0  # times what is found beside
_FREE_BETTER = 1.5  # times as much explained, for gains of each antenna
_LEAST_JY = 0.1
_LEAST_ROWS = 20
_ALIKE = 0.2  # to the middle of the field: baselines that cannot tell them apart are not asked


@dataclass(frozen=True)
class Found:
    """What was found of a source; `apparent_jy` mean of the polarisations, subtracted or not."""

    name: str
    distance_deg: float
    elevation_deg: float
    apparent_jy: float
    beside_jy: float  # what the same fit finds where nothing is
    subtracted: bool
    free_gains: bool

    def as_json(self) -> dict:
        """For the stage's result."""
        return {
            "name": self.name,
            "distance_deg": round(self.distance_deg, 2),
            "elevation_deg": round(self.elevation_deg, 2),
            "apparent_jy": round(self.apparent_jy, 4),
            "beside_jy": round(self.beside_jy, 4),
            "subtracted": self.subtracted,
            "free_gains": self.free_gains,
        }


@dataclass(frozen=True)
class _Fringes:
    """Of one direction, on the baselines where it is left."""

    vectors: np.ndarray  # (ntime, 3)
    rows: np.ndarray  # numbers of the baselines
    observation: mset.Observation
    seen: mset.Rows
    pointing: np.ndarray
    axes: np.ndarray

    def of(self, t: int, freq_hz: np.ndarray) -> np.ndarray:
        """Visibilities (nrow, nchan) of 1 Jy."""
        return predict_integration(
            vectors=self.vectors[t][None],
            fluxes_jy=np.ones((1, len(freq_hz))),
            phase_axes=self.axes[t],
            positions_m=self.observation.positions_m,
            ant_1=self.seen.ant_1[self.rows],
            ant_2=self.seen.ant_2[self.rows],
            freq_hz=freq_hz,
            pointing=self.pointing,
            smearing=Smearing(self.seen.integration_s, self.observation.channel_width_hz),
        )


def subtract(
    *,
    data,
    flags,
    weights,
    sources: Sequence[FarSource],
    observation: mset.Observation,
    rows: mset.Rows,
    pointing: np.ndarray,
) -> list[Found]:
    """Look for each source and take those that matter out of `data`, in place, the strongest
    first.

    weights  of the data; None: all alike
    """
    axes = track(*observation.phase_centre_deg, rows.time_mjd).axes
    cross = np.flatnonzero(rows.ant_1 != rows.ant_2)
    values = _Values(data, flags, weights)
    left, found = [], {}
    for one in sources:
        every = _Fringes(one.vectors, cross, observation, rows, pointing, axes)
        kept, alike = _left(every)
        told = (kept > _SEEN) & (alike < _ALIKE)
        if told.sum() >= _LEAST_ROWS:
            seen = replace(every, rows=cross[told])
            left.append((one, seen, replace(every, rows=cross[kept > _LEFT])))
    while left:
        looks = [_judge(one, _look(values, seen), values, seen) for one, seen, _ in left]
        found |= {look.name: look for look in looks}
        k = int(np.argmax([look.subtracted * look.apparent_jy for look in looks]))
        if not looks[k].subtracted:
            break
        _take_out(values, *left.pop(k)[1:], looks[k].free_gains)
    return list(found.values())


def _judge(
    one: FarSource, seen: tuple[float, float], values: "_Values", looked: "_Fringes"
) -> Found:
    """Whether what was seen of a source matters: against what is seen beside it."""
    plain, free = seen
    nothing = (0.0, 0.0)
    if max(seen) >= _LEAST_JY:
        # a source that turns as the field does is nothing special among others that do
        beside = [
            np.median(
                [
                    _look(values, replace(looked, vectors=turn(one.vectors, by_rad)))
                    for by_rad in _BESIDE_RAD
                ],
                axis=0,
            )
            for turn in (_turned, _tilted)
        ]
        nothing = np.max(beside, axis=0)
    use_free = free > max(_CLEARLY * nothing[1], _FREE_BETTER * plain, _LEAST_JY)
    matters = use_free or plain > max(_CLEARLY * nothing[0], _LEAST_JY)
    apparent_jy, beside_jy = (pair[int(use_free)] for pair in (seen, nothing))
    return Found(
        one.name,
        one.distance_deg,
        one.elevation_deg,
        float(apparent_jy),
        float(beside_jy),
        bool(matters),
        bool(use_free),
    )


def _turned(vectors: np.ndarray, by_rad: float) -> np.ndarray:
    """Directions at another hour angle."""
    c, s = np.cos(by_rad), np.sin(by_rad)
    return vectors @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _tilted(vectors: np.ndarray, by_rad: float) -> np.ndarray:
    """Directions at another declination."""
    height = np.arcsin(vectors[:, 2]) + by_rad
    along = vectors[:, :2] / np.linalg.norm(vectors[:, :2], axis=1, keepdims=True)
    return np.concatenate([along * np.cos(height)[:, None], np.sin(height)[:, None]], axis=1)


def _left(one: _Fringes) -> tuple[np.ndarray, np.ndarray]:
    """On some baselines: what smearing leaves of a source's amplitude, and how far its fringes are
    those of a source in the middle of the field, over the group and the band (0 to 1)."""
    freq_hz = one.observation.freq_hz
    few_hz = freq_hz[:: max(1, len(freq_hz) // _CHANNELS)]
    times = _few(len(one.vectors))
    fringes = np.stack([one.of(t, few_hz) for t in times])
    size = np.abs(fringes)
    unit = fringes / np.maximum(size, 1e-9)
    return size.mean(axis=(0, 2)), np.abs(unit.mean(axis=(0, 2)))


def _few(ntime: int) -> np.ndarray:
    """Some integrations, evenly."""
    return np.unique(np.linspace(0, ntime - 1, min(_TIMES, ntime)).round().astype(int))


@dataclass(frozen=True)
class _Values:
    """Data, flags and weights (None: all alike), (ntime, nbaseline, nchan, npol)."""

    data: np.ndarray
    flags: np.ndarray
    weights: np.ndarray | None

    def of(self, t: int, rows: np.ndarray, channels: slice) -> tuple[np.ndarray, np.ndarray]:
        """Some data of an integration, and their weights."""
        good = (~self.flags[t, rows, channels]).astype(np.float32)
        if self.weights is not None:
            good *= self.weights[t, rows, channels]
        return self.data[t, rows, channels], good


def _sums(values: _Values, fringes: _Fringes, times, channels: slice):
    """Of each time, baseline and polarisation: w V conj(F) and w |F|^2 over the channels."""
    freq_hz = fringes.observation.freq_hz[channels]
    shape = (len(times), len(fringes.rows), values.data.shape[3])
    product, power = np.zeros(shape, complex), np.zeros(shape)
    for k, t in enumerate(times):
        model = fringes.of(t, freq_hz)[..., None]
        data, w = values.of(t, fringes.rows, channels)
        product[k] = (w * data * np.conj(model)).sum(axis=1)
        power[k] = (w * np.abs(model) ** 2).sum(axis=1)
    return product, power


def _look(values: _Values, fringes: _Fringes) -> tuple[float, float]:
    """Apparent flux (Jy) in a few integrations and channels: of all baselines alike, and with gains
    of each antenna. The latter fit anything: what counts is how much of them, found in every other
    integration, is in the rest."""
    ntime, _, nchan, _ = values.data.shape
    times, channels = _few(ntime), slice(None, None, max(1, nchan // _CHANNELS))
    product, power = _sums(values, fringes, times, channels)
    plain = np.abs(product.sum(axis=1)) / np.maximum(power.sum(axis=1), 1e-30)
    pair = fringes.seen.ant_1[fringes.rows], fringes.seen.ant_2[fringes.rows]
    gain = _gains(product[::2], power[::2], fringes)
    relative = gain[pair[0]] * np.conj(gain[pair[1]])
    there = (np.conj(relative) * product[1::2]).real.sum()
    there /= max((np.abs(relative) ** 2 * power[1::2]).sum(), 1e-30)
    size = np.abs(gain[np.unique(pair)]) ** 2
    return float(plain.mean()), float(np.median(size) * np.clip(there, 0, 1))


def _gains(product, power, fringes: _Fringes) -> np.ndarray:
    """Gains (nant, npol), times the root of the flux, in all integrations alike."""
    one, two = fringes.seen.ant_1[fringes.rows], fringes.seen.ant_2[fringes.rows]
    nant = len(fringes.observation.antenna_names)
    sums = (values.sum(axis=0)[:, None] for values in (product, power))
    return solve_grid(*sums, one, two, nant, [int(one[0])], False)[:, 0]


def _take_out(values: _Values, looked: _Fringes, everywhere: _Fringes, use_free: bool) -> None:
    """Fit the source in every integration and subtract it on all baselines where it is left."""
    times = range(len(values.data))
    channels = slice(None, None, max(1, values.data.shape[2] // _CHANNELS))
    product, power = _sums(values, looked, times, channels)
    one, two = looked.seen.ant_1[everywhere.rows], looked.seen.ant_2[everywhere.rows]
    if use_free:
        pair = looked.seen.ant_1[looked.rows], looked.seen.ant_2[looked.rows]
        gain = _gains(product, power, looked)
        relative = gain[pair[0]] * np.conj(gain[pair[1]])
        known = gain[one] * np.conj(gain[two])
        product, power = product * np.conj(relative), power * np.abs(relative) ** 2
    amplitude = product.sum(axis=1) / np.maximum(power.sum(axis=1), 1e-30)  # (ntime, npol)
    for t in times:
        model = everywhere.of(t, looked.observation.freq_hz)[..., None] * amplitude[t]
        if use_free:
            model = model * known[:, None]
        values.data[t, everywhere.rows] -= model.astype(values.data.dtype)


def words(found: Sequence[Found]) -> list[str]:
    """What was subtracted, for people."""
    return [
        f"{one.name}, {one.distance_deg:.0f} deg away, {one.apparent_jy:.2g} Jy apparent"
        for one in found
        if one.subtracted
    ]
