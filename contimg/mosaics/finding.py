"""Sources of an image: a source finder (Aegean; Hancock et al. 2018, PASA 35, e011) in a process of
its own, with noise that is known; and how complete and reliable what it finds is."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.special import ndtr

from contimg.errors import ContimgError
from contimg.imaging.interface import Beam
from contimg.imaging.restoring import restore

SEED_SIGMA, FLOOD_SIGMA = 5.0, 4.0
_INJECTED_A_DEG2 = 30.0
_INJECTED_SNR = (3.0, 9.0)
_SNR_BINS = np.arange(3.25, 9.0, 0.5)
_SAME_BEAMS = 0.6  # of a beam: an injected source and what was found
_FREE_BEAMS = 2.0  # injected sources keep away so far from all that is there
_TAKEN = {
    "island": "island",
    "source": "component",
    "ra": "ra_deg",
    "err_ra": "ra_error_deg",
    "dec": "dec_deg",
    "err_dec": "dec_error_deg",
    "peak_flux": "peak_jy",
    "err_peak_flux": "peak_error_jy",
    "int_flux": "flux_jy",
    "err_int_flux": "flux_error_jy",
    "a": "major_arcsec",
    "b": "minor_arcsec",
    "pa": "pa_deg",
    "local_rms": "noise_jy",
    "flags": "flags",
}
UNITS = {
    "ra_deg": "deg",
    "dec_deg": "deg",
    "ra_error_deg": "deg",
    "dec_error_deg": "deg",
    "peak_jy": "Jy/beam",
    "peak_error_jy": "Jy/beam",
    "flux_jy": "Jy",
    "flux_error_jy": "Jy",
    "major_arcsec": "arcsec",
    "minor_arcsec": "arcsec",
    "pa_deg": "deg",
    "noise_jy": "Jy/beam",
}


@dataclass(frozen=True)
class Finder:
    """How sources are found: noise (x, y) in Jy/beam, the header of a 2-D image (its beam, too),
    processor cores, and how long it may take."""

    noise_jy: np.ndarray
    header: fits.Header
    threads: int
    limit_s: float

    def find(self, image: np.ndarray) -> pd.DataFrame:
        """Components of an image (x, y; Jy/beam, NaN where there is nothing), in order of right
        ascension. Raises ContimgError when the finder fails or takes too long."""
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.fits" for name in ("image", "noise", "none")}
            blank = np.where(np.isfinite(image), self.noise_jy, np.nan)
            arrays = (image, blank, np.zeros_like(image))
            for path, array in zip(files.values(), arrays, strict=True):
                fits.PrimaryHDU(array.T.astype(np.float32), self.header).writeto(path)
            table = Path(folder) / "found.csv"  # its FITS has places to 0.1 arcsec
            command = [Path(sys.executable).parent / "aegean", files["image"]]
            command += ["--noise", files["noise"], "--background", files["none"]]
            command += ["--cores", self.threads, "--table", table]
            command += ["--seedclip", SEED_SIGMA, "--floodclip", FLOOD_SIGMA]
            words = [str(word) for word in command]
            try:
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=self.limit_s, cwd=folder
                )
            except subprocess.TimeoutExpired:
                raise ContimgError(
                    f"the source finder took longer than {self.limit_s:g} s "
                    "(mosaics.finder_minutes)"
                ) from None
            found = table.with_name("found_comp.csv")
            if done.returncode or not (found.exists() or "No sources found" in done.stderr):
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise ContimgError(f"the source finder failed ({done.returncode}): {last}")
            if not found.exists():
                return pd.DataFrame(columns=list(_TAKEN.values()))
            rows = pd.read_csv(found)[list(_TAKEN)].rename(columns=_TAKEN)
        errors = [name for name in rows if "_error_" in name]
        rows[errors] = rows[errors].astype(float).where(rows[errors] >= 0)  # -1: it has none
        return rows.sort_values(["ra_deg", "dec_deg"]).reset_index(drop=True)


def completeness(
    *,
    finder: Finder,
    image: np.ndarray,
    found: pd.DataFrame,
    beam: Beam,
    cell_arcsec: float,
    seed: int,
) -> pd.DataFrame:
    """Share of injected point sources that the finder finds, by their signal to noise: snr,
    injected, share. They are put where nothing is known."""
    rng, wcs = np.random.default_rng(seed), WCS(finder.header).celestial
    there = np.argwhere(np.isfinite(image))
    number = int(_INJECTED_A_DEG2 * len(there) * (cell_arcsec / 3600) ** 2)
    tries = 4 * number + 10
    places = there[rng.integers(0, len(there), tries)] + rng.uniform(-0.5, 0.5, (tries, 2))
    free = _FREE_BEAMS * beam.major_arcsec / cell_arcsec
    known = np.column_stack(wcs.wcs_world2pix(found.ra_deg, found.dec_deg, 0)).reshape(-1, 2)
    kept: list[np.ndarray] = []
    taken = cKDTree(known) if len(known) else None
    for place in places:
        if len(kept) == number:
            break
        if taken is None or taken.query(place)[0] > free:
            kept.append(place)
    x, y = np.array(kept).reshape(-1, 2).T
    alone = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), k=2)[0][:, 1] > free
    x, y = x[alone], y[alone]
    snr = rng.uniform(*_INJECTED_SNR, len(x))
    noise = map_coordinates(finder.noise_jy, [x, y], order=1, mode="nearest")
    more = np.column_stack([x, y, snr * noise])
    injected = restore(residual=image, components=more, beam=beam, cell_arcsec=cell_arcsec)
    rows = finder.find(injected)
    px, py = wcs.wcs_world2pix(rows.ra_deg, rows.dec_deg, 0)
    seen = np.zeros(len(x), bool)
    if len(rows):
        away, _ = cKDTree(np.column_stack([px, py])).query(np.column_stack([x, y]))
        seen = away * cell_arcsec < _SAME_BEAMS * beam.major_arcsec
    return _shares(snr, seen, "injected")


def reliability(finder: Finder, image: np.ndarray, found: pd.DataFrame) -> pd.DataFrame:
    """Share of what is found that is real, by signal to noise: snr, found, share: noise makes as
    many holes as peaks, which the finder finds in the negative image."""
    negative = finder.find(-image)
    counts, edges = [], np.append(_SNR_BINS - 0.25, np.inf)
    for rows in (found, negative):
        counts.append(np.histogram(rows.peak_jy / rows.noise_jy, edges)[0])
    real, false = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(real > 0, np.clip(1 - false / real, 0, 1), np.nan)
    return pd.DataFrame({"snr": _SNR_BINS, "found": real, "false": false, "share": share})


def half_complete(curve: pd.DataFrame) -> float:
    """Signal to noise at which half of the sources are found: of the error function that fits the
    counts best; NaN where nothing was injected."""
    injected, seen = curve.injected.values, (curve.injected * curve.share.fillna(0)).values
    if not injected.sum():
        return float("nan")

    def unlikely(terms: np.ndarray) -> float:
        share = np.clip(ndtr((curve.snr.values - terms[0]) / np.exp(terms[1])), 1e-3, 1 - 1e-3)
        return -float((seen * np.log(share) + (injected - seen) * np.log(1 - share)).sum())

    return float(minimize(unlikely, [SEED_SIGMA, 0.0], method="Nelder-Mead").x[0])


def _shares(snr: np.ndarray, seen: np.ndarray, name: str) -> pd.DataFrame:
    edges = np.append(_SNR_BINS - 0.25, _SNR_BINS[-1] + 0.25)
    of_all, of_seen = (np.histogram(some, edges)[0] for some in (snr, snr[seen]))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(of_all > 0, of_seen / of_all, np.nan)
    return pd.DataFrame({"snr": _SNR_BINS, name: of_all, "share": share})
