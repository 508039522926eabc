"""A group's own gains: recovered, accepted or not, rule by rule; antennas that do not fit; sources
in the far sidelobes; gains between two sets."""

from dataclasses import replace

import numpy as np
import pytest

from contimg.calibration import apply as application
from contimg.calibration import far, faults, refine
from contimg.calibration.field import Calibrated, Seen
from contimg.config import CalibrationConfig, Config
from contimg.sky.far import FarSource, far_sources
from contimg.sky.geometry import meridian_vector
from contimg.sky.skymodel import Source
from contimg.stages import refine as stage
from tests.conftest import DEC_DEG
from tests.imaging.test_visibilities import CENTRE_DEG, observed

OPTIONS = CalibrationConfig()
NTIME, NCHAN, EVERY = 12, 16, 3  # 32 dishes
NOISE_JY = 0.4


@pytest.fixture(scope="module")
def field():
    """A field of forty sources: what is seen of it, and its model."""
    rng = np.random.default_rng(8)
    stokes = observed(nchan=NCHAN, ntime=NTIME, every=EVERY)
    away, angle = 1.3 * np.sqrt(rng.random(40)), rng.uniform(0, 2 * np.pi, 40)
    flux_jy = 0.08 * (1 - rng.random(40)) ** (-1 / 1.5)
    sources = [
        Source.power_law(
            f"s{k}",
            CENTRE_DEG[0] + a * np.sin(p) / np.cos(np.radians(CENTRE_DEG[1])),
            CENTRE_DEG[1] + a * np.cos(p),
            min(float(flux), 1.0),
        )
        for k, (a, p, flux) in enumerate(zip(away, angle, flux_jy, strict=True))
    ]
    seen = Seen(stokes.observation, stokes.rows, DEC_DEG, sources)
    return seen, seen.model()


def gains_of(nant, moved_deg=0.0, share=0.0, walk_deg=0.0, seed=1):
    """(NTIME, nant, 2), of mean phase 0."""
    rng = np.random.default_rng(seed)
    phase = rng.normal(0, moved_deg, (1, nant, 2))
    phase = phase + rng.normal(0, walk_deg, (NTIME, nant, 2)).cumsum(axis=0)
    return (1 + rng.normal(0, share, (1, nant, 2))) * np.exp(1j * np.radians(phase))


def coarse_of(field, gain=None, model=None, noise_jy=NOISE_JY, seed=2):
    """Data of the field with gains and noise."""
    seen, whole = field
    model = whole if model is None else model
    rows, nant = seen.rows, len(seen.observation.antenna_names)
    rng = np.random.default_rng(seed)
    data = np.repeat(model[..., None], 2, axis=-1).astype(complex)
    if gain is not None:
        data *= (gain[:, rows.ant_1] * np.conj(gain[:, rows.ant_2]))[:, :, None]
    data += noise_jy * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape))
    weights = np.full(data.shape, 1 / noise_jy**2, np.float32)
    return refine.Coarse(data.astype(np.complex64), weights, rows.ant_1, rows.ant_2, nant)


def sky_of(field, sources=None):
    """The field as the stage has it."""
    seen, model = field
    if sources is not None:
        seen = replace(seen, sources=sources)
        model = seen.model()
    number = len(seen.sources)
    return stage._Sky(
        seen.sources, np.ones(number), np.ones(number), seen, seen.observation.freq_hz, 0.0, model
    )


def outcome(field, coarse, options=OPTIONS, sources=None, **about):
    """As the stage has it, against the catalogue `sources`."""
    seen, _ = field
    shape = (NTIME, len(seen.rows.ant_1), NCHAN, 2)
    sefd_jy = np.full((coarse.nant, 2), 7000.0)
    one = Calibrated(
        np.empty(0),
        np.zeros(shape, bool),
        seen.observation,
        seen.rows,
        DEC_DEG,
        coarse.weights,
        **({"sefd_jy": sefd_jy} | about),
    )
    config = Config().model_copy(update={"calibration": options})
    return stage._against_sky(sky_of(field, sources), one, coarse, config)


def apart_deg(found, true):
    """Rms of the phases' errors, and of the relative amplitudes'."""
    ratio = found / true
    ratio = ratio * np.conj(ratio.mean(axis=1, keepdims=True))
    ratio /= np.abs(ratio).mean()
    return np.degrees(np.angle(ratio)).std(), np.abs(ratio).std()


def test_gains_of_every_integration_come_back_at_the_thermal_error(field, figure):
    seen, model = field
    true = gains_of(len(seen.observation.antenna_names), 30, 0.05, 5)
    coarse = coarse_of(field, true)
    found = refine.sums(coarse=coarse, model=model)
    assert refine.interval_for(found=found, coarse=coarse) == 1
    gains = refine.solve(found=found, coarse=coarse, reference=0, interval=1, amplitudes=True)
    phase_deg, amplitude = apart_deg(gains.gain, true)
    expected_deg = np.degrees(np.sqrt((gains.error**2).mean()))
    expected = np.sqrt((gains.error**2).mean() / NTIME)
    figure(
        f"gains of an integration: phases {phase_deg:.2f} deg off, {expected_deg:.2f} expected of "
        f"noise; amplitudes {amplitude:.4f}, {expected:.4f} expected"
    )
    assert phase_deg < 1.2 * expected_deg
    assert amplitude < 1.2 * expected


def test_intervals_are_as_long_as_the_signal_asks(field):
    _, model = field

    def length(noise_jy):
        coarse = coarse_of(field, noise_jy=noise_jy)
        return refine.interval_for(found=refine.sums(coarse=coarse, model=model), coarse=coarse)

    lengths = [length(noise_jy) for noise_jy in (0.4, 4, 8, 20, 1e3)]
    assert lengths[0] == 1
    assert 1 < lengths[1] <= lengths[2] <= NTIME
    assert lengths[4] is None


def test_moved_gains_are_accepted_and_those_that_stood_still_left_alone(field):
    seen, _ = field
    nant = len(seen.observation.antenna_names)
    true = gains_of(nant, 30, 0.05, 5)
    found = outcome(field, coarse_of(field, true))
    assert found.result["refine"] == "ap"
    assert found.result["not_accepted"] == []
    assert found.faulty == ()
    assert found.is_enough
    assert found.result["flux_scale"]["catalogue"] == pytest.approx(
        np.mean(np.abs(true[0, :, 0])) ** 2, abs=0.03
    )
    scaled = np.abs(found.gain) ** 2
    assert scaled.mean() == pytest.approx((np.abs(true) ** 2).mean(), rel=0.01)
    stood = outcome(field, coarse_of(field))
    assert stood.result["refine"].startswith(f"rejected: {refine.UNCHANGED}")
    assert stood.is_enough
    assert np.abs(stood.gain - 1).max() < 0.01  # the flux scale alone
    assert 0 < stood.result["flux_scale"]["set_error"] < 0.005


@pytest.mark.parametrize("flux_scale", ["catalogue", "set"])
def test_both_flux_scales_are_known_and_the_one_that_is_asked_for_is_applied(field, flux_scale):
    louder = np.full((NTIME, len(field[0].observation.antenna_names), 2), 1.1)
    options = OPTIONS.model_copy(update={"flux_scale": flux_scale})
    found = outcome(field, coarse_of(field, louder * gains_of(louder.shape[1], 20)), options)
    scale = found.result["flux_scale"]
    assert scale["catalogue"] == pytest.approx(1.21, abs=0.01)
    assert scale["set"] == 1
    assert scale["applied"] == flux_scale
    assert scale["error"] > 0
    expected = 1.1 if flux_scale == "catalogue" else 1.0
    assert np.abs(found.gain).mean() == pytest.approx(expected, abs=0.005)


def test_sources_that_are_double_or_gone_do_not_bend_gains(field, figure):
    """A tenth each."""
    seen, _ = field
    rng = np.random.default_rng(4)
    real = []
    for k, source in enumerate(seen.sources):
        if k % 10 == 3:
            continue
        if k % 10 == 7:
            angle = rng.uniform(0, 2 * np.pi)
            flux = float(source.flux_jy(1.4e9))
            there = source.ra_deg + 0.01 * np.sin(angle), source.dec_deg + 0.01 * np.cos(angle)
            real += [
                Source.power_law("a", source.ra_deg, source.dec_deg, 0.6 * flux),
                Source.power_law("b", *there, 0.4 * flux),
            ]
        else:
            real.append(source)
    true = gains_of(len(seen.observation.antenna_names), 30, 0.05, 5)
    coarse = coarse_of(field, true, model=replace(seen, sources=real).model())
    found = outcome(field, coarse)
    assert found.result["refine"] == "ap"
    phase_deg, amplitude = apart_deg(found.gain, true)
    expected_deg = np.degrees(np.sqrt((found.solved.error**2).mean()))
    figure(
        f"a tenth double, a tenth gone: phases {phase_deg:.2f} deg off, {expected_deg:.2f} of "
        f"noise; amplitudes {amplitude:.4f}; flux scale {found.result['flux_scale']}"
    )
    assert phase_deg < 1.6 * expected_deg
    assert amplitude < 0.01
    true_scale = float((np.abs(true) ** 2).mean())
    assert found.result["flux_scale"]["factor"] == pytest.approx(true_scale, rel=0.02)


GOOD = refine.Trial(
    chi_before=30000.0,
    chi_after=20000.0,
    values=10000,
    parameters=500,
    noise=1.0,
    lost=0.0,
    faulty=0.0,
    sky=1.0,
    scatter_before=0.1,
    scatter_after=0.05,
    step_deg=5.0,
    between_deg=5.0,
    amplitude_error=0.01,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chi_after": 29400.0}, "the set's gains are right as they are"),
        ({"faulty": 0.3}, "30% of the antennas do not fit the sky: another sky"),
        ({"scatter_after": 0.3}, "another sky"),
        ({"sky": 0.3}, "30% of the catalogue's flux: another sky"),
        ({"noise": 1.06}, "noise would be 1.06 times"),
        ({"lost": 0.2}, "20.0% of the data would be flagged"),
        ({"scatter_after": 0.15}, "would not move together: scatter 0.10 before, 0.15 after"),
        ({"step_deg": 60.0}, "phases jump by 60 deg"),
        ({"between_deg": 60.0}, "phases of X and Y move apart by 60 deg"),
        ({"amplitude_error": 0.2}, "amplitudes are uncertain by 20%"),
    ],
)
def test_each_rule_of_acceptance_speaks_for_itself(change, words):
    assert refine.against(GOOD, True, OPTIONS) == []
    said = refine.against(replace(GOOD, **change), True, OPTIONS)
    assert any(words in one for one in said)


def test_uncertain_amplitudes_are_no_reason_against_phases():
    assert refine.against(replace(GOOD, amplitude_error=0.2), False, OPTIONS) == []


def test_amplitudes_that_noise_makes_are_left_and_phases_taken(field):
    true = gains_of(len(field[0].observation.antenna_names), 50)
    found = outcome(field, coarse_of(field, true, noise_jy=10.0))
    assert found.result["refine"] == "phase"
    assert "amplitudes are uncertain by" in found.result["not_accepted"][0]
    assert found.solved.amplitudes is False
    assert found.solved.interval > 1


def test_a_catalogue_of_another_place_is_noticed(field):
    seen, _ = field
    moved = [replace(s, dec_deg=s.dec_deg + 0.25) for s in seen.sources]
    true = gains_of(len(seen.observation.antenna_names), 30, 0.05, 5)
    found = outcome(field, coarse_of(field, true), sources=moved)
    assert found.result["refine"].startswith("rejected")
    assert found.gain is None
    assert found.faulty == ()
    assert not found.is_enough


def test_the_common_factor_of_sources_is_robust():
    rng = np.random.default_rng(5)
    error = rng.uniform(0.01, 0.1, 40)
    amplitude = 0.9 + error * rng.standard_normal(40)
    amplitude[::10] = 0.0  # gone
    amplitude[5::10] = 0.6  # doubles
    factor, of_it, scatter = refine.ensemble(amplitude, error)
    assert factor == pytest.approx(0.9, abs=0.01)
    assert 0.002 < of_it < 0.02
    assert scatter < 0.2


# -- antennas that do not fit
# ------------------------------------------------------------------------------------------


def exchanged(field, a, b):
    """Model of the field with two antennas in each other's place."""
    seen, _ = field
    places_m = seen.observation.positions_m.copy()
    places_m[[a, b]] = places_m[[b, a]]
    return replace(seen, observation=replace(seen.observation, positions_m=places_m)).model()


def test_exchanged_antennas_are_both_named_and_left_out(field):
    nant = len(field[0].observation.antenna_names)
    true = gains_of(nant, 10)
    found = outcome(field, coarse_of(field, true, exchanged(field, 4, 19)))
    (fault,) = found.faulty
    assert (fault.kind, set(fault.antennas)) == ("exchanged", {4, 19})
    assert fault.words.startswith("4 and 19: exchanged? With their places exchanged the sky has ")
    assert found.result["refine"] == "ap"
    assert np.isinf(found.solved.error[:, [4, 19]]).all()
    kept = outcome(
        field,
        coarse_of(field, true, exchanged(field, 4, 19)),
        OPTIONS.model_copy(update={"flag_faulty": False}),
    )
    assert [one.kind for one in kept.faulty] == ["exchanged"]
    assert np.isfinite(kept.solved.error[:, [4, 19]]).all()


@pytest.mark.parametrize("polarisation", [None, 1])
def test_an_antenna_that_sees_no_sky_is_named(field, polarisation):
    seen, _ = field
    coarse = coarse_of(field, gains_of(len(seen.observation.antenna_names), 10))
    mine = (seen.rows.ant_1 == 6) | (seen.rows.ant_2 == 6)
    rng = np.random.default_rng(9)
    noise = rng.standard_normal((*coarse.data.shape, 2)).astype(np.float32) * NOISE_JY
    which = slice(None) if polarisation is None else polarisation
    coarse.data[:, mine, :, which] = noise.view(np.complex64)[..., 0][:, mine, :, which]
    (fault,) = outcome(field, coarse).faulty
    assert (fault.kind, fault.antennas, fault.polarisation) == ("no_sky", (6,), polarisation)
    assert "6: sees no sky" in fault.words


def test_an_antenna_whose_phases_jump_between_channels_does_not_fit(field):
    seen, _ = field
    coarse = coarse_of(field, gains_of(len(seen.observation.antenna_names), 10))
    ramp = np.exp(1j * np.linspace(0, 1.3 * np.pi, NCHAN))[:, None]
    coarse.data[:, seen.rows.ant_1 == 6] *= ramp
    coarse.data[:, seen.rows.ant_2 == 6] *= np.conj(ramp)
    (fault,) = outcome(field, coarse).faulty
    assert (fault.kind, fault.antennas) == ("unfit", (6,))


def test_a_noisy_antenna_is_named_and_a_normal_one_not(field):
    seen, _ = field
    nant = len(seen.observation.antenna_names)
    sefd_jy = np.full((nant, 2), 7000.0)
    sefd_jy[:, 0] *= np.exp(np.random.default_rng(3).normal(0, 0.27, nant))
    coarse = coarse_of(field, gains_of(nant, 30, 0.05, 5))
    assert outcome(field, coarse, sefd_jy=sefd_jy).faulty == ()
    sefd_jy[11, 1] = 30000.0
    (fault,) = outcome(field, coarse, sefd_jy=sefd_jy).faulty
    assert (fault.kind, fault.antennas) == ("noisy", (11,))
    assert fault.words == "11: noisy, 4.3 times the median receiver"


def test_exchanged_polarisations_are_known_by_the_bandpass_of_the_autocorrelations(field):
    seen, _ = field
    nant = len(seen.observation.antenna_names)
    rng = np.random.default_rng(12)
    x = np.linspace(0, 1, NCHAN)[None, :, None]
    cycles, start = rng.uniform(2, 5, (2, nant, 1, 2))
    band = 1 + 0.1 * np.cos(2 * np.pi * (cycles * x + start))
    raw = 60 * band**2 * (1 + 0.001 * rng.standard_normal(band.shape))
    coarse = coarse_of(field, gains_of(nant, 30, 0.05, 5))

    def named(raw):
        spectra, other = raw / band**2, raw / band[..., ::-1] ** 2
        return outcome(field, coarse, spectra=spectra, other_spectra=other).faulty

    assert named(raw) == ()
    raw[8] = raw[8, :, ::-1]
    (fault,) = named(raw)
    assert (fault.kind, fault.antennas) == ("polarisations", (8,))
    assert fault.words.startswith("8: X and Y exchanged? Its autocorrelations have each other's")


def test_faults_of_an_antenna_are_json():
    one = faults.Fault("no_sky", (1,), "b: sees no sky in Y: dead in it", 1)
    assert faults.as_json([one], ["a", "b"], True) == [
        {
            "kind": "no_sky",
            "antennas": ["b"],
            "polarisation": "Y",
            "words": "b: sees no sky in Y: dead in it",
            "flagged": True,
        }
    ]


# -- far sources
# -----------------------------------------------------------------------------------------


def with_far(seen, model, name, flux_jy, gain=None):
    """Data of a field and a source in the far sidelobes, and where that is."""
    pointing = meridian_vector(np.radians(DEC_DEG))
    (place,) = [one for one in far_sources(seen.rows.time_mjd, pointing) if one.name == name]
    coarse = coarse_of((seen, model), noise_jy=1.0)
    fringes = fringes_of(seen, place)
    for t in range(NTIME):
        more = flux_jy * fringes.of(t, seen.observation.freq_hz)[..., None]
        if gain is not None:
            one, two = seen.rows.ant_1, seen.rows.ant_2
            more = more * (gain[one] * np.conj(gain[two]))[:, None]
        coarse.data[t] += more.astype(np.complex64)
    return coarse.data, pointing


def fringes_of(seen, place):
    from contimg.sky.geometry import track

    rows = np.arange(len(seen.rows.ant_1))
    axes = track(*seen.observation.phase_centre_deg, seen.rows.time_mjd).axes
    pointing = meridian_vector(np.radians(DEC_DEG))
    return far._Fringes(place.vectors, rows, seen.observation, seen.rows, pointing, axes)


def taken_out(seen, data, pointing):
    flags = np.zeros(data.shape, bool)
    return far.subtract(
        data=data,
        flags=flags,
        weights=None,
        sources=far_sources(seen.rows.time_mjd, pointing),
        observation=seen.observation,
        rows=seen.rows,
        pointing=pointing,
    )


@pytest.fixture(scope="module")
def fine():
    """A faint field in channels of the correlator's width."""
    stokes = observed(nchan=384, ntime=NTIME, every=EVERY)
    source = Source.power_law("s", CENTRE_DEG[0] + 0.5, CENTRE_DEG[1], 0.5)
    seen = Seen(stokes.observation, stokes.rows, DEC_DEG, [source])
    return seen, seen.model()


def test_a_source_in_the_far_sidelobes_is_found_and_taken_out(fine, figure):
    seen, model = fine
    data, pointing = with_far(seen, model, "Cas A", 6.0)
    clean, _ = with_far(seen, model, "Cas A", 0.0)
    before = np.abs(data - clean).mean()
    found = {one.name: one for one in taken_out(seen, data, pointing)}
    assert [name for name, one in found.items() if one.subtracted] == ["Cas A"]
    cas_a = found["Cas A"]
    figure(f"Cas A of 6 Jy: {cas_a}; {np.abs(data - clean).mean() / before:.3f} of it is left")
    assert cas_a.apparent_jy == pytest.approx(6.0, rel=0.05)
    assert cas_a.distance_deg == pytest.approx(42.9, abs=1)
    assert not cas_a.free_gains
    assert np.abs(data - clean).mean() < 0.1 * before
    assert far.words(list(found.values())) == ["Cas A, 43 deg away, 6 Jy apparent"]


def test_a_far_source_that_every_dish_sees_otherwise_needs_gains_of_its_own(fine):
    seen, model = fine
    rng = np.random.default_rng(6)
    nant = len(seen.observation.antenna_names)
    gain = rng.lognormal(0, 0.2, (nant, 2)) * np.exp(2j * np.pi * rng.random((nant, 2)))
    data, pointing = with_far(seen, model, "Cas A", 8.0, gain)
    clean, _ = with_far(seen, model, "Cas A", 0.0)
    before = np.abs(data - clean).mean()
    (one,) = [one for one in taken_out(seen, data, pointing) if one.subtracted]
    assert (one.name, one.free_gains) == ("Cas A", True)
    assert np.abs(data - clean).mean() < 0.3 * before


def test_where_nothing_is_nothing_is_taken_out(fine):
    seen, model = fine
    data, pointing = with_far(seen, model, "Cas A", 0.0)
    kept = data.copy()
    assert not any(one.subtracted for one in taken_out(seen, data, pointing))
    assert np.array_equal(data, kept)


def test_the_sun_is_where_it_is_and_what_has_set_is_not_looked_for():
    """At the equinox it stands on the equator; at midnight it is not there."""
    pointing = meridian_vector(np.radians(DEC_DEG))
    noon = 61119.0 + 20 / 24  # 2026-03-20, local noon
    by_name = {one.name: one for one in far_sources(np.array([noon]), pointing)}
    assert by_name["Sun"].distance_deg == pytest.approx(DEC_DEG, abs=2.5)
    assert np.degrees(np.arcsin(by_name["Sun"].vectors[0, 2])) == pytest.approx(0, abs=0.3)
    midnight = {one.name for one in far_sources(np.array([noon + 0.5]), pointing)}
    assert "Sun" not in midnight
    assert all(isinstance(one, FarSource) for one in by_name.values())


# -- between two sets
# ------------------------------------------------------------------------------------


def test_gains_between_two_sets_are_linear_in_amplitude_and_phase():
    rng = np.random.default_rng(7)
    nant, nchan = 12, 32
    first = rng.lognormal(0, 0.1, (1, nant, nchan, 2)) * np.exp(
        2j * np.pi * rng.random((1, nant, nchan, 2))
    )
    phase = rng.normal(0, 0.6, (1, nant, 1, 2))
    phase -= np.angle(np.exp(1j * phase).sum(axis=1, keepdims=True))
    delay = np.linspace(-1, 1, nchan)[None, None, :, None] * rng.normal(0, 1, (1, nant, 1, 2))
    change = rng.lognormal(0, 0.1, (1, nant, 1, 2)) * np.exp(1j * (phase + delay))
    flagged = np.zeros(first.shape, bool)
    flagged[0, 3, 5] = True
    turned = np.exp(2.0j)  # another reference antenna: arbitrary
    other = first * change * turned, flagged
    (between, flags), about = application.between((first, flagged), other, 0.25)
    expected = first * np.abs(change) ** 0.25 * np.exp(0.25j * (phase + delay))
    good = ~flagged
    common = np.angle(np.sum((between / expected)[good]))
    assert np.abs(between / expected * np.exp(-1j * common) - 1)[good].max() < 0.02
    assert np.array_equal(flags, flagged)
    assert about["interpolated"] == pytest.approx(1)
    assert about["flux_ratio"] == pytest.approx(np.median(np.abs(change)) ** 2, rel=0.05)
    # a phase that went too far is not followed
    far_off = first * np.where(np.arange(nant)[None, :, None, None] == 2, -1, 1)
    (between, _), about = application.between((first, flagged), (far_off, flagged), 0.5)
    assert np.array_equal(between[:, 2], first[:, 2])
    assert about["interpolated"] < 1
