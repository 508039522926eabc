import json

import numpy as np
import pytest

from contimg.config import Config, ConversionConfig, FlaggingConfig, IngestConfig
from contimg.errors import InputError, SubbandError
from contimg.flagging.checks import validate
from contimg.paths import staged
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, direction_cosines, meridian_vector, track
from contimg.sky.prediction import Smearing, predict
from contimg.sky.skymodel import Source
from contimg.stages.convert import convert_group
from contimg.visibilities import casa
from contimg.visibilities import measurement_set as mset
from contimg.visibilities.conversion import concat_subbands
from tests.conftest import DEC_DEG, STATIONS

UNIT = {"noise_jy": 0.0, "scale": 1.0}  # no noise; gains are divided out below


DEFAULT = Config()


def convert(group, folder, config=DEFAULT):
    subbands = staged(folder / "staging", group.id, config)
    converted = convert_group(group.files, subbands, config, 2)
    concatenated = concat_subbands(subbands, folder / "full.ms")
    return folder / "full.ms", converted, concatenated


def ungained(ms, group, **options):
    """DATA divided by the gains that the simulator put in, cross-correlations: (ntime, nbaseline,
    nchan, npol)."""
    from contimg.simulate import Simulation, antenna_gains

    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    sim = Simulation(start=group.id, **options)
    gains = antenna_gains(sim, len(observation.antenna_names), observation.freq_hz[::-1])[:, ::-1]
    data = mset.read_grid(ms, "DATA", rows.shape[0]) / (
        gains[rows.ant_1] * np.conj(gains[rows.ant_2])
    )
    return data, rows, observation


def test_a_source_to_the_north_east_is_there_in_phase(make_group, tmp_path):
    """Right-hand side from the plain formula of the docs, with l, m from the sky position: no code
    of ours in between."""
    source = {"name": "NE", "ra": 347.95, "dec": 16.45, "flux": 3.0, "alpha": 0.0}
    group = make_group(sources=[source], antennas=24, **UNIT)
    ms, _, _ = convert(group, tmp_path)
    data, rows, observation = ungained(ms, group)
    l, m = direction_cosines(source["ra"], source["dec"], *observation.phase_centre_deg)
    assert l > 0.008
    assert m > 0.006
    uvw = rows.uvw_m[..., None, :] * (observation.freq_hz / SPEED_OF_LIGHT_M_S)[:, None]
    expected = np.exp(2j * np.pi * (uvw @ [l, m, np.sqrt(1 - l**2 - m**2) - 1]))
    cross = rows.ant_1 != rows.ant_2
    error = np.angle(data[:, cross][..., 0] * np.conj(expected[:, cross]), deg=True)
    # What is left is aberration, 1e-4 of the offset: 0.2 arcsec, 2.5 deg of phase on 2 km.
    assert np.abs(error).max() < 3
    mirrored = np.angle(data[:, cross][..., 0] * expected[:, cross], deg=True)
    assert np.abs(mirrored).max() > 170


def test_predictor_and_simulator_agree(make_group, sky, tmp_path):
    """Beam track, spectra and exact phases, written twice: model against noiseless data within 1e-4
    of the sky."""
    group = make_group(antennas=24, **UNIT)
    ms, converted, _ = convert(group, tmp_path)
    data, rows, observation = ungained(ms, group)
    truth = json.loads((group.files[0].parent / f"truth.{group.id}.json").read_text())
    sources = [
        Source.power_law(s["name"], s["ra"], s["dec"], s["flux"], s["alpha"])
        for s in truth["sources"]
    ]
    axes = track(*converted["phase_centre_deg"], rows.time_mjd).axes
    pointing = meridian_vector(np.radians(DEC_DEG))
    model = predict(
        sources=sources,
        mjd=rows.time_mjd,
        phase_axes=axes,
        pointing=pointing,
        positions_m=observation.positions_m,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        freq_hz=observation.freq_hz,
        smearing=Smearing(rows.integration_s, observation.channel_width_hz),
    )
    cross = rows.ant_1 != rows.ant_2
    scale = np.abs(model[:, cross]).max()
    assert scale > 0.5
    for p in range(2):
        assert np.abs(data[:, cross][..., p] - model[:, cross]).max() < 1e-4 * scale


def test_measurement_set_is_whole_and_casa_reads_it(make_group, tmp_path):
    group = make_group(antennas=60)
    ms, converted, concatenated = convert(group, tmp_path)
    checks = validate(ms, mset.read_observation(ms), mset.read_rows(ms), STATIONS)
    assert checks["uvw_error_m"] < 1e-9
    assert concatenated["channels"] == 32
    assert concatenated["band_hz"] == pytest.approx([1311.25e6, 1498.75e6])
    rows = mset.read_rows(ms)
    assert (rows.ant_1 <= rows.ant_2).all()
    listing = tmp_path / "listobs.txt"
    log = tmp_path / "casa.log"
    casa.tasks(log).listobs(vis=str(ms), listfile=str(listing))
    text = listing.read_text()
    assert "Spectral Windows:  (1 unique" in text
    assert "OVRO_MMA" in text
    assert "Fields: 1" in text
    metadata = casa.tool("msmetadata")
    metadata.open(str(ms))
    try:
        assert metadata.antennanames()[:2] == ["1", "2"]
        assert metadata.antennaids("117") == [116]
        assert metadata.chanfreqs(0)[0] < metadata.chanfreqs(0)[-1]
        assert metadata.nfields() == 1
        centre = metadata.phasecenter()
        assert centre["refer"] == "ICRS"
        assert np.degrees(centre["m1"]["value"]) == pytest.approx(
            converted["phase_centre_deg"][1], abs=1e-9
        )
    finally:
        metadata.done()
    worries = [
        w
        for w in log.read_text().splitlines()
        if "SEVERE" in w and "measures" not in w and "casarundata" not in w
    ]
    assert [w for w in worries if w.split("::casa")[-1].strip() and "casadocs" not in w] == []


def test_a_missing_subband_keeps_its_channels_flagged(make_group, tmp_path):
    group = make_group(missing=(0, 7))
    ms, converted, _ = convert(group, tmp_path)
    assert converted["missing_subbands"] == [0, 7]
    flags = mset.read_grid(ms, "FLAG", 6)
    lost = np.zeros(32, bool)
    lost[30:32] = lost[16:18] = True  # sb00 is the highest
    assert flags[..., lost, :].all()
    assert not flags[..., ~lost, :].any()
    assert mset.read_observation(ms).freq_hz[-1] == pytest.approx(1498.75e6 - 187.5e6 / 64)


def test_nan_and_short_integrations_become_flags_and_weights(make_group, tmp_path):
    import h5py

    group = make_group()
    with h5py.File(group.files[15], "r+") as file:  # the lowest channels
        file["Data/visdata"][3] = np.nan
        file["Data/nsamples"][5] = 24.0
        file["Data/nsamples"][6] = 0.0
        file["Data/flags"][7] = True
    ms, _, _ = convert(group, tmp_path)
    with mset.open_table(ms) as table:
        flags, weights = table.getcol("FLAG")[:9, :2], table.getcol("WEIGHT_SPECTRUM")[:9, :2]
        assert np.isfinite(table.getcol("DATA")).all()
    assert flags[[3, 6, 7]].all()
    assert not flags[[0, 1, 2, 4, 5, 8]].any()
    assert (weights[[3, 6, 7]] == 0).all()
    assert (weights[5] == 0.5).all()
    assert (weights[0] == 1).all()


def columns_of(ms):
    with mset.open_table(ms) as table:
        return {
            name: table.getcol(name) for name in table.colnames() if name not in ("FLAG_CATEGORY",)
        }


def test_both_writers_make_the_same_measurement_set(make_group, tmp_path, figure):
    """pyuvdata reads, phases and finds uvw with none of our code; stations out of order, NaN, a
    short subband."""
    import h5py

    two = Config(ingest=IngestConfig(expected_subbands=2, min_subbands=2))
    parallel = two.model_copy(update={"conversion": ConversionConfig(writer="parallel-subband")})
    assert (two.writer, parallel.writer, Config().writer) == (
        "pyuvdata",
        "parallel-subband",
        "parallel-subband",
    )
    group = make_group(antennas=40, channels=6, subbands=2)
    with h5py.File(group.files[0], "r+") as file:
        file["Data/visdata"][3] = np.nan
        file["Data/nsamples"][5] = 24.0
        file["Data/nsamples"][6] = 0.0
        file["Data/flags"][7] = True
    shorten(group.files[1], 4)
    ours, converted, _ = convert(group, tmp_path / "ours", parallel)
    theirs, *_ = convert(group, tmp_path / "theirs", two)
    assert converted["short_subbands"] == [1]
    assert (
        mset.read_observation(ours).__dict__.keys() == mset.read_observation(theirs).__dict__.keys()
    )
    for table in ("ANTENNA", "FIELD", "SPECTRAL_WINDOW", "POLARIZATION", "OBSERVATION"):
        with (
            mset.open_table(f"{ours}::{table}") as one,
            mset.open_table(f"{theirs}::{table}") as other,
        ):
            for name in one.colnames():
                if one.iscelldefined(name, 0):
                    assert np.array_equal(one.getcell(name, 0), other.getcell(name, 0)), (
                        table,
                        name,
                    )
    one, other = columns_of(ours), columns_of(theirs)
    assert one.keys() == other.keys()
    for name in one.keys() - {"DATA", "UVW"}:
        assert np.array_equal(one[name], other[name]), name
    apart_m = np.abs(one["UVW"] - other["UVW"]).max()
    assert apart_m < 1e-3
    figure(
        f"uvw of the two writers: {apart_m * 1e3:.3f} mm apart at most on "
        f"{np.abs(one['UVW']).max():.0f} m"
    )
    largest = np.abs(one["DATA"]).max()
    assert largest > 0
    assert np.abs(one["DATA"] - other["DATA"]).max() < 1e-6 * largest
    assert 0 < one["FLAG"].mean() < 1


def shorten(path, integrations):
    """Leave the first integrations only, as in the last file of a run, or those that are listed."""
    import h5py

    with h5py.File(path, "r+") as file:
        nbls, ntimes = int(file["Header/Nbls"][()]), int(file["Header/Ntimes"][()])
        kept = np.isin(
            np.arange(ntimes),
            range(integrations) if isinstance(integrations, int) else integrations,
        )
        assert 0 < kept.sum() < ntimes
        for name in [f"Header/{key}" for key in file["Header"]] + [
            "Data/visdata",
            "Data/flags",
            "Data/nsamples",
        ]:
            if isinstance(file[name], h5py.Dataset) and file[name].shape[:1] == (nbls * ntimes,):
                values = file[name][:][np.repeat(kept, nbls)]
                del file[name]
                file[name] = values
        file["Header/Nblts"][()], file["Header/Ntimes"][()] = nbls * kept.sum(), kept.sum()


def test_a_short_subband_is_flagged_where_it_ends(make_group, tmp_path):
    group, whole = make_group(), make_group(folder="whole")
    shorten(group.files[0], 4)  # the highest channels
    ms, converted, _ = convert(group, tmp_path)
    expected, *_ = convert(whole, tmp_path / "whole")
    assert converted["short_subbands"] == [0]
    flags, data = mset.read_grid(ms, "FLAG", 6), mset.read_grid(ms, "DATA", 6)
    assert flags[4:, :, 30:].all()
    assert not flags[:4].any()
    assert not flags[:, :, :30].any()
    assert np.array_equal(
        np.where(flags, 0, data), np.where(flags, 0, mset.read_grid(expected, "DATA", 6))
    )


@pytest.mark.parametrize("writer", ["parallel-subband", "pyuvdata"])
def test_lost_integrations_are_flagged_wherever_they_are(make_group, tmp_path, writer):
    """One file lacks the first two, the other one in the middle: neither is another
    observation's."""
    config = Config(
        ingest=IngestConfig(expected_subbands=2, min_subbands=2),
        conversion=ConversionConfig(writer=writer),
    )
    group, whole = (make_group(folder=name, subbands=2, antennas=14) for name in ("lossy", "whole"))
    shorten(group.files[0], [2, 3, 4, 5])
    shorten(group.files[1], [0, 1, 2, 4, 5])
    ms, converted, _ = convert(group, tmp_path, config)
    expected, *_ = convert(whole, tmp_path / "whole", config)
    assert converted["short_subbands"] == [0, 1]
    assert np.allclose(mset.read_rows(ms).uvw_m, mset.read_rows(expected).uvw_m, atol=1e-9)
    flags, data = mset.read_grid(ms, "FLAG", 6), mset.read_grid(ms, "DATA", 6)
    lost = np.zeros((6, 4), bool)
    lost[:2, 2:] = lost[3, :2] = True
    assert np.array_equal(flags.all(axis=(1, 3)), lost)
    assert np.array_equal(flags.any(axis=(1, 3)), lost)
    assert np.allclose(
        np.where(flags, 0, data), np.where(flags, 0, mset.read_grid(expected, "DATA", 6)), atol=1e-6
    )


@pytest.mark.parametrize("writer", ["parallel-subband", "pyuvdata"])
def test_weights_are_shares_of_the_groups_full_integration(make_group, tmp_path, writer):
    """A node that lost half its packets throughout counts half; one that lost all is flagged."""
    import h5py

    config = Config(
        ingest=IngestConfig(expected_subbands=2, min_subbands=2),
        conversion=ConversionConfig(writer=writer),
    )
    for samples in (24.0, 0.0):
        group = make_group(subbands=2, folder=f"raw{samples}")
        with h5py.File(group.files[0], "r+") as file:
            file["Data/nsamples"][...] = samples
        ms, *_ = convert(group, tmp_path / f"ms{samples}", config)
        weights, flags = mset.read_grid(ms, "WEIGHT_SPECTRUM", 6), mset.read_grid(ms, "FLAG", 6)
        assert (weights[..., 2:, :] == samples / 48).all()
        assert (weights[..., :2, :] == 1).all()
        assert flags[..., 2:, :].all() == (samples == 0)
        assert not flags[..., :2, :].any()


def test_one_file_alone_does_not_say_where_the_others_would_be(make_group, tmp_path):
    group = make_group(missing=tuple(range(1, 16)))
    with pytest.raises(InputError, match="subband 0 is alone"):
        convert(group, tmp_path)


def test_all_files_short_make_a_short_group(make_group, tmp_path):
    group = make_group()
    for path in group.files.values():
        shorten(path, 3)
    ms, converted, _ = convert(group, tmp_path)
    assert converted["short_subbands"] == []
    assert mset.read_rows(ms).shape[0] == 3
    assert not mset.read_grid(ms, "FLAG", 3).any()


def test_the_measurement_set_is_the_subbands_put_together(make_group, tmp_path):
    """--notemp keeps the subbands: whole Measurement Sets, which concat equals; tiles are of the
    size that was asked for."""
    group = make_group(antennas=20, channels=5, missing=(4,))
    ms, *_ = convert(group, tmp_path)
    parts = {path: columns_of(path) for path in staged(tmp_path / "staging", group.id, DEFAULT)}
    observations = {path: mset.read_observation(path) for path in parts}
    order = sorted(parts, key=lambda path: observations[path].freq_hz[0])
    whole = columns_of(ms)
    for place, path in enumerate(order):
        channels = slice(place * 5, (place + 1) * 5)
        assert np.array_equal(
            mset.read_observation(ms).freq_hz[channels], observations[path].freq_hz
        )
        if path.name == "sb04.ms":
            assert whole["FLAG"][:, channels].all()
            assert len(parts[path]["TIME"]) == 0
            continue
        for name in mset.SPECTRUM_COLUMNS:
            assert np.array_equal(whole[name][:, channels], parts[path][name])
        for name in ("TIME", "UVW", "ANTENNA1", "ANTENNA2", "INTERVAL"):
            assert np.array_equal(whole[name], parts[path][name])
    with mset.open_table(ms) as table:
        tile = table.getdminfo("DATA")["SPEC"]["HYPERCUBES"]["*1"]["TileShape"]
    assert tile.tolist() == [2, 5, mset.tile_rows(210, 5)]


def test_channels_that_are_not_evenly_spaced_are_refused(make_group, tmp_path):
    import h5py

    group = make_group(channels=4)
    with h5py.File(group.files[3], "r+") as file:
        file["Header/freq_array"][0, 1] += 1e5
    with pytest.raises(InputError, match=r"_sb03.*its channels are not"):
        convert(group, tmp_path)


def test_a_file_of_another_observation_is_refused_by_name(make_group, tmp_path):
    group = make_group()
    other = make_group(folder="other", start="2026-03-02T20:19:00")
    files = {**group.files, 9: other.files[9]}
    with pytest.raises(SubbandError, match=r"other/.*sb09.*belongs to another observation"):
        convert_group(files, staged(tmp_path / "staging", group.id, DEFAULT), DEFAULT, 2)
    assert not list(tmp_path.glob("staging/*/*.ms"))


def test_all_zero_data_are_refused(make_group, tmp_path):
    import h5py

    group = make_group()
    for path in group.files.values():
        with h5py.File(path, "r+") as file:
            file["Data/visdata"][...] = 0
    with pytest.raises(InputError, match="every visibility is zero"):
        convert(group, tmp_path)
    assert not (tmp_path / "full.ms").exists()


def test_preparing_twice_is_preparing_once(make_group, tmp_path):
    from contimg.stages.prepare import prepare

    group = make_group(antennas=16, channels=6, integrations=12, rfi=True)
    ms, _, _ = convert(group, tmp_path)
    first = prepare(ms, FlaggingConfig(), STATIONS)
    flags = mset.read_grid(ms, "FLAG", 12)
    second = prepare(ms, FlaggingConfig(), STATIONS)
    assert first == second
    assert np.array_equal(flags, mset.read_grid(ms, "FLAG", 12))
    assert first["flagged_by"]["rfi_times_channels"] > 0.05
