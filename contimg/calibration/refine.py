"""A group's own gains: what became of the gains of its calibration set, from the catalogued sky
that the group itself saw.

Data were calibrated with a set; what is left of each antenna's gain is close to 1 in amplitude, of
any phase, and moves. The model is the sky through the beam, smeared as the data are. With

    V_12(t) = g_1(t) conj(g_2(t)) M_12(t) + noise

each interval gives the antennas' phases, and all of it one amplitude an antenna and polarisation,
by StEFCal of sums over channels (`solver`). Catalogues are not the sky: sources that are resolved,
variable or gone are found by a fit of each one's amplitude, and the model is mended (`mend`);
baselines that the model does not describe weigh less.

Arrays are (time, baseline, channel, polarisation), in Jy, in the Measurement Set's convention;
weights are Jy^-2 of one component (real or imaginary), 0 where flagged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.calibration.solver import solve_grid
from contimg.config import CalibrationConfig

_ENOUGH_SNR = 8.0  # of an antenna's gain, in an interval that phases are solved for
_LEAST_SNR = 3.0
_SIGNIFICANT = 6.0
_MAD = 1.4826
_BASELINE_SCALE = 3.0  # of typical misfits: a baseline of so many has half its weight
_TOGETHER = 0.1  # scatter of fluxes about the catalogue's that asks no questions
_FOREIGN_SCATTER = 0.2  # scatter that no catalogue of this sky has
_MOST_FAULTY = 0.15  # of the antennas: with more it is not the antennas
_AMPLITUDE_ERROR = 0.1  # an amplitude that is less certain is none
_BESIDE_ARCSEC, _STEP_ARCSEC, _APART_ARCSEC = 60.0, 3.0, 9.0  # of what makes a source double
_OUTLIER = 3.0  # errors: a source so far from the others has no say (Tukey has 4.7)
_FLUXES_KNOWN = 0.01  # relative: no catalogue is better
_SKY = (0.5, 2.0)  # times the catalogue's flux: beyond, it is another sky


@dataclass(frozen=True)
class Coarse:
    """Calibrated data of a group, averaged over channels: data and weights (ntime, nbaseline,
    nchan, npol)."""

    data: np.ndarray
    weights: np.ndarray
    ant_1: np.ndarray
    ant_2: np.ndarray
    nant: int

    def turned(self, gain: np.ndarray) -> "Coarse":
        """With gains (ntime, nant, npol) taken out."""
        product = (gain[:, self.ant_1] * np.conj(gain[:, self.ant_2]))[:, :, None]
        data = (self.data / product).astype(np.complex64)
        weights = (self.weights * np.abs(product) ** 2).astype(np.float32)
        return Coarse(data, weights, self.ant_1, self.ant_2, self.nant)


@dataclass(frozen=True)
class Sums:
    """Of data V and model M over the channels, (ntime, nbaseline, npol): w V conj(M), w |M|^2, w
    |V|^2, and the number of values."""

    product: np.ndarray
    power: np.ndarray
    total: np.ndarray
    count: np.ndarray

    def scaled(self, factor: float) -> "Sums":
        """For a model so many times as bright."""
        return Sums(self.product * factor, self.power * factor**2, self.total, self.count)

    def chi_squared(self, gain: np.ndarray, ant_1: np.ndarray, ant_2: np.ndarray) -> np.ndarray:
        """Of every time, baseline and polarisation, for gains (ntime, nant, npol); its expectation
        is twice the number of values."""
        product = gain[:, ant_1] * np.conj(gain[:, ant_2])
        return (
            self.total
            - 2 * (np.conj(product) * self.product).real
            + np.abs(product) ** 2 * self.power
        )


@dataclass(frozen=True)
class FieldGains:
    """What became of a set's gains, (ntime, nant, npol): 1 where nothing was solved. `error` is
    that of the phases (rad) and of the relative amplitudes in an interval, as noise alone makes
    it; `lost` (nant, npol) antennas that take part and have no solution."""

    gain: np.ndarray
    error: np.ndarray
    lost: np.ndarray
    interval: int  # integrations with one phase
    amplitudes: bool

    @property
    def parameters(self) -> int:
        """Real numbers that were fitted."""
        ntime, _, _ = self.gain.shape
        solved = np.isfinite(self.error).any(axis=0).sum()
        return int(solved * (int(np.ceil(ntime / self.interval)) + self.amplitudes))


@njit(parallel=True, cache=True)
def _sums(data, weights, model):
    ntime, nbaseline, nchan, npol = data.shape
    product = np.zeros((ntime, nbaseline, npol), np.complex128)
    power, total = np.zeros((ntime, nbaseline, npol)), np.zeros((ntime, nbaseline, npol))
    count = np.zeros((ntime, nbaseline, npol), np.int64)
    for b in prange(nbaseline):
        for t in range(ntime):
            for c in range(nchan):
                m = model[t, b, c]
                size = m.real**2 + m.imag**2
                for p in range(npol):
                    w = weights[t, b, c, p]
                    if w > 0:
                        v = data[t, b, c, p]
                        product[t, b, p] += w * v * np.conj(m)
                        power[t, b, p] += w * size
                        total[t, b, p] += w * (v.real**2 + v.imag**2)
                        count[t, b, p] += 1
    return product, power, total, count


def sums(*, coarse: Coarse, model: np.ndarray) -> Sums:
    """One pass over averaged data and their model (ntime, nbaseline, nchan)."""
    return Sums(*_sums(coarse.data, coarse.weights, model))


def _by_antenna(values: np.ndarray, coarse: Coarse) -> np.ndarray:
    """Sums over each antenna's baselines, (ntime, nant, npol), of (ntime, nbaseline, npol)."""
    total = np.zeros((values.shape[0], coarse.nant, values.shape[2]))
    for t in range(len(values)):
        np.add.at(total[t], coarse.ant_1, values[t])
        np.add.at(total[t], coarse.ant_2, values[t])
    return total


def interval_for(*, found: Sums, coarse: Coarse) -> int | None:
    """Integrations for one phase: as few as give the median antenna a signal to noise of
    `_ENOUGH_SNR`; all, where that gives `_LEAST_SNR`; None where there is too little sky."""
    power = _by_antenna(found.power, coarse)
    ntime = len(power)
    for length in sorted({n for n in range(1, ntime + 1) if ntime % n == 0} | {ntime}):
        starts = np.arange(0, ntime, length)
        snr = np.sqrt(np.add.reduceat(power, starts, axis=0))
        typical = float(np.median(snr[snr > 0])) if (snr > 0).any() else 0.0
        if typical >= (_ENOUGH_SNR if length < ntime else _LEAST_SNR):
            return length
    return None


def solve(
    *, found: Sums, coarse: Coarse, reference: int, interval: int, amplitudes: bool
) -> FieldGains:
    """Phases in intervals of so many integrations, and one amplitude, if so, of each antenna and
    polarisation.

    Phases are of no antenna: they have mean 0 over the array. Baselines that the model does not
    describe are weighed down (Cauchy's weights of what is left when everything is averaged), once.
    """
    first = _solve_once(found, coarse, reference, interval, amplitudes)
    weight = _baseline_weights(found, coarse, first)[None, :, None]
    robust = Sums(found.product * weight, found.power * weight, found.total, found.count)
    return _solve_once(robust, coarse, reference, interval, amplitudes)


def _solve_once(
    found: Sums, coarse: Coarse, reference: int, interval: int, amplitudes: bool
) -> FieldGains:
    ntime = len(found.product)
    starts = np.arange(0, ntime, interval)
    of_interval = np.arange(ntime) // interval
    product, power = (
        np.add.reduceat(values, starts, axis=0) for values in (found.product, found.power)
    )
    phases = _unit(_free(product, power, coarse, reference))
    phases = phases * np.conj(_unit(phases.sum(axis=1, keepdims=True)))
    turn = (np.conj(phases[:, coarse.ant_1]) * phases[:, coarse.ant_2])[of_interval]
    turned, kept = (found.product * turn).sum(axis=0), (found.power * (turn != 0)).sum(axis=0)
    whole = _free(turned[None], kept[None], coarse, reference)[0]
    size = np.abs(whole) if amplitudes else (whole != 0).astype(float)
    information = _by_antenna(power, coarse)
    takes_part = (information > 0).any(axis=0)
    solved = (size > 0) & takes_part
    lost = takes_part & ~solved
    gain = phases * size
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(gain != 0, 1 / np.sqrt(information), np.inf)
    gain = np.where(gain == 0, 1, gain)
    return FieldGains(gain[of_interval], error[of_interval], lost, interval, amplitudes)


def by_integration(*, found: Sums, coarse: Coarse, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Free gains (ntime, nant, npol) of each integration, 0 where there are none, and the relative
    error that noise makes."""
    information = _by_antenna(found.power, coarse)
    with np.errstate(divide="ignore"):
        return _free(found.product, found.power, coarse, reference), 1 / np.sqrt(information)


def _free(product: np.ndarray, power: np.ndarray, coarse: Coarse, reference: int) -> np.ndarray:
    """Gains (n, nant, npol) of n sums (n, nbaseline, npol), amplitude and phase; 0 where none."""
    pairs = (coarse.ant_1, coarse.ant_2, coarse.nant, [reference])
    sums = (values.transpose(1, 0, 2) for values in (product, power))
    return solve_grid(*sums, *pairs, False).transpose(1, 0, 2)


def _unit(values: np.ndarray) -> np.ndarray:
    """Of length 1; 0 where it is 0."""
    size = np.abs(values)
    return np.where(size > 0, values / np.where(size > 0, size, 1), 0)


def _baseline_weights(found: Sums, coarse: Coarse, gains: FieldGains) -> np.ndarray:
    """(nbaseline,): of each, how well the model describes it when all integrations and channels are
    averaged."""
    product = gains.gain[:, coarse.ant_1] * np.conj(gains.gain[:, coarse.ant_2])
    left = (np.conj(product) * found.product - np.abs(product) ** 2 * found.power).sum(axis=(0, 2))
    power = (np.abs(product) ** 2 * found.power).sum(axis=(0, 2))
    size = np.where(power > 0, np.abs(left) ** 2 / np.where(power > 0, power, 1), 0)
    typical = float(np.median(size[power > 0])) if (power > 0).any() else 1.0
    return 1 / (1 + size / max(typical * _BASELINE_SCALE**2, 1e-12))


def normalised(gains: FieldGains, coarse: Coarse) -> tuple[FieldGains, float]:
    """With the array's mean amplitude as the set has it: that of products of gains, weighted as the
    baselines are. And the factor that was taken out."""
    weight = coarse.weights.sum(axis=(0, 2), dtype=float)
    size = np.abs(gains.gain).mean(axis=0)
    product = size[coarse.ant_1] * size[coarse.ant_2]
    mean = float((weight * product).sum() / max(weight.sum(), 1e-30)) or 1.0
    untouched = np.isinf(gains.error)
    gain = np.where(untouched, gains.gain, gains.gain / np.sqrt(mean))
    return FieldGains(gain, gains.error, gains.lost, gains.interval, gains.amplitudes), mean


def scale_error(gains: FieldGains) -> float | None:
    """How uncertain it is that the array's mean amplitude is still that of the set, from how far
    apart the antennas' amplitudes moved; None without amplitudes."""
    known = np.isfinite(gains.error).any(axis=0) & ~gains.lost
    if not gains.amplitudes or known.sum() < 2:
        return None
    size = np.abs(gains.gain).mean(axis=0)[known]
    return float(2 * size.std() / size.mean() / np.sqrt(known.sum()))


def model_fit(*, found: Sums, coarse: Coarse, gain: np.ndarray) -> tuple[float, float, float]:
    """Amplitude of the model in data without gains (ntime, nant, npol), by least squares, its
    error, and the share of the coherent power that is explained."""
    product = gain[:, coarse.ant_1] * np.conj(gain[:, coarse.ant_2])
    power = float((np.abs(product) ** 2 * found.power).sum())
    if not power > 0:
        return 0.0, np.inf, 0.0
    fit = float((np.conj(product) * found.product).real.sum()) / power
    coherent = float(found.total.sum() - 2 * found.count.sum())
    explained = fit * abs(fit) * power / coherent if coherent > 0 else 0.0
    return fit, 1 / np.sqrt(power), min(explained, 1.0)


# -- sources
# ---------------------------------------------------------------------------------------------


class SourceFit:
    """Amplitudes of sources in calibrated data, by least squares, all at once.

    times, channels  of the averaged data, some of them
    models           of an integration: (number, nbaseline, nchan) of the channels asked for
    rest             of an integration: (nbaseline, nchan) of what is taken as it is
    use              baselines (nbaseline,): the shortest see all that no catalogue has
    """

    def __init__(
        self,
        coarse: Coarse,
        times: Sequence[int],
        channels: slice,
        models: Callable[[int], np.ndarray],
        rest: Callable[[int], np.ndarray | float],
        use: np.ndarray,
    ):
        self.times, self.parts, normal = times, [], 0.0
        for t in times:
            weights = coarse.weights[t, :, channels] * use[:, None, None]
            root = np.sqrt(weights.sum(axis=-1))
            weighted = models(t) * root
            number = len(weighted)
            # in double precision: sums must not depend on how many threads make them
            terms = np.concatenate(
                [weighted.real.reshape(number, -1), weighted.imag.reshape(number, -1)],
                axis=1,
                dtype=float,
            )
            share = weights / np.where(root > 0, root, 1)[..., None]
            data = coarse.data[t, :, channels]
            self.parts.append((terms, share, data, rest(t) * root))
            normal = normal + terms @ terms.T
        # catalogues are seldom wrong by as much as this: what the data cannot tell stays at 1
        self.prior = 1 / 0.5**2
        self.inverse = np.linalg.inv(normal + self.prior * np.eye(len(normal)))
        self.pair = coarse.ant_1, coarse.ant_2

    def amplitudes(self, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In units of the models, and their errors, when gains (ntime, nant, npol) are taken
        out."""
        one, two = self.pair
        right = self.prior
        for t, (terms, share, data, rest) in zip(self.times, self.parts, strict=True):
            factor = 1 / (gain[t, one] * np.conj(gain[t, two]))
            values = (share * data * factor[:, None].astype(np.complex64)).sum(axis=-1) - rest
            right = right + terms @ np.concatenate([values.real.ravel(), values.imag.ravel()])
        return self.inverse @ right, np.sqrt(np.diagonal(self.inverse))


def ensemble(amplitude: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Common factor of sources' amplitudes, its error, and their scatter about it: robust (Tukey's
    biweight), for one in five may be resolved, variable or gone.

    Errors are those of noise; what sources make that no catalogue has is known from the fainter
    half, how well catalogues know fluxes from the brighter.
    """
    centre = _weighted_median(amplitude, 1 / error**2)
    for _ in range(10):
        size = np.abs(amplitude - centre)
        faint = error >= np.median(error)
        larger = max(1.0, _MAD * float(np.median(size[faint] / error[faint])))
        own = max(_MAD * float(np.median(size[~faint])), _FLUXES_KNOWN) if (~faint).any() else 0.0
        spread = np.hypot(own, larger * error)
        weight = np.where(size < _OUTLIER * spread, (1 - (size / (_OUTLIER * spread)) ** 2) ** 2, 0)
        weight /= spread**2
        if not weight.any():
            break
        centre = float((weight * amplitude).sum() / weight.sum())
    share = weight / max(weight.sum(), 1e-30)
    number = 1 / max((share**2).sum(), 1e-30)  # of sources that count
    seen = np.sqrt((share**2 * (amplitude - centre) ** 2).sum() * number / max(number - 1, 0.5))
    expected = np.sqrt((share**2 * (larger * error) ** 2).sum())
    scatter = _MAD * float(np.median(np.abs(amplitude - centre)))
    return centre, float(max(seen, expected)), scatter


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def companion(
    *, left: np.ndarray, source: np.ndarray, weights: np.ndarray, turns: np.ndarray
) -> tuple[float, float, float, float]:
    """The brightest point beside a source in what is left of data: its flux over the source's, that
    one's error, and its offset to the east and north (rad).

    left, source  of data and of the source's model, (nvis,); weights as of `Coarse`
    turns         u and v in wavelengths, (nvis, 2)
    """
    steps = np.radians(np.arange(-_BESIDE_ARCSEC, _BESIDE_ARCSEC + 1, _STEP_ARCSEC) / 3600)
    along = [np.exp(-2j * np.pi * turns[:, k, None] * steps) for k in (0, 1)]
    power = float((weights * np.abs(source) ** 2).sum())
    product = (weights * left * np.conj(source)).astype(complex)
    image = ((along[0] * product[:, None]).T @ along[1]).real / max(power, 1e-30)
    away = np.hypot(*np.meshgrid(steps, steps, indexing="ij"))
    image[(away < np.radians(_APART_ARCSEC / 3600)) | (away > steps[-1])] = 0
    k, m = np.unravel_index(np.argmax(image), image.shape)
    return float(image[k, m]), 1 / np.sqrt(max(power, 1e-30)), float(steps[k]), float(steps[m])


def mended(amplitude: np.ndarray, error: np.ndarray, centre: float) -> np.ndarray:
    """What the model must have of each source: 1, where the data say nothing else."""
    relative, of_it = np.maximum(amplitude / centre, 0), error / centre
    away = np.abs(relative - 1) > np.maximum(3 * of_it, 0.03)
    return np.where(away & np.isfinite(relative), np.minimum(relative, 5.0), 1.0)


# -- acceptance
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Numbers by which gains are accepted or not."""

    chi_before: float
    chi_after: float
    values: int
    parameters: int
    noise: float  # after over before
    lost: float  # share of the weight that would be flagged
    faulty: float  # share of the antennas that do not fit
    sky: float  # amplitude of the catalogue in the data, afterwards
    scatter_before: float
    scatter_after: float  # of sources' fluxes about the catalogue's
    step_deg: float  # of phases from one interval to the next, without what noise makes
    between_deg: float  # how otherwise the phases of X and Y move
    amplitude_error: float

    def as_json(self) -> dict:
        """For the stage's result."""
        return {
            "chi2_before": self.chi_before / (2 * self.values),
            "chi2_after": self.chi_after / (2 * self.values),
            "parameters": self.parameters,
            "noise": self.noise,
            "lost": self.lost,
            "faulty": self.faulty,
            "sky": self.sky,
            "flux_scatter_before": self.scatter_before,
            "flux_scatter_after": self.scatter_after,
            "phase_step_deg": self.step_deg,
            "between_polarisations_deg": self.between_deg,
            "amplitude_error": self.amplitude_error,
        }

    @property
    def gained(self) -> float:
        """How far chi squared fell, in units of the scatter of what noise alone would make."""
        fall = self.chi_before - self.chi_after
        return (fall - self.parameters) / np.sqrt(2 * self.parameters)


UNCHANGED = "the set's gains are right as they are"
ANOTHER_SKY = "another sky"


def against(trial: Trial, amplitudes: bool, options: CalibrationConfig) -> list[str]:
    """Why gains are not accepted, in words; empty for good ones."""
    if trial.gained < _SIGNIFICANT:
        return [
            f"{UNCHANGED} (chi squared falls by {trial.chi_before - trial.chi_after:.0f} for "
            f"{trial.parameters} parameters)"
        ]
    limits = [
        (
            not _SKY[0] < trial.sky < _SKY[1],
            f"the data would have {trial.sky:.0%} of the catalogue's flux: {ANOTHER_SKY}",
        ),
        (
            trial.faulty > _MOST_FAULTY,
            f"{trial.faulty:.0%} of the antennas do not fit the sky: {ANOTHER_SKY}",
        ),
        (
            trial.scatter_after > _FOREIGN_SCATTER,
            f"fluxes of bright sources scatter by {trial.scatter_after:.2f} about the catalogue's: "
            f"{ANOTHER_SKY}",
        ),
        (
            trial.noise > options.refine_max_noise,
            f"noise would be {trial.noise:.2f} times what it is, "
            f"expected {options.refine_max_noise:g} at most",
        ),
        (
            trial.lost > options.refine_max_flagged,
            f"{trial.lost:.1%} of the data would be flagged, "
            f"expected {options.refine_max_flagged:.0%} at most",
        ),
        (
            trial.scatter_after > max(_TOGETHER, 1.1 * trial.scatter_before),
            f"fluxes of bright sources would not move together: scatter "
            f"{trial.scatter_before:.2f} before, {trial.scatter_after:.2f} after",
        ),
        (
            trial.step_deg > options.refine_max_step_deg,
            f"phases jump by {trial.step_deg:.0f} deg from one interval to the next, "
            f"expected {options.refine_max_step_deg:g} at most",
        ),
        (
            trial.between_deg > options.refine_max_step_deg,
            f"phases of X and Y move apart by {trial.between_deg:.0f} deg, "
            f"expected {options.refine_max_step_deg:g} at most",
        ),
        (
            amplitudes and trial.amplitude_error > _AMPLITUDE_ERROR,
            f"amplitudes are uncertain by {trial.amplitude_error:.0%}",
        ),
    ]
    return [words for wrong, words in limits if wrong]


def smoothness(gains: FieldGains) -> tuple[float, float]:
    """Robust rms in deg of phase steps between neighbouring intervals, and of how the difference of
    the polarisations' phases moves about its mean; without what noise makes of them."""
    every = slice(gains.interval // 2, None, gains.interval)
    phases, error = _unit(gains.gain[every]), gains.error[every]
    known = np.isfinite(error)

    def rms_deg(angle: np.ndarray, noise: np.ndarray, use: np.ndarray) -> float:
        if not use.any():
            return 0.0
        scatter = _MAD * np.median(np.abs(angle[use]))
        return float(np.degrees(np.sqrt(max(scatter**2 - np.median(noise[use]) ** 2, 0))))

    steps = np.angle(phases[1:] * np.conj(phases[:-1]))
    of_steps = rms_deg(steps, np.hypot(error[1:], error[:-1]), known[1:] & known[:-1])
    apart = phases[..., 0] * np.conj(phases[..., -1])
    apart = np.angle(apart * np.conj(_unit(apart.sum(axis=0))))
    return of_steps, rms_deg(
        apart, np.hypot(error[..., 0], error[..., -1]), known[..., 0] & known[..., -1]
    )


def tried(
    *,
    gains: FieldGains,
    found: Sums,
    coarse: Coarse,
    sky: float,
    faulty: float,
    scatter_before: float,
    scatter_after: float,
) -> Trial:
    """The numbers of gains that have the set's mean amplitude (`normalised`).

    found  of data without these gains, and a model that is `sky` times less
    """
    ones = np.ones_like(gains.gain)
    before = _best_of_scale(found, ones, coarse)
    after = found.scaled(sky).chi_squared(gains.gain, coarse.ant_1, coarse.ant_2).sum()
    weight = coarse.weights.sum(axis=2, dtype=float)
    kept = np.abs(gains.gain[:, coarse.ant_1] * gains.gain[:, coarse.ant_2]) ** 2
    lost = gains.lost[coarse.ant_1] | gains.lost[coarse.ant_2]
    step_deg, between_deg = smoothness(gains)
    every = np.isfinite(gains.error)
    whole = 1 / np.sqrt((1 / gains.error**2).sum(axis=0)[every.any(axis=0)] / gains.interval)
    return Trial(
        chi_before=float(before),
        chi_after=float(after),
        values=int(found.count.sum()),
        parameters=gains.parameters,
        noise=float(np.sqrt(weight.sum() / (weight * kept * ~lost).sum())),
        lost=float((weight * lost).sum() / weight.sum()),
        faulty=faulty,
        sky=sky,
        scatter_before=scatter_before,
        scatter_after=scatter_after,
        step_deg=step_deg,
        between_deg=between_deg,
        amplitude_error=float(np.median(whole)) if len(whole) else np.inf,
    )


def _best_of_scale(found: Sums, gain: np.ndarray, coarse: Coarse) -> float:
    """Chi squared with the best common factor of the model: a wrong flux scale is not the gains'
    fault."""
    factor = found.product.real.sum() / max(found.power.sum(), 1e-30)
    return found.scaled(factor).chi_squared(gain, coarse.ant_1, coarse.ant_2).sum()
