"""A day's results as the instrument's numbers: from files as the stages write them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from contimg.calibration.beamfit import airy_fwhm_deg
from contimg.calibration.beams import known_beams
from contimg.cli import app
from contimg.paths import Paths
from contimg.plots.instrument import draw_days
from contimg.products import instrument
from contimg.store.files import read_json, write_json
from tests.calibration.test_beamfit import FREQ_HZ, response, seen

WIDE, POINTS = (1.1, 1.05), (0.1, -0.05)


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """(paths, groups): a strip of 12 groups through a beam of its own, as image.json has it."""
    folder = tmp_path_factory.mktemp("day")
    paths = Paths(folder, folder / "products", folder / "state", folder / "state")
    fluxes, groups = seen(3, WIDE, POINTS, groups=12), []
    table = pd.DataFrame(vars(fluxes))
    begin = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)
    for number, mine in table.groupby("group"):
        group = (begin + timedelta(seconds=309.24 * number)).strftime("%Y-%m-%dT%H:%M:%S")
        groups.append(group)
        beam = response(mine.east_deg.values, mine.north_deg.values, (1, 1), (0, 0))
        sources = mine.assign(
            name=mine.source.map("S{:04.0f}".format),
            beam=beam,
            flux_jy=mine.apparent_jy / beam,
            snr=mine.apparent_jy / mine.error_jy,
            found=True,
        )
        image = {
            "start_mjd": 61101.8 + number / 279,
            "end_mjd": 61101.8 + (number + 1) / 279,
            "verdict": "fail" if number == 11 else "warn",
            "rms_jy": 6e-4,
            "thermal_jy": 5e-4,
            "flagged": 0.1,
            "freq_hz": FREQ_HZ,
            "bandwidth_hz": 0.0,  # as the fluxes were made
            "exposure_s": 309.24,
            "catalogue": {"flux_ratio": 1.01},
            "sources": sources.to_dict("records"),
        }
        gates = {"sefd_jy": 8000.0, "sefd_jy_by_antenna": {"2": 8000.0 + number, "10": 9000.0}}
        fault = {"antennas": ["10"], "words": "10: noisy"}
        refined = {
            "gains": {"2": {"amplitude": [1.0, 1.2], "phase_deg": [10.0, 20.0]}},
            "pointing_east_deg": {"10": [0.12, 0.01], "2": [0.01, 0.01]},
            "antennas": [fault] if number < 3 else [],
            "moved_sky": {"east_arcsec": 3.0, "north_arcsec": -1.0},
        }
        prepared = {"flagged_by_channel": [0.0] * 191 + [1.0], "flagged_by_antenna": {"2": 0.25}}
        for stage, result in (
            ("image", image),
            ("convert", {"app_dec_deg": 16.12}),
            ("apply", {"gates": gates}),
            ("refine", refined),
            ("prepare", prepared),
        ):
            write_json(paths.result(group, stage), result)
    return paths, groups


def test_what_groups_say_of_antennas_is_collected(day):
    paths, groups = day
    found = instrument.of_day(paths, "2026-03-02")
    assert [one["group"] for one in found["groups"]] == groups
    assert list(found["antennas"]) == ["2", "10"]  # by number, not by letters
    two, ten = found["antennas"].values()
    assert (two["sefd_jy"], two["amplitude"], two["phase_deg"]) == (8005.5, 1.1, 15.0)
    assert (two["flagged"], ten["faults"]) == (0.25, ["10: noisy"])
    assert np.shape(found["interference"]) == (12, 96)
    assert found["interference"][0][-1] == 0.5
    assert found["groups"][0]["east_arcsec"] == 3.0
    assert instrument.remarkable(found) == [
        "10: noisy (12 groups)",
        "10: points 0.12 deg east of the others",
    ]
    assert instrument.of_day(paths, "2026-03-03")["groups"] == []


def test_a_strip_has_its_beam(day):
    paths, groups = day
    found = instrument.of_day(paths, "2026-03-02")
    assert instrument.strips(found) == [16.1]
    fit, used = instrument.fit_strip(paths, found, 16.1)
    assert used == groups[:-1]  # not of an image that is wrong
    true_deg = airy_fwhm_deg(FREQ_HZ) * np.array(WIDE)
    assert [fit.fwhm_east_deg, fit.fwhm_north_deg] == pytest.approx(true_deg, rel=0.012)
    assert [fit.east_deg, fit.north_deg] == pytest.approx(POINTS, abs=0.01)
    path = instrument.keep_beam(paths, found, fit, 16.1, used)
    (kept,) = known_beams(paths.beams)
    assert Path(kept["path"]) == path
    assert kept["first_mjd"] == pytest.approx(61101.8 + 0.5 / 279)
    with pytest.raises(ValueError, match="0 groups of declination 30"):
        instrument.fit_strip(paths, found, 30.0)


def test_a_persons_commands_on_beams(day, tmp_path):
    """List, retire, and which images were made with what was retired."""
    paths, groups = day
    found = instrument.of_day(paths, "2026-03-02")
    fit, used = instrument.fit_strip(paths, found, 16.1)
    path = instrument.keep_beam(paths, found, fit, 16.1, used)
    image = read_json(paths.result(groups[0], "image"))
    write_json(paths.result(groups[0], "image"), image | {"primary_beam": {"path": str(path)}})
    configfile = tmp_path / "site.yaml"
    folders = {"incoming": paths.incoming, "products": paths.products, "state": paths.state}
    configfile.write_text(json.dumps({"paths": {k: str(v) for k, v in folders.items()}}))
    paths.state.mkdir(exist_ok=True)
    paths.registry_db.touch()  # a site at work

    def said(*words: str) -> str:
        ran = CliRunner().invoke(app, [*words, "--configfile", str(configfile)])
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    (one,) = json.loads(said("registry", "beams", "--json"))
    assert (one["name"], one["status"]) == (path.stem, "active")
    listed = said("registry", "retire", path.stem, "--reason", "a storm")
    assert f"{path.stem}: retired; 1 image was made with it" in listed
    assert f"contimg reprocess {groups[0]} --from apply" in listed
    (one,) = json.loads(said("registry", "beams", "--json"))
    assert (one["status"], one["notes"]) == ("retired", "a storm")


def test_days_are_drawn_side_by_side(day):
    paths, _ = day
    found = instrument.of_day(paths, "2026-03-02") | {"beams": {"16.1": {"not_fitted": "few"}}}
    fit, _ = instrument.fit_strip(paths, found, 16.1)
    other = found | {"day": "2026-03-03", "beams": {"16.1": fit.as_json()}}
    drawn = draw_days([found, other])
    width, _, _, _, *heat = drawn.axes
    (line,) = [one for one in width.containers if "east-west" in one.get_label()]
    assert line[0].get_xydata()[0] == pytest.approx([0.92, fit.fwhm_east_deg])
    assert heat[0].get_images()[0].get_array().shape == (2, 2)  # antennas, days
