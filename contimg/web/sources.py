"""Sources and light curves over HTTP: lists, cones, files for other programs, cutouts."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from fastapi import APIRouter, HTTPException, Query
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response

from contimg.products import catalogue
from contimg.products import tables as product_tables
from contimg.products.sources import Source
from contimg.store import db
from contimg.web.reader import MOST_ROWS, Reader, Rows, model_of
from contimg.web.routes import Limit, Offset, Read

if TYPE_CHECKING:
    from astropy.io import fits

router = APIRouter()
SourceRow = model_of(Source, away_arcsec=(float | None, None))
Strip = Annotated[str, PathParameter(pattern=r"^[+-]\d\d\.\d$", examples=["+16.1"])]
Name = Annotated[str, PathParameter(max_length=60)]
Format = Annotated[
    Literal["json", "csv", "votable"], Query(description="csv and votable give all columns")
]
Cone = Annotated[
    str | None,
    Query(
        description="ra,dec,radius in deg, ICRS; the nearest come first", examples=["347.3,16,0.5"]
    ),
]
_UNITS = {"_jy": "Jy", "_deg": "deg", "mjd": "d", "_arcsec": "arcsec"}
_CUTOUT_PIXELS = 160


def cone_of(text: str | None) -> tuple[float, float, float] | None:
    """Ra, dec and radius of a query; 422 for anything else."""
    if text is None:
        return None
    try:
        ra, dec, radius = map(float, text.split(","))
    except ValueError:
        ra = dec = radius = np.nan
    if not (np.isfinite(ra) and abs(dec) <= 90 and 0 < radius <= 180):
        raise HTTPException(
            422, f"cone={text[:60]}: expected ra,dec,radius in deg, as 347.3,16,0.5"
        )
    return ra % 360, dec, radius


def _as_file(rows: Sequence[dict[str, Any]] | pd.DataFrame, form: str, name: str) -> Response:
    """Rows as CSV or VOTable."""
    table = pd.DataFrame(rows)
    if form == "csv":
        body, kind, ending = table.to_csv(index=False).encode(), "text/csv", "csv"
    else:
        from astropy.table import Table

        found = Table.from_pandas(table.convert_dtypes(convert_string=False).astype(_plain(table)))
        for column in found.colnames:
            unit = next((u for end, u in _UNITS.items() if column.endswith(end)), None)
            found[column].unit = unit
        buffer = io.BytesIO()
        found.write(buffer, format="votable")
        body, kind, ending = buffer.getvalue(), "application/x-votable+xml", "vot"
    headers = {"content-disposition": f'attachment; filename="{name}.{ending}"'}
    return Response(body, media_type=kind, headers=headers)


def _plain(table: pd.DataFrame) -> dict[str, Any]:
    """Types that a VOTable has: numbers, and words."""
    return {
        name: (float if table[name].map(_is_number).all() else str)
        for name in table.columns
        if table[name].dtype == object
    }


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


@router.get("/api/sources", response_model=Rows[SourceRow])
def sources(
    read: Read,
    cone: Cone = None,
    strip: Annotated[str | None, Query(pattern=r"^[+-]\d\d\.\d$")] = None,
    variable: Annotated[bool, Query(description="candidates only")] = False,
    name: Annotated[
        str | None, Query(max_length=80, description="of this name, in any strip")
    ] = None,
    order: Literal[catalogue.ORDERS] = "ra_deg",
    limit: Limit = 100,
    offset: Offset = 0,
    format: Format = "json",
) -> Any:
    """Sources that have light curves, and the numbers of these."""
    chosen: dict[str, Any] = {"cone": cone_of(cone), "strip": strip, "variable": variable}
    chosen["name"] = name
    if format != "json":
        rows, _ = catalogue.sources(read.paths, **chosen, order=order)
        return _as_file(rows, format, "sources")
    rows, total = catalogue.sources(read.paths, **chosen, order=order, limit=limit, offset=offset)
    return {"total": total, "offset": offset, "items": rows}


@router.get("/api/variables", response_model=Rows[SourceRow])
def variables(read: Read, limit: Limit = 100, offset: Offset = 0, format: Format = "json") -> Any:
    """What varies, the least likely first."""
    return sources(
        read, variable=True, order="false_alarms", limit=limit, offset=offset, format=format
    )


@router.get("/api/sources/{strip}/{name:path}")
def source(read: Read, strip: Strip, name: Name) -> SourceRow:
    """One source."""
    return source_of(read, strip, name)


def source_of(read: Reader, strip: str, name: str) -> Any:
    """A row of a source; 404 if there is none."""
    with db.reading(read.paths.sources_db) as session:
        found = None if session is None else session.get(Source, (strip, name))
        if found is None:
            raise HTTPException(404, f"no source {name[:60]} of strip {strip} has a light curve")
        return product_tables.columns_of(found)


@router.get("/api/lightcurves/{strip}/{name:path}")
def lightcurve(read: Read, strip: Strip, name: Name, format: Format = "json") -> Response:
    """A source's days: MJD, flux, error of the noise (Jy), relative error of the day's scales, chi
    squared of the tiles, and which tile counts most."""
    source_of(read, strip, name)
    curve = catalogue.lightcurve(read.paths, strip, name)
    if format != "json":
        return _as_file(curve, format, f"{name}.lightcurve")
    return JSONResponse(curve.to_dict("records"))


@router.get("/api/days")
def days(read: Read, strip: str | None = None) -> list[dict]:
    """Sidereal days of strips: how complete they are, what they were scaled to, how well."""
    return catalogue.days(read.paths, strip)[:MOST_ROWS]


def pixels_around(
    path: Path, ra: float, dec: float, arcmin: float
) -> tuple[np.ndarray, "fits.Header"]:
    """(y, x) pixels around a place, NaN outside the image, and their 2-D header; only these are
    read. 404 for a place that is not in the image."""
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(path, memmap=True) as hdus:
        header = hdus[0].header
        wcs = WCS(header).celestial
        x, y = wcs.wcs_world2pix(ra, dec, 0)
        if not np.isfinite([x, y]).all():
            raise HTTPException(404, "this place is not in the image")
        half = max(4, round(arcmin / 60 / abs(header["CDELT2"]) / 2))
        data = hdus[0].data.reshape(hdus[0].data.shape[-2:])
        i, j = round(float(x)), round(float(y))
        found = np.full((2 * half + 1, 2 * half + 1), np.nan, np.float32)
        top, left = j - half, i - half
        rows = slice(max(0, top), min(data.shape[0], j + half + 1))
        columns = slice(max(0, left), min(data.shape[1], i + half + 1))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            raise HTTPException(404, "this place is not in the image")
        found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = (
            data[rows, columns]
        )
    if not np.isfinite(found).any():
        raise HTTPException(404, "this place is outside the image's beam")
    for key in [k for k in header if k[-1:] in "34" and k[:-1] in _AXIS_KEYS]:
        del header[key]
    header["CRPIX1"], header["CRPIX2"] = wcs.wcs.crpix - (left, top)
    return found, header


_AXIS_KEYS = ("NAXIS", "CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT")


def as_png(pixels: np.ndarray, noise_jy: float, most_jy: float) -> bytes:
    """Pixels (y, x) in colours, NaN grey, small ones larger."""
    from matplotlib import colormaps
    from PIL import Image as Picture

    scaled = np.clip((pixels[::-1] + 2 * noise_jy) / (most_jy + 2 * noise_jy), 0, 1)
    colours = colormaps["inferno"](np.nan_to_num(scaled), bytes=True)[..., :3]
    colours[~np.isfinite(pixels[::-1])] = 128
    picture = Picture.fromarray(colours)
    if max(picture.size) < _CUTOUT_PIXELS:
        size = (_CUTOUT_PIXELS, _CUTOUT_PIXELS)
        picture = picture.resize(size, Picture.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
