"""What a check found: a number, the limits that it was held against, and words for people."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

# Of a verdict, from the best to the worst: an image with a known fault is better known than one
# that was compared with nothing.
LEVELS = ("good", "warn", "unverified", "fail")
UNKNOWN = "unknown"  # of a check that could not be made: a result too


@dataclass(frozen=True)
class Finding:
    """A check's outcome. `level` is good, warn, fail, or unknown where the check could not be
    made."""

    name: str
    level: str
    words: str  # the size of a fault and the limit that it crossed; what it probably is; what to do
    value: float | None = None
    warn: float | None = None
    fail: float | None = None

    def as_json(self) -> dict:
        """For a stage's result."""
        return asdict(self)


def judged(
    *,
    name: str,
    value: float | None,
    warn: float,
    fail: float,
    words: str,
    unit: str = "",
    percent: bool = False,
    cause: str = "",
) -> Finding:
    """A number against its limits: beyond `warn` it is passable, beyond `fail` it is wrong; `fail`
    above `warn` where more is worse, below where less is. No number, or none that is finite, is
    unknown.

    words    what was found, with its size
    unit     of the limits, in words; with `percent` they are shares
    cause    what it probably is and what to do; said only when a limit is crossed
    """
    if value is None or not np.isfinite(value):
        return Finding(name, UNKNOWN, words, None, warn, fail)
    sign = 1 if fail >= warn else -1
    level = "fail" if sign * (value - fail) > 0 else "warn" if sign * (value - warn) > 0 else "good"
    if level != "good":
        limit, beyond = (fail if level == "fail" else warn), "beyond" if sign > 0 else "below"
        text = f"{100 * limit:.3g} %" if percent else f"{limit:g}{f' {unit}' if unit else ''}"
        words = f"{words}; {level} {beyond} {text}" + (f". {cause}" if cause else "")
    return Finding(name, level, words, float(value), warn, fail)


def unknown(*, name: str, why: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(name, UNKNOWN, why)


def of_level(findings: Iterable[Finding | Mapping], *levels: str) -> list[str]:
    """The words of the findings of some levels."""
    found = (one.as_json() if isinstance(one, Finding) else one for one in findings)
    return [one["words"] for one in found if one["level"] in levels]
