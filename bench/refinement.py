"""Gains that moved since the calibrator, at full size, through the whole workflow: flux, place and
noise of the target without own gains and with them. Prints Markdown; keeps nothing.

    python bench/refinement.py [DEGREES:PERCENT ...]        default: 0, 10, 30, 60 x 0, 5, 10
"""

import shutil
import subprocess
import sys
import tempfile
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import yaml

from contimg.config import CataloguesConfig, load
from contimg.paths import Paths
from contimg.simulate import Simulation, read_sky, simulate_group
from contimg.store.files import read_json
from tests.accuracy import measure

CALIBRATOR, TARGET = "2026-03-02T20:03:10", "2026-03-02T20:18:37"
SIDEREAL_DAY = timedelta(seconds=86164.0905)
WALK_DEG = 4.0
COMMON = {
    "antennas": 96,
    "channels": 48,
    "gain_seed": 7,
    "sefd_jy": 8016.0,
    "sefd_scatter": 0.27,
    "faint": 60,
}
ROOT = Path(__file__).parent.parent


def simulate(folder: Path, start: str, **options) -> None:
    """One group's raw files."""
    lists = CataloguesConfig()
    sky = read_sky(lists.sky, lists.calibrators)
    simulate_group(folder, Simulation(start=start, **COMMON | options), sky, lists.stations)


def run(site: Path, *more: str) -> None:
    """Snakemake over the site; raises where it fails."""
    command = ["snakemake", "--profile", "local", "--configfile", "config/config.yaml", str(site)]
    subprocess.run([*command, *more], cwd=ROOT, check=True, capture_output=True)


def numbers(paths: Paths, group: str, truth: Path) -> tuple[list[str], dict]:
    """Flux, its scatter, place and noise of an image, as columns; and the group's refine.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(
            *(paths.image(group, suffix) for suffix in ("image.fits", "pbcor.fits")), truth
        )
    imaged = read_json(paths.result(group, "image"))
    east, north = np.median(found.east_arcsec), np.median(found.north_arcsec)
    columns = [
        f"{np.median(found.ratio):.4f}",
        f"{1.4826 * np.median(np.abs(found.ratio - np.median(found.ratio))):.4f}",
        f'{np.median(found.offset_arcsec):.2f}" ({np.hypot(east, north):.2f}")',
        f"{imaged['rms_jy'] / imaged['thermal_jy']:.3f}",
    ]
    return columns, read_json(paths.result(group, "refine"))


def case(folder: Path, site: Path, day: int, moved_deg: float, percent: float) -> str:
    """A row: the target of another day, without own gains, and with them."""
    start = (datetime.fromisoformat(TARGET) + day * SIDEREAL_DAY).isoformat(timespec="seconds")
    paths = Paths.of(load([site]))
    options = {"moved_deg": moved_deg, "moved_share": percent / 100, "doubles": 0.08}
    options["walk_deg"] = WALK_DEG if moved_deg else 0.0
    simulate(folder / "incoming", start, seed=100 + day, **options)
    truth = folder / "incoming" / f"truth.{start}.json"
    run(site)
    after, refined = numbers(paths, start, truth)
    seconds = {s: read_json(paths.result(start, s))["seconds"] for s in ("apply", "refine")}
    subprocess.run(
        ["contimg", "reprocess", start, "--from", "apply", "--configfile", str(site)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    run(site, str(folder / "off.yaml"))
    before, _ = numbers(paths, start, truth)
    for path in (*(folder / "incoming").glob(f"{start[:13]}*.hdf5"), paths.ms(start)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cells = [f"{moved_deg:.0f}", f"{percent:.0f} %"]
    for one, other in zip(before, after, strict=True):
        cells += [one, other]
    scale = refined["flux_scale"]
    cells += [
        refined["refine"].split(" (")[0].removeprefix("rejected: "),
        f"{scale['catalogue']:.4f} +- {scale['catalogue_error']:.4f}",
        f"{seconds['apply']:.1f} ({seconds['refine']:.1f})",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The table."""
    cases = [tuple(map(float, text.split(":"))) for text in sys.argv[1:]] or [
        (moved, percent) for moved in (0.0, 10.0, 30.0, 60.0) for percent in (0.0, 5.0, 10.0)
    ]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        values = {
            "paths": {name: str(folder / name) for name in ("incoming", "products", "state")},
            "calibration": {"validity_h": 10000},
            "ingest": {"settle_s": 0},
        }
        site = folder / "site.yaml"
        site.write_text(yaml.safe_dump(values))
        off = {"calibration": {"validity_h": 10000, "refine": "off", "flux_scale": "set"}}
        (folder / "off.yaml").write_text(yaml.safe_dump(off))
        simulate(folder / "incoming", CALIBRATOR, seed=1)
        run(site)
        for path in (folder / "incoming").glob("*.hdf5"):
            path.unlink()
        print(
            "| moved (deg) | and | flux, without | with | scatter, without | with | offset "
            "(common), without | with | noise / thermal, without | with | own gains | catalogue / "
            "set | apply, s (refine) |\n" + "|---" * 13 + "|",
            flush=True,
        )
        for day, (moved, percent) in enumerate(cases, 1):
            print(case(folder, site, day, moved, percent), flush=True)


if __name__ == "__main__":
    main()
