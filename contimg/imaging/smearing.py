"""What the correlator's integrations and channels, and averaging, take from the peak of a source at
each place of an image."""

import numpy as np

from contimg.imaging.averaging import Averaged
from contimg.imaging.stokes import StokesI
from contimg.sky.beam import beam_track, between_pixels
from contimg.sky.geometry import meridian_vector, track
from contimg.sky.prediction import Smearing, mean_smearing

_PLACES = 11  # along a side of the image, between which the map is smooth
_INTEGRATIONS, _FREQUENCIES = 8, 4
_LEAST_BEAM = 0.01  # where it is less, the average over the drift is not weighted by it


def smearing_map(stokes: StokesI, averaged: Averaged, l: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Share (nx, ny) that smearing leaves of a peak at direction cosines l (nx,) and m (ny,) from
    the phase centre, with the image's weights, averaged over the drift as the beam weighs it.

    Peaks of the image are the sky times beam times this (Bridle & Schwab 1999, ASP Conf. 180, 371;
    `sky.prediction.Smearing`).
    """
    observation, rows, ntime = stokes.observation, stokes.rows, len(stokes.rows.time_mjd)
    times = np.unique(np.linspace(0, ntime - 1, min(_INTEGRATIONS, ntime)).round().astype(int))
    coarse_l, coarse_m = (np.linspace(x.min(), x.max(), _PLACES) for x in (l, m))
    places = np.stack(np.meshgrid(coarse_l, coarse_m, indexing="ij"), axis=-1).reshape(-1, 2)
    places = np.column_stack([places, np.sqrt(np.clip(1 - (places**2).sum(axis=1), 0, 1))])
    axes = track(*observation.phase_centre_deg, rows.time_mjd[times]).axes
    vectors = places @ axes
    pointing = meridian_vector(np.radians(stokes.app_dec_deg))
    middle_hz = averaged.freq_hz.mean()
    beam = beam_track(vectors, pointing, middle_hz[None], stokes.beam)[..., 0]
    beam = np.maximum(beam, _LEAST_BEAM)
    parts = np.array_split(np.arange(len(averaged.freq_hz)), _FREQUENCIES)
    parts = [part for part in parts if len(part)]
    weights = averaged.weights.reshape(ntime, -1, len(averaged.freq_hz))[times]
    width_hz = observation.channel_width_hz
    kept = mean_smearing(
        vectors=vectors,
        shares=beam,
        phase_axes=axes,
        pointing=pointing,
        positions_m=observation.positions_m,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        freq_hz=np.array([averaged.freq_hz[part].mean() for part in parts]),
        weights=np.stack([weights[..., part].sum(axis=-1) for part in parts], axis=-1),
        smearing=Smearing(
            rows.integration_s,
            width_hz,
            averaged.channels * width_hz if averaged.channels > 1 else stokes.averaged_hz,
        ),
    )
    return between_pixels(coarse_l, coarse_m, kept.reshape(_PLACES, _PLACES), l, m)
