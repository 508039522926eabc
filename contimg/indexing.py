"""The last stage: a group's results into products.sqlite3. The queue's own rows come after, by the logger plugin."""

import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from contimg import db, products
from contimg.config import Config
from contimg.errors import ValidationError
from contimg.paths import STAGES, Paths, lasting_files
from contimg.stage import read_json

_IMAGE_TYPES = {"image.fits": "image", "pbcor.fits": "pbcor", "pb.fits": "pb"}
_CASA_TYPES = {"image": "image", "image.pbcor": "pbcor", "pb": "pb"}


def results_of(paths: Paths, group: str) -> dict[str, dict]:
    """Results of the stages that a group has been through, by stage."""
    return {s: read_json(paths.result(group, s)) for s in STAGES if paths.result(group, s).exists()}


def index_group(group: str, config: Config) -> dict:
    """Upsert everything known about a finished group; returns the result for `{group}.index.json`."""
    paths = Paths.of(config)
    results = results_of(paths, group)
    imaged = results["image"]
    # With skip_fits the CASA images stand for the FITS files; the residual is a CASA image in either case.
    types = _IMAGE_TYPES if "pbcor.fits" in imaged["images"] else _CASA_TYPES
    types = types | {"residual": "residual"}
    quick = "quick_" if imaged["mode"] == "quick" else ""
    images = [(quick + kind, imaged["images"][suffix]) for suffix, kind in types.items()]
    artifacts = {name: Path(path) for name, path in results["qa"]["artifacts"].items()}
    absent = [path for path in [*(p for _, p in images), *map(str, artifacts.values())] if not Path(path).exists()]
    if absent:
        raise ValidationError(f"group {group}: {absent} are not there; not indexed. Image it again.")
    ms = {
        "path": str(paths.ms(group)), "start_mjd": imaged["start_mjd"], "end_mjd": imaged["end_mjd"],
        "mid_mjd": results["convert"]["mid_mjd"], "processed_at": db.now(), "status": "ok", "stage": "index",
        "stage_updated_at": db.now(), "cal_applied": results["caltables"]["set_name"],
        "imagename": dict(images)[f"{quick}pbcor"],
    }  # fmt: skip
    image_bytes = {path: verified_bytes(Path(path)) for path in imaged["images"].values()}
    seconds = {stage: values["seconds"] for stage, values in results.items() if stage != "index"}
    with db.writing(paths.products_db, products.Base) as session:
        products.record_group(session, group, ms, images, imaged, artifacts)
    return {"images": len(images), "artifacts": len(artifacts), "stage_seconds": seconds, "image_bytes": image_bytes}


def verified_bytes(path: Path) -> int:
    """Read an image back, and say how large it is on disk; raises ValidationError unless it is whole.

    A FITS file has the checksums that it was written with; a CASA image can be opened and has values.
    """
    remedy = "Image it again: contimg reprocess GROUP --from image"
    try:
        if path.suffix == ".fits":
            with warnings.catch_warnings():
                warnings.simplefilter("error", AstropyUserWarning)
                with fits.open(path, checksum=True) as hdus:
                    header = hdus[0].header
                    whole = hdus[0].data is not None and "CHECKSUM" in header and "DATASUM" in header
        else:
            from casacore.images import image  # not in the processes that only look at the sizes

            whole = bool(np.isfinite(image(str(path)).getdata()).any())
    except (AstropyUserWarning, OSError, ValueError, TypeError, RuntimeError) as error:
        raise ValidationError(f"{path}: {error}. {remedy}") from None
    if not whole:
        raise ValidationError(f"{path} holds no image, or was written without checksums. {remedy}")
    return bytes_on_disk(path)


def bytes_on_disk(path: Path) -> int:
    """Size of a file, or of all files in a folder; 0 when it is not there."""
    return sum(f.stat().st_size for f in lasting_files(path))
