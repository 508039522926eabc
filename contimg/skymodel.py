"""What the sky looks like to the array: catalogue sources, and their fluxes through the primary beam."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.beam import beam_track
from contimg.errors import ConfigError
from contimg.geometry import apparent_vectors, separation_deg

CATALOGUE_HZ = 1.4e9
DEFAULT_ALPHA = -0.7
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
