"""Paired comparisons with a baseline: differences on common seeds, intervals, p-values, Holm's correction."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunebench.report.group import close_ones
from prunebench.report.student import central, interval

TESTS = {"t": "paired t test", "wilcoxon": "Wilcoxon signed-rank test"}


@dataclass(frozen=True)
class Comparison:
    """One number against the baseline's on the same seeds.

    Attributes:
      n: seeds that both have.
      mean: mean of the differences.
      low, high: its 95 % t-interval, None for one seed.
      p: two-sided p-value of the hypothesis that nothing differs, see `p_value`.
      adjusted: the same after Holm's correction over a family of comparisons; None before it.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None = None


def compared(
    mine: Mapping[Any, float], baseline: Mapping[Any, float], *, test: str = "t"
) -> Comparison | None:
    """The comparison of two numbers by seed; None without a common seed.

    Args:
      mine, baseline: seed -> value.
      test: one of `TESTS`.
    """
    pairs = [mine[seed] - baseline[seed] for seed in mine if seed in baseline]
    if not pairs:
        return None
    low, high = interval(pairs) or (None, None)
    return Comparison(len(pairs), statistics.fmean(pairs), low, high, p_value(pairs, test))


def p_value(differences: Sequence[float], test: str = "t") -> float | None:
    """Two-sided p-value for paired differences that are 0 on average; None where there is nothing to test.

    That is so for fewer than two differences, and where all are 0 (rows that share what is compared, such as
    the dense network). The t test takes the differences for normal. Wilcoxon's
    does not, but can give no less than 2^(1 - n) for n pairs: 0.0625 for 5.
    """
    if len(differences) < 2 or not any(differences):
        return None
    if test == "wilcoxon":
        from scipy.stats import wilcoxon

        return float(wilcoxon(differences).pvalue)
    deviation = statistics.stdev(differences)
    if deviation == 0:
        return 0.0
    t = statistics.fmean(differences) / (deviation / math.sqrt(len(differences)))
    freedom = len(differences) - 1
    return max(0.0, 1 - central(math.atan(abs(t) / math.sqrt(freedom)), freedom))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the number of comparisons (Holm 1979, step down); None stays and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    out: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        out[place] = highest
    return out


def corrected(family: Sequence[Comparison | None]) -> list[Comparison | None]:
    """The comparisons of one family, each with its adjusted p-value."""
    values = holm([one.p if one else None for one in family])
    return [one and replace(one, adjusted=value) for one, value in zip(family, values)]


def p_text(value: float) -> str:
    """A p-value as a table has it: ".032", "<.001"."""
    if value < 0.001:
        return "<.001"
    return f"{value:.3f}".removeprefix("0") if value < 0.9995 else "1"


def against(rows: Sequence[dict], baseline: str, *, test: str = "t") -> list[dict]:
    """Rows of `group.summarise` with their comparison to the baseline's row of the same sparsity.

    Args:
      rows: with "values"; those of one model and data set are one family for Holm's correction.
      baseline: the label of the rows to compare with.
      test: one of `TESTS`.

    Returns:
      the rows, with "difference", "difference_low", "difference_high", "difference_n", "p" and "p_holm" where
      the two have a seed in common.

    Raises:
      ValueError: if no row has the label, naming the close ones.
    """
    there = list(dict.fromkeys(row["method"] for row in rows))
    if baseline not in there:
        raise ValueError(f"--baseline {baseline}: no such row{close_ones(baseline, there)}")
    base = {_place(row): row for row in rows if row["method"] == baseline and not row["partial"]}
    found = [_with(row, base.get(_place(row)), test) for row in rows]
    out = [dict(row) for row in rows]
    for family in {(row["model"], row["dataset"]) for row in rows}:
        places = [i for i, row in enumerate(rows) if (row["model"], row["dataset"]) == family]
        for i, one in zip(places, corrected([found[i] for i in places])):
            out[i] |= fields(one) if one else {}
    return out


def fields(one: Comparison) -> dict[str, Any]:
    """A comparison as columns of a table; "difference_between" is the interval once more, as a pair."""
    return {
        "difference": one.mean,
        "difference_low": one.low,
        "difference_high": one.high,
        "difference_between": None if one.low is None else (one.low, one.high),
        "difference_n": one.n,
        "p": one.p,
        "p_holm": one.adjusted,
    }


def _place(row: Mapping) -> tuple:
    """What two rows that can be compared have in common."""
    return row["model"], row["dataset"], round(row["target"], 9), round(row["asked"], 9)


def _with(row: Mapping, base: Mapping | None, test: str) -> Comparison | None:
    if base is None or base is row or row["partial"]:
        return None
    return compared(row["values"], base["values"], test=test)
