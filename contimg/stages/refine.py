"""The group's own gains, inside the pass of `apply` over the data: found against the catalogue, or
against the group's own image; accepted, or not; its result is `{group}.refine.json`."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contimg.calibration import consistency, far, faults, gates, refine
from contimg.calibration.apply import correct_in_time
from contimg.calibration.beamfit import airy_fwhm_deg
from contimg.calibration.field import FIELD_RADIUS_DEG, Calibrated, Seen
from contimg.calibration.solver import Gains, averaged
from contimg.calibration.tables import write_gains
from contimg.clock import now
from contimg.config import CalibrationConfig, Config, GatesConfig
from contimg.findings import Finding
from contimg.paths import Paths
from contimg.sky.calibrators import mean_beam, read_corrected
from contimg.sky.catalogues import CATALOGUE_HZ
from contimg.sky.far import far_sources
from contimg.sky.geometry import (
    SKY_ARCSEC_S,
    SPEED_OF_LIGHT_M_S,
    apparent_vectors,
    meridian_frame_m,
    meridian_vector,
    track,
)
from contimg.sky.skymodel import Source, as_sources
from contimg.stages.job import by_whom
from contimg.stages.own_image import own_sources
from contimg.store.files import remove, write_json

log = logging.getLogger(__name__)
_WIDTH_HZ = 4e6  # of averaged channels: what that takes from a source is in the model
_MOST_SOURCES = 100  # the apparently brightest: the others are a few per cent of the power
_FITTED_SOURCES = 40  # that get amplitudes of their own
_FIT_TIMES, _FIT_CHANNELS = 6, 16
_SHORT_M = 100.0  # baselines that fluxes are not fitted to: all that no catalogue has is seen there
_LEAST_BEAM = 0.3  # of a source that the flux scale is taken from: farther out, beams are not known
_FEW_SOURCES = 5
_MOST_SCALE_ERROR = 0.03
_ENOUGH_EXPLAINED = 0.4  # of the coherent power, by the catalogue: with less there is more to see
_OWN_IMAGES = 3
_MOST_DOUBLES = 8
_DOUBLE_TIMES, _DOUBLE_CHANNELS = 4, 8
_OUTSHINES = 0.9  # of the power of the field, by one source: antennas' pointing is known from it
_POINTING_KNOWN_DEG = 0.05
_OFF = "rejected: switched off (calibration.refine)"


@dataclass(frozen=True)
class Refined:
    """Gains (ntime, nant, npol) to be taken out of the data, flux scale included; None: nothing is
    to be changed. `solved`: what they were made of."""

    result: dict
    gain: np.ndarray | None = None
    solved: refine.FieldGains | None = None
    faulty: tuple[faults.Fault, ...] = ()
    explained: float = 0.0  # share of the coherent power
    findings: tuple[Finding, ...] = ()

    @property
    def is_enough(self) -> bool:
        """Whether nothing better need be looked for."""
        settled = self.solved is not None or refine.UNCHANGED in self.result["refine"]
        return settled and self.explained >= _ENOUGH_EXPLAINED


@dataclass(frozen=True)
class _Sky:
    """Sources, and the visibilities (ntime, nbaseline, nchan) of averaged channels that they
    give."""

    sources: Sequence[Source]
    apparent_jy: np.ndarray  # mean
    beam: np.ndarray  # mean response
    seen: Seen
    freq_hz: np.ndarray
    width_hz: float
    model: np.ndarray
    # the first sources are companions of others: number of the other, and the flux over its
    parents: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, sources: Sequence[Source], one: Calibrated, freq_hz, width_hz: float) -> "_Sky":
        """The apparently brightest sources first."""
        places = np.array([[s.ra_deg, s.dec_deg] for s in sources]).T
        beam = mean_beam(*places, *one.observation.phase_centre_deg)
        apparent_jy = beam * np.array([float(s.flux_jy(freq_hz.mean())) for s in sources])
        order = np.argsort(-apparent_jy)[:_MOST_SOURCES]
        chosen = [sources[k] for k in order]
        seen = Seen(one.observation, one.rows, one.app_dec_deg, chosen, one.beam)
        model = seen.model(freq_hz=freq_hz, averaged_hz=width_hz)
        return cls(seen.sources, apparent_jy[order], beam[order], seen, freq_hz, width_hz, model)

    def with_companions(self, found: Sequence[tuple[int, float, Source]]) -> "_Sky":
        """And sources beside these: (number of the source, flux over its, companion)."""
        first = len(found)
        seen = replace(self.seen, sources=[one for _, _, one in found])
        more = seen.model(freq_hz=self.freq_hz, averaged_hz=self.width_hz)
        index = [k for k, _, _ in found]
        return replace(
            self,
            sources=[*seen.sources, *self.sources],
            apparent_jy=np.concatenate([self.apparent_jy[index], self.apparent_jy]),
            beam=np.concatenate([self.beam[index], self.beam]),
            seen=replace(seen, sources=[*seen.sources, *self.sources]),
            model=self.model + more,
            parents=tuple((first + k, share) for k, share, _ in found),
        )

    def scaled(self, scale: np.ndarray) -> np.ndarray:
        """The model with other fluxes of the first sources: times `scale`."""
        changed = np.flatnonzero(scale != 1)
        if not len(changed):
            return self.model
        some = replace(self.seen, sources=[self.sources[k] for k in changed])
        more = some.model(freq_hz=self.freq_hz, averaged_hz=self.width_hz, scale=scale[changed] - 1)
        return self.model + more


@dataclass(frozen=True)
class _Fluxes:
    """Sources' fluxes in data: their common factor over the catalogue's, its error, how many it is
    taken from, their scatter, and what the model must have of each."""

    factor: float
    error: float
    number: int
    scatter: float
    mended: np.ndarray
    amplitude: np.ndarray
    amplitude_error: np.ndarray


def subtract_far(one: Calibrated) -> list[far.Found]:
    """Take sources in the far sidelobes out of the data, in place."""
    pointing = meridian_vector(np.radians(one.app_dec_deg))
    return far.subtract(
        data=one.data,
        flags=one.flags,
        weights=one.weights,
        sources=far_sources(one.rows.time_mjd, pointing),
        observation=one.observation,
        rows=one.rows,
        pointing=pointing,
    )


def refine_and_correct(
    ms: Path,
    group: str,
    one: Calibrated,
    config: Config,
    far_found: Sequence[far.Found],
    change: Mapping | None = None,
) -> dict:
    """Refine a group in place: its own gains, faulty antennas, sources in the far sidelobes. Writes
    the table and `{group}.refine.json`; returns that, with the findings as they are.

    ms         names antennas and channels of the table
    far_found  what was found in the far sidelobes before
    change     between the two sets that gains were interpolated between
    """
    begin, paths = time.perf_counter(), Paths.of(config)
    options, names = config.calibration, one.observation.antenna_names
    refined = refine_group(one, config)
    if options.flag_faulty:
        _flag(one, refined.faulty)
    if refined.gain is not None:
        gain = np.ascontiguousarray(refined.gain)
        correct_in_time(one.data, one.weights, one.rows.ant_1, one.rows.ant_2, gain)
    if options.subtract_far and any(found.subtracted for found in far_found):
        subtract_far(one)  # what gains that had moved left of it
    if scale := refined.result.get("flux_scale"):
        _of_both_sets(scale, change)
    table = paths.field_gains(group)
    _write_table(ms, table, one, refined)
    findings = [
        Finding("antenna_fault", "warn", fault.words + (" (flagged)" * options.flag_faulty))
        for fault in refined.faulty
    ]
    findings += refined.findings
    result = {
        "stage": "refine",
        "group": group,
        "model_fit": None,
        "model_fit_error": None,
        **refined.result,
        "table": str(table) if refined.gain is not None else None,
        "antennas": faults.as_json(refined.faulty, names, options.flag_faulty),
        "far_sources": [found.as_json() for found in far_found],
        "seconds": round(time.perf_counter() - begin, 3),
        "finished_at": now(),
        **by_whom(),
    }
    write_json(paths.result(group, "refine"), result)
    return result | {"findings": findings}


def _of_both_sets(scale: dict, change: Mapping | None) -> None:
    """How far apart two sets are is an error of the set's flux scale."""
    if change and change["flux_ratio"]:
        apart = abs(change["flux_ratio"] - 1) / 2
        scale["set_error"] = float(np.hypot(scale["set_error"] or 0, apart))
        if scale["applied"] == "set":
            scale["error"] = scale["set_error"]


def _flag(one: Calibrated, faulty: Sequence[faults.Fault]) -> None:
    """Flag antennas, in place."""
    for fault in faulty:
        mine, which = fault.among(one.rows.ant_1, one.rows.ant_2)
        one.flags[:, mine, :, which] = True


def _write_table(ms: Path, table: Path, one: Calibrated, refined: Refined) -> None:
    """The gains as a table of CASA's, a row for each integration and antenna; none where none were
    found, also none of an earlier attempt."""
    if refined.gain is None:
        remove(table)
        return
    gain = refined.gain.transpose(1, 0, 2)
    error, flags = np.zeros(gain.shape), np.zeros(gain.shape, bool)
    if refined.solved is not None:
        error = np.where(np.isfinite(refined.solved.error), refined.solved.error, 0)
        error = error.transpose(1, 0, 2)
        flags = error == 0  # not solved: lost, or no part of this
    snr = np.where(error > 0, 1 / np.where(error > 0, error, 1), 0)
    gains = Gains(gain, flags, error * np.abs(gain), snr)
    reference = int(np.argmax(snr.sum(axis=(1, 2))))
    write_gains(ms, one.rows.time_mjd, table, gains, reference)


def refine_group(one: Calibrated, config: Config) -> Refined:
    """Find gains, and whether they are to be used; data are not changed.

    Against the catalogue; where that has too little of what is seen, against the sources in an
    image of the group's own.
    """
    options = config.calibration
    coarse, freq_hz, width_hz = _averaged(one)
    catalogue = read_corrected(config.catalogues, options)
    centre_deg = one.observation.phase_centre_deg
    near = catalogue.within(*centre_deg, 2 * FIELD_RADIUS_DEG)
    attempts = []
    if len(near):
        around = as_sources(catalogue.within(*centre_deg, 3 * FIELD_RADIUS_DEG))
        sky = _Sky.of(around, one, freq_hz, width_hz)
        attempts.append(_against_sky(sky, one, coarse, config))
        if options.refine == "off" or attempts[0].is_enough:
            return attempts[0]
    elif options.refine == "off":
        return Refined(result={"refine": _OFF, "sky": "none"})
    attempts.append(_against_own_image(one, coarse, freq_hz, width_hz, config))
    best = max(attempts, key=lambda attempt: (attempt.solved is not None, attempt.explained))
    if len(near) and best is attempts[1]:
        found = refine.sums(coarse=coarse, model=sky.model)
        gain = _ones(coarse) if best.gain is None else best.gain
        fit, error, _ = refine.model_fit(found=found, coarse=coarse, gain=gain)
        best.result.update(model_fit=fit, model_fit_error=error)
    return best


def _averaged(one: Calibrated) -> tuple[refine.Coarse, np.ndarray, float]:
    """Data averaged over channels, the frequencies, and the width of the averages (0: none)."""
    freq_hz, rows = one.observation.freq_hz, one.rows
    most = max(1, int(_WIDTH_HZ / one.observation.channel_width_hz))
    channels = max(n for n in range(1, most + 1) if len(freq_hz) % n == 0)
    data, flags, weights = averaged(one.data, one.flags, one.weights, 1, channels)
    weights[flags] = 0
    weights[:, rows.ant_1 == rows.ant_2] = 0
    nant = len(one.observation.antenna_names)
    coarse = refine.Coarse(data, weights, rows.ant_1, rows.ant_2, nant)
    width_hz = channels * one.observation.channel_width_hz if channels > 1 else 0.0
    return coarse, freq_hz.reshape(-1, channels).mean(axis=1), width_hz


def _against_sky(sky: _Sky, one: Calibrated, coarse: refine.Coarse, config: Config) -> Refined:
    """The outcome with the catalogue as the sky."""
    options = config.calibration
    found = refine.sums(coarse=coarse, model=sky.model)
    fit = _fit_of(sky, coarse)
    before = _fluxes(sky, fit, _ones(coarse))
    interval = refine.interval_for(found=found, coarse=coarse)
    if options.refine == "off" or interval is None:
        why = _OFF if options.refine == "off" else "rejected: too little catalogued sky"
        return _outcome(None, why, [], sky, found, one, coarse, before, None, config)
    reference = _reference(coarse)
    faulty, why = None, []
    for amplitudes in (True, False) if options.refine == "ap" else (False,):
        common = {"reference": reference, "interval": interval, "amplitudes": amplitudes}
        if faulty is None:
            faulty = _faults(found, common, sky, one, coarse, options)
            if faulty and options.flag_faulty and _share(faulty, coarse) < 0.5:
                coarse, found = _without(coarse, found, faulty)
                fit = _fit_of(sky, coarse)
                before = _fluxes(sky, fit, _ones(coarse))
        first, _ = refine.normalised(refine.solve(found=found, coarse=coarse, **common), coarse)
        scale = _fluxes(sky, fit, first.gain)
        if doubles := _companions(sky, coarse, first.gain, scale):
            sky = sky.with_companions(doubles)
            fit = _fit_of(sky, coarse)
            mended = refine.sums(coarse=coarse, model=sky.model)
            first, _ = refine.normalised(
                refine.solve(found=mended, coarse=coarse, **common), coarse
            )
            scale = _fluxes(sky, fit, first.gain)
        mended = refine.sums(coarse=coarse, model=sky.scaled(scale.mended))
        gains, _ = refine.normalised(refine.solve(found=mended, coarse=coarse, **common), coarse)
        scale = _fluxes(sky, fit, gains.gain)
        trial = refine.tried(
            gains=gains,
            found=mended,
            coarse=coarse,
            sky=scale.factor,
            faulty=_share(faulty, coarse),
            scatter_before=before.scatter / max(before.factor, 1e-3),
            scatter_after=scale.scatter / max(scale.factor, 1e-3),
        )
        wrong = refine.against(trial, amplitudes, options)
        if not wrong:
            verdict = "ap" if amplitudes else "phase"
            return _outcome(
                gains, verdict, why, sky, mended, one, coarse, scale, trial, config, faulty
            )
        why.append("; ".join(wrong))
        if wrong[0].startswith(refine.UNCHANGED):
            break
    if any(refine.ANOTHER_SKY in words for words in why):
        faulty = None  # not the antennas' fault
    return _outcome(
        None,
        f"rejected: {why[0]}",
        why,
        sky,
        found,
        one,
        coarse,
        before,
        trial,
        config,
        faulty,
        tried=gains,
    )


def _companions(
    sky: _Sky, coarse: refine.Coarse, gain: np.ndarray, scale: _Fluxes
) -> list[tuple[int, float, Source]]:
    """Sources of which too little is in the data, and what is beside them: (number, flux over its,
    companion)."""
    relative, error = scale.amplitude / scale.factor, scale.amplitude_error / scale.factor
    lost = (1 - relative) * sky.apparent_jy[: len(relative)]
    double = (1 - relative > np.maximum(5 * error, 0.1)) & (relative > 0.2) & (error < 0.05)
    chosen = [int(k) for k in np.argsort(-lost) if double[k]][:_MOST_DOUBLES]
    if not chosen or sky.parents:
        return []
    ntime, nchan = len(coarse.data), len(sky.freq_hz)
    channels = slice(None, None, max(1, nchan // _DOUBLE_CHANNELS))
    few_hz = sky.freq_hz[channels]
    times = np.unique(np.linspace(0, ntime - 1, _DOUBLE_TIMES).round().astype(int))
    predicted = sky.seen.predictor(freq_hz=few_hz, averaged_hz=sky.width_hz)
    model = sky.scaled(scale.mended)[:, :, channels] * scale.factor
    uvw_m, one, two = sky.seen.rows.uvw_m, coarse.ant_1, coarse.ant_2
    long = np.linalg.norm(uvw_m[ntime // 2], axis=1) >= _SHORT_M
    parts, of_source = [], {k: [] for k in chosen}
    for t in times:
        weights = coarse.weights[t, long, channels]
        factor = 1 / (gain[t, one] * np.conj(gain[t, two]))[long, None]
        total = np.maximum(weights.sum(axis=-1), 1e-30)
        data = (weights * coarse.data[t, long, channels] * factor).sum(axis=-1) / total
        turns = uvw_m[t, long, :2, None] / SPEED_OF_LIGHT_M_S * few_hz
        parts.append((data - model[t, long], weights.sum(axis=-1), turns.transpose(0, 2, 1)))
        for k in chosen:
            of_source[k].append(predicted(t, [k])[long])
    left, weights = (np.concatenate([part[i].ravel() for part in parts]) for i in (0, 1))
    turns = np.concatenate([part[2].reshape(-1, 2) for part in parts])
    found = []
    for k in chosen:
        source = np.concatenate([values.ravel() for values in of_source[k]])
        share, noise, east, north = refine.companion(
            left=left, source=source, weights=weights, turns=turns
        )
        if share > max(0.1, 6 * noise):
            found.append((k, share, _beside(sky.sources[k], share, east, north)))
    return found


def _beside(source: Source, share: float, east_rad: float, north_rad: float) -> Source:
    """A companion with a share of a source's flux, and its spectrum."""
    east_deg, north_deg = np.degrees(east_rad), np.degrees(north_rad)
    return replace(
        source,
        name=f"{source.name} companion",
        ra_deg=float(source.ra_deg + east_deg / np.cos(np.radians(source.dec_deg))),
        dec_deg=float(source.dec_deg + north_deg),
        log_flux=(source.log_flux[0] + float(np.log10(share)), *source.log_flux[1:]),
    )


def _share(faulty: Sequence[faults.Fault], coarse: refine.Coarse) -> float:
    """Of the antennas, that do not fit the sky."""
    wrong = {a for fault in faulty if fault.kind != "noisy" for a in fault.antennas}
    return len(wrong) / len(np.unique([coarse.ant_1, coarse.ant_2]))


def _ones(coarse: refine.Coarse) -> np.ndarray:
    """Gains (ntime, nant, npol) that change nothing."""
    return np.ones((len(coarse.data), coarse.nant, coarse.data.shape[3]), complex)


def _reference(coarse: refine.Coarse) -> int:
    """The antenna with the most weight: phases start from it."""
    weight = coarse.weights.sum(axis=(0, 2, 3), dtype=float)
    by_antenna = np.bincount(coarse.ant_1, weight, coarse.nant)
    return int(np.argmax(by_antenna + np.bincount(coarse.ant_2, weight, coarse.nant)))


def _faults(
    found: refine.Sums,
    common: Mapping,
    sky: _Sky,
    one: Calibrated,
    coarse: refine.Coarse,
    options: CalibrationConfig,
) -> list[faults.Fault]:
    """Antennas that do not fit, by the amplitude that the sky has in their data."""
    gains = refine.solve(found=found, coarse=coarse, **{**common, "amplitudes": True})
    every = np.isfinite(gains.error)
    information = np.where(every, 1 / np.where(every, gains.error, 1) ** 2, 0).sum(axis=0)
    known = information > 0
    error = np.where(known, np.sqrt(gains.interval / np.where(known, information, 1)), 0)
    size = np.where(known, np.abs(gains.gain).mean(axis=0), np.nan)
    size = np.where(gains.lost, 0, size) / np.nanmedian(size)
    # phases that follow the noise take some power out of it
    size = np.sqrt(np.maximum(size**2 - error**2 * len(gains.gain) / gains.interval, 0))
    return faults.find(
        turned=lambda: coarse.turned(gains.gain / np.abs(gains.gain)),
        model=sky.model,
        amplitude=size,
        error=error,
        spectra=one.spectra,
        other_spectra=one.other_spectra,
        sefd=one.sefd_jy,
        noisy_factor=options.noisy_factor,
        names=one.observation.antenna_names,
    )


def _without(
    coarse: refine.Coarse, found: refine.Sums, faulty: Sequence[faults.Fault]
) -> tuple[refine.Coarse, refine.Sums]:
    """Without antennas that are to be flagged."""
    good = np.ones((len(coarse.ant_1), coarse.weights.shape[3]), np.float32)
    for fault in faulty:
        good[fault.among(coarse.ant_1, coarse.ant_2)] = 0
    coarse = replace(coarse, weights=coarse.weights * good[:, None])
    kept = (found.product, found.power, found.total, found.count)
    return coarse, refine.Sums(*(values * good for values in kept))


def _against_own_image(
    one: Calibrated, coarse: refine.Coarse, freq_hz: np.ndarray, width_hz: float, config: Config
) -> Refined:
    """The outcome with the sources of the group's own image as the sky: phases first, then all, an
    image each. The flux scale is the set's."""
    options = config.calibration
    gain, gains, faulty = _ones(coarse), None, []
    for attempt in range(_OWN_IMAGES):
        sources = own_sources(
            one=one, coarse=coarse.turned(gain), freq_hz=freq_hz, width_hz=width_hz, config=config
        )
        if not sources:
            break
        sky = _Sky.of(sources, one, freq_hz, width_hz)
        found = refine.sums(coarse=coarse, model=sky.model)
        interval = refine.interval_for(found=found, coarse=coarse)
        if interval is None:
            break
        common = {
            "reference": _reference(coarse),
            "interval": interval,
            "amplitudes": options.refine == "ap" and attempt > 0,
        }
        if attempt == _OWN_IMAGES - 1:
            faulty = _faults(found, common, sky, one, coarse, options)
            if faulty and options.flag_faulty and _share(faulty, coarse) < 0.5:
                coarse, found = _without(coarse, found, faulty)
        gains, _ = refine.normalised(refine.solve(found=found, coarse=coarse, **common), coarse)
        gain = gains.gain
    if gains is None:
        words = "rejected: too little sky, in catalogue and image"
        return Refined(result={"refine": words, "sky": "none"})
    scale = _fluxes(sky, _fit_of(sky, coarse), gain)
    trial = refine.tried(
        gains=gains,
        found=found,
        coarse=coarse,
        sky=scale.factor,
        faulty=_share(faulty, coarse),
        scatter_before=scale.scatter,
        scatter_after=scale.scatter,
    )
    wrong = refine.against(trial, gains.amplitudes, options)
    verdict = f"rejected: {'; '.join(wrong)}" if wrong else "ap" if gains.amplitudes else "phase"
    return _outcome(
        None if wrong else gains,
        verdict,
        wrong,
        sky,
        found,
        one,
        coarse,
        scale,
        trial,
        config,
        faulty,
        own_image=True,
    )


def _outcome(
    gains: refine.FieldGains | None,
    verdict: str,
    why: Sequence[str],
    sky: _Sky,
    found: refine.Sums,
    one: Calibrated,
    coarse: refine.Coarse,
    scale: _Fluxes,
    trial: refine.Trial | None,
    config: Config,
    faulty: Sequence[faults.Fault] | None = None,
    own_image: bool = False,
    tried: refine.FieldGains | None = None,
) -> Refined:
    """Gains with the flux scale that is asked for, or can be had, and what is to be said of
    them.

    tried  gains that were not accepted: how far they moved is an error of the set's scale, too
    """
    options, limits = config.calibration, config.gates
    gain = _ones(coarse) if gains is None else gains.gain
    fit, fit_error, explained = refine.model_fit(found=found, coarse=coarse, gain=gain)
    unfit = verdict.startswith("rejected") and refine.UNCHANGED not in verdict and verdict != _OFF
    usable = (
        not own_image
        and not unfit
        and options.refine != "off"
        and scale.number >= _FEW_SOURCES
        and scale.error < _MOST_SCALE_ERROR * scale.factor
    )
    applied = options.flux_scale if usable else "set"
    factor = scale.factor if applied == "catalogue" else 1.0
    moved = gains if gains is not None else tried
    set_error = refine.scale_error(moved) if moved is not None else None
    log.info("%s; the catalogue's sources have %.4f +- %.4f", verdict, scale.factor, scale.error)
    result = {
        "refine": verdict,
        "sky": "own image" if own_image else "catalogue",
        "sky_sources": len(sky.sources),
        "interval": gains.interval if gains is not None else None,
        "explained": explained,
        "model_fit": None if own_image else fit,
        "model_fit_error": None if own_image else fit_error,
        "flux_scale": {
            "applied": applied,
            "factor": factor,
            "error": scale.error if applied == "catalogue" else set_error,
            "set": 1.0,
            "set_error": set_error,
            "catalogue": None if own_image else scale.factor,
            "catalogue_error": None if own_image else scale.error,
            "sources": 0 if own_image else scale.number,
            "scatter": scale.scatter,
        },
        "trial": trial.as_json() if trial else None,
        "not_accepted": list(why),
        "doubles": [s.name for s in sky.sources[: len(sky.parents)]],
        "own_sources": [
            {"ra_deg": s.ra_deg, "dec_deg": s.dec_deg, "flux_jy": float(s.flux_jy(CATALOGUE_HZ))}
            for s in sky.sources * (own_image and gains is not None)
        ],
    }
    changed = gains is not None or factor != 1.0
    findings = []
    if not own_image:
        result["parts"], findings = _parts(sky, one, coarse, scale, gain, limits)
        if pointing := _pointings(sky, one, coarse, found):
            result["pointing_east_deg"] = pointing
    if gains is not None:
        result["gains"] = _by_antenna(gains, one)
        result["moved_sky"], moved = _moved_sky(gains, one, sky.freq_hz, limits)
        findings += moved
    return Refined(
        gain=gain * np.sqrt(factor) if changed else None,
        solved=gains,
        faulty=tuple(faulty or ()),
        explained=explained,
        findings=tuple(findings),
        result=result,
    )


def _parts(
    sky: _Sky,
    one: Calibrated,
    coarse: refine.Coarse,
    scale: _Fluxes,
    gain: np.ndarray,
    limits: GatesConfig,
) -> tuple[dict, list[Finding]]:
    """The sky in parts of band and time, and in X and Y."""
    found = consistency.sums(
        coarse=coarse,
        model=sky.scaled(scale.mended),
        gain=gain,
        uvw_m=one.rows.uvw_m,
        freq_hz=sky.freq_hz,
    )
    return consistency.judge(found=found, freq_hz=sky.freq_hz, limits=limits)


def _pointings(
    sky: _Sky, one: Calibrated, coarse: refine.Coarse, found: refine.Sums
) -> dict[str, list[float]]:
    """Where each antenna points (deg to the east of the array), and the error, where one source
    outshines the field."""
    power_jy = sky.apparent_jy**2
    if power_jy.max() < _OUTSHINES * power_jy.sum():
        return {}
    brightest = sky.sources[int(np.argmax(power_jy))]
    vectors = apparent_vectors([brightest.ra_deg], [brightest.dec_deg], one.rows.time_mjd)
    gain, error = refine.by_integration(found=found, coarse=coarse, reference=_reference(coarse))
    aside, of_it = consistency.pointing_east_deg(
        gain=gain,
        error=error,
        east_deg=np.degrees(np.arcsin(vectors[:, 0, 1])),
        fwhm_deg=airy_fwhm_deg(float(sky.freq_hz.mean())),
    )
    names = one.observation.antenna_names
    return {
        names[a]: [round(float(aside[a]), 4), round(float(of_it[a]), 4)]
        for a in np.flatnonzero(np.isfinite(aside) & (of_it < _POINTING_KNOWN_DEG))
    }


def _by_antenna(gains: refine.FieldGains, one: Calibrated) -> dict[str, dict[str, list[float]]]:
    """Mean gains since the set: amplitude and phase (deg) of X and Y by station."""
    mean, known = gains.gain.mean(axis=0), np.isfinite(gains.error).any(axis=(0, 2))
    size = np.abs(gains.gain).mean(axis=0)
    return {
        one.observation.antenna_names[a]: {
            "amplitude": size[a].round(4).tolist(),
            "phase_deg": np.degrees(np.angle(mean[a])).round(2).tolist(),
        }
        for a in np.flatnonzero(known)
    }


def _moved_sky(
    gains: refine.FieldGains, one: Calibrated, freq_hz: np.ndarray, limits: GatesConfig
) -> tuple[dict | None, list[Finding]]:
    """Phases that moved along the array since the set, as if the sky had."""
    mean = gains.gain.mean(axis=0)
    known = np.isfinite(gains.error).any(axis=0) & ~gains.lost
    middle = track(*one.observation.phase_centre_deg, one.rows.time_mjd[len(gains.gain) // 2][None])
    places_m = meridian_frame_m(one.observation.positions_m) @ middle.axes[0, :2].T
    number, _ = gates.gradient_of(np.angle(mean), known, places_m, float(freq_hz.mean()))
    if not number or number["arcsec"] <= limits.moved_sky_arcsec:
        return number, []
    pace = SKY_ARCSEC_S * np.cos(np.radians(one.app_dec_deg))
    words = (
        f"phases moved along the array since the set, as if the sky were {number['arcsec']:.1f} "
        f"arcsec off ({number['east_arcsec']:+.1f} east, {number['north_arcsec']:+.1f} north): a "
        f"clock that is off by {abs(number['east_arcsec']) / pace:.2f} s, a position, or the "
        "ionosphere; refined"
    )
    return number, [Finding("moved_sky", "warn", words, number["arcsec"], limits.moved_sky_arcsec)]


def _fit_of(sky: _Sky, coarse: refine.Coarse) -> refine.SourceFit:
    """The apparently brightest sources, in some integrations and channels."""
    number = min(_FITTED_SOURCES + len(sky.parents), len(sky.sources))
    channels = slice(None, None, max(1, len(sky.freq_hz) // _FIT_CHANNELS))
    ntime = len(coarse.data)
    times = np.unique(np.linspace(0, ntime - 1, min(_FIT_TIMES, ntime)).round().astype(int))
    one = sky.seen.predictor(freq_hz=sky.freq_hz[channels], averaged_hz=sky.width_hz)

    def models(t: int) -> np.ndarray:
        return np.stack([one(t, [k]) for k in range(number)])

    def rest(t: int) -> np.ndarray:
        return one(t, slice(number, None)) if len(sky.sources) > number else np.float32(0)

    length_m = np.linalg.norm(sky.seen.rows.uvw_m[ntime // 2], axis=1)
    use = (length_m >= _SHORT_M).astype(np.float32)
    return refine.SourceFit(coarse, times, channels, models, rest, use)


def _fluxes(sky: _Sky, fit: refine.SourceFit, gain: np.ndarray) -> _Fluxes:
    amplitude, error = fit.amplitudes(gain)
    number = len(amplitude)
    use = (sky.beam[:number] >= _LEAST_BEAM) & (error < 0.2)
    if use.sum() < 2:
        use = error <= np.sort(error)[min(len(error), _FEW_SOURCES) - 1]
    whole = amplitude.copy()  # a catalogue's flux is that of both
    for k, (parent, share) in enumerate(sky.parents):
        whole[parent] += share * amplitude[k]
        use[k] = False
    factor, of_it, scatter = refine.ensemble(whole[use], error[use])
    mended = refine.mended(amplitude, error, max(factor, 1e-3))
    return _Fluxes(factor, of_it, int(use.sum()), scatter, mended, amplitude, error)
