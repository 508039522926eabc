"""Our solver and applier against known gains, and against CASA."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from contimg.calibration import apply as application
from contimg.calibration import casa_tasks, registry
from contimg.calibration import tables as caltables
from contimg.calibration.solver import phase_channels, solve
from contimg.calibration.weighing import weigh
from contimg.config import CalibrationConfig, Config, FlaggingConfig, PathsConfig, from_mapping
from contimg.errors import (
    CalibrationError,
    ConfigError,
    NoCalibrationError,
    ProductError,
    ValidationError,
)
from contimg.findings import of_level
from contimg.paths import CHANGING_MARK, Paths
from contimg.queue.groups import RawFile, form_groups
from contimg.simulate import Simulation, antenna_gains, simulate_group
from contimg.sky import prediction, skymodel
from contimg.sky.geometry import meridian_vector, track
from contimg.stages.apply import apply_set
from contimg.stages.prepare import prepare
from contimg.stages.solve import solve_group
from contimg.store import files
from contimg.visibilities import casa, flag_versions
from contimg.visibilities import measurement_set as mset
from tests.conftest import CALIBRATOR_START, DEC_DEG, STATIONS
from tests.visibilities.test_conversion import convert


def applied(ms, tables, logfile):
    """Calibrated with a set alone; returns data, flags, rows."""
    found = application.calibrated(ms, tables, logfile)
    mset.write_columns(ms, CORRECTED_DATA=found.data, FLAG=found.flags)
    return found.data, found.flags, found.rows


NANT, NTIME, NCHAN = 24, 12, 64
ONE, TWO = np.triu_indices(NANT)


@pytest.fixture
def observation():
    """A 5 Jy source that drifts through the beam and a field source; noise of 1; antennas with
    delays and ripples."""
    rng = np.random.default_rng(3)
    x = np.linspace(0, 1, NCHAN)
    amplitude = rng.uniform(0.7, 1.4, (NANT, 1, 2)) * (
        1 + 0.1 * np.sin(rng.uniform(3, 12, (NANT, 1, 2)) * x[:, None])
    )
    turns = rng.uniform(0, 1, (NANT, 1, 2)) + rng.normal(0, 0.3, (NANT, 1, 2)) * x[:, None]
    gain = amplitude * np.exp(2j * np.pi * turns)
    drift = np.linspace(1, 0.8, NTIME)[:, None, None]
    field = (
        0.5
        * np.exp(2j * np.pi * rng.uniform(0, 1, len(ONE)))[None, :, None]
        * np.linspace(0.5, 1, NTIME)[:, None, None]
    )
    model = (5 * drift * np.linspace(1.1, 0.9, NCHAN) + field).astype(np.complex64)
    seen = model[..., None] * (gain[ONE] * np.conj(gain[TWO]))
    noise = rng.standard_normal((*seen.shape, 2)) @ [1, 1j]
    return (seen + noise).astype(np.complex64), model, gain


def run(data, model, flags=None, weights=None, reference=(3, 4)):
    flags = np.zeros(data.shape, bool) if flags is None else flags
    weights = np.ones(data.shape, np.float32) if weights is None else weights
    channels = phase_channels(flags.mean(axis=(0, 1, 3)))
    return solve(
        data=data,
        model=model,
        flags=flags,
        weights=weights,
        ant_1=ONE,
        ant_2=TWO,
        nant=NANT,
        reference=list(reference),
        min_snr=3.0,
        phase_channels=channels,
    )


def residual(bandpass, gain, truth):
    """Relative errors of the product, phases referred to antenna 3: (nant, nchan, npol)."""
    found = bandpass.gain * gain.gain
    expected = truth * np.exp(-1j * np.angle(truth[3]))
    return found * np.exp(-1j * np.angle(found[3])) / expected - 1


def test_gains_come_back_at_the_thermal_error(observation, figure):
    data, model, truth = observation
    bandpass, gain = run(data, model)
    away = residual(bandpass, gain, truth)
    weight = (np.abs(model) ** 2).sum(axis=0)  # (nbaseline, nchan)
    expected = np.zeros((NANT, NCHAN, 2))
    for b in np.flatnonzero(ONE != TWO):
        for i, j in ((ONE[b], TWO[b]), (TWO[b], ONE[b])):
            expected[i] += weight[b][:, None] * np.abs(truth[j]) ** 2
    expected = 1 / np.sqrt(expected) / np.abs(truth)  # of real and of imaginary part
    ratio = np.sqrt(np.mean(away.real**2)) / np.sqrt(np.mean(expected**2))
    figure(
        f"solver: rms error of amplitudes {np.sqrt(np.mean(away.real**2)):.5f}, thermal "
        f"{np.sqrt(np.mean(expected**2)):.5f}"
    )
    assert ratio == pytest.approx(1, abs=0.06)
    assert np.median(bandpass.error / np.abs(bandpass.gain)) == pytest.approx(
        np.sqrt(2) * np.median(expected), rel=0.05
    )
    assert np.angle(bandpass.gain[3]) == pytest.approx(0, abs=1e-9)
    assert np.abs(away.real.mean()) < 5e-4


def test_flags_weights_and_dead_antennas_are_honoured(observation):
    data, model, truth = observation
    flags, weights = np.zeros(data.shape, bool), np.ones(data.shape, np.float32)
    dead = (ONE == 9) | (TWO == 9)
    flags[:, dead] = True
    data[:, dead] = 1e3
    flags[:, :, 20] = True
    data[:, :, 20] = np.nan
    weights[5], data[5] = 0, 77
    bandpass, gain = run(data, model, flags, weights)
    assert bandpass.flags[9].all()
    assert gain.flags[9].all()
    assert bandpass.flags[:, 20].all()
    good = ~bandpass.flags
    assert good.mean() == pytest.approx((23 / 24) * (63 / 64))
    assert np.abs(residual(bandpass, gain, truth)[good]).max() < 0.1


def test_too_faint_is_flagged_and_a_lost_reference_is_replaced(observation):
    data, model, truth = observation
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((*data.shape, 2)) @ [1, 1j]).astype(np.complex64)
    assert run(noise, model)[0].flags.mean() > 0.5
    flags = np.zeros(data.shape, bool)
    flags[:, (ONE == 3) | (TWO == 3), 30:] = True
    bandpass, gain = run(data, model, flags)
    assert np.angle(bandpass.gain[3, :30]) == pytest.approx(0, abs=1e-9)
    assert bandpass.flags[3, 30:].all()
    good = ~bandpass.flags
    good[3] = False
    # phases relative to antenna 4, which has them all
    found, expected = (bandpass.gain * gain.gain, truth)
    found, expected = (g * np.exp(-1j * np.angle(g[4])) for g in (found, expected))
    assert np.abs(found / expected - 1)[good].max() < 0.15
    steps_deg = np.angle(bandpass.gain[4, 1:] / bandpass.gain[4, :-1], deg=True)
    assert np.abs(steps_deg).max() < 25  # no jump where the reference is lost


def test_integrations_without_a_phase_do_not_bias_the_bandpass(observation):
    """One antenna, and the whole array, lost in the channels that the phases come from, for some
    integrations."""
    data, model, truth = observation
    flags = np.zeros(data.shape, bool)
    mine = (ONE == 7) | (TWO == 7)
    flags[np.ix_([0, 1, 2, 3], np.flatnonzero(mine), range(24, 40))] = True
    flags[10:, :, 24:40] = True
    bandpass, gain = solve(
        data=data,
        model=model,
        flags=flags,
        weights=np.ones(data.shape, np.float32),
        ant_1=ONE,
        ant_2=TWO,
        nant=NANT,
        reference=[3, 4],
        min_snr=3.0,
        phase_channels=(24, 40),
    )
    away = residual(bandpass, gain, truth).real
    assert np.abs(away.mean()) < 1e-3
    assert np.abs(away[7].mean()) < 0.005
    for channels in (slice(0, 24), slice(24, 40)):
        assert np.abs(away[:, channels].mean()) < 2e-3


def test_small_gaps_of_a_bandpass_are_filled(observation):
    data, model, truth = observation
    flags = np.zeros(data.shape, bool)
    flags[:, :, 20:23] = True
    solutions = [
        solve(
            data=data,
            model=model,
            flags=flags,
            weights=np.ones(data.shape, np.float32),
            ant_1=ONE,
            ant_2=TWO,
            nant=NANT,
            reference=[3],
            min_snr=3.0,
            phase_channels=(30, 46),
            fill=fill,
        )
        for fill in (2, 3)
    ]
    assert solutions[0][0].flags[:, 20:23].all()
    bandpass, gain = solutions[1]
    assert not bandpass.flags.any()
    assert np.abs(residual(bandpass, gain, truth)[:, 20:23]).max() < 0.08
    assert (bandpass.error[:, 21] > 0).all()


def test_quarter_of_the_band_with_the_fewest_flags():
    flagged = np.zeros(64)
    assert phase_channels(flagged) == (24, 40)
    flagged[20:36] = 1
    assert phase_channels(flagged) in ((36, 52), (4, 20))
    assert phase_channels(np.zeros(2)) == (0, 1)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (None, []),
        (">0.5klambda", [0]),
        ("<100m", [1, 2]),
        ("50~1000m", [0, 2]),
        ("0.1 ~ 1klambda", [0, 2]),
        ("<1Mlambda", []),
    ],
)
def test_uvrange_is_casas(text, lost):
    uvw_m = np.array([[[10.0, 0, 5], [0, 150, 0], [2000, 0, 0]]])
    freq_hz = np.array([1.4e9])
    assert np.flatnonzero(mset.outside(text, uvw_m, freq_hz)[0]).tolist() == lost


@pytest.mark.parametrize("text", ["1klambda", "> fast", "<5parsec", "1~"])
def test_a_uvrange_that_says_nothing_is_refused(text):
    with pytest.raises(ConfigError, match=r"calibration\.uvrange"):
        from_mapping({"calibration": {"uvrange": text}})


def calibrated(folder, sky, solvers=("fast",), dec_deg=DEC_DEG, **calibration):
    """A simulated calibrator group, converted, prepared and solved: (ms, result by solver, injected
    gains of the antennas)."""
    sim = Simulation(
        start=CALIBRATOR_START, antennas=28, channels=6, rfi=True, dead=(101,), dec_deg=dec_deg
    )
    paths = simulate_group(folder / "raw", sim, sky, STATIONS)
    group = form_groups([RawFile.named(p) for p in paths], 120, 300, 16)[0]
    ms, converted, _ = convert(group, folder)
    prepare(ms, FlaggingConfig(), STATIONS)
    flag_versions.save(ms)
    results = {}
    for solver in solvers:
        where = PathsConfig(products=folder / solver, state=folder / "state")
        config = Config(
            paths=where, calibration=CalibrationConfig(solver=solver, min_beam=0.3, **calibration)
        )
        results[solver] = solve_group(
            ms, group.id, converted["app_dec_deg"], config, folder / "casa.log"
        )
    observation = mset.read_observation(ms)
    gains = antenna_gains(sim, len(observation.antenna_names), observation.freq_hz[::-1])[:, ::-1]
    return ms, results, np.sqrt(sim.scale) * gains


def against_truth(result, truth):
    """Amplitudes of the product of the tables over those injected, and the relative errors that the
    tables state."""
    bandpass, gain = (caltables.read(result["tables"][kind]) for kind in "BG")
    good = ~bandpass.flags & ~gain.flags
    ratio = np.abs(bandpass.gain * gain.gain)[good] / np.abs(truth)[good]
    return ratio, 1 / bandpass.snr[good]


@pytest.fixture(scope="module")
def solved(tmp_path_factory, sky):
    """With interference, a dead antenna and out-of-order stations; solved by us and by CASA."""
    return calibrated(tmp_path_factory.mktemp("solved"), sky, ("fast", "casa"))


def test_injected_gains_come_back_in_correlator_units_per_jansky(solved, figure):
    """Delays, ripples and slopes, with interference and a dead antenna in the data; the scatter is
    thermal."""
    _, results, truth = solved
    ratio, error = against_truth(results["fast"], truth)
    # the tables state the error of a complex value
    found, thermal = (ratio.std(), np.sqrt(np.mean(error**2) / 2))
    figure(
        f"gains: {np.median(ratio):.5f} of those injected, rms {found:.5f}, thermal expectation "
        f"{thermal:.5f}"
    )
    assert np.median(ratio) == pytest.approx(1, abs=1e-3)
    assert found == pytest.approx(thermal, rel=0.1)


def test_a_calibrator_a_degree_off_gives_the_same_scale(tmp_path, sky, monkeypatch, figure):
    """With the beam at each integration and channel in the model; without it, what every other
    pipeline makes of it."""
    _, results, truth = calibrated(tmp_path / "off", sky, dec_deg=DEC_DEG - 1.0)
    ratio, _ = against_truth(results["fast"], truth)
    assert results["fast"]["mean_beam"] < 0.75
    monkeypatch.setattr(
        skymodel,
        "beam_track",
        lambda vectors, pointing, freq_hz, *_: np.ones((*vectors.shape[:2], len(freq_hz))),
    )
    _, beamless, _ = calibrated(tmp_path / "beamless", sky, dec_deg=DEC_DEG - 1.0)
    biased, _ = against_truth(beamless["fast"], truth)
    figure(
        f"calibrator 1 deg off: gains {np.median(ratio):.4f} of those injected; fluxes with a "
        f"model without beam {np.median(biased) ** -2:.2f} times too high"
    )
    assert np.median(ratio) == pytest.approx(1, abs=2e-3)
    assert 1.4 < np.median(biased) ** -2 < 2.0


def test_a_model_that_lacks_the_field_is_gated(tmp_path, sky, figure):
    """What leaving out the other sources costs, and that the set is not used."""
    _, results, truth = calibrated(
        tmp_path, sky, dec_deg=DEC_DEG - 1.3, sky_radius_deg=0.2, min_modelled=0.9
    )
    result = results["fast"]
    ratio, error = against_truth(result, truth)
    figure(
        f"model with {result['modelled_share']:.0%} of the flux in the beam: gains "
        f"{np.median(ratio):.4f} of those injected, "
        f"rms {ratio.std():.4f}, thermal {np.sqrt(np.mean(error**2) / 2):.4f}"
    )
    assert result["modelled_share"] < 0.9
    assert any("of the catalogued flux in the beam" in line for line in result["problems"])


def test_solutions_are_casas(solved, figure):
    """Within 0.1 % and 0.1 deg at the 99th percentile where both are unflagged, each table by
    itself."""
    _, results, _ = solved
    for kind in "BG":
        ours, theirs = (caltables.read(r["tables"][kind]) for r in results.values())
        assert np.array_equal(ours.antenna, theirs.antenna)
        both = ~ours.flags & ~theirs.flags
        assert both.mean() > 0.2
        assert (ours.flags != theirs.flags).mean() < 1e-3
        amplitude = np.abs(np.abs(ours.gain[both]) / np.abs(theirs.gain[both]) - 1)
        phase_deg = np.abs(np.angle(ours.gain[both] / theirs.gain[both], deg=True))
        worst = np.percentile(amplitude, 99), np.percentile(phase_deg, 99)
        figure(
            f"{kind} against CASA, 99th percentile: {100 * worst[0]:.4f} % and {worst[1]:.4f} deg"
        )
        assert worst[0] < 1e-3
        assert worst[1] < 0.1
        assert np.median(ours.snr[both] / theirs.snr[both]) == pytest.approx(1, abs=0.03)
    assert results["fast"]["refant"] == results["casa"]["refant"]
    assert results["fast"]["quality"]["B"]["antennas"] == 27


def test_correction_is_casas_and_may_be_repeated(solved):
    ms, results, _ = solved
    tables = results["fast"]["tables"]
    data, flags, rows = applied(ms, tables, None)
    nant = len(mset.read_observation(ms).antenna_names)
    found, noise, weights = weigh(ms=ms, data=data, flags=flags, rows=rows, nant=nant)
    assert np.nanmedian(noise) ** 2 == pytest.approx(found["median_noise_jy"], rel=0.02)
    mset.write_columns(ms, WEIGHT_SPECTRUM=weights)
    casa_tasks.apply_casa(ms, tables, None)  # reads the tables that we wrote
    theirs, their_flags = (mset.read_grid(ms, name, 24) for name in ("CORRECTED_DATA", "FLAG"))
    assert np.array_equal(flags, their_flags)
    assert np.abs(data - theirs)[~flags].max() < 2e-6 * np.abs(theirs[~flags]).max()
    again, flags_again, _ = applied(ms, tables, None)
    assert np.array_equal(flags, flags_again)
    assert np.array_equal(data, again)
    found_again, _, weights_again = weigh(
        ms=ms, data=again, flags=flags_again, rows=rows, nant=nant
    )
    assert found_again == found
    assert weights_again == pytest.approx(weights, rel=1e-5)
    # 8 fine channels in one
    assert found["median_noise_jy"] == pytest.approx(2.59 * np.sqrt(1 / 8), rel=0.02)
    cross = rows.ant_1 != rows.ant_2
    model = mset.read_grid(ms, "MODEL_DATA", 24)
    use = ~flags & cross[None, :, None, None]
    fitted = np.vdot(model[use], data[use]).real / np.vdot(model[use], model[use]).real
    assert fitted == pytest.approx(1, abs=2e-3)


def test_tables_that_are_gone_are_refused(solved, tmp_path):
    ms, results, _ = solved
    with pytest.raises(CalibrationError, match=r"absent.*are gone"):
        applied(ms, dict.fromkeys(results["fast"]["tables"], tmp_path / "absent"), None)


def test_a_set_from_elsewhere_is_imported_when_its_tables_are_what_they_should_be(solved, tmp_path):
    _, results, _ = solved
    database, options = tmp_path / "registry.sqlite3", CalibrationConfig()
    tables = {kind: str(path) for kind, path in results["casa"]["tables"].items()}

    def bring(name, those):
        registry.import_set(database, name, those, 61101.8, DEC_DEG, "3C48", "PB", "12", options)

    with pytest.raises(CalibrationError, match="expected B and G"):
        bring("theirs", {"B": tables["B"]})
    with pytest.raises(CalibrationError, match="B Jones, expected G Jones"):
        bring(
            "theirs", {"B": tables["B"], "G": tables["B"] + "/../" + tables["B"].rpartition("/")[2]}
        )
    bring("theirs", tables)
    assert list(registry.select_for(database, 61101.9, DEC_DEG, options)["tables"]) == ["B", "G"]
    (one,) = registry.describe_sets(database)
    assert one["tables"][0]["quality"]["antennas"] == 27
    with pytest.raises(CalibrationError, match="registered already"):
        bring("theirs", tables)
    with pytest.raises(CalibrationError, match="belong to another set"):
        bring("again", tables)
    with pytest.raises(CalibrationError, match="nobody is not registered"):
        registry.retire(database, "nobody", "x")
    registry.retire(database, "theirs", "old")
    with pytest.raises(NoCalibrationError, match="theirs: retired: old"):
        registry.select_for(database, 61101.9, DEC_DEG, options)


def test_a_measurement_set_that_was_being_written_to_is_not_used(solved):
    """A row may have been scaled in part of its channels, a column be there in part."""
    ms, results, _ = solved
    with pytest.raises(KeyboardInterrupt), mset.changing(ms):
        raise KeyboardInterrupt
    mark = ms / CHANGING_MARK
    try:
        for read in (
            lambda: applied(ms, results["fast"]["tables"], None),
            lambda: prepare(ms, FlaggingConfig(), STATIONS),
        ):
            with pytest.raises(
                ProductError,
                match=r"was killed while it wrote into it\. The next run converts the group again",
            ):
                read()
    finally:
        mark.unlink()
    data, flags, rows = applied(ms, results["fast"]["tables"], None)
    weigh(ms=ms, data=data, flags=flags, rows=rows, nant=117)
    assert not mark.exists()


def test_tables_go_by_the_names_of_stations(solved, tmp_path):
    """A station more in the headers than when the set was solved, others in another order: each
    gets its own gain."""
    ms, results, _ = solved
    tables, table = dict(results["fast"]["tables"]), tmp_path / "other.bpcal"
    expected, flags, _ = applied(ms, tables, None)
    shutil.copytree(tables["B"], table)
    with mset.open_table(table / "ANTENNA", readonly=False) as antenna:
        names = list(antenna.getcol("NAME"))
        antenna.putcol("NAME", names[::-1])
    with mset.open_table(table, readonly=False) as rows:
        rows.putcol("ANTENNA1", len(names) - 1 - rows.getcol("ANTENNA1"))
    found, now, _ = applied(ms, tables | {"B": table}, None)
    assert np.array_equal(found[~flags], expected[~flags])
    assert np.array_equal(now, flags)
    lost = int(mset.read_rows(ms).ant_1[-1])
    with mset.open_table(table / "ANTENNA", readonly=False) as antenna:
        antenna.putcell("NAME", len(names) - 1 - lost, "new")
    _, now, rows = applied(ms, tables | {"B": table}, None)
    of_lost = (rows.ant_1 == lost) | (rows.ant_2 == lost)
    assert now[:, of_lost].all()
    assert np.array_equal(now[:, ~of_lost], flags[:, ~of_lost])
    with mset.open_table(table / "ANTENNA", readonly=False) as antenna:
        antenna.putcol("NAME", [f"x{name}" for name in names])
    with pytest.raises(CalibrationError, match="has none of the stations"):
        applied(ms, tables | {"B": table}, None)


def solved_again(solved, folder, **calibration):
    """Solve the simulated group once more, and register; (ms, result, registry, configuration)."""
    ms = solved[0]
    where = PathsConfig(products=folder, state=folder / "state")
    config = Config(paths=where, calibration=CalibrationConfig(min_beam=0.3, **calibration))
    result = solve_group(ms, ms.stem, DEC_DEG, config, folder / "casa.log")
    database = folder / "registry.sqlite3"
    registry.register_solved(database, result | {"versions": {}}, config.calibration)
    return ms, result, database, config


def test_fast_mode_is_not_for_science(solved, tmp_path, figure):
    ms, result, database, config = solved_again(
        solved, tmp_path, fast=True, timebin_s=30, chanbin=4
    )
    assert [path.rpartition("/")[2] for path in result["tables"].values()] == [
        f"{ms.stem}.fast.bpcal",
        f"{ms.stem}.fast.gcal",
    ]
    ratio, _ = against_truth(result, solved[2])
    figure(f"fast mode: gains {np.median(ratio):.4f} of those injected, rms {ratio.std():.4f}")
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    gains = caltables.read(result["tables"]["G"])
    assert np.abs(gains.gain[~gains.flags]) == pytest.approx(1, abs=1e-6)
    mid_mjd, science = result["mid_mjd"], CalibrationConfig()
    assert registry.select_for(database, mid_mjd, DEC_DEG, config.calibration)["science"] is False
    with pytest.raises(NoCalibrationError, match="NON_SCIENCE: solved in fast mode"):
        registry.select_for(database, mid_mjd, DEC_DEG, science)
    with pytest.raises(CalibrationError, match="chanbin 7 does not divide its 96 channels"):
        solved_again(solved, tmp_path, fast=True, chanbin=7)


def test_a_new_set_is_compared_with_the_nearest_other_one(solved, tmp_path):
    """The same tables pass; a fifth of the gains, which noise would give, do not."""
    _, result, database, config = solved_again(solved, tmp_path)
    registered = {}
    for name, factor in (("same", 1.0), ("noise", 0.2)):
        tables = {}
        for kind, path in result["tables"].items():
            tables[kind] = str(tmp_path / f"{name}.{kind}")
            shutil.copytree(path, tables[kind])
        with mset.open_table(tables["G"], readonly=False) as table:
            table.putcol("CPARAM", (factor * table.getcol("CPARAM")).astype(np.complex64))
        later = result | {
            "set_name": name,
            "tables": tables,
            "mid_mjd": result["mid_mjd"] + 0.5,
            "versions": {},
        }
        registered[name] = registry.register_solved(
            database, later, config.calibration, config.gates
        )
    assert registered["same"]["status"] == "active"
    assert registered["same"]["gates"]["gains_change"] == pytest.approx(1)
    assert registered["same"]["gates"]["compared_with"] == result["set_name"]
    assert registered["noise"]["status"] == "failed"
    assert "gains are 0.20 times those of set same, 0.0 h " in registered["noise"]["notes"]
    assert "fail beyond 3 times" in registered["noise"]["notes"]


def test_delays_pass_the_same_gates(solved, tmp_path):
    """CASA applies what we cannot, and what it makes is judged."""
    _, result, *_ = solved_again(solved, tmp_path, do_k=True)
    assert set(result["tables"]) == {"K", "B", "G"}
    assert result["gates"]["sefd_jy"] == pytest.approx(6500, rel=0.05)
    assert result["gates"]["explained"] > 0.98
    assert of_level(result["gates"]["findings"], "warn", "fail", "unknown") == []


def test_gains_in_intervals_are_linear_in_their_group_and_a_mean_for_others(solved, tmp_path):
    ms, result, *_ = solved_again(solved, tmp_path, gain_interval_s=60)
    tables = result["tables"]
    found = caltables.read(tables["G"])
    assert len(np.unique(found.time_mjd)) == 5
    with mset.open_table(tables["G"], readonly=False) as table:  # drifting gains
        when = (found.time_mjd - found.time_mjd.min()) / np.ptp(found.time_mjd)
        table.putcol("CPARAM", (found.gain * (1 + 0.2j * when[:, None, None])).astype(np.complex64))
    data, flags, rows = applied(ms, tables, None)
    casa_tasks.apply_casa(ms, tables, None)
    theirs, their_flags = (mset.read_grid(ms, name, 24) for name in ("CORRECTED_DATA", "FLAG"))
    assert np.array_equal(flags, their_flags)
    assert np.abs(data - theirs)[~flags].max() < 1e-5 * np.abs(theirs[~flags]).max()
    drifting = caltables.read(tables["G"])
    other = application._gains_at(
        drifting, len(mset.read_observation(ms).antenna_names), rows.time_mjd + 0.3
    )
    good = ~drifting.flags[: other.shape[1], 0, 0]
    assert other.shape[0] == 1
    assert (
        np.abs(other[0, good, 0] / found.gain[: other.shape[1]][good, 0, 0] - (1 + 0.1j)).max()
        < 0.05
    )


def test_apply_notices_a_set_that_is_far_from_the_catalogue(solved, tmp_path, figure):
    ms, result, database, config = solved_again(solved, tmp_path)
    chosen = registry.select_for(database, result["mid_mjd"], DEC_DEG, config.calibration)
    found = apply_set(ms, ms.stem, chosen, DEC_DEG, config, None)
    figure(
        f"catalogue's amplitude in calibrated data: {found['model_fit']:.4f} +- "
        f"{found['model_fit_error']:.4f}"
    )
    assert found["model_fit"] == pytest.approx(1, abs=0.01)
    assert found["model_fit_error"] < 0.01
    with mset.open_table(result["tables"]["G"], readonly=False) as table:
        table.putcol("CPARAM", 1.3 * table.getcol("CPARAM"))
    with pytest.raises(CalibrationError, match=r"(bpcal|gcal) was altered"):
        apply_set(ms, ms.stem, chosen, DEC_DEG, config, None)
    sums = [files.checksum(Path(path)) for path in chosen["tables"].values()]
    wrong = apply_set(ms, ms.stem, chosen | {"checksums": sums}, DEC_DEG, config, None, result)
    (words,) = [w for w in of_level(wrong["gates"]["findings"], "fail") if "catalogue" in w]
    assert words.startswith(
        "calibrated data have 59% of the amplitude that the catalogue's sources should have; fail "
        "beyond 30 %"
    )
    # The receivers tell the same without a catalogue: their noise is 1.3^-4 of what it was.
    assert wrong["gates"]["sefd_change"] == pytest.approx(1.3**-2, rel=0.02)
    assert any(
        re.match(r"noise is 0\.(59|60) times that of the set.s own observation; warn", w)
        for w in of_level(wrong["gates"]["findings"], "warn")
    )


def test_gains_between_two_sets_are_applied_and_their_difference_is_an_error(solved, tmp_path):
    """The other set's gains are 1.1 times these: half way, amplitudes are 1.1 times less."""
    ms, result, database, config = solved_again(solved, tmp_path)
    chosen = registry.select_for(database, result["mid_mjd"], DEC_DEG, config.calibration)
    assert chosen["between"] is None
    other = {kind: tmp_path / f"other.{kind}" for kind in result["tables"]}
    for kind, path in result["tables"].items():
        shutil.copytree(path, other[kind])
    with mset.open_table(other["G"], readonly=False) as table:
        table.putcol("CPARAM", 1.1 * table.getcol("CPARAM"))
    between = {
        "set_name": "other",
        "tables": {kind: str(path) for kind, path in other.items()},
        "checksums": [files.checksum(path) for path in other.values()],
        "share": 0.5,
    }
    found = apply_set(ms, ms.stem, chosen | {"between": between}, DEC_DEG, config, None)
    assert found["model_fit"] == pytest.approx(1 / 1.1, abs=0.01)
    assert found["between"]["flux_ratio"] == pytest.approx(1.1**-2, abs=0.001)
    assert found["between"]["interpolated"] == pytest.approx(1)
    refined = files.read_json(Paths.of(config).result(ms.stem, "refine"))
    assert refined["flux_scale"]["set_error"] == pytest.approx((1 - 1.1**-2) / 2, rel=0.1)
    # one that was altered since is not used
    wrong = between | {"checksums": ["0"] * len(other)}
    found = apply_set(ms, ms.stem, chosen | {"between": wrong}, DEC_DEG, config, None)
    assert found["model_fit"] == pytest.approx(1, abs=0.01)
    assert "between" not in found


def test_tables_with_every_solution_flagged_leave_nothing_to_image(solved, tmp_path):
    ms, result, _, config = solved_again(solved, tmp_path)
    with mset.open_table(result["tables"]["B"], readonly=False) as table:
        table.putcol("FLAG", np.ones_like(table.getcol("FLAG")))
    quality = {
        kind: caltables.quality_of(Path(path), kind) for kind, path in result["tables"].items()
    }
    assert any(
        "B: antennas is 0" in line for line in caltables.problems(quality, config.calibration)
    )
    chosen = {
        "set_name": "x",
        "science": True,
        "tables": result["tables"],
        "checksums": [files.checksum(Path(p)) for p in result["tables"].values()],
    }
    with pytest.raises(ValidationError, match="every visibility is flagged after calibration"):
        apply_set(ms, ms.stem, chosen, DEC_DEG, config, None)


def test_a_model_of_nothing_and_a_dead_reference_antenna_are_refused(solved, tmp_path, monkeypatch):
    with pytest.raises(CalibrationError, match="has no unflagged data"):
        solved_again(solved, tmp_path, refant="101")
    with pytest.raises(CalibrationError, match="'999' is no antenna of this observation"):
        solved_again(solved, tmp_path, refant="999")
    monkeypatch.setattr(
        skymodel,
        "beam_track",
        lambda vectors, pointing, freq_hz, *_: np.zeros((*vectors.shape[:2], len(freq_hz))),
    )
    for fast in (True, False):
        with pytest.raises(ValidationError, match="the sky model is zero"):
            solved_again(solved, tmp_path, fast=fast)


def test_the_model_is_that_of_casas_ft(solved, tmp_path, monkeypatch, figure):
    """Without beam and spectrum, which `ft` does not know; `ft` takes the directions from the phase
    centre's uvw."""
    ms, *_ = solved
    observation, rows = mset.read_observation(ms), mset.read_rows(ms)
    ra, dec = observation.phase_centre_deg
    sources = [
        skymodel.Source.power_law("a", ra, dec, 2.0, 0),
        skymodel.Source.power_law("b", ra + 0.5, dec - 0.3, 1.0, 0),
    ]
    tasks, components = casa.tasks(), casa.tool("componentlist")
    for source in sources:
        components.addcomponent(
            flux=10 ** source.log_flux[0],
            shape="point",
            dir=f"ICRS {source.ra_deg}deg {source.dec_deg}deg",
        )
    components.rename(str(tmp_path / "two.cl"))
    components.done()
    before = mset.read_grid(ms, "MODEL_DATA", 24)
    tasks.ft(vis=str(ms), complist=str(tmp_path / "two.cl"), usescratch=True)
    theirs = mset.read_grid(ms, "MODEL_DATA", 24)[..., 0]
    mset.write_columns(ms, MODEL_DATA=before)
    monkeypatch.setattr(
        skymodel,
        "beam_track",
        lambda vectors, pointing, freq_hz, *_: np.ones((*vectors.shape[:2], len(freq_hz))),
    )
    axes = track(ra, dec, rows.time_mjd).axes
    ours = prediction.predict(
        sources=sources,
        mjd=rows.time_mjd,
        phase_axes=axes,
        pointing=meridian_vector(np.radians(DEC_DEG)),
        positions_m=observation.positions_m,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        freq_hz=observation.freq_hz,
    )
    cross = rows.ant_1 != rows.ant_2
    apart = np.abs(ours - theirs)[:, cross].max()
    figure(f"model against CASA's ft: largest difference {apart:.4f} Jy of 3")
    assert apart < 0.03
