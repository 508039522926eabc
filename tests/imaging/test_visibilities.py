"""What is imaged, averaged and weighted, and what the imager makes of it, on visibilities that are
known exactly."""

from dataclasses import replace

import numpy as np
import pytest

from contimg.config import ImagingConfig, ValidationConfig, from_mapping
from contimg.errors import ConfigError
from contimg.findings import of_level
from contimg.imaging.averaging import MAX_LOSS, average, plan_averaging, smearing
from contimg.imaging.bright import bright_sources, subtract
from contimg.imaging.files import primary_beam
from contimg.imaging.interface import Beam, ImageRequest, backend, robust_rms
from contimg.imaging.restoring import restore
from contimg.imaging.smearing import Smeared
from contimg.imaging.stokes import StokesI
from contimg.imaging.validation import Used, assess, fit_source
from contimg.simulate import station_positions
from contimg.sky.beam import AIRY, airy_power, drift_beam, read_beam
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S, meridian_frame_m, meridian_vector, track
from contimg.sky.prediction import Smearing, predict
from contimg.sky.skymodel import Source
from contimg.visibilities import measurement_set as mset
from tests.conftest import DEC_DEG, STATIONS

NOISE_JY = 0.5
CENTRE_DEG = (347.3, 16.0)


def observed(sources=(), noise_jy=0.0, nchan=32, ntime=6, every=2):
    """Stokes I of sources (Jy, east and north of the centre in arcsec, FWHM in arcsec) seen by
    every second dish."""
    positions, active = station_positions(STATIONS)
    positions = positions[active][::every]
    one, two = np.triu_indices(len(positions), 1)
    mjd = 61101.8475 + np.arange(ntime) * 12.9 / 86400
    stations = meridian_frame_m(positions)
    uvw = np.einsum("tij,bj->tbi", track(*CENTRE_DEG, mjd).axes, stations[one] - stations[two])
    width = 187.5e6 / nchan
    freq_hz = 1311.25e6 + width * (np.arange(nchan) + 0.5)
    names = tuple(str(k) for k in range(len(positions)))
    observation = mset.Observation(
        CENTRE_DEG,
        freq_hz,
        width,
        names,
        positions,
        np.full(len(names), 4.65),
        "OVRO_MMA",
        (mjd[0], mjd[-1]),
        "x",
    )
    u, v, w = (uvw[..., k, None] * freq_hz / SPEED_OF_LIGHT_M_S for k in range(3))
    vis = np.zeros(u.shape, complex)
    for flux_jy, east, north, fwhm in sources:
        l, m = np.radians(east / 3600), np.radians(north / 3600)
        size = np.exp(-((np.pi * np.radians(fwhm / 3600)) ** 2) / (4 * np.log(2)) * (u**2 + v**2))
        vis += (
            flux_jy
            * size
            * np.exp(2j * np.pi * (u * l + v * m + w * (np.sqrt(1 - l**2 - m**2) - 1)))
        )
    rng = np.random.default_rng(1)
    vis += noise_jy * (rng.standard_normal(u.shape) + 1j * rng.standard_normal(u.shape))
    weights = np.full(u.shape, 1 / max(noise_jy, 1e-2) ** 2, np.float32)
    return StokesI(
        observation,
        mset.Rows(mjd, 12.9, one, two, uvw),
        vis.astype(np.complex64),
        weights,
        DEC_DEG,
        uvw[..., 0].size,
    )


def image(stokes, tmp_path, **options):
    options = ImagingConfig(**({"imsize": 1024, "cell_arcsec": 3.0} | options))
    averaged = average(stokes, options)
    inputs = backend("wgridder").prepare(averaged, stokes, tmp_path)
    result = backend("wgridder").deconvolve(ImageRequest(inputs, options, tmp_path, 2, None))
    result.notes |= averaged.notes()
    restored = restore(
        residual=result.residual,
        components=result.components,
        beam=result.beam,
        cell_arcsec=options.cell_arcsec,
    )
    return result, restored, options


def test_smearing_is_what_averaging_does():
    length_m, width_hz, edge = 900.0, 1e6, 1.5
    delay_s = length_m * np.sin(np.radians(edge)) / SPEED_OF_LIGHT_M_S
    for channels in (1, 2, 5):
        fine = (np.arange(channels * 400) + 0.5) / 400 - channels / 2  # in channels
        averaged = np.exp(2j * np.pi * delay_s * width_hz * fine).mean().real
        one = (
            np.exp(2j * np.pi * delay_s * width_hz * ((np.arange(400) + 0.5) / 400 - 0.5))
            .mean()
            .real
        )
        expected = 1 - averaged / one
        assert smearing(
            length_m=length_m, width_hz=width_hz, channels=channels, edge_deg=edge
        ) == pytest.approx(expected, abs=1e-6)


def test_averaging_is_the_most_that_costs_less_than_it_may():
    stokes, options = observed(nchan=768, ntime=2), ImagingConfig()
    averaged = average(stokes, options)
    assert averaged.channels > 1
    assert 0 < averaged.loss <= MAX_LOSS
    more = 2 * averaged.channels
    worse = average(stokes, options.model_copy(update={"average_channels": more}))
    assert worse.loss > MAX_LOSS
    assert worse.vis.shape[1] * more == 768
    for one in (averaged, worse):
        assert one.natural.sum() == pytest.approx(stokes.weights.sum(), rel=1e-4)
    # a small image has its edge nearer
    quick = options.model_copy(update={"imsize": 512, "taper_arcsec": 50.0})
    assert plan_averaging(stokes, quick) > averaged.channels


def test_an_average_is_the_weighted_mean():
    stokes = observed([(2.0, 300, -200, 0)], nchan=12, ntime=2, every=8)
    stokes.weights[0, 3, 4:8] = [0, 1, 3, 0]
    stokes.weights[1, 3, 8:] = 0
    stokes.weights[:, :, 11] = 0  # of a channel that nobody has, the mean frequency knows
    averaged = average(stokes, ImagingConfig(average_channels=4))
    nbaseline = stokes.vis.shape[1]
    vis, natural = averaged.vis, averaged.natural
    assert vis[3, 1] == pytest.approx((stokes.vis[0, 3, 5] + 3 * stokes.vis[0, 3, 6]) / 4, rel=1e-5)
    assert natural[3, 1] == 4
    assert natural[nbaseline + 3, 2] == averaged.weights[nbaseline + 3, 2] == 0
    assert averaged.freq_hz[2] == pytest.approx(stokes.observation.freq_hz[8:11].mean(), rel=1e-9)
    assert averaged.uvw_m[nbaseline + 3] == pytest.approx(stokes.rows.uvw_m[1, 3])
    whole = average(stokes, ImagingConfig(average_channels=5))
    assert whole.vis.shape[1] == 3


@pytest.mark.parametrize(
    "options",
    [{}, {"weighting": "natural"}, {"weighting": "uniform"}, {"robust": 0.5, "taper_arcsec": 40.0}],
)
def test_noise_is_what_the_weights_say(options, tmp_path):
    stokes = observed(noise_jy=NOISE_JY)
    result, *_ = image(stokes, tmp_path, niter=0, **options)
    # short baselines: the noise of an image is a matter of luck
    few_modes = options.get("weighting") == "natural"
    assert robust_rms(result.residual) == pytest.approx(
        result.notes["thermal_jy"], rel=0.1 if few_modes else 0.03
    )


def test_weightings_trade_noise_for_resolution(tmp_path):
    stokes = observed(noise_jy=NOISE_JY)
    found = [
        image(stokes, tmp_path, niter=0, weighting=w)[0] for w in ("natural", "briggs", "uniform")
    ]
    noise = [r.notes["thermal_jy"] for r in found]
    width = [r.beam.major_arcsec for r in found]
    assert noise == sorted(noise)
    assert width == sorted(width, reverse=True)
    assert noise[0] == pytest.approx(NOISE_JY / np.sqrt(stokes.vis.size), rel=1e-3)
    tapered, *_ = image(stokes, tmp_path, niter=0, taper_arcsec=60.0)
    assert tapered.beam.minor_arcsec > 2 * found[1].beam.minor_arcsec


def test_fluxes_of_unresolved_and_of_slightly_resolved_sources_are_right(tmp_path, figure):
    """The psf of this array has a narrow main lobe on a plateau: a Gaussian fitted to too much of
    it is 46 x 10 arcsec, and a restoring beam that is not the main lobe's makes extended flux that
    was not cleaned come out wrong."""
    places = [(1.0, 0.0, 0.0, 0.0), (1.0, 420.0, -390.0, 0.0), (1.0, -450.0, 300.0, 10.0)]
    for every, least in ((1, 0.99), (3, 0.98)):
        result, restored, _ = image(
            observed(places, every=every), tmp_path, threshold="1mJy", multiscale=False
        )
        area = np.pi * result.beam.major_arcsec * result.beam.minor_arcsec / (4 * np.log(2)) / 9
        numbers = []
        for flux_jy, east, north, _ in places:
            x, y = 512 - east / 3, 512 + north / 3
            stamp = restored[round(x) - 30 : round(x) + 31, round(y) - 30 : round(y) + 31]
            numbers += [stamp.max() / flux_jy, stamp.sum() / area / flux_jy]
        beam = result.beam
        figure(
            f"1 of {every} dishes, beam {beam.major_arcsec:.1f} x {beam.minor_arcsec:.1f}: peak "
            f"and integral of points {np.round(numbers[:4], 4).tolist()}, of a 10 arcsec "
            f"Gaussian {np.round(numbers[4:], 4).tolist()}"
        )
        assert numbers[0] == pytest.approx(1, abs=1 - least)
        assert numbers[1::2] == pytest.approx([1, 1, 1], abs=0.02)
        assert numbers[4] < 0.95


def test_a_measured_beam_takes_the_place_of_the_airy_disk(tmp_path):
    from astropy.io import fits

    pixels, step_deg = 301, 0.05
    offset = np.radians((np.arange(pixels) - pixels // 2) * step_deg)
    power = airy_power(np.sin(np.hypot(offset[:, None], offset[None])), 1.4e9)
    header = fits.Header(
        {"CDELT1": step_deg, "CDELT2": step_deg, "CRPIX1": 151.0, "CRPIX2": 151.0, "CRVAL3": 1.4e9}
    )
    blanked = np.where(power > 1e-3, power, np.nan)
    fits.writeto(tmp_path / "beam.fits", 3.0 * blanked, header)
    l = np.radians(np.linspace(-1.5, 1.5, 50))
    track_lm = np.radians([[-0.6, 0.0], [0.0, 0.1], [0.6, 0.0]])
    freq_hz = np.linspace(1.31e9, 1.5e9, 16)
    ours, theirs = (
        drift_beam(l, l, track_lm, freq_hz, np.ones(3), np.ones(16), power)
        for power in (AIRY, read_beam(tmp_path / "beam.fits"))
    )
    assert np.abs(ours - theirs).max() < 2e-3
    header.remove("CRVAL3")
    fits.writeto(tmp_path / "odd.fits", power, header)
    with pytest.raises(ConfigError, match=r"odd\.fits: no primary beam.*imaging\.beam"):
        read_beam(tmp_path / "odd.fits")


def test_images_are_judged_with_reasons():
    numbers = {"rms_jy": 1.1e-3, "thermal_jy": 1e-3}
    check = {
        "compared": 9,
        "flux_ratio": 1.01,
        "offset_east_arcsec": 0.1,
        "offset_north_arcsec": 0.2,
        "bright_expected": 9,
        "bright_found": 9,
        "expected": 20,
        "found": 20,
    }
    beam = Beam(30, 15, 0)
    used = Used(0.9, ("1", "2", "3", "4", "5", "6", "7"), ("8",), 0.96, 1.0, 24)

    def verdict(numbers, check, cleaned="as asked", used=used, beam=beam, gated=()):
        judged, findings = assess(
            numbers, check, cleaned, used, beam, Beam(30, 15, 0), gated, ValidationConfig()
        )
        return judged, of_level(findings, "warn", "fail", "unverified")

    assert verdict(numbers, check) == ("good", [])
    assert verdict(numbers, check, "dirty image") == ("warn", ["cleaned: dirty image"])
    judged, reasons = verdict(numbers | {"rms_jy": 2e-3}, check | {"flux_ratio": 0.7})
    assert judged == "fail"
    assert reasons[0].startswith(
        "noise 2 times the thermal expectation; warn beyond 1.5. Probably "
    )
    assert reasons[1].startswith(
        "fluxes 30 % low (median of 9 sources against the catalogue); fail beyond 20 %. Probably "
    )
    judged, reasons = verdict(numbers, check | {"bright_found": 7})
    assert judged == "warn"
    assert reasons[0].startswith(
        "2 of 9 bright catalogue sources are not found; warn beyond 10 %. Either the catalogue "
    )
    judged, reasons = verdict(numbers, check | {"offset_east_arcsec": -6.0})
    assert judged == "fail"
    assert reasons[0].startswith(
        'sources 6.0" west and 0.2" north of their places (median of 9); fail beyond 5 arcsec. '
    )
    nothing = check | {
        "compared": 0,
        "bright_expected": 0,
        "flux_ratio": None,
        "expected": 0,
        "found": 0,
    }
    reason = "compared with no sources, at least 4 needed: the sky catalogue has none in this field"
    assert verdict(numbers, nothing) == ("unverified", [reason])
    thin = nothing | {"compared": 2, "expected": 3, "found": 2}
    assert verdict(numbers, thin)[1] == [
        "compared with 2 sources, at least 4 needed: the catalogue has 3 in this field above 5 "
        "sigma, 2 of them found"
    ]
    assert verdict(numbers | {"rms_jy": 2e-3}, nothing)[0] == "unverified"
    # What is missing is named: a quarter of the data, antennas of one arm, and the beam that comes
    # of it.
    poor = replace(used, data=0.76, antennas=tuple("abcdefghijkl"), lost=("86", "89", "91"))
    judged, reasons = verdict(numbers, check, used=poor, beam=Beam(24, 12, 0))
    assert judged == "warn"
    assert reasons[0].startswith("76 % of the visibilities are left; warn below 80 %. ")
    assert reasons[1].startswith(
        "12 of 15 antennas are in the image (86, 89, 91); warn below 85 %. "
    )
    assert reasons[2].startswith(
        'beam 24.0" x 12.0" where all antennas would give 30.0" x 15.0": its area is 0.64 times '
        "that; warn "
    )
    gated = [
        {
            "name": "sefd",
            "level": "fail",
            "words": "noise of the median receiver is 150000 Jy; fail beyond 3.5 times",
        }
    ]
    assert verdict(numbers, check, gated=gated) == ("fail", [gated[0]["words"]])
    half = replace(used, integrations=0.1, channels=0.5)
    assert [r.partition(";")[0] for r in verdict(numbers, check, used=half)[1]] == [
        "50 % of the channels have data",
        "2 of 24 integrations have data",
    ]
    assert verdict(numbers, check, used=half)[0] == "fail"


@pytest.mark.parametrize(
    "options",
    [{"uvrange": "fast"}, {"threshold": "3 parsec"}, {"weighting": "mine"}, {"gain": 1.5}],
)
def test_imaging_options_that_say_nothing_are_refused(options):
    with pytest.raises(ConfigError, match=f"imaging.{next(iter(options))}"):
        from_mapping({"imaging": options})


def test_units_of_a_threshold():
    assert ImagingConfig(threshold="0.1mJy").threshold == pytest.approx(1e-4)


def through_the_beam(sources, stokes, scale=1.0):
    """Add what `sources` look like through the beam."""
    rows, observation = stokes.rows, stokes.observation
    axes, pointing = track(*CENTRE_DEG, rows.time_mjd).axes, meridian_vector(np.radians(DEC_DEG))
    model = predict(
        sources=sources,
        mjd=rows.time_mjd,
        phase_axes=axes,
        pointing=pointing,
        positions_m=observation.positions_m,
        ant_1=rows.ant_1,
        ant_2=rows.ant_2,
        freq_hz=observation.freq_hz,
        smearing=Smearing(stokes.rows.integration_s, stokes.observation.channel_width_hz),
    )
    stokes.vis[...] += model * scale


def test_bright_sources_are_fitted_together_and_those_that_are_not_there_stay_out():
    """Flux, spectrum and place differ from the catalogue; one source is outside the image, one is
    gone."""
    ra, dec = CENTRE_DEG
    true = [
        Source.power_law("a", ra + 0.4, dec + 0.3, 4.0, -0.2),
        Source.power_law("b", ra - 1.6, dec - 0.1, 9.0, -0.9),
        Source.power_law("c", ra + 0.41, dec + 0.3, 2.0, -0.7),
    ]
    listed = [
        Source.power_law("a", ra + 0.4 + 1 / 3600, dec + 0.3, 3.0, -0.7),
        Source.power_law("b", ra - 1.6, dec - 0.1, 10.0),
        Source.power_law("c", ra + 0.41, dec + 0.3, 2.5),
        Source.power_law("gone", ra, dec - 0.5, 1.0),
        Source.power_law("faint", ra, dec, 0.1),
    ]
    stokes = observed(noise_jy=NOISE_JY, nchan=16, ntime=8)
    through_the_beam(true, stokes)
    bright = bright_sources(listed, stokes, ImagingConfig(imsize=2400, subtract_above_jy=0.5))
    assert {s.name for s in bright} == {"a", "b", "c", "gone"}
    taken, absent = subtract(bright, [], stokes)
    assert absent == ["gone"]
    found = {one.source.name: one for one in taken}
    for source in true:
        flux = found[source.name].source.flux_jy(1.405e9)
        assert flux == pytest.approx(source.flux_jy(1.405e9), rel=0.01)
        assert found[source.name].source.ra_deg == pytest.approx(source.ra_deg, abs=0.2 / 3600)
    assert not any(one.summary["by_integration"] for one in taken)
    assert stokes.vis.real.std() == pytest.approx(NOISE_JY, rel=0.01)


def test_a_beam_that_is_not_the_airy_disk_is_followed_by_integration():
    source = Source.power_law("a", CENTRE_DEG[0] + 0.9, CENTRE_DEG[1], 6.0)
    stokes = observed(noise_jy=NOISE_JY, nchan=16, ntime=8)
    through_the_beam([source], stokes, np.linspace(1.2, 0.8, 8)[:, None, None])
    (taken,), absent = subtract([source], [], stokes)
    assert absent == []
    assert taken.summary["by_integration"]
    assert stokes.vis.real.std() == pytest.approx(NOISE_JY, rel=0.01)
    assert 1.1 < taken.summary["most_apparent_jy"] / taken.summary["least_apparent_jy"] < 1.4


def test_one_channel_is_enough_to_subtract_a_source():
    source = Source.power_law("a", CENTRE_DEG[0] + 0.3, CENTRE_DEG[1], 6.0)
    stokes = observed(noise_jy=NOISE_JY, nchan=1, ntime=3)
    through_the_beam([source], stokes)
    (taken,), _ = subtract([source], [], stokes)
    assert taken.summary["fitted_over_catalogue"] == pytest.approx(1, abs=0.02)
    stokes.weights[...] = 0
    assert subtract([source], [], stokes) == ([], ["a"])


def test_the_smearing_map_is_what_is_left_of_restored_peaks(tmp_path, figure):
    """1.35 and 1.77 deg off, in four directions: a smeared source, cleaned and restored."""
    stokes = observed(nchan=192, ntime=8, every=2)
    mjd = stokes.rows.time_mjd[0] + np.arange(8) * 3 * 12.9 / 86400  # all of a group
    stations = meridian_frame_m(stokes.observation.positions_m)
    one, two = stokes.rows.ant_1, stokes.rows.ant_2
    axes = track(*CENTRE_DEG, mjd).axes
    uvw_m = np.einsum("tij,bj->tbi", axes, stations[one] - stations[two])
    stokes = replace(stokes, rows=replace(stokes.rows, uvw_m=uvw_m, time_mjd=mjd))
    pointing, (ra0, dec0) = meridian_vector(np.radians(DEC_DEG)), CENTRE_DEG
    observation = stokes.observation
    seen = {"mjd": mjd, "phase_axes": axes, "pointing": pointing, "ant_1": one, "ant_2": two}
    seen |= {"positions_m": observation.positions_m, "freq_hz": observation.freq_hz}
    smeared = Smearing(12.9, observation.channel_width_hz)
    asked = {"imsize": 2700, "cell_arcsec": 5.5, "threshold": 2e-3, "niter": 20000}
    taken, rng = {}, np.random.default_rng(5)
    for away_deg, name, e, n in ((1.35, "E", 1, 0), (1.77, "W", -1, 0), (1.77, "N", 0, 1)):
        dec = dec0 + n * away_deg
        ra = ra0 + e * away_deg / np.cos(np.radians(dec))
        source = Source.power_law("one", ra, dec, 1.0, 0.0)
        whole = predict(sources=[source], **seen)
        stokes.vis[:] = predict(sources=[source], smearing=smeared, **seen) / np.abs(whole)
        stokes.vis[:] += rng.normal(0, 0.8, (*stokes.vis.shape, 2)).view(complex)[..., 0]
        result, restored, options = image(stokes, tmp_path, **asked)
        averaged = average(stokes, options)
        grid, _, _ = primary_beam(stokes, averaged, options)
        of_group = Smeared.of(stokes, averaged, *grid.axes_lm())
        kept = of_group.left(result.beam, *grid.axes_lm())
        peak, _, _ = fit_source(restored, grid.wcs(), result.beam, ra, dec)
        x, y = np.round(grid.wcs().wcs_world2pix(ra, dec, 0)).astype(int)
        taken[name, away_deg] = (1 - peak, 1 - float(kept[x, y]))
        assert kept[x, y] == pytest.approx(peak, abs=0.006)
        assert kept[grid.npix // 2, grid.npix // 2] == pytest.approx(1, abs=2e-3)
    figure(f"smearing takes (measured, map): {taken}")
