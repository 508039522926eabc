"""What was flagged: by antenna, channel, time and baseline length."""

import logging
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from contimg.plots.style import BLUE, ORANGE, only_words

log = logging.getLogger(__name__)


def draw_flags(prepared: Mapping, freq_mhz: np.ndarray, group: str):
    """Four panels: flags by antenna, channel, baseline length and integration."""
    if not prepared["flagged"]:
        return only_words(f"{group}: nothing was flagged before calibration")
    figure, grid = plt.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    (antenna, channel), (length, integration) = grid
    shares = prepared["flagged_by_antenna"]
    lost = {*prepared["dead_antennas"], *prepared["odd_antennas"]}
    antenna.bar(
        range(len(shares)),
        [100 * s for s in shares.values()],
        color=[ORANGE if name in lost else BLUE for name in shares],
    )
    every = max(1, -(-len(shares) // 48))
    antenna.set_xticks(range(0, len(shares), every), list(shares)[::every], rotation=90, fontsize=7)
    antenna.set_xlabel("Station" + (" (orange: dead, or of odd noise)" if lost else ""))
    channel.plot(
        freq_mhz,
        100 * np.array(prepared["flagged_by_channel"]),
        drawstyle="steps-mid",
        color=BLUE,
        lw=1,
    )
    channel.set_xlabel("Frequency (MHz)")
    bins = prepared["flagged_by_length"]
    if bins:
        length.stairs(
            [100 * b["flagged"] for b in bins],
            [b["from_m"] for b in bins] + [bins[-1]["to_m"]],
            fill=True,
            color=BLUE,
        )
    length.set_xlabel("Baseline length (m), as many baselines in each bin")
    if bins:
        length.set_xscale("log")
    integration.plot(100 * np.array(prepared["flagged_by_integration"]), "o-", ms=4, color=BLUE)
    integration.set_xlabel("Integration")
    for axes in grid.ravel():
        axes.set_ylabel("Flagged (%)")
        axes.set_ylim(-2, 102)
    reasons = ", ".join(
        f"{name.replace('_', ' ')} {100 * s:.2f} %"
        for name, s in prepared["flagged_by"].items()
        if s
    )
    figure.suptitle(
        f"{group}  ·  {100 * prepared['flagged']:.2f} % of the cross-correlations flagged before "
        f"calibration ({prepared['strategy']})\n{reasons or 'nothing found'}",
        fontsize=11,
    )
    return figure
