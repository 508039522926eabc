"""Sources in the far sidelobes of the dishes (Cas A, Cyg A, Tau A, Vir A, the Sun): fitted to
calibrated data and taken out, when they matter.

Their fringes turn so fast that the correlator's own averaging leaves them on few baselines; there
they are looked for channel by channel. How much is nothing is known from the same fit to places
beside the source where nothing is. Arrays are (time, baseline, channel, polarisation), in Jy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contimg.calibration.solver import solve_grid
from contimg.sky.far import FarSource
from contimg.sky.geometry import track
from contimg.sky.prediction import Smearing, predict_integration
from contimg.visibilities import measurement_set as mset

_SEEN, _LEFT = 0.3, 0.03  # of the amplitude, after smearing: to find a source, and to take it out
_BESIDE_RAD = np.radians([-6.0, -3.0, 3.0, 6.0])  # of hour angle: places where nothing is
_TIMES, _CHANNELS = 4, 96  # that a source is looked for in
_CLEARLY = 4.0  # times what is found beside
_FREE_BETTER = 1.5  # times as much explained, for gains of each antenna
_LEAST_JY = 0.1
_LEAST_ROWS = 20


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
    first."""
    axes = track(*observation.phase_centre_deg, rows.time_mjd).axes
    cross = rows.ant_1 != rows.ant_2
    found = []
    for one in sources:
        left = _left(one.vectors, observation, rows, pointing)

        def fringes(vectors, least, left=left):
            chosen = np.flatnonzero(cross & (left > least))
            return _Fringes(vectors, chosen, observation, rows, pointing, axes)

        looked = fringes(one.vectors, _SEEN)
        if len(looked.rows) < _LEAST_ROWS:
            continue
        plain, free = _look(data, flags, weights, looked)
        beside = [
            _look(data, flags, weights, fringes(_turned(one.vectors, by), _SEEN))
            for by in _BESIDE_RAD
        ]
        nothing, nothing_free = np.max(beside, axis=0)
        use_free = free > max(_CLEARLY * nothing_free, _FREE_BETTER * plain, _LEAST_JY)
        matters = use_free or plain > max(_CLEARLY * nothing, _LEAST_JY)
        if matters:
            _take_out(data, flags, weights, looked, fringes(one.vectors, _LEFT), use_free)
        found.append(
            Found(
                one.name,
                one.distance_deg,
                one.elevation_deg,
                float(free if use_free else plain),
                float(nothing_free if use_free else nothing),
                bool(matters),
                bool(use_free),
            )
        )
    return found


def _turned(vectors: np.ndarray, by_rad: float) -> np.ndarray:
    """Directions at another hour angle."""
    c, s = np.cos(by_rad), np.sin(by_rad)
    return vectors @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _left(vectors, observation: mset.Observation, rows: mset.Rows, pointing) -> np.ndarray:
    """(nbaseline,): what smearing leaves of a source's amplitude, in the middle of the group and of
    the band."""
    middle = len(vectors) // 2
    one = _Fringes(
        vectors,
        np.arange(len(rows.ant_1)),
        observation,
        rows,
        pointing,
        track(*observation.phase_centre_deg, rows.time_mjd[middle : middle + 1]).axes,
    )
    at_middle = _Fringes(
        vectors[middle : middle + 1], one.rows, observation, rows, pointing, one.axes
    )
    return np.abs(at_middle.of(0, np.array([observation.freq_hz.mean()])))[:, 0]


def _sums(data, flags, weights, fringes: _Fringes, times, channels: slice):
    """Of each time, baseline and polarisation: w V conj(F) and w |F|^2 over the channels."""
    freq_hz = fringes.observation.freq_hz[channels]
    shape = (len(times), len(fringes.rows), data.shape[3])
    product, power = np.zeros(shape, complex), np.zeros(shape)
    for k, t in enumerate(times):
        model = fringes.of(t, freq_hz)[..., None]
        w = weights[t, fringes.rows, channels] * ~flags[t, fringes.rows, channels]
        product[k] = (w * data[t, fringes.rows, channels] * np.conj(model)).sum(axis=1)
        power[k] = (w * np.abs(model) ** 2).sum(axis=1)
    return product, power


def _look(data, flags, weights, fringes: _Fringes) -> tuple[float, float]:
    """Apparent flux (Jy) in a few integrations and channels: of all baselines alike, and with gains
    of each antenna."""
    times = np.unique(np.linspace(0, len(data) - 1, min(_TIMES, len(data))).round().astype(int))
    channels = slice(None, None, max(1, data.shape[2] // _CHANNELS))
    product, power = _sums(data, flags, weights, fringes, times, channels)
    plain = np.abs(product.sum(axis=1)) / np.maximum(power.sum(axis=1), 1e-30)
    gains = _gains(product, power, fringes)
    return float(plain.mean()), float((np.abs(gains) ** 2).mean())


def _gains(product, power, fringes: _Fringes) -> np.ndarray:
    """Gains (nant, npol) of the antennas that see the source, in all integrations alike."""
    one, two = fringes.seen.ant_1[fringes.rows], fringes.seen.ant_2[fringes.rows]
    nant = len(fringes.observation.antenna_names)
    sums = (values.sum(axis=0)[:, None] for values in (product, power))
    solved = solve_grid(*sums, one, two, nant, [int(one[0])], False)[:, 0]
    return solved[np.unique(np.concatenate([one, two]))]


def _take_out(data, flags, weights, looked: _Fringes, everywhere: _Fringes, use_free: bool) -> None:
    """Fit the source in every integration and subtract it on all baselines where it is left."""
    times = range(len(data))
    channels = slice(None, None, max(1, data.shape[2] // _CHANNELS))
    product, power = _sums(data, flags, weights, looked, times, channels)
    one, two = looked.seen.ant_1[everywhere.rows], looked.seen.ant_2[everywhere.rows]
    if use_free:
        nant = len(looked.observation.antenna_names)
        pair = (looked.seen.ant_1[looked.rows], looked.seen.ant_2[looked.rows])
        sums = (values.sum(axis=0)[:, None] for values in (product, power))
        gain = solve_grid(*sums, *pair, nant, [int(pair[0][0])], False)[:, 0]
        relative = gain[pair[0]] * np.conj(gain[pair[1]])
        known = gain[one] * np.conj(gain[two])
        product, power = product * np.conj(relative), power * np.abs(relative) ** 2
    amplitude = product.sum(axis=1) / np.maximum(power.sum(axis=1), 1e-30)  # (ntime, npol)
    for t in times:
        model = everywhere.of(t, looked.observation.freq_hz)[..., None] * amplitude[t]
        if use_free:
            model = model * known[:, None]
        data[t, everywhere.rows] -= model.astype(data.dtype)


def words(found: Sequence[Found]) -> list[str]:
    """What was subtracted, for people."""
    return [
        f"{one.name}, {one.distance_deg:.0f} deg away, {one.apparent_jy:.2g} Jy apparent"
        for one in found
        if one.subtracted
    ]
