"""Which sources are measured: frozen, named, grown."""

import json

import numpy as np
import pandas as pd
import pytest

from contimg.config import from_mapping
from contimg.errors import RequestError
from contimg.paths import Paths
from contimg.photometry.reference import name_of_place, sources_of_strip, with_new
from contimg.products import catalogue, lightcurves, references
from contimg.sky.catalogues import read_sky
from contimg.store.files import write_json
from contimg.store.parquet import read_about, read_table, write_table
from tests.photometry import days


def listed(folder, rows) -> dict:
    table = pd.DataFrame(rows, columns=["name", "ra_deg", "dec_deg", "flux_jy"])
    table.to_csv(folder / "sky.csv", index=False)
    where = {name: str(folder / name) for name in ("incoming", "products", "state")}
    return {"paths": where, "catalogues": {"sky": str(folder / "sky.csv")}}


def test_a_reference_is_frozen_by_the_first_group(tmp_path):
    rows = [("b", 20.0, 16.0, 0.5), ("a", 10.0, 17.0, 0.1), ("c", 5.0, 25.0, 1.0)]
    rows += [("faint", 12.0, 16.0, 0.001)]
    config = from_mapping(listed(tmp_path, rows))
    found = references.reference_of(config, 16.15)
    assert found.version == "+16.1.v1"
    assert found.table.source.tolist() == ["a", "b"]  # by right ascension; of this strip
    listed(tmp_path, [*rows, ("later", 30.0, 16.0, 0.7)])
    again = references.reference_of(config, 16.19)  # a jitter of the header is no other strip
    assert again.version == "+16.1.v1"
    assert again.table.source.tolist() == ["a", "b"]
    assert references.reference_of(config, 20.0).version == "+20.0.v1"
    assert len(read_about(Paths.of(config).reference("+16.1.v1"))["catalogue_checksum"]) == 64


def test_two_sources_of_one_name_have_two(tmp_path):
    rows = [("x", 10.0, 16.0, 0.5), ("x", 11.0, 16.0, 0.5), ("y", 12.0, 16.0, 0.5)]
    config = listed(tmp_path, rows)
    sky = read_sky(tmp_path / "sky.csv")
    table = sources_of_strip(sky, 16.0, 3.0, 0.01)
    assert table.source.tolist() == ["x", "x 2", "y"]
    assert config["catalogues"]["sky"].endswith("sky.csv")


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (347.331, 16.009, "J230919.4+160032"),
        (0.0, -0.5, "J000000.0-003000"),
        (359.9999, 89.99, "J235959.9+895924"),
    ],
)
def test_names_of_places(ra, dec, name):
    assert name_of_place(ra, dec) == name


def test_what_is_new_joins_what_is_known():
    known = pd.DataFrame(
        {"source": ["a"], "ra_deg": [10.0], "dec_deg": [16.0], "flux_jy": [1.0], "alpha": [-0.7]}
    )
    near = known.assign(source="n", ra_deg=10.0 + 5 / 3600)
    far = known.assign(source="a", ra_deg=11.0)
    both, new = with_new(known, pd.concat([near, far]), 15.0)
    assert both.source.tolist() == ["a", "a 2"]
    assert new.source.tolist() == ["a 2"]


def test_what_images_show_and_no_reference_has_is_listed_and_adopted(tmp_path):
    config, paths = days.site(tmp_path)
    sky = days.sky_of(1, 3)
    days.write_reference(paths, sky, 0.0)
    groups = days.groups_of(2, 100.0, 107.5)
    days.write_groups(paths, sky, groups)
    rng = np.random.default_rng(2)
    for k, (group, *_) in enumerate(groups):
        about = read_about(paths.photometry(group))
        seen = [(103.0, 16.0, 0.02, 1e-3)] if k % 3 == 0 else []  # again and again
        seen += [(104.0 + k, 16.5, 0.007, 1e-3)]  # once each: noise
        rows = pd.DataFrame(seen, columns=["ra_deg", "dec_deg", "flux_jy", "error_jy"])
        rows["ra_deg"] += rng.normal(0, 1 / 3600, len(rows))
        write_table(paths.unlisted(group), rows, about)
        write_json(paths.result(group, "image"), {"centre_deg": [103.0, 16.1]})
        paths.image(group, "residual").mkdir(parents=True)
    lightcurves.update(config)
    (one,) = catalogue.new_sources(paths)
    assert one["name"].startswith("J065")
    assert one["detections"] == len(groups[::3])
    assert one["flux_jy"] == pytest.approx(0.02)
    version, new, again = references.adopt(config, days.STRIP)
    assert (version, new.source.tolist()) == (f"{days.STRIP}.v2", [one["name"]])
    assert again == [group for group, *_ in groups]
    grown = read_table(paths.reference(version))
    assert set(read_table(paths.reference(f"{days.STRIP}.v1")).source) < set(grown.source)
    assert references.reference_of(config, days.DEC_DEG).version == version
    assert json.dumps(read_about(paths.reference(version))["grown_from"]) == f'"{days.STRIP}.v1"'
    assert catalogue.new_sources(paths) == []
    with pytest.raises(RequestError, match="nothing is new"):
        references.adopt(config, days.STRIP)


def test_what_must_not_be_published_finds_nothing_new(tmp_path):
    config, paths = days.site(tmp_path)
    sky = days.sky_of(1, 3)
    days.write_reference(paths, sky, 0.0)
    groups = days.groups_of(1, 100.0, 107.5)
    days.write_groups(paths, sky, groups)
    rows = pd.DataFrame(
        {"ra_deg": [103.0], "dec_deg": [16.0], "flux_jy": [0.5], "error_jy": [1e-3]}
    )
    for group, *_ in groups[:3]:
        path = paths.photometry(group)
        about = read_about(path) | {"verdict": "fail"}
        write_table(path, read_table(path), about)
        write_table(paths.unlisted(group), rows, about)
    lightcurves.update(config)
    assert catalogue.new_sources(paths) == []
    (day,) = catalogue.days(paths)
    assert day["state"] == "partial"
    assert "3 groups must not be published" in day["reason"]


def test_a_strip_that_the_catalogue_does_not_have_is_not_frozen(tmp_path):
    config = from_mapping(listed(tmp_path, [("a", 10.0, 40.0, 0.1)]))
    assert len(references.reference_of(config, 16.15).table) == 0
    assert Paths.of(config).references() == []
    listed(tmp_path, [("a", 10.0, 16.0, 0.1)])
    assert references.reference_of(config, 16.15).table.source.tolist() == ["a"]


def test_a_group_belongs_to_the_nearest_strip(tmp_path):
    config = from_mapping(listed(tmp_path, [("a", 10.0, 16.0, 0.1)]))
    for dec_deg, strip in ((16.1, "+16.1"), (16.21, "+16.2"), (16.11, "+16.1"), (16.18, "+16.2")):
        assert references.reference_of(config, dec_deg).version == f"{strip}.v1"
