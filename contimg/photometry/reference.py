"""The reference catalogue of a strip: which sources are measured, at which places. It is frozen;
what comes later is another version, in which all that was keeps its name and place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from contimg.sky.catalogues import Sky
from contimg.sky.geometry import separation_deg

COLUMNS = ("source", "ra_deg", "dec_deg", "flux_jy", "alpha")
UNITS = {"ra_deg": "deg, ICRS", "dec_deg": "deg, ICRS", "flux_jy": "Jy at 1.4 GHz", "alpha": ""}


@dataclass(frozen=True)
class Reference:
    """COLUMNS in order of right ascension, and the version's name (`+16.1.v1`)."""

    version: str
    table: pd.DataFrame

    def around(self, ra_deg: float, dec_deg: float, radius_deg: float) -> pd.DataFrame:
        """Sources within a radius."""
        table = self.table
        away = separation_deg(table.ra_deg.values, table.dec_deg.values, ra_deg, dec_deg)
        return table[away <= radius_deg].reset_index(drop=True)


def sources_of_strip(sky: Sky, dec_deg: float, half_deg: float, least_jy: float) -> pd.DataFrame:
    """A catalogue's sources of a declination, with names of their own: COLUMNS, by right
    ascension."""
    found = sky.between(dec_deg - half_deg, dec_deg + half_deg, least_jy)
    found = found.sort_values(["ra_deg", "dec_deg"], kind="stable").reset_index(drop=True)
    again = found.groupby("name").cumcount()
    names = found.name + np.where(again > 0, " " + (again + 1).astype(str), "")
    return found.assign(source=names)[list(COLUMNS)]


def with_new(
    known: pd.DataFrame, others: pd.DataFrame, same_arcsec: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A reference with what others (COLUMNS) have that it does not; and these."""
    if not len(others):
        return known, others
    if not len(known):
        return others.sort_values(["ra_deg", "dec_deg"]).reset_index(drop=True), others
    away_arcsec, _ = nearest(known, others)
    new = others[away_arcsec > same_arcsec]
    taken, names = set(known.source), []
    for name in new.source:
        tried, number = name, 2
        while tried in taken:
            tried, number = f"{name} {number}", number + 1
        taken.add(tried)
        names.append(tried)
    new = new.assign(source=names)
    both = pd.concat([known, new]).sort_values(["ra_deg", "dec_deg"], kind="stable")
    return both.reset_index(drop=True), new


def nearest(known: pd.DataFrame, others: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """For each of some others the nearest of those known (ra_deg, dec_deg): how far it is, arcsec,
    and its number."""
    one, other = (unit_vectors(t.ra_deg.values, t.dec_deg.values) for t in (known, others))
    chord, which = cKDTree(one).query(other)
    return np.degrees(2 * np.arcsin(chord / 2)) * 3600, which


def unit_vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    """Directions (n, 3)."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def place_of(vectors: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Mean place (RA, Dec in deg) of directions (n, 3)."""
    x, y, z = weight @ vectors
    return float(np.degrees(np.arctan2(y, x)) % 360), float(
        np.degrees(np.arctan2(z, np.hypot(x, y)))
    )


def name_of_place(ra_deg: float, dec_deg: float) -> str:
    """J2000 name of a source that no catalogue has, to 0.1 s and 1 arcsec (truncated, as is the
    custom)."""
    tenths = int(ra_deg % 360 / 15 * 36000)
    seconds = int(abs(dec_deg) * 3600)
    hours = f"{tenths // 36000:02d}{tenths // 600 % 60:02d}{tenths % 600 / 10:04.1f}"
    sign = "-" if dec_deg < 0 else "+"
    return f"J{hours}{sign}{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def about(version: str, sky: Sky, options: Mapping) -> dict:
    """For a reference's metadata."""
    return {
        "version": version,
        "catalogue": sky.path.name,
        "catalogue_checksum": sky.checksum,
        "options": dict(options),
        "units": UNITS,
    }
