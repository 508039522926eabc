"""Twenty sidereal days of a strip: days, light curves, variability."""

import filecmp
import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from contimg.cli import app
from contimg.photometry import variability
from contimg.photometry.epochs import sidereal_day
from contimg.products import catalogue, lightcurves
from contimg.store.parquet import read_about, read_table, write_table
from tests.photometry import days

DAYS, FIRST_DEG, LAST_DEG = 20, 100.0, 107.5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config, paths, sky, groups, what the update said): all days, at once."""
    config, paths = days.site(tmp_path_factory.mktemp("days"))
    sky = days.sky_of(1, DAYS, FIRST_DEG, LAST_DEG)
    groups = days.groups_of(DAYS, FIRST_DEG, LAST_DEG)
    days.write_reference(paths, sky, 0.08)
    days.write_groups(paths, sky, groups)
    return config, paths, sky, groups, lightcurves.update(config)


@pytest.mark.parametrize("ra_deg", [0.0, 359.9, 0.2, 180.0])
def test_a_transit_has_one_day_also_at_zero_hours(ra_deg):
    """While it is within 7 deg of the meridian; the next transit has the next."""
    transit = 9600 + ra_deg / 360
    turns = transit + np.linspace(-0.02, 0.02, 41)
    mjd = lightcurves.epochs.mjd_of_turns(np.concatenate([turns, turns + 1]))
    found = sidereal_day(mjd, ra_deg)
    assert set(found[:41]) == {9600}
    assert set(found[41:]) == {9601}
    assert lightcurves.epochs.sidereal_turns(mjd[:41]) == pytest.approx(turns, abs=1e-9)


def test_a_strip_across_zero_hours(tmp_path):
    """No transit is cut in two; a group whose sources are all of one day is in no other."""
    config, paths = days.site(tmp_path)
    sky = days.sky_of(2, 3, 356.0, 363.0)
    days.write_reference(paths, sky, 0.05)
    groups = days.groups_of(3, 356.0, 363.0)
    days.write_groups(paths, sky, groups)
    updated = lightcurves.update(config)
    assert 3 <= updated.days <= 4  # sources before 0 h have days of their own numbers
    names, numbers, curves, _ = lightcurves.curves_of(paths, days.STRIP)
    assert len(numbers) <= 4
    east_of_zero = np.array([sky.table.ra_deg[sky.table.source == n].iloc[0] < 180 for n in names])
    seen = np.isfinite(curves.flux_jy).sum(axis=1)
    assert (seen[east_of_zero] == 3).mean() > 0.9
    assert (seen[~east_of_zero] == 3).mean() > 0.9
    for source in ("slow", "flare"):
        curve = catalogue.lightcurve(paths, days.STRIP, source)
        assert (curve.number >= 3).all()


def test_one_group_alone_at_any_time_of_the_sidereal_day(tmp_path):
    """Also where some of its sources might be of another day, and none is; and without sources."""
    for number, turn in enumerate((0.981, 0.99, 0.0, 0.013, 0.5)):
        config, paths = days.site(tmp_path / str(number))
        first_deg = 360 * turn - 3
        sky = days.sky_of(3, 1, first_deg, first_deg + 6)
        days.write_reference(paths, sky, 0.05)
        mjd = float(lightcurves.epochs.mjd_of_turns(9600 + turn))
        days.write_groups(paths, sky, [("2026-03-02T00:00:10", mjd, 0)])
        assert lightcurves.update(config).days in (1, 2)
        empty = days.Sky(sky.table.iloc[:0], sky.factor[:0])
        days.write_groups(paths, empty, [("2026-03-02T00:05:19", mjd + 0.00357, 0)])
        assert lightcurves.update(config).days == 0
        assert not any(
            "2026-03-02T00:05:19" in one["begin_mjd"].__str__() for one in catalogue.days(paths)
        )


def test_days_are_what_the_sky_was(made, figure):
    _, paths, sky, _, updated = made
    assert updated.days == DAYS
    names, _, curves, beam = lightcurves.curves_of(paths, days.STRIP)
    true = sky.table.set_index("source").loc[names].flux_jy.values
    order = [sky.table.index[sky.table.source == name][0] for name in names]
    factor = sky.factor[order]
    constant = (factor == 1).all(axis=1)
    bright = constant & (true > 0.02)
    snr = np.nanmedian(curves.flux_jy / curves.error_jy, axis=1)
    mean = np.nanmean(curves.flux_jy, axis=1)
    scatter = np.nanstd(curves.flux_jy, axis=1) / mean
    best = constant & (snr > 150)
    systematic = variability.systematics(curves, beam)
    table = variability.numbers(curves, systematic)
    of_bright = table[bright]
    figure(
        f"{bright.sum()} constants above 20 mJy: repeatability of the {best.sum()} best "
        f"{np.median(scatter[best]):.4f}; systematics {np.unique(systematic.round(4))}; eta median "
        f"{of_bright.eta.median():.3f}, with systematics {of_bright.eta_systematic.median():.3f}; "
        f"flux over truth {np.median(mean[bright] / true[bright]):.4f} +- "
        f"{np.std(mean[bright] / true[bright]):.4f}"
    )
    assert bright.sum() > 150
    assert np.median(scatter[best]) < 0.01
    assert of_bright.eta_systematic.median() == pytest.approx(1, abs=0.1)


def test_what_varies_is_at_the_top(made, figure):
    config, paths, *_ = made
    names, _, curves, beam = lightcurves.curves_of(paths, days.STRIP)
    table = variability.numbers(curves, variability.systematics(curves, beam))
    table = variability.candidates(table.assign(ra_deg=0.0), config.photometry.most_false)
    table.insert(0, "source", names)
    table = table.sort_values("false_alarms")
    top = table.head(4)
    figure(f"{table[table.reasons != ''][['source', 'false_alarms', 'reasons']].to_string()}")
    assert set(top.source) == {"dip", "flare", "slow", "new"}
    reasons = dict(zip(top.source, top.reasons, strict=True))
    assert "dip of" in reasons["dip"]
    assert "flare of" in reasons["flare"]
    false = table[(table.reasons != "") & ~table.source.isin({"dip", "flare", "slow", "new"})]
    assert len(false) <= 2


def test_order_lateness_and_repetition_change_nothing(made, tmp_path):
    """Groups in another order, in three instalments, one of them twice: the same bytes."""
    _, paths, sky, groups, _ = made
    config, other = days.site(tmp_path)
    days.write_reference(other, sky, 0.08)
    shuffled = np.random.default_rng(3).permutation(len(groups))
    for part in np.array_split(shuffled, 3):
        for k in part:
            name = groups[k][0]
            other.photometry(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(paths.photometry(name), other.photometry(name))
        lightcurves.update(config)
    again = lightcurves.update(config)
    assert (again.days, again.strips) == (0, ())
    for path in sorted(paths.means(days.STRIP).parent.rglob("*.parquet")):
        twin = other.products / path.relative_to(paths.products)
        assert filecmp.cmp(path, twin, shallow=False), path.name


def test_a_group_that_is_done_again_marks_its_days_and_nothing_else(made, tmp_path):
    _, paths, _, groups, _ = made
    copied = tmp_path / "copy"
    shutil.copytree(paths.products.parent, copied)
    config, paths = days.site(copied)
    late = [one for one in groups if one[2] == 15][3]
    table, about = read_table(paths.photometry(late[0])), read_about(paths.photometry(late[0]))
    write_table(paths.photometry(late[0]), table.assign(flux_jy=table.flux_jy * 1.001), about)
    updated = lightcurves.update(config)
    assert (updated.days, updated.unchanged, updated.strips) == (1, DAYS - 1, (days.STRIP,))
    # killed between days and months, or months and numbers: the next time goes on
    (month,) = paths.lightcurve_months(days.STRIP)[-1:]
    was = month.read_bytes()
    month.unlink()
    with lightcurves.db.writing(paths.sources_db, lightcurves.Base) as session:
        session.delete(session.get(lightcurves.Strip, days.STRIP))
    updated = lightcurves.update(config)
    assert (updated.days, updated.strips, month.read_bytes() == was) == (0, (days.STRIP,), True)
    # one of the days that all are scaled to
    early = [one for one in groups if one[2] == 4][3]
    paths.photometry(early[0]).unlink()
    assert lightcurves.update(config).days == DAYS


def test_a_person_asks_for_light_curves(made, tmp_path):
    """Names, positions, cones, variables; on the command line."""
    _, paths, sky, *_ = made
    configfile = tmp_path / "site.yaml"
    folders = {"incoming": paths.incoming, "products": paths.products, "state": paths.state}
    configfile.write_text(json.dumps({"paths": {k: str(v) for k, v in folders.items()}}))
    paths.registry_db.touch()  # a site at work

    def said(*words: str, status: int = 0) -> str:
        ran = CliRunner().invoke(app, [*words, "--configfile", str(configfile)])
        assert ran.exit_code == status, ran.output
        return ran.output

    png, csv = tmp_path / "dip.png", tmp_path / "dip.csv"
    found = json.loads(said("lightcurve", "dip", "--json"))
    assert len(found["days"]) == DAYS
    inside = [one["flux_jy"] for one in found["days"][6:14]]
    outside = [one["flux_jy"] for one in found["days"][:6]]
    assert np.mean(inside) / np.mean(outside) == pytest.approx(0.4, abs=0.01)
    place = sky.table[sky.table.source == "dip"].iloc[0]
    where = f"{place.ra_deg:.5f}", f"{place.dec_deg:.5f}"
    assert "dip of" in said("lightcurve", *where, "--png", str(png), "--csv", str(csv))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert len(csv.read_text().splitlines()) == DAYS + 1
    assert "no source within 15 arcsec" in said("lightcurve", "10.0", "80.0", status=1)
    rows = json.loads(said("variables", "--json"))
    assert {one["source"] for one in rows} >= {"dip", "flare", "slow", "new"}
    plot = tmp_path / "variables.png"
    assert f"{len(rows)} of {len(rows)} candidates" in said("variables", "--png", str(plot))
    assert plot.stat().st_size > 10_000
    near = json.loads(said("sources", "--cone", f"{where[0]},{where[1]},0.3", "--json"))
    assert near[0]["source"] == "dip"
    assert near[0]["away_arcsec"] < 0.1
    assert near[-1]["away_arcsec"] < 0.3 * 3600
    assert "expected RA,DEC,RADIUS" in said("sources", "--cone", "3", status=1)
    assert "0 days made, 20 were up to date" in said("lightcurves")
