"""Sky catalogues: what is refused, what is left out by name, and that size costs nothing."""

import time

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from typer.testing import CliRunner

from contimg.cli.shared import app
from contimg.config import CataloguesConfig, Config, load
from contimg.errors import ConfigError, RequestError
from contimg.sky import catalogues
from contimg.sky.calibrators import read_corrected
from contimg.sky.catalogues import read_sky, read_table, write_catalogue, write_index
from contimg.store.files import checksum
from contimg.store.identity import catalogue_checksums, science_digest
from tests.conftest import CATALOGUES

NVSS = CATALOGUES / "nvss_ra344_dec16.csv"


def sources(number, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "name": [f"s{k}" for k in range(number)],
            "ra_deg": rng.uniform(0, 360, number).round(6),
            "dec_deg": np.degrees(np.arcsin(rng.uniform(-0.6, 1, number))).round(6),
            "flux_jy": rng.lognormal(-4, 1, number).round(6),
        }
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    catalogues._read_sky.cache_clear()
    return tmp_path / "cache" / "contimg"


@pytest.mark.parametrize(
    "place",
    [
        (10.0, 20.0, 3.0),
        (0.2, -5.0, 2.0),
        (359.9, 60.0, 4.0),
        (120.0, 88.5, 3.0),
        (40.0, 89.9, 1.0),
    ],
)
def test_the_index_gives_what_a_search_through_all_gives(tmp_path, place):
    path = tmp_path / "x.sqlite3"
    table = write_catalogue(path, sources(60_000), "x")
    assert table.number == 60_000
    indexed = read_sky(path)
    small = catalogues.Sky(path, "", 0, (), catalogues.check_sources(sources(60_000), "x")[0])
    found, expected = (
        sky.within(*place).sort_values("name").reset_index(drop=True) for sky in (indexed, small)
    )
    where = SkyCoord(*place[:2], unit="deg")
    all_of_them = sources(60_000)
    away = where.separation(
        SkyCoord(all_of_them.ra_deg.values, all_of_them.dec_deg.values, unit="deg")
    ).deg
    assert sorted(found.name) == sorted(all_of_them.name[away <= place[2]])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    bright = indexed.within(*place, least_jy=0.05)
    assert sorted(bright.name) == sorted(found.name[found.flux_jy >= 0.05])
    ra, dec = found.ra_deg.values[:20], found.dec_deg.values[:20] + 4 / 3600
    for sky in (indexed, small):
        near = sky.nearest(np.append(ra, 0.0), np.append(dec, -89.0))
        assert near.away_arcsec[:-1].values == pytest.approx(4, abs=1e-3)
        assert near.flux_jy[:-1].values == pytest.approx(found.flux_jy.values[:20])
        assert np.isnan(near.flux_jy.iloc[-1])


def test_the_whole_nvss_is_indexed_once_and_costs_nothing(tmp_path, cache, figure):
    path = tmp_path / "nvss.csv"
    sources(1_800_000).to_csv(path, index=False)
    begin = time.perf_counter()
    first = read_sky(path)
    seconds = [time.perf_counter() - begin]
    for _ in range(2):
        catalogues._read_sky.cache_clear()  # another process
        begin = time.perf_counter()
        again = read_sky(path)
        near = again.within(344.0, 16.0, 5.0)
        again.nearest(np.linspace(0, 359, 1865), np.linspace(-30, 80, 1865))
        seconds.append(time.perf_counter() - begin)
    figure(
        f"1.8 million sources: read and indexed in {seconds[0]:.1f} s, then used in "
        f"{seconds[2]:.3f} s"
    )
    assert again.index is not None
    assert again.checksum == first.checksum
    assert len(near) == len(first.within(344.0, 16.0, 5.0)) > 3000
    assert len(list(cache.glob("*.sqlite3"))) == 1
    with path.open("a") as file:
        file.write("more,1.0,1.0,1.0\n")
    catalogues._read_sky.cache_clear()
    changed = read_sky(path)
    assert changed.number == first.number + 1
    assert changed.checksum != first.checksum
    assert len(list(cache.glob("*.sqlite3"))) == 1  # the old one went


def test_an_index_that_is_damaged_is_made_again(tmp_path, cache):
    path = tmp_path / "x.csv"
    sources(40_000).to_csv(path, index=False)
    read_sky(path)
    (index,) = cache.glob("*.sqlite3")
    index.write_bytes(b"no database")
    catalogues._read_sky.cache_clear()
    assert read_sky(path).number == 40_000
    (tmp_path / "y.sqlite3").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no indexed sky catalogue .*contimg catalog"):
        read_sky(tmp_path / "y.sqlite3")


def test_without_a_place_for_the_index_it_is_read_each_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    catalogues._read_sky.cache_clear()
    path = tmp_path / "x.csv"
    sources(40_000).to_csv(path, index=False)
    assert len(read_sky(path).within(10, 10, 10)) > 10
    assert "reading it takes seconds each time" in caplog.text


def write(folder, change):
    table = sources(30)
    change(table)
    path = folder / "sky.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("flux_jy", np.nan, "row 9 (s7): flux_jy is nan: left out"),
        ("flux_jy", 0.0, "row 9 (s7): flux_jy is 0.0: left out"),
        ("flux_jy", -1.0, "row 9 (s7): flux_jy is -1.0: left out"),
        ("flux_jy", 1e9, "row 9 (s7): flux_jy is 1000000000.0: left out"),
        ("flux_jy", "bright", "row 9 (s7): flux_jy is bright: left out"),
        ("flux_jy", np.inf, "row 9 (s7): flux_jy is inf: left out"),
        ("dec_deg", 91.0, "row 9 (s7): dec_deg is 91.0: left out"),
        ("ra_deg", 400.0, "row 9 (s7): ra_deg is 400.0: left out"),
        ("name", "", "row 9 (without a name): name is nan: left out"),
    ],
)
def test_a_row_that_can_be_no_source_is_left_out_by_name(tmp_path, column, value, words):
    def spoil(table):
        table[column] = table[column].astype(object)
        table.loc[7, column] = value

    sky = read_sky(write(tmp_path, spoil))
    assert sky.problems == (words,)
    assert sky.number == 29
    assert np.isfinite(
        sky.within(0, 0, 180)[["ra_deg", "dec_deg", "flux_jy", "alpha"]].values
    ).all()


def test_right_ascensions_of_360_and_below_0_are_on_the_sky(tmp_path):
    sky = read_sky(
        write(tmp_path, lambda t: t.update(pd.DataFrame({"ra_deg": {3: 360.0, 4: -10.0}})))
    )
    assert sky.problems == ()
    assert list(sky.table.ra_deg[[3, 4]]) == [0.0, 350.0]


def test_a_source_that_is_there_twice_counts_once(tmp_path):
    def double(table):
        table.loc[9, ["ra_deg", "dec_deg"]] = table.loc[2, ["ra_deg", "dec_deg"]]

    assert read_sky(write(tmp_path, double)).problems == ("row 11 (s9): is there twice: left out",)


def test_what_must_be_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"median of flux_jy is .* are these mJy"):
        read_sky(write(tmp_path, lambda t: t.update(t[["flux_jy"]] * 1000)))
    with pytest.raises(
        ConfigError, match=r"30 of 30 rows can be no sources: row 2 .s0.: flux_jy is -0"
    ):
        read_sky(write(tmp_path, lambda t: t.update(-t[["flux_jy"]])))
    with pytest.raises(ConfigError, match=r"has no column \['flux_jy'\]"):
        read_sky(write(tmp_path, lambda t: t.drop(columns="flux_jy", inplace=True)))
    with pytest.raises(
        ConfigError, match=r"absent.csv: the sky catalogue cannot be read: No such file"
    ):
        read_sky(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("name,ra_deg,dec_deg,flux_jy\n")
    assert len(read_sky(tmp_path / "empty.csv").within(10, 10, 90)) == 0


@pytest.mark.parametrize("ending", ["fits", "vot", "csv"])
@pytest.mark.parametrize("output", ["out.csv", "out.sqlite3"])
def test_a_catalogue_comes_from_a_file_that_one_has(tmp_path, ending, output):
    frame = sources(50)
    table = Table(
        {
            "NVSS": list(frame.name),
            "RAJ2000": frame.ra_deg.values * u.deg,
            "DEJ2000": frame.dec_deg.values * u.deg,
        }
    )
    table["S1.4"] = frame.flux_jy.values * 1e3
    if ending != "csv":
        table["S1.4"].unit = "mJy"
    path = tmp_path / f"in.{ending}"
    table.write(path, format={"vot": "votable", "csv": "ascii.csv"}.get(ending, ending))
    columns = "name=NVSS, ra_deg=RAJ2000, dec_deg=DEJ2000, flux_jy=S1.4"
    unit = ["--flux-unit", "mJy"] if ending == "csv" else []
    said = CliRunner().invoke(
        app, ["catalog", str(tmp_path / output), "--from", str(path), "--columns", columns, *unit]
    )
    assert said.exit_code == 0, said.output
    assert "50 sources in" in said.output
    found = read_sky(tmp_path / output).within(0, 0, 180).sort_values("name")
    expected = frame.sort_values("name")
    assert found.flux_jy.values == pytest.approx(expected.flux_jy.values)
    assert found.ra_deg.values == pytest.approx(expected.ra_deg.values)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(RequestError, match=r"no column name for name; it has NVSS"):
        read_table(path, {})


def test_a_calibrator_stands_where_its_list_has_it_and_the_difference_is_said():
    """3C454.3: 0.7 arcsec between the survey and the list of calibrators."""
    plain, better = read_sky(NVSS), read_corrected(load().catalogues, load().calibration)
    place = 343.49, 16.148, 0.01
    (one,), (two,) = (sky.within(*place).itertuples() for sky in (plain, better))
    assert (two.ra_deg, two.dec_deg) == (343.4906164, 16.1482114)
    apart = (
        SkyCoord(one.ra_deg, one.dec_deg, unit="deg")
        .separation(SkyCoord(two.ra_deg, two.dec_deg, unit="deg"))
        .arcsec
    )
    assert two.moved_arcsec == pytest.approx(apart, abs=1e-3)
    assert 0.5 < apart < 0.9
    assert two.flux_jy == one.flux_jy


def test_the_digest_is_of_what_decides_the_science(tmp_path):
    """K53: workers, staging and spelling of a path are none of it; the content of a catalogue is
    (K52)."""
    base = Config()
    copied = tmp_path / "copy.csv"
    copied.write_bytes(NVSS.read_bytes())
    same = [
        {"conversion": base.conversion.model_copy(update={"workers": 2, "staging": "disk"})},
        {"catalogues": CataloguesConfig(sky=NVSS.resolve())},
        {"catalogues": CataloguesConfig(sky=copied)},
        {"imaging": base.imaging.model_copy(update={"skip_fits": True})},
        {"calibration": base.calibration.model_copy(update={"deny": ()})},
    ]
    for change in same:
        assert science_digest(base.model_copy(update=change)) == science_digest(base)
    denied = [
        base.calibration.model_copy(update={"deny": deny})
        for deny in (("3C48", "3C147"), ("3C147", "3C48"))
    ]
    one, two = (science_digest(base.model_copy(update={"calibration": c})) for c in denied)
    assert one == two != science_digest(base)
    copied.write_text(NVSS.read_text().replace("12.6568", "12.66"))
    assert science_digest(base.model_copy(update=same[2])) != science_digest(base)
    assert catalogue_checksums(base)["sky"] == checksum(NVSS) == read_sky(NVSS).checksum
    write_catalogue(tmp_path / "sky.sqlite3", sources(40), "x")
    indexed = base.model_copy(update={"catalogues": CataloguesConfig(sky=tmp_path / "sky.sqlite3")})
    assert catalogue_checksums(indexed)["sky"] == read_sky(tmp_path / "sky.sqlite3").checksum


def test_an_index_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(AttributeError):
        write_index(tmp_path / "x.sqlite3", None, "")
    assert list(tmp_path.iterdir()) == []
