"""Files that come in, as operators' days bring them: read, or named with what is odd; never fatal,
and others go on."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from contimg import errors
from contimg.config import Config, IngestConfig, PathsConfig
from contimg.errors import SubbandError
from contimg.queue import arrivals, moves
from contimg.queue import tables as queue_tables
from contimg.queue.groups import RawFile, form_groups
from contimg.queue.planning import make_plans
from contimg.stages import convert
from contimg.stages.convert import convert_group
from contimg.store import files as stored
from contimg.visibilities import measurement_set as mset
from contimg.visibilities import uvh5
from contimg.visibilities.conversion import group_times, plan_group
from contimg.visibilities.uvh5 import changed_since, inspect, opened_data, parse_name, read_header
from tests.conftest import LONG, TARGET_START

SMALL = {"antennas": 4, "channels": 2, "integrations": 3}


@pytest.fixture
def files(make_group):
    return make_group(**SMALL).files


def rewrite(path: Path, name: str, **dataset) -> None:
    """Replace an item of a file."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **dataset)


def arrays_for_scalars(path, odd=False):
    with h5py.File(path, "r+") as file:
        header = file["Header"]
        for name in (
            "phase_center_app_dec",
            "Nblts",
            "Nbls",
            "Ntimes",
            "Nfreqs",
            "Npols",
            "longitude",
        ):
            values = np.full(
                int(header["Nblts"][()].ravel()[0]) if name != "Nblts" else 7, header[name][()]
            )
            if odd:
                values[-1] += 1
            del header[name]
            header[name] = values


def everything(path: Path) -> list[np.ndarray]:
    """A file's data as conversion sees them."""
    header = read_header(path)
    nbaseline, ntime = len(header.ant_1), len(header.time_mjd)
    with opened_data(path) as data:
        return [*data.read(0, ntime * nbaseline, nbaseline, np.arange(ntime)), data.full_samples()]


def complex_as(dtype, scale=1.0):
    def change(path):
        with h5py.File(path) as file:
            values = file["Data/visdata"][()]
        if np.dtype(dtype).names:
            pairs = np.zeros(values.shape, dtype)
            pairs["r"], pairs["i"] = np.round(values.real * scale), np.round(values.imag * scale)
        rewrite(path, "Data/visdata", data=pairs if np.dtype(dtype).names else values.astype(dtype))

    return change


def four_polarizations(path, order=(-5, -7, -8, -6)):
    with h5py.File(path) as file:
        values = {name: file[f"Data/{name}"][()] for name in ("visdata", "flags", "nsamples")}
    places = [order.index(-5), order.index(-6)]
    for name, two in values.items():
        whole = np.full((*two.shape[:-1], len(order)), 9, two.dtype)
        whole[..., places] = two
        rewrite(path, f"Data/{name}", data=whole)
    rewrite(path, "Header/polarization_array", data=np.array(order))
    rewrite(path, "Header/Npols", data=len(order))


def three_axes(path):
    for name in ("visdata", "flags", "nsamples"):
        with h5py.File(path) as file:
            values = file[f"Data/{name}"][:, 0]
        rewrite(path, f"Data/{name}", data=values)


def other_numbers(path):
    with h5py.File(path) as file:
        flags, samples = file["Data/flags"][()], file["Data/nsamples"][()]
    rewrite(path, "Data/flags", data=flags.astype("u1"))
    rewrite(path, "Data/nsamples", data=samples.astype(">f8"), compression="gzip")


@pytest.mark.parametrize(
    "change",
    [
        arrays_for_scalars,
        complex_as("c16"),
        complex_as(">c8"),
        four_polarizations,
        lambda p: four_polarizations(p, (-6, -5)),
        three_axes,
        other_numbers,
    ],
    ids=["arrays", "complex128", "big-endian", "four", "swapped", "three axes", "bytes and gzip"],
)
def test_what_can_be_read_is_read(files, change):
    """K1, K3, K4: other types, shapes and orders of the same content give the same data."""
    expected = everything(files[5])
    change(files[5])
    inspect(files[5])
    for found, right in zip(everything(files[5]), expected, strict=True):
        assert np.array_equal(found, right)


def test_pairs_of_integers_are_visibilities(files):
    """K3: as some correlators write them."""
    complex_as(np.dtype([("r", "i4"), ("i", "i4")]), scale=1000)(files[5])
    inspect(files[5])
    vis, *_ = everything(files[5])
    assert vis.dtype == np.complex64
    assert np.array_equal(vis, np.round(vis.real) + 1j * np.round(vis.imag))
    assert np.abs(vis).max() > 1


def packed(path):
    with h5py.File(path, "r+") as file:
        old = file["Data/visdata"]
        shape, dtype, chunk = old.shape, old.dtype, old[()].tobytes()
        del file["Data/visdata"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(shape)
        created.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, (0, 0))
        made = h5py.h5d.create(
            file["Data"].id,
            b"visdata",
            h5py.h5t.py_create(dtype),
            h5py.h5s.create_simple(shape),
            created,
        )
        made.write_direct_chunk((0,) * len(shape), chunk)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: arrays_for_scalars(p, odd=True), "values that differ, expected one number"),
        (
            lambda p: rewrite(p, "Header/telescope_name", data=np.bytes_("ALMA")),
            "telescope 'ALMA', expected .*belongs elsewhere",
        ),
        (lambda p: rewrite(p, "Header/telescope_name", data=7), "telescope_name has type int"),
        (lambda p: rewrite(p, "Header/Nblts", data=1 << 60), "rows of"),
        (lambda p: rewrite(p, "Header/Nblts", data=np.bytes_("many")), "Nblts has type"),
        (lambda p: rewrite(p, "Header/time_array", data=np.zeros(2)), "time_array has shape"),
        (
            lambda p: rewrite(p, "Header/phase_type", data=np.bytes_("phased")),
            "phase_type phased, expected drift",
        ),
        (
            lambda p: rewrite(p, "Data/visdata", shape=(1 << 40,), dtype="c8", chunks=(1 << 10,)),
            "visdata has shape",
        ),
        (
            lambda p: rewrite(p, "Data/visdata", data=np.zeros((18, 1, 2, 2), "f4")),
            "visdata has type float32, expected complex",
        ),
        (lambda p: rewrite(p, "Data/flags", data=np.zeros((18, 1, 2, 2), "S3")), "flags has type"),
        (packed, r"packed with HDF5 filter 32008 .*install it .*h5repack"),
        (
            lambda p: rewrite(p, "Header/polarization_array", data=np.array([-5, -7])),
            r"polarisations \(-5, -7\)",
        ),
        (
            lambda p: four_polarizations(p, (-5, -6, -7)) or rewrite(p, "Header/Npols", data=2),
            "has shape|polarisations",
        ),
    ],
)
def test_what_cannot_be_read_is_named_at_the_first_look(files, change, words):
    """K1, K2, K3: before a byte of data is read, and without a word of removing it."""
    change(files[5])
    with pytest.raises(SubbandError, match=words) as caught:
        inspect(files[5])
    assert str(files[5]) in str(caught.value)
    assert "remove" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "freq_array",
            np.full((1, 2), np.nan),
            "freq_array has values that are no positive numbers",
        ),
        ("channel_width", -1.0, "channel_width has values"),
        ("integration_time", np.zeros(18), "integration_time has values"),
        ("antenna_positions", np.zeros((3, 3)), r"antenna_positions has shape \(3, 3\)"),
        ("ant_1_array", np.full(30, 9999), r"antennas \[9999\] in baselines"),
        ("ant_1_array", np.full(30, 0.5), "expected integers"),
        ("antenna_numbers", np.zeros(117, int), "an antenna number twice"),
        ("antenna_names", np.arange(117), "antenna_names has type int64"),
        ("longitude", np.nan, "longitude nan deg"),
    ],
)
def test_what_is_odd_in_a_header_is_named_by_convert(files, name, value, words):
    rewrite(files[5], f"Header/{name}", data=value)
    with pytest.raises(SubbandError, match=words):
        read_header(files[5])


def test_folders_pipes_and_links_are_no_files(files, tmp_path):
    for make in (Path.mkdir, os.mkfifo):
        path = tmp_path / f"{TARGET_START}_sb01.hdf5"
        make(path)
        with pytest.raises(SubbandError, match="not a file, expected a subband's"):
            inspect(path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_subband_without_its_first_integrations_belongs_to_its_group(make_group, tmp_path):
    """K5: one group, the integrations flagged."""
    group = make_group(antennas=4, channels=2, integrations=6)
    short = group.files[5]
    cut(short, slice(2, None))
    looked = [
        replace(RawFile.named(path), checked=True, outline=inspect(path))
        for path in group.files.values()
    ]
    (found,) = form_groups(looked, 120, 300, 16)
    assert (found.id, found.missing(16), found.others) == (group.id, (), ())
    whole = inspect(group.files[4])
    assert found.outline.start_mjd == pytest.approx(whole.start_mjd, abs=1e-9)
    assert found.outline.mid_mjd == pytest.approx(whole.mid_mjd, abs=1e-9)
    (alone,) = form_groups([looked[5]], 120, 300, 16)
    (late,) = form_groups(
        [f for f in looked if f.subband != 5], 120, 300, 16, {alone.id: [looked[5]]}
    )
    assert len(late.members) == 16  # it came first, and its group had left `collecting`
    plan = plan_group(found.files, 16, "OVRO_MMA")
    assert plan.short == [5]
    assert plan.places(5).tolist() == [-1, -1, 0, 1, 2, 3]
    outputs = [tmp_path / f"sb{sb:02d}.ms" for sb in range(16)]
    result = convert_group(found.files, outputs, Config(), 1)
    assert (result["short_subbands"], result["shape"][0]) == ([5], 6)
    weights = mset.read_grid(outputs[5], "WEIGHT_SPECTRUM", 6)
    assert (weights[:2] == 0).all()
    assert (weights[2:] > 0).all()


def cut(path: Path, integrations: slice) -> None:
    """Leave some of a file's integrations."""
    with h5py.File(path) as file:
        ntimes, nbls = int(file["Header/Ntimes"][()]), int(file["Header/Nbls"][()])
        rows = np.arange(ntimes * nbls).reshape(ntimes, nbls)[integrations].ravel()
        names = (
            "time_array",
            "ant_1_array",
            "ant_2_array",
            "uvw_array",
            "integration_time",
            "lst_array",
        )
        by_row = {
            f"Header/{n}": file[f"Header/{n}"][()][rows]
            for n in names
            if n in file["Header"] and file[f"Header/{n}"].shape
        }
        by_row |= {
            f"Data/{n}": file[f"Data/{n}"][()][rows] for n in ("visdata", "flags", "nsamples")
        }
    for name, values in by_row.items():
        rewrite(path, name, data=values)
    rewrite(path, "Header/Ntimes", data=len(rows) // nbls)
    rewrite(path, "Header/Nblts", data=len(rows))


def test_times_of_a_short_file_lie_on_those_of_the_others(make_group):
    group = make_group(antennas=4, channels=2, integrations=6)
    cut(group.files[3], slice(1, 5))
    headers = {sb: read_header(path) for sb, path in group.files.items()}
    assert len(group_times(headers)) == 6
    rewrite(
        group.files[3], "Header/time_array", data=2461102.3 + np.repeat(np.arange(4), 10) * 1.5e-4
    )
    with pytest.raises(
        SubbandError,
        match="belongs to another observation: move it to where that lies, or copy it again",
    ):
        group_times(headers | {3: read_header(group.files[3])})


HOLD = """
import fcntl, sys, time
import h5py
if sys.argv[2] == "lock":
    file = open(sys.argv[1], "r+b")
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    file = h5py.File(sys.argv[1], "r+", libver="latest")
    file["Header"].attrs["more"] = 1
    file.flush()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold():
    """Another process that has a file open."""
    processes = []

    def begin(path, how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), how], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_a_file_that_another_process_has_locked_is_read(files, hold):
    """K6: it is looked at without a lock."""
    hold(files[5], "lock")
    assert inspect(files[5]).channels == 2


def test_a_file_that_its_writer_did_not_close_is_named(files, hold):
    """K7: while the writer lives, and when it is dead; what the message says mends it."""
    path = files[5]
    with h5py.File(path) as old, h5py.File(path.with_suffix(".new"), "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
    path.with_suffix(".new").rename(path)
    writer = hold(path, "write")
    for _ in range(2):
        with pytest.raises(
            SubbandError, match=f"not closed by its writer; if that is dead: h5clear -s {path}"
        ):
            inspect(path)
        writer.kill()
        writer.wait()
    if h5clear := shutil.which("h5clear"):
        subprocess.run([h5clear, "-s", path], check=True)
        assert inspect(path).channels == 2


@pytest.fixture
def config(tmp_path):
    paths = PathsConfig(
        incoming=tmp_path / "raw", products=tmp_path / "products", state=tmp_path / "state"
    )
    return Config(paths=paths, ingest=IngestConfig(settle_s=0))


def plan_of(config):
    (plan,) = make_plans(config, time.time()).values()
    return plan


def test_a_file_that_the_disk_does_not_give_counts_as_missing_in_the_end(
    files, config, monkeypatch
):
    """K6: said so at once; after the time-out as any other lack; back when it can be read."""
    real = uvh5.inspect

    def broken(path):
        if path.name == files[5].name:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(arrivals, "inspect", broken)
    plan = plan_of(config)
    assert plan.action == "collecting"
    assert "05 could not be looked into: [Errno 5] Input/output error" in plan.reason
    late = config.model_copy(update={"ingest": IngestConfig(settle_s=0, collecting_timeout_s=0.01)})
    assert (plan_of(late).action, "the disk does not give it" in plan_of(late).reason) == (
        "failed",
        True,
    )
    fewer = late.model_copy(update={"ingest": late.ingest.model_copy(update={"min_subbands": 15})})
    assert (plan_of(fewer).action in ("run", "waiting"), plan_of(fewer).missing) == (True, (5,))
    monkeypatch.setattr(arrivals, "inspect", real)
    assert plan_of(late).missing == ()


def test_a_share_of_zeros_that_no_other_subband_has_is_a_warning(files, config, tmp_path):
    """K8: full size from the start, the second half never came."""
    with h5py.File(files[5], "r+") as file:
        half = len(file["Data/visdata"]) // 2
        file["Data/visdata"][half:] = 0
    result = convert_group(files, [tmp_path / f"{sb}.ms" for sb in range(16)], config, 1)
    (found,) = result["findings"]
    assert (found["name"], found["level"]) == ("zeros", "warn")
    assert (
        f"{files[5].name}: 50 % of the visibilities are zero, of the other subbands' 0 %"
        in found["words"]
    )
    assert changed_since(result["seen"]) == []
    os.utime(files[5])  # the whole file comes
    assert changed_since(result["seen"]) == [files[5].name]


def test_a_file_that_changes_while_it_is_read_is_no_result(files, config, tmp_path, monkeypatch):

    real = stored.checksum
    monkeypatch.setattr(convert, "checksum", lambda path: (os.utime(path), real(path))[1])
    with pytest.raises(
        errors.ValidationError, match=r"written to while being read\. The group is converted again"
    ):
        convert_group(files, [tmp_path / f"{sb}.ms" for sb in range(16)], config, 1)


def test_a_clock_that_is_ahead_holds_nothing_up(files, config, monkeypatch):
    """K9, K10: files dated two hours ahead, a file server's clock ten minutes ahead."""
    for path in files.values():
        os.utime(path, (time.time() + 7200,) * 2)
    patient = config.model_copy(update={"ingest": IngestConfig(settle_s=0.5)})
    assert plan_of(patient).group.is_checked()
    behind = time.time
    monkeypatch.setattr(arrivals.time, "time", lambda: behind() - 600)
    arrivals._ahead.clear()
    begin = time.monotonic()
    (group,) = arrivals.look(patient, {}, behind() - 600)
    assert not group.is_checked()
    (group,) = arrivals.look(patient, {}, behind() - 600, wait=True)
    assert group.is_checked()
    assert time.monotonic() - begin < 5


def test_what_is_no_change_of_content_is_no_news(files, config, tmp_path):
    """K11: chmod, chown, cp -al; K12: the folder under another name."""
    from contimg.runs.recovery import refresh

    def failed_group(options):
        known = moves.known_groups(tmp_path / "state" / "ingest.sqlite3")
        groups = arrivals.look(options, known, time.time())
        return refresh(options, known, groups), known

    failed_group(config)
    from contimg.store import db

    with db.writing(tmp_path / "state" / "ingest.sqlite3", queue_tables.Base) as session:
        moves.move(session, TARGET_START, "failed", error="x")
    shutil.copytree(tmp_path / "raw", tmp_path / "copy", copy_function=os.link)
    for path in files.values():
        path.chmod(0o600)
        os.chown(path, 12345, 12345)
    assert plan_of(config).action == "failed"
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    for spelled in (tmp_path / "link", Path(os.path.relpath(tmp_path / "raw"))):
        other = config.model_copy(
            update={"paths": config.paths.model_copy(update={"incoming": spelled})}
        )
        plan = plan_of(other)
        assert (plan.action, plan.group.others) == ("failed", ())
        assert failed_group(other)[1][TARGET_START].state == "failed"
    files[5].write_bytes(files[5].read_bytes())
    assert plan_of(config).action in ("run", "waiting")


def test_rows_of_another_spelling_are_rewritten(files, config, tmp_path):
    from contimg.store import db

    database = tmp_path / "state" / "ingest.sqlite3"
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    with db.writing(database, queue_tables.Base) as session:
        session.add(
            queue_tables.Group(
                group_id=TARGET_START,
                state="collecting",
                received_at="",
                last_update="",
                expected_subbands=16,
                chunk_minutes=5,
            )
        )
        session.flush()
        for sb, path in files.items():
            other = tmp_path / ("link" if sb % 2 else "raw") / path.name
            session.add(
                queue_tables.SubbandFile(
                    path=str(other), group_id=TARGET_START, subband_idx=sb, size=1, changed_s=0
                )
            )
    with db.writing(database, queue_tables.Base) as session:
        moves.respell(session)
    with db.reading(database) as session:
        assert set(session.scalars(select(queue_tables.SubbandFile.path))) == {
            str(path) for path in files.values()
        }


def test_a_station_without_a_position_hurts_only_if_it_takes_part(files, tmp_path, config):
    """K13."""
    header = read_header(files[0])
    taking_part = set(header.ant_1.tolist())
    idle = next(i for i, number in enumerate(header.antenna_numbers) if number not in taking_part)
    busy = next(i for i, number in enumerate(header.antenna_numbers) if number in taking_part)
    for place in (idle, busy):
        for path in files.values():
            with h5py.File(path, "r+") as file:
                file["Header/antenna_positions"][place] = np.nan
        if place == idle:
            result = convert_group(files, [tmp_path / f"{sb}.ms" for sb in range(16)], config, 1)
            assert result["subbands"] == list(range(16))
            assert np.isfinite(mset.read_observation(tmp_path / "0.ms").positions_m).all()
    with pytest.raises(
        SubbandError, match=f"stations {header.antenna_names[busy]} take part and have no position"
    ):
        plan_group(files, 16, "OVRO_MMA")


@pytest.fixture(scope="module")
def specimen(tmp_path_factory, sky):
    from contimg.simulate import Simulation, simulate_group
    from tests.conftest import STATIONS

    folder = tmp_path_factory.mktemp("fuzz")
    options = Simulation(start=TARGET_START, dec_deg=16.15, antennas=4, channels=2, integrations=2)
    paths = [p for p in simulate_group(folder, options, sky, STATIONS) if parse_name(p.name)]
    return paths[5], paths[5].read_bytes()


OUTCOMES: Counter = Counter()
ITEMS = (
    "Nblts",
    "Nbls",
    "Ntimes",
    "Nfreqs",
    "Npols",
    "telescope_name",
    "phase_center_app_dec",
    "time_array",
    "ant_1_array",
    "antenna_names",
    "antenna_numbers",
    "antenna_positions",
    "freq_array",
    "channel_width",
    "integration_time",
    "longitude",
    "polarization_array",
    "phase_type",
)
TYPES = (
    "f8",
    "f4",
    "i8",
    "u1",
    "i2",
    "c8",
    "S5",
    "?",
    "f2",
    ">f8",
    h5py.string_dtype(),
    h5py.vlen_dtype("f8"),
    "V7",
)
damage = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 7)),
    st.tuples(st.just("zeros"), st.integers(0, 1 << 20), st.integers(1, 4096)),
    st.tuples(st.just("noise"), st.integers(0, 9000), st.binary(min_size=1, max_size=16)),
    st.tuples(
        st.just("item"),
        st.sampled_from(
            [f"Header/{i}" for i in ITEMS] + ["Data/visdata", "Data/flags", "Data/nsamples"]
        ),
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 40), max_size=4)),
    ),
    st.tuples(
        st.just("value"),
        st.sampled_from([f"Header/{i}" for i in ITEMS]),
        st.one_of(st.integers(-(2**62), 2**62), st.floats(), st.binary(max_size=9)),
    ),
)


def harm(path: Path, content: bytes, what: tuple) -> None:
    kind, place, more = what
    data = bytearray(content)
    if kind in ("item", "value"):
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            del file[place]
            if kind == "item":
                file.create_dataset(place, tuple(more[1]), more[0])
            else:
                file[place] = np.bytes_(more) if isinstance(more, bytes) else more
        return
    place %= len(data)
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        data[place] ^= 1 << more
    elif kind == "zeros":
        data[place : place + more] = bytes(len(data[place : place + more]))
    else:
        data[place : place + len(more)] = more
    path.write_bytes(data)


@settings(
    max_examples=5000 if LONG else 400,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(what=st.lists(damage, min_size=1, max_size=2))
def test_whatever_a_file_is_like_it_is_read_or_named(specimen, what):
    """K1 to K7 and what nobody thought of, in one process: types, shapes, values, cuts at any
    place, bits that flip."""
    path, content = specimen
    try:
        harm(path, content, what[0])
        for more in what[1:]:
            harm(path, path.read_bytes(), more) if path.stat().st_size else None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError):
        pass  # what the first did to it does not let HDF5 do the second: also a file
    try:
        inspect(path)
        header = read_header(path)
        with opened_data(path) as data:
            data.full_samples()
            data.read(0, len(header.ant_1), len(header.ant_1), np.arange(len(header.time_mjd)))
        OUTCOMES["read"] += 1
    except SubbandError as error:
        OUTCOMES["named" if str(path) in str(error) else "not named"] += 1


def test_outcomes_of_the_fuzz(figure):
    figure(f"damaged files: {OUTCOMES['read']} read, {OUTCOMES['named']} named, none fatal")
    assert OUTCOMES["named"] > 100
    assert OUTCOMES["not named"] == 0
