"""The array's beam from what a drift shows: the same sources in consecutive groups, at different
places.

Of source i in group g, with apparent flux A (an image's peak over what smearing leaves):

    ln A = ln S_i + ln s_g + ln B(place; widths, pointing, taper)

Ratios of one source's fluxes need no catalogue, and give the beam along the drift. Across it every
source keeps its place: there, a beam that is a product of one of each axis cancels, and only the
catalogue's fluxes, on average, tell it. So ln S_i is that of the catalogue with the scatter that
catalogues have, and both fits are made.

B is the beam of a round dish whose illumination falls to the edge (Born & Wolf 8.5.2 for none),
stretched along two axes; averaged over a group's drift.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.special import j1, jv

from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.telescope import TELESCOPE

_AIRY_FWHM = 1.02899  # lambda / D
# of the terms: widths to the east and north, east_deg, north_deg, taper
_STEPS = np.array([1e-3, 1e-3, 1e-3, 1e-3, 1e-2])
_EVEN = np.array([1.0, 1.0, 0.0, 0.0, 0.0])  # the Airy disk
_BOUNDS = np.array([[0.6, 0.6, -1, -1, -0.5], [1.7, 1.7, 1, 1, 1.5]])
_CATALOGUE_SCATTER = 0.1  # of ln S: what a catalogue knows of one source
_SCALE_SCATTER = 0.03  # of a group's flux scale
_TAPER_SCATTER = 0.5  # what is thought of the taper before
_OUTLIER = 4.0
_LEAST_RESPONSE = 0.02
_NODES, _BAND_NODES = 5, 3
_LEAST_ERROR = 0.003  # of ln A: no image is better
_ROUNDS, _BEFORE_OUTLIERS, _CLOSE = 25, 3, 1e-5


@dataclass(frozen=True)
class Measured:
    """Apparent fluxes of catalogue sources in groups, all (n,).

    group, source  numbers from 0
    east_deg, north_deg  from the middle of the tracked track at mid time, apparent
    apparent_jy, error_jy  of the image, before the beam is divided out
    catalogue_jy   at the image's frequency
    """

    group: np.ndarray
    source: np.ndarray
    east_deg: np.ndarray
    north_deg: np.ndarray
    apparent_jy: np.ndarray
    error_jy: np.ndarray
    catalogue_jy: np.ndarray


@dataclass(frozen=True)
class BeamFit:
    """Half-power widths along two axes at `freq_hz`, pointing (deg to the east and north), taper
    (0: evenly lit),
    their errors, and how good the fit is."""

    fwhm_east_deg: float
    fwhm_north_deg: float
    east_deg: float
    north_deg: float
    taper: float
    fwhm_east_error_deg: float
    fwhm_north_error_deg: float
    east_error_deg: float
    north_error_deg: float
    taper_error: float
    freq_hz: float
    chi2: float
    measurements: int
    sources: int
    groups: int
    scale_scatter: float  # of the groups' flux scales
    # the same from ratios of each source's own fluxes alone; across the drift they say little
    ratios_fwhm_east_deg: float
    ratios_fwhm_east_error_deg: float
    ratios_east_deg: float
    ratios_east_error_deg: float

    def as_json(self) -> dict:
        """For a result."""
        return {name: round(value, 6) for name, value in asdict(self).items()}

    def power(self, east_deg: np.ndarray, north_deg: np.ndarray) -> np.ndarray:
        """Response at `freq_hz` at offsets from the tracked direction."""
        widths = np.array([self.fwhm_east_deg, self.fwhm_north_deg]) / airy_fwhm_deg(self.freq_hz)
        widths = widths / _fwhm_of_taper(self.taper)
        terms = np.array([*widths, self.east_deg, self.north_deg, self.taper])
        return tapered(east_deg, north_deg, terms, self.freq_hz)


def airy_fwhm_deg(freq_hz: float) -> float:
    """Half-power width of the evenly lit dish."""
    return float(np.degrees(_AIRY_FWHM * SPEED_OF_LIGHT_M_S / freq_hz / TELESCOPE.dish_diameter_m))


def _voltage(x: np.ndarray, taper: float) -> np.ndarray:
    """Of an illumination (1 - taper) + taper (1 - r^2), 1 on the axis."""
    x = np.maximum(np.abs(x), 1e-6)
    even, falling = 2 * j1(x) / x, 8 * jv(2, x) / x**2
    return ((1 - taper) * even + taper / 2 * falling) / (1 - taper / 2)


def _fwhm_of_taper(taper: float) -> float:
    """Half-power width over that of the evenly lit dish."""
    x = np.linspace(1.0, 3.0, 2001)
    return float(np.interp(-0.5, -(_voltage(x, taper) ** 2), x) / 1.61634)


def tapered(east_deg, north_deg, terms: np.ndarray, freq_hz: float) -> np.ndarray:
    """Power response for widths to the east and north (stretches of the dish's), pointing in deg
    to the east and north, and taper."""
    wide, high, east, north, taper = terms
    away = np.hypot(
        np.sin(np.radians(east_deg - east)) / wide, np.sin(np.radians(north_deg - north)) / high
    )
    x = np.pi * TELESCOPE.dish_diameter_m * freq_hz / SPEED_OF_LIGHT_M_S * away
    return _voltage(x, taper) ** 2


def _response(of: Measured, terms: np.ndarray, freq_hz: float, track: np.ndarray) -> np.ndarray:
    """ln of the response averaged over a drift and a band: `track` (3, n) has places to the east
    (deg), frequencies, and their shares (Gauss and Legendre's: the beam is smooth).

    Near the first zero a band's mean is not the beam of its middle: 2 % where it has 0.05.
    """
    places_deg, at_hz, shares = track
    power = tapered(of.east_deg[:, None] - places_deg, of.north_deg[:, None], terms, at_hz)
    return np.log(np.maximum(power @ shares, 1e-6))


def _track(freq_hz: float, drift_deg: float, bandwidth_hz: float) -> np.ndarray:
    """(3, n): places, frequencies and shares that stand for a drift and a band."""
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    in_band, of_band = np.polynomial.legendre.leggauss(_BAND_NODES)
    return np.stack(
        [
            np.repeat(nodes * drift_deg / 2, _BAND_NODES),
            np.tile(freq_hz + in_band * bandwidth_hz / 2, _NODES),
            np.outer(shares, of_band).ravel() / 4,
        ]
    )


def beam_slopes(
    east_deg: np.ndarray,
    north_deg: np.ndarray,
    *,
    freq_hz: float,
    drift_deg: float,
    bandwidth_hz: float = 0.0,
) -> np.ndarray:
    """How ln of the Airy disk's response at places (n,) changes with its widths to the east and
    north (relative) and with where it points (per deg to the east, to the north): (n, 4)."""
    none = np.zeros(len(east_deg))
    of = Measured(none, none, np.asarray(east_deg), np.asarray(north_deg), none, none, none)
    track, found = _track(freq_hz, drift_deg, bandwidth_hz), []
    for step in np.diag(_STEPS)[:4]:
        above, below = (_response(of, _EVEN + s, freq_hz, track) for s in (step, -step))
        found.append((above - below) / (2 * step.sum()))
    return np.stack(found, axis=1)


def fit_beam(of: Measured, freq_hz: float, drift_deg: float, bandwidth_hz: float = 0.0) -> BeamFit:
    """The beam of the array at a frequency, from images of a band around it; the sky moves
    `drift_deg` during a group.

    Raises ValueError when sources are too few.
    """
    track, start = _track(freq_hz, drift_deg, bandwidth_hz), _EVEN
    use = (of.apparent_jy > 0) & (of.error_jy > 0) & (of.catalogue_jy > 0)
    with np.errstate(invalid="ignore"):
        use &= _response(of, start, freq_hz, track) > np.log(_LEAST_RESPONSE)
    of = Measured(*(getattr(of, name)[use] for name in of.__dataclass_fields__))
    _, source = np.unique(of.source, return_inverse=True)
    _, group = np.unique(of.group, return_inverse=True)
    of = replace(of, source=source, group=group)
    if len(of.source) < 20 or np.bincount(source).max(initial=0) < 2:
        raise ValueError(f"{len(of.source)} measurements of sources are too few for a beam")
    whole = _solve(of, freq_hz, track, start, _CATALOGUE_SCATTER)
    ratios = _solve(of, freq_hz, track, whole[0], 10.0)
    terms, error, chi2, kept, scales = whole
    # width and taper go together: the width at half power is known better than either
    fwhm, fwhm_error = _widths(terms, error, freq_hz)
    of_ratios, of_ratios_error = _widths(ratios[0], ratios[1], freq_hz)
    deviation = np.sqrt(np.diagonal(error))
    return BeamFit(
        *(float(x) for x in (*fwhm, *terms[2:5], *fwhm_error, *deviation[2:5], freq_hz, chi2)),
        int(kept.sum()),
        int(source.max() + 1),
        int(group.max() + 1),
        float(np.std(scales)),
        float(of_ratios[0]),
        float(of_ratios_error[0]),
        float(ratios[0][2]),
        float(np.sqrt(ratios[1][2, 2])),
    )


def _widths(
    terms: np.ndarray, covariance: np.ndarray, freq_hz: float
) -> tuple[np.ndarray, np.ndarray]:
    """Half-power widths, and their errors."""
    airy, width = airy_fwhm_deg(freq_hz), _fwhm_of_taper(terms[4])
    slope = (_fwhm_of_taper(terms[4] + 0.01) - width) / 0.01
    fwhm, found = airy * width * terms[:2], []
    for k in (0, 1):
        jacobian = np.zeros(5)
        jacobian[k], jacobian[4] = airy * width, airy * terms[k] * slope
        found.append(np.sqrt(jacobian @ covariance @ jacobian))
    return fwhm, np.array(found)


def _solve(
    of: Measured, freq_hz: float, track: np.ndarray, terms: np.ndarray, scatter: float
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """Gauss-Newton for the beam's terms, groups, a common factor and sources: terms, their
    covariance, chi squared a degree of freedom, what was kept, and the groups' scales (ln).

    Sources are many and do not touch each other: they are eliminated.
    """
    number, nsource, ngroup = len(of.source), of.source.max() + 1, of.group.max() + 1
    values, error = np.log(of.apparent_jy), np.hypot(of.error_jy / of.apparent_jy, _LEAST_ERROR)
    expected, rows, columns = np.zeros(nsource), np.arange(number), 5 + ngroup + 1
    expected[of.source] = np.log(of.catalogue_jy)
    known = np.zeros(columns)  # before: the taper, the groups
    known[4], known[5:-1] = 1 / _TAPER_SCATTER**2, 1 / _SCALE_SCATTER**2
    unknown, fluxes = np.concatenate([terms, np.zeros(ngroup + 1)]), expected.copy()
    kept, noise, of_source = np.ones(number, bool), 1.0, 1 / scatter**2
    for turn in range(_ROUNDS):
        now = _response(of, unknown[:5], freq_hz, track)
        design = np.zeros((number, columns))
        for k, (step, size) in enumerate(zip(np.diag(_STEPS), _STEPS, strict=True)):
            design[:, k] = (_response(of, unknown[:5] + step, freq_hz, track) - now) / size
        design[rows, 5 + of.group] = 1
        weight = kept / (error * noise) ** 2
        left = values - now - fluxes[of.source] - unknown[5 + of.group]
        weighted = design * weight[:, None]
        cross = np.zeros((nsource, columns))  # between sources and the rest
        np.add.at(cross, of.source, weighted)
        cross[:, -1] -= of_source
        own = np.bincount(of.source, weight, nsource) + of_source
        away = expected + unknown[-1] - fluxes  # of the catalogue
        right_own = np.bincount(of.source, weight * left, nsource) + of_source * away
        normal = design.T @ weighted + np.diag(known)
        normal[-1, -1] += nsource * of_source
        right = weighted.T @ left - known * unknown
        right[-1] -= of_source * away.sum()
        reduced = normal - cross.T @ (cross / own[:, None])
        covariance = np.linalg.pinv(reduced, rcond=1e-12, hermitian=True)
        step = covariance @ (right - cross.T @ (right_own / own))
        unknown = unknown + step
        unknown[:5] = np.clip(unknown[:5], *_BOUNDS)
        fluxes = fluxes + (right_own - cross @ step) / own
        if turn >= _BEFORE_OUTLIERS:
            size = np.abs(left) / error
            noise = max(1.0, 1.4826 * float(np.median(size[kept])))
            kept = size < _OUTLIER * noise
            if np.abs(step[:5]).max() < _CLOSE:
                break
    fitted = float((1 - of_source / own).sum()) + columns
    chi2 = float(((left / error)[kept] ** 2).sum() / max(1.0, kept.sum() - fitted))
    return unknown[:5], covariance[:5, :5], chi2, kept, unknown[5:-1]
