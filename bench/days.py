"""Sidereal days of a strip through every stage, from files in the telescope's format: a beam 3 %
wider than the pipeline thinks, pointing that wanders, gains that move, sources that vary. The light
version of the same is tests/photometry/days.py. Small: 48 antennas, 96 channels. Prints Markdown
and draws; keeps nothing else.

    python bench/days.py [DAYS [GROUPS [PICTURES]]]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.time import Time, TimeDelta

from contimg.config import Config, from_mapping
from contimg.paths import Paths
from contimg.photometry import variability
from contimg.plots.lightcurve import draw_lightcurve, draw_variables
from contimg.plots.style import save_plot
from contimg.products import catalogue, lightcurves
from contimg.simulate import read_sky
from contimg.stages.photometry import measure
from contimg.store.files import read_json, remove
from tests.conftest import CALIBRATOR_START
from tests.violations import chain

GROUP_S, SIDEREAL_S = 309.24, 86164.0905
NAMES = ("dip", "flare", "slow", "new")


def sky_of(folder: Path, groups: int) -> tuple[list[dict], Path]:
    """Sources around the groups, four of them of a name of their own; the catalogue's fluxes
    scatter by 8 %, and it has a place for the new one."""
    lists, rng = Config().catalogues, np.random.default_rng(5)
    known = [s for s in read_sky(lists.sky, lists.calibrators) if s["flux"] > 2]
    sources = [
        {
            "name": f"S{k:05d}",
            "ra": float(342 + rng.uniform(0, 6 + 1.3 * groups)),
            "dec": float(rng.uniform(13.1, 19.1)),
            "flux": float(min(0.01 * (1 - rng.random()) ** (-1 / 1.1), 3.0)),
            "alpha": -0.7,
        }
        for k in range(int((6 + 1.3 * groups) * 6 * 16))
    ]
    middle = [s for s in sources if abs(s["dec"] - 16.1) < 1 and 346 < s["ra"] < 347 + groups]
    middle.sort(key=lambda one: -one["flux"])
    for name, one in zip(NAMES, middle[3:14:3], strict=False):
        one["name"] = name
    scatter = np.exp(rng.normal(0, 0.08, len(sources)))
    listed = pd.DataFrame(
        [
            {"name": s["name"], "ra_deg": s["ra"], "dec_deg": s["dec"], "flux_jy": s["flux"]}
            for s in known
        ]
        + [
            {"name": s["name"], "ra_deg": s["ra"], "dec_deg": s["dec"], "flux_jy": s["flux"] * f}
            for s, f in zip(sources, scatter, strict=True)
        ]
    )
    path = folder / "catalogue.csv"
    listed.to_csv(path, index=False)
    return known + sources, path


def curves_of(days: int) -> dict[str, np.ndarray]:
    """What becomes of the four, by day."""
    day = np.arange(days)
    return {
        "dip": np.where((day >= days * 0.3) & (day < days * 0.7), 0.4, 1.0),
        "flare": np.where((day >= days * 0.5) & (day < days * 0.5 + 3), 1.6, 1.0),
        "slow": 1 + 0.3 * np.sin(np.pi * day / max(days - 1, 1)),
        "new": np.where(day < days * 0.6, 0.0, 1.0),
    }


def main() -> None:
    """The table."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    groups = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    pictures = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        config, sources = _observed(folder, days, groups)
        updated = lightcurves.update(config)
        paths = Paths.of(config)
        _report(config, sources, curves_of(days), updated)
        if pictures:
            strip = paths.references()[0].partition(".v")[0]
            rows, _ = catalogue.sources(paths, strip=strip)
            save_plot(lambda: draw_variables(rows), pictures / "days_eta_v.png")
            for name in NAMES:
                found = catalogue.find(paths, name)
                curve = catalogue.lightcurve(paths, strip, name)
                save_plot(
                    lambda curve=curve, found=found: draw_lightcurve(curve, found),
                    pictures / f"days_{name}.png",
                )


def _observed(folder: Path, days: int, groups: int) -> tuple[Config, list[dict]]:
    sources, listed = sky_of(folder, groups)
    config = from_mapping(
        {
            "paths": {n: str(folder / n) for n in ("incoming", "products", "state")},
            "catalogues": {"sky": str(listed)},
            "imaging": {"imsize": 2304, "cell_arcsec": 6.0},
        }
    )
    paths, curves = Paths.of(config), curves_of(days)
    solved = chain.calibrate(folder, sources, config, faint=0)
    for day in range(days):
        points = np.random.default_rng([3, day]).normal(0, 0.05, 2)
        wrong = {
            "beam_wider": (1.03, 1.03),
            "pointing_deg": tuple(points),
            "moved_deg": 20.0,
            "moved_share": 0.05,
            "brighter": tuple((name, float(curves[name][day])) for name in NAMES),
            "faint": 0,
        }
        for k in range(groups):
            seconds = day * SIDEREAL_S + (k + 2) * GROUP_S + (day * 137.3) % GROUP_S
            start = (Time(CALIBRATOR_START) + TimeDelta(seconds, format="sec")).isot[:19]
            found = chain.observe(
                folder, sources, config, solved, start, seed=100 + 10 * day + k, **wrong
            )
            refined = read_json(paths.result(start, "refine"))
            measure(start, config, found.converted, found.image, refined)
            for leftover in (folder / f"{start}.ms", *paths.image(start, "x").parent.glob("*")):
                remove(leftover)
            print(start, found.verdict, file=sys.stderr, flush=True)
    return config, sources


def _report(config: Config, sources: list[dict], curves: dict, updated) -> None:
    paths = Paths.of(config)
    strip = paths.references()[0].partition(".v")[0]
    names, _, found, beam = lightcurves.curves_of(paths, strip)
    true_jy = {one["name"]: one["flux"] for one in sources}
    true = np.array([true_jy.get(name, np.nan) for name in names])
    seen = np.isfinite(found.flux_jy).sum(axis=1) == found.flux_jy.shape[1]
    constant = seen & ~np.isin(names, NAMES) & (true > 0.02)
    snr = np.nanmedian(found.flux_jy / found.error_jy, axis=1)
    mean = np.nanmean(found.flux_jy, axis=1)
    scatter = np.nanstd(found.flux_jy, axis=1) / mean
    bright = constant & (snr > 100)
    systematic = variability.systematics(found, beam)
    table = variability.numbers(found, systematic)
    rows, number = catalogue.sources(paths, variable=True, order="false_alarms")
    false = [one["source"] for one in rows if one["source"] not in NAMES]
    print(
        "| days | constants above 20 mJy | repeatability of those above 100 sigma | systematics by "
        "beam (%) | eta, noise alone | with systematics | the four | other candidates |\n"
        + "|---" * 8
        + "|"
    )
    repeatability = f"{np.median(scatter[bright]):.4f} ({bright.sum()})"
    print(
        f"| {updated.days} | {constant.sum()} | {repeatability} | "
        f"{', '.join(f'{100 * v:.2f}' for v in np.unique(systematic.round(5)))} | "
        f"{table.eta[constant].median():.2f} | {table.eta_systematic[constant].median():.2f} | "
        f"{', '.join(one['source'] for one in rows[:4])} | {len(false)} of {number} {false[:5]} |"
    )
    for name in NAMES:
        curve = catalogue.lightcurve(paths, strip, name).flux_jy.values
        norm = np.median(curve / np.maximum(curves[name], 0.05))
        print(
            f"\n{name}: measured over injected {np.round(curve / norm - curves[name], 3).tolist()}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
