"""What a day's groups say of the instrument: each antenna, the beam, clock and positions,
interference; from the results of their stages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.calibration.beamfit import BeamFit, Measured, fit_beam
from contimg.calibration.beams import write_beam
from contimg.paths import Paths
from contimg.sky.geometry import SKY_ARCSEC_S
from contimg.store.files import found_json

_CHANNEL_BINS = 96
_FEW_GROUPS = 3
_LEAST_SNR = 12.0  # expected, of a source that the beam is fitted to
_POINTS_ELSEWHERE_DEG = 0.05


def of_day(paths: Paths, day: str) -> dict:
    """Numbers of the groups whose ids begin with `day`: `groups`, `antennas` (by station), and
    `interference` (share flagged, a row a group). Groups without an image are left out."""
    groups: list[dict] = []
    antennas: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    interference: list[list[float]] = []
    for group in paths.with_result("image", day):
        found = {
            stage: found_json(paths.result(group, stage)) or {}
            for stage in ("convert", "prepare", "apply", "refine", "image")
        }
        if not found["image"]:
            continue
        groups.append(_of_group(group, found))
        _add_antennas(antennas, found)
        by_channel = np.array(found["prepare"].get("flagged_by_channel", []))
        parts = np.array_split(by_channel, max(1, min(_CHANNEL_BINS, len(by_channel))))
        interference.append([round(float(np.mean(part)), 4) for part in parts if len(part)])
    return {
        "day": day,
        "groups": groups,
        "antennas": {name: _summary(antennas[name]) for name in sorted(antennas, key=_number)},
        "interference": interference,
    }


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**6, name)


def _of_group(group: str, found: Mapping) -> dict:
    image, refined = found["image"], found["refine"]
    moved, check = refined.get("moved_sky") or {}, image.get("catalogue") or {}
    return {
        "group": group,
        "mid_mjd": (image["start_mjd"] + image["end_mjd"]) / 2,
        "app_dec_deg": found["convert"].get("app_dec_deg"),
        "verdict": image["verdict"],
        "noise": image["rms_jy"] / image["thermal_jy"],
        "flux_ratio": check.get("flux_ratio"),
        "sefd_jy": (found["apply"].get("gates") or {}).get("sefd_jy"),
        "flagged": image["flagged"],
        "east_arcsec": moved.get("east_arcsec"),
        "north_arcsec": moved.get("north_arcsec"),
    }


def _add_antennas(antennas: Mapping, found: Mapping) -> None:
    """What one group says of each antenna."""
    gates, refined, prepared = found["apply"].get("gates") or {}, found["refine"], found["prepare"]
    for name, sefd_jy in gates.get("sefd_jy_by_antenna", {}).items():
        antennas[name]["sefd_jy"].append(sefd_jy)
    for name, gain in refined.get("gains", {}).items():
        antennas[name]["amplitude"].append(float(np.mean(gain["amplitude"])))
        antennas[name]["phase_deg"].append(float(np.mean(gain["phase_deg"])))
    for name, (aside_deg, error_deg) in refined.get("pointing_east_deg", {}).items():
        antennas[name]["pointing_east_deg"].append(aside_deg)
        antennas[name]["pointing_error_deg"].append(error_deg)
    for key in ("flagged", "coherence"):
        for name, value in prepared.get(f"{key}_by_antenna", {}).items():
            antennas[name][key].append(value)
    for fault in refined.get("antennas", []):
        for name in fault["antennas"]:
            antennas[name]["faults"].append(fault["words"])


def _summary(values: Mapping[str, list]) -> dict:
    """Medians of a day, and the different words that were said."""
    numbers = {
        name: round(float(np.median(of)), 4) for name, of in values.items() if name != "faults"
    }
    number = max(map(len, values.values()))
    return numbers | {"groups": number, "faults": sorted({*values["faults"]})}


def strips(day: Mapping) -> list[float]:
    """Declinations (to 0.1 deg) that a day's groups were observed at."""
    known = {one["app_dec_deg"] for one in day["groups"] if one["app_dec_deg"] is not None}
    return sorted({round(dec, 1) for dec in known})


def fit_strip(paths: Paths, day: Mapping, app_dec_deg: float) -> tuple[BeamFit, list[str]]:
    """The beam of one declination from a day's images that are not wrong, and which these are.

    Raises ValueError when they are too few.
    """
    chosen = [
        one["group"]
        for one in day["groups"]
        if one["app_dec_deg"] is not None
        and abs(one["app_dec_deg"] - app_dec_deg) <= 0.051
        and one["verdict"] != "fail"
    ]
    if len(chosen) < _FEW_GROUPS:
        raise ValueError(f"{len(chosen)} groups of declination {app_dec_deg:.1f}: too few")
    images = [found_json(paths.result(group, "image")) for group in chosen]
    freq_hz = float(np.mean([one["freq_hz"] for one in images]))
    drift_deg = float(np.mean([one["exposure_s"] for one in images]))
    drift_deg *= SKY_ARCSEC_S / 3600 * np.cos(np.radians(app_dec_deg))
    bandwidth_hz = float(np.mean([one["bandwidth_hz"] for one in images]))
    return fit_beam(measured_of(images), freq_hz, drift_deg, bandwidth_hz), chosen


def measured_of(images: Sequence[Mapping]) -> Measured:
    """Apparent fluxes of the sources that images were compared with the catalogue at."""
    tables = []
    for number, image in enumerate(images):
        table = pd.DataFrame(image["sources"])
        if not len(table):
            continue
        # by what is expected, not by what is seen: noise must not choose
        expected = table.snr * table.catalogue_jy / table.flux_jy.where(table.flux_jy > 0)
        tables.append(table[table.found & (expected >= _LEAST_SNR)].assign(group=number))
    if not tables:
        raise ValueError("no source of the catalogue is in any of the images")
    table = pd.concat(tables)
    apparent_jy = table.flux_jy.values * table.beam.values
    return Measured(
        group=table.group.values,
        source=pd.factorize(table.name)[0],
        east_deg=table.east_deg.values,
        north_deg=table.north_deg.values,
        apparent_jy=apparent_jy,
        error_jy=apparent_jy / table.snr.values,
        catalogue_jy=table.catalogue_jy.values,
    )


def keep_beam(paths: Paths, day: Mapping, fit: BeamFit, app_dec_deg: float, groups) -> Path:
    """Write a fitted beam where `imaging.beam: fitted` finds it."""
    mjd = [one["mid_mjd"] for one in day["groups"] if one["group"] in set(groups)]
    path = paths.beam(app_dec_deg, groups[0], groups[-1])
    write_beam(
        path, fit, app_dec_deg=app_dec_deg, first_mjd=min(mjd), last_mjd=max(mjd), groups=groups
    )
    return path


def remarkable(day: Mapping) -> list[str]:
    """What an operator should hear of the antennas, in words."""
    said = []
    for name, one in day["antennas"].items():
        said += [f"{words} ({one['groups']} groups)" for words in one["faults"]]
        aside = one.get("pointing_east_deg", 0.0)
        if abs(aside) > max(_POINTS_ELSEWHERE_DEG, 5 * one.get("pointing_error_deg", 0.0)):
            said.append(
                f"{name}: points {abs(aside):.2f} deg {'east' if aside > 0 else 'west'} of "
                "the others"
            )
    return said
