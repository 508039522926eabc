"""Fluxes of bright sources in parts of the band, from the visibilities that the model leaves."""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.imaging.averaging import Averaged
from contimg.imaging.interface import Left
from contimg.imaging.restoring import middle_of_psf
from contimg.imaging.sampling import TAPS, sample
from contimg.imaging.stokes import StokesI
from contimg.sky.beam import Beam, beam_track
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, meridian_vector, track

PARTS = 4
LEAST_SNR, MOST_SOURCES = 20.0, 60
_PSF_PIXELS, _PSF_ROWS = 64, 10_000


@dataclass(frozen=True)
class InBand:
    """What is needed of a group for its beam in parts of the band."""

    axes: np.ndarray  # (ntime, 3, 3)
    pointing: np.ndarray
    time_weights: np.ndarray
    channel_weights: np.ndarray
    freq_hz: np.ndarray
    beam: Beam

    @classmethod
    def of(cls, stokes: StokesI, averaged: Averaged) -> "InBand":
        """Of a group's visibilities, before they go."""
        tracked = track(*stokes.observation.phase_centre_deg, stokes.rows.time_mjd)
        return cls(
            tracked.axes,
            meridian_vector(np.radians(stokes.app_dec_deg)),
            averaged.time_weights,
            averaged.weights.sum(axis=0, dtype=float),
            averaged.freq_hz,
            stokes.beam,
        )

    def _response(self, l: np.ndarray, m: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Mean response (n,) at apparent direction cosines, over the drift and some channels."""
        places = np.column_stack([l, m, np.sqrt(1 - l**2 - m**2)])
        power = beam_track(places @ self.axes, self.pointing, self.freq_hz[channels], self.beam)
        over_time = np.average(power, axis=0, weights=self.time_weights)
        return np.average(over_time, axis=1, weights=self.channel_weights[channels])

    def fluxes(
        self,
        *,
        left: Left,
        components: np.ndarray,
        cell_arcsec: float,
        x: np.ndarray,
        y: np.ndarray,
        flux_jy: np.ndarray,
        noise_jy: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fluxes and errors (n, PARTS) in Jy, beam divided out, NaN in a part that has no data; and
        the parts' frequencies in Hz.

        components  (m, 3), the model: x, y in pixels and Jy
        x, y        pixels (n,) of the sources
        flux_jy     of the whole band (n,), beam divided out
        noise_jy    of the image, Jy/beam

        In a part of the band, what is at a source's place is what the model leaves there, and the
        model's components around it as that part's psf shows them: a model of one flux for the
        band takes a slope for structure, and has some of it. (Of sources a thousand times the noise
        it has components far away, too: their slopes come out too flat, unless they were
        subtracted.)
        """
        centre, cell_rad = left.npix // 2, np.radians(cell_arcsec / 3600)
        l, m = (centre - x) * cell_rad, (y - centre) * cell_rad
        sums = _at_places(left.uvw_m, left.vis, left.weights, left.freq_hz, l, m)
        weight = left.weights.sum(axis=0, dtype=float)

        def seen_over_beam(channels: np.ndarray) -> np.ndarray:
            near = _near_components(_psf_of(left, channels, cell_rad), components, x, y)
            seen = near + sums[:, channels].sum(axis=1) / weight[channels].sum()
            return seen / self._response(l, m, channels)

        whole = seen_over_beam(np.arange(len(weight)))
        found = np.full((len(x), PARTS), np.nan)
        errors, freq_hz = np.full_like(found, np.nan), np.zeros(PARTS)
        for k, part in enumerate(np.array_split(np.arange(len(weight)), PARTS)):
            freq_hz[k] = self.freq_hz[part].mean()
            if not weight[part].sum() > 0:
                continue
            freq_hz[k] = np.average(self.freq_hz[part], weights=self.channel_weights[part])
            found[:, k] = flux_jy * seen_over_beam(part) / whole
            noise = noise_jy * np.sqrt(weight.sum() / weight[part].sum())
            errors[:, k] = noise / self._response(l, m, part)
        return found, errors, freq_hz


def _psf_of(left: Left, channels: np.ndarray, cell_rad: float) -> np.ndarray:
    """Middle of the psf of some channels, from some of the rows."""
    rows = slice(None, None, max(1, len(left.uvw_m) // _PSF_ROWS))
    return middle_of_psf(
        uvw_m=left.uvw_m[rows],
        freq_hz=left.freq_hz[channels],
        weights=np.ascontiguousarray(left.weights[rows, channels[0] : channels[-1] + 1]),
        pixels=_PSF_PIXELS,
        cell_rad=cell_rad,
    )


def _near_components(
    psf: np.ndarray, components: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """What components within half of the psf's stamp make of each place, Jy/beam."""
    centre, reach = len(psf) // 2, len(psf) // 2 - TAPS
    found = np.zeros(len(x))
    for k in range(len(x)):
        dx, dy = x[k] - components[:, 0], y[k] - components[:, 1]
        near = np.maximum(np.abs(dx), np.abs(dy)) < reach
        found[k] = components[near, 2] @ sample(psf, centre + dx[near], centre + dy[near])
    return found


@njit(parallel=True, cache=True, fastmath=True)
def _at_places(uvw_m, vis, weights, freq_hz, l, m):
    """Weighted sums (n, nchan) of the visibilities' real part, turned to each place.

    Channels are even steps, or nearly: where they are not, phases are taken anew.
    """
    nchan, number, chunks = len(freq_hz), len(l), 64
    step_hz = (freq_hz[-1] - freq_hz[0]) / max(1, nchan - 1)
    even = True
    for c in range(nchan):
        even &= abs(freq_hz[0] + c * step_hz - freq_hz[c]) < 1e-6 * freq_hz[c]
    sums = np.zeros((chunks, nchan, number))
    for k in prange(chunks):
        turns, real, imag = np.empty(number), np.empty(number), np.empty(number)
        by_real, by_imag = np.empty(number), np.empty(number)
        for r in range(k * len(uvw_m) // chunks, (k + 1) * len(uvw_m) // chunks):
            for s in range(number):
                n_1 = np.sqrt(1 - l[s] ** 2 - m[s] ** 2) - 1
                path_m = uvw_m[r, 0] * l[s] + uvw_m[r, 1] * m[s] + uvw_m[r, 2] * n_1
                turns[s] = -2 * np.pi * path_m / SPEED_OF_LIGHT_M_S
                real[s], imag[s] = np.cos(turns[s] * freq_hz[0]), np.sin(turns[s] * freq_hz[0])
                by_real[s], by_imag[s] = np.cos(turns[s] * step_hz), np.sin(turns[s] * step_hz)
            for c in range(nchan):
                if not even:
                    for s in range(number):
                        real[s], imag[s] = (
                            np.cos(turns[s] * freq_hz[c]),
                            np.sin(turns[s] * freq_hz[c]),
                        )
                a, b = weights[r, c] * vis[r, c].real, weights[r, c] * vis[r, c].imag
                for s in range(number):  # places side by side: one instruction for several
                    sums[k, c, s] += a * real[s] - b * imag[s]
                    again = real[s] * by_real[s] - imag[s] * by_imag[s]
                    imag[s] = real[s] * by_imag[s] + imag[s] * by_real[s]
                    real[s] = again
    return sums.sum(axis=0).T
