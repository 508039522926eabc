"""The stage `apply`: calibrate a group with the set that was chosen, weigh it, and refine it
(`stages.refine`), in one pass over the data."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from contimg.calibration import apply as application
from contimg.calibration import gates, weighing
from contimg.calibration.field import FIELD_RADIUS_DEG, Calibrated
from contimg.config import Config
from contimg.errors import CalibrationError
from contimg.findings import Finding, judged, of_level, unknown
from contimg.paths import FAST_SUFFIX
from contimg.stages import refine
from contimg.stages.beams import beam_of
from contimg.stages.job import Job
from contimg.store.files import altered, read_json
from contimg.visibilities import measurement_set as mset

log = logging.getLogger(__name__)


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    chosen, converted = job.result_of("caltables"), job.result_of("convert")
    of_set = job.paths.result(chosen["set_name"].removesuffix(FAST_SUFFIX), "solve")
    solved = read_json(of_set) if of_set.exists() else None
    return apply_set(
        job.ms, job.group, chosen, converted["app_dec_deg"], job.config, job.logfile, solved
    )


def apply_set(
    ms: Path,
    group: str,
    chosen: Mapping,
    app_dec_deg: float,
    config: Config,
    logfile: Path | None,
    solved: Mapping | None = None,
) -> dict:
    """CORRECTED_DATA in Jy and weights in Jy^-2 with the set that `{group}.caltables.json` names,
    and the group's own gains; the result for `{group}.apply.json`, with what the gates found: one
    that fails is no science, and is imaged nevertheless. Writes `{group}.refine.json`.

    solved  result of the set's own `solve`, where there is one: its receivers are compared with
            these

    Raises CalibrationError when the set's tables are not those that were chosen.
    """
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    if wrong := altered(zip(tables.values(), chosen["checksums"], strict=True)):
        raise CalibrationError(
            f"{ms}: {'; '.join(wrong)}. Choose again: contimg reprocess GROUP --from caltables"
        )
    beyond = chosen.get("between") or {}
    other = {kind: Path(path) for kind, path in beyond.get("tables", {}).items()}
    if wrong := altered(zip(other.values(), beyond.get("checksums", ()), strict=True)):
        log.warning("not interpolated between sets: %s", "; ".join(wrong))
        beyond, other = {}, {}
    found = application.calibrated(ms, tables, logfile, other, beyond.get("share", 0.0))
    data, flags, rows = found.data, found.flags, found.rows
    observation = mset.read_observation(ms)
    beam, of_beam = beam_of(config, app_dec_deg, rows.time_mjd.mean())
    one = Calibrated(data, flags, observation, rows, app_dec_deg, beam=beam)
    far_found = refine.subtract_far(one) if config.calibration.subtract_far else []
    weighed, noise, weights = weighing.weigh(
        ms=ms, data=data, flags=flags, rows=rows, nant=len(observation.antenna_names)
    )
    numbers, findings = gates.after_apply(
        antenna_noise=noise,
        channel_width_hz=observation.channel_width_hz,
        integration_s=rows.integration_s,
        names=observation.antenna_names,
        of_set=((solved or {}).get("gates") or {}).get("sefd_jy_by_antenna", {}),
        options=config.gates,
    )
    of_set = of_level(((solved or {}).get("gates") or {}).get("findings", []), "warn")
    findings += [Finding("of_the_set", "warn", f"its calibration set: {words}") for words in of_set]
    sefd_jy = gates.sefd_jy(
        antenna_noise=noise,
        channel_width_hz=observation.channel_width_hz,
        integration_s=rows.integration_s,
    )
    spectra, other_spectra = _spectra(data, rows, found.inverse)
    one = replace(
        one, weights=weights, sefd_jy=sefd_jy, spectra=spectra, other_spectra=other_spectra
    )
    refined = refine.refine_and_correct(ms, group, one, config, far_found, found.change)
    findings += _of_sky(refined, config) + refined["findings"]
    mset.write_columns(
        ms,
        CORRECTED_DATA=data,
        FLAG=flags,
        WEIGHT_SPECTRUM=weights,
        WEIGHT=weighing.row_means(weights),
    )
    for finding in findings:
        if finding.level != "good":
            log.warning("%s: %s", finding.level, finding.words)
    applied = {"set_name": chosen["set_name"], "science": chosen["science"], **weighed}
    applied["primary_beam"] = of_beam
    if (of_set := (solved or {}).get("primary_beam")) and of_set["checksum"] != of_beam["checksum"]:
        words = (
            f"the set was solved with another primary beam ({of_set['beam']}) than the image is "
            f"made with ({of_beam['beam']}). contimg reprocess {chosen['set_name']} --from solve"
        )
        findings.append(Finding("primary_beam", "warn", words))
    if found.change:
        applied["between"] = {"set_name": beyond["set_name"], "share": beyond["share"]}
        applied["between"] |= found.change
    fitted = {name: refined[name] for name in ("model_fit", "model_fit_error")}
    gated = numbers | {"findings": [finding.as_json() for finding in findings]}
    return applied | fitted | {"gates": gated}


def _spectra(
    data: np.ndarray, rows: mset.Rows, inverse: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Calibrated autocorrelations (nant, nchan, npol), and with the other polarisation's gains."""
    autos = np.flatnonzero(rows.ant_1 == rows.ant_2)
    if inverse is None or not len(autos):
        return None, None
    spectra = np.full(inverse.shape, np.nan)
    spectra[rows.ant_1[autos]] = data[:, autos].real.mean(axis=0)
    power = np.abs(inverse) ** 2
    return spectra, spectra / power * power[..., ::-1]


def _of_sky(refined: Mapping, config: Config) -> list[Finding]:
    """How much of the catalogue's sky is in the data, after refinement, on the set's scale."""
    fit, error = refined["model_fit"], refined["model_fit_error"]
    warn, limit = config.gates.warn_model_misfit, config.calibration.max_model_misfit
    if fit is None:
        why = (
            f"the sky catalogue has no source within {2 * FIELD_RADIUS_DEG:g} deg: amplitudes "
            "not compared with it"
        )
        return [unknown(name="model_fit", why=why)]
    if not error < limit / 10:
        why = (
            "the catalogue's sources in the field are too faint for a comparison of amplitudes "
            f"(error {error:.2f})"
        )
        return [unknown(name="model_fit", why=why)]
    return [
        judged(
            name="model_fit",
            value=abs(fit - 1),
            warn=warn,
            fail=limit,
            percent=True,
            words=f"calibrated data have {fit:.0%} of the amplitude that the catalogue's sources "
            "should have",
            cause="Probably gains that changed since the calibrator, or a wrong flux of it, or a "
            "catalogue of another sky: compare other groups with this set; contimg "
            "registry retire SET, or mend the catalogue",
        )
    ]
