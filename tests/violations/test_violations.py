"""Each violation is caught, by its name; none ends as a science image with verdict good beyond the
size that is published (docs/violations.md)."""

import re

import pytest

from contimg.config import from_mapping
from tests.conftest import ROOT
from tests.violations.chain import calibrate, observe
from tests.violations.rows import ROWS

_ALWAYS = {"array points aside", "subbands exchanged", "clock jumped since the calibrator"}
_FLUX, _OFFSET_ARCSEC = 0.05, 0.5  # that what passes unnoticed may cost


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("violations")
    of_site = {"products": str(folder / "products"), "state": str(folder / "state")}
    images = {"imsize": 2304, "cell_arcsec": 6.0}
    return folder, from_mapping({"paths": of_site, "imaging": images})


@pytest.fixture(scope="module")
def clean_set(site, sky):
    folder, config = site
    return calibrate(folder, sky, config)


def seen(site, sky, clean_set, calibrator, target):
    """What is said of a target, with the clean set where nothing is wrong with the calibrator."""
    folder, config = site
    if not calibrator:
        return observe(folder, sky, config, clean_set, **target)
    config = config.model_copy(
        update={"paths": config.paths.model_copy(update={"products": folder / "other"})}
    )
    return observe(folder, sky, config, calibrate(folder, sky, config, **calibrator), **target)


def rows(of=lambda row: True):
    return [
        pytest.param(row, id=row.name, marks=() if row.name in _ALWAYS else pytest.mark.long)
        for row in ROWS
        if of(row)
    ]


def is_right(found) -> None:
    check = found.image["catalogue"]
    assert check["flux_ratio"] == pytest.approx(1, abs=_FLUX)
    assert check["offset_arcsec"] < _OFFSET_ARCSEC


def test_nothing_is_said_of_what_is_right(site, sky, clean_set):
    found = seen(site, sky, clean_set, {}, {})
    assert not found.refused
    assert (found.verdict, found.science) == ("good", True), found.said
    is_right(found)


@pytest.mark.parametrize("row", rows())
def test_it_is_caught_and_named(row, site, sky, clean_set, figure):
    found = seen(site, sky, clean_set, row.of_calibrator, row.target)
    figure(f"{row.name} ({row.size}): {found.verdict}; refused {bool(found.refused)}")
    for expected in row.words:
        assert re.search(expected, found.said), found.said
    if row.harmless:
        is_right(found)
    else:
        assert found.refused or found.verdict != "good" or not found.science, found.said


@pytest.mark.parametrize("row", rows(lambda row: row.small))
def test_what_passes_unnoticed_costs_little(row, site, sky, clean_set, figure):
    calibrator = row.small_target if row.both else row.small_calibrator
    found = seen(site, sky, clean_set, calibrator, row.small_target)
    check = found.image["catalogue"]
    figure(
        f"{row.name} ({row.small}): {found.verdict}; flux {check['flux_ratio']}, offset "
        f"{check['offset_arcsec']}"
    )
    assert not found.refused
    assert found.verdict == "good", found.said
    is_right(found)


def test_the_table_is_published():
    table = (ROOT / "docs" / "violations.md").read_text()
    for row in ROWS:
        (line,) = [one for one in table.splitlines() if one.startswith(f"| {row.name} |")]
        assert f"| {row.size} |" in line
        assert not row.small or f"| {row.small} |" in line
