"""HTTP: what the databases know, as JSON, files and pages (`contimg serve`). The one write goes
through the queue's own code.

Reading is on read-only connections. A request names groups and rows, never paths: files are those
of a row, and only if they are under the products' folder.
"""

import json
import math
import re
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Header, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import func, select, text

from contimg.calibration import registry
from contimg.clock import now
from contimg.concerns import concerns
from contimg.findings import LEVELS
from contimg.paths import GROUP_PATTERN
from contimg.products import tables as product_tables
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.store.files import found_json, read_json
from contimg.web.downloads import served, tar_blocks
from contimg.web.reader import (
    API_KEY,
    CHECK_EVERY_S,
    IMAGE_TYPES,
    MOST_ROWS,
    STATES,
    CalRow,
    Done,
    GroupRow,
    ImageRow,
    MsRow,
    QaRow,
    Reader,
    Reprocess,
    Rows,
    Status,
    coarse_pixels,
)

_MOST_WAITING = 100
_FITS_NAME = rf"^{GROUP_PATTERN}(\.quick)?\.(image|pbcor|pb)\.fits$"
_PICTURE = r"^(days|[0-9T:-]{4,19}\.[a-z]+([+-][0-9.]{4})?)\.png$"
_OF_ANTENNAS = ("sefd_jy", "amplitude", "coherence", "flagged", "pointing_east_deg")
GroupId = Annotated[
    str, PathParameter(pattern=f"^{GROUP_PATTERN}$", examples=["2026-01-25T22:26:05"])
]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
RowId = Annotated[int, PathParameter(ge=1, le=2**53)]
Day = Annotated[str, PathParameter(pattern=r"^\d{4}-\d\d-\d\d$", examples=["2026-01-25"])]
FitsType = Literal["pbcor", "image", "pb"]
Publishable = Annotated[bool, Query(description="only those that may be published")]
router = APIRouter()


def _reader(request: Request) -> Reader:
    return request.app.state.read


Read = Annotated[Reader, Depends(_reader)]
GroupFilter = Annotated[str | None, Query(pattern=f"^{GROUP_PATTERN}$")]


def _mjd(value: str) -> float:
    try:
        return float(value) if re.fullmatch(r"[0-9.]{1,20}", value) else db.mjd(value)
    except ValueError:
        raise HTTPException(
            422, f"{value[:40]!r} is neither an MJD nor a UTC time like 2026-01-25T22:26:05"
        ) from None


@router.get("/healthz", response_class=PlainTextResponse)
def healthz(read: Read) -> str:
    """ok, if the databases can be read, from end to end (looked at every ten seconds at
    most)."""
    for path in (read.paths.ingest_db, read.paths.registry_db, read.paths.products_db):
        when_s, found = read.checks.get(path, (-math.inf, ""))
        if time.monotonic() - when_s > CHECK_EVERY_S:
            with db.reading(path) as session:
                found = "ok" if session is None else session.scalar(text("PRAGMA quick_check(1)"))
            read.checks[path] = time.monotonic(), found
        if found != "ok":
            raise HTTPException(503, f"{path}: damaged: {found}")
    return "ok"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(read: Read) -> Response:
    """For Prometheus."""
    found, collected = read.status(), CollectorRegistry()
    groups = Gauge("contimg_groups", "Groups in the queue", ["state"], registry=collected)
    for state in (*STATES, "waiting"):
        groups.labels(state).set(found["counts"].get(state, 0))
    now_mjd = db.mjd(now())
    ends = [
        s["valid_end_mjd"] for s in found["calibration"] if s["status"] == "active" and s["science"]
    ]
    values = {
        "behind_seconds": (
            found.get("behind_s", 0),
            "Age of the oldest group that could be done and is not",
        ),
        "running": (sum(job["alive"] for job in found["running"]), "Groups being worked on"),
        "imaged_last_hour": (found.get("imaged_last_hour", 0), "Groups imaged in the last hour"),
        "arrived_last_hour": (
            found.get("arrived_last_hour", 0),
            "Groups that came in the last hour",
        ),
        "must_not_be_used": (found.get("must_not_be_used", 0), "Full images that must not be used"),
        "watcher_up": (found["watcher"] is not None, "Whether a watcher is at work"),
        "disk_free_bytes": (found["disk"]["free_bytes"], "Left for products"),
        "calibration_valid_seconds": (
            max([0.0, *((e - now_mjd) * 86400 for e in ends)]),
            "Until the last set ends",
        ),
    }
    hours = found["disk"]["hours_left"]
    if hours is not None:  # what a group takes is not known before the first
        values["disk_hours_left"] = (hours, "Hours of observing that the disk does for")
    for name, (value, what) in values.items():
        Gauge(f"contimg_{name}", what, registry=collected).set(float(value))
    words = "Causes of something wrong"
    wrong = Gauge("contimg_wrong", words, ["level", "kind"], registry=collected)
    for (level, kind), number in Counter(
        (one.level, one.kind) for one in concerns(read.config, found)
    ).items():
        wrong.labels(level, kind).set(number)
    _instrument_metrics(read, collected)
    return PlainTextResponse(generate_latest(collected), media_type="text/plain; version=0.0.4")


def _instrument_metrics(read: Reader, collected: CollectorRegistry) -> None:
    """What the last day that `contimg instrument` looked at says of each antenna and the beam."""
    days = read.paths.instrument_days()
    found = found_json(read.paths.instrument(days[0], "json")) if days else None
    if not found:
        return
    for key in _OF_ANTENNAS:
        gauge = Gauge(
            f"contimg_antenna_{key}", "Median of the day", ["antenna"], registry=collected
        )
        for name, one in found["antennas"].items():
            if key in one:
                gauge.labels(name).set(one[key])
    for key in ("fwhm_east_deg", "fwhm_north_deg", "east_deg", "north_deg"):
        gauge = Gauge(f"contimg_beam_{key}", "Fitted", ["declination"], registry=collected)
        for dec, beam in found["beams"].items():
            if key in beam:
                gauge.labels(dec).set(beam[key])


@router.get("/api/status")
def status(read: Read) -> Status:
    """Queue, running jobs, lag behind real time, calibration validity, disk."""
    return Status(**read.status())


@router.get("/api/groups")
def groups(
    read: Read,
    state: Annotated[Literal[STATES] | None, Query()] = None,
    day: Annotated[str | None, Query(pattern=r"^\d{4}-\d\d-\d\d$", examples=["2026-01-25"])] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Rows[GroupRow]:
    """Groups in the queue, the latest first."""
    query = select(queue_tables.Group)
    query = query.where(queue_tables.Group.state == state) if state else query
    query = query.where(queue_tables.Group.group_id.startswith(day)) if day else query
    return read.rows(
        read.paths.ingest_db, query, (queue_tables.Group.group_id.desc(),), limit, offset
    )


@router.get("/api/groups/{group_id}")
def group(read: Read, group_id: GroupId) -> dict:
    """Everything about a group."""
    return read.group(group_id)


@router.get("/api/ms_index")
def ms_index(
    read: Read,
    status: Literal["ok", "failed", "pruned"] | None = None,
    group_id: GroupFilter = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Rows[MsRow]:
    """Measurement Sets, the latest first."""
    ms = product_tables.MeasurementSet
    query = select(ms).where(
        *([ms.status == status] if status else []), *([ms.group_id == group_id] if group_id else [])
    )
    return read.rows(read.paths.products_db, query, (ms.mid_mjd.desc(),), limit, offset)


@router.get("/api/images")
def images(
    read: Read,
    start: Annotated[
        str | None, Query(max_length=40, description="UTC or MJD", examples=["2026-01-25T22:00:00"])
    ] = None,
    end: Annotated[str | None, Query(max_length=40, description="UTC or MJD")] = None,
    ra: Annotated[
        float | None, Query(ge=0, lt=360, description="centre of a cone, deg (ICRS)")
    ] = None,
    dec: Annotated[float | None, Query(ge=-90, le=90)] = None,
    radius: Annotated[
        float, Query(gt=0, le=180, description="from the cone's centre to the image's, deg")
    ] = 1.0,
    max_noise_jy: Annotated[float | None, Query(gt=0)] = None,
    verdict: Literal[LEVELS] | None = None,
    publishable: Annotated[
        bool | None, Query(description="whether nothing is against its publication")
    ] = None,
    type: Literal[IMAGE_TYPES] | None = None,
    group_id: GroupFilter = None,
    sort: Literal[
        "start_mjd", "-start_mjd", "noise_jy", "-noise_jy", "flux_ratio", "-flux_ratio"
    ] = "-start_mjd",
    limit: Limit = 100,
    offset: Offset = 0,
) -> Rows[ImageRow]:
    """Images that fit all the filters given."""
    image, exact = (product_tables.Image, {"verdict": verdict, "type": type, "group_id": group_id})
    query = select(image).where(
        *(getattr(image, name) == value for name, value in exact.items() if value is not None)
    )
    if publishable is not None:
        query = query.where(
            image.unpublishable.is_(None) if publishable else image.unpublishable.is_not(None)
        )
    query = query.where(image.start_mjd >= _mjd(start)) if start else query
    query = query.where(image.start_mjd < _mjd(end)) if end else query
    query = query.where(image.noise_jy <= max_noise_jy) if max_noise_jy else query
    if (ra is None) != (dec is None):
        raise HTTPException(422, "a cone needs both ra and dec")
    if ra is not None:
        one, two = func.radians(image.centre_dec_deg), float(np.radians(dec))
        along = func.radians(image.centre_ra_deg - ra)
        half = func.pow(func.sin((one - two) / 2), 2) + func.cos(one) * float(
            np.cos(two)
        ) * func.pow(func.sin(along / 2), 2)
        query = query.where(
            image.centre_dec_deg.between(dec - radius, dec + radius),
            half <= np.sin(np.radians(radius) / 2) ** 2,
        )
    column = getattr(image, sort.removeprefix("-"))
    order = column.desc() if sort.startswith("-") else column.asc()
    return read.images(query, (order, image.id), limit, offset)


@router.get("/api/images/{image_id}")
def image(read: Read, image_id: RowId) -> ImageRow:
    """One image."""
    found = read.row(product_tables.Image, image_id)
    return found | {"publishable": found["unpublishable"] is None}


@router.get("/api/images/{image_id}/fits", response_class=FileResponse)
def fits_file(read: Read, request: Request, image_id: RowId) -> Response:
    """Its FITS file."""
    row = read.row(product_tables.Image, image_id)
    if not row["path"].endswith(".fits"):
        raise HTTPException(
            404,
            f"image {image_id} is a CASA image; contimg run with imaging.skip_fits: false "
            "writes FITS",
        )
    return served(request, read.file(row), "image/fits", download=True)


@router.get("/api/images/{image_id}/png", response_class=FileResponse)
def png(read: Read, request: Request, image_id: RowId) -> Response:
    """Its picture."""
    group = read.row(product_tables.Image, image_id)["group_id"]
    query = select(product_tables.QaArtifact).where(
        product_tables.QaArtifact.group_id == group, product_tables.QaArtifact.name == "image"
    )
    found = read.rows(read.paths.products_db, query, (), 1, 0)["items"]
    if not found:
        raise HTTPException(404, f"group {group} has no picture")
    return served(request, read.file(found[0]), "image/png")


@router.get("/api/files/{name}", response_class=FileResponse)
def file(
    read: Read,
    request: Request,
    name: Annotated[
        str, PathParameter(pattern=_FITS_NAME, examples=["2026-01-25T22:26:05.pbcor.fits"])
    ],
) -> Response:
    """A FITS file by its name: that is what it is saved as, too."""
    query = select(product_tables.Image).where(product_tables.Image.group_id == name[:19])
    rows = read.rows(read.paths.products_db, query, (), 100, 0)["items"]
    found = [row for row in rows if Path(row["path"]).name == name]
    if not found:
        raise HTTPException(404, f"there is no image {name}")
    return served(request, read.file(found[0]), "image/fits", download=True)


@router.get("/api/instrument")
def instrument(read: Read, day: str | None = None) -> dict:
    """What a day's groups say of antennas, beam, clock and interference, as `contimg instrument`
    found it; the last day by default."""
    days = read.paths.instrument_days()
    if not days or (day is not None and day not in days):
        raise HTTPException(404, "nothing is known of this day: contimg instrument DAY")
    return {"days": days, **read_json(read.paths.instrument(day or days[0], "json"))}


@router.get("/api/instrument/{name}", response_class=FileResponse)
def instrument_picture(
    read: Read, name: Annotated[str, PathParameter(pattern=_PICTURE)]
) -> Response:
    """A picture of a day of the instrument."""
    path = read.paths.instrument(name.removesuffix(".png"), "png")
    if not path.is_file():
        raise HTTPException(404, "no such picture")
    return FileResponse(path, media_type="image/png")


def _of_day(read: Reader, day: str, type: str, publishable: bool) -> list[Path]:
    image = product_tables.Image
    query = select(image).where(
        image.group_id.startswith(day), image.type == type, image.deleted_at.is_(None)
    )
    query = query.where(image.unpublishable.is_(None)) if publishable else query
    rows = read.images(query, (image.group_id,), MOST_ROWS)["items"]
    return [
        path
        for path in map(Path, (row["path"] for row in rows))
        if re.fullmatch(_FITS_NAME, path.name)
    ]


@router.get("/api/days/{day}/list", response_class=PlainTextResponse)
def day_list(
    read: Read,
    request: Request,
    day: Day,
    type: FitsType = "pbcor",
    publishable: Publishable = True,
) -> str:
    """Addresses of a day's images, one a line: wget -i takes them."""
    base = str(request.base_url).rstrip("/")
    return "".join(
        f"{base}/api/files/{path.name}\n" for path in _of_day(read, day, type, publishable)
    )


@router.get("/api/days/{day}/tar", response_class=StreamingResponse)
def day_tar(
    read: Read, day: Day, type: FitsType = "pbcor", publishable: Publishable = True
) -> Response:
    """A day's images in one tar file."""
    found = [
        read.file({"path": path}) for path in _of_day(read, day, type, publishable) if path.exists()
    ]
    if not found:
        raise HTTPException(404, f"no image of {day} that fits")
    headers = {"content-disposition": f'attachment; filename="{day}.{type}.tar"'}
    return StreamingResponse(tar_blocks(found), media_type="application/x-tar", headers=headers)


@router.get("/api/images/{image_id}/pixels", response_class=Response)
async def pixels(
    read: Read,
    image_id: RowId,
    x0: Offset = 0,
    y0: Offset = 0,
    width: Annotated[int, Query(ge=1)] = 10**6,
    height: Annotated[int, Query(ge=1)] = 10**6,
    step: Annotated[int, Query(ge=1, le=64)] = 1,
) -> Response:
    """Values of a FITS image, Jy/beam: float32, little-endian, in rows from the south; each the
    largest of step x step. The WCS, and the size, are in the header X-Image. A few at a time;
    when many wait already, 503."""
    if read.images_at_once.statistics().tasks_waiting >= _MOST_WAITING:
        raise HTTPException(503, "many look at images now: try again", {"retry-after": "2"})

    def work() -> tuple[bytes, dict]:
        return coarse_pixels(
            read.file(read.row(product_tables.Image, image_id)), x0, y0, width, height, step
        )

    values, about = await to_thread.run_sync(work, limiter=read.images_at_once)
    return Response(
        values, media_type="application/octet-stream", headers={"X-Image": json.dumps(about)}
    )


@router.get("/api/qa")
def qa(
    read: Read,
    group_id: GroupFilter = None,
    name: Annotated[str | None, Query(pattern="^[a-z_]{1,40}$")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Rows[QaRow]:
    """QA plots."""
    plot = product_tables.QaArtifact
    query = select(plot).where(
        *([plot.group_id == group_id] if group_id else []), *([plot.name == name] if name else [])
    )
    return read.rows(read.paths.products_db, query, (plot.group_id.desc(), plot.id), limit, offset)


@router.get("/api/qa/{artifact_id}", response_class=FileResponse)
def artifact(read: Read, request: Request, artifact_id: RowId) -> Response:
    """A plot (PNG)."""
    return served(request, read.file(read.row(product_tables.QaArtifact, artifact_id)), "image/png")


@router.get("/api/caltables")
def caltables(
    read: Read,
    status: Literal["active", "retired", "failed"] | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Rows[CalRow]:
    """Calibration tables, the latest first."""
    table = registry.CalTable
    query = select(table).where(table.status == status) if status else select(table)
    return read.rows(
        read.paths.registry_db, query, (table.mid_mjd.desc(), table.order_index), limit, offset
    )


@router.post("/api/reprocess/{group_id}", status_code=202)
def reprocess(
    read: Read,
    request: Request,
    group_id: GroupId,
    what: Annotated[Reprocess, Body()],
    x_api_key: Annotated[str | None, Header(description="the server's CONTIMG_API_KEY")] = None,
) -> Done:
    """Do a finished or failed group again; the next run, or the watcher, takes it."""
    if read.api_key is None:
        raise HTTPException(
            403, f"reprocessing is off: start `contimg serve` with {API_KEY} in its environment"
        )
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != (host := request.headers.get("host")):
        raise HTTPException(
            403,
            "requests from other pages are refused: this one is from "
            f"{urlsplit(origin).netloc}, the server is {host}. "
            "Behind a proxy: have it pass Host on (docs/monitoring.md)",
        )
    if x_api_key is None or not secrets.compare_digest(
        x_api_key.encode("latin-1"), read.api_key.encode()
    ):
        time.sleep(0.2)
        raise HTTPException(401, "missing or wrong X-API-Key")
    with db.reading(read.paths.ingest_db) as session:
        if session is None or session.get(queue_tables.Group, group_id) is None:
            raise HTTPException(404, f"group {group_id} is not in the queue")
    with db.writing(read.paths.ingest_db, queue_tables.Base) as session:
        first = moves.reprocess(
            session, read.paths, group_id, what.from_stage, read.config.ingest.min_subbands
        )
    return Done(message=f"{group_id}: pending again, from {first} on; the next run takes it")
