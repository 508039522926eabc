"""What the sky looks like to the array: catalogue sources, and their fluxes through the primary
beam."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from contimg.sky.beam import AIRY, Beam, beam_track
from contimg.sky.catalogues import CATALOGUE_HZ, DEFAULT_ALPHA, Sky
from contimg.sky.geometry import apparent_vectors, separation_deg

SAME_SOURCE_ARCSEC = 10.0


@dataclass(frozen=True)
class Source:
    """A point source. log10 S[Jy] = sum a_k log10(nu/reference_hz)^k."""

    name: str
    ra_deg: float
    dec_deg: float
    log_flux: tuple[float, ...]
    reference_hz: float = CATALOGUE_HZ

    @classmethod
    def power_law(
        cls, name: str, ra_deg: float, dec_deg: float, flux_jy: float, alpha: float = DEFAULT_ALPHA
    ) -> "Source":
        """A source of `flux_jy` at 1.4 GHz with S proportional to nu^alpha."""
        return cls(name, ra_deg, dec_deg, (float(np.log10(flux_jy)), alpha))

    def flux_jy(self, freq_hz: np.ndarray | float) -> np.ndarray:
        """Flux density at the given frequencies."""
        x = np.log10(np.asarray(freq_hz) / self.reference_hz)
        return 10.0 ** sum(a * x**k for k, a in enumerate(self.log_flux))


def calibrator_model(
    calibrator: Source, sky: Sky, radius_deg: float, min_flux_jy: float
) -> list[Source]:
    """The calibrator and the catalogue sources around it; its own catalogue entry is the same
    source, counted once."""
    near = sky.within(calibrator.ra_deg, calibrator.dec_deg, radius_deg, min_flux_jy)
    away = separation_deg(
        near.ra_deg.values, near.dec_deg.values, calibrator.ra_deg, calibrator.dec_deg
    )
    return [calibrator, *as_sources(near[away * 3600 > SAME_SOURCE_ARCSEC])]


def as_sources(table: pd.DataFrame) -> list[Source]:
    """Rows of a catalogue as sources."""
    return [
        Source.power_law(r.name, r.ra_deg, r.dec_deg, r.flux_jy, r.alpha)
        for r in table.itertuples(index=False)
    ]


def apparent_fluxes(
    *,
    sources: Sequence[Source],
    mjd: np.ndarray,
    pointing: np.ndarray,
    freq_hz: np.ndarray,
    beam: Beam = AIRY,
):
    """Apparent unit vectors (ntime, nsource, 3) and fluxes through the beam (ntime, nsource, nchan)
    in Jy.

    mjd       UTC of each integration, (ntime,)
    pointing  unit vector of the dishes in the meridian frame, (3,)
    beam      of the dishes
    """
    vectors = apparent_vectors(
        np.array([s.ra_deg for s in sources]), np.array([s.dec_deg for s in sources]), mjd
    )
    spectra = np.stack([s.flux_jy(freq_hz) for s in sources])
    return vectors, beam_track(vectors, pointing, freq_hz, beam) * spectra[None]
