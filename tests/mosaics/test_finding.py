"""A list of sources against the sky it was made of: fluxes, places, completeness, reliability."""

import numpy as np
import pytest
from astropy.table import Table
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from contimg.config import MosaicsConfig
from contimg.errors import ContimgError
from contimg.imaging.interface import Beam
from contimg.imaging.restoring import restore
from contimg.mosaics.combine import Sum
from contimg.mosaics.files import write_mosaic
from contimg.mosaics.finding import Finder, completeness
from contimg.mosaics.tracts import tract_of
from contimg.paths import Paths
from contimg.products import mosaics
from contimg.stages.catalogue import list_sources
from contimg.stages.mosaic import files_of
from contimg.store.files import write_json
from contimg.store.parquet import read_about, read_table

NAME, DAY = "+16.1_100", 9800
CELL_ARCSEC, BEAM = 12.0, Beam(60.0, 50.0, 20.0)
NUMBER = 420


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """A day's mosaic with noise that rises to the edges and faint sources (Jy, snr, x, y)."""
    folder = tmp_path_factory.mktemp("finding")
    options = MosaicsConfig(cell_arcsec=CELL_ARCSEC, height_deg=2.4)
    folders = config.paths.model_copy(
        update={"products": folder / "products", "state": folder / "state"}
    )
    config = config.model_copy(update={"mosaics": options, "paths": folders})
    paths, rng, tract = Paths.of(config), np.random.default_rng(2), tract_of(NAME, options)
    axes = [(np.arange(n) - n / 2) / n for n in tract.shape]
    noise_jy = 1e-4 * (1 + 3 * (axes[0][:, None] ** 2 + axes[1] ** 2)).astype(np.float32)
    noise = gaussian_filter(rng.normal(size=tract.shape), BEAM.major_arcsec / CELL_ARCSEC / 2.9)
    image = (noise / noise.std()).astype(np.float32) * noise_jy
    x, y = (rng.uniform(10, n - 10, NUMBER) for n in tract.shape)
    snr = np.minimum(3 / (1 - rng.random(NUMBER)), 300)
    flux_jy = snr * noise_jy[x.round().astype(int), y.round().astype(int)]
    image = restore(
        residual=image,
        components=np.column_stack([x, y, flux_jy]),
        beam=BEAM,
        cell_arcsec=CELL_ARCSEC,
    )
    files = paths.mosaic_files(NAME, DAY)
    write_mosaic(
        image=files["fits"],
        weight=files["weight.fits"],
        total=Sum(image, noise_jy**-2, np.ones(tract.shape, np.uint16)),
        tract=tract,
        beam=BEAM,
        keywords={},
    )
    result = {
        "tract": NAME,
        "strip": "+16.1",
        "sday": DAY,
        "inputs": {},
        "beam_arcsec": [BEAM.major_arcsec, BEAM.minor_arcsec, BEAM.pa_deg],
        **files_of(files),
    }
    write_json(paths.result(f"{NAME}.{DAY}", mosaics.DAY), result)
    listed = list_sources(config, f"{NAME}.{DAY}", 2)
    ra, dec = tract.wcs().wcs_pix2world(x, y, 0)
    apart = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=2)[0][:, 1]
    alone = apart * CELL_ARCSEC > 3 * BEAM.major_arcsec
    return config, listed, (ra, dec, flux_jy, snr, alone)


def matched(listed, sky):
    table = read_table(listed["files"]["parquet"])
    ra, dec = sky[:2]
    scale = np.cos(np.radians(16.1))
    tree = cKDTree(np.column_stack([table.ra_deg * scale, table.dec_deg]))
    away, which = tree.query(np.column_stack([ra * scale, dec]))
    return table, away * 3600, which


def test_half_of_the_sources_of_five_sigma_are_found_and_none_of_six_is_false(made, figure):
    _, listed, sky = made
    _, away, _ = matched(listed, sky)
    _, _, _, snr, alone = sky
    near = alone & (np.abs(snr - 5) < 0.5)
    seen = (away[near] < 0.6 * BEAM.major_arcsec).mean()
    figure(
        f"half complete at {listed['half_complete_snr']} sigma by injected sources; of the sky's "
        f"own at 5 sigma {seen:.2f}; reliable above 6: {listed['reliability_above_6']}"
    )
    assert listed["half_complete_snr"] == pytest.approx(5, rel=0.1)
    assert 0.25 < seen < 0.75
    assert listed["reliability_above_6"] > 0.99
    table, *_ = matched(listed, sky)
    ra, dec = sky[:2]
    scale = np.cos(np.radians(16.1))
    back, _ = cKDTree(np.column_stack([ra * scale, dec])).query(
        np.column_stack([table.ra_deg * scale, table.dec_deg])
    )
    false = (back * 3600 > BEAM.major_arcsec) & (table.snr > 6)
    assert false.sum() <= 0.01 * (table.snr > 6).sum()


def test_fluxes_places_and_errors_are_right(made):
    _, listed, sky = made
    table, away, which = matched(listed, sky)
    _, _, flux_jy, snr, alone = sky
    use = alone & (snr > 12) & (away < BEAM.major_arcsec)
    assert use.sum() > 50
    mine = table.iloc[which[use]]
    assert np.median(mine.peak_jy / flux_jy[use]) == pytest.approx(1, abs=0.02)
    assert np.median(mine.flux_jy / flux_jy[use]) == pytest.approx(1, abs=0.03)
    pull = (mine.peak_jy - flux_jy[use]) / mine.peak_error_jy
    assert 0.6 < 1.48 * np.nanmedian(np.abs(pull)) < 1.5
    assert np.median(away[use]) < 0.05 * BEAM.major_arcsec


def test_the_list_is_there_in_every_format_with_its_curves(made):
    _, listed, _ = made
    files = listed["files"]
    number = listed["sources"]
    assert len(Table.read(files["fits"], hdu="SOURCES")) == number
    assert len(Table.read(files["vot"])) == number
    assert len(Table.read(files["csv"])) == number
    assert Table.read(files["vot"])["peak_jy"].unit == "Jy / beam"
    assert {"snr", "injected", "share"} <= {*Table.read(files["fits"], hdu="COMPLETENESS").colnames}
    assert read_about(files["parquet"])["half_complete_snr"] == listed["half_complete_snr"]


def test_a_finder_that_takes_too_long_or_fails_says_so(made):
    config, *_ = made
    image = np.zeros((64, 64), np.float32)
    head = tract_of(NAME, config.mosaics).wcs().to_header()
    finder = Finder(image + 1, head, 1, 0.01)
    with pytest.raises(ContimgError, match="took longer than"):
        finder.find(image)
    with pytest.raises(ContimgError, match="the source finder failed"):
        Finder(image + 1, head, 1, 60).find(image)  # no beam in the header


def test_nothing_is_found_in_noise(made):
    config, _, _ = made
    tract = tract_of(NAME, config.mosaics)
    head = tract.wcs().to_header()
    head.update({"BMAJ": 60 / 3600, "BMIN": 50 / 3600, "BPA": 20.0})
    noise = gaussian_filter(np.random.default_rng(1).normal(size=(300, 300)), 1.7)
    noise = (noise / noise.std()).astype(np.float32)
    finder = Finder(np.ones_like(noise), head, 1, 60)
    found = finder.find(np.clip(noise, -4, 4))
    assert len(found) == 0
    curve = completeness(
        finder=finder, image=noise, found=found, beam=BEAM, cell_arcsec=CELL_ARCSEC, seed=3
    )
    assert curve.injected.sum() > 5
