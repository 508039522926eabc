"""Simulated observations in the telescope's own file format, for the demo and the tests.

This module shares no code with the pipeline's geometry, beam, reader or predictor: an error made in
both would cancel. Directions are exact astropy coordinates (ICRS to hour angle and declination, at
every integration), the delays are plain dot products of station positions with them, and
visibilities are sums over sources.

Conventions (FACTS: one UVH5 file): V_ij = <conj(E_i) E_j> = sum_s S exp(+2 pi i nu (r_j - r_i).(k_s
- k_m) / c), where k_m is the tracked direction: the meridian (hour angle 0) at the apparent
declination of the pointing, in every integration. Gains: V_ij <- conj(g_i) g_j V_ij.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import pandas as pd
from astropy.coordinates import ICRS, EarthLocation, HADec, SkyCoord
from astropy.time import Time, TimeDelta
from astropy.utils import iers
from scipy.special import j1

iers.conf.auto_download, iers.conf.auto_max_age = False, None
SPEED_OF_LIGHT = 299792458.0
TEE_LATITUDE_RAD = 0.6498455107238486
TEE_LONGITUDE_RAD = -2.064427799136453
TEE_HEIGHT_M = 1188.0519
DISH_M = 4.65
BAND_HZ = (1311.25e6, 1498.75e6)
INTEGRATION_S = 12.884902
FINE_CHANNEL_HZ = 244140.625
# rms of real and of imaginary part: one polarisation, baseline, fine channel and integration
NOISE_JY = 2.59
REFERENCE_HZ = 1.4e9
# ICRS, and apparent flux in the sidelobes: as they were once seen.
FAR_SOURCES = {"Cas A": (350.866, 58.815, 6.0), "Cyg A": (299.868, 40.734, 5.0)}
OUT_OF_ORDER = (100, 114)  # antenna numbers (stations 101 and 115) that the correlator lists early


@dataclass(frozen=True)
class Simulation:
    """What to observe and what is wrong with it. The same values always give the same files."""

    start: str  # UTC, opening time of the group
    dec_deg: float = 16.15  # apparent declination of the pointing
    antennas: int = 48  # of those active in the station list
    stations: tuple[int, ...] = ()  # these stations, by name, instead of a number of antennas
    channels: int = 12  # per subband
    subbands: int = 16
    integrations: int = 24
    noise_jy: float = NOISE_JY
    gain_seed: int = 1  # the same seed: the same antenna gains
    seed: int = 1  # noise and file-name skew
    scale: float = 0.0045  # correlator units per Jy
    skew_s: float = 30.0  # spread of the file names of a group
    rfi: bool = False
    dead: tuple[int, ...] = ()  # station names of antennas that see noise only
    missing: tuple[int, ...] = ()  # subbands that were never written
    truncated: tuple[int, ...] = ()  # subbands cut off in the middle
    without: tuple[str, ...] = ()  # sources, by name, that are not in the sky
    sefd_scatter: float = 0.0  # of ln(noise) among the receivers
    far: tuple[str, ...] = ()  # sources of FAR_SOURCES in the dishes' far sidelobes


def tee() -> EarthLocation:
    """Reference point of the array."""
    return EarthLocation.from_geodetic(
        TEE_LONGITUDE_RAD * u.rad, TEE_LATITUDE_RAD * u.rad, TEE_HEIGHT_M * u.m
    )


def read_sky(catalogue: Path, calibrators: Path) -> list[dict]:
    """Catalogue sources; one within 10 arcsec of a listed calibrator takes that one's position and
    name."""
    sky = pd.read_csv(catalogue)
    listed = pd.read_csv(calibrators)
    positions = SkyCoord(sky.ra_deg.values * u.deg, sky.dec_deg.values * u.deg)
    index, separation, _ = positions.match_to_catalog_sky(
        SkyCoord(listed.ra_deg.values * u.deg, listed.dec_deg.values * u.deg)
    )
    sources = []
    for row, match, away in zip(sky.itertuples(), index, separation.arcsec, strict=True):
        near = listed.iloc[match] if away < 10 else None
        sources.append(
            {
                "name": row.name if near is None else near["name"],
                "ra": float(row.ra_deg if near is None else near.ra_deg),
                "dec": float(row.dec_deg if near is None else near.dec_deg),
                "flux": float(row.flux_jy),
                "alpha": -0.7,
            }
        )
    return sources


def station_positions(stations: Path) -> tuple[np.ndarray, np.ndarray]:
    """ITRF offsets from the Tee centre (nstation, 3) in m, and which stations are active."""
    table = pd.read_csv(stations)
    where = EarthLocation.from_geodetic(
        table.longitude_deg.values * u.deg,
        table.latitude_deg.values * u.deg,
        table.height_m.values * u.m,
    )
    centre = tee()
    offsets = [(getattr(where, axis) - getattr(centre, axis)).to_value(u.m) for axis in "xyz"]
    return np.stack(offsets, axis=1), table.active_2026_01.values == 1


def choose_antennas(active: np.ndarray, count: int, stations: tuple[int, ...] = ()) -> np.ndarray:
    """Antenna numbers (station name - 1) in the correlator's order: `stations`, or `count` spread
    over the active ones."""
    numbers = np.array(sorted(stations)) - 1 if stations else np.flatnonzero(active)
    if not stations:
        if not 4 <= count <= len(numbers):
            raise ValueError(f"antennas: expected 4 to {len(numbers)}, found {count}")
        rest = np.setdiff1d(numbers, OUT_OF_ORDER)
        spread = rest[np.linspace(0, len(rest) - 1, count - len(OUT_OF_ORDER)).round().astype(int)]
        numbers = np.union1d(spread, OUT_OF_ORDER)
    early = [n for n in OUT_OF_ORDER if n in numbers]
    rest = [int(n) for n in numbers if n not in early]
    return np.array(rest[:3] + early + rest[3:])


def antenna_gains(sim: Simulation, stations: int, freq_hz: np.ndarray) -> np.ndarray:
    """Complex gains (nstation, nchan, 2): amplitude, phase, delay and a bandpass ripple; constant
    in time."""
    rng = np.random.default_rng(sim.gain_seed)
    shape = (stations, 1, 2)
    x = ((freq_hz - BAND_HZ[0]) / (BAND_HZ[1] - BAND_HZ[0]))[None, :, None]
    delay_s = rng.normal(0, 3e-9, shape)
    phase = (
        rng.uniform(-np.pi, np.pi, shape)
        + 2 * np.pi * delay_s * (freq_hz - freq_hz.mean())[None, :, None]
    )
    ripple = 0.05 * np.cos(2 * np.pi * (rng.uniform(1, 4, shape) * x + rng.uniform(0, 1, shape)))
    slope = rng.normal(0, 0.1, shape) * (x - 0.5)
    return rng.lognormal(0, 0.08, shape) * (1 + ripple + slope) * np.exp(1j * phase)


def _unit_vectors(hour_angle_rad: np.ndarray, dec_rad: np.ndarray) -> np.ndarray:
    """Directions in the frame (meridian, east, north pole)."""
    return np.stack(
        [
            np.cos(dec_rad) * np.cos(hour_angle_rad),
            -np.cos(dec_rad) * np.sin(hour_angle_rad),
            np.sin(dec_rad) * np.ones_like(hour_angle_rad),
        ],
        axis=-1,
    )


def _airy_power(angle_rad: np.ndarray, freq_hz: np.ndarray) -> np.ndarray:
    """Response (nangle, nchan) of a uniformly lit dish."""
    x = np.pi * DISH_M * np.sin(angle_rad)[:, None] * freq_hz / SPEED_OF_LIGHT
    x = np.maximum(x, 1e-9)
    return (2 * j1(x) / x) ** 2


def _visibilities(sim, positions_m, numbers, times, freq_hz, sources):
    """Sky visibilities of one group, an integration at a time: yields (nchan, nant, nant), [c, i,
    j] = V_ij."""
    lon = TEE_LONGITUDE_RAD
    turn = np.array([[np.cos(lon), np.sin(lon), 0], [-np.sin(lon), np.cos(lon), 0], [0, 0, 1]])
    antennas_m = positions_m[numbers] @ turn.T
    sky = SkyCoord(
        [s["ra"] for s in sources] * u.deg, [s["dec"] for s in sources] * u.deg, frame=ICRS()
    )
    tracked = _unit_vectors(np.zeros(1), np.radians(sim.dec_deg))[0]
    spectra = np.array([s["flux"] for s in sources])[:, None] * (
        freq_hz / REFERENCE_HZ
    ) ** np.array([s["alpha"] for s in sources]).reshape(-1, 1)
    for time in times:
        seen = sky.transform_to(HADec(obstime=time, location=tee()))
        directions = _unit_vectors(seen.ha.rad, seen.dec.rad)
        apparent = spectra * _airy_power(np.arccos(np.clip(directions @ tracked, -1, 1)), freq_hz)
        path_m = antennas_m @ (directions - tracked).T  # (nant, nsource)
        cycles = path_m.T[None] * (freq_hz / SPEED_OF_LIGHT)[:, None, None]
        fields = np.exp(2j * np.pi * cycles).astype(np.complex64)  # (nchan, nsource, nant)
        yield np.conj(fields).transpose(0, 2, 1) @ (
            fields * apparent.T[:, :, None].astype(np.float32)
        )


def _far_visibilities(sim, positions_m, numbers, time, freq_hz, width_hz):
    """Visibilities (nchan, nant, nant) of sources in the far sidelobes, [c, i, j] = V_ij: their
    fringes turn while the correlator, which tracks the meridian, averages over an integration and a
    channel."""
    lon = TEE_LONGITUDE_RAD
    turn = np.array([[np.cos(lon), np.sin(lon), 0], [-np.sin(lon), np.cos(lon), 0], [0, 0, 1]])
    antennas_m = positions_m[numbers] @ turn.T
    baselines_m = antennas_m[None] - antennas_m[:, None]  # [i, j] = r_j - r_i
    tracked = _unit_vectors(np.zeros(1), np.radians(sim.dec_deg))[0]
    total = np.zeros((len(freq_hz), len(numbers), len(numbers)), complex)
    for name in sim.far:
        ra, dec, flux_jy = FAR_SOURCES[name]
        seen = SkyCoord(ra * u.deg, dec * u.deg, frame=ICRS()).transform_to(
            HADec(obstime=time, location=tee())
        )
        away = _unit_vectors(np.array([seen.ha.rad]), np.array([seen.dec.rad]))[0] - tracked
        # the sky turns to the west: x to the meridian, y to the east
        pace = 7.2921159e-5 * np.array([away[1], -away[0], 0.0])
        delay_s, rate = baselines_m @ away / SPEED_OF_LIGHT, baselines_m @ pace / SPEED_OF_LIGHT
        smeared = np.sinc(delay_s * width_hz) * np.sinc(rate * freq_hz.mean() * INTEGRATION_S)
        total += flux_jy * smeared * np.exp(2j * np.pi * freq_hz[:, None, None] * delay_s)
    return total


def _add_rfi(rng, raw, amplitude):
    """Narrow-band carriers, a broad-band burst and a weak intermittent carrier in (ntime, nbl,
    nchan, npol)."""
    ntime, nbaseline, nchan, npol = raw.shape

    def carrier(*shape):
        return np.exp(2j * np.pi * rng.random(shape))

    narrow = rng.choice(nchan, max(1, nchan // 24), replace=False)
    raw[:, :, narrow] += 40 * amplitude * carrier(ntime, nbaseline, len(narrow), npol)
    burst = int(rng.integers(2, ntime - 2))
    raw[burst] += 10 * amplitude * carrier(nbaseline, nchan, npol)
    weak, on = int(rng.integers(nchan)), rng.random(ntime) < 0.4
    raw[on, :, weak] += 1.5 * amplitude * carrier(int(on.sum()), nbaseline, npol)
    return {
        "narrow_channels": sorted(map(int, narrow)),
        "burst_integration": burst,
        "weak_channel": weak,
        "weak_integrations": np.flatnonzero(on).tolist(),
    }


def simulate_group(
    folder: Path, sim: Simulation, sources: list[dict], stations: Path
) -> list[Path]:
    """Write the subband files of one group and `truth.<start>.json` into `folder`; returns the
    files' paths."""
    positions_m, active = station_positions(stations)
    numbers = choose_antennas(active, sim.antennas, sim.stations)
    absent = set(sim.dead) - set((numbers + 1).tolist())
    if absent:
        raise ValueError(
            f"dead stations {sorted(absent)} are not among those simulated: "
            f"{(numbers + 1).tolist()}"
        )
    nchan = sim.subbands * sim.channels
    width_hz = (BAND_HZ[1] - BAND_HZ[0]) / nchan
    freq_hz = BAND_HZ[1] - width_hz * (np.arange(nchan) + 0.5)  # descending, as in the files
    opened = Time(sim.start, scale="utc")
    times = opened + TimeDelta((np.arange(sim.integrations) + 0.5) * INTEGRATION_S, format="sec")
    centre = SkyCoord(
        HADec(ha=0 * u.deg, dec=sim.dec_deg * u.deg, obstime=times[len(times) // 2], location=tee())
    ).transform_to(ICRS())
    where = SkyCoord([s["ra"] for s in sources] * u.deg, [s["dec"] for s in sources] * u.deg)
    sources = [
        s for s, away in zip(sources, where.separation(centre).deg, strict=True) if away < 5.0
    ]
    sources = [s for s in sources if s["name"] not in sim.without]
    if not sources:
        raise ValueError(
            f"{sim.start}: no catalogue source within 5 deg of {centre.to_string('hmsdms')}"
        )

    order = [(i, j) for j in range(len(numbers)) for i in range(j + 1)]
    first, second = np.array(order).T
    autos = first == second
    noise_jy = sim.noise_jy * np.sqrt(FINE_CHANNEL_HZ / width_hz)
    rng = np.random.default_rng(sim.seed)
    gains = antenna_gains(sim, len(positions_m), freq_hz)[numbers]
    alive = ~np.isin(numbers + 1, sim.dead)
    raw = np.empty((sim.integrations, len(order), nchan, 2), np.complex64)
    for t, visibilities in enumerate(
        _visibilities(sim, positions_m, numbers, times, freq_hz, sources)
    ):
        if sim.far:
            visibilities = visibilities + _far_visibilities(
                sim, positions_m, numbers, times[t], freq_hz, width_hz
            )
        seen = visibilities[:, first, second].T * (alive[first] & alive[second])[:, None]
        raw[t] = seen[:, :, None]
    parts = rng.standard_normal((*raw.shape, 2), np.float32) * np.float32(noise_jy)
    receivers = np.exp(
        np.random.default_rng(sim.gain_seed + 1).normal(0, sim.sefd_scatter, len(numbers))
    ).astype(np.float32)
    raw += (
        parts.view(np.complex64)[..., 0]
        * np.sqrt(receivers[first] * receivers[second])[:, None, None]
    )
    raw[:, autos] = 60.0 + np.abs(raw[:, autos])  # total power: system and sky, real
    raw *= (sim.scale * np.conj(gains[first]) * gains[second]).astype(np.complex64)
    rfi = _add_rfi(rng, raw, sim.scale * noise_jy) if sim.rfi else None

    skew = (
        np.sort(rng.uniform(0, sim.skew_s, sim.subbands)).round()
        if sim.skew_s
        else np.zeros(sim.subbands)
    )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sb in range(sim.subbands):
        if sb in sim.missing:
            continue
        name = (opened + TimeDelta(skew[sb] - skew[0], format="sec")).isot[:19]
        path = folder / f"{name}_sb{sb:02d}.hdf5"
        channels = slice(sb * sim.channels, (sb + 1) * sim.channels)
        _write_uvh5(
            path,
            sim,
            positions_m,
            numbers,
            order,
            times,
            freq_hz[channels],
            width_hz,
            raw[:, :, channels],
        )
        if sb in sim.truncated:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        written.append(path)
    truth = {
        "simulation": asdict(sim),
        "centre": [centre.ra.deg, centre.dec.deg],
        "mid_mjd": float(np.mean(times.mjd)),
        "reference_hz": REFERENCE_HZ,
        "sources": sources,
        "rfi": rfi,
    }
    (folder / f"truth.{sim.start}.json").write_text(json.dumps(truth, indent=1))
    return written


def _write_uvh5(path, sim, positions_m, numbers, order, times, freq_hz, width_hz, raw):
    """One file as the correlator writes it; `raw` (ntime, nbl, nchan, 2)."""
    ntime, nbaseline, nchan, npol = raw.shape
    lon, dec = TEE_LONGITUDE_RAD, np.radians(sim.dec_deg)
    x = positions_m[:, 0] * np.cos(lon) + positions_m[:, 1] * np.sin(lon)
    y = -positions_m[:, 0] * np.sin(lon) + positions_m[:, 1] * np.cos(lon)
    z = positions_m[:, 2]
    meridian_uvw = np.stack(
        [y, np.cos(dec) * z - np.sin(dec) * x, np.cos(dec) * x + np.sin(dec) * z], axis=1
    )
    ant_1 = numbers[[i for i, _ in order]]
    ant_2 = numbers[[j for _, j in order]]
    nrow = ntime * nbaseline
    partial = path.with_name(path.name.replace(".hdf5", "_incomplete.hdf5"))
    with h5py.File(partial, "w") as file:
        header = file.create_group("Header")
        values = {
            "Nants_data": len(numbers),
            "Nants_telescope": len(positions_m),
            "Nbls": nbaseline,
            "Nblts": nrow,
            "Nfreqs": nchan,
            "Npols": npol,
            "Nspws": 1,
            "Ntimes": ntime,
            "altitude": TEE_HEIGHT_M,
            "latitude": np.degrees(TEE_LATITUDE_RAD),
            "longitude": np.degrees(TEE_LONGITUDE_RAD),
            "ant_1_array": np.tile(ant_1, ntime),
            "ant_2_array": np.tile(ant_2, ntime),
            "antenna_diameters": np.full(len(positions_m), DISH_M),
            "antenna_names": np.array([str(n + 1) for n in range(len(positions_m))], "S4"),
            "antenna_numbers": np.arange(len(positions_m)),
            "antenna_positions": positions_m,
            "channel_width": width_hz,
            "freq_array": freq_hz[None],
            "history": np.bytes_("contimg simulate"),
            "instrument": np.bytes_("DSA"),
            "object_name": np.bytes_("search"),
            "integration_time": np.full(nrow, INTEGRATION_S),
            "phase_center_app_dec": dec,
            "phase_type": np.bytes_("drift"),
            "polarization_array": np.array([-5, -6]),
            "spw_array": np.array([1]),
            "telescope_name": np.bytes_("OVRO_MMA"),
            "time_array": np.repeat(times.jd, nbaseline),
            "uvw_array": np.tile(
                (meridian_uvw[ant_2] - meridian_uvw[ant_1]).astype(np.float32), (ntime, 1)
            ),
        }
        for key, value in values.items():
            header[key] = value
        keywords = header.create_group("extra_keywords")
        keywords["ha_phase_center"] = 0.0
        keywords["phase_center_dec"] = dec
        keywords["phase_center_epoch"] = "HADEC"
        data = file.create_group("Data")
        shape = (nrow, 1, nchan, npol)
        chunks = (min(nrow, 4 * nbaseline), 1, nchan, npol)
        data.create_dataset("visdata", data=raw.reshape(shape), chunks=chunks)
        data.create_dataset("flags", data=np.zeros(shape, bool), chunks=chunks)
        data.create_dataset("nsamples", data=np.full(shape, 48.0, np.float32), chunks=chunks)
    partial.rename(path)


DEMO = (
    Simulation(start="2026-03-02T20:03:10", seed=11, gain_seed=7),
    Simulation(start="2026-03-02T20:18:37", seed=12, gain_seed=7, rfi=True, dead=(36,)),
)
"""A calibrator group (3C454.3 in the beam) and a target group a quarter of an hour later."""


def simulate_demo(folder: Path, catalogue: Path, calibrators: Path, stations: Path) -> list[Path]:
    """Write the demo's two groups into `folder`."""
    sources = read_sky(catalogue, calibrators)
    return [path for sim in DEMO for path in simulate_group(folder, sim, sources, stations)]
