"""Every plot, on nothing, on one of everything, on NaN and negative values: a plot never fails what
it describes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contimg.calibration import tables as caltables
from contimg.calibration.tables import Solutions
from contimg.calibration.words import summary
from contimg.paths import GROUP_PLOTS
from contimg.plots import calibration, day, flags, image, style, visibilities
from contimg.plots.refinement import draw_neighbours, draw_refinement
from contimg.visibilities.measurement_set import Observation

NAN = float("nan")
numbers = st.one_of(st.none(), st.floats(-5, 50), st.sampled_from([NAN, float("inf"), 0.0, -1.0]))
finite = st.floats(-2, 50, allow_nan=False)


def imaged(sources, **more):
    found = [s for s in sources if s["found"]]
    check = {
        "found": len(found),
        "expected": len(sources),
        "compared": len(found),
        "flux_ratio": 1.0,
        "flux_scatter": 0.1,
        "offset_east_arcsec": 0.1,
        "offset_north_arcsec": -0.1,
    }
    return {
        "catalogue": check,
        "sources": sources,
        "imsize": 128,
        "cell_arcsec": 8.0,
        "rms_jy": 1e-3,
        "thermal_jy": 1e-3,
        "centre_deg": [359.9, 16.0],
        "beam_major_arcsec": 30.0,
        "beam_minor_arcsec": 15.0,
        "beam_pa_deg": 3.0,
        "verdict": "good",
        "verdict_reasons": [],
        "cleaned": "as asked",
        "freq_hz": 1.4e9,
    } | more


source = st.fixed_dictionaries(
    {
        "name": st.just("x"),
        "ra_deg": st.floats(0, 360),
        "dec_deg": st.floats(-89, 89),
        "found": st.booleans(),
        "catalogue_jy": st.floats(1e-4, 20),
        "flux_jy": st.floats(-1, 20),
        "snr": st.floats(1e-3, 1e4),
        "beam": st.floats(0, 1),
        "east_arcsec": st.floats(-40, 40),
        "north_arcsec": st.floats(-40, 40),
    }
)
picture = st.sampled_from(
    [np.full((16, 16), NAN), np.zeros((16, 16)), -np.ones((16, 16)), np.eye(16)]
)
CHOSEN = {"set_name": "s", "cal_field": "3C48", "flux_scale": "PB", "tables": {}}


def drawn(draw, tmp_path):
    """Draws in earnest: a reason why it was not drawn is a failure of this test."""
    why = style.save_plot(draw, tmp_path / "plot.png")
    assert why is None, why
    assert (tmp_path / "plot.png").stat().st_size > 500
    assert not plt.get_fignums()


several = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@several
@given(sources=st.lists(source, max_size=4), values=picture)
def test_maps_and_the_catalogues_plot(tmp_path, sources, values):
    about = imaged(sources)
    drawn(lambda: image.draw_image(values, about, "title"), tmp_path)
    drawn(lambda: image.draw_catalogue(about, "group"), tmp_path)
    drawn(lambda: image.draw_thumbnail(values, about), tmp_path)
    drawn(lambda: image.draw_residual(values, about, "group"), tmp_path)
    drawn(lambda: image.draw_beam(values, about, "group"), tmp_path)


def solutions(antennas, channels, value, flagged, intervals=1):
    shape = (antennas * intervals, channels, 2)
    return Solutions(
        np.full(shape, value, complex),
        np.full(shape, flagged),
        np.tile(np.arange(antennas), intervals),
        np.ones(shape),
        np.repeat(np.arange(intervals) / 1e3, antennas),
    )


@several
@given(
    antennas=st.integers(0, 9),
    channels=st.sampled_from([1, 2, 48]),
    value=st.sampled_from([1, 0, -1, 1j, NAN]),
    flagged=st.booleans(),
    intervals=st.integers(1, 3),
)
@example(antennas=0, channels=1, value=1, flagged=False, intervals=1)  # nothing to draw
@example(antennas=2, channels=1, value=1, flagged=True, intervals=1)
def test_tables(tmp_path, antennas, channels, value, flagged, intervals):
    names = {a: str(a) for a in range(antennas)}
    freq_mhz = np.linspace(1311, 1498, channels)
    drawn(
        lambda: calibration.draw_bandpass(
            solutions(antennas, channels, value, flagged), freq_mhz, names, CHOSEN
        ),
        tmp_path,
    )
    gains = solutions(antennas, 1, value, flagged, intervals)
    drawn(lambda: calibration.draw_gains(gains, names, CHOSEN), tmp_path)
    observation = Observation(
        (0, 0),
        freq_mhz * 1e6,
        1e6,
        tuple(names.values()),
        np.zeros((antennas, 3)),
        np.ones(antennas),
        "x",
        (0, 1),
        "f",
    )
    quality = {"antennas": antennas, "flagged": 0.0, "median_amplitude": NAN, "median_snr": 0.0}
    solved = {
        "quality": {"B": quality, "G": quality},
        "refant": "1",
        "solver": "fast",
        "flux_jy": 1.0,
        "flux_scale": "x",
        "mean_beam": 0.9,
        "field_sources": 0,
        "modelled_share": 1.0,
        "problems": ["bad: " + 40 * "words "],
        "set_name": "s",
        "calibrator": "3C48",
        "science": True,
        "gates": {},
    }
    ratio = np.full((antennas, channels, 2), value, complex)
    drawn(
        lambda: calibration.plot_set(solved, observation, ratio, np.full_like(ratio, NAN), gains),
        tmp_path,
    )


@several
@given(
    antennas=st.integers(0, 3),
    channels=st.sampled_from([0, 1, 5]),
    integrations=st.integers(0, 2),
    bins=st.integers(0, 2),
)
def test_flags(tmp_path, antennas, channels, integrations, bins):
    prepared = {
        "flagged_by_antenna": {str(a): 0.1 * a for a in range(antennas)},
        "dead_antennas": ["0"],
        "odd_antennas": [],
        "flagged_by_channel": [0.1] * channels,
        "flagged_by_integration": [0.2] * integrations,
        "flagged_by_length": [
            {"from_m": 10.0 * k, "to_m": 10.0 * k + 10, "flagged": 0.1} for k in range(bins)
        ],
        "flagged_by": {},
        "flagged": 1.0,
        "strategy": "mad",
    }
    drawn(lambda: flags.draw_flags(prepared, np.arange(channels) + 1300.0, "group"), tmp_path)


@several
@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=3), known=st.booleans()
)
def test_the_days_plot(tmp_path, rows, known):
    images = [
        {
            "start_mjd": 61065.1 if known else None,
            "noise_jy": a,
            "thermal_jy": b,
            "flagged": c,
            "flux_ratio": d,
            "offset_east_arcsec": a,
            "offset_north_arcsec": b,
            "verdict": "good",
        }
        for a, b, c, d in rows
    ]
    drawn(lambda: day.plot_day("2026-01-25", images), tmp_path)


def test_what_cannot_be_drawn_says_why_in_its_place(tmp_path):
    def broken():
        plt.figure()
        raise ValueError("Axis limits cannot be NaN or Inf: $x$ {")

    assert (
        style.save_plot(broken, tmp_path / "x.png")
        == "ValueError: Axis limits cannot be NaN or Inf: $x$ {"
    )
    assert (tmp_path / "x.png").stat().st_size > 2000
    assert not plt.get_fignums()


def test_no_room_is_not_the_plots_fault(tmp_path):
    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        style.save_plot(full, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("antennas", "channels", "integrations"), [(2, 1, 1), (2, 3, 2), (3, 8, 1), (1, 4, 2)]
)
@pytest.mark.parametrize("flagged", [False, True])
def test_plots_of_a_measurement_set(tmp_path, antennas, channels, integrations, flagged):
    """One integration, one channel, one antenna (no baseline), all flagged."""
    from contimg.visibilities import measurement_set as mset

    one, two = np.triu_indices(antennas)
    rows = mset.Rows(
        61065.1 + np.arange(integrations) * 1.5e-4,
        12.9,
        one,
        two,
        np.zeros((integrations, len(one), 3)) + 30.0,
    )
    observation = Observation(
        (10.0, 16.0),
        1.3e9 + 1e6 * np.arange(channels),
        1e6,
        tuple(map(str, range(antennas))),
        np.zeros((antennas, 3)),
        np.full(antennas, 4.65),
        "OVRO_MMA",
        (61065.0, 61065.2),
        "f",
    )
    ms = tmp_path / "x.ms"
    with mset.creating(ms, observation, rows, channels) as table:
        shape = (table.nrows(), channels, 2)
        for name, values in (
            ("DATA", np.ones(shape, np.complex64)),
            ("FLAG", np.full(shape, flagged)),
            ("WEIGHT_SPECTRUM", np.ones(shape, np.float32)),
        ):
            table.putcol(name, values)
    mset.write_columns(
        ms, CORRECTED_DATA=np.ones((integrations, len(one), channels, 2), np.complex64)
    )
    drawn(lambda: visibilities.draw_uv(ms, observation, rows, "g"), tmp_path)
    drawn(lambda: visibilities.draw_spectra(ms, observation, rows, "g"), tmp_path)


def refinement(**more):
    """A result of `refine`, as it is when nothing was done."""
    return {"refine": "rejected: too little sky, in catalogue and image", "sky": "none"} | more


@pytest.mark.parametrize("flagged", [False, True])
def test_own_gains_are_drawn_also_where_there_are_none(flagged, tmp_path):
    names = tuple(str(k) for k in range(5))
    drawn(lambda: draw_refinement(refinement(), None, names, "g"), tmp_path)
    rng = np.random.default_rng(2)
    gain = np.exp(1j * rng.normal(0, 0.3, (20, 1, 2)))
    times = np.repeat(61000 + np.arange(4) / 6e3, 5)
    table = caltables.Solutions(
        gain, np.full(gain.shape, flagged), np.tile(np.arange(5), 4), np.ones(gain.shape), times
    )
    scale = {"applied": "catalogue", "catalogue": 0.98, "catalogue_error": 0.01, "sources": 30}
    trial = dict.fromkeys(
        ("chi2_before", "chi2_after", "noise", "phase_step_deg", "between_polarisations_deg"), 1.0
    )
    trial |= {"flux_scatter_before": 0.1, "flux_scatter_after": 0.05}
    far = {"name": "Cas A", "distance_deg": 43.0, "apparent_jy": 6.0, "subtracted": True}
    result = refinement(
        flux_scale=scale | {"set_error": 0.01},
        trial=trial,
        antennas=[{"words": "1 and 2: exchanged?"}],
        far_sources=[far, far | {"subtracted": False}],
    )
    drawn(lambda: draw_refinement(result, table, names, "g"), tmp_path)
    assert [line for line in summary(result) if "Cas A" in line] == [
        "Cas A, 43 deg away, 6 Jy apparent: taken out"
    ]


def test_a_set_is_drawn_against_its_neighbours(tmp_path):
    one = {
        "compared_with": "2026-03-01T20:07:06",
        "hours": -23.9,
        "gains_change_by_antenna": {
            "1": {"amplitude": [1.0, None], "phase_deg": [3.0, None], "delay_ns": [0.0, None]}
        },
        "phase_gradient": None,
    }
    gradient = {"east_arcsec": 9.0, "north_arcsec": 2.0}
    for neighbours in ([], [one], [one, one | {"hours": 23.9, "phase_gradient": gradient}]):
        registered = {"set_name": "x", "status": "active", "gates": {"neighbours": neighbours}}
        drawn(lambda registered=registered: draw_neighbours(registered), tmp_path)


def test_all_plots_are_tested_here():
    assert set(GROUP_PLOTS) == {
        "image",
        "thumbnail",
        "catalogue",
        "residual",
        "beam",
        "uv",
        "spectra",
        "bandpass",
        "gains",
        "flags",
        "refinement",
    }


def test_a_coarse_image_keeps_peaks_and_what_is_blank(tmp_path):
    from casacore import images

    values = np.random.default_rng(1).normal(size=(1, 1, 230, 230)).astype(np.float32)
    values[0, 0, 100:140] = np.nan
    values[0, 0, 17, 33] = 50
    mask = ~np.isfinite(values)  # True is blank, as numpy has it
    masked = np.ma.masked_array(np.nan_to_num(values), mask)
    images.image("", values=masked).saveas(str(tmp_path / "x.image"))
    coarse = style.coarse_image(tmp_path / "x.image", pixels=23)
    assert coarse.shape == (23, 23)
    assert np.isnan(coarse[10:14]).all()
    assert np.isfinite(coarse[:10]).all()
    assert coarse[1, 3] == 50
    assert coarse[20, 5] == values[0, 0, 200:210, 50:60].max()
