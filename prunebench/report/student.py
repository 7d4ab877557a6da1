"""Student's t distribution with a whole number of degrees of freedom, without scipy."""

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

LEVEL = 0.95  # of intervals


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean of independent values: mean -+ t s / sqrt(n); None for fewer than 2."""
    if len(values) < 2:
        return None
    reach = quantile(LEVEL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


@lru_cache(maxsize=1024)
def quantile(share: float, freedom: int) -> float:
    """The t for which `share` of the distribution lies between -t and t.

    >>> round(quantile(0.95, 1), 4), round(quantile(0.95, 2), 4), round(quantile(0.95, 9), 4)
    (12.7062, 4.3027, 2.2622)

    Args:
      share: in [0, 1).
      freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:  # until no float lies between them
        low, high = (middle, high) if central(middle, freedom) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def central(angle: float, freedom: int) -> float:
    """Share of the distribution between -t and t, where t = sqrt(freedom) tan(angle).

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
