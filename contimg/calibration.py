"""Solve a calibrator group and choose what a group is calibrated with: what the scripts of these stages call."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg import caltables, flagging, gates, preparation, qa, skymodel
from contimg import measurement_set as mset
from contimg.calibrators import find_candidates, mean_beam, read_calibrators, read_sky
from contimg.checksums import altered
from contimg.config import CalibrationConfig, Config
from contimg.errors import CalibrationError
from contimg.findings import Finding, judged, of_level, unknown
from contimg.geometry import meridian_vector, track
from contimg.paths import Paths, set_name
from contimg.prediction import predict
from contimg.skymodel import Source, as_sources, calibrator_model
from contimg.solver import Gains, averaged, phase_channels, solve

log = logging.getLogger(__name__)

_FIELD_RADIUS_DEG = 2.0
_FIT_EVERY = 6  # integrations: enough for a fit of the catalogue to calibrated data
_FIT_SOURCES = 150  # the apparently brightest: what is left of the whole NVSS is a few per cent of the power
_FIT_ERROR = 0.05  # of an antenna, to be named when its data do not fit


def solve_group(ms: Path, group: str, app_dec_deg: float, config: Config, logfile: Path | None) -> dict:
    """Model into MODEL_DATA, solutions into the group's tables. Returns the result for `{group}.solve.json`."""
    options = config.calibration
    mset.require_whole(ms)
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    catalogue = read_sky(config)
    table = read_calibrators(config.catalogues.calibrators, catalogue, options)
    (found,) = find_candidates(table, rows.time_mjd.mean(), app_dec_deg, options)
    if not found:
        raise CalibrationError(
            f"group {group}: no calibrator of {options.min_flux_jy:g} Jy or more with a known flux at a beam response over "
            f"{options.min_beam:g}. See calibration.min_flux_jy, min_beam, allow and deny."
        )
    calibrator = found[0]
    sources = calibrator_model(calibrator.source, catalogue, options.sky_radius_deg, options.sky_min_mjy / 1e3)
    notes = list(catalogue.problems)
    if not len(catalogue.within(*observation.phase_centre_deg, _FIELD_RADIUS_DEG)):
        notes.append(f"no catalogue source within {_FIELD_RADIUS_DEG:g} deg of the pointing: does catalogues.sky cover it?")
        log.warning("%s: %s", group, notes[0])
    paths, names = Paths.of(config), observation.antenna_names
    name = set_name(group, options.fast)
    kinds = ("K", "B", "G") if options.do_k and not options.fast else ("B", "G")
    outputs = {kind: paths.caltable(name, kind) for kind in kinds}
    flags = caltables.prepared_flags(ms, rows.shape[0])
    refants = _reference_antennas(ms, observation, rows, flags, options.refant)
    seen = _Seen(observation, rows, app_dec_deg, sources)
    if options.fast:
        solver = "fast mode"
        amplitude, quality, solved_on = _solve_averaged(ms, seen, flags, refants, outputs, options)
    else:
        model = seen.model()
        amplitude = preparation.write_model(ms, model)
        channels = phase_channels(flags.mean(axis=(0, 1, 3)))
        solver = "casa" if options.do_k else options.solver  # delays are CASA's
        used = flags | mset.outside(options.uvrange, rows.uvw_m, observation.freq_hz)[:, :, None, None]
        data, weights = mset.read_grid(ms, "DATA", rows.shape[0]), preparation.shares(ms, rows)
        solved_on = _SolvedOn(data, model, used, weights, rows.time_mjd)
        if solver == "casa":
            caltables.restore_flags(ms, caltables.PREPARED_FLAGS)
            quality = caltables.solve_casa(ms, outputs, [names[a] for a in refants], options, logfile, channels)
        else:
            span_s = rows.integration_s * len(data)
            intervals = max(1, round(span_s / options.gain_interval_s)) if options.gain_interval_s else 1
            intervals = min(intervals, len(data))
            solutions = solve(
                data, model, used, weights, rows.ant_1, rows.ant_2, len(names), refants, options.min_snr, channels,
                intervals, fill=options.fill_channels,
            )  # fmt: skip
            mjd = np.array([part.mean() for part in np.array_split(rows.time_mjd, intervals)])
            quality = caltables.write_solutions(ms, mjd, outputs, dict(zip("BG", solutions, strict=True)), refants[0])
    modelled = _modelled(sources, calibrator.source, catalogue, observation.phase_centre_deg)
    gated = _gates(ms, seen, solved_on, outputs, config, logfile)
    wrong = [*caltables.problems(quality, options), *of_level(gated["findings"], "fail")]
    if modelled < options.min_modelled:
        wrong.append(
            f"the model has {modelled:.0%} of the catalogued flux in the beam, expected at least {options.min_modelled:.0%} "
            "(calibration.sky_radius_deg)"
        )
    solved = {
        "calibrator": calibrator.name,
        "flux_jy": float(calibrator.source.flux_jy(skymodel.CATALOGUE_HZ)),
        "flux_scale": calibrator.flux_origin + (" (variable source)" if calibrator.variable else ""),
        "mean_beam": calibrator.mean_beam,
        "field_sources": len(sources) - 1,
        "modelled_share": modelled,
        "problems": wrong,
        "other_candidates": [c.name for c in found[1:]],
        "notes": notes,
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
    solved["plot_failed"] = qa.save_plot(lambda: qa.plot_set(solved, observation, *spectra, gains), page)
    return solved


@dataclass(frozen=True)
class _SolvedOn:
    """Data (not calibrated) that a set was solved on, as gates.after_solve wants them; averages in fast mode."""

    data: np.ndarray
    model: np.ndarray
    flags: np.ndarray
    shares: np.ndarray
    time_mjd: np.ndarray
    times: int = 1  # integrations in one
    channels: int = 1  # channels in one


def _gates(ms: Path, seen: "_Seen", one: _SolvedOn, tables: Mapping[str, Path], config: Config, logfile: Path | None) -> dict:
    """Numbers and findings of a new set; its data are calibrated in place."""
    observation, rows, data, flags = seen.observation, seen.rows, one.data, one.flags
    nant, freq_hz = len(observation.antenna_names), observation.freq_hz
    inverse = caltables.per_antenna(tables, observation, one.time_mjd)
    if inverse is None:  # delays: CASA's to apply
        caltables.apply_casa(ms, tables, logfile)
        data = mset.read_grid(ms, "CORRECTED_DATA", len(data))
        flags = flags | mset.read_grid(ms, "FLAG", len(data))
    else:
        caltables.correct_all(data, flags, rows.ant_1, rows.ant_2, *(x[:, :, :: one.channels] for x in inverse))
    samples = one.times * one.channels
    noise, by_antenna = preparation.antenna_noise(data, flags, rows.ant_1, rows.ant_2, nant)
    return gates.after_solve(
        data=data, model=one.model, flags=flags, shares=one.shares if samples == 1 else one.shares / samples, noise=noise,
        antenna_noise=by_antenna, ant_1=rows.ant_1, ant_2=rows.ant_2, snr=caltables.snr_by_antenna(tables["G"], nant),
        uvw_m=np.stack([rows.uvw_m[k : k + one.times].mean(axis=0) for k in range(0, len(rows.uvw_m), one.times)]),
        names=observation.antenna_names, freq_hz=float(freq_hz.mean()),
        channel_width_hz=observation.channel_width_hz * one.channels, integration_s=rows.integration_s * one.times,
        one_gain=len(np.unique(caltables.read(tables["G"]).time_mjd)) == 1, options=config.gates,
    )  # fmt: skip


def _spectra(ms: Path, seen: "_Seen", flags, refant: int, tables: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Data over model of each antenna with the reference antenna, averaged over time, before calibration and after:
    (nant, nchan, npol), NaN where there is none. Delays (K) are left out of it."""
    rows, observation = seen.rows, seen.observation
    chosen = np.flatnonzero((rows.ant_1 == refant) ^ (rows.ant_2 == refant))
    few = replace(seen, rows=replace(rows, ant_1=rows.ant_1[chosen], ant_2=rows.ant_2[chosen], uvw_m=rows.uvw_m[:, chosen]))
    model, good = few.model()[..., None], ~flags[:, chosen]
    data = mset.read_rows_of(ms, "DATA", (np.arange(rows.shape[0])[:, None] * rows.shape[1] + chosen).ravel())
    data = data.reshape(good.shape)
    weight = (np.abs(model) ** 2 * good).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(weight > 0, (data * np.conj(model) * good).sum(axis=0) / weight, np.nan)
    before = np.full((len(observation.antenna_names), *ratio.shape[1:]), np.nan, complex)
    first = rows.ant_1[chosen] != refant
    other = np.where(first, rows.ant_1[chosen], rows.ant_2[chosen])
    before[other] = np.where(first[:, None, None], ratio, np.conj(ratio))
    solutions = {k: t for k, t in tables.items() if k != "K"}
    found = caltables.per_antenna(solutions, observation, rows.time_mjd)
    if found is None:  # other channels than the data's: CASA's to apply
        return before, np.full_like(before, np.nan)
    inverse = np.where(found[1], np.nan, found[0]).mean(axis=0)
    return before, before * inverse * np.conj(inverse[refant])


@dataclass(frozen=True)
class _Seen:
    """What an observation sees of some sources."""

    observation: mset.Observation
    rows: mset.Rows
    app_dec_deg: float
    sources: Sequence[Source]

    def model(self, time_mjd: np.ndarray | None = None, freq_hz: np.ndarray | None = None) -> np.ndarray:
        """Visibilities (ntime, nbaseline, nchan) at the observation's integrations and channels, or at others."""
        mjd = self.rows.time_mjd if time_mjd is None else time_mjd
        freq_hz = self.observation.freq_hz if freq_hz is None else freq_hz
        axes = track(*self.observation.phase_centre_deg, mjd).axes
        pointing = meridian_vector(np.radians(self.app_dec_deg))
        places = self.observation.positions_m, self.rows.ant_1, self.rows.ant_2
        return predict(self.sources, mjd, axes, pointing, *places, freq_hz)


def _solve_averaged(ms: Path, seen: _Seen, flags, refants, outputs, options: CalibrationConfig) -> tuple[float, dict, _SolvedOn]:
    """Fast mode: data averaged, the model at the middle of each average. Median model amplitude, quality by kind, averages."""
    rows, freq_hz = seen.rows, seen.observation.freq_hz
    nchan, chanbin = len(freq_hz), options.chanbin
    if nchan % chanbin:
        raise CalibrationError(f"{ms}: calibration.chanbin {chanbin} does not divide its {nchan} channels")
    timebin = max(1, round(options.timebin_s / rows.integration_s))
    used = flags | mset.outside(options.fast_uvrange, rows.uvw_m, freq_hz)[:, :, None, None]
    data, flags, weights = averaged(
        mset.read_grid(ms, "DATA", rows.shape[0]), used, preparation.shares(ms, rows), timebin, chanbin
    )
    starts = range(0, len(rows.time_mjd), timebin)
    mjd = np.array([rows.time_mjd[k : k + timebin].mean() for k in starts])
    model = seen.model(mjd, freq_hz.reshape(-1, chanbin).mean(axis=1))
    amplitude, nant = preparation.model_amplitude(ms, model), len(seen.observation.antenna_names)
    bandpass, gain = solve(
        data, model, flags, weights, rows.ant_1, rows.ant_2, nant, refants, options.min_snr,
        phase_channels(flags.mean(axis=(0, 1, 3))), phase_only=options.phase_only, fill=options.fill_channels // chanbin,
    )  # fmt: skip
    bandpass = Gains(*(np.repeat(values, chanbin, axis=1) for values in astuple(bandpass)))
    quality = caltables.write_solutions(ms, [rows.time_mjd.mean()], outputs, {"B": bandpass, "G": gain}, refants[0], chanbin)
    return amplitude, quality, _SolvedOn(data, model, flags, weights, mjd, timebin, chanbin)


def apply_set(
    ms: Path, chosen: Mapping, app_dec_deg: float, config: Config, logfile: Path | None, solved: Mapping | None = None
) -> dict:
    """CORRECTED_DATA in Jy and weights in Jy^-2 with the set that `{group}.caltables.json` names; the result for
    `{group}.apply.json`, with what the gates found: one that fails is no science, and is imaged nevertheless.

    solved  result of the set's own `solve`, where there is one: its receivers are compared with these

    Raises CalibrationError when the set's tables are not those that were chosen.
    """
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    if wrong := altered(zip(tables.values(), chosen["checksums"], strict=True)):
        raise CalibrationError(f"{ms}: {'; '.join(wrong)}. Choose again: contimg reprocess GROUP --from caltables")
    data, flags, rows = caltables.apply(ms, tables, logfile)
    observation = mset.read_observation(ms)
    weighed, noise = preparation.weigh(ms, data, flags, rows, len(observation.antenna_names))
    numbers, findings = gates.after_apply(
        antenna_noise=noise, channel_width_hz=observation.channel_width_hz, integration_s=rows.integration_s,
        names=observation.antenna_names, of_set=((solved or {}).get("gates") or {}).get("sefd_jy_by_antenna", {}),
        options=config.gates,
    )  # fmt: skip
    of_set = of_level(((solved or {}).get("gates") or {}).get("findings", []), "warn")
    findings += [Finding("of_the_set", "warn", f"its calibration set: {words}") for words in of_set]
    found = {"set_name": chosen["set_name"], "science": chosen["science"], **weighed}
    fitted, of_fit = _fit_catalogue(data, flags, observation, rows, app_dec_deg, config)
    findings += of_fit
    for one in findings:
        if one.level != "good":
            log.warning("%s: %s", one.level, one.words)
    return found | fitted | {"gates": numbers | {"findings": [one.as_json() for one in findings]}}


def _fit_catalogue(data, flags, observation, rows, app_dec_deg: float, config: Config) -> tuple[dict, list[Finding]]:
    """Amplitude of the catalogue's sources in calibrated data, of all and of each antenna; an integration in six."""
    near = read_sky(config).within(*observation.phase_centre_deg, 2 * _FIELD_RADIUS_DEG)
    if not len(near):
        why = f"the sky catalogue has no source within {2 * _FIELD_RADIUS_DEG:g} deg: amplitudes not compared with it"
        return {}, [unknown(name="model_fit", why=why)]
    apparent_jy = near.flux_jy.values * mean_beam(near.ra_deg.values, near.dec_deg.values, *observation.phase_centre_deg)
    brightest = as_sources(near.iloc[np.argsort(-apparent_jy)[:_FIT_SOURCES]])
    every = slice(min(_FIT_EVERY, len(data)) // 2, None, _FIT_EVERY)
    model = _Seen(observation, rows, app_dec_deg, brightest).model(rows.time_mjd[every])
    fit, error, by_antenna = model_fit(data[every], flags[every], model, rows.ant_1, rows.ant_2)
    warn, limit = config.gates.warn_model_misfit, config.calibration.max_model_misfit
    if not error < limit / 10:
        why = f"the catalogue's sources in the field are too faint for a comparison of amplitudes (error {error:.2f})"
        return {}, [unknown(name="model_fit", why=why)]
    names = observation.antenna_names
    odd = [names[a] for a, (one, of_one) in sorted(by_antenna.items()) if of_one < _FIT_ERROR and one < fit / 2]
    findings = [
        judged(
            name="model_fit", value=abs(fit - 1), warn=warn, fail=limit, percent=True,
            words=f"calibrated data have {fit:.0%} of the amplitude that the catalogue's sources should have",
            cause="Probably gains that changed since the calibrator, or a wrong flux of it, or a catalogue of another sky: "
            "compare other groups with this set; contimg registry retire SET, or mend the catalogue",
        )
    ]  # fmt: skip
    if odd:
        words = (
            f"the data of {len(odd)} antennas have less than half of the sky: {', '.join(odd)}. Cables exchanged, or phases moved"
        )
        findings.append(Finding("model_fit_by_antenna", "warn", words, float(len(odd))))
    return {"model_fit": fit, "model_fit_error": error, "antennas_not_fitting": odd}, findings


@njit(parallel=True, cache=True)
def _fit_sums(data, flags, model, cross):
    """For each baseline: sums of |M|^2, of Re(D conj(M)), of |D|^2, and the number of real values; (nbaseline, 4)."""
    ntime, nbaseline, nchan, npol = data.shape
    found = np.zeros((nbaseline, 4))
    for b in prange(nbaseline):
        if cross[b]:
            for t in range(ntime):
                for c in range(nchan):
                    m = model[t, b, c]
                    for p in range(npol):
                        if not flags[t, b, c, p]:
                            v = data[t, b, c, p]
                            found[b, 0] += m.real**2 + m.imag**2
                            found[b, 1] += v.real * m.real + v.imag * m.imag
                            found[b, 2] += v.real**2 + v.imag**2
                            found[b, 3] += 2
    return found


def model_fit(data, flags, model, ant_1, ant_2) -> tuple[float, float, dict[int, tuple[float, float]]]:
    """Amplitude of the model (ntime, nbaseline, nchan) in the data, and its error; a least-squares fit; no fit is (0, inf). And
    the same of each antenna's baselines."""

    def fitted(power: float, up: float, scatter: float, values: float) -> tuple[float, float]:
        if not (power > 0 and values > 0):
            return 0.0, np.inf
        fit = up / power
        return float(fit), float(np.sqrt(max(scatter - fit**2 * power, 0) / values / power))

    found = _fit_sums(data, flags, model, ant_1 != ant_2)
    antennas = np.unique(np.concatenate([ant_1, ant_2]))
    return *fitted(*found.sum(axis=0)), {int(a): fitted(*found[(ant_1 == a) ^ (ant_2 == a)].sum(axis=0)) for a in antennas}


def _modelled(sources, calibrator, catalogue, centre_deg) -> float:
    """Share of the catalogued apparent flux in the beam that the model has."""

    def apparent_jy(some):
        beams = mean_beam([s.ra_deg for s in some], [s.dec_deg for s in some], *centre_deg)
        return float(sum(b * s.flux_jy(skymodel.CATALOGUE_HZ) for b, s in zip(beams, some, strict=True)))

    return apparent_jy(sources) / apparent_jy(calibrator_model(calibrator, catalogue, 2 * _FIELD_RADIUS_DEG, 0.0))


def _reference_antennas(ms: Path, observation, rows, flags, wanted: str) -> list[int]:
    antennas = np.unique(np.concatenate([rows.ant_1, rows.ant_2]))
    by_baseline = flagging.fractions_by_row(flags).mean(axis=0)
    flagged = np.array([by_baseline[(rows.ant_1 == a) ^ (rows.ant_2 == a)].mean() for a in antennas])
    index = None
    if wanted != "auto":
        if wanted not in observation.antenna_names:
            raise CalibrationError(f"{ms}: calibration.refant {wanted!r} is no antenna of this observation")
        index = observation.antenna_names.index(wanted)
    return caltables.choose_reference_antenna(observation.positions_m, antennas, flagged, index)
