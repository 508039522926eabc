"""Maps of mosaics for sky browsers: each tract's HiPS on disk, over HTTP all tracts of a strip as
one."""

import io
import re
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi import Path as PathParameter
from fastapi.responses import PlainTextResponse, Response

from contimg.products import catalogue, mosaics
from contimg.store.files import found_json
from contimg.telescope import TELESCOPE
from contimg.web.reader import Reader
from contimg.web.routes import Read
from contimg.web.sources import Strip

router = APIRouter()
_MOST_SOURCES = 3000
Which = Annotated[str, PathParameter(pattern=r"^(deep|\d{4,5})$", description="deep, or a day")]


def _maps(read: Reader, which: str, strip: str) -> list[dict[str, Any]]:
    """Results of the maps of a strip's tracts."""
    ending = "" if which == "deep" else f".{which}"
    pattern = re.compile(rf"{re.escape(strip)}_\d\d\d{re.escape(ending)}")
    found = []
    for name in read.paths.with_result("hips", strip):
        if pattern.fullmatch(name) and read.paths.hips(name).is_dir():
            made = found_json(read.paths.result(name, "hips"))
            if made and "order" in made:
                found.append(made | {"name": name})
    return found


@router.get("/api/maps")
def maps(read: Read) -> list[dict]:
    """Maps that there are: `which` (deep, or a sidereal day), strip, and how many tracts."""
    found: dict[tuple[str, str], int] = {}
    for name in read.paths.with_result("hips"):
        tract, day = mosaics.tract_and_day(name)
        if read.paths.hips(name).is_dir():
            key = day or "deep", tract.partition("_")[0]
            found[key] = found.get(key, 0) + 1
    order = sorted(found, key=lambda key: (key[0] != "deep", key[0], key[1]))
    return [{"which": key[0], "strip": key[1], "tracts": found[key]} for key in order]


@router.get("/hips/{which}/{strip}/properties", response_class=PlainTextResponse)
def properties(read: Read, which: Which, strip: Strip) -> str:
    """What a map is (HiPS 1.0)."""
    found = _maps(read, which, strip)
    if not found:
        raise HTTPException(404, f"strip {strip} has no map of {which}")
    noise_jy = float(np.median([one["noise_jy"] for one in found]))
    middle = found[len(found) // 2]["name"]
    first_deg = int(middle.partition("_")[2][:3])
    values = {
        "creator_did": f"ivo://{TELESCOPE.authority}/contimg?hips/{which}/{strip}",
        "obs_title": f"{TELESCOPE.name} {strip} {which}",
        "dataproduct_type": "image",
        "hips_version": "1.4",
        "hips_frame": "equatorial",
        "hips_order": max(one["order"] for one in found),
        "hips_tile_width": 512,
        "hips_tile_format": "fits",
        "hips_pixel_bitpix": -32,
        "hips_pixel_cut": f"{-2 * noise_jy:.4g} {30 * noise_jy:.4g}",
        "hips_initial_ra": first_deg + 2.5,
        "hips_initial_dec": float(strip),
        "hips_initial_fov": 6,
        "hips_status": "public master clonableOnce",
    }
    return "".join(f"{key:<20} = {value}\n" for key, value in values.items())


@router.get("/hips/{which}/{strip}/Norder{order}/Dir{folder}/Npix{tile}.fits")
def tile(
    read: Read,
    which: Which,
    strip: Strip,
    order: Annotated[int, PathParameter(ge=0, le=11)],
    folder: Annotated[int, PathParameter(ge=0)],
    tile: Annotated[int, PathParameter(ge=0)],
) -> Response:
    """A tile of a map; at a border, of the tracts that have it, the mean of what they show."""
    name = Path(f"Norder{order}") / f"Dir{folder}" / f"Npix{tile}.fits"
    paths = [read.paths.hips(one["name"]) / name for one in _maps(read, which, strip)]
    there = [path for path in paths if path.is_file()]
    if not there:
        raise HTTPException(404, "the map has nothing there")
    headers = {"cache-control": "max-age=60"}
    if len(there) == 1:
        return Response(there[0].read_bytes(), media_type="image/fits", headers=headers)
    from astropy.io import fits

    arrays = []
    for path in there:
        with fits.open(path, memmap=False) as hdus:
            header, values = hdus[0].header, hdus[0].data
        arrays.append(values)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # nothing in any
        mean = np.nanmean(arrays, axis=0).astype(np.float32)
    buffer = io.BytesIO()
    fits.PrimaryHDU(mean, header).writeto(buffer)
    return Response(buffer.getvalue(), media_type="image/fits", headers=headers)


@router.get("/api/maps/{which}/{strip}/marks")
def marks(read: Read, which: Which, strip: Strip) -> dict:
    """What is drawn on a map: outlines of tracts, the brightest sources of its lists, what is
    new."""
    kind = mosaics.DEEP if which == "deep" else mosaics.DAY
    rows = [
        row
        for row in mosaics.listed(read.paths, kind=kind, strip=strip)
        if row["path"] and (which == "deep" or str(row["sday"]) == which)
    ]
    sources: list[dict[str, Any]] = []
    for row in rows:
        listed = found_json(read.paths.result(row["name"], mosaics.CATALOGUE)) or {}
        if path := listed.get("files", {}).get("parquet"):
            sources += catalogue.brightest(Path(path), _MOST_SOURCES // max(1, len(rows)))
    tracts = [
        {"name": row["name"], "region": [float(v) for v in row["region"].split()[2:]]}
        for row in rows
    ]
    new = catalogue.new_sources(read.paths, strip)
    return {"tracts": tracts, "sources": sources, "new": new}
