"""Model visibilities of point sources, exactly as the correlator and conversion make them of the
sky."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from contimg.sky.beam import AIRY, Beam
from contimg.sky.geometry import SKY_TURNS_RAD_S, SPEED_OF_LIGHT_M_S, meridian_frame_m
from contimg.sky.skymodel import Source, apparent_fluxes

_CHANNELS_AT_ONCE = 48


@dataclass(frozen=True)
class Smearing:
    """What averaging takes from a source off the tracked direction.

    integration_s     while the correlator, which tracks the meridian's sky, adds up
    channel_width_hz  of the correlator's channels
    averaged_hz       that channels were averaged over later, about the phase centre; 0: they were
                      not

    Each multiplies a visibility by sinc(turns) = sin(pi turns) / (pi turns) (Bridle & Schwab 1999,
    ASP Conf. 180, 371); n averaged channels by sinc(turns) / sinc(turns / n).
    """

    integration_s: float
    channel_width_hz: float
    averaged_hz: float = 0.0


def predictor(
    *,
    sources: Sequence[Source],
    mjd,
    phase_axes,
    pointing,
    positions_m,
    ant_1,
    ant_2,
    freq_hz,
    smearing: Smearing | None = None,
    scale: np.ndarray | float = 1.0,
    beam: Beam = AIRY,
) -> Callable[..., np.ndarray]:
    """A function of an integration's number, and of which sources (default: all), that gives model
    visibilities (nbaseline, nchan), complex64, in the Measurement Set's convention.

    phase_axes    uvw axes of the phase centre at each integration, (ntime, 3, 3):
                  geometry.Tracking.axes
    positions_m   ITRF offsets of the stations, (nant, 3)
    ant_1, ant_2  (nbaseline,)
    smearing      None: of an instant and a frequency
    scale         of the sources' fluxes, (nsource,) or (ntime, nsource)
    beam          of the dishes

    M_12 = sum_s S_s(nu) B_s(t, nu) exp(+2 pi i nu (r_1 - r_2).(k_s - k_0) / c) with exact apparent
    directions k_s: what conversion makes of the sky. Channels are evenly spaced.
    """
    vectors, fluxes = apparent_fluxes(
        sources=sources, mjd=mjd, pointing=pointing, freq_hz=freq_hz, beam=beam
    )
    fluxes *= np.atleast_2d(scale)[..., None]

    def predicted(t: int, which: slice | Sequence[int] = slice(None)) -> np.ndarray:
        return predict_integration(
            vectors=vectors[t, which],
            fluxes_jy=fluxes[t, which],
            phase_axes=phase_axes[t],
            positions_m=positions_m,
            ant_1=ant_1,
            ant_2=ant_2,
            freq_hz=freq_hz,
            pointing=pointing,
            smearing=smearing,
        )

    return predicted


def predict(*, mjd, ant_1, freq_hz, **seen) -> np.ndarray:
    """Model visibilities (ntime, nbaseline, nchan) of all sources; arguments as of `predictor`."""
    predicted = predictor(mjd=mjd, ant_1=ant_1, freq_hz=freq_hz, **seen)
    model = np.empty((len(mjd), len(ant_1), len(freq_hz)), np.complex64)
    for t in range(len(mjd)):
        model[t] = predicted(t)
    return model


def predict_integration(
    *,
    vectors,
    fluxes_jy,
    phase_axes,
    positions_m,
    ant_1,
    ant_2,
    freq_hz,
    pointing,
    smearing: Smearing | None,
) -> np.ndarray:
    """Of one integration, (nbaseline, nchan): sources at apparent `vectors` (nsource, 3) with
    `fluxes_jy` (nsource, nchan)."""
    used = np.unique(np.concatenate([ant_1, ant_2]))
    one, two = np.searchsorted(used, ant_1), np.searchsorted(used, ant_2)
    antennas_m = meridian_frame_m(positions_m[used])
    path = antennas_m @ (vectors - phase_axes[2]).T  # (nant, nsource)
    smear = smearing_turns(antennas_m, vectors - pointing, path, smearing)
    first = freq_hz[0] / SPEED_OF_LIGHT_M_S
    step = (freq_hz[-1] - freq_hz[0]) / max(1, len(freq_hz) - 1) / SPEED_OF_LIGHT_M_S
    model = np.empty((len(ant_1), len(freq_hz)), np.complex64)
    flux_jy = np.ascontiguousarray(fluxes_jy.T, np.float32)
    _sum_sources(path, first, step, flux_jy, one, two, smear, model)
    return model


def smearing_turns(antennas_m, away, path_m, smearing: Smearing | None) -> np.ndarray:
    """What each antenna adds to a baseline's turns, (4, nant, nsource): in an integration, for a
    wavelength of 1 m; across a channel; about the phase centre, across the average of channels, and
    across one of them. Empty without smearing.

    The sky turns about the pole (z) to the west, (x, y) to (y, -x): a source that is `away` from
    the tracked direction turns about it by 7.3e-5 rad x away in a second.
    """
    if smearing is None:
        return np.empty((0, *path_m.shape))
    pace = SKY_TURNS_RAD_S * np.stack([away[:, 1], -away[:, 0], 0 * away[:, 0]], axis=1)
    channel = smearing.channel_width_hz / SPEED_OF_LIGHT_M_S
    averaged = smearing.averaged_hz / SPEED_OF_LIGHT_M_S
    return np.stack(
        [
            antennas_m @ pace.T * smearing.integration_s,
            antennas_m @ away.T * channel,
            path_m * averaged,
            path_m * min(channel, averaged),
        ]
    )


@njit(cache=True, fastmath=True)
def _sinc(turns):
    """sin(pi x) / (pi x); inside the first null by its series (to 1e-6), which is quicker."""
    z = (np.pi * turns) ** 2
    if z > 9.8696:
        return np.sin(np.pi * turns) / (np.pi * turns)
    tail = 1 - z / 210 * (1 - z / 272)
    tail = 1 - z / 110 * (1 - z / 156 * tail)
    return 1 - z / 6 * (1 - z / 20 * (1 - z / 42 * (1 - z / 72 * tail)))


@njit(parallel=True, cache=True, fastmath=True)
def _sum_sources(path_m, first, step, flux_jy, one, two, smear, model):
    """Fill model (nbaseline, nchan): path_m (nant, nsource), flux_jy (nchan, nsource); first, step:
    nu / c of the channels; smear: of `smearing_turns`."""
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
        # what smearing leaves of each source, linear in frequency within a block
        kept = np.empty((len(one) if len(smear) else 0, nsource), np.float32)
        slope = np.empty_like(kept)
        low, high = first + start * step, first + (stop - 1) * step
        for b in range(len(kept)):
            i, j = one[b], two[b]
            for s in range(nsource):
                across = (
                    _sinc(smear[1, i, s] - smear[1, j, s])
                    * _sinc(smear[2, i, s] - smear[2, j, s])
                    / _sinc(smear[3, i, s] - smear[3, j, s])
                )
                at_low = _sinc((smear[0, i, s] - smear[0, j, s]) * low)
                at_high = _sinc((smear[0, i, s] - smear[0, j, s]) * high)
                kept[b, s] = across * at_low
                slope[b, s] = across * (at_high - at_low) / max(1, stop - 1 - start)
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
                if len(kept):
                    for s in range(nsource):
                        k = kept[b, s] + np.float32(c - start) * slope[b, s]
                        up += k * (real_jy[i, s] * real[j, s] + imag_jy[i, s] * imag[j, s])
                        across += k * (imag_jy[i, s] * real[j, s] - real_jy[i, s] * imag[j, s])
                else:
                    for s in range(nsource):
                        up += real_jy[i, s] * real[j, s] + imag_jy[i, s] * imag[j, s]
                        across += imag_jy[i, s] * real[j, s] - real_jy[i, s] * imag[j, s]
                model[b, c] = complex(up, across)
