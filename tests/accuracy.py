"""How right an image is: measured from the published FITS files with astropy and numpy only, none
of the library's code."""

import json
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS


@dataclass
class Accuracy:
    names: list
    ratio: np.ndarray
    offset_arcsec: np.ndarray
    flux_sigmas: np.ndarray
    position_sigmas: np.ndarray
    rms_jy: float
    east_arcsec: np.ndarray
    north_arcsec: np.ndarray
    snr: np.ndarray

    def __str__(self) -> str:
        scatter = 1.4826 * np.median(np.abs(self.ratio - np.median(self.ratio)))
        return (
            f"{len(self.ratio)} sources, median flux ratio {np.median(self.ratio):.4f}, scatter "
            f"{scatter:.4f}, median offset "
            f'{np.median(self.offset_arcsec):.2f}", largest {self.flux_sigmas.max():.1f} sigma in '
            "flux, "
            f"{self.position_sigmas.max():.1f} in position; rms {self.rms_jy * 1e3:.2f} mJy/beam"
        )

    def check(self, least: int) -> None:
        """The demands: 3 % and 1 arcsec in the median; nine of ten within 3 sigma, none outside
        5."""
        report = list(
            zip(self.names, self.ratio.round(3), self.offset_arcsec.round(2), strict=True)
        )
        assert len(self.ratio) >= least, report
        assert abs(np.median(self.ratio) - 1) < 0.03, report
        assert np.median(self.offset_arcsec) < 1.0, report
        for sigmas in (self.flux_sigmas, self.position_sigmas):
            assert (sigmas < 3).mean() >= 0.9, report
            assert (sigmas < 5).all(), report


def _peak(values: np.ndarray) -> tuple[float, float, float]:
    """Peak and its place in a 3 x 3 stamp: a parabola in the logarithm is exact for a Gaussian.

    Where there is no peak, the middle as it is: the comparison with the truth shall fail.
    """
    if not (values > 0).all():
        return float(values[1, 1]), 0.0, 0.0
    dy, dx = np.mgrid[-1:2, -1:2]
    design = np.stack([np.ones(9), *(a.ravel() for a in (dx, dy, dx**2, dx * dy, dy**2))], axis=1)
    c, *_ = np.linalg.lstsq(design, np.log(values.ravel()), rcond=None)
    x, y = np.linalg.solve([[2 * c[3], c[4]], [c[4], 2 * c[5]]], [-c[1], -c[2]])
    return float(np.exp(c[0] + 0.5 * (c[1] * x + c[2] * y))), float(x), float(y)


def measure(image_path, pbcor_path, truth_path, least_snr=20, least_beam=0.5) -> Accuracy:
    """Truth's sources above 20 sigma inside the half-power beam; those with a neighbour within two
    beams are left out.

    A neighbour of less than a fiftieth of the flux is none.
    """
    truth = json.loads(truth_path.read_text())
    header = fits.getheader(pbcor_path)
    apparent, corrected = (
        fits.getdata(p).squeeze().astype(float) for p in (image_path, pbcor_path)
    )
    wcs = WCS(header).celestial
    quiet = apparent[np.isfinite(corrected)]
    for _ in range(4):
        rms = 1.4826 * np.median(np.abs(quiet - np.median(quiet)))
        quiet = quiet[np.abs(quiet) < 5 * rms]
    cell_arcsec = header["CDELT2"] * 3600
    beam_arcsec = 3600 * np.sqrt(header["BMAJ"] * header["BMIN"])
    radius = int(np.ceil(beam_arcsec / 2 / cell_arcsec))
    fluxes = np.array([s["flux"] for s in truth["sources"]])
    places = np.array([wcs.wcs_world2pix(s["ra"], s["dec"], 0) for s in truth["sources"]])
    found = []
    for k, source in enumerate(truth["sources"]):
        near = np.hypot(*(places - places[k]).T) * cell_arcsec < 2 * header["BMAJ"] * 3600
        near &= fluxes >= source["flux"] / 50
        i, j = places[k].round().astype(int)
        if near.sum() > 1 or not (
            radius < i < len(apparent) - radius - 1 and radius < j < len(apparent) - radius - 1
        ):
            continue
        stamp = apparent[j - radius : j + radius + 1, i - radius : i + radius + 1]
        dj, di = np.unravel_index(np.argmax(stamp), stamp.shape)
        y, x = j - radius + dj, i - radius + di
        response = apparent[j, i] / corrected[j, i]
        reference_hz = truth.get("fref", truth.get("reference_hz"))
        flux = source["flux"] * (header["CRVAL3"] / reference_hz) ** source["alpha"]
        snr = flux * response / rms
        # chosen by the truth: a source that is lost counts as wrong
        if not (response >= least_beam and snr >= least_snr):
            continue
        peak, dx, dy = _peak(apparent[y - 1 : y + 2, x - 1 : x + 2])
        east, north = (places[k][0] - x - dx) * cell_arcsec, (y + dy - places[k][1]) * cell_arcsec
        found.append((source["name"], peak / response / flux, east, north, snr))
    names, ratio, east, north, snr = zip(*found, strict=True)
    ratio, east, north, snr = (np.array(values) for values in (ratio, east, north, snr))
    away = np.hypot(east, north)
    return Accuracy(
        list(names),
        ratio,
        away,
        np.abs(ratio - 1) / np.hypot(0.03, 1 / snr),
        away / np.hypot(0.5, beam_arcsec / 2 / snr),
        float(rms),
        east,
        north,
        snr,
    )
