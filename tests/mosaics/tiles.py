"""Tiles of a synthetic sky, made without visibilities: noise as a Gaussian psf leaves it, sources
as components or, faint ones, in the residual."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from contimg.imaging.interface import Beam
from contimg.imaging.restoring import restore
from contimg.mosaics.combine import Tile
from contimg.photometry.epochs import mjd_of_turns
from contimg.sky.geometry import direction_cosines

CELL_DEG, NPIX = 5 / 3600, 1440  # 2 deg
BEAM = Beam(22.0, 22.0, 0.0)
PB_FWHM_DEG, BEAM_LIMIT = 1.4, 0.2
CLEANED_SIGMA = 5.0


@dataclass(frozen=True)
class Sky:
    """Sources of a strip: (n,) deg and Jy."""

    ra_deg: np.ndarray
    dec_deg: np.ndarray
    flux_jy: np.ndarray

    @classmethod
    def of(cls, rng, ra_deg: tuple[float, float], dec_deg: tuple[float, float], number: int):
        """At random, of 0.3 mJy to 0.3 Jy."""
        ra = rng.uniform(*ra_deg, number) % 360
        return cls(ra, rng.uniform(*dec_deg, number), 10 ** rng.uniform(-3.5, -0.5, number))


def tile(rng, sky: Sky, ra_deg: float, dec_deg: float, noise_jy: float, cell=1.0) -> Tile:
    """A tile whose middle is there; its cells are `cell` times as large."""
    cell_deg = CELL_DEG * cell
    noise = gaussian_filter(
        rng.normal(size=(NPIX, NPIX)), BEAM.major_arcsec / 3600 / cell_deg / 2.3548, mode="wrap"
    )
    noise *= noise_jy / noise.std()
    l, m = direction_cosines(sky.ra_deg, sky.dec_deg, ra_deg, dec_deg)
    step = np.radians(cell_deg)
    x, y = NPIX // 2 - l / step, NPIX // 2 + m / step
    inside = (np.minimum(x, y) > -20) & (np.maximum(x, y) < NPIX + 20)
    inside &= np.cos(np.radians(sky.ra_deg - ra_deg)) > 0
    seen_jy = sky.flux_jy * _pb(np.hypot(l, m))
    sources = np.column_stack([x, y, seen_jy])[inside]
    bright = sources[:, 2] > CLEANED_SIGMA * noise_jy
    residual = restore(
        residual=noise.astype(np.float32),
        components=sources[~bright],
        beam=BEAM,
        cell_arcsec=3600 * cell_deg,
    )
    axis = (np.arange(NPIX) - NPIX // 2) * step
    return Tile(
        residual=residual,
        components=sources[bright],
        pb=_pb(np.hypot(axis[:, None], axis[None, :])).astype(np.float32),
        smearing=np.ones((5, 5), np.float32),
        smearing_step=NPIX // 4,
        centre_deg=(ra_deg, dec_deg),
        cell_deg=cell_deg,
        noise_jy=noise_jy,
        beam_limit=BEAM_LIMIT,
    )


def _pb(away: np.ndarray) -> np.ndarray:
    return np.exp(-4 * np.log(2) * (np.degrees(away) / PB_FWHM_DEG) ** 2)


def mjd_at(ra_deg: float, day: int) -> float:
    """When a right ascension crosses the meridian on a sidereal day."""
    return float(mjd_of_turns(day + ra_deg / 360))
