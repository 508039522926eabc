"""The primary beam of a group, for every stage that needs it."""

from contimg.calibration.beams import choose_beam
from contimg.config import Config
from contimg.paths import Paths
from contimg.sky.beam import Beam


def beam_of(config: Config, app_dec_deg: float, mid_mjd: float) -> tuple[Beam, dict]:
    """The beam that the configuration names for a group, and what is said of it
    (`calibration.beams.choose_beam`)."""
    return choose_beam(
        config.imaging,
        Paths.of(config).beams,
        app_dec_deg,
        mid_mjd,
        config.calibration.dec_tolerance_deg,
    )
