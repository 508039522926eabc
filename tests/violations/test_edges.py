"""Fluxes at the edges of the beam, with the correlator's smearing, through all stages."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from contimg.config import from_mapping
from contimg.imaging.interface import Beam
from contimg.imaging.validation import fit_source
from tests.violations.chain import calibrate, observe

_AWAY_JY = {1.35: 0.035, 1.77: 0.055}  # apparently too faint to be subtracted with their tracks


@pytest.mark.long
def test_fluxes_at_the_edges_are_right_in_all_directions(tmp_path, sky, figure):
    of_site = {"products": str(tmp_path / "products"), "state": str(tmp_path / "state")}
    images = {"imsize": 3000, "cell_arcsec": 5.0, "subtract_above_jy": None}
    plain = {"refine": "off", "flux_scale": "set"}  # the sky is these sources and no others
    config = from_mapping({"paths": of_site, "imaging": images, "calibration": plain})
    quiet = {"sefd_jy": 300.0, "faint": 0, "antennas": 80, "channels": 12}
    ra0, dec0 = 347.331, 16.009  # of the target's image
    added = [
        {
            "name": f"edge {away} {name}",
            "ra": ra0 + e * away / np.cos(np.radians(dec0 + n * away)),
            "dec": dec0 + n * away,
            "flux": flux_jy,
            "alpha": -0.7,
        }
        for away, flux_jy in _AWAY_JY.items()
        for name, e, n in (("E", 1, 0), ("W", -1, 0), ("N", 0, 1), ("S", 0, -1))
    ]
    added += [
        {"name": f"inner {k}", "ra": ra0 + e, "dec": dec0 + n, "flux": 0.018, "alpha": -0.7}
        for k, (e, n) in enumerate(((0.02, 0.0), (0.2, 0.2), (-0.2, 0.15), (0.1, -0.2)))
    ]
    solved = calibrate(tmp_path, sky, config, **quiet)
    found = observe(tmp_path, added, config, solved, **quiet).image
    with fits.open(found["images"]["pbcor.fits"]) as hdus:
        data, wcs = hdus[0].data.squeeze().T, WCS(hdus[0].header).celestial
    beam = Beam(*(found[f"beam_{key}"] for key in ("major_arcsec", "minor_arcsec", "pa_deg")))
    with fits.open(found["images"]["smearing.fits"]) as hdus:
        kept, of_map = hdus[0].data.squeeze().T, WCS(hdus[0].header).celestial
    ratios = {}
    for one in added:
        peak, _, _ = fit_source(data, wcs, beam, one["ra"], one["dec"])
        x, y = np.round(of_map.wcs_world2pix(one["ra"], one["dec"], 0)).astype(int)
        true_jy = one["flux"] * (found["freq_hz"] / 1.4e9) ** one["alpha"]
        ratios[one["name"]] = peak / true_jy, float(kept[x, y])
    fluxes, left = np.array(list(ratios.values())).T
    inner = fluxes[8:].mean()  # the set's scale
    fluxes, left = fluxes[:8] / inner, left[:8]
    figure(
        f"at 1.35 and 1.77 deg: {fluxes.round(4)}, mean {fluxes.mean():.4f} of the inner "
        f"ones (which have {inner:.4f}); smearing leaves "
        f"{left.round(4)}"
    )
    assert fluxes.mean() == pytest.approx(1, abs=0.003)
    assert np.abs(fluxes - 1).max() < 0.015
    assert left.min() < 0.99
