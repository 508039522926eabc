import h5py
import numpy as np
import pytest

from contimg.errors import SubbandError
from contimg.visibilities.uvh5 import inspect, parse_name, read_header
from tests.conftest import DEC_DEG


def test_the_simulator_writes_what_the_format_reference_reads(make_group):
    """pyuvdata reads our files; only the float32 uvw of the real format has to be forgiven."""
    from pyuvdata import UVData

    path = make_group().files[0]
    reference = UVData()
    reference.read(path, file_type="uvh5", run_check=False)
    header = read_header(path)
    assert np.array_equal(reference.Nants_telescope, len(header.antenna_names))
    assert np.array_equal(reference.freq_array.ravel(), header.freq_hz)
    assert np.array_equal(np.unique(reference.time_array), header.time_mjd + 2400000.5)
    assert np.array_equal(reference.ant_1_array[: len(header.ant_1)], header.ant_1)
    assert list(reference.polarization_array) == [-5, -6]


def test_the_simulator_and_the_independent_sample_have_the_same_datasets(make_group, sample):
    def layout(path):
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: getattr(item, "dtype", None)}))
        return {k: v.kind for k, v in found.items() if v is not None and "extra_keywords" not in k}

    assert layout(make_group().files[0]) == layout(next((sample / "target").glob("*_sb00.hdf5")))


def test_channels_descend_and_names_are_numbers_plus_one(make_group):
    group = make_group(antennas=60)
    header = read_header(group.files[0])
    assert (np.diff(header.freq_hz) < 0).all()
    assert header.freq_hz.max() > read_header(group.files[1]).freq_hz.max()
    assert all(
        name == str(number + 1)
        for name, number in zip(header.antenna_names, header.antenna_numbers, strict=True)
    )
    assert (header.ant_1 > header.ant_2).any()  # the correlator's out-of-order stations
    assert inspect(group.files[3]).app_dec_deg == pytest.approx(DEC_DEG)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "truncated"),
        (lambda p: p.write_bytes(b"not HDF5 at all" * 100), "not readable as HDF5"),
        (lambda p: p.unlink(), "not there"),
        (lambda p: edit(p, "telescope_name", np.bytes_("VLA")), "telescope 'VLA'"),
        (lambda p: edit(p, "Nfreqs", 7), "has shape"),
        (lambda p: edit(p, "polarization_array", np.array([-1, -2])), "polarisations"),
        (lambda p: edit(p, "phase_center_app_dec", None), "not a UVH5 subband file"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(make_group, damage, words):
    path = make_group().files[5]
    damage(path)
    with pytest.raises(SubbandError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_whatever_is_wrong_inside_a_file_it_is_named(make_group, tmp_path):
    """HDF5 itself says RuntimeError and others of a damaged file: bytes flipped one by one in its
    structure."""
    content = make_group(antennas=4, channels=1, integrations=2).files[5].read_bytes()
    path, refused = tmp_path / "2026-01-25T22:26:05_sb05.hdf5", 0
    for place in range(0, min(len(content), 8000), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            inspect(path)
        except SubbandError as error:
            refused += str(path) in str(error)
    assert refused > 100


def edit(path, key, value):
    with h5py.File(path, "r+") as file:
        del file["Header"][key]
        if value is not None:
            file["Header"][key] = value


@pytest.mark.parametrize(
    "name", ["2026-01-25T22:26:05_sb00_incomplete.hdf5", "2026-01-25_sb00.hdf5", "x_sb00.hdf5"]
)
def test_names_that_are_no_finished_files(name):
    assert parse_name(name) is None


def test_the_same_seed_gives_the_same_files(make_group):
    first = make_group()
    again = make_group(folder="again")
    other = make_group(folder="other", seed=2)
    assert first.files[3].read_bytes() == again.files[3].read_bytes()
    assert first.files[3].read_bytes() != other.files[3].read_bytes()


def test_a_dead_station_that_is_not_simulated_is_refused(make_group):
    with pytest.raises(ValueError, match=r"stations \[999\] are not among"):
        make_group(dead=(999,))
