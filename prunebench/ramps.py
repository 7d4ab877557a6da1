"""Sparsity on its way from `start` to `target`: pure functions of the share done.

The share x is j / n after round j of n (see `prunebench.protocols`), or (t - t0) / (t1 - t0) at step t of a
phase that prunes while it trains. Shares outside [0, 1] are clipped: the sparsity holds `start` before and
`target` after the ramp. All ramps give exactly `start` at x = 0 and exactly `target` at x = 1.
"""

import math


def geometric(x: float, *, target: float, start: float = 0.0) -> float:
    """Every equal step removes the same share of the remaining weights.

    Density (1 - start)^(1-x) (1 - target)^x; over n rounds from 0 the share is 1 - (1 - target)^(1/n)
    (Frankle & Carbin, arXiv 1803.03635, section 1).

    Args:
      x: share of the ramp done.
      target: sparsity at the end, in [0, 1).
      start: sparsity at the beginning, in [0, target].

    Raises:
      ValueError: if `target` or `start` is out of range.
    """
    x = _share(x, target, start)
    if x in (0.0, 1.0):  # powers would be off in the last digit
        return target if x else start
    return 1.0 - (1.0 - start) ** (1.0 - x) * (1.0 - target) ** x


def linear(x: float, *, target: float, start: float = 0.0) -> float:
    """Every equal step removes the same number of weights.

    Args:
      x: share of the ramp done.
      target: sparsity at the end, in [0, 1).
      start: sparsity at the beginning, in [0, target].

    Raises:
      ValueError: if `target` or `start` is out of range.
    """
    return _blend(1.0 - _share(x, target, start), target, start)


def cubic(x: float, *, target: float, start: float = 0.0) -> float:
    """Fast first, slow at the end: target + (start - target) (1 - x)^3.

    The ramp of gradual magnitude pruning (Zhu & Gupta, arXiv 1710.01878, eq. 1).

    Args:
      x: share of the ramp done.
      target: sparsity at the end, in [0, 1).
      start: sparsity at the beginning, in [0, target].

    Raises:
      ValueError: if `target` or `start` is out of range.
    """
    return _blend((1.0 - _share(x, target, start)) ** 3, target, start)


def cosine(x: float, *, target: float, start: float = 0.0) -> float:
    """Slow at both ends: target + (start - target) (1 + cos(pi x)) / 2.

    Args:
      x: share of the ramp done.
      target: sparsity at the end, in [0, 1).
      start: sparsity at the beginning, in [0, target].

    Raises:
      ValueError: if `target` or `start` is out of range.
    """
    return _blend((1.0 + math.cos(math.pi * _share(x, target, start))) / 2.0, target, start)


def _share(x: float, target: float, start: float) -> float:
    """Clip the share, after checking the ends."""
    if not 0.0 <= target < 1.0:
        raise ValueError(f"target={target}: must lie in [0, 1)")
    if not 0.0 <= start <= target:
        raise ValueError(f"start={start}: must lie in [0, target={target}]")
    return min(max(x, 0.0), 1.0)


def _blend(rest: float, target: float, start: float) -> float:
    """`start` where all of the way is left (rest = 1), `target` where nothing is."""
    return start if rest == 1.0 else target + (start - target) * rest


# What is left of a share that falls from 1 at x = 0 to 0 at x = 1 (arXiv 1911.11134, drop fraction)


def fall_cosine(x: float) -> float:
    """(1 + cos(pi x)) / 2: slow at both ends.

    >>> [round(0.3 * fall_cosine(x), 6) for x in (0, 0.25, 0.5, 0.75, 1)]
    [0.3, 0.256066, 0.15, 0.043934, 0.0]
    """
    return (1.0 + math.cos(math.pi * x)) / 2.0


def fall_constant(x: float) -> float:
    """1 all the way."""
    return 1.0


def fall_linear(x: float) -> float:
    """1 - x."""
    return 1.0 - x


def fall_inverse_power(x: float) -> float:
    """(1 - x)^3: fast first."""
    return (1.0 - x) ** 3


FALLS = {
    "cosine": fall_cosine,
    "constant": fall_constant,
    "linear": fall_linear,
    "inverse_power": fall_inverse_power,
}
