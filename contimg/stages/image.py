"""The stage `image`: from a group's calibrated Measurement Set to its published products and their
numbers."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from contimg.config import Config, ImagingConfig
from contimg.errors import ImagingError, ValidationError
from contimg.findings import Finding, of_level
from contimg.imaging import files
from contimg.imaging.averaging import expectations
from contimg.imaging.bright import Subtracted, bright_sources, subtract
from contimg.imaging.interface import Deconvolved, Diverged, ImageRequest, backend, robust_rms
from contimg.imaging.restoring import add_points, expected_beam, restore
from contimg.imaging.stokes import StokesI, read_stokes_i
from contimg.imaging.validation import assess, compare_catalogue, used_of
from contimg.paths import Paths
from contimg.products.publishing import ACTIVE, unpublishable
from contimg.sky.calibrators import mean_beam, read_sky
from contimg.sky.catalogues import Sky
from contimg.sky.skymodel import as_sources
from contimg.stages.job import Job
from contimg.store.files import remove
from contimg.store.identity import made_by
from contimg.visibilities.uvh5 import changed_since

log = logging.getLogger(__name__)
_BRIGHT_WITHIN_DEG = 6.0
_MOST_AROUND = 150  # sources, the apparently brightest, that the fit of bright ones knows of


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    converted, chosen, applied = map(job.result_of, ("convert", "caltables", "apply"))
    if applied["set_name"] != chosen["set_name"]:
        raise ValidationError(
            f"group {job.group}: applied another set than {chosen['set_name']}. contimg reprocess "
            f"{job.group} --from apply"
        )
    return image_group(
        job.ms, job.group, job.config, converted, chosen, job.threads, job.logfile, applied
    )


def image_group(
    ms: Path,
    group: str,
    config: Config,
    converted: Mapping,
    chosen: Mapping,
    threads: int,
    logfile: Path | None,
    applied: Mapping | None = None,
) -> dict:
    """Image `ms` with the configured backend and publish the products. Returns the result for
    `{group}.image.json`.

    converted, chosen  results of the convert and caltables stages: pointing, subbands, calibration
                       set
    applied            result of the apply stage: what its gates found
    """
    options, paths = effective_options(config.imaging), Paths.of(config)
    folder = paths.image(group, "image").parent
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{group}.*.partial"):
        remove(leftover)  # of an attempt that was killed
    stokes, catalogue = (
        read_stokes_i(ms, converted["app_dec_deg"], options.uvrange),
        read_sky(config),
    )
    taken, absent = _subtract_bright(stokes, catalogue, options)
    grid, pb, summary = files.primary_beam(stokes, options)
    used = used_of(stokes, summary)
    all_antennas = expected_beam(stokes.rows, stokes.observation.freq_hz, options)
    gated = [
        *converted.get("findings", []),
        *((applied or {}).get("gates") or {}).get("findings", []),
    ]
    if changed := changed_since(converted.get("seen", {})):
        words = (
            f"{', '.join(changed)}: changed after the image's data were read. To use it: "
            f"contimg reprocess {group}"
        )
        gated.append(Finding("raw_changed", "warn", words).as_json())
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{group}.", suffix=".partial") as work:
        # wgridder says it itself
        expected = {} if options.backend == "wgridder" else expectations(stokes, options)
        inputs = backend(options.backend).prepare(stokes, options, Path(work))
        del stokes  # a gigabyte
        result, cleaned = _clean(ImageRequest(inputs, options, Path(work), threads, logfile))
        image = restore(result.model, result.residual, result.beam, options.cell_arcsec, threads)
        _put_back(image, result, taken, grid, options)
        numbers = {
            "rms_jy": robust_rms(result.residual[pb >= 0.5]),
            "peak_jy": float(np.nanmax(image)),
        }
        if not numbers["rms_jy"] > 0:
            raise ImagingError(
                f"{ms}: the image is blank (residual rms {numbers['rms_jy']} Jy/beam). Nothing to "
                "publish."
            )
        result.notes = expected | result.notes
        numbers["thermal_jy"] = result.notes.pop("thermal_jy")
        numbers["dynamic_range"] = numbers["peak_jy"] / numbers["rms_jy"]
        diagonal_deg = grid.npix * grid.cell_deg * np.sqrt(0.5)
        in_image = catalogue.within(*grid.centre_deg, diagonal_deg, numbers["rms_jy"])
        check, table = compare_catalogue(
            image, result.beam, pb, grid, numbers["rms_jy"], in_image, summary["freq_hz"], options
        )
        judged, findings = assess(
            numbers, check, cleaned, used, result.beam, all_antennas, gated, config.validation
        )
        reasons = [
            words for level in ("fail", "unverified", "warn") for words in of_level(findings, level)
        ]
        science = chosen["science"] and options.mode == "full" and not of_level(gated, "fail")
        as_row = {
            "type": "pbcor",
            "mode": options.mode,
            "science": science,
            "verdict": judged,
            "set_status": ACTIVE,
        }
        unfit = unpublishable(as_row | {"deleted_at": None}, config.validation)
        origin = made_by(config)
        keywords = {
            "OBJECT": group,
            "RMS": numbers["rms_jy"],
            "THERMAL": numbers["thermal_jy"],
            "NSUBBAND": len(converted["subbands"]),
            "CALSET": chosen["set_name"],
            "CALMJD": chosen["set_mid_mjd"],
            "FLUXCAL": chosen["cal_field"],
            "FLUXSCAL": chosen["flux_scale"],
            "IMAGER": options.backend,
            "IMGMODE": options.mode,
            "QUALITY": "SCIENCE" if science else "NON_SCIENCE",
            "VERDICT": judged,
            "PUBLISH": not unfit,
            "SETSTAT": ACTIVE,
            "CLEANED": cleaned,
            "CONFIG": origin["config"],
            "SOFTWARE": f"contimg {origin['version']}",
            "COMMIT": origin["commit"],
            "SKYCAT": origin["catalogues"]["sky"][:16],
            "CALLIST": origin["catalogues"]["calibrators"][:16],
            "STATIONS": origin["catalogues"]["stations"][:16],
            "ANTENNAS": len(used.antennas),
            "DATAFRAC": round(used.data, 4),
        }
        published = files.write_products(
            lambda suffix: paths.image(group, suffix, options.mode == "quick"),
            Path(work),
            grid,
            image,
            result,
            pb,
            summary,
            options,
            keywords,
        )
    log.info("%s %s; catalogue: %s", judged, reasons, check)
    beam, half_day = result.beam, summary["integration_s"] / 2 / 86400
    return {
        "backend": options.backend,
        "mode": options.mode,
        "science": science,
        "cleaned": cleaned,
        "beam_major_arcsec": float(beam.major_arcsec),
        "beam_minor_arcsec": float(beam.minor_arcsec),
        "beam_pa_deg": float(beam.pa_deg),
        **numbers,
        **result.notes,
        "imsize": options.imsize,
        "cell_arcsec": options.cell_arcsec,
        "centre_deg": list(grid.centre_deg),
        "freq_hz": summary["freq_hz"],
        "start_mjd": float(summary["time_mjd"][0] - half_day),
        "end_mjd": float(summary["time_mjd"][-1] + half_day),
        "flagged": summary["flagged"],
        "bandwidth_hz": summary["bandwidth_hz"],
        "exposure_s": summary["exposure_s"],
        "diameter_deg": 2
        * grid.cell_deg
        * float(np.sqrt((pb >= options.beam_limit).sum() / np.pi)),
        "subtracted": [one.summary for one in taken],
        "bright_not_found": absent,
        "verdict": judged,
        "verdict_reasons": reasons,
        "findings": [one if isinstance(one, Mapping) else one.as_json() for one in findings],
        "unpublishable": unfit,
        "used": used.as_json(),
        "expected_beam_arcsec": all_antennas
        and [all_antennas.major_arcsec, all_antennas.minor_arcsec],
        "catalogue_problems": list(catalogue.problems),
        "catalogue": check,
        "sources": table.round(6).to_dict("records"),
        "images": {suffix: str(path) for suffix, path in published.items()},
    }


def effective_options(options: ImagingConfig) -> ImagingConfig:
    """What quick mode makes of the options: a small image of the half-power beam, tapered to its
    cells."""
    if options.mode != "quick":
        return options
    imsize = min(options.imsize, 512)
    cell_arcsec = max(options.cell_arcsec, 2.9 * 3600 / imsize)
    return options.model_copy(
        update={
            "imsize": imsize,
            "cell_arcsec": cell_arcsec,
            "niter": min(options.niter, 300),
            "weighting": "briggs",
            "robust": 0.0,
            "taper_arcsec": max(options.taper_arcsec or 0, 2.5 * cell_arcsec),
            "max_major_cycles": 3,
        }
    )


def _subtract_bright(
    stokes: StokesI, sky: Sky, options: ImagingConfig
) -> tuple[list[Subtracted], list[str]]:
    if options.subtract_above_jy is None:
        return [], []
    centre = stokes.observation.phase_centre_deg
    # no beam makes a source brighter
    least_jy = min(options.subtract_above_jy, options.subtract_outside_above_jy)
    near = as_sources(sky.within(*centre, _BRIGHT_WITHIN_DEG, least_jy))
    bright = bright_sources(near, stokes, options)
    if not bright:
        return [], []
    around = sky.within(*centre, _BRIGHT_WITHIN_DEG)
    apparent_jy = around.flux_jy.values * mean_beam(
        around.ra_deg.values, around.dec_deg.values, *centre
    )
    rest = as_sources(around.iloc[np.argsort(-apparent_jy)[:_MOST_AROUND]])
    return subtract(bright, [one for one in rest if one not in bright], stokes)


def _clean(request: ImageRequest) -> tuple[Deconvolved, str]:
    """As asked; a clean that diverges once more with safer settings; else the dirty image. And
    which of these it is."""
    options = request.options
    imager = backend(options.backend)
    safer = options.model_copy(
        update={
            "gain": options.gain / 3,
            "mask_sigma": 1.5 * options.mask_sigma,
            "threshold_sigma": 2 * options.threshold_sigma,
        }
    )
    for tried, what in ((options, "as asked"), (safer, "safer settings")):
        try:
            return imager.deconvolve(replace(request, options=tried)), what
        except Diverged as error:
            log.warning("the clean diverged (%s): %s", what, error)
            for leftover in request.workdir.iterdir():
                if leftover != request.inputs:
                    remove(leftover)
    dirty = options.model_copy(update={"niter": 0})
    return imager.deconvolve(replace(request, options=dirty)), "dirty image"


def _put_back(
    image: np.ndarray, result: Deconvolved, taken: Sequence[Subtracted], grid, options
) -> None:
    """Subtracted sources inside the image at their mean apparent flux."""
    places = [
        (*grid.wcs().wcs_world2pix(one.source.ra_deg, one.source.dec_deg, 0), one) for one in taken
    ]
    inside = [
        (float(x), float(y), one)
        for x, y, one in places
        if np.isfinite([x, y]).all() and min(x, y) >= 0 and max(x, y) <= grid.npix - 1
    ]
    for x, y, one in inside:
        result.model[round(x), round(y)] += one.mean_apparent_jy
        one.summary["put_back"] = True
    add_points(
        image,
        [(x, y, one.mean_apparent_jy) for x, y, one in inside],
        result.beam,
        options.cell_arcsec,
    )
