"""Directions and baselines of a drift scan.

Frames. ICRS directions are (ra, dec) in degrees. Apparent directions are unit vectors in the
meridian frame: x to the meridian on the equator, y to the east, z to the (terrestrial) pole, so
that a source at hour angle H and declination d is (cos d cos H, -cos d sin H, sin d). Station
positions are ITRF offsets from the telescope's site, turned into that frame. Hour angles and
declinations are topocentric, without refraction (astropy `HADec`: precession, nutation, aberration,
UT1, polar motion).

Sign convention in a Measurement Set (see docs/conventions.md): UVW = r_1 - r_2 along (east, north,
source), and a source at (l, m) gives DATA = S exp(+2 pi i nu (u l + v m + w (n - 1)) / c).
"""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS, EarthLocation, HADec, SkyCoord, angular_separation
from astropy.time import Time

from contimg.errors import ContimgError
from contimg.sky import earth_orientation
from contimg.telescope import TELESCOPE

SPEED_OF_LIGHT_M_S = 299792458.0
SKY_TURNS_RAD_S = 7.2921159e-5  # IERS: the Earth's rotation
SKY_ARCSEC_S = float(np.degrees(SKY_TURNS_RAD_S)) * 3600  # the same, at the equator
SITE = EarthLocation.from_geodetic(
    TELESCOPE.longitude_rad * u.rad, TELESCOPE.latitude_rad * u.rad, TELESCOPE.height_m * u.m
)
SITE_ITRF_M = np.array([getattr(SITE, axis).to_value(u.m) for axis in "xyz"])
_NORTH_STEP_DEG = 1 / 60


def meridian_icrs_deg(mjd: float | np.ndarray, app_dec_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """ICRS right ascension and declination (deg) of hour angle 0 at apparent declination
    `app_dec_rad`, at UTC `mjd`."""
    times = times_of(mjd)
    frame = HADec(
        ha=np.zeros(times.shape) * u.rad,
        dec=np.full(times.shape, app_dec_rad) * u.rad,
        obstime=times,
        location=SITE,
    )
    icrs = SkyCoord(frame).transform_to(ICRS())
    return icrs.ra.deg, icrs.dec.deg


def times_of(mjd: float | np.ndarray) -> Time:
    """Refuses times that the Earth's orientation is not known for: astropy would do without UT1, 15
    arcsec off."""
    last_mjd = earth_orientation.last_mjd()
    if np.max(mjd, initial=0) > last_mjd:
        raise ContimgError(
            f"no UT1 after MJD {last_mjd:.0f}, observed at {np.max(mjd):.0f}: pip install -U "
            "astropy-iers-data"
        )
    return Time(np.asarray(mjd, float), format="mjd", scale="utc")


def meridian_vector(app_dec_rad: float) -> np.ndarray:
    """Unit vector (3,) of the tracked direction: hour angle 0."""
    return np.array([np.cos(app_dec_rad), 0.0, np.sin(app_dec_rad)])


def apparent_vectors(ra_deg: np.ndarray, dec_deg: np.ndarray, mjd: np.ndarray) -> np.ndarray:
    """Apparent unit vectors (ntime, nsource, 3) in the meridian frame of ICRS positions (nsource,)
    at UTC `mjd` (ntime,)."""
    times = times_of(np.asarray(mjd)[:, None])
    sky = SkyCoord(
        np.atleast_1d(ra_deg)[None] * u.deg, np.atleast_1d(dec_deg)[None] * u.deg, frame=ICRS()
    )
    seen = sky.transform_to(HADec(obstime=times, location=SITE))
    ha, dec = seen.ha.rad, seen.dec.rad
    return np.stack([np.cos(dec) * np.cos(ha), -np.cos(dec) * np.sin(ha), np.sin(dec)], axis=-1)


def meridian_frame_m(itrf_offsets_m: np.ndarray) -> np.ndarray:
    """Station offsets (nant, 3) from ITRF axes into the meridian frame."""
    c, s = np.cos(TELESCOPE.longitude_rad), np.sin(TELESCOPE.longitude_rad)
    return itrf_offsets_m @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def on_the_ground_m(itrf_offsets_m: np.ndarray) -> np.ndarray:
    """Station offsets (nant, 3) from ITRF axes to the east and north (nant, 2)."""
    away, east, pole = meridian_frame_m(itrf_offsets_m).T
    north = pole * np.cos(TELESCOPE.latitude_rad) - away * np.sin(TELESCOPE.latitude_rad)
    return np.stack([east, north], axis=1)


@dataclass(frozen=True)
class Tracking:
    """How one ICRS phase centre moves through the meridian frame."""

    axes: np.ndarray  # (ntime, 3, 3): rows u (east), v (north of ICRS), w (source)
    scale: float  # apparent length of a small ICRS angle; 1 + O(1e-4) by aberration


def track(ra_deg: float, dec_deg: float, mjd: np.ndarray) -> Tracking:
    """uvw axes of a phase centre at UTC `mjd` (ntime,).

    v points to ICRS north at the phase centre, not to the pole of date (FACTS, Wide field): it is
    the direction in which the apparent place moves when the ICRS declination grows. Aberration
    makes the apparent field larger or smaller by up to 1e-4 (0.5 arcsec at 1.35 deg); the image's
    pixel scale takes `scale` into account.
    """
    near = apparent_vectors(
        np.full(3, ra_deg), dec_deg + _NORTH_STEP_DEG * np.array([0, -1, 1]), mjd
    )
    w = near[:, 0]
    north = (near[:, 2] - near[:, 1]) / np.radians(2 * _NORTH_STEP_DEG)
    north -= np.sum(north * w, axis=1, keepdims=True) * w
    length = np.linalg.norm(north, axis=1, keepdims=True)
    v = north / length
    return Tracking(axes=np.stack([np.cross(v, w), v, w], axis=1), scale=float(length.mean()))


def direction_cosines(
    ra_deg, dec_deg, ra0_deg: float, dec0_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Direction cosines (l, m) of ICRS positions from a phase centre; l to the east, m to the
    north."""
    ra, dec, ra0, dec0 = (np.radians(x) for x in (ra_deg, dec_deg, ra0_deg, dec0_deg))
    l = np.cos(dec) * np.sin(ra - ra0)
    m = np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)
    return l, m


def sin_wcs(centre_deg: tuple[float, float], cell_deg: float, shape: tuple[int, int]):
    """Celestial WCS (SIN projection, ICRS) of an image (x, y) whose centre is pixel n // 2."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---SIN", "DEC--SIN"]
    wcs.wcs.crval = centre_deg
    wcs.wcs.crpix = [n // 2 + 1 for n in shape]
    wcs.wcs.cdelt = [-cell_deg, cell_deg]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    return wcs


def separation_deg(ra1_deg, dec1_deg, ra2_deg, dec2_deg) -> np.ndarray:
    """Angle between ICRS positions, deg."""
    places = (np.radians(np.asarray(x, float)) for x in (ra1_deg, dec1_deg, ra2_deg, dec2_deg))
    return np.degrees(angular_separation(*places))
