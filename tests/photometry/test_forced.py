"""Fluxes of known sources from visibilities through our imager: against what was put in."""

import numpy as np
import pytest

from contimg.photometry.forced import forced_fluxes, sample
from tests.imaging.test_visibilities import image, observed

CELL_ARCSEC, NPIX = 3.0, 1024
SIGMAS = (3, 5, 8, 12, 20, 50)


def test_a_band_limited_image_is_read_between_its_pixels():
    grid = np.arange(64) - 32

    def smooth(x, y):
        return np.cos(1.7 * x + 0.4) * np.cos(1.1 * y) + np.exp(-(x**2 + y**2) / 6)

    pixels = smooth(grid[:, None], grid[None, :]).astype(np.float32)
    x, y = np.random.default_rng(1).uniform(-15, 15, (2, 300))
    assert sample(pixels, x + 32, y + 32) == pytest.approx(smooth(x, y), abs=2e-3)
    assert sample(pixels, np.array([-3.0, 200.0]), np.array([5.0, 5.0])) == pytest.approx([0, 0])


def skies(seed: int, noise_jy: float, beam_arcsec: float, number: int, reach_arcsec: float):
    """(n, 3) Jy, east, north (arcsec): single sources, pairs 1, 2 and 3 beams apart, of 3 to 50
    sigma; and which these are."""
    rng = np.random.default_rng(seed)
    sources, kinds = [], []
    for k in range(number):
        east, north = rng.uniform(-reach_arcsec, reach_arcsec, 2)
        flux = noise_jy * SIGMAS[k % len(SIGMAS)]
        sources.append((flux, east, north))
        kinds.append(0)
        if k % 3 == 0:
            beams = 1 + k // 3 % 3
            turn = rng.uniform(0, 2 * np.pi)
            apart = beams * beam_arcsec
            kinds[-1] = beams
            sources.append(
                (
                    noise_jy * rng.choice(SIGMAS),
                    east + apart * np.cos(turn),
                    north + apart * np.sin(turn),
                )
            )
            kinds.append(beams)
    return np.array(sources), np.array(kinds)


@pytest.mark.parametrize(("weighting", "robust"), [("briggs", 0.5), ("briggs", -0.5)])
def test_fluxes_are_right_from_3_to_50_sigma_and_in_pairs(weighting, robust, tmp_path, figure):
    pulls, sigmas, kinds, ratios, peaks, errors = [], [], [], [], [], []
    noise_jy = 1.0
    for seed in range(6):
        empty = observed(noise_jy=noise_jy, nchan=8, ntime=4)
        result, _, _ = image(empty, tmp_path, weighting=weighting, robust=robust, niter=0)
        level, beam = float(np.std(result.residual)), result.beam
        sky, kind = skies(seed, level, beam.major_arcsec, 45, 750)
        stokes = observed(
            [(flux, east, north, 0.0) for flux, east, north in sky], noise_jy=0.0, nchan=8, ntime=4
        )
        rng = np.random.default_rng(100 + seed)
        stokes.vis[...] += noise_jy * rng.normal(size=(*stokes.vis.shape, 2)).view(complex)[..., 0]
        stokes.weights[...] = 1 / noise_jy**2
        result, restored, _ = image(stokes, tmp_path, weighting=weighting, robust=robust)
        x = NPIX // 2 - sky[:, 1] / CELL_ARCSEC
        y = NPIX // 2 + sky[:, 2] / CELL_ARCSEC
        found = forced_fluxes(
            residual=result.residual,
            psf=result.psf,
            image=restored,
            components=result.components,
            beam=result.beam,
            cell_arcsec=CELL_ARCSEC,
            x=x,
            y=y,
        )
        pulls += list((found.flux_jy - sky[:, 0]) / found.error_jy)
        ratios += list(found.flux_jy / sky[:, 0])
        peaks += list(found.fit_jy / sky[:, 0])
        errors += list(found.error_jy / sky[:, 0])
        sigmas += list(np.round(sky[:, 0] / level).astype(int))
        kinds += list(kind)
    pulls, sigmas, kinds, ratios, peaks = map(np.array, (pulls, sigmas, kinds, ratios, peaks))
    weights = 1 / np.array(errors) ** 2
    said, of_sigma = {}, {}
    for s in SIGMAS:
        these = sigmas == s
        of_sigma[s] = np.average(ratios[these], weights=weights[these])
        said[f"{s} sigma"] = (round(of_sigma[s], 3), round(np.nanmedian(peaks[these]), 3))
    said |= {f"{k} beams": round(pulls[kinds == k].std(), 3) for k in range(4)}
    figure(
        f"{weighting} {robust}: flux over truth (forced, fitted) {said}; "
        f"pulls {pulls.mean():.3f} +- {pulls.std():.3f}"
    )
    for s in SIGMAS:
        error = 1 / np.sqrt(weights[sigmas == s].sum())
        assert of_sigma[s] == pytest.approx(1, abs=max(3.5 * error, 0.01))
    assert pulls.mean() == pytest.approx(0, abs=0.12)
    assert pulls.std() == pytest.approx(1, abs=0.1)


def test_a_catalogue_with_a_hole_and_one_that_says_everything_twice(tmp_path):
    stokes = observed([(0.1, 120.0, -60.0, 0.0)], noise_jy=0.5, nchan=8, ntime=4)
    result, restored, _ = image(stokes, tmp_path)

    def fluxes(east, north):
        return forced_fluxes(
            residual=result.residual,
            psf=result.psf,
            image=restored,
            components=result.components,
            beam=result.beam,
            cell_arcsec=CELL_ARCSEC,
            x=NPIX // 2 - np.array(east) / CELL_ARCSEC,
            y=NPIX // 2 + np.array(north) / CELL_ARCSEC,
        )

    nothing = fluxes([], [])
    assert len(nothing.flux_jy) == 0
    (found,) = nothing.unlisted  # what is there is said all the same
    assert found[2] == pytest.approx(0.1, abs=4 * found[3])
    place = CELL_ARCSEC * (NPIX // 2 - found[0]), CELL_ARCSEC * (found[1] - NPIX // 2)
    assert place == pytest.approx((120, -60), abs=1)
    twice = fluxes([120.0, 120.0], [-60.0, -60.0])
    assert twice.flux_jy.sum() == pytest.approx(0.1, abs=4 * found[3])
    assert np.isfinite(twice.error_jy).all()
    assert len(twice.unlisted) == 0
