"""What light curves do: numbers of each source, how often constant ones reach them, and candidates
with reasons.

eta   chi squared a degree of freedom against the weighted mean (Swinbank et al. 2015, A&C 11, 25)
V     standard deviation over mean (the same)
m     modulation index without the noise's part: sqrt(variance - mean error^2) / mean; negative
      where noise is more than what is seen
SF_k  mean squared difference over k days over mean^2, without the noise's part
dip, flare   the largest fall and rise of the mean over 1, 3, 10 and 30 epochs, in sigma of noise
             and systematics

A source is a candidate when chance would make fewer than so many like it among all: what chance
makes is measured on the sources themselves (a tail fitted to all but the most extreme).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

LAGS_DAYS = (1, 3, 10, 30)
BOXES = (1, 3, 10, 30)  # epochs
_FEW = 3  # measurements, for any number at all
_TAIL, _EXTREME = 0.2, 0.02  # shares of sources: the tail is fitted between the two
_FEW_FOR_TAIL = 20
_CLASSES = ((0.75, 2.0), (0.5, 0.75), (0.35, 0.5), (0.0, 0.35))  # of the beam's response


@dataclass(frozen=True)
class Curves:
    """Light curves: flux and its error of the noise (nsource, nday) in Jy, NaN where there is none,
    and the relative error of the day's scales; days are numbers of sidereal days, one after the
    other."""

    flux_jy: np.ndarray
    error_jy: np.ndarray
    of_day: np.ndarray

    def with_systematics(self, relative: float | np.ndarray) -> "Curves":
        """With the days' errors and a relative one, of all or of each source, added in
        quadrature."""
        mean = np.abs(_mean(self))
        beyond = np.hypot(self.of_day * mean[:, None], (relative * mean)[:, None])
        error = np.hypot(self.error_jy, beyond).astype(self.error_jy.dtype)
        return Curves(self.flux_jy, error, np.zeros_like(self.of_day))


def _weights(of: Curves) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(of.flux_jy) & (of.error_jy > 0), of.error_jy**-2.0, 0)


def _mean(of: Curves) -> np.ndarray:
    weight = _weights(of)
    with np.errstate(invalid="ignore"):
        return np.nansum(weight * of.flux_jy, axis=1) / weight.sum(axis=1)


def eta(of: Curves) -> np.ndarray:
    """(nsource,); NaN for fewer than two measurements."""
    weight = _weights(of)
    away = np.where(weight > 0, of.flux_jy - _mean(of)[:, None], 0)
    number = (weight > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(number > 1, (weight * away**2).sum(axis=1) / (number - 1), np.nan)


def systematics(of: Curves, beam: np.ndarray, least_snr: float = 50.0) -> np.ndarray:
    """(nsource,) relative error beyond the noise and the days' own, at which the median of eta is 1
    for sources of this signal to noise and more; 0 where these explain all.

    beam  response (nsource,) at each source: towards the beam's edge, what beam and pointing are
          not known to counts more. A class of it with too few sources takes the last one's.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.nanmedian(of.flux_jy / of.error_jy, axis=1)
    bright = (snr >= least_snr) & ((_weights(of) > 0).sum(axis=1) >= _FEW)
    found, last = np.zeros(len(beam)), 0.0
    for low, high in _CLASSES:
        inside = (beam >= low) & (beam < high)
        chosen = bright & inside
        if chosen.sum() >= _FEW_FOR_TAIL // 2:
            of_class = (one[chosen] for one in (of.flux_jy, of.error_jy, of.of_day))
            last = max(last, _beyond_noise(Curves(*of_class)))
        found[inside] = last
    return found


def _beyond_noise(of: Curves) -> float:
    """The relative error at which the median of eta is 1, by bisection."""
    low, high = 0.0, 0.5
    if np.median(eta(of.with_systematics(0.0))) <= 1:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if np.median(eta(of.with_systematics(middle))) > 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def numbers(of: Curves, systematic: np.ndarray) -> pd.DataFrame:
    """All numbers of each source, a row each."""
    weight, full = _weights(of), of.with_systematics(systematic)
    seen, number = weight > 0, (weight > 0).sum(axis=1)
    mean = _mean(of)
    few = number < _FEW
    flux = np.where(seen, of.flux_jy, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.nansum(np.where(seen, flux, 0), axis=1) / number
        variance = np.nansum(np.where(seen, flux - plain[:, None], 0) ** 2, axis=1) / (number - 1)
        noise = np.where(seen, of.error_jy**2.0, 0).sum(axis=1) / number
        found = {
            "epochs": number,
            "mean_jy": mean,
            "mean_error_jy": weight.sum(axis=1) ** -0.5,
            "median_error_jy": np.sqrt(noise),
            "eta": eta(of),
            "eta_systematic": eta(full),
            "v": np.sqrt(variance) / plain,
            "modulation": _signed_root(variance - noise) / plain,
        }
        for lag in LAGS_DAYS:
            found[f"sf_{lag}"] = _structure(of, seen, lag) / plain**2
        found |= _boxes(full)
    table = pd.DataFrame(found)
    table.loc[few, table.columns.difference(["epochs", "mean_jy", "mean_error_jy"])] = np.nan
    return table


def _signed_root(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.sqrt(np.abs(x))


def _structure(of: Curves, seen: np.ndarray, lag: int) -> np.ndarray:
    """Mean squared difference over `lag` days without the noise's part, Jy^2."""
    if lag >= of.flux_jy.shape[1]:
        return np.full(len(of.flux_jy), np.nan)
    both = seen[:, lag:] & seen[:, :-lag]
    difference = np.where(both, of.flux_jy[:, lag:] - of.flux_jy[:, :-lag], 0) ** 2
    noise = np.where(both, of.error_jy[:, lag:] ** 2 + of.error_jy[:, :-lag] ** 2, 0)
    return (difference - noise).sum(axis=1) / both.sum(axis=1)


def _boxes(of: Curves) -> dict[str, np.ndarray]:
    """The largest fall and rise of a box's mean against the mean of the rest, in sigma; how long
    the box is, and at which day it begins."""
    weight = _weights(of)
    sums = [
        np.concatenate([np.zeros((len(x), 1)), np.cumsum(x, axis=1, dtype=float)], axis=1)
        for x in (weight, np.where(weight > 0, weight * of.flux_jy, 0))
    ]
    total, product = (one[:, -1:] for one in sums)
    number = len(of.flux_jy)
    found = {
        "dip": np.zeros(number),
        "dip_days": np.zeros(number, int),
        "dip_begin": np.zeros(number, int),
        "flare": np.zeros(number),
        "flare_days": np.zeros(number, int),
        "flare_begin": np.zeros(number, int),
    }
    rows = np.arange(number)
    for box in BOXES:
        if box * 2 > of.flux_jy.shape[1]:
            break
        w, wf = (one[:, box:] - one[:, :-box] for one in sums)
        rest = total - w
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = (wf / w - (product - wf) / rest) / np.sqrt(1 / w + 1 / rest)
        sigma = np.where((w > 0) & (rest > 0), sigma, 0)
        for name, at in (("dip", sigma.argmin(axis=1)), ("flare", sigma.argmax(axis=1))):
            value = np.abs(sigma[rows, at])
            value = np.where((sigma[rows, at] < 0) == (name == "dip"), value, 0)
            better = value > found[name]
            found[name] = np.where(better, value, found[name])
            found[f"{name}_days"] = np.where(better, box, found[f"{name}_days"])
            found[f"{name}_begin"] = np.where(better, at, found[f"{name}_begin"])
    return found


def false_alarms(values: np.ndarray) -> np.ndarray:
    """How many of all sources chance makes as extreme: of each value the expected number, by a tail
    ln N = a - b x fitted to all but the most extreme; NaN where there are too few."""
    finite = np.isfinite(values)
    number = int(finite.sum())
    if number < _FEW_FOR_TAIL:
        return np.full(len(values), np.nan)
    order = np.sort(values[finite])[::-1]
    first, last = int(np.ceil(_EXTREME * number)), int(_TAIL * number)
    x, rank = order[first:last], np.arange(first, last) + 0.5
    if np.ptp(x) <= 0:
        return np.where(finite, number, np.nan)
    slope, offset = np.polyfit(x, np.log(rank), 1)
    return np.where(finite, np.exp(np.minimum(offset + slope * values, np.log(number))), np.nan)


_STATISTICS = {
    # sqrt(2 eta n) is nearly normal (Fisher)
    "eta": lambda t: (
        np.sqrt(2 * t.eta_systematic * (t.epochs - 1)) - np.sqrt(np.maximum(2 * t.epochs - 3, 0))
    ),
    "dip": lambda t: t.dip,
    "flare": lambda t: t.flare,
}


def candidates(
    table: pd.DataFrame, most_false: float, date_of: Callable[[int, float], str] = "day {}".format
) -> pd.DataFrame:
    """The numbers with `false_alarms` (expected among all sources, of the best of the statistics)
    and `reasons` (words; empty for a source that is none).

    table    with ra_deg
    date_of  of a day's number and a right ascension, for the words
    """
    alarms = {
        name: false_alarms(np.square(np.maximum(np.asarray(of(table), float), 0)))
        for name, of in _STATISTICS.items()
    }
    least = np.fmin.reduce(list(alarms.values())) * len(alarms)  # tried so often
    words = []
    for k, row in enumerate(table.itertuples()):
        said = []
        if least[k] < most_false:
            if alarms["eta"][k] * len(alarms) < most_false:
                said.append(f"varies: eta {row.eta_systematic:.1f}, by {row.modulation:.0%}")
            for name in ("dip", "flare"):
                if alarms[name][k] * len(alarms) < most_false:
                    days, begin = getattr(row, f"{name}_days"), getattr(row, f"{name}_begin")
                    said.append(
                        f"{name} of {getattr(row, name):.0f} sigma over {days:.0f} "
                        f"{'day' if days == 1 else 'days'} from {date_of(int(begin), row.ra_deg)}"
                    )
        words.append("; ".join(said))
    return table.assign(false_alarms=least, reasons=words)
