"""The stage `image`: from a group's calibrated Measurement Set to its published products and their
numbers."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.config import Config, ImagingConfig
from contimg.errors import ImagingError, ValidationError
from contimg.findings import Finding, of_level
from contimg.imaging import files
from contimg.imaging.averaging import Averaged, average
from contimg.imaging.bright import Subtracted, bright_sources, subtract
from contimg.imaging.fringes import fringe_power, judge_fringes
from contimg.imaging.interface import Beam, Deconvolved, Diverged, ImageRequest, backend, robust_rms
from contimg.imaging.places import beam_of_fluxes, frame_of_offsets
from contimg.imaging.plane import Plane, between_grids
from contimg.imaging.polarised import judge_q, noise_of_q
from contimg.imaging.restoring import expected_beam, restore
from contimg.imaging.smearing import Smeared
from contimg.imaging.spectra import LEAST_SNR, MOST_SOURCES, InBand
from contimg.imaging.stokes import StokesI, read_stokes_i
from contimg.imaging.validation import assess, compare_catalogue, search_sky, used_of
from contimg.paths import Paths
from contimg.products.publishing import ACTIVE, unpublishable
from contimg.sky.calibrators import mean_beam, read_corrected
from contimg.sky.catalogues import Sky
from contimg.sky.skymodel import Source, as_sources
from contimg.stages.beams import beam_of
from contimg.stages.job import Job
from contimg.store.files import remove
from contimg.store.identity import made_by
from contimg.visibilities.measurement_set import DAY_S
from contimg.visibilities.uvh5 import changed_since

log = logging.getLogger(__name__)
_BRIGHT_WITHIN_DEG = 6.0
_LONGEST_WORDS = 60  # of a header's keyword
# In headers: the error of the scale that was applied; both scales, the set's being 1.
_SCALE_KEYWORDS = {
    "FLUXERR": "error",
    "FLUXSET": "set",
    "FLUXCATL": "catalogue",
    "FLUXCERR": "catalogue_error",
    "FLUXSERR": "set_error",
}
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
        job.ms,
        job.group,
        job.config,
        converted,
        chosen,
        job.threads,
        job.logfile,
        applied,
        job.result_of("refine"),
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
    refined: Mapping | None = None,
) -> dict:
    """Image `ms` with the configured backend and publish the products. Returns the result for
    `{group}.image.json`.

    converted, chosen  results of the convert and caltables stages: pointing, subbands, calibration
                       set
    applied, refined   results of the apply stage: what its gates found, the group's own gains
    """
    options, paths = effective_options(config.imaging), Paths.of(config)
    folder = _cleared_folder(paths, group)
    stokes = read_stokes_i(ms, converted["app_dec_deg"], options.uvrange)
    beam, of_beam = beam_of(config, stokes.app_dec_deg, stokes.rows.time_mjd.mean())
    stokes = replace(stokes, beam=beam)
    catalogue = read_corrected(config.catalogues, config.calibration)
    averaged = average(stokes, options)
    own = [
        Source.power_law(f"own {k}", **one)
        for k, one in enumerate((refined or {}).get("own_sources", []))
    ]
    taken, absent = _subtract_bright(averaged, stokes, catalogue, options, own)
    grid, pb, summary = files.primary_beam(stokes, averaged, options)
    of_q, in_band = noise_of_q(stokes, threads), InBand.of(stokes, averaged)
    smeared = Smeared.of(stokes, averaged, *grid.axes_lm())
    used = used_of(stokes, summary)
    all_antennas = expected_beam(stokes.rows, stokes.observation.freq_hz, options)
    gated = _found_before(group, converted, applied or {})
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{group}.", suffix=".partial") as work:
        inputs = backend(options.backend).prepare(averaged, stokes, Path(work))
        expected = averaged.notes()
        del stokes, averaged  # a gigabyte
        result, cleaned = _clean(ImageRequest(inputs, options, Path(work), threads, logfile))
        result.notes = expected | result.notes
        smearing = smeared.left(result.beam, *grid.axes_lm())
        few, _ = files.few_pixels(grid)
        of_dirty = smeared.left_of_dirty(*few.axes_lm())
        cleaned_jy = result.components
        result.components = np.vstack([cleaned_jy, _put_back(taken, grid, grid, smearing)])
        as_dirty = np.vstack([cleaned_jy, _put_back(taken, grid, few, of_dirty)])
        image = restore(
            residual=result.residual,
            components=result.components,
            beam=result.beam,
            cell_arcsec=options.cell_arcsec,
        )
        numbers = _numbers(ms, image, result, pb)
        check, table, places, placed = _compared(
            image, result, pb, smearing, grid, numbers, catalogue, summary["freq_hz"], config
        )
        placed.append(judge_q(of_q, config.validation))
        spectra = _spectra(in_band, result, table, taken, grid, options, numbers["rms_jy"])
        judged, findings = assess(
            numbers,
            check,
            cleaned,
            used,
            result.beam,
            all_antennas,
            [*gated, *placed],
            config.validation,
        )
        science = chosen["science"] and options.mode == "full" and not of_level(gated, "fail")
        verdict = _Verdict(judged, findings, science, config, options.mode)
        least = float(smearing[pb >= 0.5].min(initial=1.0))
        keywords = {
            "OBJECT": group,
            "RMS": numbers["rms_jy"],
            "THERMAL": numbers["thermal_jy"],
            "NSUBBAND": len(converted["subbands"]),
            "IMAGER": options.backend,
            "IMGMODE": options.mode,
            "CLEANED": cleaned,
            "ANTENNAS": len(used.antennas),
            "DATAFRAC": round(used.data, 4),
            "SMEARING": round(1 - least, 5),
            "PRIMBEAM": of_beam["beam"],
            **_of_calibration(chosen, refined or {}),
            **verdict.keywords(),
            **_of_origin(config),
        }
        published = files.write_products(
            prefix_of=lambda suffix: paths.image(group, suffix, options.mode == "quick"),
            work=Path(work),
            grid=grid,
            image=image,
            result=result,
            pb=pb,
            smearing=smearing,
            summary=summary,
            options=options,
            keywords=keywords,
            dirty=(as_dirty, of_dirty),
            slanted=_slanted(result, options),
        )
    log.info("%s %s; catalogue: %s", judged, verdict.reasons, check)
    return {
        "backend": options.backend,
        "mode": options.mode,
        "cleaned": cleaned,
        **_of_beam(result.beam, all_antennas),
        **numbers,
        **result.notes,
        **_of_place(grid, pb, summary, options),
        "smearing_loss": 1 - least,
        "primary_beam": of_beam,
        "subtracted": [one.summary for one in taken],
        "bright_not_found": absent,
        **verdict.as_json(),
        "used": used.as_json(),
        "catalogue_problems": list(catalogue.problems),
        "catalogue": check,
        "noise_of_q": of_q,
        "places": places,
        "sources": table.round(6).to_dict("records"),
        "spectra": spectra,
        "images": {suffix: str(path) for suffix, path in published.items()},
    }


def _cleared_folder(paths: Paths, group: str) -> Path:
    """The images' folder, without what an attempt left that was killed."""
    folder = paths.image(group, "image").parent
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{group}.*.partial"):
        remove(leftover)
    return folder


def _found_before(group: str, converted: Mapping, applied: Mapping) -> list[dict]:
    """What conversion and the gates of `apply` found; and raw files that changed since."""
    gated = [*converted.get("findings", []), *(applied.get("gates") or {}).get("findings", [])]
    if changed := changed_since(converted.get("seen", {})):
        words = (
            f"{', '.join(changed)}: changed after the image's data were read. To use it: "
            f"contimg reprocess {group}"
        )
        gated.append(Finding("raw_changed", "warn", words).as_json())
    return gated


def _numbers(ms: Path, image: np.ndarray, result: Deconvolved, pb: np.ndarray) -> dict[str, float]:
    """Noise inside the half-power beam, peak, and what follows; an image of nothing is refused."""
    rms_jy, peak_jy = robust_rms(result.residual[pb >= 0.5]), float(np.nanmax(image))
    if not rms_jy > 0:
        raise ImagingError(
            f"{ms}: the image is blank (residual rms {rms_jy} Jy/beam). Nothing to publish."
        )
    return {
        "rms_jy": rms_jy,
        "peak_jy": peak_jy,
        "thermal_jy": result.notes.pop("thermal_jy"),
        "dynamic_range": peak_jy / rms_jy,
    }


def _compared(
    image: np.ndarray,
    result: Deconvolved,
    pb: np.ndarray,
    smearing: np.ndarray,
    grid: files.Grid,
    numbers: Mapping,
    catalogue: Sky,
    freq_hz: float,
    config: Config,
) -> tuple[dict, pd.DataFrame, dict, list[Finding]]:
    """The image against the catalogue: summary and table, how both depend on the place, and what is
    to be said of that, of stripes, and of a sky that is elsewhere."""
    options, limits = effective_options(config.imaging), config.validation
    radius_deg, rms_jy = grid.npix * grid.cell_deg * np.sqrt(0.5), numbers["rms_jy"]
    check, table = compare_catalogue(
        image=image,
        beam=result.beam,
        pb=pb,
        smearing=smearing,
        grid=grid,
        rms_jy=rms_jy,
        catalogue=catalogue.within(*grid.centre_deg, radius_deg, rms_jy),
        freq_hz=freq_hz,
        options=options,
    )
    of_fluxes, findings = beam_of_fluxes(table, limits)
    of_frame, framed = frame_of_offsets(table, result.beam.major_arcsec, limits)
    stripes = fringe_power(result.residual, result.psf, options.cell_arcsec)
    elsewhere = search_sky(
        image=image,
        beam=result.beam,
        grid=grid,
        rms_jy=rms_jy,
        catalogue=catalogue.within(*grid.centre_deg, radius_deg + 1, rms_jy),
        check=check,
    )
    said = [*findings, *framed, judge_fringes(stripes, limits), *elsewhere]
    return check, table, {**of_fluxes, **of_frame}, said


def _spectra(
    in_band: InBand,
    result: Deconvolved,
    table: pd.DataFrame,
    taken: Sequence[Subtracted],
    grid: files.Grid,
    options: ImagingConfig,
    rms_jy: float,
) -> dict:
    """Frequencies of parts of the band, and fluxes and errors in these of bright sources, by name;
    not of those that were subtracted with spectra of their own."""
    apart = {one.source.name for one in taken}
    bright = table[table.found & (table.snr >= LEAST_SNR) & ~table.name.isin(apart)]
    bright = bright.sort_values("snr", ascending=False).head(MOST_SOURCES)
    if result.left is None or not len(bright):
        return {"freq_hz": [], "flux_jy": {}, "error_jy": {}}
    x, y = grid.wcs().wcs_world2pix(bright.ra_deg.values, bright.dec_deg.values, 0)
    found, errors, freq_hz = in_band.fluxes(
        left=result.left,
        components=result.components,
        cell_arcsec=options.cell_arcsec,
        x=x,
        y=y,
        flux_jy=bright.flux_jy.values,
        noise_jy=rms_jy,
    )
    return {
        "freq_hz": freq_hz.tolist(),
        "flux_jy": dict(zip(bright.name, _as_json(found), strict=True)),
        "error_jy": dict(zip(bright.name, _as_json(errors), strict=True)),
    }


def _as_json(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), 7) for v in row] for row in values]


class _Verdict:
    """What an image may be used for, and why not."""

    def __init__(self, judged: str, findings: list, science: bool, config: Config, mode: str):
        self.judged, self.findings, self.science = judged, findings, science
        self.reasons = [
            words for level in ("fail", "unverified", "warn") for words in of_level(findings, level)
        ]
        as_row = {
            "type": "pbcor",
            "mode": mode,
            "science": science,
            "verdict": judged,
            "set_status": ACTIVE,
            "deleted_at": None,
        }
        self.unfit = unpublishable(as_row, config.validation)

    def keywords(self) -> dict:
        """For the header."""
        return {
            "QUALITY": "SCIENCE" if self.science else "NON_SCIENCE",
            "VERDICT": self.judged,
            "PUBLISH": not self.unfit,
        }

    def as_json(self) -> dict:
        """For the result."""
        found = [one if isinstance(one, Mapping) else one.as_json() for one in self.findings]
        return {
            "science": self.science,
            "verdict": self.judged,
            "verdict_reasons": self.reasons,
            "findings": found,
            "unpublishable": self.unfit,
        }


def _of_calibration(chosen: Mapping, refined: Mapping) -> dict:
    """Header keywords of the calibration set, of the group's own gains, and of the flux scale."""
    scale = refined.get("flux_scale") or {}
    words = chosen["flux_scale"]
    if scale.get("applied") == "catalogue":
        words = f"{scale['sources']} catalogue sources"
    keywords = {
        "CALSET": chosen["set_name"],
        "CALMJD": chosen["set_mid_mjd"],
        "FLUXCAL": chosen["cal_field"],
        "FLUXSCAL": words,
        "SETSCAL": chosen["flux_scale"],
        "REFINE": refined.get("refine", "rejected: not tried")[:_LONGEST_WORDS],
        "REFSKY": refined.get("sky", "none"),
        "SETSTAT": ACTIVE,
    }
    for keyword, name in _SCALE_KEYWORDS.items():
        if scale.get(name) is not None:
            keywords[keyword] = round(scale[name], 5)
    return keywords


def _of_origin(config: Config) -> dict:
    """Header keywords of configuration, software and catalogues."""
    origin = made_by(config)
    lists = origin["catalogues"]
    return {
        "CONFIG": origin["config"],
        "SOFTWARE": f"contimg {origin['version']}",
        "COMMIT": origin["commit"],
        "SKYCAT": lists["sky"][:16],
        "CALLIST": lists["calibrators"][:16],
        "STATIONS": lists["stations"][:16],
    }


def _of_beam(beam: Beam, all_antennas: Beam | None) -> dict:
    """The restoring beam, and the one that all antennas would give."""
    expected = all_antennas and [all_antennas.major_arcsec, all_antennas.minor_arcsec]
    return {
        "beam_major_arcsec": float(beam.major_arcsec),
        "beam_minor_arcsec": float(beam.minor_arcsec),
        "beam_pa_deg": float(beam.pa_deg),
        "expected_beam_arcsec": expected,
    }


def _of_place(grid: files.Grid, pb: np.ndarray, summary: Mapping, options: ImagingConfig) -> dict:
    """Where, when and at which frequency the image is; what it was made of."""
    half_day = summary["integration_s"] / 2 / DAY_S
    inside_pixels = (pb >= options.beam_limit).sum()
    return {
        "imsize": options.imsize,
        "cell_arcsec": options.cell_arcsec,
        "centre_deg": list(grid.centre_deg),
        "freq_hz": summary["freq_hz"],
        "start_mjd": float(summary["time_mjd"][0] - half_day),
        "end_mjd": float(summary["time_mjd"][-1] + half_day),
        "flagged": summary["flagged"],
        "bandwidth_hz": summary["bandwidth_hz"],
        "exposure_s": summary["exposure_s"],
        "diameter_deg": 2 * grid.cell_deg * float(np.sqrt(inside_pixels / np.pi)),
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
    averaged: Averaged, stokes: StokesI, sky: Sky, options: ImagingConfig, own: Sequence[Source]
) -> tuple[list[Subtracted], list[str]]:
    if options.subtract_above_jy is None:
        return [], []
    centre = stokes.observation.phase_centre_deg
    # no beam makes a source brighter
    least_jy = min(options.subtract_above_jy, options.subtract_outside_above_jy)
    near = own or as_sources(sky.within(*centre, _BRIGHT_WITHIN_DEG, least_jy))
    bright = bright_sources(near, stokes, options)
    if not bright:
        return [], []
    around = sky.within(*centre, _BRIGHT_WITHIN_DEG)
    apparent_jy = around.flux_jy.values * mean_beam(
        around.ra_deg.values, around.dec_deg.values, *centre
    )
    rest = own or as_sources(around.iloc[np.argsort(-apparent_jy)[:_MOST_AROUND]])
    return subtract(
        bright,
        [one for one in rest if one not in bright],
        averaged.as_stokes(stokes),
        averaged.weights.reshape(*stokes.vis.shape[:2], -1).sum(axis=1, dtype=float),
    )


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


def _slanted(result: Deconvolved, options: ImagingConfig) -> tuple[np.ndarray, Plane] | None:
    """The image on its plane's grid, where it was asked for."""
    if result.slanted is None:
        return None
    residual, plane = result.slanted
    components = between_grids(
        result.components,
        to=plane.slanted,
        from_npix=options.imsize,
        to_npix=len(residual),
        cell_rad=np.radians(options.cell_arcsec / 3600),
    )
    image = restore(
        residual=residual, components=components, beam=result.beam, cell_arcsec=options.cell_arcsec
    )
    return image, plane


def _put_back(
    taken: Sequence[Subtracted], grid: files.Grid, of_map: files.Grid, smearing: np.ndarray
) -> np.ndarray:
    """Subtracted sources inside the image, at their mean apparent flux, as components (n, 3),
    smeared as all others are: by a map with a grid of its own."""
    found = []
    for one in taken:
        place = one.source.ra_deg, one.source.dec_deg
        x, y = (float(v) for v in grid.wcs().wcs_world2pix(*place, 0))
        if np.isfinite([x, y]).all() and min(x, y) >= 0 and max(x, y) <= grid.npix - 1:
            pixel = np.round(of_map.wcs().wcs_world2pix(*place, 0)).astype(int)
            kept = float(smearing[tuple(np.clip(pixel, 0, of_map.npix - 1))])
            found.append([x, y, one.mean_apparent_jy * kept])
            one.summary["put_back"] = True
    return np.array(found).reshape(-1, 3)
