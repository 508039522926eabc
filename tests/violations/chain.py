"""One observation through the stages in this process: a calibrator group and a target, with what is
wrong with either; and what is said of them."""

from dataclasses import dataclass
from pathlib import Path

from bench.full_size import convert_and_concat
from contimg.calibration import words as refinement_words
from contimg.config import CataloguesConfig, Config, FlaggingConfig
from contimg.paths import Paths
from contimg.simulate import Simulation, simulate_group
from contimg.stages.apply import apply_set
from contimg.stages.image import image_group
from contimg.stages.prepare import prepare
from contimg.stages.solve import solve_group
from contimg.store.files import checksum, read_json, remove
from contimg.visibilities import flag_versions
from contimg.visibilities.uvh5 import inspect, parse_name
from tests.conftest import STATIONS
from tests.workflow.conftest import CALIBRATOR_START, TARGET_START

_SMALL = {"antennas": 48, "channels": 6, "gain_seed": 7, "sefd_jy": 8016.0, "faint": 100}


@dataclass(frozen=True)
class Outcome:
    """Of a calibrator and a target: why the set was refused (empty: it was not), the image's
    verdict, whether it is science, and every word of warning."""

    refused: tuple[str, ...]
    verdict: str
    science: bool
    words: tuple[str, ...]
    image: dict
    applied: dict
    converted: dict
    chosen: dict

    @property
    def said(self) -> str:
        """All of it, in a line each."""
        return "\n".join((*self.refused, *self.words))


def group(folder: Path, start: str, sky: list[dict], **options) -> tuple[Path, float]:
    """A simulated group's prepared Measurement Set, and the declination in its header."""
    sim = Simulation(**{"start": start} | _SMALL | options)
    paths = simulate_group(folder, sim, sky, STATIONS)
    ms = folder / f"{start}.ms"
    remove(ms)
    convert_and_concat({parse_name(p.name)[1]: p for p in paths}, folder / "staging", ms, 2)
    app_dec_deg = inspect(paths[0]).app_dec_deg
    for path in paths:
        path.unlink()
    prepare(ms, FlaggingConfig(), CataloguesConfig().stations)
    flag_versions.save(ms)
    return ms, app_dec_deg


def calibrate(folder: Path, sky: list[dict], config: Config, **options) -> dict:
    """The result of `solve` for a calibrator group."""
    ms, app_dec_deg = group(folder, CALIBRATOR_START, sky, **{"seed": 11} | options)
    return solve_group(ms, CALIBRATOR_START, app_dec_deg, config, folder / "casa.log")


def observe(
    folder: Path,
    sky: list[dict],
    config: Config,
    solved: dict,
    start: str = TARGET_START,
    **options,
) -> Outcome:
    """A target, with the set that was solved, however good that is."""
    ms, app_dec_deg = group(folder, start, sky, **{"seed": 12} | options)
    chosen = {
        "set_name": CALIBRATOR_START,
        "set_mid_mjd": 0.0,
        "cal_field": "",
        "flux_scale": "",
        "science": True,
        "tables": solved["tables"],
        "checksums": [checksum(Path(path)) for path in solved["tables"].values()],
    }
    applied = apply_set(ms, start, chosen, app_dec_deg, config, None, solved)
    refined = read_json(Paths.of(config).result(start, "refine"))
    converted = {"app_dec_deg": app_dec_deg, "subbands": list(range(16))}
    image = image_group(ms, start, config, converted, chosen, 2, folder / "log", applied, refined)
    words = (*image["verdict_reasons"], *refinement_words.summary(refined))
    refused = tuple(solved["problems"])
    return Outcome(
        refused, image["verdict"], image["science"], words, image, applied, converted, chosen
    )
