"""Flag versions of a Measurement Set, in the form that CASA's flagmanager knows (`.flagversions`
beside it: a list, and a table for each), without CASA."""

from contextlib import closing
from pathlib import Path

import numpy as np

from contimg.store.files import replacing
from contimg.visibilities import measurement_set as mset

PREPARED = "prepared"
"""What the stage `prepare` leaves; everything that flags later starts from it."""


def save(ms: Path, name: str = PREPARED) -> None:
    """Keep the FLAG column as a version, instead of all there are."""
    with replacing(Path(f"{ms}.flagversions")) as partial:
        partial.mkdir()
        with mset.open_table(ms) as main:
            flags = main.select("FLAG_ROW, FLAG")
            with closing(flags.copy(str(partial / f"flags.{name}"), deep=True)):
                flags.close()
        (partial / "FLAG_VERSION_LIST").write_text(f"{name} : contimg\n")


def read(ms: Path, ntime: int, name: str = PREPARED) -> np.ndarray:
    """The flags of a version, whatever was done since: (ntime, nbaseline, nchan, npol)."""
    return mset.read_grid(Path(f"{ms}.flagversions") / f"flags.{name}", "FLAG", ntime)


def restore(ms: Path, name: str = PREPARED) -> None:
    """Put a version back into the FLAG column."""
    with mset.open_table(ms) as main:
        ntime = len(np.unique(main.getcol("TIME")))
    mset.write_columns(ms, FLAG=read(ms, ntime, name))
