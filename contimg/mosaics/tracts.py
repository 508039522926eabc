"""A fixed division of the sky: each strip in tracts of 5 degrees of right ascension, images with
the same pixels every day.

A tract is called by its strip and the right ascension at which it begins, in whole degrees:
`+16.1_345` is 345 to 350 deg of strip +16.1. Neighbours overlap by half a degree. Image arrays are
(x, y): x grows to the west, y to the north; the centre is pixel (nx // 2, ny // 2).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from contimg.config import MosaicsConfig
from contimg.errors import RequestError
from contimg.photometry.epochs import sidereal_turns
from contimg.sky.geometry import direction_cosines, sin_wcs

STEP_DEG = 5
OVERLAP_DEG = 0.5
NAME = re.compile(r"([+-]\d\d\.\d)_(\d\d\d)")
_SAME_STRIP_DEG = 0.1


@dataclass(frozen=True)
class Tract:
    """Pixels of a piece of sky, SIN projection, ICRS."""

    name: str
    strip: str
    centre_deg: tuple[float, float]
    shape: tuple[int, int]
    cell_deg: float

    def wcs(self) -> WCS:
        """Celestial WCS."""
        return sin_wcs(self.centre_deg, self.cell_deg, self.shape)

    @property
    def radius_deg(self) -> float:
        """From the centre to a corner."""
        return float(np.hypot(*self.shape)) / 2 * self.cell_deg

    @property
    def region(self) -> str:
        """Its corners, as ObsCore has them."""
        nx, ny = self.shape
        corners = np.array([(nx, 0), (0, 0), (0, ny), (nx, ny)]) - 0.5
        places = self.wcs().wcs_pix2world(corners, 0)
        return "POLYGON ICRS " + " ".join(f"{value:.6f}" for value in places.ravel())

    def pixels_of(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (x, y) in pixels."""
        l, m = direction_cosines(ra_deg, dec_deg, *self.centre_deg)
        step = np.radians(self.cell_deg)
        return self.shape[0] // 2 - l / step, self.shape[1] // 2 + m / step

    def contains(self, ra_deg: float, dec_deg: float) -> bool:
        """Whether a place is among the pixels."""
        l, m = direction_cosines(ra_deg, dec_deg, *self.centre_deg)
        facing = np.cos(np.radians(ra_deg - self.centre_deg[0])) > 0
        x, y = self.pixels_of(ra_deg, dec_deg)
        inside = -0.5 <= x < self.shape[0] - 0.5 and -0.5 <= y < self.shape[1] - 0.5
        return bool(facing and np.hypot(l, m) < 1 and inside)


def tract_of(name: str, options: MosaicsConfig) -> Tract:
    """The tract of a name; raises RequestError for what is none."""
    found = NAME.fullmatch(name)
    if not found or int(found[2]) >= 360 or int(found[2]) % STEP_DEG:
        raise RequestError(
            f"{name}: no tract. Names are a strip and where it begins, every {STEP_DEG} deg, as "
            "+16.1_345; contimg tracts lists them"
        )
    strip, first_deg = found[1], int(found[2])
    dec_deg, cell_deg = float(strip), options.cell_arcsec / 3600
    half_deg = (STEP_DEG + OVERLAP_DEG) / 2
    # where the meridians are farthest apart
    lowest_deg = max(0.0, abs(dec_deg) - options.height_deg / 2)
    width_deg = 2 * np.degrees(np.sin(np.radians(half_deg)) * np.cos(np.radians(lowest_deg)))
    shape = tuple(2 * int(np.ceil(size / 2 / cell_deg)) for size in (width_deg, options.height_deg))
    return Tract(name, strip, (first_deg + STEP_DEG / 2, dec_deg), shape, cell_deg)


def place_of_words(words: str) -> tuple[float, float]:
    """RA and Dec in deg of "347.3,16.0"; raises RequestError."""
    try:
        ra_deg, dec_deg = (float(word) for word in words.split(","))
    except ValueError:
        raise RequestError(f"{words}: not RA,DEC in deg, as 347.3,16.0") from None
    return ra_deg % 360, dec_deg


def strip_of(app_dec_deg: float, known: Mapping[str, float]) -> str:
    """The strip of a pointing: the nearest of those that are known (with what they point to, deg),
    where it is near, else a new one."""
    near = [strip for strip, dec in known.items() if abs(dec - app_dec_deg) < _SAME_STRIP_DEG]
    return min(near, key=lambda s: abs(known[s] - app_dec_deg), default=f"{app_dec_deg:+05.1f}")


def crossed(mid_mjd: float, strip: str, reach_deg: float) -> list[tuple[str, int]]:
    """Tracts that an image may show, with the sidereal day that it belongs to there: an image whose
    middle crosses the meridian at `mid_mjd` and reaches `reach_deg` to the east and west.

    The telescope's meridian is taken for a meridian of ICRS, which may say some tenths of a degree
    too much or too little; so a little more is listed than is there.
    """
    turns = float(sidereal_turns(mid_mjd))
    ra_deg = turns % 1 * 360
    reach = (reach_deg + 0.3) / np.cos(np.radians(float(strip))) + OVERLAP_DEG / 2
    first = int(np.floor((ra_deg - reach) / STEP_DEG))
    last = int(np.floor((ra_deg + reach) / STEP_DEG))
    found = []
    for k in range(first, last + 1):
        begin_deg = k * STEP_DEG % 360
        centre_deg = begin_deg + STEP_DEG / 2
        found.append((f"{strip}_{begin_deg:03d}", int(np.floor(turns - centre_deg / 360 + 0.5))))
    return found


def frame_of(ra_deg: float, dec_deg: float) -> np.ndarray:
    """Rows: unit vectors to the east, to the north, and to a place itself; a direction's products
    with them are its l, m and n."""
    ra, dec = np.radians([ra_deg, dec_deg])
    return np.array(
        [
            [-np.sin(ra), np.cos(ra), 0],
            [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)],
            [np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)],
        ]
    )
