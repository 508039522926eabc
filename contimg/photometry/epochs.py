"""A sidereal day of a strip: the three or four measurements of a source in one transit as one, when
scales of the tiles and what the day's beam is off were taken out.

Of source i in tile (group) g, at a place (e, n) in the tile:

    ln f = ln S_i + c_g + a . phi(e, n)

S_i is thought to be the reference flux, to some error; c_g is 0 to a few per cent (the tile's flux
scale). phi are the slopes of ln beam with its widths and its pointing (`calibration.beamfit`), so
that a is what these are off. A source whose flux is far from its reference is left to itself: what
varies pulls nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import linalg, sparse

from contimg.telescope import TELESCOPE

LEAST_SNR = 8.0  # of a measurement that scales are found from
FEW_CONSTANTS = 8  # with fewer of them, no scales
_J2000_MJD, _TURNS_A_DAY = 51544.5, 1.00273781191135448
_TURNS_AT_J2000 = 0.7790572732640 + TELESCOPE.longitude_rad / (2 * np.pi)
_SCALE_PRIOR = 0.03
_BEAM_PRIORS = np.array([0.1, 0.1, 0.2, 0.2])  # widths (relative), pointing (deg)
_LEAST_ERROR = 0.005  # of a measurement: no beam and no gain is better
_OUTLIER = 4.0
_ROUNDS = 8


def sidereal_turns(mjd: np.ndarray | float) -> np.ndarray | float:
    """Turns of the sky over the telescope: the fraction is the sidereal time of its meridian
    (the Earth's rotation angle; IERS Conventions 2010, 5.4.4), to a second."""
    days = np.asarray(mjd) - _J2000_MJD
    return _TURNS_AT_J2000 + _TURNS_A_DAY * days


def mjd_of_turns(turns: np.ndarray | float) -> np.ndarray | float:
    """When the sky has made so many turns (`sidereal_turns`), UTC."""
    return _J2000_MJD + (np.asarray(turns) - _TURNS_AT_J2000) / _TURNS_A_DAY


def sidereal_day(mjd: np.ndarray | float, ra_deg: np.ndarray | float) -> np.ndarray:
    """Number of the sidereal day of a transit: measurements of one transit have one number, also
    where the right ascension is 0."""
    return np.floor(sidereal_turns(mjd) - np.asarray(ra_deg) / 360 + 0.5).astype(int)


@dataclass(frozen=True)
class DayFit:
    """Of a day: c_g (ngroup,), a (4,): widths to the east and north (relative), pointing to the
    east and north (deg); the covariance of (c, a) against other days (what the reference is off is
    common to all), chi squared a degree of freedom of a source's tiles against each other (NaN:
    too few), and how many sources held it."""

    scale: np.ndarray
    beam: np.ndarray
    covariance: np.ndarray
    chi2: float
    constants: int

    @property
    def errors(self) -> np.ndarray:
        """Of (c, a)."""
        return np.sqrt(np.diagonal(self.covariance))


def fit_day(
    table: pd.DataFrame,
    *,
    source: np.ndarray,
    group: np.ndarray,
    ngroup: int,
    slopes: np.ndarray,
    reference_jy: np.ndarray,
    reference_error: np.ndarray,
) -> DayFit:
    """Scales of a day's tiles, and its beam.

    table            measurements: flux_jy, error_jy
    source, group    numbers from 0 (n,)
    slopes           (n, 4), phi
    reference_jy     (nsource,) what fluxes are thought to be; NaN: not known
    reference_error  (nsource,) relative
    """
    priors = np.r_[np.full(ngroup, _SCALE_PRIOR), _BEAM_PRIORS]
    nothing = DayFit(np.zeros(ngroup), np.zeros(4), np.diag(priors**2), np.nan, 0)
    flux, error = table.flux_jy.values, table.error_jy.values
    known = np.isfinite(reference_jy) & (reference_jy > 0)
    use = (flux > LEAST_SNR * error) & (error > 0) & known[source]
    if len(np.unique(source[use])) < FEW_CONSTANTS:
        return nothing
    names, source = np.unique(source[use], return_inverse=True)
    group, phi = group[use], slopes[use]
    values = np.log(flux[use])
    weight = 1 / ((error / flux)[use] ** 2 + _LEAST_ERROR**2)
    expected, prior = np.log(reference_jy[names]), 1 / reference_error[names] ** 2
    number, columns = len(values), ngroup + 4
    one = sparse.csr_array((np.ones(number), (np.arange(number), group)), shape=(number, ngroup))
    design = sparse.hstack([one, sparse.csr_array(phi)], format="csr")
    of_source = sparse.csr_array((np.ones(number), (source, np.arange(number))))
    known = np.diag(priors**-2.0)
    kept, trusted = np.ones(number), np.ones(len(names))
    for _ in range(_ROUNDS):
        w = weight * kept
        weighted = design.multiply(w[:, None]).tocsr()
        own = np.bincount(source, w, len(names)) + prior * trusted + 1e-9
        cross = of_source @ weighted  # (nsource, columns)
        right_own = np.bincount(source, w * values, len(names)) + prior * trusted * expected
        normal = (design.T @ weighted).toarray() + known
        scaled = cross.multiply(1 / own[:, None]).tocsr()
        reduced = normal - (cross.T @ scaled).toarray()
        covariance = linalg.inv(reduced)
        terms = covariance @ (weighted.T @ values - cross.T @ (right_own / own))
        log_flux = (right_own - cross @ terms) / own
        left = values - log_flux[source] - design @ terms
        size = np.abs(left) * np.sqrt(weight)
        noise = max(1.0, 1.4826 * float(np.median(size[kept > 0])))
        kept = (size < _OUTLIER * noise).astype(float)
        away = np.abs(_alone(values - design @ terms, weight, source, len(names)) - expected)
        of_mean = 1 / np.bincount(source, weight, len(names))
        trusted = (away < _OUTLIER * np.sqrt(1 / prior + of_mean)).astype(float)
    # of a source's measurements among each other: what it was thought to be says nothing of tiles
    values, w = values - design @ terms, weight * kept
    left = values - _alone(values, w + 1e-12, source, len(names))[source]
    free = kept.sum() - len(np.unique(source[kept > 0])) - columns
    return DayFit(
        terms[:ngroup],
        terms[ngroup:],
        linalg.inv(normal),
        float((w * left**2).sum() / free) if free >= FEW_CONSTANTS else np.nan,
        int(trusted.sum()),
    )


def _alone(values: np.ndarray, weight: np.ndarray, source: np.ndarray, number: int) -> np.ndarray:
    """Means of each source's measurements, without what was thought of it before."""
    return np.bincount(source, weight * values, number) / np.bincount(source, weight, number)


def combine(
    table: pd.DataFrame, *, source: np.ndarray, group: np.ndarray, slopes: np.ndarray, fit: DayFit
) -> pd.DataFrame:
    """One row a source, in order of its number: mjd, flux_jy, error_jy (of the noise), systematic
    (relative: of scales and beam), chi2 (against their mean, of the noise and half a per cent),
    beam (response, on average), number (of measurements), tile (number of the group that counts
    most).

    Weights are 1 / error^2, which go as beam^2 / sigma^2.
    """
    phi = slopes
    factor = np.exp(-(fit.scale[group] + phi @ fit.beam))
    flux, error = table.flux_jy.values * factor, table.error_jy.values * factor
    weight = 1 / error**2
    number = int(source.max(initial=-1)) + 1
    total = np.bincount(source, weight, number)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(source, weight * values, number) / total

    ngroup = len(fit.scale)
    # tiles' scales are of their own; the beam is the day's
    of_tiles = (
        np.bincount(source, weight**2 * np.diagonal(fit.covariance)[group], number) / total**2
    )
    mean_phi = np.stack([mean(phi[:, k]) for k in range(phi.shape[1])], axis=1)
    of_beam = np.einsum("nk,kl,nl->n", mean_phi, fit.covariance[ngroup:, ngroup:], mean_phi)
    combined = mean(flux)
    spread = error**2 + (_LEAST_ERROR * combined[source]) ** 2
    most = np.lexsort((group, weight, source))
    last = np.r_[np.flatnonzero(np.diff(source[most])), len(most) - 1]
    return pd.DataFrame(
        {
            "mjd": mean(table.mjd.values),
            "flux_jy": combined,
            "error_jy": np.sqrt(1 / total),
            "systematic": np.sqrt(of_tiles + np.maximum(of_beam, 0)),
            "chi2": np.bincount(source, (flux - combined[source]) ** 2 / spread, number),
            "beam": mean(table.beam.values),
            "number": np.bincount(source, minlength=number),
            "tile": group[most][last],
        }
    )


def means_of(epochs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Own means of sources over epochs (source, sday, flux_jy, error_jy): source, flux_jy, error
    (relative), and whether it is constant: seen in half of them, and not varying."""
    table = pd.concat(epochs).sort_values(["source", "sday"], kind="stable")
    names, index = np.unique(table.source.values.astype(str), return_inverse=True)
    flux = table.flux_jy.values
    variance = table.error_jy.values**2 + (_LEAST_ERROR * flux) ** 2
    weight, number = 1 / variance, np.bincount(index)
    total = np.bincount(index, weight)
    mean = np.bincount(index, weight * flux) / total
    eta = np.bincount(index, weight * (flux - mean[index]) ** 2) / np.maximum(number - 1, 1)
    error = np.sqrt(np.maximum(eta, 1) / total) / np.maximum(mean, 1e-12)
    constant = (number >= len(epochs) / 2) & (mean > 0) & (eta < 1 + 5 * np.sqrt(2 / number))
    return pd.DataFrame(
        {"source": names, "flux_jy": mean, "error": np.maximum(error, 0.002), "constant": constant}
    )
