"""A map of a mosaic for sky browsers (HiPS 1.0; Fernique et al. 2015): the rule `hips`."""

import logging
from pathlib import Path

import numpy as np

from contimg.config import Config
from contimg.paths import Paths
from contimg.products.mosaics import DAY, DEEP, tract_and_day
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.stages.job import Job
from contimg.store.files import publish, read_json, remove
from contimg.telescope import TELESCOPE

log = logging.getLogger(__name__)
_TILE = 512
_ORDER_0_DEG = 58.6323  # a side of one of the twelve pixels of order 0


def run(job: Job) -> dict:
    """The work of the rule; returns its result."""
    return make_map(job.config, job.group, job.threads)


def order_of(cell_arcsec: float) -> int:
    """The order whose pixels are nearest to an image's."""
    wanted = _ORDER_0_DEG * 3600 / _TILE / cell_arcsec
    return int(np.clip(np.round(np.log2(wanted)), 3, 11))


def make_map(config: Config, name: str, threads: int) -> dict:
    """Make the map of a tract's deep image (`TRACT`) or of its day (`TRACT.SDAY`)."""
    from reproject import reproject_interp
    from reproject.hips import reproject_to_hips

    paths, (tract, day) = Paths.of(config), tract_and_day(name)
    made = read_json(paths.result(name, DAY if day else DEEP))
    folder = paths.hips(name)
    about = {"tract": tract, "sday": int(day) if day else None}
    if not made["images"]:
        remove(folder)
        return about | {"skipped": "there is no mosaic"}
    partial = folder.with_name(f".{name}.partial")
    remove(partial)
    folder.parent.mkdir(parents=True, exist_ok=True)
    noise_jy = made["noise_jy"] or made["expected_noise_jy"]
    order = order_of(config.mosaics.cell_arcsec)
    words = {
        "creator_did": f"ivo://{TELESCOPE.authority}/contimg?hips/{name}",
        "obs_title": f"{TELESCOPE.name} {name}",
        "obs_regime": "Radio",
        "em_min": SPEED_OF_LIGHT_M_S / (made["freq_hz"] + made["bandwidth_hz"] / 2),
        "em_max": SPEED_OF_LIGHT_M_S / (made["freq_hz"] - made["bandwidth_hz"] / 2),
        "t_min": made["begin_mjd"],
        "t_max": made["end_mjd"],
        "hips_pixel_cut": f"{-2 * noise_jy:.4g} {30 * noise_jy:.4g}",
    }
    reproject_to_hips(
        Path(made["images"]["fits"]),
        coord_system_out="equatorial",
        reproject_function=reproject_interp,
        output_directory=str(partial),
        level=order,
        tile_size=_TILE,
        threads=threads,
        properties=words,
    )
    publish(partial, folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    log.info("%s: %d tiles to order %d", name, len(files), order)
    return about | {
        "order": order,
        "noise_jy": noise_jy,
        "tiles": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "folder": str(folder),
    }
