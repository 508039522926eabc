"""Reading the correlator's UVH5 subband files (format: FACTS.md, and docs/conventions.md)."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np

from contimg.errors import SubbandError
from contimg.geometry import TEE_LONGITUDE_RAD

JD_MINUS_MJD = 2400000.5
POLARIZATIONS = (-5, -6)  # XX, YY
_TELESCOPES = ("OVRO_MMA", "DSA_110", "DSA-110", "DSA110")
_NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)_sb(\d\d)\.hdf5")


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


def parse_name(name: str) -> tuple[str, int] | None:
    """(timestamp, subband) of a file name, or None when it is no finished subband file."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    try:
        datetime.fromisoformat(match.group(1))
    except ValueError:  # 30 February
        return None
    return match.group(1), int(match.group(2))


def open_subband(path: Path) -> h5py.File:
    """Open a file for reading; a SubbandError says in an operator's words why it cannot be."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise SubbandError(f"{path}: the file is empty (0 bytes). Copy it again, or remove it.")
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise SubbandError(f"{path}: the file is not there any more. Copy it again.") from None
    except OSError as error:
        match = re.search(r"eof = (\d+).*stored_eof = (\d+)", str(error))
        if match:
            found, expected = (int(x) / 1e6 for x in match.groups())
            raise SubbandError(
                f"{path}: truncated ({found:.1f} of {expected:.1f} MB). Copy it again, or remove it."
            ) from None
        raise SubbandError(f"{path}: not readable as HDF5 ({error}). Copy it again, or remove it.") from None


def read_header(path: Path) -> SubbandHeader:
    """Header of a subband file, checked; raises SubbandError naming the file, what was expected and what was found."""
    with open_subband(path) as file:
        try:
            header, data = file["Header"], file["Data"]
            nblts, nbls, ntimes = (int(header[k][()]) for k in ("Nblts", "Nbls", "Ntimes"))
            nfreqs, npols = int(header["Nfreqs"][()]), int(header["Npols"][()])
            shape = (nblts, 1, nfreqs, npols)
            shapes = {k: data[k].shape for k in ("visdata", "flags", "nsamples")}
            telescope = header["telescope_name"].asstr()[()]
            polarizations = tuple(header["polarization_array"][:])
            time = header["time_array"][:] - JD_MINUS_MJD
            ant_1, ant_2 = header["ant_1_array"][:], header["ant_2_array"][:]
            dec = float(header["phase_center_app_dec"][()])
            values = {
                "freq_hz": header["freq_array"][:].reshape(-1),
                "channel_width_hz": float(np.abs(np.ravel(header["channel_width"][()])).max()),
                "antenna_names": tuple(n.decode() for n in header["antenna_names"][:]),
                "antenna_numbers": header["antenna_numbers"][:],
                "positions_m": header["antenna_positions"][:],
                "integration_s": float(np.ravel(header["integration_time"][()])[0]),
                "diameters_m": np.broadcast_to(
                    header["antenna_diameters"][()] if "antenna_diameters" in header else 4.65,
                    header["antenna_numbers"].shape,
                ).astype(float),
            }
            longitude = np.radians(float(header["longitude"][()]))
        except (KeyError, OSError, ValueError) as error:
            raise SubbandError(f"{path}: not a UVH5 subband file of this telescope: {error}") from None
    problems = [f"{k} has shape {s}, expected {shape}" for k, s in shapes.items() if s != shape]
    if telescope not in _TELESCOPES:
        problems.append(f"telescope {telescope!r}, expected one of {_TELESCOPES}")
    if abs(longitude - TEE_LONGITUDE_RAD) > 1e-6:
        problems.append(f"longitude {np.degrees(longitude):.5f} deg, expected {np.degrees(TEE_LONGITUDE_RAD):.5f}")
    if polarizations != POLARIZATIONS:
        problems.append(f"polarisations {polarizations}, expected {POLARIZATIONS} (XX, YY)")
    if nblts != nbls * ntimes or len(time) != nblts:
        problems.append(f"{nblts} rows, expected {ntimes} times x {nbls} baselines")
    elif np.ptp(time.reshape(ntimes, nbls), axis=1).max() > 0:
        problems.append("rows are not in order of time")
    elif (ant_1.reshape(ntimes, nbls) != ant_1[:nbls]).any() or (ant_2.reshape(ntimes, nbls) != ant_2[:nbls]).any():
        problems.append("baselines differ between integrations")
    if not np.isfinite(dec) or abs(dec) > np.pi / 2:
        problems.append(f"declination {dec} rad")
    if problems:
        raise SubbandError(f"{path}: {'; '.join(problems)}. Remove it, or copy it again.")
    return SubbandHeader(
        path=path, time_mjd=time[::nbls].copy(), app_dec_rad=dec, ant_1=ant_1[:nbls], ant_2=ant_2[:nbls], **values
    )


def read_pointing(path: Path) -> tuple[float, float]:
    """(mid time as UTC MJD, apparent declination in deg) of a file: the little that planning needs."""
    with open_subband(path) as file:
        try:
            header = file["Header"]
            time = header["time_array"]
            mid = 0.5 * (float(time[0]) + float(time[-1])) - JD_MINUS_MJD
            return mid, float(np.degrees(header["phase_center_app_dec"][()]))
        except (KeyError, OSError, ValueError, IndexError) as error:
            raise SubbandError(f"{path}: not a UVH5 subband file of this telescope: {error}") from None


def read_data(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Visibilities, flags and sample counts, each (nrow, nchan, npol), in the file's order."""
    with open_subband(path) as file:
        try:
            data = file["Data"]
            return data["visdata"][:, 0], data["flags"][:, 0], data["nsamples"][:, 0]
        except (KeyError, OSError) as error:
            raise SubbandError(f"{path}: the data cannot be read: {error}. Copy it again, or remove it.") from None
