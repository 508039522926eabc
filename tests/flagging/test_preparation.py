"""Validation and flagging of a Measurement Set; what CASA, the independent reader, makes of it."""

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import EarthLocation, SkyCoord

from contimg.config import FlaggingConfig
from contimg.errors import ValidationError
from contimg.flagging import detection
from contimg.stages.prepare import prepare
from contimg.visibilities import casa, flag_versions
from contimg.visibilities import measurement_set as mset
from tests.conftest import STATIONS
from tests.visibilities.test_conversion import convert


def test_every_check_and_every_fraction_is_recorded(make_group, tmp_path):
    group = make_group(antennas=16, channels=6, integrations=12, rfi=True, missing=(3,))
    ms, *_ = convert(group, tmp_path)
    found = prepare(ms, FlaggingConfig(), STATIONS)
    checks = found["checks"]
    assert checks["station_offset_m"] < 0.01
    assert checks["uvw_error_m"] < 1e-6
    assert checks["values_not_finite"] == 0
    assert 0 < checks["values_not_zero"] < 12 * 136 * 96 * 2
    assert checks["flagged"] == found["flagged"] == pytest.approx(sum(found["flagged_by"].values()))
    assert found["flagged_by"]["no_data"] == pytest.approx(1 / 16)
    flags = mset.read_grid(ms, "FLAG", 12)
    rows = mset.read_rows(ms)
    cross = rows.ant_1 != rows.ant_2
    assert flags[:, ~cross].all()
    assert found["flagged_by_channel"] == pytest.approx(
        flags[:, cross].mean(axis=(0, 1, 3)), abs=1e-4
    )
    assert found["flagged_by_integration"] == pytest.approx(
        flags[:, cross].mean(axis=(1, 2, 3)), abs=1e-4
    )
    assert np.average([b["flagged"] for b in found["flagged_by_length"]]) == pytest.approx(
        found["flagged"], abs=1e-3
    )
    edges = [b["from_m"] for b in found["flagged_by_length"]]
    assert edges == sorted(edges)
    assert len(found["flagged_by_antenna"]) == 16


def test_a_moved_or_unknown_station_is_refused(make_group, tmp_path):
    ms, *_ = convert(make_group(), tmp_path)
    table = pd.read_csv(STATIONS)
    antenna = int(mset.read_rows(ms).ant_1[-1])
    moved, shorter = tmp_path / "moved.csv", tmp_path / "shorter.csv"
    table.assign(height_m=table.height_m + 0.2 * (table.station == antenna + 1)).to_csv(
        moved, index=False
    )
    table[table.station != antenna + 1].to_csv(shorter, index=False)
    with pytest.raises(ValidationError, match=r"station_offset_m is 0\.2, expected at most 0\.05"):
        prepare(ms, FlaggingConfig(), moved)
    with pytest.raises(ValidationError, match=rf"antennas \['{antenna + 1}'\] are not in"):
        prepare(ms, FlaggingConfig(), shorter)


def test_flag_versions_are_what_casa_makes_and_reads_of_them(make_group, tmp_path):
    ms, *_ = convert(make_group(), tmp_path)
    prepare(ms, FlaggingConfig(), STATIONS)
    ntime = mset.read_rows(ms).shape[0]
    prepared = mset.read_grid(ms, "FLAG", ntime)
    assert 0 < prepared.mean() < 1
    flag_versions.save(ms)
    tasks = casa.tasks()
    listed = tasks.flagmanager(vis=str(ms), mode="list")
    assert {one["name"] for one in listed.values() if isinstance(one, dict)} == {"prepared"}
    for restore in (
        lambda: tasks.flagmanager(vis=str(ms), mode="restore", versionname="prepared"),
        lambda: flag_versions.restore(ms),
    ):
        mset.write_columns(ms, FLAG=np.ones_like(prepared))
        restore()
        assert (mset.read_grid(ms, "FLAG", ntime) == prepared).all()
    tasks.flagmanager(vis=str(ms), mode="save", versionname="theirs")
    assert (flag_versions.read(ms, ntime, "theirs") == prepared).all()
    mset.write_columns(ms, FLAG=np.ones_like(prepared))
    flag_versions.save(ms)  # instead of all there are
    assert flag_versions.read(ms, ntime).all()
    assert not (ms.with_name(f"{ms.name}.flagversions") / "flags.theirs").exists()


@pytest.mark.parametrize("strategy", ["mad", "aoflagger", "tfcrop"])
def test_every_strategy_finds_what_is_strong(make_group, tmp_path, strategy):
    group = make_group(antennas=16, channels=6, integrations=24, rfi=True)
    clean = make_group(folder="clean", antennas=16, channels=6, integrations=24)
    ms, *_ = convert(group, tmp_path)
    found = prepare(ms, FlaggingConfig(strategy=strategy), STATIONS)
    rows = mset.read_rows(ms)
    cross = rows.ant_1 != rows.ant_2
    flags, data = mset.read_grid(ms, "FLAG", 24)[:, cross], mset.read_grid(ms, "DATA", 24)[:, cross]
    expected = mset.read_grid(convert(clean, tmp_path / "clean")[0], "DATA", 24)[:, cross]
    added = np.abs(data - expected) / np.abs(expected).std()
    strong = np.median(added, axis=(1, 3)) > 5  # carriers and the burst
    assert 0.05 < strong.mean() < 0.3
    by_cell = flags.mean(axis=(1, 3))
    assert by_cell[strong].min() > 0.9
    assert by_cell[added.max(axis=(1, 3)) == 0].mean() < 0.02
    assert sum(found["flagged_by"].values()) == pytest.approx(found["flagged"])
    again = prepare(ms, FlaggingConfig(strategy=strategy), STATIONS)
    assert again["flagged_by"] == found["flagged_by"]


def test_shadows_are_those_that_casa_sees(make_group, tmp_path):
    """Low in the south the north-south arm stands in its own way: 8.7 m between dishes, seen at 15
    degrees.

    CASA counts stations without data too, so all that are in the way take part here.
    """
    sources = [{"name": "S", "ra": 346.0, "dec": -38.0, "flux": 3.0, "alpha": 0.0}]
    stations = (*range(52, 58), *range(24, 28), 2, 20)
    group = make_group(sources=sources, dec_deg=-38.0, stations=stations, integrations=4)
    ms, *_ = convert(group, tmp_path)
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    ours = detection.shadowed(
        uvw_m=rows.uvw_m, ant_1=rows.ant_1, ant_2=rows.ant_2, diameters_m=observation.diameters_m
    )
    cross = rows.ant_1 != rows.ant_2
    assert 0.2 < ours[:, cross].mean() < 0.95
    casa.tasks(tmp_path / "casa.log").flagdata(vis=str(ms), mode="shadow", flagbackup=False)
    theirs = mset.read_grid(ms, "FLAG", 4).all(axis=(2, 3))
    assert np.array_equal(ours[:, cross], theirs[:, cross])
    mset.write_columns(
        ms, WEIGHT_SPECTRUM=np.zeros((rows.shape[0] * rows.shape[1], 32, 2), np.float32)
    )
    with pytest.raises(ValidationError, match="every visibility is flagged"):
        prepare(ms, FlaggingConfig(), STATIONS)


def test_casa_finds_a_source_in_the_north_east_and_stations_by_their_names(
    make_group, compact_stations, tmp_path
):
    """An independent reader: tclean's dirty image has the source at its place; station 36 is where
    the list has it, and is the one that was simulated dead."""
    source = {"name": "NE", "ra": 347.95, "dec": 16.45, "flux": 3.0, "alpha": 0.0}
    options = {
        "stations": tuple(sorted({*compact_stations, 36})),
        "dead": (36,),
        "noise_jy": 0.05,
        "channels": 4,
    }
    group = make_group(sources=[source], **options)
    ms, converted, _ = convert(group, tmp_path)
    metadata = casa.tool("msmetadata")
    metadata.open(str(ms))
    try:
        (antenna,) = metadata.antennaids("36")
        where = metadata.antennaposition("36")
        used = sorted(int(name) for name in metadata.antennanames(metadata.antennasforscan(1)))
    finally:
        metadata.done()
    assert used == list(options["stations"])
    row = pd.read_csv(STATIONS).set_index("station").loc[36]
    listed = EarthLocation.from_geodetic(
        row.longitude_deg * u.deg, row.latitude_deg * u.deg, row.height_m * u.m
    )
    seen = EarthLocation.from_geocentric(*_xyz(where), unit=u.m)
    assert (
        np.linalg.norm((u.Quantity(listed.geocentric) - u.Quantity(seen.geocentric)).to_value(u.m))
        < 0.05
    )
    table = casa.tool("table")
    table.open(str(ms))
    try:
        one, two, data = (table.getcol(c) for c in ("ANTENNA1", "ANTENNA2", "DATA"))
    finally:
        table.close()
    coherent = np.abs(data.mean(axis=(0, 1)))  # over polarisations and channels
    with_36 = (one == antenna) ^ (two == antenna)
    others = (one != antenna) & (two != antenna) & (one != two)
    assert np.median(coherent[with_36]) < 0.2 * np.median(coherent[others])
    _divide_gains(ms, group, options)
    casa.tasks(tmp_path / "casa.log").tclean(
        vis=str(ms),
        imagename=str(tmp_path / "dirty"),
        imsize=512,
        cell="20arcsec",
        niter=0,
        specmode="mfs",
        gridder="wproject",
        wprojplanes=32,
        antenna="!36",
        weighting="natural",
        datacolumn="data",
        phasecenter=f"ICRS {converted['phase_centre_deg'][0]}deg "
        f"{converted['phase_centre_deg'][1]}deg",
    )
    image = casa.tool("image")
    image.open(str(tmp_path / "dirty.image"))
    try:
        peak = image.statistics()["maxpos"]
        ra, dec = image.toworld(peak, "n")["numeric"][:2]
    finally:
        image.done()
    found = SkyCoord(ra * u.rad, dec * u.rad)
    assert found.separation(SkyCoord(source["ra"] * u.deg, source["dec"] * u.deg)).arcsec < 20
    assert source["ra"] > converted["phase_centre_deg"][0] + 0.3
    assert source["dec"] > converted["phase_centre_deg"][1] + 0.2


def _xyz(position: dict) -> np.ndarray:
    longitude, latitude, radius = (position[f"m{k}"]["value"] for k in range(3))
    if position["refer"] == "WGS84":
        location = EarthLocation.from_geodetic(longitude * u.rad, latitude * u.rad, radius * u.m)
        return u.Quantity(location.geocentric).to_value(u.m)
    return radius * np.array(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ]
    )


def _divide_gains(ms, group, options):
    from contimg.simulate import Simulation, antenna_gains

    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    gains = antenna_gains(
        Simulation(start=group.id), len(observation.antenna_names), observation.freq_hz[::-1]
    )[:, ::-1]
    data = mset.read_grid(ms, "DATA", rows.shape[0]) / (
        gains[rows.ant_1] * np.conj(gains[rows.ant_2])
    )
    mset.write_columns(ms, DATA=data.astype(np.complex64))
