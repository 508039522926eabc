"""The telescope: where it stands, its dishes, its names, the rhythm of its files.

A process works for one telescope: the DSA-110, or the one of the file that the environment's
CONTIMG_TELESCOPE names (docs/other-arrays.md). Everything else that differs between arrays is in
the files (antennas, band, times) or in the configuration.
"""

import math
import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contimg.errors import ConfigError

VARIABLE = "CONTIMG_TELESCOPE"
_PLAIN = r"^[A-Za-z0-9 ._+-]+$"  # goes into headers, file names and SQL


class Telescope(BaseModel):
    """What one observatory has of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(
        pattern=_PLAIN, description="in headers, titles and the archive: TELESCOP, INSTRUME"
    )
    observatory: str = Field(pattern=_PLAIN, description="ObsCore's facility_name")
    authority: str = Field(
        pattern=r"^[a-z0-9.-]+$", description="of its IVOA identifiers: ivo://AUTHORITY/contimg"
    )
    file_names: tuple[str, ...] = Field(
        min_length=1, description="telescope_name that its UVH5 files may have; others are refused"
    )
    casa_name: str = Field(description="in Measurement Sets; one of CASA's observatories")
    latitude_rad: float = Field(
        ge=-math.pi / 2, le=math.pi / 2, description="of the place that station offsets are from"
    )
    longitude_rad: float = Field(
        ge=-math.pi, le=math.pi, description="to the east; the meridian that is tracked"
    )
    height_m: float = Field(description="above the WGS84 ellipsoid")
    dish_diameter_m: float = Field(gt=0, description="evenly lit: the beam of imaging.beam: airy")
    group_s: float = Field(gt=0, description="from the begin of a group to that of the next")
    station_prefix: str = Field(description="before an antenna's name in the MS: STATION")


DSA110 = Telescope(
    name="DSA-110",
    observatory="OVRO",
    authority="dsa110",
    file_names=("OVRO_MMA", "DSA_110", "DSA-110", "DSA110"),
    casa_name="OVRO_MMA",
    latitude_rad=0.6498455107238486,
    longitude_rad=-2.064427799136453,
    height_m=1188.0519,
    dish_diameter_m=4.65,
    group_s=309.24,
    station_prefix="DSA-",
)


def read_telescope(path: Path) -> Telescope:
    """A telescope's file (YAML); raises ConfigError naming every key that is wrong."""
    try:
        return Telescope.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{VARIABLE} {path}: no telescope: {wrong}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{VARIABLE} {path}: no telescope: {error}") from None


def _of_this_process() -> Telescope:
    """Without it there is nothing that this process could do right."""
    file = os.environ.get(VARIABLE)
    try:
        return read_telescope(Path(file)) if file else DSA110
    except ConfigError as error:
        raise SystemExit(f"contimg: {error}") from None


TELESCOPE = _of_this_process()
