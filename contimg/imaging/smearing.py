"""What the correlator's integrations and channels, and averaging, take from the peak of a source at
each place of an image."""

from dataclasses import dataclass

import numpy as np

from contimg.imaging.averaging import Averaged
from contimg.imaging.interface import Beam
from contimg.imaging.stokes import StokesI
from contimg.sky.beam import beam_track, between_pixels
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, meridian_vector, track
from contimg.sky.prediction import Smearing, smearing_turns

_PLACES = 11  # along a side of the image, between which the map is smooth
_INTEGRATIONS = 8
_LEAST_BEAM = 0.01  # where it is less, the average over the drift is not weighted by it
_NODES = 9  # of Gauss and Hermite, along each axis of the uv plane
_UV_BINS = 24  # along each axis, of the image's own weights


@dataclass(frozen=True)
class Smeared:
    """What is needed of a group to know its smearing: axes of the phase centre, directions and
    weights of some integrations, how w follows from u and v there, and how the image's weights lie
    in the uv plane."""

    axes: np.ndarray  # (ntime, 3, 3)
    pointing: np.ndarray
    beam_at: np.ndarray  # (ntime, nplace)
    time_weights: np.ndarray
    planes: np.ndarray  # (ntime, 2): w = a u + b v
    places: np.ndarray  # (nplace, 3)
    coarse_lm: tuple[np.ndarray, np.ndarray]
    uv_m: np.ndarray  # (nbin, 2)
    uv_weights: np.ndarray  # (nbin,)
    freq_hz: float
    smearing: Smearing

    @classmethod
    def of(cls, stokes: StokesI, averaged: Averaged, l: np.ndarray, m: np.ndarray) -> "Smeared":
        """Of an image at direction cosines l (nx,) and m (ny,) from the phase centre."""
        observation, rows, ntime = stokes.observation, stokes.rows, len(stokes.rows.time_mjd)
        times = np.unique(np.linspace(0, ntime - 1, min(_INTEGRATIONS, ntime)).round().astype(int))
        coarse = tuple(np.linspace(x.min(), x.max(), _PLACES) for x in (l, m))
        places = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1).reshape(-1, 2)
        places = np.column_stack([places, np.sqrt(np.clip(1 - (places**2).sum(axis=1), 0, 1))])
        axes = track(*observation.phase_centre_deg, rows.time_mjd[times]).axes
        pointing = meridian_vector(np.radians(stokes.app_dec_deg))
        freq_hz, width_hz = float(averaged.freq_hz.mean()), observation.channel_width_hz
        beam = beam_track(places @ axes, pointing, np.array([freq_hz]), stokes.beam)[..., 0]
        planes = np.stack(
            [np.linalg.lstsq(uvw[:, :2], uvw[:, 2], rcond=None)[0] for uvw in rows.uvw_m[times]]
        )
        averaged_hz = averaged.channels * width_hz if averaged.channels > 1 else stokes.averaged_hz
        return cls(
            axes,
            pointing,
            np.maximum(beam, _LEAST_BEAM),
            averaged.time_weights[times],
            planes,
            places,
            coarse,
            *_binned(averaged),
            freq_hz,
            Smearing(rows.integration_s, width_hz, averaged_hz),
        )

    def left(self, restoring: Beam, l: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Share (nx, ny) that smearing leaves of a restored peak, averaged over the drift as the
        beam weighs it.

        Cleaned and restored, a source is its visibilities weighted as the restoring beam weighs the
        uv plane, whatever the image's weights are: with beam exp(-x' Q x), as a Gaussian of
        covariance Q / (2 pi^2).
        """
        a, b, c = restoring.quadratic() * np.degrees(3600.0) ** 2
        spread = np.linalg.cholesky(np.array([[a, b / 2], [b / 2, c]]) / (2 * np.pi**2))
        nodes, shares = np.polynomial.hermite.hermgauss(_NODES)
        grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
        shares = np.outer(shares, shares).ravel() / np.pi
        wavelength_m = SPEED_OF_LIGHT_M_S / self.freq_hz
        return self._left(np.sqrt(2) * grid @ spread.T * wavelength_m, shares, l, m)

    def left_of_dirty(self, l: np.ndarray, m: np.ndarray) -> np.ndarray:
        """The same of a peak of the dirty image, with the image's own weights."""
        return self._left(self.uv_m, self.uv_weights, l, m)

    def _left(self, uv_m: np.ndarray, shares: np.ndarray, l: np.ndarray, m: np.ndarray):
        """With the uv plane weighted by `shares` (n,) at uv_m (n, 2). Each visibility keeps
        sinc(turns) (Bridle & Schwab 1999, ASP Conf. 180, 371; `sky.prediction.Smearing`)."""
        wavelength_m = SPEED_OF_LIGHT_M_S / self.freq_hz
        kept, total = 0.0, 0.0
        for t, weight in enumerate(self.time_weights):
            baselines_m = np.column_stack([uv_m, uv_m @ self.planes[t]]) @ self.axes[t]
            vectors = self.places @ self.axes[t]
            path_m = baselines_m @ (vectors - self.axes[t, 2]).T
            turns = smearing_turns(baselines_m, vectors - self.pointing, path_m, self.smearing)
            left = np.sinc(turns[0] / wavelength_m) * np.sinc(turns[1])
            left = left * np.sinc(turns[2]) / np.sinc(turns[3])
            kept = kept + weight * self.beam_at[t] * (shares @ left)
            total = total + weight * self.beam_at[t]
        shape = (len(self.coarse_lm[0]), len(self.coarse_lm[1]))
        found = np.where(total > 0, kept / np.where(total > 0, total, 1), 1.0)
        return between_pixels(*self.coarse_lm, found.reshape(shape), l, m)


def _binned(averaged: Averaged) -> tuple[np.ndarray, np.ndarray]:
    """Mean places (m) and shares of the image's weights in bins of the uv plane; a visibility and
    its conjugate are one."""
    uv_m, weights = averaged.uvw_m[:, :2], averaged.weights.sum(axis=1, dtype=float)
    uv_m = np.where(uv_m[:, :1] < 0, -uv_m, uv_m)[weights > 0]
    weights = weights[weights > 0]
    reach = np.abs(uv_m).max(initial=1.0)
    bins = np.floor((uv_m / reach + 1) / 2 * _UV_BINS).astype(int)
    _, which = np.unique(bins[:, 0] * (_UV_BINS + 1) + bins[:, 1], return_inverse=True)
    total = np.bincount(which, weights)
    places = [np.bincount(which, weights * x) / total for x in uv_m.T]
    return np.stack(places, axis=1), total / total.sum()
