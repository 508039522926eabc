"""What all plots share: colours, sizes, saving, coarse pictures of images."""

import logging
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from contimg.store.files import replacing

log = logging.getLogger(__name__)
# Okabe & Ito (2008): told apart with any colour vision.
BLUE, ORANGE = "#0072B2", "#D55E00"
COARSE_PIXELS = 900
DPI = 110


def save_plot(draw: Callable[[], Figure], path: Path, dpi: int = DPI) -> str | None:
    """Draw and write a plot; one that cannot be drawn is replaced by a picture that says why, and
    fails nothing.

    Returns why it could not be drawn.
    """
    why = None
    try:
        figure = draw()
        with replacing(path) as partial:
            figure.savefig(partial, dpi=dpi, format="png", pil_kwargs={"compress_level": 2})
    except OSError:  # no room, say: not the plot's fault
        raise
    except Exception as error:  # matplotlib raises what it likes
        log.exception("the plot %s could not be drawn", path.name)
        why = f"{type(error).__name__}: {error}"
        plt.close("all")
        figure = plt.figure(figsize=(8, 4))
        figure.text(
            0.5, 0.6, f"The plot “{path.stem}” could not be drawn.", ha="center", fontsize=14
        )
        figure.text(
            0.5,
            0.35,
            textwrap.fill(why.replace("$", r"\$")[:600], 80),
            ha="center",
            va="center",
            family="monospace",
            fontsize=9,
        )
        with replacing(path) as partial:
            figure.savefig(partial, dpi=dpi, format="png", pil_kwargs={"compress_level": 2})
    finally:
        plt.close("all")
    return why


def coarse_image(path: Path, pixels: int = COARSE_PIXELS, signed: bool = False) -> np.ndarray:
    """(y, x) image reduced to about `pixels` on a side; each coarse pixel keeps its largest value,
    so sources stay; or, `signed`, the one farthest from 0."""
    from casacore import images

    data = images.image(str(path))
    values = data.getdata().squeeze()
    values[data.getmask().squeeze()] = np.nan
    factor = max(1, values.shape[0] // pixels)
    side = values.shape[0] // factor
    values = values[: side * factor, : side * factor].reshape(side, factor, -1)

    def reduced(by: np.ufunc) -> np.ndarray:
        return by.reduce(by.reduce(values, axis=1).reshape(side, side, factor), axis=2)

    largest = reduced(np.fmax)  # NaN only where all are
    if not signed:
        return largest
    least = reduced(np.fmin)
    return np.where(-least > largest, least, largest)


def show(axes, picture: np.ndarray, imaged: Mapping, **style):
    """A coarse picture of an image on axes in degrees from its centre."""
    half_deg = imaged["imsize"] * imaged["cell_arcsec"] / 3600 / 2
    rms_mjy = imaged["rms_jy"] * 1e3
    style = {"cmap": "inferno", "vmin": -2 * rms_mjy, "vmax": 25 * rms_mjy} | style
    extent = (half_deg, -half_deg, -half_deg, half_deg)
    return axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest", **style)


def only_words(words: str) -> Figure:
    """A figure that says why there is nothing to plot."""
    figure = plt.figure(figsize=(8, 4))
    figure.text(0.5, 0.5, words, ha="center")
    return figure
