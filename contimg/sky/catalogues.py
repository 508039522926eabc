"""The array's stations; sky catalogues: checked when they are read, indexed so that the whole NVSS
costs nothing, got from elsewhere.

A sky catalogue is a CSV file, or the indexed form of one (`contimg catalog`): SQLite, sources in
strips of declination. Of a large CSV file the indexed form is made once, in the user's cache
(XDG_CACHE_HOME), by whoever reads it first.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.errors import ConfigError, ContimgError, RequestError
from contimg.sky.geometry import SITE_ITRF_M, separation_deg
from contimg.store.files import checksum, replacing
from contimg.store.identity import INDEXED

log = logging.getLogger(__name__)
CATALOGUE_HZ = 1.4e9
DEFAULT_ALPHA = -0.7
COLUMNS = ("name", "ra_deg", "dec_deg", "flux_jy", "alpha")
_NVSS = "VIII/65/nvss"  # Condon et al. 1998, AJ 115, 1693
_REQUIRED = COLUMNS[:4]
_SMALL_BYTES = 1 << 20  # a CSV file that is read as fast as it is looked up
_VERSION = 1  # of the indexed form
_STRIP_DEG = 0.5
_MOST_JY, _STEEPEST = 1e5, 5.0  # no source is brighter but the Sun, no spectrum steeper
_PROBLEMS_KEPT = 20
_MILLI_JY = 5.0  # a catalogue whose median source is brighter has its fluxes in mJy
_PLACE_DEG = 2e-6  # the same place


@dataclass(frozen=True)
class Sky:
    """A sky catalogue that was checked.

    problems     rows that were left out, and why, in words
    corrections  what is known better than by the catalogue: ra_deg, dec_deg, flux_jy (NaN: its
                 own), precise (whether the place is), within `same_arcsec` of a source
    """

    path: Path
    checksum: str  # SHA-256 of the file as it was given
    number: int
    problems: tuple[str, ...]
    table: pd.DataFrame | None  # None: in the index
    index: Path | None = None
    corrections: pd.DataFrame | None = None
    same_arcsec: float = 10.0

    def within(
        self, ra_deg: float, dec_deg: float, radius_deg: float, least_jy: float = 0.0
    ) -> pd.DataFrame:
        """Sources within `radius_deg` of an ICRS position, of `least_jy` or more: COLUMNS, and
        `moved_arcsec`, by how much the place known better differs from the catalogue's."""
        found = self._around(ra_deg, dec_deg, radius_deg + self.same_arcsec / 3600)
        found = self._corrected(found.assign(moved_arcsec=0.0))
        away = separation_deg(found.ra_deg.values, found.dec_deg.values, ra_deg, dec_deg)
        return found[(away <= radius_deg) & (found.flux_jy.values >= least_jy)].reset_index(
            drop=True
        )

    def between(self, low_deg: float, high_deg: float, least_jy: float = 0.0) -> pd.DataFrame:
        """Sources of a strip of declination, as `within` gives them."""
        if self.table is not None:
            dec_deg = self.table.dec_deg
            found = self.table[(dec_deg >= low_deg) & (dec_deg <= high_deg)]
        else:
            query = (
                f"SELECT {', '.join(COLUMNS)} FROM sources WHERE strip BETWEEN ? AND ? "
                "AND dec_deg BETWEEN ? AND ?"
            )
            asked = (_strip(low_deg), _strip(high_deg), low_deg, high_deg)
            with closing(
                sqlite3.connect(f"file:{self.index}?mode=ro&immutable=1", uri=True)
            ) as connection:
                found = _frame(connection.execute(query, asked).fetchall())
        found = self._corrected(found.assign(moved_arcsec=0.0))
        return found[found.flux_jy.values >= least_jy].reset_index(drop=True)

    def _around(self, ra_deg: float, dec_deg: float, radius_deg: float) -> pd.DataFrame:
        low, high = dec_deg - radius_deg, dec_deg + radius_deg
        if self.table is not None:
            return self.table[(self.table.dec_deg >= low) & (self.table.dec_deg <= high)]
        steepest = max(abs(low), abs(high))
        reach = 180.0
        if steepest < 89:
            reach = min(
                180.0,
                np.degrees(
                    np.arcsin(
                        min(1.0, np.sin(np.radians(radius_deg)) / np.cos(np.radians(steepest)))
                    )
                )
                * 1.01,
            )
        ranges = [(ra_deg - reach + turn, ra_deg + reach + turn) for turn in (-360, 0, 360)]
        query = (
            f"SELECT {', '.join(COLUMNS)} FROM sources WHERE strip = ? AND ra_deg BETWEEN ? AND ?"
        )
        rows = []
        with closing(
            sqlite3.connect(f"file:{self.index}?mode=ro&immutable=1", uri=True)
        ) as connection:
            for strip in range(_strip(low), _strip(high) + 1):
                for first, last in ranges:
                    if last >= 0 and first < 360:
                        rows += connection.execute(query, (strip, first, last)).fetchall()
        return _frame(rows)

    def _corrected(self, found: pd.DataFrame) -> pd.DataFrame:
        better = self.corrections
        if better is None or not len(better) or not len(found):
            return found
        near = better[
            (better.dec_deg >= found.dec_deg.min() - 0.01)
            & (better.dec_deg <= found.dec_deg.max() + 0.01)
        ]
        found = found.reset_index(drop=True)
        for one in near.itertuples():
            away = (
                separation_deg(found.ra_deg.values, found.dec_deg.values, one.ra_deg, one.dec_deg)
                * 3600
            )
            k = int(np.argmin(away))
            if away[k] > self.same_arcsec:
                continue
            if np.isfinite(one.flux_jy):
                found.loc[k, "flux_jy"] = one.flux_jy
            if one.precise:
                found.loc[k, ["ra_deg", "dec_deg", "moved_arcsec"]] = [
                    one.ra_deg,
                    one.dec_deg,
                    away[k],
                ]
        return found

    def nearest(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> pd.DataFrame:
        """For each position the nearest source within `same_arcsec`: flux_jy, alpha, away_arcsec;
        NaN where there is none."""
        radius_deg = self.same_arcsec / 3600
        if self.table is not None:
            wide = self.table
            order = np.argsort(wide.dec_deg.values)
            sorted_dec = wide.dec_deg.values[order]
            first, last = (
                np.searchsorted(sorted_dec, dec_deg + sign * radius_deg) for sign in (-1, 1)
            )
            pairs = [(k, row) for k in range(len(ra_deg)) for row in order[first[k] : last[k]]]
            which = np.array([k for k, _ in pairs], int)
            matched = wide.iloc[[row for _, row in pairs]].reset_index(drop=True)
        else:
            which, matched = self._joined(ra_deg, dec_deg, radius_deg)
        found = pd.DataFrame(
            np.nan, index=range(len(ra_deg)), columns=["flux_jy", "alpha", "away_arcsec"]
        )
        if len(matched):
            away = (
                separation_deg(
                    matched.ra_deg.values, matched.dec_deg.values, ra_deg[which], dec_deg[which]
                )
                * 3600
            )
            for row in np.argsort(-away):  # the nearest last
                if away[row] <= self.same_arcsec:
                    found.loc[which[row]] = [matched.flux_jy[row], matched.alpha[row], away[row]]
        return found

    def _joined(self, ra_deg, dec_deg, radius_deg) -> tuple[np.ndarray, pd.DataFrame]:
        wanted = []
        for k, (ra, dec) in enumerate(zip(ra_deg, dec_deg, strict=True)):
            reach = radius_deg / max(np.cos(np.radians(dec)), 1e-3)
            strips = {_strip(dec - radius_deg), _strip(dec + radius_deg)}
            wanted += [
                (k, strip, ra - reach + turn, ra + reach + turn)
                for strip in strips
                for turn in (-360, 0, 360)
            ]
        with closing(
            sqlite3.connect(f"file:{self.index}?mode=ro&immutable=1", uri=True)
        ) as connection:
            connection.execute("CREATE TEMP TABLE wanted (k, strip, first, last)")
            connection.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?)", wanted)
            query = f"""SELECT k, {", ".join(COLUMNS)} FROM wanted CROSS JOIN sources
                        ON sources.strip = wanted.strip AND ra_deg BETWEEN first AND last"""
            rows = connection.execute(query).fetchall()
        return np.array([row[0] for row in rows], int), _frame([row[1:] for row in rows])


def _strip(dec_deg: float) -> int:
    return int(np.floor(dec_deg / _STRIP_DEG))


def _frame(rows: list[tuple]) -> pd.DataFrame:
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    types = (object, float, float, float, float)
    return pd.DataFrame(
        {n: np.array(v, t) for n, v, t in zip(COLUMNS, columns, types, strict=True)}
    )


def read_sky(path: Path) -> Sky:
    """A sky catalogue: name, ra_deg, dec_deg (ICRS), flux_jy at 1.4 GHz, alpha (-0.7 where not
    given).

    Rows that no source can have (no flux, a place off the sky) are left out, and named in
    `problems`. Raises ConfigError when the file cannot be read, or when so much of it is wrong that
    it must be something else.
    """
    try:
        seen = path.stat()
    except OSError as error:
        raise ConfigError(
            f"{path}: the sky catalogue cannot be read: {error.strerror}. See catalogues.sky."
        ) from None
    return _read_sky(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(4)
def _read_sky(path: Path, size: int, mtime_ns: int) -> Sky:
    if path.suffix in INDEXED:
        return _open_index(path, path)
    if size <= _SMALL_BYTES:
        table, problems = _read_csv(path)
        return Sky(path, checksum(path), len(table), problems, table)
    cached = _cached(path, size, mtime_ns)
    if cached is not None and cached.exists():
        with suppress(ConfigError):  # of another version, or damaged: made again
            return _open_index(cached, path)
    table, problems = _read_csv(path)
    sky = Sky(path, checksum(path), len(table), problems, table)
    if cached is not None:
        try:
            for earlier in cached.parent.glob(f"{cached.name.partition('-')[0]}-*"):
                earlier.unlink(missing_ok=True)
            write_index(cached, table, sky.checksum, problems)
        except (OSError, sqlite3.Error) as error:
            log.warning(
                "%s: its index could not be kept in %s (%s): reading it takes seconds each time",
                path,
                cached.parent,
                error,
            )
    return sky


def _cached(path: Path, size: int, mtime_ns: int) -> Path | None:
    """Where the indexed form of a large CSV file is kept; None where nobody has a home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contimg"
    except RuntimeError:
        return None
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    state = hashlib.sha256(f"{size} {mtime_ns} {_VERSION}".encode()).hexdigest()[:12]
    return folder / f"{name}-{state}.sqlite3"


def _open_index(index: Path, path: Path) -> Sky:
    try:
        with closing(sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True)) as connection:
            about = dict(connection.execute("SELECT key, value FROM about"))
            number = int(about["number"])
            connection.execute("SELECT strip, ra_deg FROM sources LIMIT 1").fetchall()
            version = int(about["version"])
            checksum = about["checksum"]
            problems = tuple(json.loads(about["problems"]))
    except (sqlite3.Error, KeyError, ValueError) as error:
        raise ConfigError(
            f"{index}: no indexed sky catalogue ({error}). Make it with `contimg catalog`."
        ) from None
    if version != _VERSION:
        raise ConfigError(
            f"{index}: indexed for another contimg (version {version}, not {_VERSION}). `contimg "
            "catalog` makes it again."
        )
    return Sky(path, checksum, number, problems, None, index)


def _read_csv(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    try:
        table = pd.read_csv(path, dtype={"name": str}, low_memory=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the sky catalogue cannot be read: {error}. See catalogues.sky."
        ) from None
    return check_sources(table, str(path), first_row=2)


def check_sources(
    table: pd.DataFrame, what: str, first_row: int = 1
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Sources that can be (COLUMNS), and what was left out, in words, by row and name.

    Raises ConfigError for missing columns, when more than half is wrong, and for fluxes that must
    be in mJy.
    """
    absent = set(_REQUIRED) - set(table.columns)
    if absent:
        raise ConfigError(
            f"{what}: the sky catalogue has no column {sorted(absent)}; found {list(table.columns)}"
        )
    if "alpha" not in table:
        table = table.assign(alpha=DEFAULT_ALPHA)
    numbers = {c: pd.to_numeric(table[c], errors="coerce").to_numpy(float) for c in COLUMNS[1:]}
    name = table["name"].fillna("").astype(str).str.strip().to_numpy(object)
    alpha = np.where(table["alpha"].isna().to_numpy(), DEFAULT_ALPHA, numbers["alpha"])
    ra, dec, flux = numbers["ra_deg"], numbers["dec_deg"], numbers["flux_jy"]
    with np.errstate(invalid="ignore"):
        wrong = {
            "name": name == "",
            "ra_deg": ~((ra >= -180) & (ra <= 360)),
            "dec_deg": ~(np.abs(dec) <= 90),
            "flux_jy": ~((flux > 0) & (flux <= _MOST_JY)),
            "alpha": ~(np.abs(alpha) <= _STEEPEST),
        }
    bad = np.logical_or.reduce(list(wrong.values()))
    ra = np.where(bad, 0, ra) % 360
    found = pd.DataFrame(
        {"name": name, "ra_deg": ra, "dec_deg": dec, "flux_jy": flux, "alpha": alpha}
    )
    places = np.round(np.stack([found.ra_deg, np.where(bad, 0, dec)]) / _PLACE_DEG).T
    again = pd.DataFrame(places).duplicated().to_numpy() & ~bad
    problems = []
    for k in np.flatnonzero(bad | again)[:_PROBLEMS_KEPT]:
        column = next((c for c in wrong if wrong[c][k]), None)
        why = f"{column} is {table[column].iloc[k]}" if column else "is there twice"
        problems.append(f"row {k + first_row} ({name[k] or 'without a name'}): {why}: left out")
    number = int((bad | again).sum())
    if number > _PROBLEMS_KEPT:
        problems.append(f"and {number - _PROBLEMS_KEPT} more rows left out")
    if number > len(table) / 2:
        raise ConfigError(
            f"{what}: {number} of {len(table)} rows can be no sources: {'; '.join(problems[:3])}. "
            "Is it a sky catalogue?"
        )
    found = found[~(bad | again)].reset_index(drop=True)
    if len(found) >= 20 and found.flux_jy.median() > _MILLI_JY:
        raise ConfigError(
            f"{what}: the median of flux_jy is {found.flux_jy.median():.3g} Jy: are these mJy? "
            "Expected Jy at 1.4 GHz."
        )
    return found, tuple(problems)


def write_index(
    path: Path, table: pd.DataFrame, checksum: str, problems: tuple[str, ...] = ()
) -> None:
    """The indexed form of a checked catalogue: written beside, flushed, renamed."""
    with replacing(path, many=True) as partial:
        strips = np.floor(table.dec_deg.to_numpy() / _STRIP_DEG).astype(int)
        order = np.lexsort((table.ra_deg.to_numpy(), strips))
        columns = [strips[order].tolist(), *(table[c].to_numpy()[order].tolist() for c in COLUMNS)]
        about = {
            "version": _VERSION,
            "checksum": checksum,
            "number": len(table),
            "problems": json.dumps(problems),
        }
        with closing(sqlite3.connect(partial)) as connection:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT)")
            connection.execute(
                "CREATE TABLE sources (strip INTEGER, name TEXT, ra_deg REAL, dec_deg REAL, "
                "flux_jy REAL, alpha REAL)"
            )
            connection.executemany(
                "INSERT INTO about VALUES (?, ?)", [(k, str(v)) for k, v in about.items()]
            )
            connection.executemany(
                "INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?)", zip(*columns, strict=True)
            )
            connection.execute("CREATE INDEX place ON sources (strip, ra_deg)")
            connection.commit()


def read_stations(path: Path) -> dict[str, np.ndarray]:
    """ITRF offsets (3,) in m from the Tee centre by station name, from a CSV of WGS84
    coordinates."""
    import astropy.units as u
    from astropy.coordinates import EarthLocation

    try:
        table = pd.read_csv(path)
        where = EarthLocation.from_geodetic(
            table.longitude_deg.values * u.deg,
            table.latitude_deg.values * u.deg,
            table.height_m.values * u.m,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"catalogues.stations: {path} cannot be read: {error}") from None
    positions_m = (
        np.stack([getattr(where, axis).to_value(u.m) for axis in "xyz"], axis=1) - SITE_ITRF_M
    )
    return dict(zip(table.station.astype(str), positions_m, strict=True))


def download_nvss(
    output: Path, centre_deg: tuple[float, float] | None, radius_deg: float, min_mjy: float
) -> Sky:
    """Write NVSS sources (all, or a cone around an ICRS position), as `write_catalogue` does.

    Raises ContimgError without a network.
    """
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from astroquery.vizier import Vizier

    service = Vizier(
        columns=["NVSS", "RAJ2000", "DEJ2000", "S1.4"],
        column_filters={"S1.4": f">={min_mjy}"},
        row_limit=-1,
    )
    try:
        if centre_deg is None:
            found = service.get_catalogs(_NVSS)
        else:
            found = service.query_region(
                SkyCoord(*centre_deg, unit="deg"), radius=radius_deg * u.deg, catalog=_NVSS
            )
    except Exception as error:  # astroquery passes on whatever requests, pyvo or the service raise
        raise ContimgError(
            f"VizieR cannot be reached ({type(error).__name__}): is this machine offline? {error}"
        ) from None
    if not found:
        raise ContimgError("VizieR has no NVSS source there; nothing was written")
    table = found[0]
    where = SkyCoord(table["RAJ2000"], table["DEJ2000"], unit=(u.hourangle, u.deg))
    frame = pd.DataFrame(
        {
            "name": list(table["NVSS"]),
            "ra_deg": where.ra.deg.round(5),
            "dec_deg": where.dec.deg.round(5),
            "flux_jy": (table["S1.4"].astype(float) / 1e3).round(5),
        }
    )
    return write_catalogue(output, frame, "NVSS")


def read_table(
    path: Path, columns: Mapping[str, str], flux_unit: str | None = None
) -> pd.DataFrame:
    """A catalogue in a FITS, VOTable or CSV file as COLUMNS.

    columns    the file's names of name, ra_deg, dec_deg, flux_jy and perhaps alpha, where they are
               others
    flux_unit  Jy or mJy; default: what the file says, else Jy

    Raises RequestError, with the columns that there are, for what cannot be read.
    """
    import astropy.units as u
    from astropy.table import Table

    form = {
        ".csv": "ascii.csv",
        ".vot": "votable",
        ".xml": "votable",
        ".fits": "fits",
        ".fit": "fits",
    }.get(path.suffix.lower())
    if form is None:
        raise RequestError(f"{path}: expected a name that ends in .csv, .fits, .vot or .xml")
    if unknown := set(columns) - set(COLUMNS):
        raise RequestError(f"columns {sorted(unknown)}: the catalogue has {', '.join(COLUMNS)}")
    try:
        table = Table.read(path, format=form)
    except Exception as error:  # astropy passes on what its many readers raise
        raise RequestError(f"{path}: not readable as {form}: {error}") from None
    found = {}
    for name in COLUMNS:
        of_file = columns.get(name, name)
        if of_file not in table.colnames:
            if name == "alpha" and "alpha" not in columns:
                continue
            raise RequestError(
                f"{path}: no column {of_file} for {name}; it has {', '.join(table.colnames)}. Name "
                f"it: --columns {name}=..."
            )
        column = table[of_file]
        values = (
            np.ma.filled(column.astype(float), np.nan)
            if name != "name"
            else [_text(v) for v in column]
        )
        unit = column.unit if name != "flux_jy" or flux_unit is None else u.Unit(flux_unit)
        wanted = {"ra_deg": u.deg, "dec_deg": u.deg, "flux_jy": u.Jy}.get(name)
        if wanted is not None and unit is not None:
            try:
                values = u.Quantity(values, unit).to_value(wanted)
            except u.UnitConversionError:
                raise RequestError(
                    f"{path}: column {of_file} is in {unit}, expected something like {wanted}"
                ) from None
        found[name] = values
    return pd.DataFrame(found)


def _text(value: object) -> str:
    return (
        value.decode() if isinstance(value, bytes) else "" if np.ma.is_masked(value) else str(value)
    )


def write_catalogue(output: Path, frame: pd.DataFrame, what: str) -> Sky:
    """Write a catalogue, checked, as CSV or in the indexed form, by the name's ending: beside,
    flushed, renamed."""
    checked, problems = check_sources(frame, what)
    checked = checked.sort_values("flux_jy", ascending=False).reset_index(drop=True)
    if output.suffix in INDEXED:
        content = hashlib.sha256(checked.to_csv(index=False).encode()).hexdigest()
        write_index(output, checked, content, problems)
    elif output.suffix == ".csv":
        with replacing(output) as partial:
            checked.to_csv(partial, index=False)
    else:
        raise RequestError(f"{output}: expected a name that ends in .csv or {' or '.join(INDEXED)}")
    return Sky(output, "", len(checked), problems, None)
