"""What the pages show of the archive: a list of images, days, and what lies beside a group."""

import re
from collections import Counter
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import exists, func, select
from sqlalchemy.orm import aliased

from contimg.paths import DATE_PATTERN, GROUP_PATTERN
from contimg.products.tables import Image, QaArtifact
from contimg.queue.tables import Group
from contimg.store import db
from contimg.web.reader import Reader

_PAGE = 60  # images on one
_MOST_A_DAY = 86400  # groups are named by the second
_HALF_STRIP_DEG = 0.5  # a strip's declination of date and its images' in ICRS differ by less
_FULL = aliased(Image)
# One a group: a quick look only where there is no full image.
_SHOWN = (
    Image.deleted_at.is_(None),
    (Image.type == "pbcor")
    | (
        (Image.type == "quick_pbcor")
        & ~exists().where(
            _FULL.group_id == Image.group_id, _FULL.type == "pbcor", _FULL.deleted_at.is_(None)
        )
    ),
)


def latest(read: Reader, limit: int, *conditions: Any) -> list[dict]:
    """The latest images, one a group."""
    query = select(Image).where(*_SHOWN, *conditions)
    return read.images(query, (Image.start_mjd.desc(),), limit)["items"]


def listed(
    read: Reader, day: str | None, verdict: str | None, dec: float | None, page: int
) -> dict[str, Any]:
    """A page of images, the latest first, of a day (or the beginning of a group's name), a verdict,
    a declination; and how many there are."""
    conditions = [
        *([Image.group_id.startswith(day, autoescape=True)] if day else []),
        *([Image.verdict == verdict] if verdict else []),
        *([func.abs(Image.centre_dec_deg - dec) <= _HALF_STRIP_DEG] if dec is not None else []),
    ]
    query = select(Image).where(*_SHOWN, *conditions)
    found = read.images(query, (Image.start_mjd.desc(),), _PAGE, _PAGE * (page - 1))
    return found | {"pages": -(-found["total"] // _PAGE)}


def of_day(read: Reader, day: str) -> dict[str, Any]:
    """A day's images, calibration sets, groups that have none, and the days beside it that have
    images."""
    images = latest(read, _MOST_A_DAY, Image.group_id.startswith(day))
    with db.reading(read.paths.ingest_db) as session:
        rows = (
            []
            if session is None
            else session.execute(
                select(Group.group_id, Group.state, Group.error)
                .where(Group.group_id.startswith(day))
                .order_by(Group.group_id)
            ).all()
        )
    imaged = {one["group_id"] for one in images}
    with db.reading(read.paths.products_db) as session:

        def beside(which: Any, side: Any) -> str | None:
            found = None if session is None else session.scalar(select(which).where(*_SHOWN, side))
            return found and found[:10]

        before = beside(func.max(Image.group_id), Image.group_id < day)
        after = beside(func.min(Image.group_id), Image.group_id > f"{day}Z")
    return {
        "day": day,
        "images": images,
        "sets": Counter(one["cal_set"] for one in images if one["cal_set"]).most_common(),
        "others": [row._mapping for row in rows if row.group_id not in imaged],
        "before": before,
        "after": after,
    }


def pages_of_sets(read: Reader) -> dict[str, int]:
    """Plots that were drawn when sets were solved: their ids, by group."""
    query = select(QaArtifact.group_id, QaArtifact.id).where(QaArtifact.name == "calibration")
    with db.reading(read.paths.products_db) as session:
        return {} if session is None else {row.group_id: row.id for row in session.execute(query)}


def beside(read: Reader, group: str) -> dict[str, str | None]:
    """The groups before and after one, in the queue."""
    with db.reading(read.paths.ingest_db) as session:
        if session is None:
            return {"before": None, "after": None}
        before = select(func.max(Group.group_id)).where(Group.group_id < group)
        after = select(func.min(Group.group_id)).where(Group.group_id > group)
        return {"before": session.scalar(before), "after": session.scalar(after)}


def found(read: Reader, words: str) -> str:
    """The page that what somebody typed means: a group's, a day's, or a list of what begins so."""
    words = words.strip().replace(" ", "T")
    if re.fullmatch(GROUP_PATTERN, words):
        return f"/groups/{words}"
    if re.fullmatch(DATE_PATTERN, words):
        return f"/days/{words}"
    with db.reading(read.paths.ingest_db) as session:
        query = select(Group.group_id).where(Group.group_id.startswith(words, autoescape=True))
        some = [] if session is None else session.scalars(query.limit(2)).all()
    return f"/groups/{some[0]}" if len(some) == 1 else f"/images?{urlencode({'day': words})}"


def elsewhere(path: str, carta_url: str | None) -> dict[str, str]:
    """How to open an image elsewhere: a link to CARTA, if there is one, and commands."""
    folder, _, name = path.rpartition("/")
    sign = "&" if "?" in (carta_url or "") else "?"
    asked = urlencode({"folder": folder, "file": name})
    return {
        "carta": f"{carta_url}{sign}{asked}" if carta_url else "",
        "ds9": f"ds9 -scale zscale -cmap inferno '{path}'",
        "casa": f"casaviewer '{path}'",
    }
