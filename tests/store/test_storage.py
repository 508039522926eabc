"""Staging and retention: what is written where, and when it goes."""

import os
import shutil
from collections import namedtuple
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from astropy.io import fits

from contimg import paths
from contimg.calibration import registry
from contimg.clock import now
from contimg.config import Config, ConversionConfig, IngestConfig, PathsConfig, RetentionConfig
from contimg.errors import ConfigError, LockError, StorageError
from contimg.paths import Paths
from contimg.products import tables as product_tables
from contimg.products.record import verified_bytes
from contimg.products.retention import prune
from contimg.queue import moves
from contimg.queue import tables as queue_tables
from contimg.queue.groups import FileGroup, RawFile
from contimg.queue.planning import Plan, raw_bytes
from contimg.store import db, staging
from contimg.store.files import checksum, lock, write_json

GB = 10**9
GROUPS = ("2026-01-25T22:26:05", "2026-01-25T22:31:14")
IMAGE = {
    "type": "pbcor",
    "beam_major_arcsec": 20,
    "beam_minor_arcsec": 15,
    "beam_pa_deg": 0,
    "noise_jy": 5e-4,
    "thermal_jy": 5e-4,
    "dynamic_range": 100,
    "verdict": "good",
    "verdict_reasons": "",
    "science": True,
    "expected_sources": 0,
    "found_sources": 0,
    "pbcor": True,
}
NOTHING = {"measurement_sets": [], "images": [], "tables": [], "mosaics": []}
Usage = namedtuple("Usage", "total used free")


def make_config(folder, **options) -> Config:
    where = PathsConfig(
        incoming=folder / "incoming", products=folder / "products", state=folder / "state"
    )
    return Config(paths=where, conversion=ConversionConfig(**options))


def plans_of(size: int, count: int = 2) -> dict[str, Plan]:
    members = {sb: RawFile(f"x_sb{sb:02d}.hdf5", "x", sb, size // 16) for sb in range(16)}
    return {g: Plan(FileGroup(g, members), "run", "") for g in GROUPS[:count]}


@pytest.fixture
def free(monkeypatch, tmp_path):
    """A tmpfs of our own: its free bytes, and those of the machine's memory."""
    room = tmp_path / "shm"
    room.mkdir()
    amounts = {"tmpfs": 20 * GB, "memory": 20 * GB}
    monkeypatch.setattr(staging, "TMPFS", room)
    monkeypatch.setattr(paths, "TMPFS", room)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, amounts["tmpfs"]))
    monkeypatch.setattr(staging, "_available_memory", lambda: amounts["memory"])
    return amounts


def kind(config, plans, cores=2):
    roots = {root: name for name, root in Paths.of(config).staging_roots().items()}
    return roots[staging.choose_root(config, raw_bytes(plans), cores)]


def test_staging_is_in_memory_where_there_is_room(free, tmp_path):
    config = make_config(tmp_path)
    plans = plans_of(int(2.33 * GB))
    needed = staging.needed_bytes(config, raw_bytes(plans), 2)
    assert 2 * 2.1 * GB < needed < 2 * 2.5 * GB  # one is converted while another waits for concat
    assert kind(config, plans) == "tmpfs"
    for scarce in free:
        free[scarce] = needed + 3.9 * GB  # 4 GB are left to others
        assert kind(config, plans) == "disk"
        free[scarce] = 20 * GB
    assert kind(make_config(tmp_path, staging="disk"), plans) == "disk"
    free["memory"] = 0
    assert kind(make_config(tmp_path, staging="tmpfs"), plans) == "tmpfs"
    assert list(paths.TMPFS.iterdir()) == []


def test_what_a_run_reserved_is_not_free_for_another(free, tmp_path):
    one, other = make_config(tmp_path / "one"), make_config(tmp_path / "other")
    plans = plans_of(int(2.33 * GB))
    needed = staging.needed_bytes(one, raw_bytes(plans), 2)
    free["tmpfs"] = int(1.5 * needed) + 4 * GB
    root = staging.choose_root(one, raw_bytes(plans), 2)
    with staging.reserved(one, root, needed):
        assert kind(other, plans) == "disk"
        assert kind(one, plans) == "tmpfs"  # its own
        with (
            pytest.raises(LockError, match="another run reserved"),
            staging.reserved(other, Paths.of(other).staging_roots()["tmpfs"], needed),
        ):
            pass
    assert kind(other, plans) == "tmpfs"
    assert list(paths.TMPFS.iterdir()) == []


def test_reservations_of_others_whatever_their_names_are_passed_over(free, tmp_path):
    """K31: of a user called jane.doe, of another contimg, of nobody."""
    free["tmpfs"] = 100 * GB
    config = make_config(tmp_path)
    for name in (
        "contimg-jane.doe-0a1b2c3d.1000",
        "contimg-x-y.huge",
        "contimg-",
        "contimg-a.b.c.9",
    ):
        (paths.TMPFS / f"{name}.reserved").touch()
    assert kind(config, plans_of(GB)) == "tmpfs"
    assert Paths.of(config).staging_roots()["tmpfs"].name.split("-")[1] == str(os.getuid())


def others(root):
    root.mkdir(mode=0o777)
    os.chown(root, 65534, 65534)


@pytest.mark.parametrize(
    "make",
    [others, lambda root: root.symlink_to("/tmp"), lambda root: root.touch()],
    ids=["another user's", "link", "file"],
)
def test_a_staging_folder_that_is_not_ours_is_not_used(free, tmp_path, make):
    """K32: anybody may have made one by that name; disk then, or refused in words where tmpfs was
    asked for."""
    free["tmpfs"] = 100 * GB
    config = make_config(tmp_path)
    root = Paths.of(config).staging_roots()["tmpfs"]
    make(root)
    assert kind(config, plans_of(GB)) == "disk"
    with (
        pytest.raises(StorageError, match="belongs to another user, or is no folder"),
        staging.reserved(config, root, 1),
    ):
        pass


def test_a_staging_folder_is_for_its_owner_alone(free, tmp_path):
    config = make_config(tmp_path)
    free["tmpfs"] = 100 * GB
    for root in Paths.of(config).staging_roots().values():
        root.mkdir(parents=True, mode=0o755)
        with staging.reserved(config, root, 1):
            assert root.stat().st_mode & 0o777 == 0o700


def test_what_is_left_in_staging_goes_and_what_was_kept_on_purpose_stays(free, tmp_path):
    config = make_config(tmp_path)
    places = Paths.of(config)
    for root in places.staging_roots().values():
        for group in GROUPS:
            (root / group / "sb00.ms").mkdir(parents=True)
    write_json(places.result(GROUPS[1], "index"), {})  # imaged, with --notemp, which goes to disk
    assert (
        staging.choose_root(config, raw_bytes(plans_of(GB)), 2, keep=True)
        == places.staging_roots()["disk"]
    )
    chosen = places.staging_roots()["tmpfs"]
    staging.clean(places, chosen, {GROUPS[0]})
    left = sorted(f"{p.parent.parent.name}/{p.parent.name}" for p in tmp_path.rglob("sb00.ms"))
    assert left == sorted([f"{chosen.name}/{GROUPS[0]}", f"staging/{GROUPS[1]}"])
    # of a run that was killed
    (places.staging_roots()["disk"] / GROUPS[1] / ".sb01.ms.partial").mkdir()
    staging.clean(places, chosen, set())
    assert not list(tmp_path.rglob("sb00.ms"))
    assert not any(root.exists() for root in places.staging_roots().values())


def test_a_staging_folder_of_the_users_keeps_what_else_is_there(free, tmp_path):
    """One that holds other things, and another project's groups."""
    scratch = tmp_path / "scratch"
    theirs = scratch / GROUPS[0] / "raw.hdf5"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    one, other = (
        c.model_copy(update={"paths": c.paths.model_copy(update={"staging": str(scratch)})})
        for c in (make_config(tmp_path / "one"), make_config(tmp_path / "other"))
    )
    roots = [staging.choose_root(c, raw_bytes(plans_of(GB)), 2) for c in (one, other)]
    assert roots[0] != roots[1]
    for root in roots:
        (root / GROUPS[0] / "sb00.ms").mkdir(parents=True)
    staging.clean(Paths.of(one), roots[0], set())
    assert [root.exists() for root in roots] == [False, True]
    assert theirs.read_text() == "precious"


def test_no_room_is_said_before_anything_is_written(free, tmp_path):
    here, beside = (tmp_path, 10 * GB), (tmp_path, 9 * GB)
    staging.require_room([here, beside], "a group")
    with pytest.raises(StorageError, match=r"20\.0 GB free, a group needs 21\.0 GB\. Make room"):
        staging.require_room([here, beside, (tmp_path, 2 * GB)], "a group")


def test_the_pyuvdata_writer_is_for_two_subbands():
    from contimg.config import from_mapping

    assert from_mapping(
        {
            "conversion": {"writer": "pyuvdata"},
            "ingest": {"expected_subbands": 2, "min_subbands": 2},
        }
    )
    with pytest.raises(ConfigError, match="for 2 subbands at most"):
        from_mapping({"conversion": {"writer": "pyuvdata"}})
    assert Config(ingest=IngestConfig(expected_subbands=2, min_subbands=2)).writer == "pyuvdata"


@pytest.fixture
def archive(tmp_path):
    """Two imaged groups, in the queue and the index."""
    config = make_config(tmp_path).model_copy(
        update={"retention": RetentionConfig(measurement_sets_days=2)}
    )
    where = Paths.of(config)
    for group in GROUPS:
        for folder in (where.ms(group), where.flag_versions(group)):
            (folder / "ANTENNA").mkdir(parents=True)
        image = where.image(group, "pbcor.fits")
        image.parent.mkdir(parents=True, exist_ok=True)
        fits.PrimaryHDU(np.ones((8, 8), np.float32)).writeto(image, checksum=True)
        write_json(where.result(group, "image"), {"images": {"pbcor.fits": str(image)}})
        with db.writing(where.products_db, product_tables.Base) as session:
            session.add(
                product_tables.MeasurementSet(
                    path=str(where.ms(group)),
                    group_id=group,
                    start_mjd=0,
                    end_mjd=0,
                    mid_mjd=0,
                    processed_at=now(),
                    status="ok",
                    stage="index",
                    stage_updated_at=now(),
                )
            )
            session.flush()
            session.add(
                product_tables.Image(
                    **IMAGE,
                    path=str(image),
                    group_id=group,
                    ms_path=str(where.ms(group)),
                    created_at=now(),
                    checksum=checksum(image),
                    bytes=verified_bytes(image),
                )
            )
        with db.writing(where.ingest_db, queue_tables.Base) as session:
            moves.record(session, [FileGroup(group, {})], {}, config.ingest, 0)
            for state in ("pending", "in_progress", "processing_fresh", "completed"):
                moves.move(session, group, state)
    return config


def statuses(config):
    with db.reading(Paths.of(config).products_db) as session:
        return [
            row.status
            for row in session.query(product_tables.MeasurementSet).order_by(
                product_tables.MeasurementSet.path
            )
        ]


def test_measurement_sets_go_when_their_time_is_over(archive):
    where = Paths.of(archive)
    assert prune(archive) == (NOTHING, [])
    assert prune(
        archive.model_copy(update={"retention": RetentionConfig()}),
        datetime.max.replace(tzinfo=UTC),
    ) == (NOTHING, [])
    assert prune(archive, datetime.now(UTC) + timedelta(days=3)) == (
        NOTHING | {"measurement_sets": list(GROUPS)},
        [],
    )
    assert statuses(archive) == ["pruned", "pruned"]
    assert list(where.ms("x").parent.iterdir()) == []
    assert prune(archive, datetime.now(UTC) + timedelta(days=3)) == (NOTHING, [])


@pytest.mark.parametrize(
    "what", ["absent", "altered", "empty", "truncated", "unverified", "running", "not completed"]
)
def test_no_measurement_set_goes_before_its_image_is_verified(archive, what):
    where = Paths.of(archive)
    image = where.image(GROUPS[0], "pbcor.fits")
    if what == "absent":
        image.unlink()
    elif what == "altered":
        content = bytearray(image.read_bytes())
        content[-2880] ^= 1  # a pixel
        image.write_bytes(content)
    elif what == "empty":
        image.write_bytes(b"")
    elif what == "truncated":
        image.write_bytes(image.read_bytes()[:3000])
    elif what == "unverified":
        with db.writing(where.products_db, product_tables.Base) as session:
            for image_row in session.query(product_tables.Image).filter_by(group_id=GROUPS[0]):
                image_row.checksum = None
    elif what == "not completed":
        with db.writing(where.ingest_db, queue_tables.Base) as session:
            moves.move(session, GROUPS[0], "pending")
    with lock(
        where.group_lock(GROUPS[0] if what == "running" else "other"), wait=False, what="a stage"
    ):
        pruned, problems = prune(archive, datetime.now(UTC) + timedelta(days=3))
    assert pruned["measurement_sets"] == [GROUPS[1]]
    assert statuses(archive) == ["ok", "pruned"]
    assert where.ms(GROUPS[0]).exists()
    assert len(problems) == (what != "not completed")
    assert all(f"measurement sets of {GROUPS[0]}: kept: " in p for p in problems)


def test_a_full_disk_costs_a_group_no_attempt(archive):
    where = Paths.of(archive)
    for spent, expected in ((False, 0), (False, 0), (True, 1)):
        with db.writing(where.ingest_db, queue_tables.Base) as session:
            if session.get(queue_tables.Group, GROUPS[0]).state == "completed":
                moves.move(session, GROUPS[0], "pending")
            moves.move(session, GROUPS[0], "in_progress")
            moves.move(session, GROUPS[0], "resuming")
            moves.attempt_failed(
                session, GROUPS[0], "convert: StorageError", archive.ingest, 0.0, False, spent
            )
        row = moves.known_groups(where.ingest_db)[GROUPS[0]]
        assert row.state == "pending"
        with db.reading(where.ingest_db) as session:
            assert session.get(queue_tables.Group, GROUPS[0]).retry_count == expected


def test_old_images_and_tables_go_but_not_what_is_wanted_yet(archive):
    where, far = Paths.of(archive), datetime.now(UTC) + timedelta(days=30)
    options = RetentionConfig(measurement_sets_days=2, images_days=10, tables_days=10)
    config = archive.model_copy(update={"retention": options})
    for kind in "BG":
        where.caltable(GROUPS[0], kind).mkdir(parents=True)
    calset = registry.CalSet(
        GROUPS[0],
        61000.0,
        16.0,
        "3C286",
        "here",
        99.0,
        60999.0,
        61001.0,
        tuple((k, str(where.caltable(GROUPS[0], k))) for k in "BG"),
    )
    registry.register(where.registry_db, calset, "24")
    with db.writing(where.ingest_db, queue_tables.Base) as session:
        moves.move(session, GROUPS[1], "pending", mid_mjd=61000.5)
    assert prune(config, datetime.now(UTC) + timedelta(days=9))[0] == NOTHING | {
        "measurement_sets": [GROUPS[0]]
    }
    gone, problems = prune(config, far)
    assert gone == NOTHING | {"images": [GROUPS[0]]}
    assert [p for p in problems if "may need them yet" in p]
    assert not where.image(GROUPS[0], "pbcor.fits").exists()
    assert where.image(GROUPS[1], "pbcor.fits").exists()
    with db.writing(where.ingest_db, queue_tables.Base) as session:
        for state in ("in_progress", "processing_fresh", "completed"):
            moves.move(session, GROUPS[1], state)
    assert prune(config, far)[0]["tables"] == [GROUPS[0]]
    assert not where.caltable(GROUPS[0], "B").exists()
    assert registry.refused_sets(where.registry_db)[GROUPS[0]].endswith(registry.GONE)


def test_images_are_not_to_go_before_their_measurement_sets():
    from contimg.config import from_mapping

    with pytest.raises(ConfigError, match="images would go first"):
        from_mapping({"retention": {"measurement_sets_days": 9, "images_days": 3}})
