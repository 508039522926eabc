"""The application of `contimg serve`: routes, pages, and what a refusal looks like."""

import os
from copy import copy

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from contimg.calibration import registry
from contimg.config import Config
from contimg.errors import ContimgError, RequestError, StateError
from contimg.products import publishing
from contimg.products import tables as product_tables
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.telescope import TELESCOPE
from contimg.web.maps import router as maps_router
from contimg.web.observatory import router as observatory_router
from contimg.web.pages import add_pages
from contimg.web.reader import API_KEY, Reader
from contimg.web.routes import router
from contimg.web.sources import router as sources_router


def make_app(config: Config, api_key: str | None = None) -> FastAPI:
    """The application. Reprocessing is off unless `api_key`, or CONTIMG_API_KEY in the environment,
    is set."""
    key = (api_key or os.environ.get(API_KEY, "")).strip() or None
    read = Reader(config, key)
    if key and not key.isascii():
        raise RequestError(
            f"{API_KEY} has other characters than ASCII, which a header cannot carry"
        )
    paths = read.paths
    for path, base in (
        (paths.ingest_db, queue_tables.Base),
        (paths.registry_db, registry.Base),
        (paths.products_db, product_tables.Base),
    ):
        if path.exists():
            with db.writing(path, base):  # its views are this contimg's
                pass
    publishing.mark(config)
    about = f"Continuum imaging of {TELESCOPE.name} drift scans: state and products."
    # they load scripts from elsewhere: pages.py has a page of ours
    no_docs = {"docs_url": None, "redoc_url": None}
    app = FastAPI(
        title="contimg", description=about, version="1", redirect_slashes=False, **no_docs
    )
    app.state.read = read
    routers = (router, sources_router, observatory_router, maps_router)
    routes = [route for one in routers for route in one.routes]
    app.router.routes.extend(copy(route) for route in routes)

    @app.exception_handler(ContimgError)
    def _refused(request: Request, error: ContimgError) -> JSONResponse:
        status = {StateError: 409, RequestError: 422}.get(type(error), 503)
        return JSONResponse({"detail": str(error)}, status)

    add_pages(app, read, can_reprocess=key is not None)
    app.openapi()  # kept: HEAD, which is answered as GET is, needs no entries of its own
    for route in app.routes:
        if isinstance(route, APIRoute) and "GET" in route.methods:
            route.methods = route.methods | {"HEAD"}
    return app
