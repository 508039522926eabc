"""Days of a strip as photometry's files: what the stage writes, without images. That both agree is
tested in test_group.py.

Beam, pointing and scales are not what the pipeline thinks, and differ from day to day.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.config import Config, from_mapping
from contimg.paths import Paths
from contimg.photometry.epochs import sidereal_turns
from contimg.simulate import _airy_power
from contimg.store.parquet import write_table

DEC_DEG, FREQ_HZ = 16.15, 1.405e9
GROUP_S, DRIFT_DEG = 309.24, 1.24
BEGIN = datetime(2026, 3, 2, 0, 0, 10, tzinfo=UTC)
BEGIN_MJD = 61101 + 10 / 86400
STRIP = f"{DEC_DEG:+05.1f}"
_TIMES = (np.arange(5) + 0.5) / 5 - 0.5


@dataclass(frozen=True)
class Sky:
    """Sources (n,): name, place, flux at the image's frequency, and what becomes of it by day:
    (n, nday)."""

    table: pd.DataFrame
    factor: np.ndarray


def sky_of(
    seed: int, days: int, first_deg: float = 100.0, last_deg: float = 107.5, number: int = 900
) -> Sky:
    """Sources of 5 mJy and more; the 3rd, 30th and 60th brightest vary, and one is new on day 12:
    `dip`, `flare`, `slow`, `new`."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "source": [f"S{k:04d}" for k in range(number)],
            "ra_deg": rng.uniform(first_deg, last_deg, number) % 360,
            "dec_deg": DEC_DEG + rng.uniform(-2.2, 2.2, number),
            "flux_jy": np.minimum(0.005 * (1 - rng.random(number)) ** (-1 / 0.9), 3.0),
            "alpha": 0.0,
        }
    )
    table = table.sort_values("ra_deg").reset_index(drop=True)
    factor, day = np.ones((number, days)), np.arange(days)
    inside_deg = (table.ra_deg - first_deg) % 360
    middle = (np.abs(table.dec_deg - DEC_DEG) < 1) & inside_deg.between(2, last_deg - first_deg - 2)
    order = table[middle].flux_jy.sort_values(ascending=False).index
    dip, flare, slow, new = order[5], order[12], order[18], order[25]
    factor[dip, (day >= 6) & (day < 14)] = 0.4
    factor[flare, (day >= 9) & (day < 12)] = 1.6
    factor[slow] = 1 + 0.3 * np.sin(np.pi * day / max(days - 1, 1))
    factor[new, day < 12] = 0.0
    for name, k in (("dip", dip), ("flare", flare), ("slow", slow), ("new", new)):
        table.loc[k, "source"] = name
    return Sky(table, factor)


def site(folder: Path) -> tuple[Config, Paths]:
    """A configuration whose folders are in `folder`."""
    where = {name: str(folder / name) for name in ("incoming", "products", "state")}
    config = from_mapping({"paths": where})
    return config, Paths.of(config)


def write_reference(paths: Paths, sky: Sky, scatter: float, seed: int = 9) -> None:
    """The catalogue, whose fluxes scatter."""
    fluxes = sky.table.flux_jy * np.exp(
        np.random.default_rng(seed).normal(0, scatter, len(sky.table))
    )
    version = f"{STRIP}.v1"
    about = {"version": version, "app_dec_deg": DEC_DEG}
    write_table(paths.reference(version), sky.table.assign(flux_jy=fluxes), about)


def groups_of(days: int, first_deg: float, last_deg: float) -> list[tuple[str, float, int]]:
    """(group, mid MJD, number of the day) whose meridian is within these right ascensions."""
    found = []
    for k in range(int((days + 1) * 86400 / GROUP_S)):
        mjd = BEGIN_MJD + (k + 0.5) * GROUP_S / 86400
        turns = float(sidereal_turns(mjd))
        day = int(np.floor(turns - (first_deg - 3) / 360))
        if -0.7 <= (turns * 360 - first_deg + 3) % 360 - 3 <= last_deg - first_deg + 0.7:
            group = (BEGIN + timedelta(seconds=GROUP_S * k)).strftime("%Y-%m-%dT%H:%M:%S")
            found.append((group, mjd, day))
    first = min(day for *_, day in found)
    return [(group, mjd, day - first) for group, mjd, day in found if day - first < days]


def response(east, north, wide: float, points) -> np.ndarray:
    """Of a beam wider than the Airy disk by a factor, averaged over a group's drift."""
    along = np.sin(np.radians(east[:, None] - _TIMES * DRIFT_DEG - points[0])) / wide
    up = np.sin(np.radians(north[:, None] - points[1])) / wide
    away = np.arcsin(np.hypot(along, up))
    return _airy_power(away.ravel(), np.array([FREQ_HZ])).reshape(away.shape).mean(axis=1)


def write_groups(
    paths: Paths,
    sky: Sky,
    groups,
    seed: int = 1,
    noise_jy: float = 5e-4,
    wide: float = 1.03,
    wander_deg: float = 0.05,
    scale: float = 0.015,
) -> None:
    """Photometry of these groups. The beam is `wide` times what the pipeline divides by, points
    `wander_deg` rms aside each day, and tiles' scales scatter."""
    for group, mjd, day in groups:
        rng = np.random.default_rng([seed, int(group[-8:].replace(":", "")), day])
        points = np.random.default_rng([seed, day]).normal(0, wander_deg, 2)
        meridian_deg = float(sidereal_turns(mjd)) % 1 * 360
        table = sky.table
        away_deg = (table.ra_deg.values - meridian_deg + 180) % 360 - 180
        east = away_deg * np.cos(np.radians(DEC_DEG))
        north = table.dec_deg.values - DEC_DEG
        thought = response(east, north, 1.0, (0, 0))
        seen = (thought >= 0.2) & (np.hypot(east, north) < 3)
        true_jy = table.flux_jy.values * sky.factor[:, day]
        apparent = true_jy * response(east, north, wide, points) * np.exp(rng.normal(0, scale))
        apparent = apparent + rng.normal(0, noise_jy, len(table))
        rows = pd.DataFrame(
            {
                "source": table.source,
                "ra_deg": table.ra_deg,
                "dec_deg": table.dec_deg,
                "mjd": mjd,
                "flux_jy": apparent / thought,
                "error_jy": noise_jy / thought,
                "beam_error": 0.02,
                "noise_jy": noise_jy,
                "peak_jy": apparent / thought,
                "fit_jy": apparent / thought,
                "beam": thought,
                "smearing": 1.0,
                "east_deg": east,
                "north_deg": north,
            }
        )[seen]
        about = {
            "group": group,
            "mid_mjd": mjd,
            "app_dec_deg": DEC_DEG,
            "strip": STRIP,
            "reference": f"{STRIP}.v1",
            "freq_hz": FREQ_HZ,
            "bandwidth_hz": 0.0,
            "exposure_s": GROUP_S,
            "verdict": "good",
            "image": f"{group} {seed}",
        }
        write_table(paths.photometry(group), rows.reset_index(drop=True), about)
