from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from contimg.calibration import registry
from contimg.calibration.registry import CalSet, choose_set
from contimg.calibration.tables import choose_reference_antenna, problems
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError, ConfigError, NoCalibrationError
from contimg.sky.calibrators import _centre_icrs_deg, find_candidates, read_calibrators
from contimg.sky.catalogues import read_sky
from contimg.sky.geometry import meridian_icrs_deg
from contimg.sky.skymodel import calibrator_model
from contimg.store import files
from tests.conftest import CATALOGUES, DEC_DEG

CALIBRATOR_MJD, TARGET_MJD = 61065.93657, 61065.94730  # 3C454.3 is 0.34 deg off, and 4 deg
OPTIONS = CalibrationConfig()


@pytest.fixture(scope="module")
def catalogue():
    return read_sky(CATALOGUES / "nvss_ra344_dec16.csv")


def calibrators(catalogue, options=OPTIONS):
    return read_calibrators(CATALOGUES / "vla_calibrators.csv", catalogue, options)


def test_candidates_come_from_time_and_declination(catalogue):
    found = find_candidates(
        calibrators(catalogue), [CALIBRATOR_MJD, TARGET_MJD], [DEC_DEG, DEC_DEG], OPTIONS
    )
    assert [[c.name for c in group] for group in found] == [["3C454.3"], []]
    blazar = found[0][0]
    assert blazar.variable
    assert blazar.flux_origin == "sky catalogue"
    assert blazar.source.flux_jy(1.4e9) == pytest.approx(12.6568)
    assert blazar.source.ra_deg == 343.4906164  # the list's position, not the survey's
    assert 0.89 < blazar.mean_beam < 0.93


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"deny": ("3C454.3",)}, []),
        ({"allow": ("3C48",)}, []),
        ({"min_flux_jy": 20}, []),
        ({"min_beam": 0.95}, []),
        ({"min_flux_jy": 20, "flux_override": {"3C454.3": 21}}, ["3C454.3"]),
    ],
)
def test_what_config_allows(catalogue, options, expected):
    options = CalibrationConfig(**options)
    (found,) = find_candidates(calibrators(catalogue, options), CALIBRATOR_MJD, DEC_DEG, options)
    assert [c.name for c in found] == expected


def test_a_name_that_is_in_no_list_is_refused(catalogue):
    with pytest.raises(ConfigError, match="3C999"):
        calibrators(catalogue, CalibrationConfig(deny=("3C999",)))


def test_fluxes_and_where_they_are_from(catalogue):
    table = calibrators(catalogue).set_index("alt_name")
    assert table.loc["3C48", "flux_origin"] == "Perley-Butler 2017"
    assert table.loc["3C286", "flux_jy"] == pytest.approx(15.0, rel=0.03)
    assert np.isnan(table.loc["3C274", "flux_jy"])  # Vir A: no point source
    unknown = table[table["flux_origin"] == ""]
    assert len(unknown) > 700
    assert unknown["flux_jy"].isna().all()  # never 1.0 Jy


def test_perley_butler_at_the_middle_of_the_band(catalogue):
    table = calibrators(catalogue)
    for name, flux_jy in (("3C48", 16.21), ("3C147", 22.11)):
        row = table[table["alt_name"] == name].iloc[0]
        for mjd in np.arange(61000, 61001, 0.002):
            ra, _ = meridian_icrs_deg(mjd, np.radians(row.dec_deg))
            if abs(float(ra) - row.ra_deg) < 0.4:
                break
        (found,) = find_candidates(table, mjd, row.dec_deg, OPTIONS)
        assert found[0].name == name
        assert found[0].source.flux_jy(1.405e9) == pytest.approx(flux_jy, abs=0.01)


def test_the_calibrator_is_counted_once_in_its_model(catalogue):
    (found,) = find_candidates(calibrators(catalogue), CALIBRATOR_MJD, DEC_DEG, OPTIONS)
    model = calibrator_model(found[0].source, catalogue, 1.1, 0.01)
    assert sum(s.flux_jy(1.4e9) > 10 for s in model) == 1
    where = SkyCoord(catalogue.table.ra_deg.values, catalogue.table.dec_deg.values, unit="deg")
    away = where.separation(SkyCoord(343.4906164, 16.1482114, unit="deg")).deg
    assert len(model) == (away < 1.1).sum()
    assert all(
        s.flux_jy(1.4e9) >= 0.09 for s in calibrator_model(found[0].source, catalogue, 1.1, 0.09)
    )


def make_set(name, mid_mjd, dec=DEC_DEG, quality=1.0):
    start, end = registry.validity(mid_mjd, OPTIONS)
    return CalSet(
        name, mid_mjd, dec, "3C454.3", "sky catalogue", quality, start, end, (("B", "x.bpcal"),)
    )


def test_nearest_in_time_both_ways_not_newest():
    sets = [make_set("before", 99.9), make_set("after", 100.05), make_set("newest", 100.6)]
    assert choose_set(sets, 100.0, DEC_DEG, OPTIONS).chosen.name == "after"
    assert choose_set(sets, 99.8, DEC_DEG, OPTIONS).chosen.name == "before"
    assert choose_set(sets[::-1], 99.8, DEC_DEG, OPTIONS).chosen.name == "before"


def test_gains_are_interpolated_to_the_nearest_valid_set_on_the_other_side():
    before, after, later = (make_set(n, t) for n, t in (("b", 99.9), ("a", 100.05), ("l", 100.6)))
    choice = choose_set([before, after, later], 100.0, DEC_DEG, OPTIONS)
    assert (choice.chosen.name, choice.beyond.name) == ("a", "b")
    assert choose_set([after, later], 100.0, DEC_DEG, OPTIONS).beyond is None
    assert choose_set([before, make_set("a", 101.2)], 100.0, DEC_DEG, OPTIONS).beyond is None
    # a calibrator's own group is calibrated by itself
    assert choose_set([before, after, later], 100.05, DEC_DEG, OPTIONS).beyond is None


def test_ties_go_to_the_better_set():
    sets = [make_set("a", 99.9, quality=5), make_set("b", 100.1, quality=50)]
    assert choose_set(sets, 100.0, DEC_DEG, OPTIONS).chosen.name == "b"


@pytest.mark.parametrize(
    ("calset", "why"),
    [
        (make_set("old", 98.9), "26.4 h away, valid for 24 h"),
        (make_set("north", 100.1, dec=DEC_DEG + 1.5), "1.50 deg off in declination"),
    ],
)
def test_outside_window_or_strip_is_refused_with_the_reason(calset, why):
    choice = choose_set([calset], 100.0, DEC_DEG, OPTIONS)
    assert choice.chosen is None
    assert why in choice.reason


@pytest.fixture
def calset(tmp_path):
    """A set of one table, and the registry's database."""
    table = tmp_path / "x.bpcal"
    table.mkdir()
    (table / "table.dat").write_bytes(b"gains")
    (table / "table.lock").write_bytes(b"0")
    made = CalSet("s", 100.0, DEC_DEG, "3C48", "PB", 1.0, 99.0, 101.0, (("B", str(table)),))
    return tmp_path / "registry.sqlite3", made, table


def select(database):
    return registry.select_for(database, 100.5, DEC_DEG, OPTIONS)


def test_a_set_is_registered_once_with_its_checksums(calset):
    database, made, table = calset
    table.rename(table.with_name("away"))
    with pytest.raises(CalibrationError, match="not there"):
        registry.register(database, made, "12")
    assert registry.active_sets(database) == []
    table.with_name("away").rename(table)
    registry.register(database, made, "12")
    # again: replaced
    registry.register(
        database, made, "12", numbers={"B": {"antennas": 95}}, software={"contimg": "1"}
    )
    (one,) = registry.describe_sets(database)
    assert (one["status"], one["software"], one["tables"][0]["quality"]) == (
        "active",
        {"contimg": "1"},
        {"antennas": 95},
    )
    assert one["valid_until"] == "1859-02-26T00:00"
    assert select(database)["tables"] == {"B": str(table)}
    (table / "table.lock").write_bytes(b"read by somebody")
    assert select(database)["checksums"] == [one["tables"][0]["sha256"]]


@pytest.mark.parametrize("what", ["gone", "altered", "retired", "failed"])
def test_a_set_that_must_not_be_used_is_refused_and_another_one_taken(calset, tmp_path, what):
    database, made, table = calset
    registry.register(
        database, made, "12", status="failed" if what == "failed" else "active", notes="G: bad"
    )
    if what == "gone":
        (table / "table.dat").unlink()
        (table / "table.lock").unlink()
        table.rmdir()
    elif what == "altered":
        (table / "table.dat").write_bytes(b"Gains")
    elif what == "retired":
        registry.retire(database, "s", "G: bad")
    words = {
        "gone": "is not on disk",
        "altered": "was altered",
        "retired": "retired: G: bad",
        "failed": "failed: G: bad",
    }[what]
    with pytest.raises(NoCalibrationError, match=words):
        select(database)
    if what in ("gone", "altered"):
        assert words in files.altered([(str(table), registry.all_tables(database)[0].checksum)])[0]
    other = tmp_path / "y.bpcal"
    (other / "sub").mkdir(parents=True)
    farther = replace(made, name="t", mid_mjd=99.5, tables=(("B", str(other)),))
    registry.register(database, farther, "12")
    found = select(database)
    assert found["set_name"] == "t"
    assert words in next(c["why"] for c in found["considered"] if c["set"] == "s")


def test_each_limit_of_the_quality_gate_says_what_is_wrong():
    good = {
        "antennas": 40,
        "flagged": 0.05,
        "median_snr": 80.0,
        "amplitude_scatter": 0.01,
        "phase_scatter_deg": 0.6,
    }
    assert problems({"B": good, "G": good}, OPTIONS) == []
    for name, bad in {
        "antennas": 3,
        "flagged": 0.9,
        "median_snr": 2.0,
        "amplitude_scatter": 0.4,
        "phase_scatter_deg": 30.0,
    }.items():
        (line,) = problems({"B": good | {name: bad}, "G": good}, OPTIONS)
        assert line.startswith(f"B: {name} is {bad:.3g}, expected at ")
    assert problems({"B": good | {"median_snr": float("nan")}}, OPTIONS)


def test_reference_antenna_is_healthy_and_central():
    positions = np.array([[0, 0, 0], [10, 0, 0], [500, 0, 0], [12, 5, 0], [2000, 0, 0]], float)
    flagged = np.array([0.0, 0.6, 0.0, 0.0, 1.0])
    assert choose_reference_antenna(positions_m=positions, antennas=range(5), flagged=flagged) == [
        3,
        0,
        2,
        1,
    ]
    assert (
        choose_reference_antenna(
            positions_m=positions, antennas=range(5), flagged=flagged, wanted=2
        )[0]
        == 2
    )
    with pytest.raises(CalibrationError, match="no unflagged data"):
        choose_reference_antenna(
            positions_m=positions, antennas=range(5), flagged=flagged, wanted=4
        )


def test_the_centre_of_the_beam_is_known_well_enough_to_choose():
    mjd, dec_deg = np.linspace(60000, 61300, 7), np.linspace(-20, 80, 7)
    quick = SkyCoord(*_centre_icrs_deg(mjd, dec_deg), unit="deg")
    right = SkyCoord(
        *np.transpose(
            [meridian_icrs_deg(t, np.radians(d)) for t, d in zip(mjd, dec_deg, strict=True)]
        ),
        unit="deg",
    )
    assert quick.separation(right).arcsec.max() < 15
