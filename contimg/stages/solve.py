"""The stage `solve`: the model of a calibrator's field, the set of tables that fits it, and what is
against that set."""

import logging
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from contimg.calibration import apply as application
from contimg.calibration import casa_tasks, field, gates, weighing
from contimg.calibration import tables as caltables
from contimg.calibration.field import FIELD_RADIUS_DEG, Seen, modelled_share
from contimg.calibration.solver import Gains, averaged, phase_channels, solve
from contimg.config import CalibrationConfig, Config
from contimg.errors import CalibrationError
from contimg.findings import of_level
from contimg.flagging import detection
from contimg.paths import Paths, set_name
from contimg.plots import calibration, style
from contimg.sky import catalogues
from contimg.sky.calibrators import Candidate, find_candidates, read_calibrators, read_corrected
from contimg.sky.catalogues import Sky
from contimg.sky.skymodel import calibrator_model
from contimg.stages.beams import beam_of
from contimg.stages.job import Job
from contimg.visibilities import flag_versions
from contimg.visibilities import measurement_set as mset

log = logging.getLogger(__name__)


def run(job: Job) -> dict:
    """The work of the stage; returns its result."""
    app_dec_deg = job.result_of("convert")["app_dec_deg"]
    return solve_group(job.ms, job.group, app_dec_deg, job.config, job.logfile)


def solve_group(
    ms: Path, group: str, app_dec_deg: float, config: Config, logfile: Path | None
) -> dict:
    """Model into MODEL_DATA, solutions into the group's tables. Returns the result for
    `{group}.solve.json`."""
    options, paths = config.calibration, Paths.of(config)
    mset.require_whole(ms)
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    catalogue = read_corrected(config.catalogues, options)
    found = _calibrators(group, config, catalogue, rows.time_mjd.mean(), app_dec_deg)
    calibrator = found[0]
    sources = calibrator_model(
        calibrator.source, catalogue, options.sky_radius_deg, options.sky_min_mjy / 1e3
    )
    name, names = set_name(group, options.fast), observation.antenna_names
    kinds = ("K", "B", "G") if options.do_k and not options.fast else ("B", "G")
    outputs = {kind: paths.caltable(name, kind) for kind in kinds}
    flags = flag_versions.read(ms, rows.shape[0])
    refants = _reference_antennas(ms, observation, rows, flags, options.refant)
    beam, of_beam = beam_of(config, app_dec_deg, rows.time_mjd.mean())
    seen = Seen(observation, rows, app_dec_deg, sources, beam)
    solve_with = _solve_averaged if options.fast else _solve_whole
    solver, amplitude, quality, solved_on = solve_with(
        ms, seen, flags, refants, outputs, options, logfile
    )
    modelled = modelled_share(sources, calibrator.source, catalogue, observation.phase_centre_deg)
    gated = _gates(ms, seen, solved_on, outputs, config, logfile)
    wrong = [*caltables.problems(quality, options), *of_level(gated["findings"], "fail")]
    if modelled < options.min_modelled:
        wrong.append(
            f"the model has {modelled:.0%} of the catalogued flux in the beam, expected at least "
            f"{options.min_modelled:.0%} (calibration.sky_radius_deg)"
        )
    variable = " (variable source)" if calibrator.variable else ""
    solved = {
        "calibrator": calibrator.name,
        "flux_jy": float(calibrator.source.flux_jy(catalogues.CATALOGUE_HZ)),
        "flux_scale": calibrator.flux_origin + variable,
        "mean_beam": calibrator.mean_beam,
        "primary_beam": of_beam,
        "field_sources": len(sources) - 1,
        "modelled_share": modelled,
        "problems": wrong,
        "other_candidates": [c.name for c in found[1:]],
        "notes": _notes(group, catalogue, observation),
        "model_amplitude_jy": amplitude,
        "set_name": name,
        "science": not options.fast,
        "solver": solver,
        "refant": names[refants[0]],
        "mid_mjd": float(rows.time_mjd.mean()),
        "app_dec_deg": app_dec_deg,
        "tables": {kind: str(path) for kind, path in outputs.items()},
        "quality": quality,
        "gates": gated,
    }
    page = paths.qa(group, "calibration")
    page.parent.mkdir(parents=True, exist_ok=True)
    spectra = _spectra(ms, seen, flags, refants[0], outputs)
    gains = caltables.read(outputs["G"])
    solved["plot_failed"] = style.save_plot(
        lambda: calibration.plot_set(solved, observation, *spectra, gains), page
    )
    return solved


def _calibrators(
    group: str, config: Config, catalogue: Sky, mid_mjd: float, app_dec_deg: float
) -> list[Candidate]:
    """Calibrators in the beam, the best first; raises CalibrationError when there is none."""
    options = config.calibration
    table = read_calibrators(config.catalogues.calibrators, catalogue, options)
    (found,) = find_candidates(table, mid_mjd, app_dec_deg, options)
    if not found:
        raise CalibrationError(
            f"group {group}: no calibrator of {options.min_flux_jy:g} Jy or more with a known flux "
            f"at a beam response over {options.min_beam:g}. See calibration.min_flux_jy, min_beam, "
            "allow and deny."
        )
    return found


def _notes(group: str, catalogue: Sky, observation: mset.Observation) -> list[str]:
    """What is to be said of the catalogue here."""
    notes = list(catalogue.problems)
    if not len(catalogue.within(*observation.phase_centre_deg, FIELD_RADIUS_DEG)):
        notes.append(
            f"no catalogue source within {FIELD_RADIUS_DEG:g} deg of the pointing: does "
            "catalogues.sky cover it?"
        )
        log.warning("%s: %s", group, notes[-1])
    return notes


@dataclass(frozen=True)
class _SolvedOn:
    """Data (not calibrated) that a set was solved on, as gates.after_solve wants them; averages in
    fast mode."""

    data: np.ndarray
    model: np.ndarray
    flags: np.ndarray
    shares: np.ndarray
    time_mjd: np.ndarray
    times: int = 1  # integrations in one
    channels: int = 1  # channels in one


def _solve_whole(
    ms: Path,
    seen: Seen,
    flags: np.ndarray,
    refants: list[int],
    outputs: Mapping[str, Path],
    options: CalibrationConfig,
    logfile: Path | None,
) -> tuple[str, float, dict, _SolvedOn]:
    """Solve on every sample; (solver, model's amplitude in Jy, quality by kind, what it was solved
    on)."""
    observation, rows = seen.observation, seen.rows
    names, model = observation.antenna_names, seen.model()
    amplitude = field.write_model(ms, model)
    channels = phase_channels(flags.mean(axis=(0, 1, 3)))
    outside = mset.outside(options.uvrange, rows.uvw_m, observation.freq_hz)
    used = flags | outside[:, :, None, None]
    data, weights = mset.read_grid(ms, "DATA", rows.shape[0]), weighing.shares(ms, rows)
    solved_on = _SolvedOn(data, model, used, weights, rows.time_mjd)
    if options.do_k or options.solver == "casa":  # delays are CASA's
        flag_versions.restore(ms)
        quality = casa_tasks.solve_casa(
            ms, outputs, [names[a] for a in refants], options, logfile, channels
        )
        return "casa", amplitude, quality, solved_on
    intervals = 1
    if options.gain_interval_s:
        span_s = rows.integration_s * len(data)
        intervals = min(max(1, round(span_s / options.gain_interval_s)), len(data))
    solutions = solve(
        data=data,
        model=model,
        flags=used,
        weights=weights,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        nant=len(names),
        reference=refants,
        min_snr=options.min_snr,
        phase_channels=channels,
        intervals=intervals,
        fill=options.fill_channels,
    )
    mjd = np.array([part.mean() for part in np.array_split(rows.time_mjd, intervals)])
    tables = dict(zip("BG", solutions, strict=True))
    quality = caltables.write_solutions(ms, mjd, outputs, tables, refants[0])
    return options.solver, amplitude, quality, solved_on


def _gates(
    ms: Path,
    seen: Seen,
    one: _SolvedOn,
    tables: Mapping[str, Path],
    config: Config,
    logfile: Path | None,
) -> dict:
    """Numbers and findings of a new set; its data are calibrated in place."""
    observation, rows, data, flags = seen.observation, seen.rows, one.data, one.flags
    nant, freq_hz = len(observation.antenna_names), observation.freq_hz
    inverse = application.per_antenna(tables, observation, one.time_mjd)
    if inverse is None:  # delays: CASA's to apply
        casa_tasks.apply_casa(ms, tables, logfile)
        data = mset.read_grid(ms, "CORRECTED_DATA", len(data))
        flags = flags | mset.read_grid(ms, "FLAG", len(data))
    else:
        solution, flagged = (values[:, :, :: one.channels] for values in inverse)
        application.correct_all(
            data=data,
            flags=flags,
            ant_1=rows.ant_1,
            ant_2=rows.ant_2,
            inverse=solution,
            flagged=flagged,
        )
    samples = one.times * one.channels
    noise, by_antenna = weighing.antenna_noise(
        data=data, flags=flags, ant_1=rows.ant_1, ant_2=rows.ant_2, nant=nant
    )
    return gates.after_solve(
        data=data,
        model=one.model,
        flags=flags,
        shares=one.shares if samples == 1 else one.shares / samples,
        noise=noise,
        antenna_noise=by_antenna,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        snr=caltables.snr_by_antenna(tables["G"], nant),
        uvw_m=np.stack(
            [
                rows.uvw_m[k : k + one.times].mean(axis=0)
                for k in range(0, len(rows.uvw_m), one.times)
            ]
        ),
        names=observation.antenna_names,
        freq_hz=float(freq_hz.mean()),
        channel_width_hz=observation.channel_width_hz * one.channels,
        integration_s=rows.integration_s * one.times,
        one_gain=len(np.unique(caltables.read(tables["G"]).time_mjd)) == 1,
        options=config.gates,
    )


def _spectra(
    ms: Path, seen: Seen, flags, refant: int, tables: Mapping[str, Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Data over model of each antenna with the reference antenna, averaged over time, before
    calibration and after: (nant, nchan, npol), NaN where there is none. Delays (K) are left out of
    it."""
    rows, observation = seen.rows, seen.observation
    chosen = np.flatnonzero((rows.ant_1 == refant) ^ (rows.ant_2 == refant))
    few = replace(
        seen,
        rows=replace(
            rows, ant_1=rows.ant_1[chosen], ant_2=rows.ant_2[chosen], uvw_m=rows.uvw_m[:, chosen]
        ),
    )
    model, good = few.model()[..., None], ~flags[:, chosen]
    data = mset.read_rows_of(
        ms, "DATA", (np.arange(rows.shape[0])[:, None] * rows.shape[1] + chosen).ravel()
    )
    data = data.reshape(good.shape)
    weight = (np.abs(model) ** 2 * good).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(weight > 0, (data * np.conj(model) * good).sum(axis=0) / weight, np.nan)
    before = np.full((len(observation.antenna_names), *ratio.shape[1:]), np.nan, complex)
    first = rows.ant_1[chosen] != refant
    other = np.where(first, rows.ant_1[chosen], rows.ant_2[chosen])
    before[other] = np.where(first[:, None, None], ratio, np.conj(ratio))
    solutions = {k: t for k, t in tables.items() if k != "K"}
    found = application.per_antenna(solutions, observation, rows.time_mjd)
    if found is None:  # other channels than the data's: CASA's to apply
        return before, np.full_like(before, np.nan)
    inverse = np.where(found[1], np.nan, found[0]).mean(axis=0)
    return before, before * inverse * np.conj(inverse[refant])


def _solve_averaged(
    ms: Path,
    seen: Seen,
    flags: np.ndarray,
    refants: list[int],
    outputs: Mapping[str, Path],
    options: CalibrationConfig,
    _: Path | None,
) -> tuple[str, float, dict, _SolvedOn]:
    """Fast mode: data averaged, the model at the middle of each average. Median model amplitude,
    quality by kind, averages."""
    rows, freq_hz = seen.rows, seen.observation.freq_hz
    nchan, chanbin = len(freq_hz), options.chanbin
    if nchan % chanbin:
        raise CalibrationError(
            f"{ms}: calibration.chanbin {chanbin} does not divide its {nchan} channels"
        )
    timebin = max(1, round(options.timebin_s / rows.integration_s))
    used = flags | mset.outside(options.fast_uvrange, rows.uvw_m, freq_hz)[:, :, None, None]
    data, flags, weights = averaged(
        mset.read_grid(ms, "DATA", rows.shape[0]), used, weighing.shares(ms, rows), timebin, chanbin
    )
    starts = range(0, len(rows.time_mjd), timebin)
    mjd = np.array([rows.time_mjd[k : k + timebin].mean() for k in starts])
    model = seen.model(
        time_mjd=mjd,
        freq_hz=freq_hz.reshape(-1, chanbin).mean(axis=1),
        averaged_hz=chanbin * seen.observation.channel_width_hz if chanbin > 1 else 0.0,
    )
    amplitude, nant = field.model_amplitude(ms, model), len(seen.observation.antenna_names)
    bandpass, gain = solve(
        data=data,
        model=model,
        flags=flags,
        weights=weights,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        nant=nant,
        reference=refants,
        min_snr=options.min_snr,
        phase_channels=phase_channels(flags.mean(axis=(0, 1, 3))),
        phase_only=options.phase_only,
        fill=options.fill_channels // chanbin,
    )
    bandpass = Gains(*(np.repeat(values, chanbin, axis=1) for values in astuple(bandpass)))
    quality = caltables.write_solutions(
        ms, [rows.time_mjd.mean()], outputs, {"B": bandpass, "G": gain}, refants[0], chanbin
    )
    solved_on = _SolvedOn(data, model, flags, weights, mjd, timebin, chanbin)
    return "fast mode", amplitude, quality, solved_on


def _reference_antennas(ms: Path, observation, rows, flags, wanted: str) -> list[int]:
    antennas = np.unique(np.concatenate([rows.ant_1, rows.ant_2]))
    by_baseline = detection.fractions_by_row(flags).mean(axis=0)
    flagged = np.array(
        [by_baseline[(rows.ant_1 == a) ^ (rows.ant_2 == a)].mean() for a in antennas]
    )
    index = None
    if wanted != "auto":
        if wanted not in observation.antenna_names:
            raise CalibrationError(
                f"{ms}: calibration.refant {wanted!r} is no antenna of this observation"
            )
        index = observation.antenna_names.index(wanted)
    return caltables.choose_reference_antenna(
        positions_m=observation.positions_m, antennas=antennas, flagged=flagged, wanted=index
    )
