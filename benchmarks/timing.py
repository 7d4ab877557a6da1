"""Two or more things timed alternately in one process, and the rows of the table that they give."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Case = Callable[[], float]
"""Does its work once and returns the seconds that count."""


def clocked(work: Callable[..., object], prepare: Callable[[], object] | None = None, times: int = 1) -> Case:
    """A case that times `work()` done `times` times over, in seconds for one of them.

    Args:
      work: what is timed; with `prepare` it is given what that returned.
      prepare: done before each timing, not timed.
      times: repetitions in one timing, so that it lasts some milliseconds.
    """

    def case() -> float:
        given = () if prepare is None else (prepare(),)
        start = time.perf_counter()
        for _ in range(times):
            work(*given)
        return (time.perf_counter() - start) / times

    return case


def alternate(cases: Mapping[str, Case], rounds: int, *, warmup: int = 1) -> dict[str, np.ndarray]:
    """Seconds of every case in every round: A B C, C B A, A B C, ...

    Every other round goes backwards, so that a machine that gets slower favours none.

    Returns:
      name -> float array [rounds].
    """
    for _ in range(warmup):
        for case in cases.values():
            case()
    seconds = {name: np.empty(rounds) for name in cases}
    gc.collect()
    for number in range(rounds):
        for name in list(cases)[:: -1 if number % 2 else 1]:
            seconds[name][number] = cases[name]()
    return seconds


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      goal: its number in the list of goals, such as "P7"; "" for a control.
      what: what is compared, "slower / faster" or "ours / floor".
      values: one per round (ratios, seconds or shares).
      sense: whether the goal is to be at most or at least the bar; None where nothing is asked.
      bar, ambitious: the two marks.
      unit: "x" ratio, "%" share, "s" seconds, "" count.
    """

    goal: str
    what: str
    values: np.ndarray
    sense: Literal["<=", ">="] | None = None
    bar: float | None = None
    ambitious: float | None = None
    unit: str = "x"

    @property
    def median(self) -> float:
        """The row's value."""
        return float(np.median(self.values))

    def reaches(self, mark: float | None) -> bool:
        """Whether the median is on the right side of the mark."""
        if mark is None:
            return False
        return self.median <= mark if self.sense == "<=" else self.median >= mark

    @property
    def verdict(self) -> str:
        """Ambitious mark: "ok *", bar: "ok", else "short"; a control is "noisy" outside 0.97 to 1.03."""
        if self.sense is None:
            noisy = self.what.startswith("control") and not 0.97 <= self.median <= 1.03
            return "noisy" if noisy else ""
        return "ok *" if self.reaches(self.ambitious) else "ok" if self.reaches(self.bar) else "short"


def at_most(
    goal: str, what: str, values: object, bar: float, ambitious: float | None = None, *, unit: str = "x"
) -> Row:
    """Row of a goal that small values reach."""
    return Row(goal, what, np.atleast_1d(np.asarray(values, float)), "<=", bar, ambitious, unit)


def at_least(
    goal: str, what: str, values: object, bar: float, ambitious: float | None = None, *, unit: str = "x"
) -> Row:
    """Row of a goal that large values reach."""
    return Row(goal, what, np.atleast_1d(np.asarray(values, float)), ">=", bar, ambitious, unit)


def report(goal: str, what: str, values: object, *, unit: str = "x") -> Row:
    """Row that asks for nothing."""
    return Row(goal, what, np.atleast_1d(np.asarray(values, float)), unit=unit)


def control(what: str, seconds: Mapping[str, np.ndarray], one: str, again: str) -> Row:
    """The same thing timed twice: how far a ratio of 1 strays on this machine now."""
    return Row("", f"control, {what} again", seconds[again] / seconds[one])


HEAD = f"{'goal':5} {'what':72} {'median':>9} {'quartiles':>17} {'n':>3} {'bar':>9} {'*':>7}  verdict"


def line(row: Row) -> str:
    """The row as printed."""
    low, high = np.quantile(row.values, (0.25, 0.75))
    quartiles = f"{_number(low, row.unit)} - {_number(high, row.unit)}" if row.values.size > 1 else ""
    bar = f"{row.sense} {_number(row.bar, row.unit)}" if row.sense else ""
    best = _number(row.ambitious, row.unit) if row.ambitious is not None else ""
    count = row.values.size
    median = _number(row.median, row.unit)
    return (
        f"{row.goal:5} {row.what:72} {median:>9} {quartiles:>17} {count:3} {bar:>9} {best:>7}  {row.verdict}"
    )


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.2f}%"
    digits = 0 if unit == "" else 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}{unit}"
