"""The Virtual Observatory's services: images by place and time (SIA 2.0), pieces of them (SODA 1.0,
sync), and a list of mosaics."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from sqlalchemy import select, text

from contimg.paths import GROUP_PATTERN, MOSAIC_PATTERN, TRACT_PATTERN
from contimg.products import mosaics
from contimg.products import tables as product_tables
from contimg.products.export import OBSCORE
from contimg.store import db
from contimg.telescope import TELESCOPE
from contimg.web.reader import Reader
from contimg.web.routes import Limit, Offset, Read
from contimg.web.sources import as_png, pixels_around

router = APIRouter()
_DID = f"ivo://{TELESCOPE.authority}/contimg?"
_MOST_RECORDS = 10_000
_MOST_VALUES = 20
_VOTABLE = "application/x-votable+xml"
_LARGEST_DEG = 2.0  # across, of a cutout
_FITS = "image/fits"
_REAL = {
    *("s_ra", "s_dec", "s_fov", "s_resolution", "t_min", "t_max", "t_exptime", "t_resolution"),
    *("em_min", "em_max", "em_res_power"),
}
_WHOLE = ("calib_level", "access_estsize", "s_xel1", "s_xel2", "t_xel", "em_xel", "pol_xel")


@dataclass(frozen=True)
class _Shape:
    """A piece of sky: a circle around (ra, dec), that holds what was asked for; deg."""

    ra: float
    dec: float
    radius: float


def _numbers(words: Sequence[str], count: int | None, what: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or (count and len(values) != count) or not np.isfinite(values).all():
        raise HTTPException(422, f"{what}: expected numbers in deg, ICRS")
    return values


def shape_of(value: str) -> _Shape:
    """Of SODA's and SIA's POS: CIRCLE ra dec radius, RANGE ra1 ra2 dec1 dec2, POLYGON ra dec ...;
    422 for anything else."""
    kind, *words = value.split() or [""]
    if kind == "CIRCLE":
        ra, dec, radius = _numbers(words, 3, f"POS={value[:60]}")
    elif kind == "RANGE":
        ra1, ra2, dec1, dec2 = _numbers(words, 4, f"POS={value[:60]}")
        ra, dec = (ra1 + ra2) / 2, (dec1 + dec2) / 2
        across = (ra2 - ra1) * np.cos(np.radians(dec))
        radius = min(180.0, float(np.hypot(across, dec2 - dec1)) / 2)
    elif kind == "POLYGON":
        values = np.array(_numbers(words, None, f"POS={value[:60]}"))
        if len(values) < 6 or len(values) % 2:
            raise HTTPException(422, f"POS={value[:60]}: a polygon has three corners or more")
        from contimg.photometry.reference import place_of, unit_vectors
        from contimg.sky.geometry import separation_deg

        corners = values.reshape(-1, 2)
        ra, dec = place_of(unit_vectors(*corners.T), np.ones(len(corners)))
        radius = float(separation_deg(corners[:, 0], corners[:, 1], ra, dec).max())
    else:
        raise HTTPException(422, f"POS={value[:60]}: CIRCLE, RANGE or POLYGON")
    if not (abs(dec) <= 90 and 0 <= radius <= 180):
        raise HTTPException(422, f"POS={value[:60]}: no such place")
    return _Shape(ra % 360, dec, radius)


def _found(read: Reader, name: str) -> tuple[dict[str, Any], Path]:
    """Row and file of an image or a mosaic: GROUP, TRACT, TRACT.SDAY, or their ObsCore id."""
    # a plus sign in an address that was not escaped is a blank
    short = name.replace(" ", "+").removeprefix(_DID).removeprefix("mosaic/").partition("/")[0]
    if re.fullmatch(GROUP_PATTERN, short):
        image = product_tables.Image
        asked: Any = select(image).where(image.group_id == short, image.type == "pbcor")
    elif re.fullmatch(MOSAIC_PATTERN, short):
        mosaic = product_tables.Mosaic
        asked = select(mosaic).where(mosaic.name == short)
    else:
        raise HTTPException(422, f"ID={name[:80]}: a group, TRACT or TRACT.DAY")
    rows = read.rows(read.paths.products_db, asked, (), 1, 0)["items"]
    if not rows or not (rows[0]["path"] or "").endswith(".fits"):
        raise HTTPException(404, f"{short} has no FITS image")
    return rows[0], read.file(rows[0])


@router.get("/api/tracts")
def tracts(
    read: Read,
    kind: Literal["mosaic", "deep"] | None = None,
    tract: Annotated[str | None, Query(pattern=f"^{TRACT_PATTERN}$")] = None,
    strip: Annotated[str | None, Query(pattern=r"^[+-]\d\d\.\d$")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> list[dict]:
    """Mosaics of days and of all days: noise, coverage, verdict; of one tract, what is in them,
    too."""
    rows = mosaics.listed(read.paths, kind=kind, tract=tract, strip=strip)[offset : offset + limit]
    left_out = {"seen"} if tract else {"seen", "inputs"}
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


@router.get("/api/cutout", response_class=Response)
def cutout(
    read: Read,
    ID: Annotated[str, Query(max_length=120, description="a group, TRACT or TRACT.DAY")],
    POS: Annotated[str | None, Query(max_length=400, examples=["CIRCLE 347.3 16.0 0.1"])] = None,
    CIRCLE: Annotated[str | None, Query(max_length=100, examples=["347.3 16.0 0.1"])] = None,
    POLYGON: Annotated[str | None, Query(max_length=400)] = None,
    RESPONSEFORMAT: Literal["image/fits", "image/png", "fits", "png"] = "image/fits",
    most_mjy: Annotated[float | None, Query(gt=0, description="the brightest colour")] = None,
) -> Response:
    """A piece of an image, as IVOA SODA asks for it: the square that holds the region; without a
    region the whole file. FITS keeps the header; PNG has north up and east left."""
    words = POS or (CIRCLE and f"CIRCLE {CIRCLE}") or (POLYGON and f"POLYGON {POLYGON}")
    row, path = _found(read, ID)
    if not words:
        return FileResponse(path, media_type=_FITS, filename=path.name)
    shape = shape_of(words)
    if not 0 < 2 * shape.radius <= _LARGEST_DEG:
        raise HTTPException(422, f"a cutout is {_LARGEST_DEG:g} deg across at most")
    piece, header = pixels_around(path, shape.ra, shape.dec, 120 * shape.radius)
    if RESPONSEFORMAT.endswith("png"):
        noise_jy = row["noise_jy"] or row["expected_noise_jy"]
        most_jy = most_mjy / 1e3 if most_mjy else max(5 * noise_jy, float(np.nanmax(piece)))
        return Response(as_png(piece, noise_jy, most_jy), media_type="image/png")
    from astropy.io import fits

    buffer = io.BytesIO()
    fits.PrimaryHDU(piece, header).writeto(buffer, checksum=True)
    whole = row.get("name") or path.stem  # a mosaic's file has the name of its day
    name = f"{whole}_{shape.ra:.4f}{shape.dec:+.4f}.fits"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(buffer.getvalue(), media_type=_FITS, headers=headers)


# -- SIA 2.0


def _ranges(values: Sequence[str], what: str) -> list[tuple[float, float]]:
    """Of TIME or BAND: "a b" or one number; infinities as IVOA has them."""
    found = []
    for value in values:
        try:
            words = [
                float(word.replace("+Inf", "inf").replace("-Inf", "-inf")) for word in value.split()
            ]
        except ValueError:
            words = []
        if len(words) not in (1, 2) or words[0] > words[-1]:
            raise HTTPException(422, f"{what}={value[:60]}: one number, or two that rise")
        found.append((words[0], words[-1]))
    return found


@router.get("/sia2/query", response_class=Response)
def sia2(request: Request, read: Read) -> Response:
    """Images and mosaics that may be published, by POS, TIME (MJD), BAND (m), COLLECTION, TARGET,
    ID, CALIB and MAXREC; repeated values are alternatives. A VOTable of ObsCore's columns."""
    try:
        return _found_by(request, read)
    except HTTPException as error:  # DALI 1.1
        return Response(_votable((), "ERROR", error.detail), 400, media_type=_VOTABLE)


def _found_by(request: Request, read: Reader) -> Response:
    asked: dict[str, list[str]] = {}
    for key, value in request.query_params.multi_items():
        asked.setdefault(key.upper(), []).append(value)
    if max(map(len, asked.values()), default=0) > _MOST_VALUES:
        raise HTTPException(422, f"{_MOST_VALUES} values of a parameter at most")
    if asked.get("RESPONSEFORMAT", [_VOTABLE])[0] not in (_VOTABLE, "votable", "text/xml"):
        raise HTTPException(422, f"RESPONSEFORMAT: {_VOTABLE} is what there is")
    shapes = [shape_of(value) for value in asked.get("POS", ())]
    most = int(_numbers(asked.get("MAXREC", [str(_MOST_RECORDS)])[:1], 1, "MAXREC")[0])
    wheres, values = _conditions(asked)
    with db.reading(read.paths.products_db) as session:
        rows: list[dict[str, Any]] = []
        if session is not None:
            words = f"SELECT * FROM obscore {wheres} ORDER BY t_min DESC, obs_publisher_did"
            rows = [dict(row._mapping) for row in session.execute(text(words), values)]
    if shapes and rows:
        rows = [row for row, near in zip(rows, _overlap(rows, shapes), strict=True) if near]
    base = str(request.base_url)
    for row in rows:
        row["access_url"] = f"{base}api/cutout?ID={quote(row['obs_publisher_did'], safe='')}"
    most = min(most, _MOST_RECORDS)
    return Response(
        _votable(rows[: max(0, most)], "OVERFLOW" if len(rows) > most else "OK"),
        media_type=_VOTABLE,
    )


def _conditions(asked: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, Any]]:
    """WHERE of a query on obscore, and its values."""
    wheres: list[str] = []
    values: dict[str, Any] = {}
    for what, low, high in (("TIME", "t_min", "t_max"), ("BAND", "em_min", "em_max")):
        alternatives = []
        for k, (first, last) in enumerate(_ranges(asked.get(what, ()), what)):
            values |= {f"{what}{k}a": first, f"{what}{k}b": last}
            alternatives.append(f"({high} >= :{what}{k}a AND {low} <= :{what}{k}b)")
        if alternatives:
            wheres.append(f"({' OR '.join(alternatives)})")
    for what, column in (
        ("COLLECTION", "obs_collection"),
        ("TARGET", "target_name"),
        ("ID", "obs_publisher_did"),
        ("CALIB", "calib_level"),
    ):
        if some := asked.get(what):
            names = [f"{what}{k}" for k in range(len(some))]
            as_asked: Sequence = _numbers(some, None, what) if what == "CALIB" else some
            values |= dict(zip(names, as_asked, strict=True))
            wheres.append(f"{column} IN ({', '.join(f':{name}' for name in names)})")
    return f"WHERE {' AND '.join(wheres)}" if wheres else "", values


def _overlap(rows: Sequence[Mapping], shapes: Sequence[_Shape]) -> np.ndarray:
    """Whether images, as the circles around them, and one of some regions meet."""
    from contimg.sky.geometry import separation_deg

    ra, dec, fov = (np.array([row[n] for row in rows], float) for n in ("s_ra", "s_dec", "s_fov"))
    square = np.array([not row["s_region"].startswith("CIRCLE") for row in rows])
    half = fov / 2 * np.where(square, np.sqrt(2), 1)
    near = [separation_deg(ra, dec, one.ra, one.dec) <= half + one.radius for one in shapes]
    return np.any(near, axis=0)


def _votable(rows: Sequence[Mapping], status: str, words: str | None = None) -> bytes:
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info
    from astropy.table import Table

    names = list(rows[0]) if rows else [*OBSCORE]
    columns = {}
    for name in names:
        found = [row[name] for row in rows]
        if name in _REAL:
            columns[name] = np.array([np.nan if v is None else v for v in found], float)
        elif name in _WHOLE:
            columns[name] = np.array([-1 if v is None else v for v in found], np.int64)
        else:
            columns[name] = np.array(["" if v is None else str(v) for v in found], "U")
    votable = from_table(Table(columns))
    resource = votable.resources[0]
    resource.type = "results"
    resource.infos.append(Info(name="QUERY_STATUS", value=status))
    resource.infos[-1].content = words
    for field in resource.tables[0].fields:
        if field.name in OBSCORE:
            unit, field.ucd, utype = OBSCORE[field.name]
            field.unit, field.utype = unit or None, f"obscore:{utype}"
    buffer = io.BytesIO()
    votable.to_xml(buffer)
    return buffer.getvalue()


_CAPABILITIES = """<?xml version="1.0" encoding="UTF-8"?>
<vosi:capabilities xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0"
 xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <capability standardID="ivo://ivoa.net/std/SIA#query-2.0">
  <interface xsi:type="vs:ParamHTTP" role="std" version="2.0">
   <accessURL use="base">{base}sia2/query</accessURL>
  </interface>
 </capability>
 <capability standardID="ivo://ivoa.net/std/SODA#sync-1.0">
  <interface xsi:type="vs:ParamHTTP" role="std" version="1.0">
   <accessURL use="base">{base}api/cutout</accessURL>
  </interface>
 </capability>
 <capability standardID="ivo://ivoa.net/std/VOSI#availability">
  <interface xsi:type="vs:ParamHTTP">
   <accessURL use="full">{base}sia2/availability</accessURL>
  </interface>
 </capability>
</vosi:capabilities>
"""
_AVAILABLE = """<?xml version="1.0" encoding="UTF-8"?>
<vosi:availability xmlns:vosi="http://www.ivoa.net/xml/VOSIAvailability/v1.0">
 <vosi:available>true</vosi:available>
</vosi:availability>
"""


@router.get("/sia2/capabilities", response_class=Response)
def capabilities(request: Request) -> Response:
    """What there is (VOSI)."""
    return Response(_CAPABILITIES.format(base=request.base_url), media_type="text/xml")


@router.get("/sia2/availability", response_class=Response)
def availability() -> Response:
    """It answers (VOSI)."""
    return Response(_AVAILABLE, media_type="text/xml")
