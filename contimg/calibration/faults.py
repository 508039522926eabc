"""Antennas whose data do not fit, and what is wrong with them: exchanged cables, exchanged
polarisations, no sky, noise.

Looked for with the model of the field, after a group's own gains were found (`refine`). Data are
averaged over channels; arrays are (time, baseline, channel, polarisation).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contimg.calibration.refine import Coarse

_SUBBANDS = 8  # in which the data of an antenna are coherent, whatever became of its delay
_FITS, _FITS_NOT = 0.6, 0.5  # amplitude of the model in an antenna's data
_NOTHING = 0.15
_ALONE = 0.7  # of the best place: another one with more is as good
_KNOWN = 0.1  # error of an amplitude
_RIPPLE = 0.01  # of an autocorrelation's spectrum: less tells no bandpass from another
_FEWEST_CHANNELS = 16
_MAD = 1.4826
_POLARISATIONS = "XY"


@dataclass(frozen=True)
class Fault:
    """What is wrong with some antennas (numbers), and the evidence in words."""

    kind: str  # exchanged, polarisations, no_sky, unfit, noisy
    antennas: tuple[int, ...]
    words: str
    polarisation: int | None = None  # the one, where the other is well

    def among(self, ant_1: np.ndarray, ant_2: np.ndarray) -> tuple[np.ndarray, slice | int]:
        """Its baselines (nbaseline,), and polarisations."""
        mine = np.isin(ant_1, self.antennas) | np.isin(ant_2, self.antennas)
        return mine, slice(None) if self.polarisation is None else self.polarisation


def find(
    *,
    turned: Callable[[], Coarse],
    model: np.ndarray,
    amplitude: np.ndarray,
    error: np.ndarray,
    spectra: np.ndarray | None,
    other_spectra: np.ndarray | None,
    sefd: np.ndarray,
    noisy_factor: float,
    names: Sequence[str],
) -> list[Fault]:
    """Every antenna that does not fit, once.

    turned            gives the data with phases of their own taken out
    model             (ntime, nbaseline, nchan)
    amplitude, error  of each antenna's gain after refinement, 1 where the set's was right, (nant,
                      npol)
    spectra           of the autocorrelations, calibrated, (nant, nchan, npol); and with the gains
                      of the other polarisation. None: there are none
    sefd              (nant, npol), NaN where unknown
    """
    found = _exchanged_polarisations(spectra, other_spectra, names)
    named = {a for one in found for a in one.antennas}
    known = (error < _KNOWN) & (error > 0)
    misfit = [
        int(a)
        for a in np.flatnonzero((known & (amplitude < _FITS_NOT)).any(axis=1))
        if a not in named
    ]
    whole = [a for a in misfit if (known[a] & (amplitude[a] < _FITS_NOT)).all()]
    found += _places(turned(), model, whole, names) if whole else []
    named |= {a for one in found for a in one.antennas}
    for a in misfit:
        if a not in named:
            found.append(_misfit(a, amplitude[a], known[a], names))
    median = np.nanmedian(sefd)
    for a in np.flatnonzero(np.nanmax(np.nan_to_num(sefd), axis=1) > noisy_factor * median):
        if a not in named and a not in misfit:
            times = float(np.nanmax(sefd[a]) / median)
            words = f"{names[a]}: noisy, {times:.1f} times the median receiver"
            found.append(Fault("noisy", (int(a),), words))
    return found


def _misfit(a: int, amplitude: np.ndarray, known: np.ndarray, names: Sequence[str]) -> Fault:
    """An antenna that fits no other place, either."""
    bad = known & (amplitude < _FITS_NOT)
    share = " and ".join(f"{amplitude[p]:.2f} in {_POLARISATIONS[p]}" for p in np.flatnonzero(bad))
    one = None if bad.all() else int(np.flatnonzero(bad)[0])
    if (amplitude[bad] < _NOTHING).all():
        words = f"{names[a]}: sees no sky ({share} of its amplitude): dead, or X and Y exchanged"
        if one is not None:
            words = f"{names[a]}: sees no sky in {_POLARISATIONS[one]}: dead in it"
        return Fault("no_sky", (a,), words, one)
    words = f"{names[a]}: its data do not fit the sky ({share}): phases that jump, or a delay"
    return Fault("unfit", (a,), words, one)


# -- places
# ----------------------------------------------------------------------------------------------


def _places(
    coarse: Coarse, model: np.ndarray, misfit: Sequence[int], names: Sequence[str]
) -> list[Fault]:
    """Pairs of antennas whose data each fit the other's place; both are named. The exchange is
    tried: each one's data against the model of the other's baselines, with free phases."""
    index = _index(coarse)
    healthy = np.setdiff1d(np.unique([coarse.ant_1, coarse.ant_2]), misfit)
    fits = {a: _fit_by_place(coarse, model, index, a, healthy) for a in misfit}
    found, named = [], set()
    for a in misfit:
        best = int(np.argmax(fits[a]))
        rest = np.delete(fits[a], best).max(initial=0)
        alone = fits[a][best] >= _FITS and rest < _ALONE * fits[a][best]
        if a in named or best == a or not alone:
            continue
        if best in fits and int(np.argmax(fits[best])) == a and fits[best][a] >= _FITS:
            words = (
                f"{names[a]} and {names[best]}: exchanged? With their places exchanged the sky has "
                f"{fits[a][best]:.2f} and {fits[best][a]:.2f} of its amplitude in their data, as "
                f"they are {fits[a][a]:.2f} and {fits[best][best]:.2f}"
            )
            found.append(Fault("exchanged", (a, best), words))
            named |= {a, best}
        else:
            words = (
                f"{names[a]}: its data fit the place of {names[best]} ({fits[a][best]:.2f}; "
                f"its own {fits[a][a]:.2f})"
            )
            found.append(Fault("exchanged", (a,), words))
            named.add(a)
    return found


def _index(coarse: Coarse) -> np.ndarray:
    """Number of each pair's baseline, (nant, nant); -1 where there is none."""
    index = np.full((coarse.nant, coarse.nant), -1)
    numbers = np.arange(len(coarse.ant_1))
    index[coarse.ant_1, coarse.ant_2] = numbers
    index[coarse.ant_2, coarse.ant_1] = numbers
    return index


def _fit_by_place(
    coarse: Coarse, model: np.ndarray, index: np.ndarray, a: int, others: np.ndarray
) -> np.ndarray:
    """Amplitude (nant,) that the sky has in the data of antenna `a`, were it at each antenna's
    place: coherent over baselines and a part of the band, with any phase in each integration."""
    edges = np.unique(np.linspace(0, model.shape[2], _SUBBANDS + 1).astype(int))[:-1]
    partners = others[(others != a) & (index[a, others] >= 0)]
    rows = index[a, partners]
    weights = coarse.weights[:, rows]
    data = _from(coarse.data[:, rows], coarse, rows, a)
    amplitude = np.zeros(coarse.nant)
    for b in np.unique([coarse.ant_1, coarse.ant_2]):
        theirs = index[b, partners]
        use = (theirs >= 0) & (partners != b)
        if use.sum() < 2:
            continue
        of_place = _from(model[:, theirs[use]], coarse, theirs[use], b)[..., None]
        w = weights[:, use]
        product = (w * data[:, use] * np.conj(of_place)).sum(axis=1)
        power = (w * np.abs(of_place) ** 2).sum(axis=1)
        product, power = (np.add.reduceat(x, edges, axis=1) for x in (product, power))
        total = (power**2).sum()
        excess = (np.abs(product) ** 2 - 2 * power).sum()
        amplitude[b] = np.sqrt(max(excess, 0) / total) if total > 0 else 0
    return amplitude


def _from(values: np.ndarray, coarse: Coarse, rows: np.ndarray, a: int) -> np.ndarray:
    """Visibilities of baselines (axis 1) with antenna `a` as the first."""
    shape = (1, len(rows)) + (1,) * (values.ndim - 2)
    return np.where((coarse.ant_1[rows] == a).reshape(shape), values, np.conj(values))


# -- polarisations
# --------------------------------------------------------------------------------------------


def _exchanged_polarisations(
    spectra: np.ndarray | None, other_spectra: np.ndarray | None, names: Sequence[str]
) -> list[Fault]:
    """Antennas whose autocorrelations have each other's bandpass: their X and Y are exchanged since
    the set was solved."""
    if spectra is None or spectra.shape[1] < _FEWEST_CHANNELS or spectra.shape[2] < 2:
        return []
    own, other = (np.array([_ripple(s) for s in values]) for values in (spectra, other_spectra))
    found = []
    with np.errstate(invalid="ignore"):
        odd = ((own > _RIPPLE) & (other < own / 2)).all(axis=1)
    for a in np.flatnonzero(odd):
        words = (
            f"{names[a]}: X and Y exchanged? Its autocorrelations have each other's bandpass "
            f"(ripple {own[a].max():.3f}, exchanged {other[a].max():.3f})"
        )
        found.append(Fault("polarisations", (int(a),), words))
    return found


def _ripple(spectra: np.ndarray) -> np.ndarray:
    """Relative robust scatter of spectra (nchan, npol) about a parabola; NaN where there are too
    few channels."""
    x = np.linspace(-1, 1, len(spectra))
    found = np.full(spectra.shape[1], np.nan)
    for p, spectrum in enumerate(spectra.T):
        good = np.isfinite(spectrum) & (spectrum > 0)
        if good.sum() < _FEWEST_CHANNELS:
            continue
        y = np.log(spectrum[good])
        fit = np.polyval(np.polyfit(x[good], y, 2), x[good])
        found[p] = _MAD * np.median(np.abs(y - fit - np.median(y - fit)))
    return found


def as_json(faults: Sequence[Fault], names: Sequence[str], flagged: bool) -> list[Mapping]:
    """For a stage's result."""
    return [
        {
            "kind": one.kind,
            "antennas": [names[a] for a in one.antennas],
            "polarisation": None if one.polarisation is None else _POLARISATIONS[one.polarisation],
            "words": one.words,
            "flagged": flagged,
        }
        for one in faults
    ]
