"""The sky of a field in visibilities: the model of what an observation sees, and how much of it
calibrated data have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contimg.errors import ValidationError
from contimg.sky import catalogues
from contimg.sky.beam import AIRY, Beam
from contimg.sky.calibrators import mean_beam
from contimg.sky.geometry import meridian_vector, track
from contimg.sky.prediction import Smearing, predict, predictor
from contimg.sky.skymodel import Source, calibrator_model
from contimg.visibilities import measurement_set as mset

FIELD_RADIUS_DEG = 2.0


@dataclass(frozen=True)
class Seen:
    """What an observation sees of some sources."""

    observation: mset.Observation
    rows: mset.Rows
    app_dec_deg: float
    sources: Sequence[Source]
    beam: Beam = AIRY

    def model(self, **of_what) -> np.ndarray:
        """Visibilities (ntime, nbaseline, nchan), smeared; arguments as of `predictor`."""
        return predict(**self._as_seen(**of_what))

    def predictor(self, **of_what) -> Callable[..., np.ndarray]:
        """`prediction.predictor`, for the observation's integrations and channels, smeared.

        time_mjd, freq_hz  others than these
        averaged_hz        what channels were averaged over
        scale              of the sources' fluxes, (nsource,) or (ntime, nsource)
        """
        return predictor(**self._as_seen(**of_what))

    def _as_seen(self, time_mjd=None, freq_hz=None, averaged_hz=0.0, scale=1.0) -> dict:
        observation, rows = self.observation, self.rows
        mjd = rows.time_mjd if time_mjd is None else time_mjd
        return {
            "sources": self.sources,
            "mjd": mjd,
            "phase_axes": track(*observation.phase_centre_deg, mjd).axes,
            "pointing": meridian_vector(np.radians(self.app_dec_deg)),
            "positions_m": observation.positions_m,
            "ant_1": rows.ant_1,
            "ant_2": rows.ant_2,
            "freq_hz": observation.freq_hz if freq_hz is None else freq_hz,
            "smearing": Smearing(rows.integration_s, observation.channel_width_hz, averaged_hz),
            "scale": scale,
            "beam": self.beam,
        }


@dataclass(frozen=True)
class Calibrated:
    """Data of a group in Jy with weights in Jy^-2, (ntime, nbaseline, nchan, npol)."""

    data: np.ndarray
    flags: np.ndarray
    observation: mset.Observation
    rows: mset.Rows
    app_dec_deg: float
    weights: np.ndarray | None = None  # not known yet
    sefd_jy: np.ndarray | None = None  # of the antennas, (nant, npol), NaN where unknown
    # of the autocorrelations, (nant, nchan, npol); and with the other polarisation's gains
    spectra: np.ndarray | None = None
    other_spectra: np.ndarray | None = None
    beam: Beam = AIRY


def modelled_share(sources, calibrator, catalogue, centre_deg) -> float:
    """Share of the catalogued apparent flux in the beam that the model has."""

    def apparent_jy(some):
        beams = mean_beam([s.ra_deg for s in some], [s.dec_deg for s in some], *centre_deg)
        return float(
            sum(b * s.flux_jy(catalogues.CATALOGUE_HZ) for b, s in zip(beams, some, strict=True))
        )

    return apparent_jy(sources) / apparent_jy(
        calibrator_model(calibrator, catalogue, 2 * FIELD_RADIUS_DEG, 0.0)
    )


def model_amplitude(ms: Path, model: np.ndarray) -> float:
    """Median amplitude in Jy of a model (ntime, nbaseline, nchan); raises ValidationError when it
    is zero."""
    amplitude = float(np.median(np.abs(model)))
    if not amplitude > 0:
        raise ValidationError(
            f"{ms}: the sky model is zero: no solution would mean anything. Check the catalogues."
        )
    return amplitude


def write_model(ms: Path, model: np.ndarray) -> float:
    """MODEL_DATA from (ntime, nbaseline, nchan) for both polarisations; returns its median
    amplitude in Jy."""
    amplitude = model_amplitude(ms, model)
    mset.write_columns(ms, MODEL_DATA=np.repeat(model[..., None], 2, axis=-1))
    return amplitude
