"""Reading the correlator's UVH5 subband files (format: FACTS.md, and docs/conventions.md)."""

import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5g, h5s, h5z

from contimg.errors import SubbandError
from contimg.telescope import TELESCOPE

JD_MINUS_MJD = 2400000.5
POLARIZATIONS = (-5, -6)  # XX, YY
_VALUES_AT_ONCE = 1 << 22
_LARGEST = 1 << 24  # values in an item of the header, rows in a file
_DATA = {"visdata": "c", "flags": "biu", "nsamples": "fiu"}  # kinds of type, as numpy calls them
_READ_AS = {"visdata": np.complex64, "flags": np.bool_, "nsamples": np.float32}
_KINDS = {
    "c": "complex numbers",
    "b": "booleans",
    "i": "integers",
    "u": "counts",
    "f": "floats",
    "S": "texts",
    "O": "texts",
}
_COPY = "Copy it again, from where it was written."
_ELSEWHERE = (
    "If it is of another telescope, or was rewritten, it belongs elsewhere; else copy it again."
)
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)_sb(\d\d)\.hdf5")
# What the converter reads, beside what `inspect` looks at.
_NEEDED = (
    "ant_1_array",
    "ant_2_array",
    "antenna_names",
    "antenna_numbers",
    "antenna_positions",
    "channel_width",
    "freq_array",
    "integration_time",
    "longitude",
    "polarization_array",
)


@dataclass(frozen=True)
class Outline:
    """The little of a file's header that grouping and planning need."""

    start_mjd: float  # first entry of time_array, UTC: identical in the files of a group
    mid_mjd: float
    app_dec_deg: float
    channels: int

    @property
    def end_mjd(self) -> float:
        """Last entry of time_array."""
        return 2 * self.mid_mjd - self.start_mjd


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
    """Seconds since 1970 of a file-name timestamp (UTC); a leap second (23:59:60) is the second
    after it."""
    whole, second = timestamp[:17], int(timestamp[17:])
    return (
        datetime.fromisoformat(f"{whole}00").replace(tzinfo=UTC) + timedelta(seconds=second)
    ).timestamp()


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


def content_mark(path: Path) -> list[int]:
    """Size and time of the last change (ns) of a file's content."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def changed_since(marks: Mapping[str, list[int]]) -> list[str]:
    """Names of files that are there and whose content is another than when they were marked;
    `marks` by path."""
    return [
        Path(name).name
        for name, mark in marks.items()
        if Path(name).exists() and content_mark(Path(name)) != mark
    ]


def open_subband(path: Path) -> h5py.File:
    """Open a file for reading, whoever has it locked; a SubbandError says in an operator's words
    why it cannot be."""
    try:
        seen = path.stat()
        if not stat.S_ISREG(seen.st_mode):
            raise SubbandError(f"{path}: not a file, expected a subband's. {_COPY}")
        if seen.st_size == 0:
            raise SubbandError(f"{path}: the file is empty (0 bytes). {_COPY}")
        # No lock: a disk may have none, and what a writer has not finished is told by its size or
        # its mark.
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise SubbandError(f"{path}: the file is not there any more. Copy it again.") from None
    except PermissionError as error:
        raise SubbandError(
            f"{path}: not readable: {error.strerror}. Give this user permission to read it."
        ) from None
    except OSError as error:
        if _is_of_disk(error):
            raise
        if re.search("h5clear|already open for", str(error)):
            raise SubbandError(
                f"{path}: not closed by its writer; if that is dead: h5clear -s {path}"
            ) from None
        match = re.search(r"eof = (\d+).*stored_eof = (\d+)", str(error))
        if match:
            found, expected = (int(x) / 1e6 for x in match.groups())
            raise SubbandError(
                f"{path}: truncated ({found:.1f} of {expected:.1f} MB). {_COPY}"
            ) from None
        raise SubbandError(f"{path}: not readable as HDF5 ({error}). {_COPY}") from None
    except (
        Exception
    ) as error:  # HDF5 says RuntimeError and more of a file whose structure is damaged
        raise SubbandError(f"{path}: not readable as HDF5 ({error}). {_COPY}") from None


def _is_of_disk(error: Exception) -> bool:
    """Whether an error is the disk's and not the file's: it may be well a moment later."""
    if not isinstance(error, OSError):
        return False
    inside = re.search(r"errno = (\d+)", str(error))
    return error.errno is not None or bool(inside and int(inside[1]))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a file is a SubbandError that names it, unless it is the
    disk's fault."""
    try:
        yield
    except SubbandError:
        raise
    except (
        Exception
    ) as error:  # HDF5 says RuntimeError, and others, of a file whose structure is damaged
        if _is_of_disk(error) or isinstance(error, MemoryError):
            raise
        words = str(error).strip("'\"") or type(error).__name__
        raise SubbandError(
            f"{path}: not a UVH5 subband file of this telescope: {words}. {_ELSEWHERE}"
        ) from None


def _dataset(group: h5g.GroupID, name: str, kinds: str) -> h5d.DatasetID:
    """A dataset that can be read: of a type of these kinds (numpy's letters), not too large, with
    filters that are installed."""
    if name.encode() not in group:
        raise ValueError(f"it lacks {name}")
    dataset = h5d.open(group, name.encode())
    dtype, space, created = dataset.dtype, dataset.get_space(), dataset.get_create_plist()
    kind = (
        "c"
        if dtype.names == ("r", "i") and {dtype[0].kind, dtype[1].kind} <= {*"iuf"}
        else dtype.kind
    )
    if kind not in kinds:
        raise ValueError(
            f"{name} has type {dtype}, expected {' or '.join(_KINDS[one] for one in kinds)}"
        )
    if space.get_simple_extent_type() == h5s.NULL:
        raise ValueError(f"{name} is empty")
    if (
        created.get_layout() not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
        or created.get_external_count()
    ):
        raise ValueError(f"{name} is kept in another file")
    for number in range(created.get_nfilters()):
        code, *_, words = created.get_filter(number)
        if not h5z.filter_avail(code):
            raise ValueError(
                f"{name} is packed with HDF5 filter {code} "
                f"({words.decode(errors='replace') or 'unnamed'}), which this machine does not "
                "have: install it (PyPI's hdf5plugin has most; HDF5_PLUGIN_PATH tells where), "
                "or write the file again with h5repack -f NONE"
            )
    return dataset


def _values(header: h5g.GroupID, name: str, dtype: type = np.float64) -> np.ndarray:
    """A numerical item of the header, whole, in its own shape; its size is known before a byte of
    it is read."""
    dataset = _dataset(header, name, "iuf")
    if np.prod(dataset.shape, dtype=float) > _LARGEST:
        raise ValueError(f"{name} has shape {dataset.shape}")
    if np.dtype(dtype).kind in "iu" and dataset.dtype.kind == "f":
        raise ValueError(f"{name} has type {dataset.dtype}, expected integers")
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values


def _scalar(header: h5g.GroupID, name: str, dtype: type = np.float64) -> float | int:
    """An item that is one number; or an array (pyuvdata writes some since version 1.1 of the
    format) of equal ones."""
    values = np.ravel(_values(header, name, dtype))
    if len(values) == 0 or (len(values) > 1 and not (values == values[0]).all()):
        raise ValueError(f"{name} has {len(values)} values that differ, expected one number")
    return values[0].item()


def _strings(header: h5g.GroupID, name: str) -> list[str]:
    """A text, or texts, of the header."""
    dataset = h5py.Dataset(_dataset(header, name, "SO"))
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.size > _LARGEST:
        raise ValueError(
            f"{name} has type {dataset.dtype} and shape {dataset.shape}, expected texts"
        )
    return [one.decode() if isinstance(one, bytes) else str(one) for one in np.ravel(dataset[()])]


def _ends(header: h5g.GroupID, name: str, length: int) -> np.ndarray:
    """First and last value of a vector."""
    dataset = _dataset(header, name, "f")
    if dataset.shape != (length,):
        raise ValueError(f"Header/{name} has shape {dataset.shape}, expected {(length,)}")
    if length == 0:
        raise ValueError("it has no integrations")
    values, space = np.empty(2), dataset.get_space()
    space.select_elements(np.array([[0], [length - 1]], np.uint64))
    dataset.read(h5s.create_simple((2,)), space, values)
    return values


def inspect(path: Path) -> Outline:
    """Look into a file before it counts: datasets, shapes, types, filters, telescope. A
    millisecond; the data are not read.

    Raises SubbandError naming the file, what was expected and what was found.
    """
    with open_subband(path) as file:
        return _outline(path, file)


def _outline(path: Path, file: h5py.File) -> Outline:
    with _naming(path):
        # h5py's low-level interface: three times as fast, and an archive has tens of thousands of
        # files.
        header, data = (h5g.open(file.id, name) for name in (b"Header", b"Data"))
        nblts, nbls, ntimes, nfreqs, npols = (
            int(_scalar(header, name, np.int64))
            for name in ("Nblts", "Nbls", "Ntimes", "Nfreqs", "Npols")
        )
        problems = []
        (telescope,) = _strings(header, "telescope_name")[:1] or [""]
        if telescope not in TELESCOPE.file_names:
            problems.append(f"telescope {telescope!r}, expected one of {TELESCOPE.file_names}")
        if absent := [name for name in _NEEDED if name.encode() not in header]:
            problems.append(f"Header lacks {', '.join(absent)}")
        if (
            not 0 < nblts <= _LARGEST
            or nblts != nbls * ntimes
            or not 0 < nfreqs * npols <= _LARGEST
        ):
            problems.append(
                f"{nblts} rows of {nfreqs} x {npols}, expected {ntimes} times x {nbls} baselines"
            )
        if problems:
            raise SubbandError(f"{path}: {'; '.join(problems)}. {_ELSEWHERE}")
        for name, kinds in _DATA.items():
            shape = _dataset(data, name, kinds).shape
            if shape not in ((nblts, 1, nfreqs, npols), (nblts, nfreqs, npols)):
                problems.append(
                    f"Data/{name} has shape {shape}, expected {(nblts, 1, nfreqs, npols)}"
                )
        if "phase_type" in file["Header"] and (how := _strings(header, "phase_type")) != ["drift"]:
            problems.append(f"phase_type {', '.join(how)}, expected drift")
        _pol_places(header, npols)
        dec_rad = _scalar(header, "phase_center_app_dec")
        first, last = _ends(header, "time_array", nblts) - JD_MINUS_MJD
        if not np.isfinite([first, last]).all() or last < first:
            problems.append(f"times from MJD {first} to {last}")
        if not abs(dec_rad) <= np.pi / 2:
            problems.append(f"declination {dec_rad} rad")
        if problems:
            raise SubbandError(f"{path}: {'; '.join(problems)}. {_ELSEWHERE}")
    return Outline(float(first), 0.5 * float(first + last), float(np.degrees(dec_rad)), nfreqs)


def _pol_places(header: h5g.GroupID, npols: int) -> list[int]:
    """Where XX and YY are among a file's polarisations."""
    found = _values(header, "polarization_array", np.int64).ravel().tolist()
    if len(found) != npols or not set(POLARIZATIONS) <= set(found):
        raise ValueError(
            f"polarisations {tuple(found)}, expected {POLARIZATIONS} (XX, YY) among {npols}"
        )
    return [found.index(wanted) for wanted in POLARIZATIONS]


def read_header(path: Path) -> SubbandHeader:
    """Header of a subband file, checked; raises SubbandError naming the file, what was expected and
    what was found."""
    with open_subband(path) as file, _naming(path):
        _outline(path, file)
        header = h5g.open(file.id, b"Header")
        nbls, ntimes = (int(_scalar(header, name, np.int64)) for name in ("Nbls", "Ntimes"))
        time = _values(header, "time_array") - JD_MINUS_MJD
        ant_1, ant_2 = (_values(header, name, np.int64) for name in ("ant_1_array", "ant_2_array"))
        numbers = _values(header, "antenna_numbers", np.int64)
        names = _strings(header, "antenna_names")
        positions = _values(header, "antenna_positions")
        diameters = (
            _values(header, "antenna_diameters")
            if b"antenna_diameters" in header
            else np.full(len(names), TELESCOPE.dish_diameter_m)
        )
        freq_hz = _values(header, "freq_array").ravel()
        width_hz = _values(header, "channel_width").ravel()
        integration_s = _values(header, "integration_time").ravel()
        longitude = np.radians(_scalar(header, "longitude"))
        nfreqs = int(_scalar(header, "Nfreqs", np.int64))
        nant = numbers.size
        shapes = {
            "ant_1_array": (ant_1.shape, (nbls * ntimes,)),
            "ant_2_array": (ant_2.shape, (nbls * ntimes,)),
            "antenna_numbers": (numbers.shape, (nant,)),
            "antenna_names": ((len(names),), (nant,)),
            "antenna_positions": (positions.shape, (nant, 3)),
            "freq_array": (freq_hz.shape, (nfreqs,)),
        }
        problems = [
            f"{k} has shape {found}, expected {right}"
            for k, (found, right) in shapes.items()
            if found != right
        ]
        if not problems:
            problems = _oddities(
                time.reshape(ntimes, nbls),
                ant_1.reshape(ntimes, nbls),
                ant_2.reshape(ntimes, nbls),
                numbers,
            )
        for name, values in (
            ("freq_array", freq_hz),
            ("channel_width", width_hz),
            ("integration_time", integration_s),
        ):
            if not (values.size and np.isfinite(values).all() and (values > 0).all()):
                problems.append(f"{name} has values that are no positive numbers")
        if not abs(longitude - TELESCOPE.longitude_rad) <= 1e-6:
            problems.append(
                f"longitude {np.degrees(longitude):.5f} deg, expected "
                f"{np.degrees(TELESCOPE.longitude_rad):.5f}"
            )
        if problems:
            raise SubbandError(f"{path}: {'; '.join(problems)}. {_ELSEWHERE}")
        return SubbandHeader(
            path=path,
            time_mjd=time[::nbls].copy(),
            integration_s=float(integration_s[0]),
            app_dec_rad=_scalar(header, "phase_center_app_dec"),
            freq_hz=freq_hz,
            channel_width_hz=float(width_hz.max()),
            ant_1=ant_1[:nbls],
            ant_2=ant_2[:nbls],
            antenna_names=tuple(names),
            antenna_numbers=numbers,
            positions_m=positions,
            diameters_m=np.broadcast_to(diameters, numbers.shape).astype(float),
        )


def _oddities(
    time_mjd: np.ndarray, ant_1: np.ndarray, ant_2: np.ndarray, numbers: np.ndarray
) -> list[str]:
    """What is wrong with a file's rows, in words; all but `numbers` are (ntime, nbaseline)."""
    if not np.isfinite(time_mjd).all():
        return ["times that are no numbers"]
    if np.ptp(time_mjd, axis=1).max() > 0 or (np.diff(time_mjd[:, 0]) <= 0).any():
        return ["rows are not in order of time"]
    if (ant_1 != ant_1[0]).any() or (ant_2 != ant_2[0]).any():
        return ["baselines differ between integrations"]
    if len(set(numbers.tolist())) < len(numbers):
        return ["an antenna number twice"]
    if unknown := sorted({*ant_1[0].tolist(), *ant_2[0].tolist()} - {*numbers.tolist()}):
        return [f"antennas {unknown} in baselines are not among antenna_numbers"]
    return []


class SubbandData:
    """The data of an open subband file, XX and YY, by rows in the file's order."""

    def __init__(self, path: Path, file: h5py.File):
        self._path = path
        data = h5g.open(file.id, b"Data")
        self._datasets = {
            name: h5py.Dataset(_dataset(data, name, kinds)) for name, kinds in _DATA.items()
        }
        shape = self._datasets["visdata"].shape
        # some files have an axis of spectral windows
        self._window = (0,) if len(shape) == 4 else ()
        self._cell = (shape[-2], len(POLARIZATIONS))
        places = _pol_places(h5g.open(file.id, b"Header"), shape[-1])
        self._pols = None if places == list(range(shape[-1])) else places
        self._nrow = shape[0]

    def _rows(self, name: str, first: int, last: int) -> np.ndarray:
        try:
            values = self._datasets[name][(slice(first, last), *self._window)]
        except Exception as error:  # of HDF5, by several names
            if _is_of_disk(error) or isinstance(error, MemoryError):
                raise
            raise SubbandError(f"{self._path}: the data cannot be read: {error}. {_COPY}") from None
        if self._pols is not None:
            values = values[..., self._pols]
        if values.dtype.names:  # pairs of integers
            values = values["r"] + np.complex64(1j) * values["i"]
        return np.ascontiguousarray(values, _READ_AS[name])

    def full_samples(self) -> float:
        """Largest sample count; 0 when there is none."""
        step = max(1, _VALUES_AT_ONCE // max(1, np.prod(self._cell)))
        largest = (
            np.nanmax(self._rows("nsamples", r, min(r + step, self._nrow)), initial=0)
            for r in range(0, self._nrow, step)
        )
        return float(max(largest, default=0))

    def read(
        self, first: int, last: int, nbaseline: int, places: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Visibilities, flags and sample counts of a group's rows [first, last), each (row,
        channel, polarisation).

        places  which of the file's integrations is each of the group's, (ntime,); -1: the file
                lacks it, no samples
        """
        times = np.arange(first // nbaseline, -(-last // nbaseline))
        begin = places[times[0]] * nbaseline + first % nbaseline
        if (
            np.array_equal(places[times], places[times[0]] + np.arange(len(times)))
            and places[times[0]] >= 0
        ):
            return tuple(self._rows(name, begin, begin + last - first) for name in _DATA)
        whole = {
            name: np.zeros((last - first, *self._cell), dtype) for name, dtype in _READ_AS.items()
        }
        for t in times[places[times] >= 0]:
            start, stop = max(first, t * nbaseline), min(last, (t + 1) * nbaseline)
            shift = (places[t] - t) * nbaseline
            for name, values in whole.items():
                values[start - first : stop - first] = self._rows(name, start + shift, stop + shift)
        return tuple(whole.values())


@contextmanager
def opened_data(path: Path) -> Iterator[SubbandData]:
    """The data of a subband file; what is wrong with them is a SubbandError that names it."""
    with open_subband(path) as file:
        with _naming(path):
            data = SubbandData(path, file)
        yield data
