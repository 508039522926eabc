"""The index of products: schema, versions, replacing."""

import sqlite3
from contextlib import closing

import pytest

from contimg.errors import ContimgError
from contimg.products import tables as product_tables
from contimg.store import db
from contimg.web.charts import footprints
from tests.unit.test_storage import GROUPS, IMAGE

# As the first version made it.
FIRST = """
CREATE TABLE ms_index (path VARCHAR NOT NULL PRIMARY KEY, start_mjd FLOAT NOT NULL, end_mjd FLOAT NOT NULL, mid_mjd FLOAT NOT NULL,
  processed_at VARCHAR NOT NULL, status VARCHAR NOT NULL, stage VARCHAR NOT NULL, stage_updated_at VARCHAR NOT NULL,
  cal_applied VARCHAR, imagename VARCHAR, CHECK (status IN ('ok', 'failed', 'pruned')));
CREATE TABLE qa_artifacts (id INTEGER NOT NULL PRIMARY KEY, group_id VARCHAR NOT NULL, name VARCHAR NOT NULL, path VARCHAR NOT NULL,
  created_at VARCHAR NOT NULL, UNIQUE (group_id, name));
CREATE INDEX ix_qa_artifacts_group_id ON qa_artifacts (group_id);
CREATE TABLE images (id INTEGER NOT NULL PRIMARY KEY, path VARCHAR NOT NULL UNIQUE, ms_path VARCHAR NOT NULL, created_at VARCHAR NOT NULL,
  type VARCHAR NOT NULL, beam_major_arcsec FLOAT NOT NULL, beam_minor_arcsec FLOAT NOT NULL, beam_pa_deg FLOAT NOT NULL,
  noise_jy FLOAT NOT NULL, thermal_jy FLOAT NOT NULL, dynamic_range FLOAT NOT NULL, verdict VARCHAR NOT NULL,
  verdict_reasons VARCHAR NOT NULL, science BOOLEAN NOT NULL, flux_ratio FLOAT, flux_scatter FLOAT, offset_arcsec FLOAT,
  expected_sources INTEGER NOT NULL, found_sources INTEGER NOT NULL, pbcor BOOLEAN NOT NULL,
  FOREIGN KEY(ms_path) REFERENCES ms_index (path));
CREATE INDEX ix_images_ms_path ON images (ms_path);
INSERT INTO ms_index VALUES ('/p/ms/2026-01-25T22:26:05.ms', 1, 2, 1.5, 't', 'ok', 'index', 't', 'set', 'x.fits');
INSERT INTO images VALUES (7, '/p/x.fits', '/p/ms/2026-01-25T22:26:05.ms', 't', 'pbcor', 20, 15, 0, 5e-4, 5e-4, 100, 'good', '', 1,
  1.0, 0.1, 0.2, 3, 3, 1);
INSERT INTO qa_artifacts VALUES (1, '2026-01-25T22:26:05', 'image', '/p/image.png', 't');
"""  # noqa: E501


def columns(path):
    with closing(sqlite3.connect(path)) as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'index', 'view')"
            )
        ]
        return {
            name: {row[1:4:2] for row in connection.execute(f"PRAGMA table_info({name})")}
            for name in tables
        }


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path):
    """Its rows stay, and its schema is what a new one has."""
    old, new = tmp_path / "old.sqlite3", tmp_path / "new.sqlite3"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(FIRST)
    with (
        pytest.raises(ContimgError, match=r"no such column: .*brings it up to date"),
        db.reading(old) as session,
    ):
        session.query(product_tables.Image).all()
    for path in (old, new):
        with db.writing(path, product_tables.Base):
            pass
    names = columns(new).keys()
    assert {n: {c for c, _ in v} for n, v in columns(old).items()} == {
        n: {c for c, _ in v} for n, v in columns(new).items()
    }
    assert {"obscore", "images", "ix_images_start_mjd"} <= names
    with db.reading(old) as session:
        (image,) = session.query(product_tables.Image).all()
        assert (image.id, image.group_id, image.noise_jy, image.checksum) == (
            7,
            GROUPS[0],
            5e-4,
            None,
        )
        assert (image.start_mjd, image.end_mjd) == (1, 2)
        assert session.query(product_tables.MeasurementSet).one().group_id == GROUPS[0]
        # Nobody knows where it points: it is not listed, rather than at 0, 0; and the pages bear
        # it.
        assert session.connection().exec_driver_sql("SELECT count(*) FROM obscore").scalar() == 0
        assert footprints([product_tables.columns_of(image)])["circles"] == []
        assert session.connection().exec_driver_sql("PRAGMA user_version").scalar() == 3


def test_a_database_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "later.sqlite3"
    with db.writing(path, product_tables.Base) as session:
        session.connection().exec_driver_sql("PRAGMA user_version = 99")
    db._made.clear()
    with (
        pytest.raises(ContimgError, match="schema version 99, this contimg knows 3"),
        db.writing(path, product_tables.Base),
    ):
        pass


def test_a_field_across_0_h_is_at_both_ends_of_the_chart():
    """K54: half of it was off the chart."""
    fields = [
        {"centre_ra_deg": ra, "centre_dec_deg": 16.0, "diameter_deg": 4.0, "group_id": str(ra)}
        for ra in (0.5, 359.0, 180.0)
    ]
    chart = footprints(fields)
    assert chart["images"] == 3
    assert sorted(round(c["x"]) for c in chart["circles"]) == [-2, 4, 720, 1438, 1444]


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
