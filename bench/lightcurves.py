"""Light curves of years: synthetic days of a strip, straight into the months' files. How long a
light curve, the page of what varies, a day's update and all numbers take, and the disk. Prints
Markdown; keeps nothing.

    python bench/lightcurves.py [DAYS [SOURCES]]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from contimg.config import from_mapping
from contimg.paths import Paths
from contimg.products import catalogue, lightcurves
from contimg.store.parquet import write_table
from contimg.web.charts import eta_v_chart

STRIP, FIRST_DAY = "+16.1", 9600


def make(paths: Paths, days: int, number: int) -> None:
    """Months of `days` days of so many sources, one in a thousand variable."""
    rng = np.random.default_rng(1)
    names = np.array([f"J{k:07d}" for k in range(number)])
    mean_jy = np.minimum(0.005 * (1 - rng.random(number)) ** (-1 / 1.1), 3.0)
    places = pd.DataFrame(
        {
            "source": names,
            "ra_deg": np.sort(rng.uniform(0, 360, number)),
            "dec_deg": 16.15 + rng.uniform(-2.2, 2.2, number),
            "flux_jy": mean_jy,
            "alpha": -0.7,
        }
    )
    about = {"version": f"{STRIP}.v1", "app_dec_deg": 16.15}
    write_table(paths.reference(f"{STRIP}.v1"), places, about)
    varies = rng.random(number) < 1e-3
    beam = rng.uniform(0.3, 1.0, number)
    error_jy = 5e-4 / beam
    for month in range(FIRST_DAY // 30, (FIRST_DAY + days - 1) // 30 + 1):
        mine = [d for d in range(month * 30, month * 30 + 30) if 0 <= d - FIRST_DAY < days]
        day = np.tile(mine, number)
        of = np.repeat(np.arange(number), len(mine))
        factor = np.where(varies[of], 1 + 0.5 * np.sin(day / 20), 1.0)
        table = pd.DataFrame(
            {
                "source": names[of],
                "sday": day,
                "mjd": 51500.0 + day * 0.99727,
                "flux_jy": mean_jy[of] * factor + rng.normal(0, error_jy[of]),
                "error_jy": error_jy[of],
                "systematic": 0.002,
                "chi2": rng.chisquare(2, len(of)),
                "beam": beam[of],
                "number": 3,
                "tile": "2026-03-02T04:12:42",
            }
        )
        write_table(paths.lightcurves(STRIP, month), table, {"strip": STRIP, "month": month})


def seconds(function, repeat: int = 1) -> tuple[float, object]:
    """The median of several calls, and the last answer."""
    taken, answer = [], None
    for _ in range(repeat):
        begin = time.perf_counter()
        answer = function()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken)), answer


def main() -> None:
    """The table."""
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 60_000
    with tempfile.TemporaryDirectory() as work:
        where = {name: f"{work}/{name}" for name in ("incoming", "products", "state")}
        config = from_mapping({"paths": where})
        paths = Paths.of(config)
        begin = time.perf_counter()
        make(paths, days, number)
        made = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in paths.lightcurve_months(STRIP))
        rng, names = np.random.default_rng(2), [f"J{k:07d}" for k in range(number)]
        curve, found = seconds(lambda: catalogue.lightcurve(paths, STRIP, rng.choice(names)), 9)
        assert len(found) == days
        with lightcurves.db.writing(paths.sources_db, lightcurves.Base):
            pass
        numbers, candidates = seconds(lambda: lightcurves._update_numbers(config, STRIP, ""))

        def page():
            catalogue.sources(paths, variable=True, order="false_alarms", limit=100)
            return eta_v_chart(catalogue.sources(paths, order="eta", limit=3000)[0])

        of_page, drawn = seconds(page, 3)
        month = Path(paths.lightcurve_months(STRIP)[0])
        again, _ = seconds(
            lambda: write_table(
                month.with_name("again.parquet"),
                lightcurves.query("SELECT * FROM {files} ORDER BY source, sday", [month]),
                {},
            )
        )
        print(
            "| measurements | GB | a light curve | the page of variables | numbers of all | "
            "a month written again | candidates (true) |\n" + "|---" * 7 + "|"
        )
        print(
            f"| {days * number / 1e6:.0f} million | {size / 1e9:.2f} | {1e3 * curve:.0f} ms | "
            f"{of_page:.2f} s | {numbers:.0f} s | {again:.1f} s | {candidates} "
            f"({number // 1000}) |"
        )
        print(f"\nmade in {made:.0f} s; {len(drawn['points'])} points drawn", file=sys.stderr)


if __name__ == "__main__":
    main()
