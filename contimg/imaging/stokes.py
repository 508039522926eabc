"""What is imaged: Stokes I of CORRECTED_DATA; read once, never written back."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg.errors import ImagingError
from contimg.sky.beam import AIRY, Beam
from contimg.visibilities import measurement_set as mset

log = logging.getLogger(__name__)
_MOST_PARTS = 48  # of the band, for Stokes Q


@dataclass(frozen=True)
class StokesI:
    """Stokes I of the cross-correlations: visibilities (ntime, nbaseline, nchan) and weights in
    Jy^-2, 0 where flagged."""

    observation: mset.Observation
    rows: mset.Rows
    vis: np.ndarray
    weights: np.ndarray
    app_dec_deg: float
    rows_used: int  # of ntime * nbaseline: cross-correlations in the uvrange
    averaged_hz: float = 0.0  # that the correlator's channels were averaged over, if they were
    beam: Beam = AIRY  # of the dishes
    # Stokes Q = (XX - YY) / 2 in parts of the band, with its weights, as vis and weights are
    polarised: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def freq_weights(self) -> np.ndarray:
        """Sum of the weights of each channel."""
        return self.weights.sum(axis=(0, 1), dtype=np.float64)


@njit(parallel=True, cache=True)
def _stokes_i(data, flags, weights, use, vis, weight, polarised, of_polarised):
    """I = (XX + YY) / 2 with weight 1 / var(I); 0 where either is flagged. data (nbaseline, nchan,
    2). And weighted means of Q in parts of the channels."""
    wide = -(-data.shape[1] // polarised.shape[1])
    for b in prange(len(use)):
        for c in range(data.shape[1]):
            one, two = weights[b, c, 0], weights[b, c, 1]
            if use[b] and not (flags[b, c, 0] or flags[b, c, 1]) and one > 0 and two > 0:
                vis[b, c] = np.float32(0.5) * (data[b, c, 0] + data[b, c, 1])
                weight[b, c] = 4 * one * two / (one + two)
                polarised[b, c // wide] += (
                    weight[b, c] * np.float32(0.5) * (data[b, c, 0] - data[b, c, 1])
                )
                of_polarised[b, c // wide] += weight[b, c]
            else:
                vis[b, c] = 0
                weight[b, c] = 0
        for k in range(polarised.shape[1]):
            if of_polarised[b, k] > 0:
                polarised[b, k] /= of_polarised[b, k]


def read_stokes_i(ms: Path, app_dec_deg: float, uvrange: str | None = None) -> StokesI:
    """One pass over CORRECTED_DATA, FLAG and WEIGHT_SPECTRUM. Raises ImagingError when nothing is
    left to image."""
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    ntime, nbaseline = rows.shape
    nchan = len(observation.freq_hz)
    vis = np.empty((ntime, nbaseline, nchan), np.complex64)
    weights = np.empty(vis.shape, np.float32)
    parts = max(n for n in range(1, _MOST_PARTS + 1) if nchan % n == 0)
    polarised = np.zeros((ntime, nbaseline, parts), np.complex64)
    of_polarised = np.zeros(polarised.shape, np.float32)
    data = np.empty((nbaseline, nchan, 2), np.complex64)
    flags = np.empty((nbaseline, nchan, 2), bool)
    spectrum = np.empty(flags.shape, np.float32)
    use = (rows.ant_1 != rows.ant_2) & ~mset.outside(uvrange, rows.uvw_m, observation.freq_hz)
    with mset.open_table(ms) as table:
        for t in range(ntime):
            for name, values in (
                ("CORRECTED_DATA", data),
                ("FLAG", flags),
                ("WEIGHT_SPECTRUM", spectrum),
            ):
                table.getcolnp(name, values, t * nbaseline, nbaseline)
            _stokes_i(
                data, flags, spectrum, use[t], vis[t], weights[t], polarised[t], of_polarised[t]
            )
    if not weights.any():
        raise ImagingError(
            f"{ms}: no visibility has both polarisations unflagged. Nothing to image."
        )
    used = np.count_nonzero(use)
    both = polarised, of_polarised
    return StokesI(observation, rows, vis, weights, app_dec_deg, used, polarised=both)
