"""Model visibilities of point sources, exactly as conversion makes them of the sky."""

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, meridian_frame_m
from contimg.sky.skymodel import Source, apparent_fluxes

_CHANNELS_AT_ONCE = 48


def predict(
    *, sources: Sequence[Source], mjd, phase_axes, pointing, positions_m, ant_1, ant_2, freq_hz
) -> np.ndarray:
    """Model visibilities (ntime, nbaseline, nchan), complex64, in the Measurement Set's convention.

    phase_axes    uvw axes of the phase centre at each integration, (ntime, 3, 3):
                  geometry.Tracking.axes
    positions_m   ITRF offsets of the stations, (nant, 3)
    ant_1, ant_2  (nbaseline,)

    M_12 = sum_s S_s(nu) B_s(t, nu) exp(+2 pi i nu (r_1 - r_2).(k_s - k_0) / c) with exact apparent
    directions k_s: what conversion makes of the sky. Channels are evenly spaced.
    """
    vectors, fluxes = apparent_fluxes(sources=sources, mjd=mjd, pointing=pointing, freq_hz=freq_hz)
    model = np.empty((len(mjd), len(ant_1), len(freq_hz)), np.complex64)
    for t in range(len(mjd)):
        model[t] = predict_integration(
            vectors=vectors[t],
            fluxes_jy=fluxes[t],
            phase_axes=phase_axes[t],
            positions_m=positions_m,
            ant_1=ant_1,
            ant_2=ant_2,
            freq_hz=freq_hz,
        )
    return model


def predict_integration(
    *, vectors, fluxes_jy, phase_axes, positions_m, ant_1, ant_2, freq_hz
) -> np.ndarray:
    """Of one integration, (nbaseline, nchan): sources at apparent `vectors` (nsource, 3) with
    `fluxes_jy` (nsource, nchan)."""
    used = np.unique(np.concatenate([ant_1, ant_2]))
    one, two = np.searchsorted(used, ant_1), np.searchsorted(used, ant_2)
    path = meridian_frame_m(positions_m[used]) @ (vectors - phase_axes[2]).T  # (nant, nsource)
    first = freq_hz[0] / SPEED_OF_LIGHT_M_S
    step = (freq_hz[-1] - freq_hz[0]) / max(1, len(freq_hz) - 1) / SPEED_OF_LIGHT_M_S
    model = np.empty((len(ant_1), len(freq_hz)), np.complex64)
    _sum_sources(path, first, step, np.ascontiguousarray(fluxes_jy.T, np.float32), one, two, model)
    return model


@njit(parallel=True, cache=True, fastmath=True)
def _sum_sources(path_m, first, step, flux_jy, one, two, model):
    """Fill model (nbaseline, nchan): path_m (nant, nsource), flux_jy (nchan, nsource); first, step:
    nu / c of the channels."""
    nant, nsource = path_m.shape
    nchan = flux_jy.shape[0]
    blocks = (nchan + _CHANNELS_AT_ONCE - 1) // _CHANNELS_AT_ONCE
    for block in prange(blocks):
        start = block * _CHANNELS_AT_ONCE
        stop = min(start + _CHANNELS_AT_ONCE, nchan)
        turns = np.empty((nant, nsource), np.complex128)
        steps = np.empty((nant, nsource), np.complex128)
        for a in range(nant):
            for s in range(nsource):
                cycles, more = path_m[a, s] * (first + start * step), path_m[a, s] * step
                turns[a, s] = np.exp(2j * np.pi * (cycles - np.floor(cycles)))
                steps[a, s] = np.exp(2j * np.pi * (more - np.floor(more)))
        # Real and imaginary parts apart, in single precision: the sum over sources below is then
        # vectorised.
        real, imag = np.empty((nant, nsource), np.float32), np.empty((nant, nsource), np.float32)
        real_jy = np.empty((nant, nsource), np.float32)
        imag_jy = np.empty((nant, nsource), np.float32)
        for c in range(start, stop):
            for a in range(nant):
                for s in range(nsource):
                    real[a, s], imag[a, s] = turns[a, s].real, turns[a, s].imag
                    real_jy[a, s], imag_jy[a, s] = (
                        real[a, s] * flux_jy[c, s],
                        imag[a, s] * flux_jy[c, s],
                    )
                    turns[a, s] *= steps[a, s]
            for b in range(len(one)):
                i, j = one[b], two[b]
                up, across = np.float32(0), np.float32(0)
                for s in range(nsource):
                    up += real_jy[i, s] * real[j, s] + imag_jy[i, s] * imag[j, s]
                    across += imag_jy[i, s] * real[j, s] - real_jy[i, s] * imag[j, s]
                model[b, c] = complex(up, across)
