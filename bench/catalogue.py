"""What a sky catalogue of 1.8 million rows (the whole NVSS) costs beside the small one: plan and
dry-run of 300 pending groups.

PYTHONPATH=. python bench/catalogue.py
"""

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from bench.scaling import BIN, archive, run

ROWS, GROUPS, REPEATS = 1_800_000, 300, 5


def main() -> None:
    """The table."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        small = pd.read_csv("config/catalogues/nvss_ra344_dec16.csv")
        rng = np.random.default_rng(1)
        more = pd.DataFrame(
            {
                "name": [f"s{k}" for k in range(ROWS)],
                "ra_deg": rng.uniform(0, 360, ROWS).round(5),
                "dec_deg": np.degrees(np.arcsin(rng.uniform(-0.64, 1, ROWS))).round(5),
                "flux_jy": (0.0025 * rng.pareto(1.0, ROWS).clip(0, 300) + 0.0025).round(5),
            }
        )
        pd.concat([small, more]).to_csv(folder / "nvss.csv", index=False)
        site, _, _ = archive(folder, GROUPS)
        values = yaml.safe_load(site.read_text())
        whole = folder / "whole.yaml"
        whole.write_text(yaml.safe_dump(values | {"catalogues": {"sky": str(folder / "nvss.csv")}}))
        plan = (str(BIN / "contimg"), "plan", "--configfile")
        dry = (
            str(BIN / "snakemake"),
            "-n",
            "--quiet",
            "--profile",
            "local",
            "--configfile",
            "config/config.yaml",
        )
        print(f"first look at the large one, its index made: {run(*plan, str(whole))[0]:.1f} s")
        print("| command | small (s) | 1.8 million rows (s) | difference |\n|---|---|---|---|")
        for name, command in (("contimg plan", plan), ("snakemake -n", dry)):
            seconds = [
                [run(*command, str(one))[0] for one in (site, whole)] for _ in range(REPEATS)
            ]
            one, two = (statistics.median(column) for column in zip(*seconds, strict=True))
            print(
                f"| {name}, {GROUPS} groups | {one:.2f} | {two:.2f} | {two - one:+.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
