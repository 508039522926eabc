"""The index of products: schema, versions, replacing."""

import pytest

from contimg.errors import ContimgError
from contimg.products import tables as product_tables
from contimg.store import db
from contimg.web.charts import footprints
from tests.store.test_storage import GROUPS, IMAGE


def test_an_image_whose_place_nobody_knows_is_not_listed(tmp_path):
    """Rather than at 0, 0; and the pages bear it."""
    path = tmp_path / "products.sqlite3"
    with db.writing(path, product_tables.Base) as session:
        session.add(measurement_set(GROUPS[0]))
        session.flush()
        nowhere = dict.fromkeys(("centre_ra_deg", "centre_dec_deg", "diameter_deg"))
        of_group = {"group_id": GROUPS[0], "path": "x.fits", "ms_path": f"{GROUPS[0]}.ms"}
        session.add(product_tables.Image(**IMAGE | nowhere | of_group, created_at="t"))
    with db.reading(path) as session:
        (image,) = session.query(product_tables.Image).all()
        assert session.connection().exec_driver_sql("SELECT count(*) FROM obscore").scalar() == 0
        assert footprints([product_tables.columns_of(image)])["circles"] == []


def test_a_database_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "later.sqlite3"
    with db.writing(path, product_tables.Base) as session:
        session.connection().exec_driver_sql("PRAGMA user_version = 99")
    db._made.clear()
    with (
        pytest.raises(ContimgError, match="schema version 99, this contimg knows 1"),
        db.writing(path, product_tables.Base),
    ):
        pass


def test_a_field_across_0_h_is_at_both_ends_of_the_chart():
    """K54: half of it was off the chart."""
    fields = [
        {"centre_ra_deg": ra, "centre_dec_deg": 16.0, "diameter_deg": 4.0, "group_id": str(ra)}
        for ra in (0.5, 359.0, 180.0)
    ]
    chart = footprints(fields, whole=True)
    assert chart["images"] == 3
    assert sorted(round(c["x"]) for c in chart["circles"]) == [-2, 4, 720, 1438, 1444]
    near = footprints(fields[:2])  # what they cover: 0 h is in the middle, once
    assert [round(c["x"]) for c in near["circles"]] == [564, 876]
    assert [hour for _, hour in near["ra"]] == ["23h50m", "23h55m", "0h", "0h05m", "0h10m"]


def measurement_set(group, **more):
    values = {
        "path": f"{group}.ms",
        "group_id": group,
        "start_mjd": 1,
        "end_mjd": 2,
        "mid_mjd": 1.5,
        "processed_at": "t",
        "status": "ok",
        "stage": "index",
        "stage_updated_at": "t",
    }
    return product_tables.MeasurementSet(**values | more)


def test_a_group_that_is_done_again_leaves_nothing_stale(tmp_path):
    path = tmp_path / "products.sqlite3"
    common = IMAGE | {"group_id": GROUPS[0], "ms_path": f"{GROUPS[0]}.ms", "created_at": "t"}
    for noise, kinds in ((1.0, ("pbcor", "image", "pb")), (2.0, ("pbcor", "image"))):
        with db.writing(path, product_tables.Base) as session:
            images = [
                product_tables.Image(**common | {"type": k, "path": k, "noise_jy": noise})
                for k in kinds
            ]
            product_tables.record_group(
                session, measurement_set(GROUPS[0], cal_applied=f"set {noise}"), images, []
            )
    with db.reading(path) as session:
        assert [(i.path, i.noise_jy) for i in session.query(product_tables.Image)] == [
            ("pbcor", 2.0),
            ("image", 2.0),
        ]
        assert session.query(product_tables.MeasurementSet).one().cal_applied == "set 2.0"


def test_a_failed_stage_is_recorded_as_failed_with_its_reason(tmp_path):
    path, times = tmp_path / "products.sqlite3", {"start_mjd": 1.0, "end_mjd": 2.0, "mid_mjd": 1.5}
    story = [
        ("apply", None, ("ok", None)),
        ("image", "ImagingError: blank", ("failed", "ImagingError: blank")),
        ("image", None, ("ok", None)),
    ]
    for stage, reason, expected in story:
        with db.writing(path, product_tables.Base) as session:
            product_tables.note_stage(session, "a.ms", GROUPS[0], stage, times, reason)
        with db.reading(path) as session:
            row = session.query(product_tables.MeasurementSet).one()
            assert (row.stage, (row.status, row.reason)) == (stage, expected)


def test_a_stage_without_a_measurement_set_fails_an_old_row_too(tmp_path):
    """`concat` failed, and Snakemake removed what was there before."""
    path = tmp_path / "products.sqlite3"
    with db.writing(path, product_tables.Base) as session:
        session.add(measurement_set(GROUPS[0]))
    for group in GROUPS:
        with db.writing(path, product_tables.Base) as session:
            nothing = dict.fromkeys(("start_mjd", "end_mjd", "mid_mjd"))
            product_tables.note_stage(session, f"{group}.ms", group, "concat", nothing, "disk full")
    with db.reading(path) as session:
        assert [
            (r.group_id, r.status, r.reason) for r in session.query(product_tables.MeasurementSet)
        ] == [(GROUPS[0], "failed", "disk full")]
