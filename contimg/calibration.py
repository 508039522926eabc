"""Solve a calibrator group and choose what a group is calibrated with: what the scripts of these stages call."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from contimg import caltables, flagging, preparation, qa, skymodel
from contimg import measurement_set as mset
from contimg.calibrators import find_candidates, mean_beam, read_calibrators, read_sky
from contimg.checksums import altered
from contimg.config import CalibrationConfig, Config
from contimg.errors import CalibrationError
from contimg.geometry import meridian_vector, track
from contimg.paths import Paths, set_name
from contimg.prediction import predict
from contimg.skymodel import Source, as_sources, calibrator_model, within
from contimg.solver import Gains, averaged, phase_channels, solve

log = logging.getLogger(__name__)

_FIELD_RADIUS_DEG = 2.0
_FIT_EVERY = 6  # integrations: enough for a fit of the catalogue to calibrated data


def solve_group(ms: Path, group: str, app_dec_deg: float, config: Config, logfile: Path | None) -> dict:
    """Model into MODEL_DATA, solutions into the group's tables. Returns the result for `{group}.solve.json`."""
    options = config.calibration
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
    notes = []
    if not len(within(catalogue, *observation.phase_centre_deg, _FIELD_RADIUS_DEG)):
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
        amplitude, quality = _solve_averaged(ms, seen, flags, refants, outputs, options)
    else:
        model = seen.model()
        amplitude = preparation.write_model(ms, model)
        channels = phase_channels(flags.mean(axis=(0, 1, 3)))
        solver = "casa" if options.do_k else options.solver  # delays are CASA's
        if solver == "casa":
            caltables.restore_flags(ms, caltables.PREPARED_FLAGS)
            quality = caltables.solve_casa(ms, outputs, [names[a] for a in refants], options, logfile, channels)
        else:
            used = flags | mset.outside(options.uvrange, rows.uvw_m, observation.freq_hz)[:, :, None, None]
            data, weights = mset.read_grid(ms, "DATA", rows.shape[0]), preparation.shares(ms, rows)
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
    wrong = caltables.problems(quality, options)
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
    }
    page = paths.qa(group, "calibration")
    page.parent.mkdir(parents=True, exist_ok=True)
    spectra = _spectra(ms, seen, flags, refants[0], outputs)
    qa.plot_set(page, solved, observation, *spectra, caltables.read(outputs["G"]))
    return solved


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


def _solve_averaged(ms: Path, seen: _Seen, flags, refants, outputs, options: CalibrationConfig) -> tuple[float, dict]:
    """Fast mode: data averaged, the model at the middle of each average. Median model amplitude, quality by kind."""
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
    return amplitude, quality


def apply_set(ms: Path, chosen: Mapping, app_dec_deg: float, config: Config, logfile: Path | None) -> dict:
    """CORRECTED_DATA in Jy and weights in Jy^-2 with the set that `{group}.caltables.json` names; the result for
    `{group}.apply.json`. Raises CalibrationError when its tables are not those that were chosen, or when the result is
    far from the catalogue."""
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    if wrong := altered(zip(tables.values(), chosen["checksums"], strict=True)):
        raise CalibrationError(f"{ms}: {'; '.join(wrong)}. Choose again: contimg reprocess GROUP --from caltables")
    data, flags, rows = caltables.apply(ms, tables, logfile)
    found = {"set_name": chosen["set_name"], "science": chosen["science"], **preparation.weigh(ms, data, flags, rows)}
    observation, catalogue = mset.read_observation(ms), read_sky(config)
    near = as_sources(within(catalogue, *observation.phase_centre_deg, 2 * _FIELD_RADIUS_DEG))
    if near:
        every = slice(min(_FIT_EVERY, len(data)) // 2, None, _FIT_EVERY)
        model = _Seen(observation, rows, app_dec_deg, near).model(rows.time_mjd[every])
        fit, error = model_fit(data[every], flags[every], model, rows.ant_1 != rows.ant_2)
        limit = config.calibration.max_model_misfit
        if np.isfinite(error):
            found |= {"model_fit": fit, "model_fit_error": error}
        if error < limit / 10 and abs(fit - 1) > limit:
            raise CalibrationError(
                f"{ms}: calibrated with {chosen['set_name']} the catalogue's sources have {fit:.2f} of their amplitude, expected "
                f"1 within {limit:g} (calibration.max_model_misfit). Retire the set, or mend the catalogue."
            )
    return found


def model_fit(data, flags, model, cross) -> tuple[float, float]:
    """Amplitude of the model (ntime, nbaseline, nchan) in the data, and its error; a least-squares fit; no fit is (0, inf)."""
    power = up = scatter = values = 0.0
    for seen, bad, expected in zip(data, flags, model, strict=True):
        good = ~bad & cross[:, None, None]
        power += float(((np.abs(expected) ** 2)[..., None] * good).sum(dtype=float))
        up += float(np.where(good, (seen * np.conj(expected)[..., None]).real, 0).sum(dtype=float))
        scatter += float(np.where(good, np.abs(seen) ** 2, 0).sum(dtype=float))
        values += 2 * np.count_nonzero(good)
    if not power > 0:
        return 0.0, np.inf
    fit = up / power
    return fit, float(np.sqrt(max(scatter - fit**2 * power, 0) / values / power))


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
