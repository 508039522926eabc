"""Primary beam of an evenly lit dish, and what a drift scan makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import j1

from contimg.errors import ConfigError
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.telescope import TELESCOPE

_COARSE_PIXELS = 257
_PROFILE_POINTS = 4096
_PROFILE_FREQUENCIES = 64
_MOST_OFFSET = 0.2  # direction cosine: 11 deg from the axis
# Power response at offsets from the axis (direction cosines to the east and north), averaged over a
# band.
Response = Callable[[np.ndarray, np.ndarray], np.ndarray]


def airy_power(sin_theta: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
    """Power response (2 J1(x) / x)^2, x = pi D sin(theta) nu / c; arguments broadcast; 1 on axis
    (Born & Wolf 8.5.2)."""
    x = np.pi * TELESCOPE.dish_diameter_m / SPEED_OF_LIGHT_M_S * np.asarray(sin_theta) * freq_hz
    x = np.where(np.abs(x) < 1e-6, 1e-6, x)
    return (2 * j1(x) / x) ** 2


@dataclass(frozen=True)
class AiryDisk:
    """The beam of a uniformly lit dish."""

    def power(self, east: np.ndarray, north: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
        """Response at offsets from the tracked direction (direction cosines); arguments
        broadcast."""
        return airy_power(np.hypot(east, north), freq_hz)

    def averaged(self, freq_hz: np.ndarray, freq_weights: np.ndarray) -> Response:
        """The same over channels (nchan,) with weights."""
        grid = np.linspace(0, _MOST_OFFSET, _PROFILE_POINTS)
        few_hz, shares = _few_frequencies(freq_hz, freq_weights, _PROFILE_FREQUENCIES)
        profile = airy_power(grid[:, None], few_hz) @ shares
        return lambda east, north: np.interp(np.hypot(east, north), grid, profile, right=0.0)


AIRY = AiryDisk()


@dataclass(frozen=True)
class BeamMap:
    """A measured beam: a map (y, x), its spline's coefficients, in steps of deg to the east and
    north of the tracked direction at `pixels`, at one frequency.

    At others it is wider or narrower about its own axis, as a diffraction pattern is; 0 where it
    was not measured.
    """

    coefficients: np.ndarray
    at_hz: float
    steps_deg: tuple[float, float]
    pixels: tuple[float, float]
    axis_deg: tuple[float, float] = (0.0, 0.0)

    def power(self, east: np.ndarray, north: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
        """As of `AiryDisk`."""
        from scipy.ndimage import map_coordinates  # half a second, at the start of each Snakemake

        scale = np.asarray(freq_hz) / self.at_hz
        x, y = (
            ((np.degrees(np.arcsin(v)) - axis) * scale + axis) / step + pixel
            for v, axis, step, pixel in zip(
                (east, north), self.axis_deg, self.steps_deg, self.pixels, strict=True
            )
        )
        values = map_coordinates(
            self.coefficients, np.broadcast_arrays(y, x), mode="constant", prefilter=False
        )
        return np.maximum(values, 0)

    def averaged(self, freq_hz: np.ndarray, freq_weights: np.ndarray) -> Response:
        """As of `AiryDisk`."""
        few_hz, shares = _few_frequencies(freq_hz, freq_weights, 8)
        return lambda east, north: sum(
            share * self.power(east, north, hz) for hz, share in zip(few_hz, shares, strict=True)
        )


Beam = AiryDisk | BeamMap


def beam_track(
    vectors: np.ndarray, pointing: np.ndarray, freq_hz: np.ndarray, beam: Beam = AIRY
) -> np.ndarray:
    """Response (ntime, nsource, nchan) towards apparent unit vectors (ntime, nsource, 3) of dishes
    that track `pointing` (3,)."""
    east = np.array([0.0, 1.0, 0.0])
    along, up = vectors @ east, vectors @ np.cross(pointing, east)
    return beam.power(along[..., None], up[..., None], freq_hz)


def _few_frequencies(
    freq_hz: np.ndarray, weights: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean frequencies of parts of a band, and their shares of the weight."""
    parts = [
        p
        for p in np.array_split(np.arange(len(freq_hz)), min(most, len(freq_hz)))
        if weights[p].any()
    ]
    few_hz = np.array([np.average(freq_hz[p], weights=weights[p]) for p in parts])
    return few_hz, np.array([weights[p].sum() for p in parts]) / weights.sum()


def read_beam(path: Path) -> BeamMap:
    """A measured power beam (FITS; axes in deg from the tracked direction, to the east and north,
    CRVAL3 in Hz; AXISEAST, AXISNORT: its own axis), 1 in its middle."""
    from astropy.io import fits
    from scipy.ndimage import map_coordinates, spline_filter

    try:
        with fits.open(path) as hdus:
            power, header = np.nan_to_num(hdus[0].data.squeeze().astype(float)), hdus[0].header
            at_hz = float(header["CRVAL3"])
            steps_deg = tuple(header[f"CDELT{k}"] for k in (1, 2))
            pixels = tuple(header[f"CRPIX{k}"] - 1 for k in (1, 2))
            axis_deg = tuple(float(header.get(key, 0.0)) for key in ("AXISEAST", "AXISNORT"))
    except (OSError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: no primary beam (FITS with CRPIX, CDELT, CRVAL3): {error}. See imaging.beam."
        ) from None
    middle = [
        [pixel + axis / step]
        for pixel, axis, step in zip(pixels, axis_deg, steps_deg, strict=True)
        if step
    ]
    is_map = power.ndim == 2 and len(middle) == 2
    centre = map_coordinates(power, middle[::-1], order=1)[0] if is_map else 0.0
    if not centre > 0:
        raise ConfigError(
            f"{path}: no primary beam: no map with a positive response at CRPIX. See imaging.beam."
        )
    return BeamMap(spline_filter(power / centre), at_hz, steps_deg, pixels, axis_deg)


def drift_beam(
    l, m, track_lm, freq_hz, time_weights, freq_weights, beam: Beam = AIRY
) -> np.ndarray:
    """Primary-beam power averaged over a drift scan, on an image grid.

    l, m          direction cosines from the phase centre along the two image axes, shapes (nx,) and
                  (ny,), growing or falling
    track_lm      beam centre at each integration in the same frame, shape (ntime, 2)
    freq_hz       channel frequencies, shape (nchan,)
    time_weights  sum of the data's weights at each integration, shape (ntime,)
    freq_weights  sum of the data's weights in each channel, shape (nchan,)

    Returns shape (nx, ny). The beam varies over degrees, so it is computed on a coarse grid and
    interpolated by a bicubic spline (error below 1e-6).
    """
    coarse_l = np.linspace(l.min(), l.max(), _COARSE_PIXELS)
    coarse_m = np.linspace(m.min(), m.max(), _COARSE_PIXELS)
    grid_l, grid_m = np.meshgrid(coarse_l, coarse_m, indexing="ij")
    grid_n = np.sqrt(np.clip(1 - grid_l**2 - grid_m**2, 0, 1))
    average, response = np.zeros_like(grid_l), beam.averaged(freq_hz, freq_weights)
    for (l0, m0), weight in zip(track_lm, time_weights / time_weights.sum(), strict=True):
        # Offsets from the beam's centre: the sine of the angle between, along east and north.
        cosine = grid_l * l0 + grid_m * m0 + grid_n * np.sqrt(1 - l0**2 - m0**2)
        sine, flat = np.sqrt(np.clip(1 - cosine**2, 0, 1)), np.hypot(grid_l - l0, grid_m - m0)
        shrink = sine / np.where(flat > 0, flat, 1)
        average += weight * response((grid_l - l0) * shrink, (grid_m - m0) * shrink)
    return between_pixels(coarse_l, coarse_m, average, l, m)


def between_pixels(coarse_l, coarse_m, values, l, m) -> np.ndarray:
    """A smooth map of (growing) coarse_l and coarse_m, at l (nx,) and m (ny,), growing or falling,
    by a bicubic spline: (nx, ny), float32."""
    from scipy.interpolate import RectBivariateSpline

    spline = RectBivariateSpline(coarse_l, coarse_m, values)
    forward, upward = (1 if x[-1] > x[0] else -1 for x in (l, m))
    fine = spline(l[::forward], m[::upward]).astype(np.float32)
    return fine[::forward, ::upward]
