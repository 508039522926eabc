"""Simulated observations in the telescope's own file format, for the demo and the tests.

This module shares no code with the pipeline's geometry, beam, reader or predictor: an error made in
both would cancel. Directions are exact astropy coordinates (ICRS to hour angle and declination, at
every integration), the delays are plain dot products of station positions with them, and
visibilities are sums over sources, smeared by the correlator's integrations and channels.

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
from astropy.coordinates import ICRS, EarthLocation, HADec, SkyCoord, get_sun
from astropy.time import Time, TimeDelta
from astropy.utils import iers
from numba import njit, prange
from scipy.special import j1

iers.conf.auto_download, iers.conf.auto_max_age = False, None
SPEED_OF_LIGHT = 299792458.0
# rms of real and of imaginary part: one polarisation, baseline, fine channel and integration
NOISE_JY = 2.59
REFERENCE_HZ = 1.4e9
# ICRS, and apparent flux in the sidelobes: as they were once seen.
FAR_SOURCES = {
    "Cas A": (350.866, 58.815, 6.0),
    "Cyg A": (299.868, 40.734, 5.0),
    "Tau A": (83.633, 22.014, 3.0),
    "Vir A": (187.706, 12.391, 1.0),
    "Sun": (None, None, 20.0),  # its place is computed
}
SKY_TURNS_RAD_S = 7.2921159e-5


@dataclass(frozen=True)
class Array:
    """An array and its correlator; the values are the DSA-110's."""

    telescope: str = "OVRO_MMA"  # in the files
    latitude_rad: float = 0.6498455107238486
    longitude_rad: float = -2.064427799136453
    height_m: float = 1188.0519
    dish_m: float = 4.65
    band_hz: tuple[float, float] = (1311.25e6, 1498.75e6)  # edges
    integration_s: float = 12.884902
    fine_channel_hz: float = 244140.625  # NOISE_JY is of one
    # antenna numbers (stations 101 and 115) that the correlator lists early
    out_of_order: tuple[int, ...] = (100, 114)

    @property
    def place(self) -> EarthLocation:
        """The reference point of its stations."""
        return EarthLocation.from_geodetic(
            self.longitude_rad * u.rad, self.latitude_rad * u.rad, self.height_m * u.m
        )


DSA110 = Array()


@dataclass(frozen=True)
class Simulation:
    """What to observe and what is wrong with it. The same values always give the same files."""

    start: str  # UTC, opening time of the group
    array: Array = DSA110
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
    sefd_jy: float | None = None  # median receiver, instead of noise_jy; 8016 measured in 2026
    smeared: bool = True  # by integrations and channels, as the correlator does it
    moved_deg: float = 0.0  # rms of phases since the gains of gain_seed, per antenna, polarisation
    moved_share: float = 0.0  # rms of amplitudes, relative
    walk_deg: float = 0.0  # rms of phases, from each integration to the next
    drift_deg: float = 0.0  # rms of phases, from the first integration to the last
    # (station, integration, deg): phases that jump, and stay there
    steps: tuple[tuple[int, int, float], ...] = ()
    faint: int = 0  # sources of 2 to 50 mJy in the beam that no catalogue has
    doubles: float = 0.0  # share of the catalogue's sources that are two
    vanished: float = 0.0  # share that is not there
    exchanged: tuple[tuple[int, int], ...] = ()  # stations whose cables are, before the receivers
    exchanged_polarisations: tuple[int, ...] = ()  # stations whose X is Y, after the receivers
    beam_wider: tuple[float, float] = (1.0, 1.0)  # to the east and north, than an evenly lit dish
    pointing_deg: tuple[float, float] = (0.0, 0.0)  # of all dishes, to the east and north
    pointing_scatter_deg: float = 0.0  # rms of each dish's own, the same for one gain_seed
    header_dec_deg: float | None = None  # declination that the header says, instead of the true one
    clock_s: float = 0.0  # that time_array is late
    conjugated: bool = False  # the correlator's output
    # (station, east, north, up in m): where it is, off the place in the files
    displaced: tuple[tuple[int, float, float, float], ...] = ()
    exchanged_subbands: tuple[tuple[int, int], ...] = ()  # whose data are in each other's file
    late_subbands: tuple[int, ...] = ()  # whose data are an integration late
    brighter: tuple[tuple[str, float], ...] = ()  # (source, times the catalogue's flux)
    resolved: tuple[tuple[str, float], ...] = ()  # (source, FWHM of a round Gaussian in arcsec)
    noisy: tuple[tuple[int, float], ...] = ()  # (station, times the noise)
    jammed: tuple[int, ...] = ()  # stations with interference of their own
    lost: float = 0.0  # share of integrations of each file whose samples never arrived


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


def station_positions(stations: Path, array: Array = DSA110) -> tuple[np.ndarray, np.ndarray]:
    """ITRF offsets from the array's reference point (nstation, 3) in m, and which stations are
    active."""
    table = pd.read_csv(stations)
    where = EarthLocation.from_geodetic(
        table.longitude_deg.values * u.deg,
        table.latitude_deg.values * u.deg,
        table.height_m.values * u.m,
    )
    centre = array.place
    offsets = [(getattr(where, axis) - getattr(centre, axis)).to_value(u.m) for axis in "xyz"]
    active = table.get("active_2026_01", pd.Series(1, table.index))
    return np.stack(offsets, axis=1), active.values == 1


def choose_antennas(
    active: np.ndarray,
    count: int,
    stations: tuple[int, ...] = (),
    out_of_order: tuple[int, ...] = DSA110.out_of_order,
) -> np.ndarray:
    """Antenna numbers (station name - 1) in the correlator's order: `stations`, or `count` spread
    over the active ones."""
    numbers = np.array(sorted(stations)) - 1 if stations else np.flatnonzero(active)
    if not stations:
        if not 4 <= count <= len(numbers):
            raise ValueError(f"antennas: expected 4 to {len(numbers)}, found {count}")
        rest = np.setdiff1d(numbers, out_of_order)
        spread = rest[np.linspace(0, len(rest) - 1, count - len(out_of_order)).round().astype(int)]
        numbers = np.union1d(spread, np.array(out_of_order, int))
    early = [n for n in out_of_order if n in numbers]
    rest = [int(n) for n in numbers if n not in early]
    return np.array(rest[:3] + early + rest[3:])


def antenna_gains(sim: Simulation, stations: int, freq_hz: np.ndarray) -> np.ndarray:
    """Complex gains (nstation, nchan, 2): amplitude, phase, delay and a bandpass ripple; constant
    in time."""
    rng = np.random.default_rng(sim.gain_seed)
    shape = (stations, 1, 2)
    low_hz, high_hz = sim.array.band_hz
    x = ((freq_hz - low_hz) / (high_hz - low_hz))[None, :, None]
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


def _beam_power(sim, directions, tracked, offset_deg, freq_hz) -> np.ndarray:
    """Response (nsource, nchan) of a dish that points `offset_deg` to the east and north of the
    tracked direction."""
    east, north = np.array([0.0, 1.0, 0.0]), np.cross(tracked, [0.0, 1.0, 0.0])
    along, up = directions @ east, directions @ north
    aside, above = np.sin(np.radians(offset_deg))
    wide, high = sim.beam_wider
    away_rad = np.arcsin(np.hypot((along - aside) / wide, (up - above) / high))
    return _airy_power(away_rad, freq_hz, sim.array.dish_m)


def _airy_power(
    angle_rad: np.ndarray, freq_hz: np.ndarray, dish_m: float = DSA110.dish_m
) -> np.ndarray:
    """Response (nangle, nchan) of a uniformly lit dish."""
    x = np.pi * dish_m * np.sin(angle_rad)[:, None] * freq_hz / SPEED_OF_LIGHT
    x = np.maximum(x, 1e-9)
    return (2 * j1(x) / x) ** 2


def _in_meridian_frame(positions_m: np.ndarray, lon: float) -> np.ndarray:
    """ITRF offsets along (meridian of longitude `lon`, rad; east; north pole)."""
    turn = np.array([[np.cos(lon), np.sin(lon), 0], [-np.sin(lon), np.cos(lon), 0], [0, 0, 1]])
    return positions_m @ turn.T


def _directions(places: SkyCoord, time: Time, array: Array) -> np.ndarray:
    """Apparent directions (nsource, 3)."""
    seen = places.transform_to(HADec(obstime=time, location=array.place))
    return _unit_vectors(np.atleast_1d(seen.ha.rad), np.atleast_1d(seen.dec.rad))


def _far_places(names: tuple[str, ...], time: Time) -> SkyCoord:
    sun = get_sun(time)
    places = [FAR_SOURCES[name][:2] for name in names]
    places = [(sun.ra.deg, sun.dec.deg) if ra is None else (ra, dec) for ra, dec in places]
    return SkyCoord(*np.array(places).T * u.deg, frame=ICRS())


@njit(parallel=True, cache=True, fastmath=True)
def _add_up(path_m, pace_m, flux_jy, voltage, freq_hz, width_hz, one, two, total):
    """Sum sources into `total` (nbaseline, nchan): V_ij, smeared where pace and width are not 0.

    path_m, pace_m  (nant, nsource): along the source, and how that changes in an integration
    flux_jy         (nsource, nchan)
    voltage         (nant, nsource): of each dish, relative to the array's
    """
    nchan = len(freq_hz)
    step_hz = freq_hz[1] - freq_hz[0] if nchan > 1 else 0.0
    for b in prange(len(one)):
        i, j = one[b], two[b]
        for s in range(path_m.shape[1]):
            delay_s = (path_m[j, s] - path_m[i, s]) / SPEED_OF_LIGHT
            turns_s = (pace_m[j, s] - pace_m[i, s]) / SPEED_OF_LIGHT
            across = np.pi * delay_s * width_hz
            kept = np.sin(across) / across if abs(across) > 1e-9 else 1.0
            kept *= voltage[i, s] * voltage[j, s]
            phase, turn = 2 * np.pi * delay_s * freq_hz[0], 2 * np.pi * delay_s * step_hz
            now, by = complex(np.cos(phase), np.sin(phase)), complex(np.cos(turn), np.sin(turn))
            x, more = np.pi * turns_s * freq_hz[0], np.pi * turns_s * step_hz
            smear, on = complex(np.cos(x), np.sin(x)), complex(np.cos(more), np.sin(more))
            for c in range(nchan):
                left = smear.imag / x if abs(x) > 1e-6 else 1.0
                total[b, c] += flux_jy[s, c] * kept * left * now
                now *= by
                smear *= on
                x += more


def _visibilities(sim, positions_m, order, times, freq_hz, width_hz, sources):
    """Sky visibilities of one group, an integration at a time: yields (nbaseline, nchan) of the
    pairs in `order`.

    positions_m  (nant, 3) of the antennas, where the sky meets them
    """
    antennas_m = _in_meridian_frame(positions_m, sim.array.longitude_rad)
    one, two = np.array(order).T
    sky = SkyCoord(
        [s["ra"] for s in sources] * u.deg, [s["dec"] for s in sources] * u.deg, frame=ICRS()
    )
    tracked = _unit_vectors(np.zeros(1), np.radians(sim.dec_deg))[0]
    spectra = np.array([s["flux"] for s in sources])[:, None] * (
        freq_hz / REFERENCE_HZ
    ) ** np.array([s["alpha"] for s in sources]).reshape(-1, 1)
    far_jy = np.array([FAR_SOURCES[name][2] for name in sim.far])[:, None]
    offsets = np.random.default_rng([sim.gain_seed, 79]).normal(
        sim.pointing_deg, sim.pointing_scatter_deg, (len(antennas_m), 2)
    )
    middle_hz = np.array([freq_hz.mean()])
    for time in times:
        directions = _directions(sky, time, sim.array)
        response = _beam_power(sim, directions, tracked, sim.pointing_deg, freq_hz)
        apparent = spectra * response
        voltage = np.ones((len(antennas_m), len(sources)))
        if sim.pointing_scatter_deg:
            mean = _beam_power(sim, directions, tracked, sim.pointing_deg, middle_hz)[:, 0]
            for a, offset in enumerate(offsets):
                of_dish = _beam_power(sim, directions, tracked, offset, middle_hz)[:, 0]
                voltage[a] = np.sqrt(of_dish / np.maximum(mean, 1e-4))
        if sim.far:
            far = _directions(_far_places(sim.far, time), time, sim.array)
            directions = np.vstack([directions, far])
            apparent = np.vstack([apparent, far_jy * np.ones(len(freq_hz))])
            voltage = np.hstack([voltage, np.ones((len(voltage), len(sim.far)))])
        away = directions - tracked
        # the sky turns to the west: x to the meridian, y to the east
        pace = SKY_TURNS_RAD_S * np.stack([away[:, 1], -away[:, 0], 0 * away[:, 0]], axis=1)
        seconds, width = (sim.array.integration_s, width_hz) if sim.smeared else (0.0, 0.0)
        total = np.zeros((len(order), len(freq_hz)), np.complex128)
        path_m, pace_m = antennas_m @ away.T, antennas_m @ pace.T * seconds
        _add_up(path_m, pace_m, apparent, voltage, freq_hz, width, one, two, total)
        yield total


def gain_motion(sim: Simulation, antennas: np.ndarray) -> np.ndarray:
    """What became of the gains of `gain_seed`, (ntime, nant, 2), for antenna numbers."""
    rng = np.random.default_rng([sim.seed, 77])
    stations = int(antennas.max()) + 1
    moved = rng.normal(0, sim.moved_deg, (1, stations, 2))
    amplitude = 1 + rng.normal(0, sim.moved_share, (1, stations, 2))
    walk = rng.normal(0, sim.walk_deg, (sim.integrations, stations, 2)).cumsum(axis=0)
    rise = np.linspace(-0.5, 0.5, sim.integrations)[:, None, None]
    phase_deg = moved + walk + rise * rng.normal(0, sim.drift_deg, (1, stations, 2))
    for station, integration, step_deg in sim.steps:
        phase_deg[integration:, station - 1] += step_deg
    return (amplitude * np.exp(1j * np.radians(phase_deg)))[:, antennas]


def real_sky(sim: Simulation, sources: list[dict], centre: SkyCoord) -> list[dict]:
    """What is in the sky, of what the catalogue says: sources that are two, or gone, and faint
    ones."""
    rng = np.random.default_rng([sim.gain_seed, 78])
    fate = rng.random(len(sources))
    found, brighter, resolved = [], dict(sim.brighter), dict(sim.resolved)
    for source, chance in zip(sources, fate, strict=True):
        if source["name"] in brighter:
            source = source | {"flux": source["flux"] * brighter[source["name"]]}
        if source["name"] in resolved:
            found += _resolved(source, resolved[source["name"]])
            continue
        if chance < sim.vanished:
            continue
        if chance < sim.vanished + sim.doubles:
            share, away, angle = rng.uniform(0.25, 0.5), rng.uniform(20, 45), rng.uniform(0, 6.28)
            east, north = away / 3600 * np.sin(angle), away / 3600 * np.cos(angle)
            ra = source["ra"] + east / np.cos(np.radians(source["dec"]))
            other = {"ra": float(ra), "dec": float(source["dec"] + north)}
            other |= {"name": f"{source['name']}b", "flux": float(source["flux"] * share)}
            found.append(source | other)
            source = source | {"flux": float(source["flux"] * (1 - share))}
        found.append(source)
    for k in range(sim.faint):  # number above S as S^-0.8
        flux_jy = 0.002 * (1 - rng.random() * (1 - 25**-0.8)) ** (-1 / 0.8)
        away, angle = 2.5 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        place = centre.directional_offset_by(angle * u.rad, away * u.deg)
        ra, dec = float(place.ra.deg), float(place.dec.deg)
        found.append({"name": f"faint {k}", "ra": ra, "dec": dec, "flux": flux_jy, "alpha": -0.7})
    return found


def _resolved(source: dict, fwhm_arcsec: float) -> list[dict]:
    """A round Gaussian as points."""
    steps = np.linspace(-1, 1, 7)
    east, north = (x.ravel() for x in np.meshgrid(steps, steps))
    share = np.exp(-4 * np.log(2) * (east**2 + north**2))
    share /= share.sum()
    size_deg = fwhm_arcsec / 3600
    return [
        source
        | {
            "ra": float(source["ra"] + e * size_deg / np.cos(np.radians(source["dec"]))),
            "dec": float(source["dec"] + n * size_deg),
            "flux": float(source["flux"] * s),
        }
        for e, n, s in zip(east, north, share, strict=True)
    ]


def _displace(places_m: np.ndarray, numbers: np.ndarray, displaced, array: Array) -> None:
    """Move antennas (ITRF offsets, in place) to the east, north and up."""
    lat, lon = array.latitude_rad, array.longitude_rad
    east = np.array([-np.sin(lon), np.cos(lon), 0])
    up = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    for station, *moved_m in displaced:
        places_m[numbers + 1 == station] += np.array(moved_m) @ [east, np.cross(up, east), up]


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
    positions_m, active = station_positions(stations, sim.array)
    numbers = choose_antennas(active, sim.antennas, sim.stations, sim.array.out_of_order)
    named = {*sim.dead, *sim.exchanged_polarisations, *(station for station, _, _ in sim.steps)}
    named |= {station for pair in sim.exchanged for station in pair} | set(sim.jammed)
    named |= {station for station, *_ in (*sim.displaced, *sim.noisy)}
    if absent := named - set((numbers + 1).tolist()):
        raise ValueError(
            f"stations {sorted(absent)} are not among those simulated: {(numbers + 1).tolist()}"
        )
    nchan = sim.subbands * sim.channels
    low_hz, high_hz = sim.array.band_hz
    width_hz = (high_hz - low_hz) / nchan
    freq_hz = high_hz - width_hz * (np.arange(nchan) + 0.5)  # descending, as in the files
    opened = Time(sim.start, scale="utc")
    seconds = (np.arange(sim.integrations) + 0.5) * sim.array.integration_s
    times = opened + TimeDelta(seconds, format="sec")
    place = {"obstime": times[len(times) // 2], "location": sim.array.place}
    centre = SkyCoord(HADec(ha=0 * u.deg, dec=sim.dec_deg * u.deg, **place)).transform_to(ICRS())
    where = SkyCoord([s["ra"] for s in sources] * u.deg, [s["dec"] for s in sources] * u.deg)
    sources = [
        s for s, away in zip(sources, where.separation(centre).deg, strict=True) if away < 5.0
    ]
    sources = [s for s in sources if s["name"] not in sim.without]
    sources = real_sky(sim, sources, centre)
    if not sources:
        raise ValueError(
            f"{sim.start}: no catalogue source within 5 deg of {centre.to_string('hmsdms')}"
        )

    order = [(i, j) for j in range(len(numbers)) for i in range(j + 1)]
    first, second = np.array(order).T
    autos = first == second
    noise_jy = sim.noise_jy * np.sqrt(sim.array.fine_channel_hz / width_hz)
    if sim.sefd_jy is not None:
        noise_jy = sim.sefd_jy / np.sqrt(2 * width_hz * sim.array.integration_s)
    rng = np.random.default_rng(sim.seed)
    gains = antenna_gains(sim, len(positions_m), freq_hz)[numbers]
    motion = gain_motion(sim, numbers)
    alive = ~np.isin(numbers + 1, sim.dead)
    crossed = np.isin(numbers + 1, sim.exchanged_polarisations)
    gains[crossed] = gains[crossed][:, :, ::-1]
    places_m = positions_m[numbers].copy()
    for pair in sim.exchanged:
        a, b = (int(np.flatnonzero(numbers + 1 == station)[0]) for station in pair)
        places_m[[a, b]] = places_m[[b, a]]
    _displace(places_m, numbers, sim.displaced, sim.array)
    # X of the one and Y of the other have nothing in common: the sky is not polarised
    sees = (alive[first] & alive[second] & (crossed[first] == crossed[second]))[:, None]
    raw = np.empty((sim.integrations, len(order), nchan, 2), np.complex64)
    for t, visibilities in enumerate(
        _visibilities(sim, places_m, order, times, freq_hz, width_hz, sources)
    ):
        raw[t] = (visibilities * sees)[:, :, None]
    parts = rng.standard_normal((*raw.shape, 2), np.float32) * np.float32(noise_jy)
    receivers = np.exp(
        np.random.default_rng(sim.gain_seed + 1).normal(0, sim.sefd_scatter, len(numbers))
    ).astype(np.float32)
    for station, factor in sim.noisy:
        receivers[numbers + 1 == station] *= np.float32(factor)
    raw += (
        parts.view(np.complex64)[..., 0]
        * np.sqrt(receivers[first] * receivers[second])[:, None, None]
    )
    raw[:, autos] = 60.0 + np.abs(raw[:, autos])  # total power: system and sky, real
    raw *= (sim.scale * np.conj(gains[first]) * gains[second]).astype(np.complex64)
    raw *= (np.conj(motion[:, first]) * motion[:, second])[:, :, None].astype(np.complex64)
    rfi = _add_rfi(rng, raw, sim.scale * noise_jy) if sim.rfi else None
    for station in sim.jammed:  # a channel in four, half of the time
        mine = np.flatnonzero((numbers[first] + 1 == station) | (numbers[second] + 1 == station))
        on = np.flatnonzero(rng.random(sim.integrations) < 0.5)
        shape = (len(on), len(mine), len(range(0, nchan, 4)), 2)
        noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        raw[np.ix_(on, mine, np.arange(0, nchan, 4))] += 20 * sim.scale * noise_jy * noise
    if sim.conjugated:
        raw = raw.conj()
    by_subband = raw.reshape(*raw.shape[:2], sim.subbands, sim.channels, 2)
    for a, b in sim.exchanged_subbands:
        by_subband[:, :, [a, b]] = by_subband[:, :, [b, a]]
    for late in sim.late_subbands:
        by_subband[1:, :, late] = by_subband[:-1, :, late].copy()
    arrived = rng.random((sim.subbands, sim.integrations)) >= sim.lost if sim.lost else None

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
            None if arrived is None else arrived[sb],
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


def _write_uvh5(path, sim, positions_m, numbers, order, times, freq_hz, width_hz, raw, arrived):
    """One file as the correlator writes it; `raw` (ntime, nbl, nchan, 2); `arrived` (ntime,): None
    is all."""
    ntime, nbaseline, nchan, npol = raw.shape
    lon, dec = sim.array.longitude_rad, np.radians(sim.dec_deg)
    if sim.header_dec_deg is not None:
        dec = np.radians(sim.header_dec_deg)
    samples = np.full(raw.shape, 48.0, np.float32)
    if arrived is not None:
        raw, samples = raw * arrived[:, None, None, None], samples * arrived[:, None, None, None]
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
            "altitude": sim.array.height_m,
            "latitude": np.degrees(sim.array.latitude_rad),
            "longitude": np.degrees(sim.array.longitude_rad),
            "ant_1_array": np.tile(ant_1, ntime),
            "ant_2_array": np.tile(ant_2, ntime),
            "antenna_diameters": np.full(len(positions_m), sim.array.dish_m),
            "antenna_names": np.array([str(n + 1) for n in range(len(positions_m))], "S4"),
            "antenna_numbers": np.arange(len(positions_m)),
            "antenna_positions": positions_m,
            "channel_width": width_hz,
            "freq_array": freq_hz[None],
            "history": np.bytes_("contimg simulate"),
            "instrument": np.bytes_("DSA"),
            "object_name": np.bytes_("search"),
            "integration_time": np.full(nrow, sim.array.integration_s),
            "phase_center_app_dec": dec,
            "phase_type": np.bytes_("drift"),
            "polarization_array": np.array([-5, -6]),
            "spw_array": np.array([1]),
            "telescope_name": np.bytes_(sim.array.telescope),
            "time_array": np.repeat(times.jd + sim.clock_s / 86400, nbaseline),
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
        data.create_dataset("nsamples", data=samples.reshape(shape), chunks=chunks)
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
