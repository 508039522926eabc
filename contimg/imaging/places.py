"""What fluxes and offsets of catalogue sources say when they depend on the place in the image: the
beam, the pointing, rotation and scale; and where the sky would be if it is not where it should.

Offsets are to the east and north of the image's centre.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from contimg.config import ValidationConfig
from contimg.findings import Finding, judged, unknown
from contimg.sky.geometry import SKY_ARCSEC_S

_LEAST_SNR, _LEAST_BEAM = 8.0, 0.1
_MAD = 1.4826
_OUTLIER = 3.0
_CATALOGUE_SCATTER = 0.02  # no catalogue is better
_PLACE_SCATTER_ARCSEC = 0.05
_SIGNIFICANT = 5.0
_HALF_POWER_DEG = 1.35
_FWHM_DEG = 2.71  # of the beam at 1.4 GHz that images are divided by
_WIDEST_DEG = 6.0
_FEW = 8
_ENOUGH_OF_SKY = 3


def _fitted(
    design: np.ndarray, values: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Terms, their errors and the scatter in units of `errors`, by least squares without
    outliers."""
    kept = np.ones(len(values), bool)
    for _ in range(8):
        weighted = design[kept] / errors[kept, None]
        terms, *_ = np.linalg.lstsq(weighted, values[kept] / errors[kept], rcond=None)
        left = (values - design @ terms) / errors
        scatter = max(1.0, _MAD * float(np.median(np.abs(left[kept] - np.median(left[kept])))))
        now = np.abs(left) <= _OUTLIER * scatter
        if (now == kept).all() or now.sum() <= design.shape[1] + 2:
            break
        kept = now
    covariance = np.linalg.pinv(weighted.T @ weighted)
    return terms, scatter * np.sqrt(np.diagonal(covariance)), scatter


def beam_of_fluxes(table: pd.DataFrame, limits: ValidationConfig) -> tuple[dict, list[Finding]]:
    """How fluxes over the catalogue's change with the place: numbers, and what is to be said.

    table  of `validation.compare_catalogue`, with east_deg and north_deg of each source

    With B = exp(-4 ln 2 r^2 / F^2), a beam of F' that points d aside makes ln(flux ratio) = 8 ln 2
    d.r / F'^2 + 4 ln 2 r^2 (1 / F^2 - 1 / F'^2); the widths along both axes may differ.
    """
    use = table[
        (table.snr >= _LEAST_SNR) & (table.beam >= _LEAST_BEAM) & table.found & (table.flux_jy > 0)
    ]
    if len(use) < _FEW:
        why = f"{len(use)} sources are too few to see whether fluxes depend on the place"
        return {}, [unknown(name="flux_place", why=why)]
    east, north = use.east_deg.values, use.north_deg.values
    ratio = np.log(use.flux_jy.values / use.catalogue_jy.values)
    errors = np.hypot(1 / use.snr.values, _CATALOGUE_SCATTER)
    squares = np.stack([east, north]) ** 2 / _HALF_POWER_DEG**2
    design = np.stack([np.ones(len(use)), east, north, *squares], axis=1)
    terms, error, _ = _fitted(design, ratio, errors)
    width = 1 / _FWHM_DEG**2 - terms[3:] / _HALF_POWER_DEG**2 / (4 * np.log(2))
    fwhm_deg = 1 / np.sqrt(np.maximum(width, 1 / _WIDEST_DEG**2))
    aside = terms[1:3] * fwhm_deg**2 / (8 * np.log(2))
    per_slope = float(fwhm_deg.mean() ** 2 / (8 * np.log(2)))
    slope, of_slope = float(np.hypot(*terms[1:3])), float(np.hypot(*error[1:3]) / np.sqrt(2))
    change = slope * _HALF_POWER_DEG
    numbers = {
        "sources": len(use),
        "pointing_east_deg": float(aside[0]),
        "pointing_north_deg": float(aside[1]),
        "pointing_error_deg": of_slope * per_slope,
        "fwhm_east_deg": float(fwhm_deg[0]),
        "fwhm_north_deg": float(fwhm_deg[1]),
        "change_at_half_power_east": float(np.expm1(terms[3])),
        "change_at_half_power_north": float(np.expm1(terms[4])),
        "change_error": float(error[3:].max()),
    }
    k = 3 + int(np.argmax(np.abs(terms[3:]) - _SIGNIFICANT * error[3:]))  # the surest
    if not max(of_slope * _HALF_POWER_DEG, error[k]) * _SIGNIFICANT < 1:
        why = "fluxes scatter too much to see whether they depend on the place"
        return numbers, [unknown(name="flux_place", why=why)]
    towards = _towards(*aside)
    return numbers, [
        judged(
            name="flux_slope",
            value=change if slope > _SIGNIFICANT * of_slope else 0.0,
            warn=limits.warn_flux_place,
            fail=limits.fail_flux_place,
            percent=True,
            words=f"fluxes grow by {change:.0%} from the centre to the half-power point {towards}: "
            f"as if the dishes pointed {np.hypot(*aside):.2f} deg {towards} ({aside[0]:+.2f} east, "
            f"{aside[1]:+.2f} north)",
            cause="A pointing or a declination that is not the header's, or a clock",
        ),
        judged(
            name="flux_radius",
            value=float(abs(np.expm1(terms[k])))
            if abs(terms[k]) > _SIGNIFICANT * error[k]
            else 0.0,
            warn=limits.warn_flux_place,
            fail=limits.fail_flux_place,
            percent=True,
            words=f"fluxes at the half-power point are {np.exp(terms[3]):.2f} (east and west) and "
            f"{np.exp(terms[4]):.2f} (north and south) times those in the centre: as if the beam "
            f"were {fwhm_deg[0]:.2f} x {fwhm_deg[1]:.2f} deg wide, if the one that is taken has "
            f"{_FWHM_DEG:g} deg",
            cause="contimg instrument DAY --fit, then imaging.beam: fitted",
        ),
    ]


def _towards(east: float, north: float) -> str:
    """A direction in words."""
    names = ("north", "north-east", "east", "south-east", "south", "south-west", "west")
    k = round(np.degrees(np.arctan2(east, north)) / 45) % 8
    return f"to the {(*names, 'north-west')[k]}"


def frame_of_offsets(
    table: pd.DataFrame, beam_arcsec: float, limits: ValidationConfig
) -> tuple[dict, list[Finding]]:
    """Rotation and scale of the image about its centre, from the offsets: east = s + a e + b n,
    north = t + a n - b e."""
    use = table[(table.snr >= _LEAST_SNR) & table.found]
    if len(use) < _FEW:
        return {}, [unknown(name="frame", why="too few sources to see a rotation or a scale")]
    east, north = use.east_deg.values, use.north_deg.values
    one, none = np.ones(len(use)), np.zeros(len(use))
    design = np.concatenate(
        [np.stack([one, none, east, north], axis=1), np.stack([none, one, north, -east], axis=1)]
    )
    values = np.concatenate([use.east_arcsec.values, use.north_arcsec.values])
    errors = np.tile(np.hypot(beam_arcsec / 2 / use.snr, _PLACE_SCATTER_ARCSEC), 2)
    terms, error, _ = _fitted(design, values, errors)
    at_edge = terms[2:] * _HALF_POWER_DEG
    numbers = {
        "scale_arcsec": float(at_edge[0]),
        "rotation_arcsec": float(at_edge[1]),
        "error_arcsec": float(error[2:].max() * _HALF_POWER_DEG),
    }
    size = float(np.hypot(*at_edge))
    sure = size > _SIGNIFICANT * numbers["error_arcsec"]
    return numbers, [
        judged(
            name="frame",
            value=size if sure else 0.0,
            warn=limits.warn_offset_arcsec,
            fail=limits.fail_offset_arcsec,
            unit="arcsec",
            words=f"offsets grow with the distance from the centre: at 1.35 deg "
            f'{at_edge[0]:+.1f}" outwards and {at_edge[1]:+.1f}" around',
            cause="Frequencies or antenna positions that are not the header's, or axes that do not "
            "point to the north",
        )
    ]


# -- when nothing matches
# ---------------------------------------------------------------------------------------------

_PARITIES: Mapping[str, tuple[int, int]] = {
    "": (1, 1),
    "mirrored east to west": (-1, 1),
    "mirrored north to south": (1, -1),
    "turned by 180 deg": (-1, -1),
}


@dataclass(frozen=True)
class Match:
    """Where the sky would be: the parity, the shift (arcsec) that sources have after it, how many
    agree, and how many would by chance."""

    parity: str
    east_arcsec: float
    north_arcsec: float
    agree: int
    chance: float


def search(
    found_deg: np.ndarray, expected_deg: np.ndarray, within_deg: float, cell_deg: float
) -> Match | None:
    """The parity and shift under which most of what was found stands where something is expected.

    found_deg, expected_deg  (n, 2), to the east and north of the centre, the brightest
    within_deg               largest shift
    cell_deg                 how well places agree
    """
    best = None
    for parity, signs in _PARITIES.items():
        apart = (found_deg * signs)[:, None] - expected_deg[None]
        apart = apart.reshape(-1, 2)
        apart = apart[(np.abs(apart) <= within_deg).all(axis=1)]
        if len(apart) < _ENOUGH_OF_SKY:
            continue
        near = np.abs(apart[:, None] - apart[None]).max(axis=-1) <= cell_deg
        agree = near.sum(axis=1)
        k = int(np.argmax(agree))
        chance = len(apart) * (2 * cell_deg / (2 * within_deg)) ** 2
        if best is None or agree[k] > best.agree:
            east, north = np.median(apart[near[k]], axis=0) * 3600
            best = Match(parity, float(east), float(north), int(agree[k]), float(chance))
    if best is None or best.agree < _ENOUGH_OF_SKY + 5 * np.sqrt(best.chance) + best.chance:
        return None
    return best


def match_words(match: Match, number: int, dec_deg: float) -> str:
    """A match in words, with what it probably is."""
    away = float(np.hypot(match.east_arcsec, match.north_arcsec))
    shift = (
        f"{away:.1f} arcsec ({match.east_arcsec:+.1f} east, {match.north_arcsec:+.1f} north)"
        if away < 600
        else f"{away / 3600:.2f} deg ({match.east_arcsec / 3600:+.2f} east, "
        f"{match.north_arcsec / 3600:+.2f} north)"
    )
    words = f"{match.agree} of {number} sources match"
    if match.parity:
        words += f" when {match.parity}: conjugated data, or an exchanged sign of u or v?"
    if away > 5:
        pace = SKY_ARCSEC_S * np.cos(np.radians(dec_deg))
        words += f"; all of them lie {shift} off"
        if abs(match.east_arcsec) > 3 * abs(match.north_arcsec):
            late = "late" if match.east_arcsec > 0 else "early"
            words += f": time_array is {abs(match.east_arcsec) / pace:.1f} s {late}?"
        elif abs(match.north_arcsec) > 3 * abs(match.east_arcsec):
            words += ": declination in the header?"
    return words
