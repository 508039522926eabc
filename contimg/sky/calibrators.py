"""Is there a calibrator in the beam, and what is its flux?

Flux, in this order: `calibration.flux_override`, the scale of Perley & Butler 2017 for its point
sources, the sky catalogue's entry within 10 arcsec, the calibrator list's own 20 cm flux. A source
without any of these is no candidate. Position: the calibrator list's.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import erfa
import numpy as np
import pandas as pd

from contimg.config import CalibrationConfig, CataloguesConfig
from contimg.errors import ConfigError
from contimg.sky.beam import airy_power
from contimg.sky.catalogues import CATALOGUE_HZ, DEFAULT_ALPHA, Sky, read_sky
from contimg.sky.geometry import separation_deg
from contimg.sky.skymodel import SAME_SOURCE_ARCSEC, Source
from contimg.telescope import TELESCOPE

# Perley & Butler 2017, ApJS 230, 7, table 6: log10 S[Jy] against log10 nu[GHz]; those that are
# points to this array.
PERLEY_BUTLER_2017 = {
    "3C48": (1.3253, -0.7553, -0.1914, 0.0498),
    "3C138": (1.0088, -0.4981, -0.1552, -0.0102, 0.0223),
    "3C147": (1.4516, -0.6961, -0.2007, 0.0640, -0.0464, 0.0289),
    "3C196": (1.2872, -0.8530, -0.1534, -0.0200, 0.0201),
    "3C286": (1.2481, -0.4507, -0.1798, 0.0357),
    "3C295": (1.4701, -0.7658, -0.2780, -0.0347, 0.0399),
}
NEVER_POINTS = {"3C461", "3C405", "3C144", "3C274"}  # Cas A, Cyg A, Tau A, Vir A
VARIABLE = {"3C454.3"}
_PRECISE = "ABC"  # position codes of the VLA's list: better than 2 mas, 10 mas, 150 mas
# of the strongest: a calibrator fainter than this beside it would be calibrated by the other
_DWARFED = 0.2
_FAR_DEG = 4.0  # from the centre of the beam: nothing there calibrates
_TT_S = 69.2  # ahead of UTC
_STEPS = 13
_SIDEREAL_RATE = 1.00273790935


@dataclass(frozen=True)
class Candidate:
    """A calibrator in the beam of a group."""

    name: str
    source: Source
    flux_origin: str  # flux_override, Perley-Butler 2017, sky catalogue, calibrator list
    mean_beam: float  # over the group, at 1.4 GHz
    apparent_jy: float
    quality: str
    variable: bool


def read_calibrators(path: Path, sky: Sky, options: CalibrationConfig) -> pd.DataFrame:
    """The calibrator list with `flux_jy` at 1.4 GHz and `flux_origin`; sources without a flux have
    NaN."""
    try:
        table = pd.read_csv(path, dtype={"name": str, "alt_name": str, "quality_abcd": str})
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the calibrator list cannot be read: {error}. See catalogues.calibrators."
        ) from None
    table = table.fillna({"alt_name": "", "quality_abcd": ""})
    known = set(table["name"]) | set(table["alt_name"])
    unknown = (set(options.allow) | set(options.deny) | set(options.flux_override)) - known
    if unknown:
        raise ConfigError(f"calibration: {sorted(unknown)} are not in {path}")
    table["flux_jy"], table["alpha"] = table["flux_20cm_jy"], DEFAULT_ALPHA
    table["flux_origin"] = np.where(table["flux_jy"].notna(), "calibrator list", "")
    found = sky.nearest(table["ra_deg"].values, table["dec_deg"].values)
    near = found["flux_jy"].notna().values
    table.loc[near, ["flux_jy", "alpha"]] = found.loc[near, ["flux_jy", "alpha"]].values
    table.loc[near, "flux_origin"] = "sky catalogue"
    for name, coefficients in PERLEY_BUTLER_2017.items():
        rows = table["alt_name"] == name
        table.loc[rows, "flux_jy"] = float(
            _perley_butler(name, 0, 0, coefficients).flux_jy(CATALOGUE_HZ)
        )
        table.loc[rows, "flux_origin"] = "Perley-Butler 2017"
    for name, flux_jy in options.flux_override.items():
        rows = (table["name"] == name) | (table["alt_name"] == name)
        table.loc[rows, ["flux_jy", "flux_origin"]] = [flux_jy, "flux_override"]
    return table


def read_corrected(lists: CataloguesConfig, options: CalibrationConfig) -> Sky:
    """The sky catalogue, in which calibrators have the flux that is known better (flux_override,
    Perley-Butler), and the place of the calibrator list where that is precise (codes A to C: better
    than 0.15 arcsec)."""
    sky = read_sky(lists.sky)
    table = read_calibrators(lists.calibrators, sky, options)
    better = table["flux_origin"].isin(["flux_override", "Perley-Butler 2017"])
    corrections = table[["ra_deg", "dec_deg"]].assign(
        flux_jy=table["flux_jy"].where(better), precise=table["position_code"].isin(list(_PRECISE))
    )
    return replace(
        sky, corrections=corrections[corrections.precise | better], same_arcsec=SAME_SOURCE_ARCSEC
    )


def _perley_butler(name, ra_deg, dec_deg, coefficients) -> Source:
    return Source(name, ra_deg, dec_deg, tuple(coefficients), reference_hz=1e9)


def _as_source(row) -> Source:
    name = row.alt_name or row.name
    if row.flux_origin == "Perley-Butler 2017":
        return _perley_butler(name, row.ra_deg, row.dec_deg, PERLEY_BUTLER_2017[row.alt_name])
    return Source.power_law(name, row.ra_deg, row.dec_deg, row.flux_jy, row.alpha)


def mean_beam(ra_deg, dec_deg, centre_ra_deg: float, centre_dec_deg: float) -> np.ndarray:
    """Mean 1.4 GHz beam response (nsource,) during a group: the sky moves, the ICRS centre at mid
    time is given.

    Good to a few parts in a thousand; for choosing, not for calibrating.
    """
    steps_deg = np.linspace(-0.5, 0.5, _STEPS) * TELESCOPE.group_s * _SIDEREAL_RATE / 240
    away = separation_deg(
        np.asarray(ra_deg)[:, None],
        np.asarray(dec_deg)[:, None],
        centre_ra_deg + steps_deg,
        centre_dec_deg,
    )
    return airy_power(np.sin(np.radians(away)), CATALOGUE_HZ).mean(axis=1)


def _centre_icrs_deg(mid_mjd: np.ndarray, app_dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`geometry.meridian_icrs_deg` without UT1 and polar motion, whose tables take a second to
    read; good to 15 arcsec."""
    hour_angle_0 = erfa.era00(erfa.DJM0, mid_mjd) + TELESCOPE.longitude_rad
    ra, dec, _ = erfa.atic13(
        hour_angle_0, np.radians(app_dec_deg), erfa.DJM0, mid_mjd + _TT_S / 86400
    )
    return np.degrees(ra), np.degrees(dec)


def find_candidates(
    table: pd.DataFrame, mid_mjd, app_dec_deg, options: CalibrationConfig
) -> list[list[Candidate]]:
    """For each group (arrays of mid time and apparent declination): its candidates, best first.

    Best is the largest beam-weighted flux; a constant source goes before a variable one (unless
    that dwarfs it), and of two within 10 % the one with the better quality code for the VLA's C and
    D configurations, which resemble this array.
    """
    mid_mjd = np.atleast_1d(mid_mjd).astype(float)
    app_dec_deg = np.atleast_1d(app_dec_deg).astype(float)
    if not len(mid_mjd):
        return []
    usable = table[
        (table["flux_jy"] >= options.min_flux_jy) & ~table["alt_name"].isin(NEVER_POINTS)
    ]
    names = [usable["name"], usable["alt_name"]]
    if options.allow:
        usable = usable[names[0].isin(options.allow) | names[1].isin(options.allow)]
    usable = usable[~(usable["name"].isin(options.deny) | usable["alt_name"].isin(options.deny))]
    rows, found = list(usable.itertuples(index=False)), []
    ra_deg, dec_deg = usable["ra_deg"].values, usable["dec_deg"].values
    for ra, dec in np.transpose(_centre_icrs_deg(mid_mjd, app_dec_deg)):
        near = np.flatnonzero(np.abs(dec_deg - dec) < _FAR_DEG)
        near = near[separation_deg(ra_deg[near], dec_deg[near], ra, dec) < _FAR_DEG]
        candidates = [
            Candidate(
                row.alt_name if row.alt_name in (VARIABLE | set(PERLEY_BUTLER_2017)) else row.name,
                _as_source(row),
                row.flux_origin,
                float(beam),
                float(beam * row.flux_jy),
                row.quality_abcd,
                row.alt_name in VARIABLE,
            )
            for row, beam in zip(
                (rows[i] for i in near),
                mean_beam(ra_deg[near], dec_deg[near], ra, dec),
                strict=True,
            )
            if beam >= options.min_beam
        ]
        strongest = max((c.apparent_jy for c in candidates), default=0.0)
        found.append(
            sorted(candidates, key=lambda c: (c.apparent_jy < _DWARFED * strongest, _rank(c)))
        )
    return found


def _rank(candidate: Candidate) -> tuple:
    quality = sum(
        "PSWX".find(letter) if letter in "PSWX" else 3 for letter in candidate.quality[2:4].ljust(2)
    )
    return (
        candidate.variable,
        -round(np.log(max(candidate.apparent_jy, 1e-3)) / np.log(1.1)),
        quality,
    )
