"""The archive of a running `contimg serve`, as pandas and astropy objects.

    from contimg.client import Client

    site = Client("http://127.0.0.1:8000")
    site.images(start="2026-01-25", end="2026-01-26", publishable=True)
    site.image("2026-01-25T22:26:05")[0].header["RMS"]
    site.cutout("+16.1_345", SkyCoord(347.3, 16.0, unit="deg"), radius_deg=0.1)
    site.lightcurve("3C454.3")

Positions are ICRS, fluxes Jy, times UTC (MJD in columns that end in _mjd).
"""

import io
import re
from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd
import requests
from astropy.coordinates import SkyCoord
from astropy.io import fits

from contimg.errors import RequestError

_PAGE = 500
_TIMEOUT_S = 300
_STRIP = re.compile(r"[+-]\d\d\.\d")


class Client:
    """Read-only. Errors are RequestError, in the server's words."""

    def __init__(self, address: str = "http://127.0.0.1:8000"):
        self.address = address.rstrip("/")
        self._session = requests.Session()

    def _get(self, route: str, **asked: Any) -> requests.Response:
        asked = {name: value for name, value in asked.items() if value is not None}
        try:
            answer = self._session.get(f"{self.address}{route}", params=asked, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise RequestError(f"{self.address} does not answer: {error}") from None
        if not answer.ok:
            kind = answer.headers.get("content-type", "")
            said = answer.json()["detail"] if kind.startswith("application/json") else answer.text
            raise RequestError(f"{self.address}{route}: {answer.status_code}: {said}")
        return answer

    def _rows(self, route: str, most: int | None, **asked: Any) -> pd.DataFrame:
        """A list, page by page."""

        def pages() -> Iterator[list[dict]]:
            offset = 0
            while most is None or offset < most:
                limit = _PAGE if most is None else min(_PAGE, most - offset)
                found = self._get(route, limit=limit, offset=offset, **asked).json()
                yield found["items"]
                offset += len(found["items"])
                if not found["items"] or offset >= found["total"]:
                    return

        return pd.DataFrame([row for page in pages() for row in page])

    def status(self) -> dict:
        """Does it keep up?"""
        return self._get("/api/status").json()

    def groups(self, state: str | None = None, most: int | None = None) -> pd.DataFrame:
        """The queue, the latest first."""
        return self._rows("/api/groups", most, state=state)

    def images(
        self,
        *,
        start: str | None = None,
        end: str | None = None,
        at: SkyCoord | None = None,
        radius_deg: float = 1.0,
        type: str | None = "pbcor",
        verdict: str | None = None,
        publishable: bool | None = None,
        most: int | None = None,
    ) -> pd.DataFrame:
        """Images that fit all that is given, the latest first: between UTC times, with their centre
        within `radius_deg` of a place."""
        cone = {} if at is None else dict(zip(("ra", "dec"), _place(at), strict=True))
        cone |= {} if at is None else {"radius": radius_deg}
        asked = {"start": start, "end": end, "type": type, "verdict": verdict}
        found = self._rows("/api/images", most, publishable=publishable, **asked, **cone)
        return found.drop_duplicates("id") if len(found) else found  # one came between two pages

    def image(
        self, group: str, type: Literal["pbcor", "image", "pb"] = "pbcor", quick: bool = False
    ) -> fits.HDUList:
        """A group's image, Jy/beam; or its quick look."""
        name = f"{group}.{'quick.' * quick}{type}.fits"
        return fits.open(io.BytesIO(self._get(f"/api/files/{name}").content))

    def cutout(self, name: str, at: SkyCoord, radius_deg: float = 0.1) -> fits.PrimaryHDU:
        """The square around a place, out of a group's image, a day's mosaic (TRACT.DAY) or a deep
        image (TRACT)."""
        ra, dec = _place(at)
        body = self._get("/api/cutout", ID=name, CIRCLE=f"{ra} {dec} {radius_deg}").content
        return fits.open(io.BytesIO(body))[0]

    def tracts(self, strip: str | None = None) -> pd.DataFrame:
        """Mosaics of days and of all days."""
        rows: list[dict] = []
        while True:
            found = self._get("/api/tracts", strip=strip, limit=_PAGE, offset=len(rows)).json()
            rows += found
            if len(found) < _PAGE:
                return pd.DataFrame(rows)

    def sources(
        self,
        *,
        at: SkyCoord | None = None,
        radius_deg: float = 0.1,
        strip: str | None = None,
        variable: bool = False,
        most: int | None = None,
    ) -> pd.DataFrame:
        """Sources that have light curves, and the numbers of these; all, those around a place, or
        those that vary."""
        cone = None if at is None else ",".join(map(str, (*_place(at), radius_deg)))
        return self._rows("/api/sources", most, cone=cone, strip=strip, variable=variable)

    def lightcurve(self, name: str, strip: str | None = None) -> pd.DataFrame:
        """A source's sidereal days in order: mjd, flux_jy, error_jy and how they came about. The
        strip is found where the source is in one only."""
        if strip is None:
            found = self._rows("/api/sources", None, name=name)
            strips = sorted(found.strip) if len(found) else []
            if len(strips) != 1:
                where = f"in strips {', '.join(strips)}: name one" if strips else "in no strip"
                raise RequestError(f"source {name} is {where}")
            strip = strips[0]
        if not _STRIP.fullmatch(strip):
            raise RequestError(f"strip {strip!r}: expected a declination like +16.1")
        return pd.DataFrame(self._get(f"/api/lightcurves/{strip}/{name}").json())


def _place(at: SkyCoord) -> tuple[float, float]:
    """ICRS, deg."""
    return float(at.icrs.ra.deg), float(at.icrs.dec.deg)
