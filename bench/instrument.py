"""A strip of simulated groups with a beam of their own: what `contimg instrument` finds of it, and
what fluxes are worth before and after. Small (48 antennas, 96 channels). Prints Markdown; keeps
nothing.

    python bench/instrument.py [GROUPS [BEAMS]]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.time import Time, TimeDelta

from contimg.calibration.beamfit import airy_fwhm_deg
from contimg.config import Config, from_mapping
from contimg.paths import Paths
from contimg.products import instrument
from contimg.simulate import read_sky
from contimg.stages.apply import apply_set
from contimg.stages.image import image_group
from contimg.store.files import checksum, read_json, remove, write_json
from tests.conftest import CALIBRATOR_START
from tests.violations import chain

BEAMS = {
    "3.2 deg, pointing 0.15 deg east": {
        "beam_wider": (3.2 / 2.71, 3.2 / 2.71),
        "pointing_deg": (0.15, 0.0),
        "pointing_scatter_deg": 0.1,
    },
    "2.9 x 2.6 deg, pointing 0.1 deg south": {
        "beam_wider": (2.9 / 2.71, 2.6 / 2.71),
        "pointing_deg": (0.0, -0.1),
        "pointing_scatter_deg": 0.1,
    },
}
GROUP_S, SCATTER = 309.24, 0.08


def sky_of_strip(folder: Path, hours_deg: float) -> tuple[list[dict], Path]:
    """Sources of a strip, and the catalogue that the pipeline is given, whose fluxes scatter."""
    lists, rng = Config().catalogues, np.random.default_rng(5)
    known = [s for s in read_sky(lists.sky, lists.calibrators) if s["flux"] > 2]
    number = int((hours_deg + 8) * 6 * 8)
    sources = known + [
        {
            "name": f"S{k:05d}",
            "ra": float(338 + rng.uniform(0, hours_deg + 8)) % 360,
            "dec": float(rng.uniform(13.1, 19.1)),
            "flux": float(min(0.02 * (1 - rng.random()) ** (-1 / 1.1), 3.0)),
            "alpha": -0.7,
        }
        for k in range(number)
    ]
    listed = pd.DataFrame(
        {
            "name": [s["name"] for s in sources],
            "ra_deg": [s["ra"] for s in sources],
            "dec_deg": [s["dec"] for s in sources],
            "flux_jy": [
                s["flux"] * (1 if s in known else np.exp(rng.normal(0, SCATTER))) for s in sources
            ],
        }
    )
    path = folder / "catalogue.csv"
    listed.to_csv(path, index=False)
    return sources, path


def edge_fluxes(
    image: dict, true_jy: dict, low: float = 0.25, high: float = 0.4
) -> list[tuple[float, float]]:
    """(flux over the truth, error) of sources where the beam has 0.25 to 0.4."""
    return [
        (
            one["flux_jy"] / (true_jy[one["name"]] * (image["freq_hz"] / 1.4e9) ** -0.7),
            1 / one["snr"],
        )
        for one in image["sources"]
        if one["found"] and one["snr"] > 15 and low < one["beam"] < high
    ]


def main() -> None:
    """The table."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    print(
        "| beam | FWHM east-west | north-south | points east | north | chi2 | fluxes at 0.25-0.4, "
        "before: median, scatter | after | seconds a group, of the fit |\n" + "|---" * 9 + "|"
    )
    for name, beam in list(BEAMS.items())[: int(sys.argv[2]) if len(sys.argv) > 2 else None]:
        with tempfile.TemporaryDirectory() as work:
            print(f"| {name} | {_row(Path(work), number, beam)} |", flush=True)


def _row(folder: Path, number: int, beam: dict) -> str:
    sources, catalogue = sky_of_strip(folder, number * 1.3)
    true_jy = {one["name"]: one["flux"] for one in sources}
    config = from_mapping(
        {
            "paths": {"products": str(folder / "products"), "state": str(folder / "state")},
            "catalogues": {"sky": str(catalogue)},
            "imaging": {"imsize": 2304, "cell_arcsec": 6.0},
        }
    )
    paths, begin = Paths.of(config), time.perf_counter()
    options = beam | {"faint": 0}
    solved = chain.calibrate(folder, sources, config, **options)
    starts = [
        (Time(CALIBRATOR_START) + TimeDelta((k + 1) * GROUP_S, format="sec")).isot[:19]
        for k in range(number)
    ]
    before, last = [], {}
    for k, start in enumerate(starts):
        more = options | {"start": start, "seed": 100 + k}
        found = chain.observe(folder, sources, config, solved, **more)
        write_json(paths.result(start, "image"), found.image)
        write_json(paths.result(start, "convert"), {"app_dec_deg": 16.15})
        write_json(paths.result(start, "apply"), found.applied)
        before += edge_fluxes(found.image, true_jy)
        last = {"start": start, "found": found} if k == number // 2 else last
        if k != number // 2:
            remove(folder / f"{start}.ms")
    each = (time.perf_counter() - begin) / number
    day, begin = instrument.of_day(paths, ""), time.perf_counter()
    fit, groups = instrument.fit_strip(paths, day, instrument.strips(day)[0])
    seconds = time.perf_counter() - begin
    print(fit.as_json(), file=sys.stderr)
    kept = folder / f"{last['start']}.ms"
    instrument.keep_beam(paths, day, fit, 16.15, groups)
    fitted = config.model_copy(
        update={"imaging": config.imaging.model_copy(update={"beam": "fitted"})}
    )
    found = last["found"]
    solved = chain.calibrate(folder, sources, fitted, **options)
    chosen = found.chosen | {
        "checksums": [checksum(Path(path)) for path in solved["tables"].values()]
    }
    applied = apply_set(kept, last["start"], chosen, 16.15, fitted, None, solved)
    again = image_group(
        kept,
        last["start"],
        fitted,
        found.converted,
        chosen,
        2,
        folder / "log",
        applied,
        read_json(paths.result(last["start"], "refine")),
    )
    one, other = (np.array(x) for x in (before, edge_fluxes(again, true_jy)))
    middle = np.median(np.array(edge_fluxes(again, true_jy, 0.8, 1.1))[:, 0])
    pulls = (other[:, 0] / np.median(other[:, 0]) - 1) / np.hypot(other[:, 1], 0.01)
    # dishes that point their own ways point aside on the mean, too
    aside = (
        np.random.default_rng([7, 79])
        .normal(beam["pointing_deg"], beam["pointing_scatter_deg"], (48, 2))
        .mean(axis=0)
    )
    true_deg = airy_fwhm_deg(fit.freq_hz) * np.array(beam["beam_wider"])
    return (
        f"{fit.fwhm_east_deg:.4f} +- {fit.fwhm_east_error_deg:.4f} (true {true_deg[0]:.4f}) | "
        f"{fit.fwhm_north_deg:.4f} +- {fit.fwhm_north_error_deg:.4f} (true {true_deg[1]:.4f}) | "
        f"{fit.east_deg:+.4f} +- {fit.east_error_deg:.4f} (true {aside[0]:+.4f}) | "
        f"{fit.north_deg:+.4f} +- {fit.north_error_deg:.4f} (true {aside[1]:+.4f}) | "
        f"{fit.chi2:.2f} | "
        f"{np.median(one[:, 0]):.3f}, {one[:, 0].std():.3f} | {np.median(other[:, 0]):.3f}, "
        f"{other[:, 0].std():.3f} ({len(other)}; pulls {pulls.std():.2f}; "
        f"of sources in the middle {middle:.3f}) | {each:.1f}, "
        f"{seconds:.1f}"
    )


if __name__ == "__main__":
    main()
