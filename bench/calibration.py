"""Full-size calibrator groups (96 antennas, 24 x 768 x 2): our solver and applier against CASA's,
in seconds and in what comes out; calibrators of 13 and 1 Jy, in the middle of the beam and a degree
off. Prints Markdown; keeps nothing.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.full_size import CONFIG, convert_and_concat
from contimg.calibration import apply as application
from contimg.calibration import casa_tasks
from contimg.calibration import tables as caltables
from contimg.calibration.weighing import row_means, weigh
from contimg.config import CalibrationConfig, Config, FlaggingConfig, PathsConfig
from contimg.simulate import Simulation, antenna_gains, read_sky, simulate_group
from contimg.stages.prepare import prepare
from contimg.stages.solve import solve_group
from contimg.visibilities import flag_versions
from contimg.visibilities import measurement_set as mset
from contimg.visibilities.uvh5 import inspect, parse_name

START, DEC_DEG = "2026-03-02T20:03:10", 16.15
CASES = {
    "13 Jy, on axis": (None, 0.0),
    "13 Jy, 1 deg off": (None, 1.0),
    "1 Jy, on axis": (1.3, 0.0),
    "1 Jy, 1 deg off": (1.3, 1.0),
}


def make(folder: Path, flux_jy: float | None, off_deg: float) -> tuple[Path, float]:
    """A prepared Measurement Set with interference and a dead antenna; 3C454.3 has `flux_jy`,
    `off_deg` north of the middle."""
    catalogues = CONFIG.catalogues
    sky = read_sky(catalogues.sky, catalogues.calibrators)
    (source,) = [s for s in sky if s["name"] == "3C454.3" or s["flux"] > 10]
    source["flux"] = flux_jy or source["flux"]
    dec_deg = DEC_DEG - off_deg
    options = Simulation(
        start=START, dec_deg=dec_deg, antennas=96, channels=48, gain_seed=7, rfi=True, dead=(36,)
    )
    paths = simulate_group(folder / "raw", options, sky, catalogues.stations)
    ms = folder / f"{START}.ms"
    convert_and_concat({parse_name(p.name)[1]: p for p in paths}, folder / "staging", ms, 2)
    outline = inspect(paths[0])
    for path in paths:
        path.unlink()
    prepare(ms, FlaggingConfig(), catalogues.stations)
    flag_versions.save(ms)
    return ms, outline.app_dec_deg


def solve(
    folder: Path, ms: Path, dec_deg: float, flux_jy: float | None, solver: str = "fast", **more
) -> tuple[dict, float]:
    """The solve stage with one of the solvers; its result, and seconds."""
    override = {"flux_override": {"2253+161": flux_jy}} if flux_jy else {}
    config = Config(
        paths=PathsConfig(products=folder / solver, state=folder / "state"),
        catalogues=CONFIG.catalogues,
        calibration=CalibrationConfig(
            solver=solver, min_beam=0.3, allow=("2253+161",), **override, **more
        ),
    )
    begin = time.perf_counter()
    result = solve_group(ms, START, dec_deg, config, Path(os.devnull))
    return result, time.perf_counter() - begin


def compare(ours: Path, theirs: Path) -> tuple[float, float]:
    """99th percentiles of the difference in amplitude (%) and phase (deg), where both are
    unflagged."""
    one, other = caltables.read(ours), caltables.read(theirs)
    both = ~one.flags & ~other.flags
    ratio = one.gain[both] / other.gain[both]
    percent, phase_deg = 100 * np.abs(np.abs(ratio) - 1), np.abs(np.angle(ratio, deg=True))
    return float(np.percentile(percent, 99)), float(np.percentile(phase_deg, 99))


def field_left_out() -> None:
    """What a model of the calibrator alone costs, as a function of its share of the flux in the
    beam."""
    print(
        "| calibrator (Jy at 1.4 GHz, deg off axis) | its share | gains, median | rms | thermal | "
        "with the field, median | rms |"
    )
    print("|---|---|---|---|---|---|---|")
    for flux_jy, off_deg in (
        (12.66, 0.0),
        (12.66, 1.0),
        (5.0, 0.5),
        (5.0, 1.0),
        (2.0, 0.5),
        (2.0, 1.0),
        (1.0, 1.0),
    ):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            ms, dec_deg = make(folder, flux_jy, off_deg)
            observation = mset.read_observation(ms)
            sim = Simulation(start=START, antennas=96, channels=48, gain_seed=7)
            truth = (
                np.sqrt(sim.scale)
                * np.abs(
                    antenna_gains(sim, len(observation.antenna_names), observation.freq_hz[::-1])
                )[:, ::-1]
            )
            words = []
            for radius_deg in (0.01, 2.5):
                result, _ = solve(
                    folder, ms, dec_deg, flux_jy, sky_radius_deg=radius_deg, min_flux_jy=0.5
                )
                bandpass, gain = (caltables.read(Path(result["tables"][kind])) for kind in "BG")
                good = ~bandpass.flags & ~gain.flags
                ratio = np.abs(bandpass.gain * gain.gain)[good] / truth[good]
                thermal = np.sqrt(np.mean(1 / bandpass.snr[good] ** 2) / 2)
                words.append((result["modelled_share"], np.median(ratio), ratio.std(), thermal))
            (share, median, rms, thermal), (_, *field) = words
            words = " | ".join(f"{value:.4f}" for value in (median, rms, thermal, *field[:2]))
            print(f"| {flux_jy:g}, {off_deg:g} | {share:.2f} | {words} |", flush=True)


def calibrate(ms: Path, tables: dict, nant: int):
    """As the stage `apply`, without refinement; returns data, rows, flags."""
    found = application.calibrated(ms, tables, None)
    _, _, weights = weigh(ms=ms, data=found.data, flags=found.flags, rows=found.rows, nant=nant)
    mset.write_columns(
        ms,
        CORRECTED_DATA=found.data,
        FLAG=found.flags,
        WEIGHT_SPECTRUM=weights,
        WEIGHT=row_means(weights),
    )
    return found.data, found.rows, found.flags


def main() -> None:
    """Every case."""
    if "field" in sys.argv:
        return field_left_out()
    print(
        "| calibrator | solve, ours | CASA | fast mode | apply and weigh | apply, CASA | B against "
        "CASA | G against CASA | V |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (flux_jy, off_deg) in CASES.items():
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            ms, dec_deg = make(folder, flux_jy, off_deg)
            # compiled, MODEL_DATA there, in the page cache
            solve(folder, ms, dec_deg, flux_jy, "fast")
            fast, fast_s = solve(folder, ms, dec_deg, flux_jy, "fast")
            reference, casa_s = solve(folder, ms, dec_deg, flux_jy, "casa")
            tables, nant = fast["tables"], len(mset.read_observation(ms).antenna_names)
            solve(folder, ms, dec_deg, flux_jy, fast=True)
            _, quick_s = solve(folder, ms, dec_deg, flux_jy, fast=True)
            casa_tasks.apply_casa(ms, tables, Path(os.devnull))
            data, rows, flags = calibrate(ms, tables, nant)
            begin = time.perf_counter()
            data, rows, flags = calibrate(ms, tables, nant)
            apply_s = time.perf_counter() - begin
            begin = time.perf_counter()
            casa_tasks.apply_casa(ms, tables, Path(os.devnull))
            apply_casa_s = time.perf_counter() - begin
            theirs = mset.read_grid(ms, "CORRECTED_DATA", rows.shape[0])
            apart = np.abs(data - theirs)[~flags].max() / np.abs(theirs[~flags]).max()
            words = [
                "{:.4f} %, {:.4f} deg".format(
                    *compare(Path(tables[k]), Path(reference["tables"][k]))
                )
                for k in "BG"
            ]
            times = " | ".join(f"{s:.1f}" for s in (fast_s, casa_s, quick_s, apply_s, apply_casa_s))
            print(f"| {name} | {times} | {' | '.join(words)} | {apart:.1e} |", flush=True)
            print(
                json.dumps({"quality": fast["quality"], "problems": fast["problems"]}),
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
