"""Weights in Jy^-2 from the scatter of the data themselves, antenna by antenna."""

from pathlib import Path

import numpy as np
from numba import njit, prange

from contimg.errors import ValidationError
from contimg.flagging import detection
from contimg.visibilities import measurement_set as mset


@njit(parallel=True, cache=True)
def _reweigh(weights, sigma, row_weight):
    """Scale weights (ntime, nbaseline, nchan, npol) in place to `row_weight` (nbaseline, npol) for
    a full integration.

    They may have been scaled before; `sigma` (ntime, nbaseline, npol), which describes DATA and is
    written once, keeps the mean share of samples of a row.
    """
    ntime, nbaseline, nchan, npol = weights.shape
    for t in prange(ntime):
        for b in range(nbaseline):
            for p in range(npol):
                total = 0.0
                for c in range(nchan):
                    total += weights[t, b, c, p]
                if not (total > 0 and sigma[t, b, p] > 0):
                    for c in range(nchan):
                        weights[t, b, c, p] = 0
                    continue
                factor = row_weight[b, p] * nchan / (total * sigma[t, b, p] ** 2)
                for c in range(nchan):
                    weights[t, b, c, p] *= factor


@njit(parallel=True, cache=True)
def row_means(weights):
    """WEIGHT of each row, (ntime, nbaseline, npol): the mean of its WEIGHT_SPECTRUM."""
    ntime, nbaseline, nchan, npol = weights.shape
    mean = np.zeros((ntime, nbaseline, npol), np.float32)
    for t in prange(ntime):
        for b in range(nbaseline):
            for p in range(npol):
                total = 0.0
                for c in range(nchan):
                    total += weights[t, b, c, p]
                mean[t, b, p] = total / nchan
    return mean


def shares(ms: Path, rows: mset.Rows) -> np.ndarray:
    """Share of a full integration's samples in each visibility (ntime, nbaseline, nchan, npol), as
    conversion wrote it."""
    return _scaled(ms, rows, np.ones((rows.shape[1], 2)))


def _scaled(ms: Path, rows: mset.Rows, row_weight: np.ndarray) -> np.ndarray:
    weights, sigma = (
        mset.read_grid(ms, name, rows.shape[0]) for name in ("WEIGHT_SPECTRUM", "SIGMA")
    )
    _reweigh(weights, sigma, row_weight)
    return weights


def weigh(
    *, ms: Path, data: np.ndarray, flags: np.ndarray, rows: mset.Rows, nant: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Check calibrated data and find their weights in Jy^-2, from the scatter of the data
    themselves.

    data, flags  CORRECTED_DATA and its flags, (ntime, nbaseline, nchan, npol)

    Short integrations keep their smaller share. Returns what was found, the antennas' noises
    (`antenna_noise`), and the weights, like the data; raises ValidationError when nothing is
    usable.
    """
    cross = rows.ant_1 != rows.ant_2
    flagged, amplitude, odd = _survey(data, flags, cross)
    if flagged == 1:
        raise ValidationError(
            f"{ms}: every visibility is flagged after calibration. The set does not fit this group."
        )
    if odd:
        raise ValidationError(
            f"{ms}: CORRECTED_DATA has {odd} unflagged values that are not finite."
        )
    if not amplitude > 0:
        raise ValidationError(f"{ms}: CORRECTED_DATA is zero. The calibration was not applied.")
    noise, by_antenna = antenna_noise(
        data=data, flags=flags, ant_1=rows.ant_1, ant_2=rows.ant_2, nant=nant
    )
    if not (noise[cross] > 0).any():
        raise ValidationError(
            f"{ms}: the noise cannot be measured: that takes 3 channels side by side, unflagged."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        row_weight = np.where(noise > 0, 1 / noise**2, np.nan)  # (nbaseline, npol)
    # Rows that are flagged as a whole get a typical weight: FLAG keeps them out, and 0 would mean
    # no data for good.
    row_weight = np.where(np.isfinite(row_weight), row_weight, np.nanmedian(row_weight[cross]))
    weights = _scaled(ms, rows, row_weight)
    return (
        {
            "mean_amplitude_jy": float(amplitude),
            "median_noise_jy": float(np.median(noise[cross][noise[cross] > 0])),
            "flagged": float(flagged),
        },
        by_antenna,
        weights,
    )


@njit(parallel=True, cache=True)
def _survey(data, flags, cross):
    """Of the cross-correlations: fraction of flags, mean amplitude of the others, number of those
    that are not finite."""
    ntime, nbaseline, nchan, npol = data.shape
    good = np.zeros(nbaseline, np.int64)
    odd = np.zeros(nbaseline, np.int64)
    total = np.zeros(nbaseline)
    for b in prange(nbaseline):
        if cross[b]:
            for t in range(ntime):
                for c in range(nchan):
                    for p in range(npol):
                        if not flags[t, b, c, p]:
                            size = abs(data[t, b, c, p])
                            good[b] += 1
                            if np.isfinite(size):
                                total[b] += size
                            else:
                                odd[b] += 1
    every = max(1, ntime * cross.sum() * nchan * npol)
    return 1 - good.sum() / every, total.sum() / max(1, good.sum()), odd.sum()


def antenna_noise(
    *, data, flags, ant_1: np.ndarray, ant_2: np.ndarray, nant: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rms of one component of every baseline (nbaseline, npol), 0 where there is none, as products
    of antennas' noises, and these (nant, npol), NaN where unknown.

    From second differences along the channels; a least-squares fit of ln(noise) of each antenna
    steadies it.
    """
    noise, cross = detection.baseline_noise(data, flags), ant_1 != ant_2
    fitted, by_antenna = np.zeros_like(noise), np.full((nant, noise.shape[1]), np.nan)
    for p in range(noise.shape[1]):
        rows = np.flatnonzero(cross & (noise[:, p] > 0))
        antennas, index = np.unique(np.concatenate([ant_1[rows], ant_2[rows]]), return_inverse=True)
        design = np.zeros((len(rows), len(antennas)))
        design[np.arange(len(rows)), index[: len(rows)]] = 1
        design[np.arange(len(rows)), index[len(rows) :]] = 1
        if len(rows) < len(antennas) or len(antennas) < 3:
            fitted[rows, p] = noise[rows, p]
            continue
        solution, *_ = np.linalg.lstsq(design, np.log(noise[rows, p]), rcond=None)
        fitted[rows, p], by_antenna[antennas, p] = np.exp(design @ solution), np.exp(solution)
    return fitted, by_antenna
