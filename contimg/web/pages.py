"""The pages of `contimg serve`: rendered here from what the API gives, refreshed by a few lines of
JavaScript."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from markupsafe import Markup, escape
from sqlalchemy import func, select
from starlette.exceptions import HTTPException as StarletteHTTPException

from contimg.calibration.registry import describe_sets
from contimg.calibration.words import summary
from contimg.clock import now
from contimg.concerns import concerns, duration, headline
from contimg.errors import RequestError
from contimg.findings import LEVELS
from contimg.paths import DATE_PATTERN, GROUP_PATTERN
from contimg.products import catalogue
from contimg.products.mosaics import listed
from contimg.products.record import results_of
from contimg.products.tables import Image
from contimg.store import db
from contimg.store.files import found_json
from contimg.telescope import TELESCOPE
from contimg.web import archive
from contimg.web.charts import chart, curve_chart, eta_v_chart, footprints, timeline
from contimg.web.maps import maps
from contimg.web.reader import Reader
from contimg.web.sources import source_of

_WEB = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src "
    "'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
# Aladin Lite is WebAssembly that it has within itself, and works in threads.
_FOR_MAPS = (
    " blob:; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; connect-src "
    "'self' data: blob:; font-src 'self' data:"
)
_GROUP = re.compile(rf"{GROUP_PATTERN}(?!_sb|[+.Z])")  # no file's name, no time
_MOSAICS = 500
_THUMBNAILS, _FOOTPRINTS, _DAYS = 12, 2000, 60
_CANDIDATES, _DRAWN, _NEIGHBOURS, _NEIGHBOURS_DEG = 100, 3000, 10, 0.25


def _linked(text: str, root: str) -> Markup:
    """A text in which groups are links to their pages."""
    return Markup(_GROUP.sub(rf'<a href="{root}/groups/\g<0>">\g<0></a>', str(escape(text))))


def add_pages(app: FastAPI, read: "Reader", can_reprocess: bool) -> None:
    """The routes of the pages, their static files, and errors as pages for browsers."""
    templates = Jinja2Templates(
        _WEB / "templates",
        context_processors=[
            lambda request: {
                "root": request.scope.get("root_path", ""),
                "telescope": TELESCOPE.name,
            }
        ],
    )
    templates.env.filters |= {"utc": db.utc_of_mjd, "duration": duration, "linked": _linked}
    app.mount("/static", StaticFiles(directory=_WEB / "static"), name="static")

    @app.middleware("http")
    async def _harden(request: Request, following: Callable):
        response = await following(request)
        response.headers.update(_HEADERS)
        if request.url.path.endswith("/map"):
            response.headers["Content-Security-Policy"] += _FOR_MAPS
        return response

    @app.exception_handler(StarletteHTTPException)
    async def _error(request: Request, error: StarletteHTTPException):
        from fastapi.exception_handlers import http_exception_handler

        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path.startswith(("/api/", "/static")) or "text/html" not in request.headers.get(
            "accept", ""
        ):
            return await http_exception_handler(request, error)
        about = {"title": f"{error.status_code}", "words": error.detail}
        return templates.TemplateResponse(
            request, "error.html", about, status_code=error.status_code
        )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def overview(request: Request):
        status = read.status()
        with db.reading(read.paths.products_db) as session:
            newest = (
                session.scalar(select(func.max(Image.start_mjd))) if session is not None else None
            )
        day = archive.latest(read, 1000, Image.start_mjd > newest - 1) if newest else []
        wrong = concerns(read.config, status)
        noise, flux = chart(day, "noise_jy", 1e3), chart(day, "flux_ratio", line=1.0, reach=0.03)
        about = {
            "status": status,
            "headline": headline(status, wrong),
            "wrong": wrong,
            "thumbnails": archive.latest(read, _THUMBNAILS),
            "noise": noise,
            "flux": flux,
            "timeline": timeline(status["calibration"], db.mjd(now())),
            "now": now()[:19],
            "newest": newest,
        }
        return templates.TemplateResponse(request, "overview.html", about)

    @app.get("/groups/{group_id}", response_class=HTMLResponse, include_in_schema=False)
    def group_page(request: Request, group_id: str):
        known = read.group(group_id) if len(group_id) == 19 else None
        if known is None:
            raise HTTPException(404, "no such group")
        fits = [i for i in known["images"] if i["path"].endswith(".fits") and not i["deleted_at"]]
        order = ("pbcor", "image", "pb", "quick_pbcor", "quick_image", "quick_pb")
        fits.sort(key=lambda one: order.index(one["type"]))
        results = results_of(read.paths, group_id)
        refined = found_json(read.paths.result(group_id, "refine"))
        about = {
            "group": known,
            "fits": fits,
            "can_reprocess": can_reprocess,
            "beside": archive.beside(read, group_id),
            "elsewhere": archive.elsewhere(fits[0]["path"], read.config.page.carta_url)
            if fits
            else None,
            "chosen": results.get("caltables"),
            "refined": summary(refined) if refined else [],
        }
        return templates.TemplateResponse(request, "group.html", about)

    @app.get("/images", response_class=HTMLResponse, include_in_schema=False)
    def images_page(
        request: Request,
        day: Annotated[str | None, Query(max_length=40)] = None,
        verdict: Annotated[str | None, Query(max_length=20)] = None,
        dec: Annotated[str | None, Query(max_length=20)] = None,
        page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    ):
        try:
            declination = float(dec) if dec else None
        except ValueError:
            raise HTTPException(422, f"declination {dec[:20]}: expected deg, as 16.1") from None
        asked = {"day": day or "", "verdict": verdict or "", "dec": dec or ""}
        about = archive.listed(read, day, verdict, declination, page)
        about |= {"asked": asked, "page": page, "levels": LEVELS}
        return templates.TemplateResponse(request, "images.html", about)

    @app.get("/days/{day}", response_class=HTMLResponse, include_in_schema=False)
    def day_page(request: Request, day: Annotated[str, PathParameter(pattern=f"^{DATE_PATTERN}$")]):
        about = archive.of_day(read, day)
        if not about["images"] and not about["others"]:
            raise HTTPException(404, f"nothing is known of {day}")
        about["noise"] = chart(about["images"], "noise_jy", 1e3)
        about["flux"] = chart(about["images"], "flux_ratio", line=1.0, reach=0.03)
        return templates.TemplateResponse(request, "day.html", about)

    @app.get("/find", include_in_schema=False)
    def find(request: Request, group: Annotated[str, Query(max_length=40)]):
        there = archive.found(read, group)
        return RedirectResponse(f"{request.scope.get('root_path', '')}{there}", 303)

    @app.get("/calibration", response_class=HTMLResponse, include_in_schema=False)
    def calibration(request: Request):
        about = {
            "sets": describe_sets(read.paths.registry_db)[::-1],
            "pages": archive.pages_of_sets(read),
            "timeline": timeline(read.validity(), db.mjd(now())),
        }
        return templates.TemplateResponse(request, "calibration.html", about)

    @app.get("/instrument", response_class=HTMLResponse, include_in_schema=False)
    def instrument(request: Request, day: str | None = None):
        days = read.paths.instrument_days()
        if day is not None and day not in days:
            raise HTTPException(404, "nothing is known of this day: contimg instrument DAY")
        chosen = day or (days[0] if days else None)
        found = found_json(read.paths.instrument(chosen, "json")) if chosen else None
        about = {
            "days": days[:_DAYS],
            "day": found,
            "drawn": read.paths.instrument("days", "png").is_file(),
            "pictures": [Path(path).name for path in (found or {}).get("pictures", [])],
        }
        return templates.TemplateResponse(request, "instrument.html", about)

    @app.get("/sources", response_class=HTMLResponse, include_in_schema=False)
    def sources_page(request: Request, find: str | None = None):
        if find:
            try:
                found = catalogue.find(read.paths, find)
            except RequestError as error:
                raise HTTPException(404, str(error)) from None
            there = f"/sources/{found['strip']}/{quote(found['source'])}"
            return RedirectResponse(f"{request.scope.get('root_path', '')}{there}", 303)
        candidates, number = catalogue.sources(
            read.paths, variable=True, order="false_alarms", limit=_CANDIDATES
        )
        rows, total = catalogue.sources(read.paths, order="eta", limit=_DRAWN)
        days = catalogue.days(read.paths)
        about = {
            "candidates": candidates,
            "number": number,
            "total": total,
            "few": total > _DRAWN,
            "drawn": eta_v_chart(rows),
            "days": [one | {"date": db.utc_of_mjd(one["begin_mjd"])[:10]} for one in days[:_DAYS]],
        }
        return templates.TemplateResponse(request, "sources.html", about)

    @app.get("/sources/{strip}/{name:path}", response_class=HTMLResponse, include_in_schema=False)
    def source_page(request: Request, strip: str, name: str):
        found = source_of(read, strip, name)
        curve = catalogue.lightcurve(read.paths, strip, name).to_dict("records")
        around = (found["ra_deg"], found["dec_deg"], _NEIGHBOURS_DEG)
        neighbours, _ = catalogue.sources(read.paths, cone=around, limit=_NEIGHBOURS + 1)
        tiles = [one["tile"] for one in curve]
        imaged = archive.latest(
            read, _DAYS, Image.group_id.in_(tiles[-_DAYS:]), Image.path.endswith(".fits")
        )
        spectrum = catalogue.spectrum(read.paths, name, tiles)
        brightest = max((one["flux_jy"] for one in curve), default=0.0)
        about = {
            "source": found,
            "curve": curve_chart(curve, found["mean_jy"]),
            "days": curve[::-1],
            "imaged": {one["group_id"] for one in imaged},
            "spectrum": spectrum,
            "index": catalogue.spectral_index(spectrum),
            "neighbours": [one for one in neighbours if one["source"] != name],
            "most_mjy": max(1e3 * brightest, 5e3 * (found["median_error_jy"] or 0), 0.1),
        }
        return templates.TemplateResponse(request, "source.html", about)

    @app.get("/map", response_class=HTMLResponse, include_in_schema=False)
    def map_page(request: Request):
        rows = [{k: v for k, v in one.items() if k != "inputs"} for one in listed(read.paths)]
        about = {
            "maps": maps(read),
            "rows": sorted(rows, key=lambda one: one["created_at"], reverse=True)[:_MOSAICS],
            "new": catalogue.new_sources(read.paths)[:_CANDIDATES],
        }
        return templates.TemplateResponse(request, "map.html", about)

    @app.get("/api", response_class=HTMLResponse, include_in_schema=False)
    def api(request: Request):
        return templates.TemplateResponse(request, "api.html", {"openapi": app.openapi()})

    @app.get("/sky", response_class=HTMLResponse, include_in_schema=False)
    def sky(request: Request, whole: bool = False):
        shown = footprints(archive.latest(read, _FOOTPRINTS), whole)
        return templates.TemplateResponse(request, "sky.html", {"sky": shown})
