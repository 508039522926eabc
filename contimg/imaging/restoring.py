"""The restoring beam, and what it makes of a model: the same for every imager."""

import numpy as np
from scipy import fft, ndimage, optimize

from contimg.config import ImagingConfig
from contimg.errors import ImagingError
from contimg.imaging.interface import Beam
from contimg.imaging.weighting import image_weights
from contimg.sky.geometry import SPEED_OF_LIGHT_M_S
from contimg.visibilities.measurement_set import Rows, outside

_BEAM_TIMES, _BEAM_CHANNELS, _BEAM_PIXELS = 8, 96, 256  # 1 % of the beam
_MAIN_LOBE = 0.35  # the beam is fitted to the psf above this level


def fit_restoring_beam(psf: np.ndarray, cell_arcsec: float) -> Beam:
    """Elliptical Gaussian of unit height fitted to the main lobe of the psf, least squares over its
    pixels."""
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
    import ducc0

    cross = (rows.ant_1 != rows.ant_2) & ~outside(options.uvrange, rows.uvw_m, freq_hz)
    times = np.unique(np.linspace(0, len(rows.uvw_m) - 1, _BEAM_TIMES).round().astype(int))
    wavenumbers = np.linspace(freq_hz[0], freq_hz[-1], _BEAM_CHANNELS) / SPEED_OF_LIGHT_M_S
    uvw = np.concatenate(
        [(rows.uvw_m[t][cross[t]][:, None] * wavenumbers[:, None]).reshape(-1, 3) for t in times]
    )
    weights = image_weights(uvw_lambda=uvw, natural=np.ones(len(uvw), np.float32), options=options)
    if not weights.any():
        return None
    cell_rad, pixels = np.radians(options.cell_arcsec / 3600), min(options.imsize, _BEAM_PIXELS)
    psf = ducc0.wgridder.vis2dirty(
        uvw=uvw,
        freq=np.array([SPEED_OF_LIGHT_M_S]),
        vis=np.ones((len(uvw), 1), np.complex64),
        wgt=weights[:, None],
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
    try:
        return fit_restoring_beam(psf / weights.sum(dtype=np.float64), options.cell_arcsec)
    except ImagingError:
        return None


def highest_sidelobe(psf: np.ndarray, beam: Beam, cell_arcsec: float) -> float:
    """Largest absolute value of the psf beyond twice the restoring beam."""
    x, y = (np.abs(np.arange(n) - n // 2) * cell_arcsec for n in psf.shape)
    outside = np.hypot(x[:, None], y[None]) > 2 * beam.major_arcsec
    return float(np.abs(psf[outside]).max()) if outside.any() else 0.0


def restore(
    *, model: np.ndarray, residual: np.ndarray, beam: Beam, cell_arcsec: float, threads: int
) -> np.ndarray:
    """Model (Jy/pixel) convolved with the restoring beam, plus the residual: Jy/beam."""
    nx, ny = model.shape
    pa = np.radians(beam.pa_deg)
    kx, ky = fft.fftfreq(nx, cell_arcsec)[:, None], fft.rfftfreq(ny, cell_arcsec)[None]
    kx = -kx  # x grows to the west, the Gaussian is in east and north
    along, across = kx * np.sin(pa) + ky * np.cos(pa), kx * np.cos(pa) - ky * np.sin(pa)
    exponent = (np.pi**2 / (4 * np.log(2))) * (
        (along * beam.major_arcsec) ** 2 + (across * beam.minor_arcsec) ** 2
    )
    area = np.pi * beam.major_arcsec * beam.minor_arcsec / (4 * np.log(2)) / cell_arcsec**2
    transform = fft.rfft2(model, workers=threads) * (area * np.exp(-exponent)).astype(np.float32)
    return residual + fft.irfft2(transform, s=model.shape, workers=threads).astype(np.float32)


def add_points(
    image: np.ndarray, points: list[tuple[float, float, float]], beam: Beam, cell_arcsec: float
) -> None:
    """Add point sources (x, y in pixels, Jy), as the restoring beam shows them, in place."""
    reach = int(np.ceil(2.5 * beam.major_arcsec / cell_arcsec))
    for x, y, flux_jy in points:
        i, j = (
            np.arange(max(0, round(v) - reach), min(n, round(v) + reach + 1))
            for v, n in zip((x, y), image.shape, strict=True)
        )
        response = beam.gaussian(-(i[:, None] - x) * cell_arcsec, (j[None] - y) * cell_arcsec)
        image[i[0] : i[-1] + 1, j[0] : j[-1] + 1] += (flux_jy * response).astype(np.float32)
