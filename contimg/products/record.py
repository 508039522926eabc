"""The last stage: a group's results into products.sqlite3. The queue's own rows come after, by the
logger plugin."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from astropy.utils.exceptions import AstropyUserWarning
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from contimg.calibration import registry
from contimg.chain import FIRST, LAST, STAGES, stages_where
from contimg.clock import now
from contimg.config import Config
from contimg.errors import ContimgError, ValidationError
from contimg.paths import Paths, lasting_files, set_name
from contimg.processes import RUN_ID
from contimg.products import publishing
from contimg.products.tables import (
    Base,
    Image,
    MeasurementSet,
    QaArtifact,
    note_stage,
    record_group,
)
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.store import db
from contimg.store.files import checksum, found_json

_IMAGE_TYPES = {"image.fits": "image", "pbcor.fits": "pbcor", "pb.fits": "pb"}
_CASA_TYPES = {"image": "image", "image.pbcor": "pbcor", "pb": "pb"}
_TIMES = ("start_mjd", "end_mjd", "mid_mjd")


def results_of(paths: Paths, group: str) -> dict[str, dict]:
    """Results of the stages that a group has been through, by stage; one that cannot be read is as
    if it were not there."""
    found = {}
    for stage in STAGES:
        if values := found_json(paths.result(group, stage)):
            found[stage] = values
    return found


def index_group(group: str, config: Config, known: Mapping[str, str] | None = None) -> dict:
    """Upsert everything known about a finished group; returns the result for `{group}.index.json`.

    known  checksums from an earlier time, which the files must still have; without them the images
           are read and verified
    """
    paths = Paths.of(config)
    results = results_of(paths, group)
    imaged, plots = results["image"], results["qa"]["artifacts"]
    files = [*imaged["images"].values(), *plots.values()]
    if measured := results.get("photometry", {}).get("table"):
        files.append(measured)
    if absent := [path for path in files if not Path(path).exists()]:
        raise ValidationError(
            f"group {group}: {absent} are not there; not indexed. Image it again."
        )
    size_of = verified_bytes if known is None else bytes_on_disk
    sizes = {path: size_of(Path(path)) for path in imaged["images"].values()}
    sums = {path: checksum(Path(path)) for path in files}
    if known is not None and sums != known:
        raise ValidationError(
            f"group {group}: its files are not those that were indexed: contimg reprocess {group} "
            "--from image"
        )
    ms = _measurement_set(paths, group, results)
    if ms.status == "ok":  # else it says too little about how much a group takes
        of_plots = sum(Path(path).stat().st_size for path in plots.values())
        ms.bytes = bytes_on_disk(paths.ms(group)) + sum(sizes.values()) + of_plots
    images = _images(paths, group, results, sizes, sums, config)
    artifacts = [
        QaArtifact(group_id=group, name=name, path=path, created_at=now(), checksum=sums[path])
        for name, path in plots.items()
    ]
    with db.writing(paths.products_db, Base) as session:
        record_group(session, ms, images, artifacts)
    seconds = {stage: values["seconds"] for stage, values in results.items() if stage != LAST}
    return {
        "images": len(images),
        "artifacts": len(artifacts),
        "stage_seconds": seconds,
        "bytes": ms.bytes,
        "checksums": sums,
        "runs": _runs(paths, results),
    }


def _measurement_set(paths: Paths, group: str, results: Mapping[str, Mapping]) -> MeasurementSet:
    """The row of a finished group's Measurement Set."""
    imaged = results["image"]
    return MeasurementSet(
        path=str(paths.ms(group)),
        group_id=group,
        start_mjd=imaged["start_mjd"],
        end_mjd=imaged["end_mjd"],
        mid_mjd=results[FIRST]["mid_mjd"],
        processed_at=now(),
        status="ok" if paths.ms(group).exists() else "pruned",
        reason=None,
        stage=LAST,
        stage_updated_at=now(),
        cal_applied=results["caltables"]["set_name"],
        imagename=imaged["images"].get("pbcor.fits") or imaged["images"]["image.pbcor"],
    )


def _images(
    paths: Paths,
    group: str,
    results: Mapping[str, Mapping],
    sizes: Mapping[str, int],
    sums: Mapping[str, str],
    config: Config,
) -> list[Image]:
    """The rows of a finished group's images."""
    imaged, chosen, used = results["image"], results["caltables"], results["image"].get("used", {})
    common = _image_columns(imaged) | {
        "group_id": group,
        "ms_path": str(paths.ms(group)),
        "created_at": now(),
        "subbands": len(results[FIRST]["subbands"]),
        "cal_set": chosen["set_name"],
        "flux_scale": chosen["flux_scale"],
        "config": imaged["config"],
        "software": json.dumps(imaged["versions"]),
        "commit_id": imaged.get("commit"),
        "catalogues": json.dumps(imaged.get("catalogues")),
        "cal_checksums": " ".join(chosen.get("checksums", [])),
        "antennas_lost": ", ".join(used.get("antennas_lost", [])),
        "data_share": used.get("data_share"),
        "deleted_at": None,
    }
    common["set_status"] = publishing.set_status(
        common["cal_set"], common["cal_checksums"], publishing.known_sets(paths)
    )
    # With skip_fits the CASA images stand for the FITS files; the residual is a CASA image in
    # either case.
    types = _IMAGE_TYPES if "pbcor.fits" in imaged["images"] else _CASA_TYPES
    quick = "quick_" if imaged["mode"] == "quick" else ""
    images = []
    for suffix, kind in (types | {"residual": "residual"}).items():
        path = imaged["images"][suffix]
        why = publishing.unpublishable(common | {"type": quick + kind}, config.validation)
        images.append(
            Image(
                path=path,
                type=quick + kind,
                pbcor=kind == "pbcor",
                checksum=sums[path],
                bytes=sizes[path],
                unpublishable="; ".join(why) or None,
                **common,
            )
        )
    return images


def _image_columns(imaged: Mapping) -> dict:
    """What the image stage found, as columns."""
    names = (
        "beam_major_arcsec",
        "beam_minor_arcsec",
        "beam_pa_deg",
        "thermal_jy",
        "dynamic_range",
        "verdict",
        "science",
        "mode",
        "backend",
        "imsize",
        "cell_arcsec",
        "freq_hz",
        "bandwidth_hz",
        "start_mjd",
        "end_mjd",
        "exposure_s",
        "flagged",
        "diameter_deg",
    )
    check = imaged["catalogue"]
    of_check = (
        "flux_ratio",
        "flux_scatter",
        "offset_arcsec",
        "offset_east_arcsec",
        "offset_north_arcsec",
    )
    return (
        {name: imaged.get(name) for name in names}
        | {name: check.get(name) for name in of_check}
        | {
            "noise_jy": imaged["rms_jy"],
            "verdict_reasons": "; ".join(imaged["verdict_reasons"]),
            "centre_ra_deg": imaged["centre_deg"][0],
            "centre_dec_deg": imaged["centre_deg"][1],
            "expected_sources": check["expected"],
            "found_sources": check["found"],
        }
    )


def _runs(paths: Paths, results: Mapping[str, Mapping]) -> dict[str, str]:
    """The command of every run that made one of the results, as long as it is known."""
    names = {result.get("run") for result in results.values()} | {os.environ.get(RUN_ID)}
    snapshots = {name: paths.run_snapshot(name) for name in names if name}
    return {
        name: known.get("command", "")
        for name, path in sorted(snapshots.items())
        if (known := found_json(path))
    }


def note(config: Config, group: str, stage: str, reason: str | None = None) -> None:
    """Tell the index how far a Measurement Set is, or why it failed; nothing before there is
    one."""
    paths = Paths.of(config)
    converted = results_of(paths, group).get(FIRST, {})
    if not reason and (stage not in stages_where(uses_ms=True) or not paths.ms(group).exists()):
        return
    times = (
        dict.fromkeys(_TIMES)
        if not paths.ms(group).exists()
        else {name: converted.get(name) for name in _TIMES}
    )
    with db.writing(paths.products_db, Base) as session:
        note_stage(session, str(paths.ms(group)), group, stage, times, reason)


def remake(config: Config, say: Callable[[str], None]) -> None:
    """Finished groups that the queue does not know, and solved sets that the registry does not know
    (lost, or damaged and moved aside), get their rows again from their results."""
    paths = Paths.of(config)
    known, found = {table.set_name for table in registry.all_tables(paths.registry_db)}, {}
    for group in _with_result(paths, "register"):
        if known.isdisjoint({set_name(group, fast) for fast in (False, True)}):
            results = results_of(paths, group)
            if {"solve", "register"} <= results.keys():
                one, own = results["solve"], results.get("caltables", {})
                sums = own["checksums"] if own.get("set_name") == one["set_name"] else []
                found[one["set_name"]] = one | {"register": results["register"], "checksums": sums}
    if found and (again := registry.remake(paths.registry_db, found, config.calibration)):
        say(
            f"{paths.registry_db.name} did not know {len(again)} sets: they are in it again, from "
            "their results"
        )
    in_queue = moves.known_groups(paths.ingest_db, files=False)
    done = {
        group: results_of(paths, group)
        for group in _with_result(paths, LAST)
        if group not in in_queue
    }
    done = {group: results for group, results in done.items() if {FIRST, LAST} <= results.keys()}
    if done:
        with db.writing(paths.ingest_db, queue_tables.Base) as session:
            for group, results in done.items():
                moves.restore(session, group, results, config.ingest)
        say(
            f"{paths.ingest_db.name} did not know {len(done)} finished groups: they are in it "
            "again, from their results"
        )


def _with_result(paths: Paths, stage: str) -> list[str]:
    """Groups that have a result of a stage."""
    ending = f".{stage}.json"
    return sorted(
        path.name.removesuffix(ending)
        for path in paths.result("x", stage).parent.glob(f"[!.]*{ending}")
    )


def reconcile(config: Config, say: Callable[[str], None]) -> None:
    """Groups that are done but not in the index (it was lost, or restored from a copy) get their
    rows again."""
    paths = Paths.of(config)
    with db.writing(paths.products_db, Base) as session:
        indexed = set(session.scalars(select(Image.group_id).distinct()))
    done = {
        g
        for g, s in moves.known_groups(paths.ingest_db, files=False).items()
        if s.state == "completed"
    }
    for group in sorted(done - indexed):
        try:
            known = results_of(paths, group).get(LAST, {}).get("checksums")
            if known:
                index_group(group, config, known)
                say(f"group {group} was done, but not in {paths.products_db.name}: indexed again")
        except (ContimgError, SQLAlchemyError, KeyError, OSError, ValueError) as error:
            say(f"group {group} is done, but not in {paths.products_db.name}: {error}")


def verified_bytes(path: Path) -> int:
    """Read an image back, and say how large it is on disk; raises ValidationError unless it is
    whole.

    A FITS file has the checksums that it was written with; a CASA image can be opened and has
    values.
    """
    from astropy.io import fits  # runs need this module too, and start every few minutes

    remedy = "Image it again: contimg reprocess GROUP --from image"
    try:
        if path.suffix == ".fits":
            with warnings.catch_warnings():
                warnings.simplefilter("error", AstropyUserWarning)
                with fits.open(path, checksum=True) as hdus:
                    summed = all({"CHECKSUM", "DATASUM"} <= {*hdu.header} for hdu in hdus)
                    whole = summed and any(hdu.data is not None for hdu in hdus)
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
    size = 0
    for file in lasting_files(path):
        with suppress(FileNotFoundError):  # it is being replaced
            size += file.stat().st_size
    return size
