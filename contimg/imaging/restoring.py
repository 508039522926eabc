"""The restoring beam, and what it makes of a model: the same for every imager."""

import numpy as np
from numba import njit
from scipy import ndimage, optimize

from contimg.config import ImagingConfig
from contimg.errors import ImagingError
from contimg.imaging.interface import Beam
from contimg.imaging.weighting import image_weights
from contimg.visibilities.measurement_set import Rows, outside

_BEAM_TIMES, _BEAM_CHANNELS, _BEAM_PIXELS = 8, 96, 256  # 1 % of the beam
_MAIN_LOBE = 0.35  # the beam is fitted to the psf above this level


def fit_restoring_beam(psf: np.ndarray, cell_arcsec: float) -> Beam:
    """Elliptical Gaussian of unit height fitted to the main lobe of the psf, least squares over its
    pixels."""
    psf = psf[tuple(slice(n // 2 - n // 8, n // 2 + n // 8) for n in psf.shape)]  # fast
    centre = np.array(psf.shape) // 2
    labels, _ = ndimage.label(psf > _MAIN_LOBE)
    lobe = np.argwhere(labels == labels[tuple(centre)])
    east = -(lobe[:, 0] - centre[0]) * cell_arcsec
    north = (lobe[:, 1] - centre[1]) * cell_arcsec
    height = psf[lobe[:, 0], lobe[:, 1]]
    if len(lobe) < 7:
        raise ImagingError(
            f"the psf's main lobe has {len(lobe)} pixels of {cell_arcsec} arcsec: use smaller cells"
        )
    design = np.stack([east**2, 2 * east * north, north**2], axis=1)
    start, *_ = np.linalg.lstsq(design, -np.log(height), rcond=None)
    fit = optimize.least_squares(lambda q: np.exp(-design @ q) - height, start)
    (a, b, c), ln2 = fit.x, np.log(2)
    eigenvalues, vectors = np.linalg.eigh([[a, b], [b, c]])
    if eigenvalues[0] <= 0:
        raise ImagingError(
            "the psf's main lobe is no Gaussian: too few antennas or channels are left"
        )
    major_axis = vectors[:, 0]
    pa = np.degrees(np.arctan2(major_axis[0], major_axis[1]))
    return Beam(
        2 * np.sqrt(ln2 / eigenvalues[0]), 2 * np.sqrt(ln2 / eigenvalues[1]), (pa + 90) % 180 - 90
    )


def expected_beam(rows: Rows, freq_hz: np.ndarray, options: ImagingConfig) -> Beam | None:
    """The restoring beam that all baselines would give, every one with the same weight, in all
    channels and integrations; from a part of them. None where that is no Gaussian."""
    cross = (rows.ant_1 != rows.ant_2) & ~outside(options.uvrange, rows.uvw_m, freq_hz)
    times = np.unique(np.linspace(0, len(rows.uvw_m) - 1, _BEAM_TIMES).round().astype(int))
    few_hz = np.linspace(freq_hz[0], freq_hz[-1], _BEAM_CHANNELS)
    uvw_m = np.concatenate([rows.uvw_m[t][cross[t]] for t in times])
    ones = np.ones((len(uvw_m), len(few_hz)), np.float32)
    weights = image_weights(uvw_m=uvw_m, freq_hz=few_hz, natural=ones, options=options)
    if not weights.any():
        return None
    cell_rad, pixels = np.radians(options.cell_arcsec / 3600), min(options.imsize, _BEAM_PIXELS)
    psf = middle_of_psf(
        uvw_m=uvw_m, freq_hz=few_hz, weights=weights, pixels=pixels, cell_rad=cell_rad
    )
    try:
        return fit_restoring_beam(psf, options.cell_arcsec)
    except ImagingError:
        return None


def middle_of_psf(
    *, uvw_m: np.ndarray, freq_hz: np.ndarray, weights: np.ndarray, pixels: int, cell_rad: float
) -> np.ndarray:
    """(pixels, pixels) around the centre of the psf of visibilities with weights (nrow, nchan)."""
    import ducc0

    psf = ducc0.wgridder.vis2dirty(
        uvw=uvw_m,
        freq=freq_hz,
        vis=np.ones(weights.shape, np.complex64),
        wgt=weights,
        npix_x=pixels,
        npix_y=pixels,
        pixsize_x=cell_rad,
        pixsize_y=cell_rad,
        epsilon=1e-3,
        do_wgridding=False,
        nthreads=1,
        flip_v=True,
        divide_by_n=False,
    )
    return psf / weights.sum(dtype=np.float64)


def highest_sidelobe(psf: np.ndarray, beam: Beam, cell_arcsec: float) -> float:
    """Largest absolute value of the psf beyond twice the restoring beam."""
    reach = 2 * beam.major_arcsec
    inner = tuple(
        slice(max(0, n // 2 - half), n // 2 + half + 1)
        for n, half in zip(psf.shape, 2 * [int(reach / cell_arcsec)], strict=True)
    )
    far = psf.copy()
    x, y = ((np.arange(n)[s] - n // 2) * cell_arcsec for n, s in zip(psf.shape, inner, strict=True))
    far[inner][np.hypot(x[:, None], y[None]) <= reach] = 0
    return float(max(far.max(), -far.min()))


def restore(
    *, residual: np.ndarray, components: np.ndarray, beam: Beam, cell_arcsec: float
) -> np.ndarray:
    """The residual with components (n, 3) of x, y (pixels, between them too) and Jy, each as the
    restoring beam shows it: Jy/beam."""
    image = residual.astype(np.float32, copy=True)
    # x grows to the west: the mixed term turns
    quadratic = beam.quadratic() * cell_arcsec**2 * np.array([1, -1, 1])
    _add_beams(image, components, quadratic, _reach(beam, cell_arcsec))
    return image


def _reach(beam: Beam, cell_arcsec: float) -> int:
    """Pixels beyond which a component is nothing."""
    return int(np.ceil(2.5 * beam.major_arcsec / cell_arcsec))


@njit(cache=True)
def _add_beams(image, components, quadratic, reach):
    nx, ny = image.shape
    for k in range(len(components)):
        x, y, flux_jy = components[k]
        if not (-reach < x < nx + reach and -reach < y < ny + reach):
            continue
        i0, j0 = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        for i in range(max(0, i0 - reach), min(nx, i0 + reach + 1)):
            for j in range(max(0, j0 - reach), min(ny, j0 + reach + 1)):
                dx, dy = i - x, j - y
                image[i, j] += flux_jy * np.exp(
                    -(quadratic[0] * dx * dx + quadratic[1] * dx * dy + quadratic[2] * dy * dy)
                )


def components_of(model: np.ndarray) -> np.ndarray:
    """The pixels of a model (Jy/pixel) that are not 0, as components (n, 3): x, y, Jy."""
    x, y = np.nonzero(model)
    return np.stack([x, y, model[x, y]], axis=1).astype(np.float64)


def model_of(components: np.ndarray, npix: int) -> np.ndarray:
    """Components in their nearest pixels, Jy/pixel; those outside the image are left out."""
    model = np.zeros((npix, npix), np.float32)
    x, y = np.floor(components[:, :2].T + 0.5).astype(int)
    inside = (x >= 0) & (x < npix) & (y >= 0) & (y < npix)
    np.add.at(model, (x[inside], y[inside]), components[inside, 2].astype(np.float32))
    return model
