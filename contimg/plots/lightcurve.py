"""Pictures of light curves."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from contimg.plots.style import BLUE, ORANGE, only_words


def draw_lightcurve(curve: pd.DataFrame, source: Mapping) -> Figure:
    """Fluxes of the days of a source, errors of the noise, and of the rest in grey; its mean."""
    title = f"{source['source']}  ·  strip {source['strip']}"
    if not len(curve):
        return only_words(f"{title}: no day of it")
    figure, panel = plt.subplots(figsize=(10, 4.5), layout="constrained")
    flux, error = curve.flux_jy.values * 1e3, curve.error_jy.values * 1e3
    relative = np.hypot(curve.systematic.values, source["systematic"] or 0)
    whole = np.hypot(error, relative * np.abs(flux))
    mean_mjy = source["mean_jy"] * 1e3
    panel.errorbar(curve.mjd, flux, whole, fmt="none", ecolor="0.75", lw=3)
    panel.errorbar(curve.mjd, flux, error, fmt="o", ms=4, color=BLUE, lw=1.2)
    panel.axhline(mean_mjy, color="0.5", lw=0.8)
    panel.axhline(0, color="0.85", lw=0.8)
    lowest, highest = min(0, (flux - 2 * whole).min()), (flux + 2 * whole).max()
    panel.set(
        xlabel="MJD (UTC)",
        ylabel="Flux density (mJy)",
        ylim=(lowest, highest + 0.05 * abs(highest)),
    )
    panel.ticklabel_format(axis="x", useOffset=False)
    numbers = [f"{len(curve)} days", f"mean {mean_mjy:.2f} mJy"]
    if source["eta_systematic"] is not None:
        numbers.append(f"eta {source['eta']:.2f} ({source['eta_systematic']:.2f} with systematics)")
        numbers.append(f"V {source['v']:.3f}")
    figure.suptitle(f"{title}\n{'  ·  '.join(numbers)}", fontsize=10)
    panel.set_title(source["reasons"], fontsize=8, color=ORANGE)
    return figure


def draw_variables(rows: Sequence[Mapping]) -> Figure:
    """eta (with systematics) against V of all sources; candidates are marked."""
    table = pd.DataFrame(rows)
    known = (
        table[table.eta_systematic.notna() & (table.eta_systematic > 0)] if len(table) else table
    )
    if not len(known):
        return only_words("no source has three days yet")
    figure, panel = plt.subplots(figsize=(8, 6), layout="constrained")
    variable = known.reasons != ""
    v = np.maximum(known.v.astype(float), 1e-4)
    panel.loglog(v[~variable], known.eta_systematic[~variable], ".", ms=3, color="0.6")
    panel.loglog(v[variable], known.eta_systematic[variable], "o", ms=5, color=ORANGE)
    panel.axhline(1, color="0.8", lw=0.8)
    for k, one in known[variable].sort_values("false_alarms").head(12).iterrows():
        panel.annotate(
            one.source,
            (v[k], one.eta_systematic),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    panel.set(
        xlabel="V: standard deviation over mean",
        ylabel="eta: chi squared a degree of freedom, with systematics",
        title=f"{len(known)} sources, {int(variable.sum())} candidates",
    )
    return figure
