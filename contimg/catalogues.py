"""The array's stations; sky catalogues from the network, stored as the workflow reads them."""

from pathlib import Path

import numpy as np
import pandas as pd

from contimg.errors import ConfigError, ContimgError
from contimg.geometry import TEE_ITRF_M

_NVSS = "VIII/65/nvss"  # Condon et al. 1998, AJ 115, 1693


def read_stations(path: Path) -> dict[str, np.ndarray]:
    """ITRF offsets (3,) in m from the Tee centre by station name, from a CSV of WGS84 coordinates."""
    import astropy.units as u
    from astropy.coordinates import EarthLocation

    try:
        table = pd.read_csv(path)
        where = EarthLocation.from_geodetic(
            table.longitude_deg.values * u.deg, table.latitude_deg.values * u.deg, table.height_m.values * u.m
        )
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"catalogues.stations: {path} cannot be read: {error}") from None
    positions_m = np.stack([getattr(where, axis).to_value(u.m) for axis in "xyz"], axis=1) - TEE_ITRF_M
    return dict(zip(table.station.astype(str), positions_m, strict=True))


def download_nvss(output: Path, centre_deg: tuple[float, float] | None, radius_deg: float, min_mjy: float) -> int:
    """Write NVSS sources (all, or a cone around an ICRS position) to a CSV; returns their number.

    Raises ContimgError without a network.
    """
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    from astroquery.vizier import Vizier

    service = Vizier(columns=["NVSS", "RAJ2000", "DEJ2000", "S1.4"], column_filters={"S1.4": f">={min_mjy}"}, row_limit=-1)
    try:
        if centre_deg is None:
            found = service.get_catalogs(_NVSS)
        else:
            found = service.query_region(SkyCoord(*centre_deg, unit="deg"), radius=radius_deg * u.deg, catalog=_NVSS)
    except Exception as error:  # astroquery passes on whatever requests, pyvo or the service raise
        raise ContimgError(f"VizieR cannot be reached ({type(error).__name__}): is this machine offline? {error}") from None
    if not found:
        raise ContimgError("VizieR has no NVSS source there; nothing was written")
    table = found[0]
    where = SkyCoord(table["RAJ2000"], table["DEJ2000"], unit=(u.hourangle, u.deg))
    frame = pd.DataFrame(
        {"name": list(table["NVSS"]), "ra_deg": where.ra.deg.round(5), "dec_deg": where.dec.deg.round(5),
         "flux_jy": (table["S1.4"].astype(float) / 1e3).round(5)}
    )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    frame.sort_values("flux_jy", ascending=False).to_csv(output, index=False)
    return len(frame)
