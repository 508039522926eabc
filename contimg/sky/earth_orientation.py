"""UT1 and polar motion, from the tables of astropy-iers-data.

astropy reads these text files in 0.7 s, in every process; a copy of the columns in the user's cache
is read in milliseconds.
"""

import functools
import hashlib
from contextlib import suppress
from pathlib import Path

import astropy
import astropy.units as u
import numpy as np
from astropy.table import QTable
from astropy.utils import iers

from contimg import CACHE
from contimg.store.files import replacing

# astropy-iers-data carries the tables, with predictions of a year, which are good to some 0.03 s of
# UT1; a node at night has no network. Without the second line astropy refuses observations of today
# as soon as the package is a month old.
iers.conf.auto_download = False
iers.conf.auto_max_age = None
_COLUMNS = {
    "MJD": u.d,
    "UT1_UTC": u.s,
    "PM_x": u.arcsec,
    "PM_y": u.arcsec,
    "dX_2000A": u.marcsec,
    "dY_2000A": u.marcsec,
}


@functools.cache
def last_mjd() -> float:
    """The last day that the tables know; from now on astropy uses them, in this process."""
    table = _read(_copy_of_tables())
    iers.earth_orientation_table.set(table)
    return float(table["MJD"][-1].to_value(u.d))


def _copy_of_tables() -> Path:
    """The copy for these very tables and this astropy."""
    tables = [Path(iers.IERS_A_FILE), Path(iers.IERS_B_FILE), Path(iers.IERS_LEAP_SECOND_FILE)]
    said = [astropy.__version__]
    for path in tables:
        with suppress(OSError):
            said.append(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return CACHE / f"earth-{hashlib.sha256(' '.join(said).encode()).hexdigest()[:16]}.npy"


def _read(copy: Path) -> iers.IERS:
    """The columns from the copy, which is made where there is none or where it is damaged."""
    try:
        columns = np.load(copy)
        if columns.ndim != 2 or len(columns) != len(_COLUMNS) or not np.isfinite(columns[0]).all():
            raise ValueError("other columns")
    except (OSError, ValueError, EOFError):
        table = iers.earth_orientation_table.get()
        columns = np.array([table[name].to_value(unit) for name, unit in _COLUMNS.items()])
        # a cache that cannot be written costs 0.7 s
        with suppress(OSError), replacing(copy, many=True) as partial, partial.open("wb") as file:
            np.save(file, columns)
    return iers.IERS(
        QTable(
            {
                name: column * unit
                for (name, unit), column in zip(_COLUMNS.items(), columns, strict=True)
            }
        )
    )
