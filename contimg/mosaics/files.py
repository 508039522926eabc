"""Tiles from the images of groups; mosaics as FITS files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from casacore import images

from contimg.imaging.interface import Beam
from contimg.mosaics.combine import BLOCK, Sum, Tile, noise_of_blocks
from contimg.mosaics.tracts import Tract
from contimg.paths import COMPONENTS_FITS, SMEARING_FITS
from contimg.store.files import replacing
from contimg.telescope import TELESCOPE

NEEDED = ("residual", "pb", SMEARING_FITS, COMPONENTS_FITS)
_RESTORED = "RESTORED"


def why_no_tile(images_of_group: Mapping[str, str]) -> str:
    """Why an image cannot be a tile, in words; empty for one that can."""
    absent = [name for name in NEEDED if name not in images_of_group]
    if SMEARING_FITS in absent:
        return "made with imaging.skip_fits"
    if absent:
        return "made by an earlier contimg"
    if gone := [name for name in NEEDED if not Path(images_of_group[name]).exists()]:
        return f"its {', '.join(gone)} are not there any more"
    with fits.open(images_of_group[COMPONENTS_FITS]) as hdus:
        columns = hdus["COMPONENTS"].columns.names
    return "" if _RESTORED in columns else "made by an earlier contimg"


def read_tile(images_of_group: Mapping[str, str], noise_jy: float, beam_limit: float) -> Tile:
    """A group's image, from its products by suffix."""

    def pixels(suffix: str) -> np.ndarray:
        return images.image(images_of_group[suffix]).getdata().squeeze().T

    with fits.open(images_of_group[COMPONENTS_FITS]) as hdus:
        table, wcs = hdus["COMPONENTS"].data, WCS(hdus[0].header).celestial
        components = np.column_stack([table[name] for name in ("X", "Y", _RESTORED)])
    with fits.open(images_of_group[SMEARING_FITS]) as hdus:
        smearing = hdus[0].data.squeeze().T.astype(np.float32)
        step = round(hdus[0].header["CDELT2"] / wcs.wcs.cdelt[1])
    return Tile(
        residual=pixels("residual"),
        components=components.astype(float).reshape(-1, 3),
        pb=pixels("pb"),
        smearing=np.ascontiguousarray(smearing),
        smearing_step=step,
        centre_deg=tuple(float(v) for v in wcs.wcs.crval),
        cell_deg=float(wcs.wcs.cdelt[1]),
        noise_jy=noise_jy,
        beam_limit=beam_limit,
    )


def write_mosaic(
    *, image: Path, weight: Path, total: Sum, tract: Tract, beam: Beam, keywords: Mapping
) -> None:
    """An image in Jy/beam; and its weights in Jy^-2, with measured noise and numbers of inputs of
    blocks of pixels as extensions. Image times weight is the numerator."""
    head = tract.wcs().to_header()
    head.update(
        {
            "BTYPE": "Intensity",
            "BMAJ": beam.major_arcsec / 3600,
            "BMIN": beam.minor_arcsec / 3600,
            "BPA": beam.pa_deg,
            "TELESCOP": TELESCOPE.name,
            "INSTRUME": TELESCOPE.name,
            "ORIGIN": "contimg",
        }
    )
    for key, value in keywords.items():
        head[key] = value
    noise, number = noise_of_blocks(total.image), total.number[BLOCK // 2 :: BLOCK]
    few = head.copy()
    few["CRPIX1"], few["CRPIX2"] = (((few[f"CRPIX{k}"] - 0.5) / BLOCK + 0.5) for k in (1, 2))
    few["CDELT1"], few["CDELT2"] = (few[f"CDELT{k}"] * BLOCK for k in (1, 2))
    number = number[: len(noise), BLOCK // 2 :: BLOCK][:, : noise.shape[1]]
    with replacing(weight) as partial:
        fits.HDUList(
            [
                fits.PrimaryHDU(total.weight.T, _with_unit(head, "Jy-2 beam2")),
                fits.ImageHDU(noise.T, _with_unit(few, "Jy/beam"), "NOISE"),
                fits.ImageHDU(np.ascontiguousarray(number.T), _with_unit(few, ""), "NUMBER"),
            ]
        ).writeto(partial, checksum=True)
    with replacing(image) as partial:
        hdu = fits.PrimaryHDU(total.image.T, _with_unit(head, "Jy/beam"))
        hdu.writeto(partial, checksum=True)


def _with_unit(head: fits.Header, unit: str) -> fits.Header:
    head = head.copy()
    head["BUNIT"] = unit
    return head


def read_mosaic(image: Path, weight: Path) -> Sum:
    """What `write_mosaic` wrote; `number` as its blocks have it."""
    values = fits.getdata(image, memmap=False).T.astype(np.float32)
    with fits.open(weight, memmap=False) as hdus:
        weights = hdus[0].data.T.astype(np.float32)
        blocks = hdus["NUMBER"].data.T.astype(np.uint16)
    number = np.repeat(np.repeat(blocks, BLOCK, axis=0), BLOCK, axis=1)
    beyond = [(0, max(0, n - m)) for n, m in zip(values.shape, number.shape, strict=True)]
    number = np.pad(number, beyond, mode="edge")[: values.shape[0], : values.shape[1]]
    return Sum(values, weights, number)
