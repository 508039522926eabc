"""Measurement Sets with python-casacore: one spectral window, one field, rows in order of time and
baseline.

The only module that knows columns, data managers and subtables. Arrays are (row, channel,
polarisation), or with `grid` (time, baseline, channel, polarisation).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import casacore.tables as ct
import numpy as np

from contimg.config import uv_limits
from contimg.errors import ProductError, ValidationError
from contimg.paths import CHANGING_MARK
from contimg.sky.geometry import SITE_ITRF_M, SPEED_OF_LIGHT_M_S
from contimg.store.files import flush, set_mark
from contimg.telescope import TELESCOPE

DAY_S = 86400.0
SPECTRUM_COLUMNS = {"DATA": np.complex64, "FLAG": np.bool_, "WEIGHT_SPECTRUM": np.float32}
_TILE_BYTES = 1 << 20
_DATA_BYTES = 8
_ROW_TILE = 16384
_STOKES_XX, _STOKES_YY = 9, 12
_ZERO = np.zeros(1, np.int32)


@dataclass(frozen=True)
class Observation:
    """What the subtables say."""

    phase_centre_deg: tuple[float, float]  # ICRS
    freq_hz: np.ndarray  # (nchan,) ascending
    channel_width_hz: float
    antenna_names: tuple[str, ...]
    positions_m: np.ndarray  # (nant, 3) ITRF offsets from the Tee centre
    diameters_m: np.ndarray
    telescope_name: str
    time_range_mjd: tuple[float, float]  # start of the first and end of the last integration
    field_name: str


@dataclass(frozen=True)
class Rows:
    """What the main table says about its rows; every integration has the same baselines."""

    time_mjd: np.ndarray  # (ntime,) UTC
    integration_s: float
    ant_1: np.ndarray  # (nbaseline,), ant_1 <= ant_2
    ant_2: np.ndarray
    uvw_m: np.ndarray  # (ntime, nbaseline, 3)

    @property
    def shape(self) -> tuple[int, int]:
        """(ntime, nbaseline)."""
        return self.uvw_m.shape[:2]


@contextmanager
def open_table(path: Path | str, readonly: bool = True) -> Iterator[ct.table]:
    """A casacore table, closed at the end whatever happens."""
    try:
        table = ct.table(str(path), readonly=readonly, ack=False, lockoptions="auto")
    except RuntimeError as error:
        raise ProductError(f"{path}: not readable as a table: {error}") from None
    try:
        yield table
    finally:
        table.close()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Columns of a Measurement Set change in place: a mark in its folder says so until they are on
    disk.

    One that is found with its mark (its process was killed, or the power failed) is not trusted:
    the group is converted again.
    """
    mark = path / CHANGING_MARK
    since_ns = time.time_ns()
    set_mark(mark)
    yield
    versions = Path(f"{path}.flagversions")
    for folder in (path, versions) if versions.exists() else (path,):
        flush(folder, since_ns)
    mark.unlink()


def require_whole(path: Path) -> None:
    """Raise ProductError for a Measurement Set of which somebody changed columns when the process
    ended."""
    if (path / CHANGING_MARK).exists():
        raise ProductError(
            f"{path}: a stage was killed while it wrote into it. The next run converts the group "
            "again."
        )


def _tiled_column(name: str, shape: list[int], tile: list[int]) -> tuple[dict, dict]:
    """Description and data manager of a tiled column of fixed cell shape; `shape` and `tile` as
    (channel, pol), (3,)."""
    valuetype = {
        "FLAG": "boolean",
        "WEIGHT_SPECTRUM": "float",
        "WEIGHT": "float",
        "SIGMA": "float",
        "UVW": "double",
    }
    description = {
        "valueType": valuetype.get(name, "complex"),
        "ndim": len(shape),
        "shape": shape,
        "_c_order": True,
        "option": 5,
        "maxlen": 0,
        "dataManagerType": "TiledColumnStMan",
        "dataManagerGroup": f"Tiled_{name}",
        "comment": "",
        "keywords": {},
    }
    if name == "UVW":
        description["keywords"] = {
            "QuantumUnits": ["m"] * 3,
            "MEASINFO": {"type": "uvw", "Ref": "ICRS"},
        }
    # Without COLUMNS casacore takes no notice of the tile shape.
    spec = {"DEFAULTTILESHAPE": np.array(tile[::-1], np.int32)}
    return {name: description}, {
        "TYPE": "TiledColumnStMan",
        "NAME": f"Tiled_{name}",
        "COLUMNS": [name],
        "SPEC": spec,
    }


def tile_rows(nbaseline: int, chan_tile: int, npol: int = 2) -> int:
    """Rows in a tile of `chan_tile` channels, so that one of DATA has about 1 MiB: a whole part of
    an integration, or whole integrations, where that is possible."""
    per_integration = max(1, nbaseline * chan_tile * npol * _DATA_BYTES)
    if per_integration > _TILE_BYTES:
        return -(-nbaseline // -(-per_integration // _TILE_BYTES))
    return max(1, nbaseline) * (_TILE_BYTES // per_integration)


@contextmanager
def creating(
    path: Path, observation: Observation, rows: Rows, chan_tile: int
) -> Iterator[ct.table]:
    """A new Measurement Set with all rows and subtables; its main table, open for SPECTRUM_COLUMNS,
    to be filled.

    Fill them tile after tile, rows outside, channels inside: casacore then writes each tile once,
    and zeros none.

    chan_tile  channels in a tile: those of a subband, so that concatenation writes whole tiles
    """
    nchan, npol = len(observation.freq_hz), 2
    tile = [tile_rows(rows.shape[1], chan_tile), chan_tile, npol]
    columns = [_tiled_column(name, [nchan, npol], tile) for name in SPECTRUM_COLUMNS]
    columns += [
        _tiled_column(name, [n], [_ROW_TILE, n])
        for name, n in (("UVW", 3), ("WEIGHT", npol), ("SIGMA", npol))
    ]
    description = {key: value for column, _ in columns for key, value in column.items()}
    managers = {f"*{i + 1}": manager for i, (_, manager) in enumerate(columns)}
    table = ct.default_ms(str(path), description, managers)
    try:
        _fill_rows(table, observation, rows)
        _fill_subtables(table, observation)
        yield table
    finally:
        table.close()


def put_row_weights(table: ct.table, weight: np.ndarray) -> None:
    """WEIGHT (row, polarisation), and SIGMA to go with it, which describes DATA and keeps the share
    of samples of a row for good (preparation.weigh)."""
    table.putcol("WEIGHT", weight.astype(np.float32))
    table.putcol(
        "SIGMA", np.where(weight > 0, 1 / np.sqrt(np.maximum(weight, 1e-30)), 0).astype(np.float32)
    )


def _fill_rows(table: ct.table, observation: Observation, rows: Rows) -> None:
    ntime, nbaseline = rows.shape
    nrow = ntime * nbaseline
    table.addrows(nrow)
    time_s = np.repeat(rows.time_mjd * DAY_S, nbaseline)
    table.putcol("UVW", rows.uvw_m.reshape(nrow, 3))
    table.putcol("TIME", time_s)
    table.putcol("TIME_CENTROID", time_s)
    table.putcol("ANTENNA1", np.tile(rows.ant_1, ntime).astype(np.int32))
    table.putcol("ANTENNA2", np.tile(rows.ant_2, ntime).astype(np.int32))
    table.putcol("INTERVAL", np.full(nrow, rows.integration_s))
    table.putcol("EXPOSURE", np.full(nrow, rows.integration_s))
    table.putcol("SCAN_NUMBER", np.ones(nrow, np.int32))
    for name in (
        "DATA_DESC_ID",
        "FIELD_ID",
        "ARRAY_ID",
        "OBSERVATION_ID",
        "PROCESSOR_ID",
        "STATE_ID",
        "FEED1",
        "FEED2",
    ):
        table.putcol(name, np.zeros(nrow, np.int32))


def _opened_subtable(table: ct.table, name: str):
    return open_table(table.getkeyword(name).removeprefix("Table: "), readonly=False)


def _subtable(table: ct.table, name: str, nrow: int, **columns) -> None:
    with _opened_subtable(table, name) as sub:
        sub.addrows(nrow)
        for column, value in columns.items():
            sub.putcol(column, value)
            if column.endswith("_DIR") or column == "DIRECTION":
                sub.putcolkeyword(column, "MEASINFO", {"type": "direction", "Ref": "ICRS"})


def _fill_subtables(table: ct.table, observation: Observation) -> None:
    """One row each, but for the antennas and their feeds."""
    _fill_antennas(table, observation)
    _fill_field(table, observation)
    _fill_spectrum(table, observation)
    _fill_session(table, observation)
    _fill_source(table, observation)
    # pyuvdata's own column: without it, it asks a network where the telescope is
    place = ct.makearrcoldesc("TELESCOPE_LOCATION", 0.0, shape=[3], valuetype="double")
    with _opened_subtable(table, "OBSERVATION") as sub:
        sub.addcols(ct.maketabdesc([place]))
        sub.putcol("TELESCOPE_LOCATION", SITE_ITRF_M[None])


def _fill_source(table: ct.table, observation: Observation) -> None:
    """The phase centre, as the one source."""
    path = f"{table.name()}/SOURCE"
    ct.default_ms_subtable("SOURCE", path).close()
    table.putkeyword("SOURCE", f"Table: {path}")
    start_s, end_s = (mjd * DAY_S for mjd in observation.time_range_mjd)
    _subtable(
        table,
        "SOURCE",
        1,
        SOURCE_ID=_ZERO,
        TIME=np.array([(start_s + end_s) / 2]),
        INTERVAL=np.array([end_s - start_s]),
        SPECTRAL_WINDOW_ID=np.array([-1], np.int32),
        NUM_LINES=_ZERO,
        NAME=[observation.field_name],
        CALIBRATION_GROUP=_ZERO,
        CODE=[""],
        DIRECTION=np.radians(observation.phase_centre_deg)[None],
        PROPER_MOTION=np.zeros((1, 2)),
    )


def _fill_antennas(table: ct.table, observation: Observation) -> None:
    nant = len(observation.antenna_names)
    _subtable(
        table,
        "ANTENNA",
        nant,
        NAME=list(observation.antenna_names),
        STATION=[f"{TELESCOPE.station_prefix}{n}" for n in observation.antenna_names],
        TYPE=["GROUND-BASED"] * nant,
        MOUNT=["ALT-AZ"] * nant,
        POSITION=SITE_ITRF_M + observation.positions_m,
        OFFSET=np.zeros((nant, 3)),
        DISH_DIAMETER=observation.diameters_m,
        FLAG_ROW=np.zeros(nant, bool),
    )
    _subtable(
        table,
        "FEED",
        nant,
        ANTENNA_ID=np.arange(nant, dtype=np.int32),
        FEED_ID=np.zeros(nant, np.int32),
        SPECTRAL_WINDOW_ID=np.full(nant, -1, np.int32),
        TIME=np.full(nant, np.mean(observation.time_range_mjd) * DAY_S),
        INTERVAL=np.full(nant, 0.0),
        NUM_RECEPTORS=np.full(nant, 2, np.int32),
        BEAM_ID=np.full(nant, -1, np.int32),
        BEAM_OFFSET=np.zeros((nant, 2, 2)),
        POLARIZATION_TYPE={"shape": [nant, 2], "array": ["X", "Y"] * nant},
        POL_RESPONSE=np.tile(np.eye(2, dtype=np.complex64), (nant, 1, 1)),
        POSITION=np.zeros((nant, 3)),
        RECEPTOR_ANGLE=np.zeros((nant, 2)),
    )


def _fill_field(table: ct.table, observation: Observation) -> None:
    direction = np.radians(observation.phase_centre_deg)[None, None]
    _subtable(
        table,
        "FIELD",
        1,
        NAME=[observation.field_name],
        CODE=[""],
        TIME=np.array([observation.time_range_mjd[0] * DAY_S]),
        NUM_POLY=_ZERO,
        SOURCE_ID=_ZERO,
        DELAY_DIR=direction,
        PHASE_DIR=direction,
        REFERENCE_DIR=direction,
        FLAG_ROW=np.zeros(1, bool),
    )


def _fill_spectrum(table: ct.table, observation: Observation) -> None:
    nchan = len(observation.freq_hz)
    width = np.full((1, nchan), observation.channel_width_hz)
    _subtable(
        table,
        "SPECTRAL_WINDOW",
        1,
        NAME=["full band"],
        NUM_CHAN=np.array([nchan], np.int32),
        REF_FREQUENCY=observation.freq_hz[:1],
        CHAN_FREQ=observation.freq_hz[None],
        CHAN_WIDTH=width,
        EFFECTIVE_BW=width,
        RESOLUTION=width,
        TOTAL_BANDWIDTH=np.array([nchan * observation.channel_width_hz]),
        MEAS_FREQ_REF=np.array([5], np.int32),
        NET_SIDEBAND=np.ones(1, np.int32),
        IF_CONV_CHAIN=_ZERO,
        FREQ_GROUP=_ZERO,
        FREQ_GROUP_NAME=[""],
        FLAG_ROW=np.zeros(1, bool),
    )
    _subtable(
        table,
        "POLARIZATION",
        1,
        NUM_CORR=np.array([2], np.int32),
        CORR_TYPE=np.array([[_STOKES_XX, _STOKES_YY]], np.int32),
        CORR_PRODUCT=np.array([[[0, 0], [1, 1]]], np.int32),
        FLAG_ROW=np.zeros(1, bool),
    )
    _subtable(
        table,
        "DATA_DESCRIPTION",
        1,
        SPECTRAL_WINDOW_ID=_ZERO,
        POLARIZATION_ID=_ZERO,
        FLAG_ROW=np.zeros(1, bool),
    )


def _fill_session(table: ct.table, observation: Observation) -> None:
    start_s, end_s = (mjd * DAY_S for mjd in observation.time_range_mjd)
    _subtable(
        table,
        "OBSERVATION",
        1,
        TELESCOPE_NAME=[observation.telescope_name],
        OBSERVER=[TELESCOPE.name],
        PROJECT=["drift scan"],
        TIME_RANGE=np.array([[start_s, end_s]]),
        RELEASE_DATE=np.array([end_s]),
        SCHEDULE_TYPE=[""],
        FLAG_ROW=np.zeros(1, bool),
    )
    _subtable(
        table,
        "STATE",
        1,
        SIG=np.ones(1, bool),
        REF=np.zeros(1, bool),
        CAL=np.zeros(1),
        LOAD=np.zeros(1),
        SUB_SCAN=_ZERO,
        OBS_MODE=["OBSERVE_TARGET#ON_SOURCE"],
        FLAG_ROW=np.zeros(1, bool),
    )
    _subtable(
        table,
        "PROCESSOR",
        1,
        TYPE=["CORRELATOR"],
        SUB_TYPE=[TELESCOPE.name],
        TYPE_ID=_ZERO,
        MODE_ID=_ZERO,
        FLAG_ROW=np.zeros(1, bool),
    )


def _add_column(table: ct.table, name: str) -> None:
    """Add MODEL_DATA or CORRECTED_DATA, stored like DATA."""
    nchan, npol = table.getcell("DATA", 0).shape
    tile = next(iter(table.getdminfo("DATA")["SPEC"]["HYPERCUBES"].values()))["TileShape"]
    table.addcols(*_tiled_column(name, [nchan, npol], tile[::-1]))
    # CASA's imaging tasks want the channel selection keyword on MODEL_DATA.
    table.putcolkeyword(name, "CHANNEL_SELECTION", np.array([[0, nchan]], np.int32))


def ensure_column(path: Path, name: str) -> None:
    """Add MODEL_DATA or CORRECTED_DATA if the Measurement Set has none."""
    with changing(path), open_table(path, readonly=False) as table:
        if name not in table.colnames():
            _add_column(table, name)


def read_observation(path: Path) -> Observation:
    """What the subtables say."""
    with open_table(f"{path}::SPECTRAL_WINDOW") as spw, open_table(f"{path}::ANTENNA") as antenna:
        if spw.nrows() != 1:
            raise ValidationError(f"{path}: expected 1 spectral window, found {spw.nrows()}")
        freq_hz, width = spw.getcol("CHAN_FREQ")[0], float(spw.getcol("CHAN_WIDTH")[0, 0])
        names, positions = tuple(antenna.getcol("NAME")), antenna.getcol("POSITION")
        diameters = antenna.getcol("DISH_DIAMETER")
    with open_table(f"{path}::FIELD") as field, open_table(f"{path}::OBSERVATION") as observation:
        if field.nrows() != 1:
            raise ValidationError(f"{path}: expected 1 field, found {field.nrows()}")
        phase, reference = field.getcol("PHASE_DIR")[0, 0], field.getcol("REFERENCE_DIR")[0, 0]
        if not np.array_equal(phase, reference):
            raise ValidationError(f"{path}: PHASE_DIR {phase} and REFERENCE_DIR {reference} differ")
        start_s, end_s = observation.getcol("TIME_RANGE")[0]
        return Observation(
            phase_centre_deg=(float(np.degrees(phase[0]) % 360), float(np.degrees(phase[1]))),
            freq_hz=freq_hz,
            channel_width_hz=width,
            antenna_names=names,
            positions_m=positions - SITE_ITRF_M,
            diameters_m=diameters,
            telescope_name=observation.getcol("TELESCOPE_NAME")[0],
            time_range_mjd=(start_s / DAY_S, end_s / DAY_S),
            field_name=field.getcol("NAME")[0],
        )


def read_rows(path: Path) -> Rows:
    """What the main table says about its rows; raises ValidationError unless they are times x
    baselines."""
    with open_table(path) as table:
        time_s, ant_1, ant_2 = (table.getcol(c) for c in ("TIME", "ANTENNA1", "ANTENNA2"))
        uvw, interval = table.getcol("UVW"), float(table.getcell("INTERVAL", 0))
    ntime = len(np.unique(time_s))
    if len(time_s) % ntime:
        raise ValidationError(f"{path}: {len(time_s)} rows are no multiple of {ntime} integrations")
    grid = [a.reshape(ntime, -1) for a in (time_s, ant_1, ant_2)]
    if (
        np.ptp(grid[0], axis=1).any()
        or np.ptp(grid[1], axis=0).any()
        or np.ptp(grid[2], axis=0).any()
    ):
        raise ValidationError(f"{path}: rows are not in order of time and baseline")
    return Rows(grid[0][:, 0] / DAY_S, interval, grid[1][0], grid[2][0], uvw.reshape(ntime, -1, 3))


def read_grid(path: Path, column: str, ntime: int) -> np.ndarray:
    """A column as (time, baseline, ...)."""
    with open_table(path) as table:
        cell = np.asarray(table.getcell(column, 0))
        values = np.empty((table.nrows(), *cell.shape), cell.dtype)
        table.getcolnp(column, values)  # getcol would hold all of it twice
    return values.reshape(ntime, -1, *cell.shape)


def read_rows_of(path: Path, column: str, rows: np.ndarray) -> np.ndarray:
    """Some rows of a column, by their numbers."""
    with open_table(path) as table:
        return table.selectrows(rows).getcol(column)


def outside(uvrange: str | None, uvw_m: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
    """Which rows (ntime, nbaseline) are outside CASA's `uvrange`: '>0.1klambda', '<1km', '50~2000m'
    (middle of the band)."""
    if not uvrange:
        return np.zeros(uvw_m.shape[:2], bool)
    shortest, longest, in_lambda = uv_limits(uvrange)
    length = np.hypot(uvw_m[..., 0], uvw_m[..., 1])
    if in_lambda:
        length = length * freq_hz.mean() / SPEED_OF_LIGHT_M_S
    return (length < shortest) | (length > longest)


def write_columns(path: Path, **columns: np.ndarray) -> None:
    """Write whole columns, given by rows or by (time, baseline); MODEL_DATA and CORRECTED_DATA are
    added if need be."""
    with changing(path), open_table(path, readonly=False) as table:
        nrow = table.nrows()
        for name, values in columns.items():
            if name not in table.colnames():
                # filled before the table is closed, which would write zeros
                _add_column(table, name)
            cell = table.getcell(name, 0).shape
            table.putcol(name, np.ascontiguousarray(values).reshape(nrow, *cell))


def read_row_weights(path: Path) -> np.ndarray:
    """WEIGHT, (row, polarisation)."""
    with open_table(path) as table:
        return table.getcol("WEIGHT") if table.nrows() else np.zeros((0, 2), np.float32)
