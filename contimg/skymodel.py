"""What the sky should look like to the array: catalogue sources seen through the primary beam, as visibilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numba import njit, prange

from contimg.beam import beam_track
from contimg.errors import ConfigError
from contimg.geometry import SPEED_OF_LIGHT_M_S, apparent_vectors, meridian_frame_m, separation_deg

CATALOGUE_HZ = 1.4e9
DEFAULT_ALPHA = -0.7
SAME_SOURCE_ARCSEC = 10.0
_CHANNELS_AT_ONCE = 48


@dataclass(frozen=True)
class Source:
    """A point source. log10 S[Jy] = sum a_k log10(nu/reference_hz)^k."""

    name: str
    ra_deg: float
    dec_deg: float
    log_flux: tuple[float, ...]
    reference_hz: float = CATALOGUE_HZ

    @classmethod
    def power_law(cls, name: str, ra_deg: float, dec_deg: float, flux_jy: float, alpha: float = DEFAULT_ALPHA) -> "Source":
        """A source of `flux_jy` at 1.4 GHz with S proportional to nu^alpha."""
        return cls(name, ra_deg, dec_deg, (float(np.log10(flux_jy)), alpha))

    def flux_jy(self, freq_hz: np.ndarray | float) -> np.ndarray:
        """Flux density at the given frequencies."""
        x = np.log10(np.asarray(freq_hz) / self.reference_hz)
        return 10.0 ** sum(a * x**k for k, a in enumerate(self.log_flux))


def read_catalogue(path: Path) -> pd.DataFrame:
    """Sky catalogue: name, ra_deg, dec_deg (ICRS), flux_jy at 1.4 GHz, alpha (-0.7 where not given)."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the sky catalogue cannot be read: {error}. See catalogues.sky.") from None
    absent = {"name", "ra_deg", "dec_deg", "flux_jy"} - set(table.columns)
    if absent:
        raise ConfigError(f"{path}: the sky catalogue has no column {sorted(absent)}; found {list(table.columns)}")
    if "alpha" not in table:
        table["alpha"] = DEFAULT_ALPHA
    return table.fillna({"alpha": DEFAULT_ALPHA})


def within(table: pd.DataFrame, ra_deg: float, dec_deg: float, radius_deg: float) -> pd.DataFrame:
    """Rows of a catalogue within `radius_deg` of an ICRS position."""
    return table[separation_deg(table.ra_deg.values, table.dec_deg.values, ra_deg, dec_deg) <= radius_deg]


def calibrator_model(calibrator: Source, catalogue: pd.DataFrame, radius_deg: float, min_flux_jy: float) -> list[Source]:
    """The calibrator and the catalogue sources around it; its own catalogue entry is the same source, counted once."""
    near = within(catalogue, calibrator.ra_deg, calibrator.dec_deg, radius_deg)
    away = separation_deg(near.ra_deg.values, near.dec_deg.values, calibrator.ra_deg, calibrator.dec_deg)
    near = near[(away * 3600 > SAME_SOURCE_ARCSEC) & (near.flux_jy >= min_flux_jy)]
    return [calibrator, *as_sources(near)]


def as_sources(table: pd.DataFrame) -> list[Source]:
    """Rows of a catalogue as sources."""
    return [Source.power_law(r.name, r.ra_deg, r.dec_deg, r.flux_jy, r.alpha) for r in table.itertuples(index=False)]


def apparent_fluxes(sources: Sequence[Source], mjd: np.ndarray, pointing: np.ndarray, freq_hz: np.ndarray):
    """Apparent unit vectors (ntime, nsource, 3) and fluxes through the beam (ntime, nsource, nchan) in Jy.

    mjd       UTC of each integration, (ntime,)
    pointing  unit vector of the dishes in the meridian frame, (3,)
    """
    vectors = apparent_vectors(np.array([s.ra_deg for s in sources]), np.array([s.dec_deg for s in sources]), mjd)
    spectra = np.stack([s.flux_jy(freq_hz) for s in sources])
    return vectors, beam_track(vectors, pointing, freq_hz) * spectra[None]


def predict(sources: Sequence[Source], mjd, phase_axes, pointing, positions_m, ant_1, ant_2, freq_hz) -> np.ndarray:
    """Model visibilities (ntime, nbaseline, nchan), complex64, in the Measurement Set's convention.

    phase_axes    uvw axes of the phase centre at each integration, (ntime, 3, 3): geometry.Tracking.axes
    positions_m   ITRF offsets of the stations, (nant, 3)
    ant_1, ant_2  (nbaseline,)

    M_12 = sum_s S_s(nu) B_s(t, nu) exp(+2 pi i nu (r_1 - r_2).(k_s - k_0) / c) with exact apparent directions k_s: what
    conversion makes of the sky. Channels are evenly spaced.
    """
    vectors, fluxes = apparent_fluxes(sources, mjd, pointing, freq_hz)
    model = np.empty((len(mjd), len(ant_1), len(freq_hz)), np.complex64)
    for t in range(len(mjd)):
        model[t] = predict_integration(vectors[t], fluxes[t], phase_axes[t], positions_m, ant_1, ant_2, freq_hz)
    return model


def predict_integration(vectors, fluxes_jy, phase_axes, positions_m, ant_1, ant_2, freq_hz) -> np.ndarray:
    """Of one integration, (nbaseline, nchan): sources at apparent `vectors` (nsource, 3) with `fluxes_jy` (nsource, nchan)."""
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
    """Fill model (nbaseline, nchan): path_m (nant, nsource), flux_jy (nchan, nsource); first, step: nu / c of the channels."""
    nant, nsource = path_m.shape
    nchan = flux_jy.shape[0]
    blocks = (nchan + _CHANNELS_AT_ONCE - 1) // _CHANNELS_AT_ONCE
    for block in prange(blocks):
        start = block * _CHANNELS_AT_ONCE
        stop = min(start + _CHANNELS_AT_ONCE, nchan)
        turns, steps = np.empty((nant, nsource), np.complex128), np.empty((nant, nsource), np.complex128)
        for a in range(nant):
            for s in range(nsource):
                cycles, more = path_m[a, s] * (first + start * step), path_m[a, s] * step
                turns[a, s] = np.exp(2j * np.pi * (cycles - np.floor(cycles)))
                steps[a, s] = np.exp(2j * np.pi * (more - np.floor(more)))
        # Real and imaginary parts apart, in single precision: the sum over sources below is then vectorised.
        real, imag = np.empty((nant, nsource), np.float32), np.empty((nant, nsource), np.float32)
        real_jy, imag_jy = np.empty((nant, nsource), np.float32), np.empty((nant, nsource), np.float32)
        for c in range(start, stop):
            for a in range(nant):
                for s in range(nsource):
                    real[a, s], imag[a, s] = turns[a, s].real, turns[a, s].imag
                    real_jy[a, s], imag_jy[a, s] = real[a, s] * flux_jy[c, s], imag[a, s] * flux_jy[c, s]
                    turns[a, s] *= steps[a, s]
            for b in range(len(one)):
                i, j = one[b], two[b]
                up, across = np.float32(0), np.float32(0)
                for s in range(nsource):
                    up += real_jy[i, s] * real[j, s] + imag_jy[i, s] * imag[j, s]
                    across += imag_jy[i, s] * real[j, s] - real_jy[i, s] * imag[j, s]
                model[b, c] = complex(up, across)
