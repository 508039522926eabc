"""The brightest of the sky, seen in the far sidelobes of the dishes: where they are."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS, HADec, SkyCoord, get_sun

from contimg.sky.geometry import SITE, apparent_vectors, times_of

# ICRS (NASA/IPAC Extragalactic Database, SIMBAD); the Sun's place is computed.
_PLACES_DEG = {
    "Cas A": (350.866, 58.815),
    "Cyg A": (299.868, 40.734),
    "Tau A": (83.633, 22.014),
    "Vir A": (187.706, 12.391),
}
SUN = "Sun"
_NEAR_DEG = 5.0  # of the pointing: there it is a source like others, with the beam


@dataclass(frozen=True)
class FarSource:
    """A source of the far sidelobes: apparent unit vectors (ntime, 3) in the meridian frame, and
    its distance from the pointing."""

    name: str
    vectors: np.ndarray
    distance_deg: float
    elevation_deg: float


def far_sources(mjd: np.ndarray, pointing: np.ndarray) -> list[FarSource]:
    """Those above the horizon and not in the beam, at UTC `mjd` (ntime,), for dishes on `pointing`
    (3,)."""
    middle = len(mjd) // 2
    up = np.array([np.cos(SITE.lat.rad), 0, np.sin(SITE.lat.rad)])
    tracks = {
        name: apparent_vectors(np.array([ra]), np.array([dec]), mjd)[:, 0]
        for name, (ra, dec) in _PLACES_DEG.items()
    }
    tracks[SUN] = _sun_vectors(mjd)
    found = []
    for name, vectors in tracks.items():
        distance, height = vectors[middle] @ pointing, vectors[middle] @ up
        if height > 0 and distance < np.cos(np.radians(_NEAR_DEG)):
            degrees = np.degrees([np.arccos(distance), np.arcsin(height)])
            found.append(FarSource(name, vectors, *map(float, degrees)))
    return found


def _sun_vectors(mjd: np.ndarray) -> np.ndarray:
    times = times_of(mjd)
    sun = get_sun(times)
    seen = SkyCoord(sun.ra, sun.dec, frame=ICRS()).transform_to(HADec(obstime=times, location=SITE))
    ha, dec = seen.ha.to_value(u.rad), seen.dec.to_value(u.rad)
    return np.stack([np.cos(dec) * np.cos(ha), -np.cos(dec) * np.sin(ha), np.sin(dec)], axis=-1)
