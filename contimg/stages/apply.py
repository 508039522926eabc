"""The stage `apply`: calibrate a group with the set that was chosen, weigh it, compare it with the
catalogue."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contimg.calibration import apply as application
from contimg.calibration import gates, weighing
from contimg.calibration.field import FIELD_RADIUS_DEG, Seen, model_fit
from contimg.config import Config
from contimg.errors import CalibrationError
from contimg.findings import Finding, judged, of_level, unknown
from contimg.paths import FAST_SUFFIX
from contimg.sky.calibrators import mean_beam, read_corrected
from contimg.sky.skymodel import as_sources
from contimg.stages.job import Job
from contimg.store.files import altered, read_json
from contimg.visibilities import measurement_set as mset

log = logging.getLogger(__name__)
_FIT_EVERY = 6  # integrations: enough for a fit of the catalogue to calibrated data
_FIT_SOURCES = (
    150  # the apparently brightest: what is left of the whole NVSS is a few per cent of the power
)
_FIT_ERROR = 0.05  # of an antenna, to be named when its data do not fit


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    chosen, converted = job.result_of("caltables"), job.result_of("convert")
    of_set = job.paths.result(chosen["set_name"].removesuffix(FAST_SUFFIX), "solve")
    solved = read_json(of_set) if of_set.exists() else None
    return apply_set(job.ms, chosen, converted["app_dec_deg"], job.config, job.logfile, solved)


def apply_set(
    ms: Path,
    chosen: Mapping,
    app_dec_deg: float,
    config: Config,
    logfile: Path | None,
    solved: Mapping | None = None,
) -> dict:
    """CORRECTED_DATA in Jy and weights in Jy^-2 with the set that `{group}.caltables.json` names;
    the result for `{group}.apply.json`, with what the gates found: one that fails is no science,
    and is imaged nevertheless.

    solved  result of the set's own `solve`, where there is one: its receivers are compared with
            these

    Raises CalibrationError when the set's tables are not those that were chosen.
    """
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    if wrong := altered(zip(tables.values(), chosen["checksums"], strict=True)):
        raise CalibrationError(
            f"{ms}: {'; '.join(wrong)}. Choose again: contimg reprocess GROUP --from caltables"
        )
    data, flags, rows = application.apply(ms, tables, logfile)
    observation = mset.read_observation(ms)
    weighed, noise = weighing.weigh(
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
    found = {"set_name": chosen["set_name"], "science": chosen["science"], **weighed}
    fitted, of_fit = _fit_catalogue(data, flags, observation, rows, app_dec_deg, config)
    findings += of_fit
    for one in findings:
        if one.level != "good":
            log.warning("%s: %s", one.level, one.words)
    return found | fitted | {"gates": numbers | {"findings": [one.as_json() for one in findings]}}


def _fit_catalogue(
    data, flags, observation, rows, app_dec_deg: float, config: Config
) -> tuple[dict, list[Finding]]:
    """Amplitude of the catalogue's sources in calibrated data, of all and of each antenna; an
    integration in six."""
    near = read_corrected(config.catalogues, config.calibration).within(
        *observation.phase_centre_deg, 2 * FIELD_RADIUS_DEG
    )
    if not len(near):
        why = (
            f"the sky catalogue has no source within {2 * FIELD_RADIUS_DEG:g} deg: amplitudes "
            "not compared with it"
        )
        return {}, [unknown(name="model_fit", why=why)]
    apparent_jy = near.flux_jy.values * mean_beam(
        near.ra_deg.values, near.dec_deg.values, *observation.phase_centre_deg
    )
    brightest = as_sources(near.iloc[np.argsort(-apparent_jy)[:_FIT_SOURCES]])
    every = slice(min(_FIT_EVERY, len(data)) // 2, None, _FIT_EVERY)
    model = Seen(observation, rows, app_dec_deg, brightest).model(rows.time_mjd[every])
    fit, error, by_antenna = model_fit(
        data=data[every], flags=flags[every], model=model, ant_1=rows.ant_1, ant_2=rows.ant_2
    )
    warn, limit = config.gates.warn_model_misfit, config.calibration.max_model_misfit
    if not error < limit / 10:
        why = (
            "the catalogue's sources in the field are too faint for a comparison of amplitudes "
            f"(error {error:.2f})"
        )
        return {}, [unknown(name="model_fit", why=why)]
    names = observation.antenna_names
    odd = [
        names[a]
        for a, (one, of_one) in sorted(by_antenna.items())
        if of_one < _FIT_ERROR and one < fit / 2
    ]
    findings = [
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
    if odd:
        words = (
            f"the data of {len(odd)} antennas have less than half of the sky: "
            f"{', '.join(odd)}. Cables exchanged, or phases moved"
        )
        findings.append(Finding("model_fit_by_antenna", "warn", words, float(len(odd))))
    return {"model_fit": fit, "model_fit_error": error, "antennas_not_fitting": odd}, findings
