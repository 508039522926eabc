"""Gates after `solve`: their numbers on good and on bad observations, simulated; the table of
docs/gates.md.

PYTHONPATH=. python bench/gates.py [WORDS IN THE NAMES OF CASES]
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bench.full_size import CONFIG, convert_and_concat
from contimg.config import CalibrationConfig, Config, FlaggingConfig, PathsConfig
from contimg.simulate import NOISE_JY, Simulation, read_sky, simulate_group
from contimg.stages.prepare import prepare
from contimg.stages.solve import solve_group
from contimg.visibilities import flag_versions
from contimg.visibilities.uvh5 import inspect, parse_name

START, DEC_DEG, CALIBRATOR = "2026-03-02T20:03:10", 16.15, "2253+161"
MEASURED_JY = NOISE_JY * 8016 / 6500


@dataclass(frozen=True)
class Case:
    """An observation of the calibrator, and what is wrong with it."""

    name: str
    antennas: int = 30
    flux_jy: float = 12.66
    off_deg: float = 0.0  # of the calibrator from the middle of the beam
    told_jy: float | None = None  # flux in the model
    header_deg: float = 0.0  # error of the header's declination
    clock_s: float = 0.0  # error of its times
    without: bool = False
    field: bool = True  # the catalogue has the field
    noise_jy: float = MEASURED_JY
    dead: int = 0


GOOD = [
    Case(f"{flux:g} Jy, {off:g} deg off, {n} antennas", n, flux, off)
    for n in (96, 30)
    for flux in (1, 4, 20)
    for off in (0, 1)
] + [
    Case("12.7 Jy, receivers of 6500 Jy, 30 antennas", noise_jy=NOISE_JY),
    Case("12.7 Jy, a third of 96 antennas dead", 96, dead=32),
    Case("12.7 Jy, no catalogue of the field, 30 antennas", field=False),
]
BAD = [
    Case("calibrator not there, 96 antennas", 96, without=True),
    Case("calibrator not there, 30 antennas", without=True),
    Case("declination of the header 0.2 deg off", header_deg=0.2),
    Case("declination of the header 1 deg off", header_deg=1.0),
    Case("clock 4 s off", clock_s=4.0),
    Case("clock 60 s off", clock_s=60.0),
    Case("model has a fifth of the flux", told_jy=2.53),
    Case("model has five times the flux", told_jy=63.3),
    Case("model has half of the flux", told_jy=6.33),
    Case("calibrator 30 % brighter than the model", told_jy=9.74),
    Case("1 Jy, no catalogue of the field", flux_jy=1.0, field=False),
]


def measure(case: Case) -> dict:
    """Result of `solve` for a case."""
    lists = CONFIG.catalogues
    sky = read_sky(lists.sky, lists.calibrators)
    (source,) = [s for s in sky if s["name"] == CALIBRATOR]
    source["flux"] = case.flux_jy
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        sim = Simulation(
            start=START,
            dec_deg=DEC_DEG - case.off_deg,
            antennas=case.antennas,
            channels=6,
            sefd_scatter=0.27,
            noise_jy=case.noise_jy,
            without=(CALIBRATOR,) if case.without else (),
            gain_seed=7,
        )
        paths = simulate_group(folder / "raw", sim, sky, lists.stations)
        if case.dead:  # stations that take part
            with h5py.File(paths[0]) as file:
                stations = np.unique(file["Header/ant_1_array"][()]) + 1
            for path in paths:
                path.unlink()
            dead = tuple(stations[:: len(stations) // case.dead][: case.dead].tolist())
            paths = simulate_group(
                folder / "raw", Simulation(**vars(sim) | {"dead": dead}), sky, lists.stations
            )
        for path in paths:
            with h5py.File(path, "r+") as file:
                for key in (
                    "Header/phase_center_app_dec",
                    "Header/extra_keywords/phase_center_dec",
                ):
                    file[key][()] += np.radians(case.header_deg)
                file["Header/time_array"][...] += case.clock_s / 86400
        ms = folder / f"{START}.ms"
        convert_and_concat({parse_name(p.name)[1]: p for p in paths}, folder / "staging", ms, 2)
        prepare(ms, FlaggingConfig(), lists.stations)
        flag_versions.save(ms)
        if not case.field:
            empty = folder / "sky.csv"
            pd.DataFrame(
                {"name": ["far"], "ra_deg": [10.0], "dec_deg": [80.0], "flux_jy": [1.0]}
            ).to_csv(empty, index=False)
            lists = lists.model_copy(update={"sky": empty})
        config = Config(
            paths=PathsConfig(products=folder / "products", state=folder / "state"),
            catalogues=lists,
            calibration=CalibrationConfig(
                min_beam=0.2,
                min_flux_jy=0.5,
                allow=(CALIBRATOR,),
                flux_override={CALIBRATOR: case.told_jy or case.flux_jy},
            ),
        )
        return solve_group(ms, START, inspect(paths[0]).app_dec_deg, config, None)


def main() -> None:
    """The table."""
    print(
        "| observation | SEFD (Jy) | scatter | SNR | promised | explained | place (arcsec) | "
        "outcome |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case in [*GOOD, *BAD]:
        if sys.argv[1:] and not any(word in case.name for word in sys.argv[1:]):
            continue
        try:
            solved = measure(case)
        except Exception as error:
            print(f"| {case.name} | {type(error).__name__}: {error} |", flush=True)
            continue
        found = solved["gates"]
        numbers = [
            "-" if found.get(key) is None else f"{found[key]:.{digits}f}"
            for key, digits in (
                ("sefd_jy", 0),
                ("sefd_scatter", 2),
                ("snr", 0),
                ("promised_snr", 0),
                ("explained", 3),
            )
        ]
        place = "-"
        if found.get("offset_error_arcsec") is not None:
            away = np.hypot(found["offset_east_arcsec"], found["offset_north_arcsec"])
            place = f"{away:.1f} +- {found['offset_error_arcsec']:.1f}"
        levels = {
            one["name"]: one["level"]
            for one in found["findings"]
            if one["level"] in ("warn", "fail")
        }
        outcome = "; ".join(f"{level}: {name}" for name, level in levels.items()) or "good"
        if solved["problems"] and "fail" not in levels.values():
            outcome += f"; failed: {solved['problems'][0]}"
        print(f"| {case.name} | {' | '.join(numbers)} | {place} | {outcome} |", flush=True)


if __name__ == "__main__":
    main()
