"""Reading the correlator's UVH5 subband files (format: FACTS.md, and docs/conventions.md)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5g, h5s

from contimg.errors import SubbandError
from contimg.geometry import TEE_LONGITUDE_RAD

JD_MINUS_MJD = 2400000.5
POLARIZATIONS = (-5, -6)  # XX, YY
_TELESCOPES = ("OVRO_MMA", "DSA_110", "DSA-110", "DSA110")
_VALUES_AT_ONCE = 1 << 22
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)_sb(\d\d)\.hdf5")
# What the converter reads, beside what `inspect` looks at.
_NEEDED = (
    "ant_1_array", "ant_2_array", "antenna_names", "antenna_numbers", "antenna_positions", "channel_width",
    "freq_array", "integration_time", "longitude", "polarization_array",
)  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """The little of a file's header that grouping and planning need."""

    start_mjd: float  # first entry of time_array, UTC: identical in the files of a group
    mid_mjd: float
    app_dec_deg: float
    channels: int


@dataclass(frozen=True)
class SubbandHeader:
    """What a subband file says about its data; arrays in the file's own order."""

    path: Path
    time_mjd: np.ndarray  # (ntime,) UTC, middle of each integration
    integration_s: float
    app_dec_rad: float
    freq_hz: np.ndarray  # (nchan,) as in the file: descending
    channel_width_hz: float
    ant_1: np.ndarray  # (nbaseline,) antenna numbers
    ant_2: np.ndarray
    antenna_names: tuple[str, ...]  # name = number + 1
    antenna_numbers: np.ndarray
    positions_m: np.ndarray  # (nant, 3) ITRF offsets from the Tee centre
    diameters_m: np.ndarray

    @property
    def mid_mjd(self) -> float:
        """Middle of the group, UTC."""
        return float(self.time_mjd.mean())


def timestamp_s(timestamp: str) -> float:
    """Seconds since 1970 of a file-name timestamp (UTC); a leap second (23:59:60) is the second after it."""
    whole, second = timestamp[:17], int(timestamp[17:])
    return (datetime.fromisoformat(f"{whole}00").replace(tzinfo=UTC) + timedelta(seconds=second)).timestamp()


def parse_name(name: str) -> tuple[str, int] | None:
    """(timestamp, subband) of a file name, or None when it is no finished subband file."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    timestamp, subband = match.groups()
    if int(timestamp[17:]) > (60 if timestamp[11:16] == "23:59" else 59):
        return None
    try:
        timestamp_s(timestamp)
    except ValueError:  # 30 February
        return None
    return timestamp, int(subband)


def open_subband(path: Path) -> h5py.File:
    """Open a file for reading; a SubbandError says in an operator's words why it cannot be."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise SubbandError(f"{path}: the file is empty (0 bytes). Copy it again, or remove it.")
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise SubbandError(f"{path}: the file is not there any more. Copy it again.") from None
    except PermissionError as error:
        raise SubbandError(f"{path}: not readable: {error.strerror}. Give this user permission to read it.") from None
    except OSError as error:
        if error.errno is not None:  # the disk, not the file: it may be well a moment later
            raise
        match = re.search(r"eof = (\d+).*stored_eof = (\d+)", str(error))
        if match:
            found, expected = (int(x) / 1e6 for x in match.groups())
            raise SubbandError(f"{path}: truncated ({found:.1f} of {expected:.1f} MB). Copy it again, or remove it.") from None
        raise SubbandError(f"{path}: not readable as HDF5 ({error}). Copy it again, or remove it.") from None


def inspect(path: Path) -> Outline:
    """Look into a file before it counts: datasets, shapes, telescope. Under a millisecond; the data are not read.

    Raises SubbandError naming the file, what was expected and what was found.
    """
    with open_subband(path) as file:
        return _outline(path, file)


def _outline(path: Path, file: h5py.File) -> Outline:
    try:
        # h5py's low-level interface: three times as fast, and an archive has tens of thousands of files.
        header, data = (h5g.open(file.id, name) for name in (b"Header", b"Data"))
        nblts, nbls, ntimes, nfreqs, npols = (
            int(_read(header, name, np.int64)) for name in (b"Nblts", b"Nbls", b"Ntimes", b"Nfreqs", b"Npols")
        )
        shapes = {f"Data/{k}": (h5d.open(data, k.encode()).shape, (nblts, 1, nfreqs, npols))
                  for k in ("visdata", "flags", "nsamples")}  # fmt: skip
        shapes["Header/time_array"] = (h5d.open(header, b"time_array").shape, (nblts,))
        telescope = file["Header/telescope_name"].asstr()[()]
        absent = [name for name in _NEEDED if name.encode() not in header]
        dec_rad = float(_read(header, b"phase_center_app_dec", np.float64))
        first, last = _read(header, b"time_array", np.float64, ends=True) - JD_MINUS_MJD
    except Exception as error:  # HDF5 says RuntimeError and more of a file whose structure is damaged
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SubbandError(f"{path}: not a UVH5 subband file of this telescope: {error}. Remove it.") from None
    problems = [f"{k} has shape {found}, expected {expected}" for k, (found, expected) in shapes.items()
                if found != expected]  # fmt: skip
    if absent:
        problems.append(f"Header lacks {', '.join(absent)}")
    if telescope not in _TELESCOPES:
        problems.append(f"telescope {telescope!r}, expected one of {_TELESCOPES}")
    if nblts != nbls * ntimes:
        problems.append(f"{nblts} rows, expected {ntimes} times x {nbls} baselines")
    if not np.isfinite([first, last]).all() or last < first:
        problems.append(f"times from MJD {first} to {last}")
    if not abs(dec_rad) <= np.pi / 2:
        problems.append(f"declination {dec_rad} rad")
    if problems:
        raise SubbandError(f"{path}: {'; '.join(problems)}. Remove it, or copy it again.")
    return Outline(float(first), 0.5 * float(first + last), float(np.degrees(dec_rad)), nfreqs)


def _read(group: h5g.GroupID, name: bytes, dtype: type, ends: bool = False) -> np.ndarray:
    """A scalar dataset, or the first and last values of a vector."""
    dataset = h5d.open(group, name)
    if not ends:
        values = np.empty((), dtype)
        dataset.read(h5s.ALL, h5s.ALL, values)
        return values
    values, space = np.empty(2, dtype), dataset.get_space()
    if dataset.shape[0] == 0:
        raise ValueError("it has no integrations")
    space.select_elements(np.array([[0], [dataset.shape[0] - 1]], np.uint64))
    dataset.read(h5s.create_simple((2,)), space, values)
    return values


def read_header(path: Path) -> SubbandHeader:
    """Header of a subband file, checked; raises SubbandError naming the file, what was expected and what was found."""
    with open_subband(path) as file:
        _outline(path, file)
        header = file["Header"]
        try:
            nbls, ntimes = int(header["Nbls"][()]), int(header["Ntimes"][()])
            polarizations = tuple(header["polarization_array"][:])
            time = header["time_array"][:] - JD_MINUS_MJD
            ant_1, ant_2 = header["ant_1_array"][:], header["ant_2_array"][:]
            values = {
                "app_dec_rad": float(header["phase_center_app_dec"][()]),
                "freq_hz": header["freq_array"][:].reshape(-1),
                "channel_width_hz": float(np.abs(np.ravel(header["channel_width"][()])).max()),
                "antenna_names": tuple(n.decode() for n in header["antenna_names"][:]),
                "antenna_numbers": header["antenna_numbers"][:],
                "positions_m": header["antenna_positions"][:],
                "integration_s": float(np.ravel(header["integration_time"][()])[0]),
                "diameters_m": np.broadcast_to(
                    header["antenna_diameters"][()] if "antenna_diameters" in header else 4.65, header["antenna_numbers"].shape
                ).astype(float),
            }
            longitude = np.radians(float(header["longitude"][()]))
        except (KeyError, OSError, ValueError) as error:
            raise SubbandError(f"{path}: not a UVH5 subband file of this telescope: {error}") from None
    problems = []
    if abs(longitude - TEE_LONGITUDE_RAD) > 1e-6:
        problems.append(f"longitude {np.degrees(longitude):.5f} deg, expected {np.degrees(TEE_LONGITUDE_RAD):.5f}")
    if polarizations != POLARIZATIONS:
        problems.append(f"polarisations {polarizations}, expected {POLARIZATIONS} (XX, YY)")
    if np.ptp(time.reshape(ntimes, nbls), axis=1).max() > 0:
        problems.append("rows are not in order of time")
    elif (ant_1.reshape(ntimes, nbls) != ant_1[:nbls]).any() or (ant_2.reshape(ntimes, nbls) != ant_2[:nbls]).any():
        problems.append("baselines differ between integrations")
    if problems:
        raise SubbandError(f"{path}: {'; '.join(problems)}. Remove it, or copy it again.")
    return SubbandHeader(path=path, time_mjd=time[::nbls].copy(), ant_1=ant_1[:nbls], ant_2=ant_2[:nbls], **values)


class SubbandData:
    """The data of an open subband file, by rows in the file's order."""

    def __init__(self, path: Path, file: h5py.File):
        self._path = path
        self._datasets = [file["Data"][name] for name in ("visdata", "flags", "nsamples")]
        _, _, *self._cell = self._datasets[0].shape
        self._nrow = len(self._datasets[0])

    def full_samples(self) -> float:
        """Largest sample count; 0 when there is none."""
        counts = self._datasets[2]
        step = max(1, _VALUES_AT_ONCE // max(1, np.prod(self._cell)))
        return float(max((np.nanmax(counts[r : r + step], initial=0) for r in range(0, self._nrow, step)), default=0))

    def read(self, first: int, last: int, nbaseline: int, places: np.ndarray) -> tuple[np.ndarray, ...]:
        """Visibilities, flags and sample counts of a group's rows [first, last), each (row, channel, polarisation).

        places  which of the file's integrations is each of the group's, (ntime,); -1: the file lacks it, no samples
        """
        times = np.arange(first // nbaseline, -(-last // nbaseline))
        begin = places[times[0]] * nbaseline + first % nbaseline
        if np.array_equal(places[times], places[times[0]] + np.arange(len(times))) and places[times[0]] >= 0:
            return tuple(dataset[begin : begin + last - first, 0] for dataset in self._datasets)
        whole = tuple(np.zeros((last - first, *self._cell), dataset.dtype) for dataset in self._datasets)
        for t in times[places[times] >= 0]:
            start, stop = max(first, t * nbaseline), min(last, (t + 1) * nbaseline)
            shift = (places[t] - t) * nbaseline
            for values, dataset in zip(whole, self._datasets, strict=True):
                values[start - first : stop - first] = dataset[start + shift : stop + shift, 0]
        return whole


@contextmanager
def opened_data(path: Path) -> Iterator[SubbandData]:
    """The data of a subband file; what goes wrong with them is a SubbandError that names it."""
    with open_subband(path) as file:
        try:
            yield SubbandData(path, file)
        except KeyError as error:
            raise SubbandError(f"{path}: the data cannot be read: {error}. Copy it again, or remove it.") from None
        except OSError as error:
            if error.errno is not None:  # the disk, not the file
                raise
            raise SubbandError(f"{path}: the data cannot be read: {error}. Copy it again, or remove it.") from None
