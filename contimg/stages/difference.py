"""What a day of a tract shows that its other days do not: what the rule `difference` makes."""

import logging
from pathlib import Path

from astropy.io import fits

from contimg.config import Config
from contimg.errors import ValidationError
from contimg.imaging.interface import Beam
from contimg.mosaics.combine import without
from contimg.mosaics.difference import find_changes
from contimg.mosaics.files import read_mosaic
from contimg.mosaics.tracts import tract_of
from contimg.paths import Paths
from contimg.plots.mosaic import plot_difference
from contimg.plots.style import save_plot
from contimg.products.mosaics import ALONE, DAY, DEEP, tract_and_day
from contimg.stages.deep import SUM_OF
from contimg.stages.job import Job
from contimg.stages.mosaic import checksum_of
from contimg.store.files import read_json

log = logging.getLogger(__name__)
_MOST = 200  # of more, the image is at fault


def run(job: Job) -> dict:
    """The work of the rule; returns its result."""
    name, day = tract_and_day(job.group)
    return compare(job.config, name, day)


def compare(config: Config, name: str, day: str) -> dict:
    """Compare a day with all others that the deep image has; returns the result."""
    paths, tract = Paths.of(config), tract_of(name, config.mosaics)
    mine = read_json(paths.result(f"{name}.{day}", DAY))
    deep = read_json(paths.result(name, DEEP))
    about = {"tract": name, "strip": tract.strip, "sday": int(day), "changes": []}
    if not mine["images"]:
        return about | {"skipped": "the day has no mosaic"}
    used = {one: values["in_sum"] for one, values in deep["inputs"].items() if values["in_sum"]}
    held = used.pop(day, None)
    if held and held != checksum_of(mine):
        return about | {"skipped": "the deep image has the day as it was before"}
    files = [Path(path) for path in mine["images"].values()]
    if not all(path.exists() for path in files):
        raise ValidationError(f"{files[0]}: retention deleted it; nothing to compare")
    if not used:
        return about | {"skipped": ALONE}
    ours, whole = (
        read_mosaic(one["images"]["fits"], one["images"]["weight.fits"]) for one in (mine, deep)
    )
    if any(fits.getheader(path)[SUM_OF] != deep["sum_of"] for path in deep["images"].values()):
        raise ValidationError(
            f"{deep['images']['fits']}: it changed while it was read (another run?): run it again"
        )
    others = without(whole, ours) if held else whole
    beam = Beam(*mine["beam_arcsec"])
    table, difference = find_changes(
        day=ours,
        others=others,
        beam=beam,
        cell_arcsec=config.mosaics.cell_arcsec,
        sigma=config.mosaics.candidate_sigma,
    )
    table["snr"] = (table.flux_jy / table.error_jy).abs()
    table = table.sort_values("snr", ascending=False)
    ra, dec = tract.wcs().wcs_pix2world(table.x.values, table.y.values, 0)
    table.insert(0, "ra_deg", ra)
    table.insert(1, "dec_deg", dec)
    title = f"{name} day {day}, less {len(used)} other days"
    save_plot(
        lambda: plot_difference(title, difference, ours.weight, others.weight, table),
        paths.qa(f"{name}.{day}", "difference"),
    )
    log.info("%s day %s: %d new, %d changes in all", name, day, table.new.sum(), len(table))
    return about | {
        "others": sorted(used),
        "mid_mjd": (mine["begin_mjd"] + mine["end_mjd"]) / 2,
        "found": len(table),
        "too_many": len(table) > _MOST,
        "changes": table.head(_MOST).round(7).to_dict("records"),
    }
