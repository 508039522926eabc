"""The image stage: from a group's calibrated Measurement Set to its published products and their numbers."""

import logging
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from contimg.config import Config
from contimg.errors import ImagingError
from contimg.imaging import ImageRequest, backend, products
from contimg.paths import Paths
from contimg.skymodel import read_catalogue

log = logging.getLogger(__name__)


def image_group(
    ms: Path, group: str, config: Config, converted: Mapping, chosen: Mapping, threads: int, logfile: Path | None
) -> dict:
    """Image `ms` with the configured backend and publish the products. Returns the result for `{group}.image.json`.

    converted, chosen  results of the convert and caltables stages: pointing, subbands, calibration set
    """
    options, paths = config.imaging, Paths.of(config)
    folder = paths.image(group, "image").parent
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{group}.*.partial"):
        products.mset.remove(leftover)  # of an attempt that was killed
    grid, pb, summary = products.primary_beam(ms, options, converted["app_dec_deg"])
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{group}.", suffix=".partial") as work:
        request = ImageRequest(ms, options, Path(work), threads, logfile)
        result = backend(options.backend)(request)
        numbers = products.noise_and_peak(result, pb)
        if not numbers["rms_jy"] > 0:
            raise ImagingError(
                f"{ms}: the image is blank (residual rms {numbers['rms_jy']} Jy/beam). Nothing to publish."
            )
        catalogue = read_catalogue(config.catalogues.sky)
        check, table = products.compare_catalogue(
            result, pb, grid, numbers["rms_jy"], catalogue, summary["freq_hz"], options
        )
        keywords = {
            "OBJECT": group, "RMS": numbers["rms_jy"], "NSUBBAND": len(converted["subbands"]),
            "CALSET": chosen["set_name"], "CALMJD": chosen["set_mid_mjd"], "FLUXCAL": chosen["cal_field"],
            "FLUXSCAL": chosen["flux_scale"], "IMAGER": options.backend, "IMGMODE": options.mode,
            "QUALITY": "SCIENCE" if chosen["science"] else "NON_SCIENCE",
            "CONFIG": config.digest(), "SOFTWARE": f"contimg {version('contimg')}",
        }  # fmt: skip
        published = products.write_products(
            lambda suffix: paths.image(group, suffix), Path(work), grid, result, pb, summary, options, keywords
        )
    log.info("catalogue: %s", check)
    beam = result.beam
    return {
        "backend": options.backend,
        "mode": options.mode,
        "beam_major_arcsec": float(beam.major_arcsec),
        "beam_minor_arcsec": float(beam.minor_arcsec),
        "beam_pa_deg": float(beam.pa_deg),
        **numbers,
        **result.notes,
        "imsize": options.imsize,
        "cell_arcsec": options.cell_arcsec,
        "centre_deg": list(grid.centre_deg),
        "freq_hz": summary["freq_hz"],
        "start_mjd": float(summary["time_mjd"][0] - summary["integration_s"] / 2 / 86400),
        "end_mjd": float(summary["time_mjd"][-1] + summary["integration_s"] / 2 / 86400),
        "flagged": summary["flagged"],
        "catalogue": check,
        "sources": table.round(6).to_dict("records"),
        "images": {suffix: str(path) for suffix, path in published.items()},
    }
