"""The stage `qa`: plots of one group."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contimg.calibration import tables as caltables
from contimg.config import Config
from contimg.paths import GROUP_PLOTS, Paths
from contimg.plots.calibration import draw_bandpass, draw_gains
from contimg.plots.flags import draw_flags
from contimg.plots.image import draw_beam, draw_catalogue, draw_image, draw_residual, draw_thumbnail
from contimg.plots.refinement import draw_neighbours, draw_refinement
from contimg.plots.style import DPI, coarse_image, save_plot
from contimg.plots.visibilities import draw_spectra, draw_uv
from contimg.stages.job import Job
from contimg.store.files import found_json
from contimg.visibilities import measurement_set as mset


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    imaged, chosen, prepared, refined = map(
        job.result_of, ("image", "caltables", "prepare", "refine")
    )
    registered = found_json(job.paths.result(job.group, "register"))
    artifacts, failed = plot_group(
        job.group, job.config, imaged, chosen, prepared, refined, registered
    )
    return {"artifacts": artifacts, "not_drawn": failed}


def plot_group(
    group: str,
    config: Config,
    imaged: Mapping,
    chosen: Mapping,
    prepared: Mapping,
    refined: Mapping,
    registered: Mapping | None = None,
) -> tuple[dict, dict[str, str]]:
    """Draw every plot of a group; returns their paths by name, and why those are not drawn that
    could not be.

    registered  result of the register stage, of a calibrator group
    """
    paths, failed = Paths.of(config), {}
    artifacts = {name: paths.qa(group, name) for name in GROUP_PLOTS}
    artifacts["image"].parent.mkdir(parents=True, exist_ok=True)
    ms, tables = paths.ms(group), chosen["tables"]
    title = (
        f"{group}  ·  {imaged['freq_hz'] / 1e9:.3f} GHz  ·  calibrated by "
        f"{chosen['cal_field']} ({chosen['set_name']})"
    )
    picture = functools.cache(lambda: coarse_image(Path(imaged["images"]["image.pbcor"])))
    seen = functools.cache(lambda: (mset.read_observation(ms), mset.read_rows(ms)))

    def names() -> dict[int, str]:
        return dict(enumerate(seen()[0].antenna_names))

    def freq_mhz() -> np.ndarray:
        return seen()[0].freq_hz / 1e6

    def own_gains() -> caltables.Solutions | None:
        return caltables.read(Path(refined["table"])) if refined.get("table") else None

    drawn = {
        "image": lambda: draw_image(picture(), imaged, title),
        "thumbnail": lambda: draw_thumbnail(picture(), imaged),
        "catalogue": lambda: draw_catalogue(imaged, group),
        "residual": lambda: draw_residual(
            coarse_image(Path(imaged["images"]["residual"]), signed=True), imaged, group
        ),
        "beam": lambda: draw_beam(coarse_image(Path(imaged["images"]["pb"])), imaged, group),
        "uv": lambda: draw_uv(ms, *seen(), group),
        "spectra": lambda: draw_spectra(ms, *seen(), group),
        "bandpass": lambda: draw_bandpass(
            caltables.read(Path(tables["B"])), freq_mhz(), names(), chosen
        ),
        "gains": lambda: draw_gains(caltables.read(Path(tables["G"])), names(), chosen),
        "flags": lambda: draw_flags(prepared, freq_mhz(), group),
        "refinement": lambda: draw_refinement(refined, own_gains(), seen()[0].antenna_names, group),
    }
    if registered and (registered.get("gates") or {}).get("neighbours"):
        drawn["neighbours"] = lambda: draw_neighbours(registered)
        artifacts["neighbours"] = paths.qa(group, "neighbours")
    for name, draw in drawn.items():
        if why := save_plot(draw, artifacts[name], dpi=40 if name == "thumbnail" else DPI):
            failed[name] = why
    if paths.qa(group, "calibration").exists():  # drawn when its own set was solved
        artifacts["calibration"] = paths.qa(group, "calibration")
    return {name: str(path) for name, path in artifacts.items()}, failed
