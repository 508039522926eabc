"""Places and words of the pages' charts: plain numbers in, plain numbers out."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from contimg.store import db

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 592.0, 10.0, 150.0  # of a chart's frame, in its own units
_SETS = 12
_SKY_WIDTH, _NARROW_DEG = 1440.0, 60.0
_ETA_V = 600.0, 330.0


def chart(
    points: Sequence[Mapping],
    key: str,
    factor: float = 1.0,
    line: float | None = None,
    reach: float = 0.0,
) -> dict:
    """Places of points and ticks in a chart of `key` against time, with a line whose surroundings
    are shown too."""
    shown = [p for p in points if p[key] is not None and p["start_mjd"] is not None]
    if not shown:
        return {"points": [], "x": [], "y": [], "line": None}
    values, times = [p[key] * factor for p in shown], [p["start_mjd"] for p in shown]
    ends = [*values, *([line - reach, line + reach] if line is not None else [0.0])]
    y_ticks = MaxNLocator(4).tick_values(min(ends), max(ends))
    start, span = min(times), max(max(times) - min(times), 1 / 24)

    def place_y(value: float) -> float:
        return _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_BOTTOM - _TOP)

    def place_x(mjd: float) -> float:
        return _LEFT + 6 + (mjd - start) / span * (_RIGHT - _LEFT - 12)

    step = 1 / 24 * next(n for n in (0.25, 0.5, 1, 2, 3, 6, 12, 24, 1e9) if span * 24 / n <= 6)
    x_ticks = [
        n * step for n in range(math.ceil(start / step), math.floor((start + span) / step) + 1)
    ]
    return {
        "points": [
            (
                place_x(p["start_mjd"]),
                place_y(p[key] * factor),
                p["verdict"],
                p["group_id"],
                p[key] * factor,
            )
            for p in shown
        ],
        "x": [(place_x(t), db.utc_of_mjd(t + 1e-6)[11:16]) for t in x_ticks],
        "y": [(place_y(v), f"{v:g}") for v in y_ticks],
        "line": None if line is None else place_y(line),
    }


def curve_chart(days: Sequence[Mapping], mean_jy: float | None) -> dict:
    """Places of a light curve's points and their bars in a chart of flux (mJy) against MJD."""
    if not days:
        return {"points": [], "x": [], "y": [], "line": None}
    flux = [1e3 * one["flux_jy"] for one in days]
    bars = [
        1e3 * math.hypot(one["error_jy"], one["systematic"] * abs(one["flux_jy"])) for one in days
    ]
    y_ticks = MaxNLocator(5).tick_values(
        min(0.0, *(f - b for f, b in zip(flux, bars, strict=True))),
        max(f + b for f, b in zip(flux, bars, strict=True)),
    )
    times = [one["mjd"] for one in days]
    first, last = min(times) - 0.5, max(times) + 0.5
    x_ticks = [
        tick
        for tick in MaxNLocator(6, integer=True).tick_values(first, last)
        if first <= tick <= last
    ]

    def place_y(value: float) -> float:
        return _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_BOTTOM - _TOP)

    def place_x(mjd: float) -> float:
        return _LEFT + (mjd - first) / (last - first) * (_RIGHT - _LEFT)

    return {
        "points": [
            {
                "x": place_x(one["mjd"]),
                "y": place_y(f),
                "low": place_y(f - b),
                "high": place_y(f + b),
                "words": f"{db.utc_of_mjd(one['mjd'])[:16]}: {f:.2f} +- {b:.2f} mJy",
                "tile": one["tile"],
            }
            for one, f, b in zip(days, flux, bars, strict=True)
        ],
        "x": [(place_x(t), f"{t:g}") for t in x_ticks],
        "y": [(place_y(v), f"{v:g}") for v in y_ticks],
        "line": None if mean_jy is None else place_y(1e3 * mean_jy),
    }


def eta_v_chart(rows: Sequence[Mapping]) -> dict:
    """Places of sources in a chart of eta (with systematics) against V, both in decades."""
    shown = [one for one in rows if (one["v"] or 0) > 0 and (one["eta_systematic"] or 0) > 0]
    if not shown:
        return {"points": [], "x": [], "y": []}
    v = [math.log10(one["v"]) for one in shown]
    eta = [math.log10(one["eta_systematic"]) for one in shown]
    ends = [
        (math.floor(min(values)), max(math.ceil(max(values)), math.floor(min(values)) + 1))
        for values in (v, eta)
    ]
    width, height = _ETA_V

    def place(value: float, end: tuple[int, int], low: float, high: float) -> float:
        return low + (value - end[0]) / (end[1] - end[0]) * (high - low)

    return {
        "points": [
            {
                "x": place(a, ends[0], _LEFT, width - 8),
                "y": place(b, ends[1], height, _TOP),
                "source": one,
            }
            for one, a, b in zip(shown, v, eta, strict=True)
        ],
        "x": [
            (place(k, ends[0], _LEFT, width - 8), f"{10.0**k:g}")
            for k in range(ends[0][0], ends[0][1] + 1)
        ],
        "y": [
            (place(k, ends[1], height, _TOP), f"{10.0**k:g}")
            for k in range(ends[1][0], ends[1][1] + 1)
        ],
    }


def timeline(sets: Sequence[Mapping], now_mjd: float) -> dict:
    """Bars of the latest sets' validity, in per cent of the width; where now is, if it is there;
    and what that means."""
    some = sets[:_SETS]
    if not some:
        return {"bars": [], "ticks": [], "now": None, "words": ""}
    start, end = min(s["valid_start_mjd"] for s in some), max(s["valid_end_mjd"] for s in some)
    span = end - start
    last = max(
        (s["valid_end_mjd"] for s in sets if s["status"] == "active" and s["science"]), default=None
    )
    words = "No set for science is known."
    if last is not None:
        words = (
            "The last set is valid until"
            if last > now_mjd
            else "No set is valid now: the last one ended"
        )
        words = f"{words} {db.utc_of_mjd(last)[:16]}."
    bars = [
        {
            "left": 100 * (s["valid_start_mjd"] - start) / span,
            "width": 100 * (s["valid_end_mjd"] - s["valid_start_mjd"]) / span,
            **s,
        }
        for s in some
    ]
    step = next(n for n in (0.125, 0.25, 0.5, 1, 2, 5, 10, 30, 1e9) if span / n <= 8)
    first = math.ceil(start / step)
    ticks = [n * step for n in range(first, math.floor(end / step) + 1)]
    return {
        "ticks": [
            (100 * (t - start) / span, db.utc_of_mjd(t + 1e-6)[5:16].replace("T", " "))
            for t in ticks
            if 0.04 * span < t - start < 0.96 * span  # words that fit
        ],
        "bars": bars,
        "now": 100 * (now_mjd - start) / span if start < now_mjd < end else None,
        "words": words,
    }


def _ra_reach(image: Mapping) -> float:
    """Half of an image's extent in right ascension, deg."""
    return image["diameter_deg"] / 2 / max(math.cos(math.radians(image["centre_dec_deg"])), 1e-3)


def footprints(images: Sequence[Mapping], whole: bool = False) -> dict:
    """Circles of images on a chart of right ascension (falling to the right) and declination, 1440
    wide, and its ticks: of the part of the sky that they cover, or of all."""
    shown = [i for i in images if i["centre_ra_deg"] is not None and i["diameter_deg"] is not None]
    if not shown:
        return {"circles": [], "images": 0, "height": 0, "dec": [], "ra": [], "whole": whole}
    left, wide = (360.0, 360.0) if whole else _covered(shown)
    scale = _SKY_WIDTH / wide  # units a degree
    least = 20.0 if wide > _NARROW_DEG else wide / 4
    low = min(i["centre_dec_deg"] - i["diameter_deg"] / 2 for i in shown)
    high = max(i["centre_dec_deg"] + i["diameter_deg"] / 2 for i in shown)
    step = 5 if wide > _NARROW_DEG else 1
    high = math.ceil(high / step) * step
    low = min(math.floor(low / step) * step, high - math.ceil(least / step) * step)
    circles = [
        {
            "x": (left - i["centre_ra_deg"] + turn) * scale,
            "y": (high - i["centre_dec_deg"]) * scale,
            "ry": i["diameter_deg"] / 2 * scale,
            "rx": _ra_reach(i) * scale,
            **i,
        }
        for i in shown
        for turn in (-360.0, 0.0, 360.0)  # a field across 0 h has a part at either end
        if -_ra_reach(i) < left - i["centre_ra_deg"] + turn < wide + _ra_reach(i)
    ]
    hours = next(n for n in (1 / 12, 1 / 6, 0.5, 1, 3) if wide / 15 / n <= 9)
    first = math.ceil((left - wide) / 15 / hours)
    ticks = [n * hours for n in range(first, math.floor(left / 15 / hours) + 1)]
    return {
        "circles": circles,
        "images": len(shown),
        "height": (high - low) * scale,
        "dec": [((high - d) * scale, d) for d in range(low, high + 1, step)],
        "ra": [((left - 15 * hour) * scale, _as_hours(hour % 24)) for hour in ticks],
        "whole": whole,
    }


def _covered(images: Sequence[Mapping]) -> tuple[float, float]:
    """Right ascension at the left, and width, of the part of the sky that images cover: all but the
    largest gap between them; deg."""
    places = sorted(i["centre_ra_deg"] % 360 for i in images)
    gaps = [b - a for a, b in pairwise([*places, places[0] + 360])]
    k = max(range(len(gaps)), key=gaps.__getitem__)
    reach = 1.3 * max(map(_ra_reach, images))
    wide = 360 - gaps[k] + 2 * reach
    return (360.0, 360.0) if wide > 300 else (places[k] + reach, wide)


def _as_hours(hour: float) -> str:
    minutes = round(hour * 60)
    return f"{minutes // 60}h" + (f"{minutes % 60:02d}m" if minutes % 60 else "")
