"""Is there a sky in Stokes Q, where there should be noise? An unpolarised sky, through X and Y that
are calibrated alike, leaves none."""

import ducc0
import numpy as np

from contimg.config import ValidationConfig
from contimg.findings import Finding, judged, unknown
from contimg.imaging.interface import robust_rms
from contimg.imaging.stokes import StokesI

_PIXELS, _WIDTH_DEG = 512, 2.7
_EPSILON = 1e-2


def noise_of_q(stokes: StokesI, threads: int) -> float | None:
    """Noise of a dirty image of Q over the half-power beam, naturally weighted, over what its
    weights let expect; None where there is none.

    Pixels are few and far apart; each has its value nevertheless.
    """
    if stokes.polarised is None:
        return None
    vis, weights = (values.reshape(-1, values.shape[-1]) for values in stokes.polarised)
    total = float(weights.sum(dtype=float))
    if not total > 0:
        return None
    freq_hz = stokes.observation.freq_hz.reshape(vis.shape[1], -1).mean(axis=1)
    step_rad = np.radians(_WIDTH_DEG / _PIXELS)
    dirty = ducc0.wgridder.vis2dirty(
        uvw=np.ascontiguousarray(stokes.rows.uvw_m.reshape(-1, 3)),
        freq=freq_hz,
        vis=vis,
        wgt=weights,
        npix_x=_PIXELS,
        npix_y=_PIXELS,
        pixsize_x=step_rad,
        pixsize_y=step_rad,
        epsilon=_EPSILON,
        do_wgridding=False,
        nthreads=threads,
        divide_by_n=False,
        flip_v=True,
        double_precision_accumulation=True,
    )
    return robust_rms(dirty / np.float32(total)) * np.sqrt(total)


def judge_q(ratio: float | None, limits: ValidationConfig) -> Finding:
    """What is to be said of it."""
    if ratio is None:
        return unknown(name="polarised", why="no Stokes Q")
    return judged(
        name="polarised",
        value=ratio,
        warn=limits.warn_polarised,
        fail=limits.fail_polarised,
        unit="times",
        words=f"noise of XX - YY is {ratio:.2f} times the thermal expectation: X and Y see "
        "different skies",
        cause="Gains of one polarisation, beams that differ, or polarised interference: see the "
        "gains of X and Y",
    )
