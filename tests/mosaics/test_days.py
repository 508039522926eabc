"""Days of a tract as one, and what one of them shows beyond the others: from files."""

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from contimg.config import MosaicsConfig
from contimg.imaging.interface import Beam, robust_rms
from contimg.imaging.restoring import restore
from contimg.mosaics import files as mosaic_files
from contimg.mosaics.combine import Sum
from contimg.mosaics.files import read_mosaic, write_mosaic
from contimg.mosaics.tracts import tract_of
from contimg.paths import Paths
from contimg.products import catalogue, mosaics, retention
from contimg.stages.deep import DAYS_A_WEEK, add_days
from contimg.stages.difference import compare
from contimg.stages.mosaic import files_of, numbers
from contimg.store.files import publish, remove, write_json
from tests.mosaics.tiles import Sky

NAME = "+16.1_100"
FIRST = 9800  # begins a week
CELL_ARCSEC, BEAM, DEC_DEG, NOISE_JY = 12.0, Beam(60.0, 60.0, 0.0), 16.1, 1e-3


@pytest.fixture
def site(config, tmp_path):
    """A configuration with folders of its own; small pixels would take long."""
    options = MosaicsConfig(cell_arcsec=CELL_ARCSEC, height_deg=2.0)
    folders = config.paths.model_copy(
        update={"products": tmp_path / "products", "state": tmp_path / "state"}
    )
    return config.model_copy(update={"mosaics": options, "paths": folders})


class Days:
    """Makes days of a tract."""

    def __init__(self, config, number: int = 60):
        self.config, self.paths = config, Paths.of(config)
        self.tract = tract_of(NAME, config.mosaics)
        self.rng = np.random.default_rng(4)
        self.sky = Sky.of(self.rng, (100, 105), (DEC_DEG - 0.8, DEC_DEG + 0.8), number)

    def make(self, day: int, sky: Sky | None = None):
        """A day's mosaic and its result, as the rule leaves them."""
        assert FIRST % DAYS_A_WEEK == 0
        total = self._observed(sky or self.sky)
        files = self.paths.mosaic_files(NAME, day)
        write_mosaic(
            image=files["fits"],
            weight=files["weight.fits"],
            total=total,
            tract=self.tract,
            beam=BEAM,
            keywords={},
        )
        made = {
            "tract": NAME,
            "strip": "+16.1",
            "sday": day,
            "centre_deg": list(self.tract.centre_deg),
            "shape": list(self.tract.shape),
            "cell_arcsec": self.config.mosaics.cell_arcsec,
            "region": self.tract.region,
            "verdict": "good",
            "inputs": {},
            "seen": {},
            "options": mosaics.options_digest(self.config),
            "begin_mjd": 51544.0 + day,
            "end_mjd": 51544.1 + day,
            "freq_hz": 1.405e9,
            "bandwidth_hz": 187.5e6,
            "beam_arcsec": [BEAM.major_arcsec, BEAM.minor_arcsec, BEAM.pa_deg],
        }
        write_json(
            self.paths.result(f"{NAME}.{day}", "mosaic"), made | numbers(total) | files_of(files)
        )
        return total

    def _observed(self, sky: Sky):
        """A day whose weights fall to the north and south, and end."""
        nx, ny = self.tract.shape
        away = np.abs(np.arange(ny) - ny / 2) / (ny / 2)
        weight = np.where(away < 0.9, 1 - away**2, 0) / NOISE_JY**2
        weight = np.repeat(weight[None].astype(np.float32), nx, axis=0)
        noise = gaussian_filter(
            self.rng.normal(size=(nx, ny)), BEAM.major_arcsec / CELL_ARCSEC / 2.3548
        )
        with np.errstate(divide="ignore"):
            image = (noise / noise.std() * weight**-0.5).astype(np.float32)
        x, y = self.tract.pixels_of(sky.ra_deg, sky.dec_deg)
        image = restore(
            residual=image,
            components=np.column_stack([x, y, sky.flux_jy]),
            beam=BEAM,
            cell_arcsec=CELL_ARCSEC,
        )
        image[weight == 0] = np.nan
        return Sum(image, weight, (weight > 0).astype(np.uint16))

    def add(self) -> dict:
        """What the rule `deep` does."""
        result = add_days(self.config, NAME)
        write_json(self.paths.result(NAME, "deep"), result)
        return result

    def compare(self, day: int) -> dict:
        """What the rule `difference` does."""
        result = compare(self.config, NAME, str(day))
        write_json(self.paths.result(f"{NAME}.{day}", "difference"), result)
        return result


def counted(monkeypatch) -> list:
    """Names of the mosaics that are read from now on."""
    read, names = mosaic_files.read_mosaic, []

    def noting(image, weight):
        names.append(image.name)
        return read(image, weight)

    monkeypatch.setattr("contimg.stages.deep.read_mosaic", noting)
    return names


def killed_at(number: int, monkeypatch) -> list:
    """From now on this process is killed when that many files get their names; gives those that
    did, or would have."""
    renamed = []

    def dies(partial, path):
        renamed.append(path)
        if len(renamed) == number:
            raise KeyboardInterrupt
        publish(partial, path)

    monkeypatch.setattr("contimg.store.files.publish", dies)
    return renamed


def summed(parts):
    """Image where there is any weight, and all weights, of a sum by hand."""
    weight = sum(one.weight.astype(float) for one in parts)
    image = sum(np.nan_to_num(one.image) * one.weight.astype(float) for one in parts)
    good = weight > 0
    return image[good] / weight[good], weight


def test_noise_falls_with_the_root_of_days_and_a_day_more_costs_one_addition(
    site, monkeypatch, figure
):
    days = Days(site)
    for day in range(FIRST, FIRST + 9):
        days.make(day)
    first = days.add()
    (week,) = days.paths.mosaic_week(NAME, 1401).parent.glob("1401.*[0-9a-f].fits")
    read = counted(monkeypatch)
    days.make(FIRST + 9)
    result = days.add()
    assert sorted(read) == sorted(2 * [f"{FIRST + 9}.fits"] + [week.name, "deep.fits"])
    assert result["history"][-1]["days"] == 10
    assert result["history"][:-1] == first["history"]
    total = read_mosaic(*days.paths.mosaic_files(NAME, "deep").values())
    by_hand = [
        read_mosaic(*days.paths.mosaic_files(NAME, day).values())
        for day in range(FIRST, FIRST + 10)
    ]
    image, weight = summed(by_hand)
    good = weight > 0
    np.testing.assert_allclose(total.weight, weight, rtol=1e-5)
    np.testing.assert_allclose(total.image[good], image, atol=1e-6)
    noise = [numbers(one)["noise_jy"] for one in by_hand]
    gain = np.median(noise) / result["noise_jy"]
    figure(f"noise of a day over that of ten: {gain:.2f} (root of ten: 3.16)")
    assert gain == pytest.approx(np.sqrt(10), rel=0.06)
    assert robust_rms((total.image * np.sqrt(total.weight))[good]) == pytest.approx(1, abs=0.06)
    assert days.paths.qa(NAME, "noise").exists()


def test_a_day_that_is_made_again_replaces_itself_also_after_a_kill(site, monkeypatch):
    days = Days(site, 10)
    for day in (FIRST, FIRST + 1, FIRST + 8):
        days.make(day)
    days.add()
    again = days.make(FIRST + 1)
    for number in range(1, 8):  # killed between any two files that get their names
        renamed = killed_at(number, monkeypatch)
        try:
            days.add()
        except KeyboardInterrupt:
            assert len(renamed) == number
        monkeypatch.undo()
    result = days.add()
    assert all(one["used"] for one in result["inputs"].values())
    names = [
        (days.paths.mosaic(NAME, d, "fits"), days.paths.mosaic(NAME, d, "weight.fits"))
        for d in (FIRST, FIRST + 8, "deep")
    ]
    one, other, whole = (read_mosaic(*pair) for pair in names)
    image, weight = summed((one, other, again))
    np.testing.assert_allclose(whole.image[weight > 0], image, atol=1e-6)


def test_days_that_were_deleted_stay_in_the_sum_and_what_cannot_be_is_said(site, monkeypatch):
    days = Days(site, 10)
    for day in (FIRST, FIRST + 1):
        days.make(day)
    days.add()
    for end in ("fits", "weight.fits"):
        remove(days.paths.mosaic(NAME, FIRST, end))
    read = counted(monkeypatch)
    days.make(FIRST + 2)
    result = days.add()
    assert read.count(f"{FIRST + 2}.fits") == 2
    assert all(one["used"] for one in result["inputs"].values())
    days.make(FIRST + 1)  # its week cannot be summed again
    result = days.add()
    assert not result["inputs"][str(FIRST + 1)]["used"]
    assert "not on disk any more" in result["inputs"][str(FIRST + 1)]["reason"]
    assert result["inputs"][str(FIRST)]["used"]
    # nor can it be taken out of it: the sum must not be published any more
    mosaics.record(site)
    (row,) = mosaics.listed(days.paths, kind="deep")
    assert f"day {FIRST + 1} as it must not be" in row["unpublishable"]
    assert days.compare(FIRST + 1)["skipped"].startswith("the deep image has the day as it was")
    days.paths.result(f"{NAME}.{FIRST + 1}", "mosaic").unlink()  # withdrawn
    result = days.add()
    assert result["inputs"][str(FIRST + 1)]["in_sum"]
    assert not result["inputs"][str(FIRST + 1)]["used"]
    header = fits.getheader(days.paths.mosaic(NAME, "deep", "fits"))
    assert header["NINPUTS"] == 3


def test_a_kill_loses_no_day_that_retention_deleted(site, monkeypatch):
    for number in range(1, 7):
        days = Days(site, 10)
        remove(days.paths.mosaic(NAME, "x").parent)
        for path in days.paths.result("x", "y").parent.glob("*"):
            path.unlink()
        days.make(FIRST)
        days.add()
        for end in ("fits", "weight.fits"):
            remove(days.paths.mosaic(NAME, FIRST, end))
        days.make(FIRST + 1)
        renamed = killed_at(number, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            days.add()
        assert len(renamed) == number
        monkeypatch.undo()
        result = days.add()
        assert all(one["used"] for one in result["inputs"].values()), number
        assert len(result["inputs"]) == 2


def test_days_of_other_pixels_are_not_added(site):
    days = Days(site, 10)
    days.make(FIRST)
    days.add()
    wider = site.mosaics.model_copy(update={"height_deg": 2.2})
    other = Days(site.model_copy(update={"mosaics": wider}), 10)
    other.make(FIRST + 1)
    result = other.add()
    assert [one["used"] for one in result["inputs"].values()] == [False, True]
    assert "other pixels" in result["inputs"][str(FIRST)]["reason"]
    assert fits.getheader(other.paths.mosaic(NAME, "deep"))["NAXIS2"] == other.tract.shape[1]
    assert result["history"][-1]["days"] == 1


def test_what_is_new_on_a_day_is_found_and_reported_once(site):
    days = Days(site)
    place = 102.4, DEC_DEG + 0.3
    at = tuple(int(np.round(v)) for v in days.tract.pixels_of(*place))
    new_jy = 10 * float(days.make(FIRST).weight[at]) ** -0.5
    with_new = Sky(
        *(
            np.append(getattr(days.sky, name), value)
            for name, value in (("ra_deg", place[0]), ("dec_deg", place[1]), ("flux_jy", new_jy))
        )
    )
    days.add()
    assert days.compare(FIRST)["skipped"] == "there is no other day"
    for day in range(FIRST + 1, FIRST + 5):
        days.make(day, with_new if day == FIRST + 3 else None)
    days.add()
    found = {day: days.compare(day) for day in range(FIRST, FIRST + 5)}
    for day, one in found.items():
        new = [change for change in one["changes"] if change["new"]]
        assert len(new) == (day == FIRST + 3), (day, new)
    (new,) = [change for change in found[FIRST + 3]["changes"] if change["new"]]
    assert new["flux_jy"] == pytest.approx(new_jy, abs=3 * new["error_jy"])
    assert np.hypot((new["ra_deg"] - place[0]) * 0.96, new["dec_deg"] - place[1]) * 3600 < 12
    assert mosaics.record(site) > 0
    assert mosaics.record(site) == 0
    (listed,) = catalogue.new_sources(Paths.of(site))
    assert listed["first"] == f"{NAME}.{FIRST + 3}"
    assert len(mosaics.listed(Paths.of(site), kind="deep")) == 1
    days.compare(FIRST + 3)
    mosaics.record(site)
    assert len(catalogue.new_sources(Paths.of(site))) == 1


def test_retention_deletes_days_that_the_sum_has_and_nothing_else_is_lost(site):
    days, paths = Days(site, 10), Paths.of(site)
    for day in (FIRST, FIRST + 1):
        days.make(day)
    days.add()
    for day in (FIRST, FIRST + 1):
        days.compare(day)
    days.make(FIRST + 2)  # not in the sum yet
    mosaics.record(site)
    assert list(mosaics.verify(paths)) == []
    config = site.model_copy(
        update={
            "retention": site.retention.model_copy(update={"mosaics_days": 0.0}),
            "mosaics": site.mosaics.model_copy(update={"hips": ()}),
        }
    )
    assert retention.due(site)["mosaics"] == []
    gone, problems = retention.prune(config)
    assert problems == []
    assert gone["mosaics"] == [f"{NAME}.{FIRST}", f"{NAME}.{FIRST + 1}"]
    assert not paths.mosaic(NAME, FIRST).exists()
    assert paths.mosaic(NAME, FIRST + 2).exists()
    assert list(mosaics.verify(paths)) == []
    mosaics.record(site)
    assert [bool(row["deleted_at"]) for row in mosaics.listed(paths, kind="mosaic")] == [
        True,
        True,
        False,
    ]
    assert days.add()["inputs"].keys() == {str(FIRST + k) for k in range(3)}
    mosaics.record(site)
    found = mosaics.provenance(paths, NAME, None)
    assert found["mosaic"]["used"] == 3
    with open(paths.mosaic(NAME, "deep"), "r+b") as file:
        file.seek(9000)
        file.write(b"x")
    assert any("deep.fits was altered" in line for line in mosaics.verify(paths))
