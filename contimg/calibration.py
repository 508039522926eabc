"""Solve a calibrator group and choose what a group is calibrated with: what the scripts of these stages call."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contimg import caltables, flagging, preparation, skymodel
from contimg import measurement_set as mset
from contimg.calibrators import find_candidates, mean_beam, read_calibrators
from contimg.config import Config
from contimg.errors import CalibrationError
from contimg.geometry import meridian_vector, track
from contimg.paths import Paths
from contimg.registry import altered
from contimg.skymodel import calibrator_model, predict, read_catalogue, within
from contimg.solver import phase_channels, solve

log = logging.getLogger(__name__)

_FIELD_RADIUS_DEG = 2.0


def solve_group(ms: Path, group: str, app_dec_deg: float, config: Config, logfile: Path | None) -> dict:
    """Model into MODEL_DATA, solutions into the group's tables. Returns the result for `{group}.solve.json`."""
    options = config.calibration
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    catalogue = read_catalogue(config.catalogues.sky)
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
        notes.append(
            f"no catalogue source within {_FIELD_RADIUS_DEG:g} deg of the pointing: does catalogues.sky cover it?"
        )
        log.warning("%s: %s", group, notes[0])
    axes = track(*observation.phase_centre_deg, rows.time_mjd).axes
    pointing = meridian_vector(np.radians(app_dec_deg))
    model = predict(
        sources, rows.time_mjd, axes, pointing, observation.positions_m, rows.ant_1, rows.ant_2, observation.freq_hz
    )
    amplitude = preparation.write_model(ms, model)
    names = observation.antenna_names
    flags = caltables.prepared_flags(ms, rows.shape[0])
    refants = _reference_antennas(ms, observation, rows, flags, options.refant)
    channels = phase_channels(flags.mean(axis=(0, 1, 3)))
    paths = Paths.of(config)
    kinds = ("K", "B", "G") if options.do_k else ("B", "G")
    outputs = {kind: paths.caltable(group, kind) for kind in kinds}
    if options.solver == "casa" or options.do_k:  # delays are CASA's
        caltables.restore_flags(ms, caltables.PREPARED_FLAGS)
        quality = caltables.solve_casa(ms, outputs, [names[a] for a in refants], options, logfile, channels)
    else:
        flags |= caltables.outside(options.uvrange, rows.uvw_m, observation.freq_hz)[:, :, None, None]
        data, weights = mset.read_grid(ms, "DATA", rows.shape[0]), preparation.shares(ms, rows)
        solutions = solve(
            data, model, flags, weights, rows.ant_1, rows.ant_2, len(names), refants, options.min_snr, channels
        )
        quality = caltables.write_solutions(
            ms, rows.time_mjd.mean(), outputs, dict(zip("BG", solutions, strict=True)), refants[0]
        )
    modelled = _modelled(sources, calibrator.source, catalogue, observation.phase_centre_deg)
    wrong = caltables.problems(quality, options)
    if modelled < options.min_modelled:
        wrong.append(
            f"the model has {modelled:.0%} of the catalogued flux in the beam, expected at least {options.min_modelled:.0%} "
            "(calibration.sky_radius_deg)"
        )
    return {
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
        "solver": "casa" if options.do_k else options.solver,
        "refant": names[refants[0]],
        "mid_mjd": float(rows.time_mjd.mean()),
        "app_dec_deg": app_dec_deg,
        "tables": {kind: str(path) for kind, path in outputs.items()},
        "quality": quality,
    }


def apply_set(ms: Path, chosen: Mapping, logfile: Path | None) -> dict:
    """CORRECTED_DATA in Jy and weights in Jy^-2 with the set that `{group}.caltables.json` names; the result for
    `{group}.apply.json`. Raises CalibrationError when its tables are not those that were chosen."""
    tables = {kind: Path(path) for kind, path in chosen["tables"].items()}
    if wrong := altered(zip(tables.values(), chosen["checksums"], strict=True)):
        raise CalibrationError(f"{ms}: {'; '.join(wrong)}. Choose again: contimg reprocess GROUP --from caltables")
    data, flags, rows = caltables.apply(ms, tables, logfile)
    return {"set_name": chosen["set_name"], **preparation.weigh(ms, data, flags, rows)}


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
