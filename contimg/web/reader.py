"""What the routes and the pages ask of the databases and the files, and the shapes of the
answers."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from anyio import CapacityLimiter
from fastapi import HTTPException
from pydantic import BaseModel, Field, create_model
from sqlalchemy import Select, func, select

from contimg import report
from contimg.calibration import registry
from contimg.chain import STAGES
from contimg.config import Config
from contimg.paths import Paths, lasting_files
from contimg.products import publishing
from contimg.products import tables as product_tables
from contimg.products.retention import room
from contimg.queue import tables as queue_tables
from contimg.store import db

MOST_ROWS, MOST_PIXELS = 500, 1_500_000
_LOG_BYTES = 4000
API_KEY = "CONTIMG_API_KEY"
_IMAGES_AT_ONCE = 2
CHECK_EVERY_S = 10.0
_LOOK_EVERY_S = 3.0
IMAGE_TYPES = tuple(
    quick + kind for quick in ("", "quick_") for kind in ("image", "pbcor", "pb", "residual")
)
STATES = tuple(queue_tables.MOVES)


def model_of(table: Any, **more: Any) -> type[BaseModel]:
    """The response for a table's row: its columns are its fields."""
    fields = {
        c.name: (c.type.python_type | None if c.nullable else c.type.python_type, ...)
        for c in table.__table__.columns
    }
    return create_model(table.__name__, **fields | more)


Row = TypeVar("Row")
ImageRow = model_of(
    product_tables.Image,
    thumbnail=(int | None, Field(None, description="id of a plot: /api/qa/{id}")),
    publishable=(bool, Field(description="whether `unpublishable` has no reason against it")),
)
MsRow = model_of(product_tables.MeasurementSet)
QaRow = model_of(product_tables.QaArtifact)
CalRow = model_of(registry.CalTable)


class GroupRow(BaseModel):
    """A group in the queue."""

    group_id: str = Field(examples=["2026-01-25T22:26:05"])
    state: Literal[STATES]
    received_at: str
    last_update: str
    retry_count: int
    processing_stage: str | None
    running_stage: str | None
    error: str | None
    calibrators: str | None


class Rows(BaseModel, Generic[Row]):
    """A page of a list: `items` from `offset` on, of `total`."""

    total: int
    offset: int
    items: list[Row]


class Validity(BaseModel):
    """A calibration set and when it may be used (UTC, MJD)."""

    set_name: str
    cal_field: str
    status: str
    science: bool
    app_dec_deg: float
    mid_mjd: float
    valid_start_mjd: float
    valid_end_mjd: float
    notes: str


class Status(BaseModel):
    """Does it keep up?"""

    counts: dict[str, int] = Field(examples=[{"completed": 270, "failed": 1, "pending": 2}])
    behind_s: float = Field(0, description="age of the oldest group that could be done and is not")
    oldest_unfinished: str | None = None
    observed_until: str | None = None
    imaged_until: str | None = None
    arrived_last_hour: int = 0
    imaged_last_hour: int = 0
    must_not_be_used: int = Field(
        0, description="full images that failed, or whose calibration set was retired or altered"
    )
    mosaics_failed: list[str] = Field([], description="what could not be made, why, what to do")
    running: list[dict]
    watcher: dict | None
    backlog: str | None  # the process that works one off
    refused: dict | None = Field(None, description="why the last run did not begin, until one does")
    groups: list[dict]
    calibration: list[Validity]
    disk: dict


class Reprocess(BaseModel):
    """What to do again."""

    from_stage: Literal[STAGES] | None = Field(
        None, description="first stage to repeat; none: everything", examples=["image"]
    )


class Done(BaseModel):
    """What was asked for, in words."""

    message: str


class Reader:
    """What the routes and the pages ask of the databases."""

    def __init__(self, config: Config, api_key: str | None = None):
        self.config, self.paths = config, Paths.of(config)
        self.api_key = api_key  # with which groups can be reprocessed; none: they cannot
        self.images_at_once = CapacityLimiter(_IMAGES_AT_ONCE)
        # databases: when they were read through, and what was found
        self.checks: dict[Path, tuple[float, str]] = {}
        self._seen: list = []
        self._looked_s = -math.inf

    def look_at_sets(self) -> None:
        """Images of a set whose tables are not what they were are marked; looks at the files'
        times, every few seconds."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        tables = [
            Path(t.path)
            for t in registry.all_tables(self.paths.registry_db)
            if t.status == "active"
        ]
        seen = []
        for file in (file for table in tables for file in lasting_files(table)):
            with suppress(FileNotFoundError):  # it goes this moment
                found = file.stat()
                seen.append((str(file), found.st_size, found.st_mtime_ns))
        if seen != self._seen:
            publishing.check(self.config)
            self._seen = seen

    def status(self) -> dict:
        """Counts, pace, running jobs, the latest groups, calibration sets and disk."""
        self.look_at_sets()
        return report.status(self.config) | {
            "calibration": self.validity(),
            "disk": room(self.config),
        }

    def validity(self) -> list[dict]:
        """One entry for each calibration set, the latest first."""
        rows = {t.set_name: t for t in registry.all_tables(self.paths.registry_db)}
        names = Validity.model_fields
        return [
            {name: getattr(t, name) for name in names}
            for t in sorted(rows.values(), key=lambda t: -t.mid_mjd)
        ]

    def rows(self, database: Path, query: Select, order: Sequence, limit: int, offset: int) -> Any:
        """A page of a query on one table, as mappings."""
        with db.reading(database) as session:
            if session is None:
                return {"total": 0, "offset": offset, "items": []}
            total = session.scalar(select(func.count()).select_from(query.subquery()))
            found = session.scalars(query.order_by(*order).limit(limit).offset(offset))
            return {
                "total": total,
                "offset": offset,
                "items": [product_tables.columns_of(row) for row in found],
            }

    def images(self, query: Select, order: Sequence, limit: int, offset: int = 0) -> Any:
        """A page of images, each with its thumbnail."""
        self.look_at_sets()
        found = self.rows(self.paths.products_db, query, order, limit, offset)
        groups = [one["group_id"] for one in found["items"]]
        with db.reading(self.paths.products_db) as session:
            plot = product_tables.QaArtifact
            query = select(plot.group_id, plot.id).where(
                plot.name == "thumbnail", plot.group_id.in_(groups)
            )
            rows = session.execute(query) if session is not None else ()
            thumbnails: dict[str, int] = dict(tuple(row) for row in rows)
        for one in found["items"]:
            one["thumbnail"] = thumbnails.get(one["group_id"])
            one["publishable"] = one["unpublishable"] is None
        return found

    def row(self, table: Any, number: int) -> dict:
        """A row of products.sqlite3 by its id; 404 if there is none."""
        with db.reading(self.paths.products_db) as session:
            found = session.get(table, number) if session is not None else None
            if found is None:
                raise HTTPException(404, f"{table.__tablename__} has no row {number}")
            return product_tables.columns_of(found)

    def group(self, group: str) -> dict:
        """Everything about a group: queue, files, attempts, seconds, images, plots, ends of the
        logs; 404 if it is unknown."""
        self.look_at_sets()
        known = report.story(self.config, group)
        if known is None:
            raise HTTPException(404, f"group {group} is not in the queue")
        for table, name in (
            (product_tables.Image, "images"),
            (product_tables.QaArtifact, "plots"),
            (product_tables.MeasurementSet, "ms"),
        ):
            known[name] = self.rows(
                self.paths.products_db, select(table).where(table.group_id == group), (), 100, 0
            )["items"]
        known["logs"] = {
            path: _end_of(Path(path)) for path in known["logs"] if Path(path).suffix == ".log"
        }
        return known

    def file(self, row: dict) -> Path:
        """The file of a row; 404 unless it is there and under the products' folder."""
        path = Path(row["path"]).resolve()
        if not path.is_relative_to(self.paths.products.resolve()):
            raise HTTPException(
                404, "the file of this row is outside the products' folder: not served"
            )
        if not path.is_file():
            gone = (
                f"was deleted by retention at {row['deleted_at']}"
                if row.get("deleted_at")
                else "is no file on disk"
            )
            raise HTTPException(404, f"{path.name} {gone}")
        return path


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read().decode(errors="replace")


def coarse_pixels(
    path: Path, x0: int, y0: int, width: int, height: int, step: int
) -> tuple[bytes, dict]:
    """A part of a FITS image, each value the largest of step x step; and its WCS and size. A row of
    blocks at a time: many images are looked at at once."""
    from astropy.io import fits

    try:
        hdus = fits.open(path, memmap=True)
        values, header = hdus[0].data.squeeze(), hdus[0].header
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise HTTPException(404, f"{path.name} is not readable as FITS: {error}") from None
    with hdus:
        some = values[y0 : y0 + height, x0 : x0 + width]
        rows, columns = (n // step for n in some.shape)
        if not 0 < rows * columns <= MOST_PIXELS:
            raise HTTPException(
                422,
                f"{columns} x {rows} values; at most {MOST_PIXELS}, at least one: choose "
                "another step",
            )
        result = np.empty((rows, columns), "<f4")
        for row in range(rows):
            blocks = some[row * step : (row + 1) * step, : columns * step].reshape(
                step, columns, step
            )
            result[row] = np.fmax.reduce(np.fmax.reduce(blocks, axis=2), axis=0)
        keys = (
            "NAXIS1",
            "NAXIS2",
            "CRVAL1",
            "CRVAL2",
            "CRPIX1",
            "CRPIX2",
            "CDELT1",
            "CDELT2",
            "RMS",
            "BUNIT",
        )
        about = {
            "wcs": {k: header.get(k) for k in keys if header.get(k) == header.get(k)},
            "width": columns,
            "height": rows,
        }
    return result.tobytes(), about | {"step": step, "x0": x0, "y0": y0}
