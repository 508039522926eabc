"""Photometry of a group through all stages: sources of 3 to 50 sigma and pairs, from raw files."""

import numpy as np
import pandas as pd
import pytest

from contimg.config import Config, from_mapping
from contimg.paths import Paths
from contimg.simulate import read_sky
from contimg.stages.photometry import measure
from contimg.store.files import read_json
from contimg.store.parquet import read_about, read_table
from tests.violations import chain
from tests.workflow.conftest import TARGET_START

RA_DEG, DEC_DEG, BEAM_DEG = 347.331, 16.009, 40 / 3600
BINS = ((3, 5), (5, 10), (10, 20), (20, 50))


def sky_of(seed: int) -> list[dict]:
    """Bright sources of the real sky, faint ones, and a hundred pairs, 1, 2 and 3 beams apart."""
    lists, rng = Config().catalogues, np.random.default_rng(seed)
    sources = [s for s in read_sky(lists.sky, lists.calibrators) if s["flux"] > 2]

    def add(name: str, ra: float, dec: float) -> None:
        flux = float(min(0.006 * (1 - rng.random()) ** (-1 / 1.1), 2.0))
        sources.append({"name": name, "ra": ra, "dec": dec, "flux": flux, "alpha": -0.7})

    for k in range(1000):
        ra, dec = RA_DEG + rng.uniform(-3, 3), DEC_DEG + rng.uniform(-3, 3)
        add(f"S{k:04d}", ra, dec)
        if k < 100:
            turn, apart = rng.uniform(0, 2 * np.pi), (1 + k % 3) * BEAM_DEG
            east = apart * np.sin(turn) / np.cos(np.radians(dec))
            add(f"P{1 + k % 3}{k:03d}", ra + east, dec + apart * np.cos(turn))
    return sources


def measured(folder, seed: int) -> tuple[pd.DataFrame, dict]:
    """A target's photometry with the truth beside it, and what is said of it."""
    sources = sky_of(seed)
    listed = pd.DataFrame(sources).rename(
        columns={"ra": "ra_deg", "dec": "dec_deg", "flux": "flux_jy"}
    )
    folder.mkdir()
    listed.to_csv(folder / "sky.csv", index=False)
    config = from_mapping(
        {
            "paths": {"products": str(folder / "products"), "state": str(folder / "state")},
            "catalogues": {"sky": str(folder / "sky.csv")},
            "imaging": {"imsize": 2304, "cell_arcsec": 6.0},
        }
    )
    solved = chain.calibrate(folder, sources, config, faint=0)
    found = chain.observe(folder, sources, config, solved, faint=0, seed=seed)
    refined = read_json(Paths.of(config).result(TARGET_START, "refine"))
    said = measure(TARGET_START, config, found.converted, found.image, refined)
    path = Paths.of(config).photometry(TARGET_START)
    assert said["table"] == str(path)
    table, about = read_table(path), read_about(path)
    jy = {one["name"]: one["flux"] * (about["freq_hz"] / 1.4e9) ** -0.7 for one in sources}
    return table.assign(true_jy=table.source.map(jy)), about


@pytest.mark.long
def test_fluxes_are_right_from_3_to_50_sigma_and_in_pairs(tmp_path, figure):
    tables = []
    for seed in range(4):
        table, about = measured(tmp_path / str(seed), 20 + seed)
        assert about["reference"] == "+16.1.v1"
        assert about["units"]["flux_jy"].startswith("Jy")
        # what own gains have of the catalogue's scale is one number of the group
        bright = table[table.true_jy > 50 * table.error_jy]
        scale = np.average(bright.flux_jy / bright.true_jy)
        assert scale == pytest.approx(1, abs=max(0.02, 3 * about["scale_error"]))
        tables.append(table.assign(flux_jy=table.flux_jy / scale, fit_jy=table.fit_jy / scale))
    table = pd.concat(tables)
    pull, snr = (table.flux_jy - table.true_jy) / table.error_jy, table.true_jy / table.error_jy
    said = {}
    for low, high in BINS:
        these = (snr >= low) & (snr < high)
        weight = snr[these] ** 2
        ratio = np.average((table.flux_jy / table.true_jy)[these], weights=weight)
        error = weight.sum() ** -0.5
        said[f"{low} to {high} sigma"] = (int(these.sum()), round(ratio, 4), round(error, 4))
        assert ratio == pytest.approx(1, abs=max(0.01, 3 * error))
    every = (snr >= 3) & (snr < 50)
    said["pulls"] = round(pull[every].mean(), 3), round(pull[every].std(), 3)
    for beams in (1, 2, 3):
        pairs = every & table.source.str.startswith(f"P{beams}")
        said[f"pulls of pairs, {beams} beams"] = int(pairs.sum()), round(pull[pairs].std(), 2)
        assert pull[pairs].std() == pytest.approx(1, abs=0.35)
    checked = (table.fit_jy / table.flux_jy)[snr > 20]
    said["fit over flux"] = round(checked.median(), 4)
    figure(f"flux over truth (sources, ratio, error): {said}")
    assert pull[every].mean() == pytest.approx(0, abs=0.1)
    assert pull[every].std() == pytest.approx(1, abs=0.05)
    assert checked.median() == pytest.approx(1, abs=0.01)
