"""Questions about sources: where, what, when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csgraph
from scipy.spatial import cKDTree
from sqlalchemy import func, select

from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.photometry.reference import name_of_place, nearest, place_of, unit_vectors
from contimg.products.sources import Change, Detection, Epoch, MeasuredGroup, Source
from contimg.products.tables import columns_of
from contimg.sky.geometry import separation_deg
from contimg.store import db
from contimg.store.parquet import query, read_about, read_table

SAME_ARCSEC = 15.0  # a position means the source that is so near
_SPECTRA = 30  # groups that a spectrum is averaged over
_ALONE_SIGMA = 8.0  # of a single detection
ORDERS = ("false_alarms", "eta", "v", "modulation", "mean_jy", "ra_deg", "dip", "flare")


def sources(
    paths: Paths,
    *,
    cone: tuple[float, float, float] | None = None,
    variable: bool = False,
    strip: str | None = None,
    name: str | None = None,
    order: str = "ra_deg",
    limit: int | None = None,
    offset: int = 0,
) -> tuple[list[dict[str, Any]], int]:
    """Rows of sources, and how many there are without limit and offset.

    cone      ra, dec, radius in deg; rows get `away_arcsec`, the nearest first
    variable  candidates only
    order     one of ORDERS; all but ra_deg and false_alarms fall
    """
    with db.reading(paths.sources_db) as session:
        if session is None:
            return [], 0
        asked = select(Source)
        if strip:
            asked = asked.where(Source.strip == strip)
        if name:
            asked = asked.where(Source.source == name)
        if variable:
            asked = asked.where(Source.reasons != "")
        if cone:
            found = _within(session.scalars(asked.where(*_around(*cone))).all(), *cone)
            return found[offset : offset + limit if limit else None], len(found)
        number = session.scalar(select(func.count()).select_from(asked.subquery()))
        column = getattr(Source, order)
        column = column if order in ("ra_deg", "false_alarms") else column.desc()
        asked = asked.order_by(column.nulls_last(), Source.source).offset(offset).limit(limit)
        return [columns_of(one) for one in session.scalars(asked)], number


def _around(ra_deg: float, dec_deg: float, radius_deg: float) -> list:
    """Conditions that a cone's sources meet, and some others."""
    steepest = min(89.0, abs(dec_deg) + radius_deg)
    reach = radius_deg / np.cos(np.radians(steepest))
    wheres: list = [Source.dec_deg.between(dec_deg - radius_deg, dec_deg + radius_deg)]
    if reach < 180:
        ranges = [
            Source.ra_deg.between(ra_deg - reach + turn, ra_deg + reach + turn)
            for turn in (-360, 0, 360)
        ]
        wheres.append(ranges[0] | ranges[1] | ranges[2])
    return wheres


def _within(rows: Sequence[Source], ra_deg: float, dec_deg: float, radius_deg: float) -> list[dict]:
    found = []
    for one in rows:
        away_deg = float(separation_deg(one.ra_deg, one.dec_deg, ra_deg, dec_deg))
        if away_deg <= radius_deg:
            found.append(columns_of(one) | {"away_arcsec": round(away_deg * 3600, 2)})
    return sorted(found, key=lambda one: (one["away_arcsec"], one["source"]))


def find(paths: Paths, name: str) -> dict[str, Any]:
    """A source by its name, or by a position in deg ("347.3 16.0"); raises RequestError."""
    try:
        place = [float(word) for word in name.replace(",", " ").split()]
    except ValueError:
        place = []
    if len(place) == 2:
        found, _ = sources(paths, cone=(place[0] % 360, place[1], SAME_ARCSEC / 3600), limit=1)
    else:
        with db.reading(paths.sources_db) as session:
            asked = select(Source).where(Source.source == name)
            found = [] if session is None else [columns_of(one) for one in session.scalars(asked)]
    if not found:
        near = f"within {SAME_ARCSEC:g} arcsec of {name}" if place else f"of the name {name}"
        raise RequestError(f"no source {near} has a light curve. contimg sources --cone RA,DEC,DEG")
    return found[0]


def lightcurve(paths: Paths, strip: str, source: str) -> pd.DataFrame:
    """A source's days in order: sday, mjd, flux_jy, error_jy, systematic, chi2, beam, number,
    tile."""
    files = paths.lightcurve_months(strip)
    if not files:
        return pd.DataFrame()
    asked = "SELECT * EXCLUDE (source) FROM {files} WHERE source = ? ORDER BY sday"
    return query(asked, files, [source])


def spectrum(paths: Paths, source: str, tiles: Sequence[str]) -> list[dict[str, float]]:
    """A bright source's mean flux in parts of the band (freq_hz, flux_jy, error_jy), over the
    latest of these groups that have it; empty for one that none has.

    Weighted by the noise; each group's scale as its image has it.
    """
    files = _with_spectra(paths, tiles)
    if not files:
        return []
    rows = query("SELECT * FROM {files} WHERE source = ?", files, [source])
    return _mean_parts(rows, read_about(files[-1]).get("spectra_hz", []))


def spectral_indices(paths: Paths, tiles: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Spectral index and its error of every source that has a spectrum in the latest of these
    groups, by name."""
    files = _with_spectra(paths, tiles)
    if not files:
        return {}
    rows = query("SELECT * FROM {files} WHERE flux_1_jy IS NOT NULL", files)
    at_hz = read_about(files[-1]).get("spectra_hz", [])
    found = {
        name: spectral_index(_mean_parts(mine, at_hz)) for name, mine in rows.groupby("source")
    }
    return {name: one for name, one in found.items() if one}


def _with_spectra(paths: Paths, tiles: Sequence[str]) -> list[Path]:
    files = [paths.photometry(tile) for tile in sorted(set(tiles))[-_SPECTRA:]]
    return [path for path in files if path.exists()]


def _mean_parts(rows: pd.DataFrame, at_hz: Sequence[float]) -> list[dict[str, float]]:
    found = []
    for part, freq_hz in enumerate(at_hz, start=1):
        mine = rows[rows[f"flux_{part}_jy"].notna()]
        if not len(mine):
            continue
        flux, error = mine[f"flux_{part}_jy"].values, mine[f"error_{part}_jy"].values
        weight = error**-2.0
        mean = float((weight * flux).sum() / weight.sum())
        found.append({"freq_hz": freq_hz, "flux_jy": mean, "error_jy": float(weight.sum() ** -0.5)})
    return found


def brightest(path: Path, number: int) -> list[dict[str, Any]]:
    """The brightest of a list of sources (a mosaic's): name, ra_deg, dec_deg, peak_jy, flux_jy,
    snr."""
    if not path.exists():
        return []
    words = "SELECT name, ra_deg, dec_deg, peak_jy, flux_jy, snr FROM {files}"
    rows = query(f"{words} ORDER BY snr DESC LIMIT {int(number)}", [path])
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def spectral_index(parts: Sequence[dict[str, float]]) -> tuple[float, float] | None:
    """Index and its error from fluxes in parts of the band; None where there are too few."""
    if len(parts) < 2 or min(one["flux_jy"] for one in parts) <= 0:
        return None
    x = np.log([one["freq_hz"] for one in parts])
    y = np.log([one["flux_jy"] for one in parts])
    weight = np.array([one["flux_jy"] / one["error_jy"] for one in parts]) ** 2
    x = x - np.average(x, weights=weight)
    spread = float((weight * x**2).sum())
    return float((weight * x * y).sum() / spread), spread**-0.5


def new_sources(paths: Paths, strip: str | None = None) -> list[dict[str, Any]]:
    """What images that may be published show and no reference has, the most certain first:
    detections that lie together, in two groups or more, or one beyond `_ALONE_SIGMA`; and what a
    tract's day shows beyond its other days (there, `first` and `last` are TRACT.SDAY)."""
    with db.reading(paths.sources_db) as session:
        if session is None:
            return []
        counts = MeasuredGroup.usable & (MeasuredGroup.group_id == Detection.group_id)
        asked = select(Detection).join(MeasuredGroup, counts)
        asked = asked.where(Detection.strip == strip) if strip else asked
        rows = [columns_of(one) | {"of_day": False} for one in session.scalars(asked)]
        changes = select(Change).where(Change.new)
        changes = changes.where(Change.strip == strip) if strip else changes
        rows += [
            columns_of(one) | {"of_day": True, "group_id": f"{one.tract}.{one.sday}"}
            for one in session.scalars(changes)
        ]
    if not rows:
        return []
    columns = ["strip", "group_id", "mid_mjd", "ra_deg", "dec_deg", "flux_jy", "error_jy", "of_day"]
    order = ["strip", "mid_mjd", "ra_deg", "group_id"]
    table = pd.DataFrame(rows)[columns].sort_values(order, kind="stable")
    # of images that were deleted before a reference grew
    parts = [_not_in(paths, mine, name) for name, mine in table.groupby("strip")]
    if not sum(map(len, parts)):
        return []
    table = pd.concat(parts, ignore_index=True)
    vectors = unit_vectors(table.ra_deg.values, table.dec_deg.values)
    tree = cKDTree(vectors)
    pairs = tree.sparse_distance_matrix(tree, np.radians(SAME_ARCSEC / 3600))
    _, table["which"] = csgraph.connected_components(pairs, directed=False)
    found = []
    for _, mine in table.groupby(["strip", "which"]):
        weight = mine.error_jy**-2.0
        snr = float((mine.flux_jy / mine.error_jy).max())
        if mine.group_id.nunique() < 2 and snr < _ALONE_SIGMA and not mine.of_day.any():
            continue
        ra, dec = place_of(vectors[mine.index], weight.values)
        found.append(
            {
                "name": name_of_place(ra, dec),
                "strip": mine.strip.iloc[0],
                "ra_deg": ra,
                "dec_deg": dec,
                "flux_jy": float((weight * mine.flux_jy).sum() / weight.sum()),
                "error_jy": float(weight.sum() ** -0.5),
                "snr": snr,
                "detections": len(mine),
                "first": mine.group_id.iloc[0],
                "last": mine.group_id.iloc[-1],
            }
        )
    return sorted(found, key=lambda one: -one["snr"])


def _not_in(paths: Paths, table: pd.DataFrame, strip: str) -> pd.DataFrame:
    """Detections that the strip's last reference does not have."""
    versions = paths.references(strip)
    if not versions:
        return table
    known = read_table(paths.reference(versions[-1]))
    away_arcsec, _ = nearest(known, table)
    return table[away_arcsec > SAME_ARCSEC]


def days(paths: Paths, strip: str | None = None) -> list[dict[str, Any]]:
    """Sidereal days, the latest first."""
    with db.reading(paths.sources_db) as session:
        if session is None:
            return []
        asked = select(Epoch).order_by(Epoch.sday.desc(), Epoch.strip)
        asked = asked.where(Epoch.strip == strip) if strip else asked
        return [columns_of(one) for one in session.scalars(asked)]
