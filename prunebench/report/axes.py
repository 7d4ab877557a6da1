"""What accuracy is drawn over: the prices that a network has, and how an axis of each looks."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunebench.report.read import Run, rows_of
from prunebench.report.style import remaining_axis, series
from prunebench.report.table import count, percent, ratio

NETWORKS = ("shrunk", "masked")  # whose latency is looked for, in this order
SIZED = re.compile(r"(?:shrunk|masked)_milliseconds_(\d+)")
FEW = (1, 1.5, 2, 2.5, 3, 4, 5, 6)  # ticks of a logarithmic axis that ends early
LOGARITHMIC_FROM = 2.5  # largest total / kept from which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """A price of a network.

    Attributes:
      words: what stands below the axis.
      short: the same in a word, for a table.
      at: row of `group.summarise` -> its value, None where it is not known.
      show: the value as text.
      draw: (matplotlib axis, values on it) -> scale and ticks; it says where a value lies, see `place`.
      cheap_is_large: whether the cheaper of two networks has the larger value (compression).
      scale: factor between a value and its place on the axis.
      asked: what gives runs the value, where not every run has it.
      note: what a reader has to know of the value, if `words` cannot say it.
    """

    words: str
    short: str
    at: Callable[[Mapping], float | None]
    show: Callable[[float], str]
    draw: Callable[[Any, Sequence[float]], None]
    cheap_is_large: bool = False
    scale: float = 1.0
    asked: str = ""
    note: str = ""

    def cost(self, row: Mapping) -> float | None:
        """Smaller for the cheaper of two rows."""
        value = self.at(row)
        return -value if value is not None and self.cheap_is_large else value

    def place(self, row: Mapping) -> float | None:
        """Where a row lies on the drawn axis."""
        value = self.at(row)
        if value is not None and self.draw is sparsity_axis:
            return 1 / (1 - value) if value < 1 else None
        return None if value is None else self.scale * value


def factor_axis(axis: Any, factors: Sequence[float]) -> None:
    """Label an axis of total / kept as 1x, 2x, 5x, ... when it is wide enough for a logarithmic one."""
    largest = max(factors, default=1.0)
    if largest >= LOGARITHMIC_FROM:
        axis.set_xscale("log")
        powers = [2.0**k for k in range(math.ceil(math.log2(largest)) + 1)]
        known = FEW if largest < FEW[-1] else powers if len(powers) <= 8 else series(largest)
        ticks = [tick for tick in known if tick <= largest * 1.1]
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.set_xticks([], minor=True)


def sparsity_axis(axis: Any, factors: Sequence[float]) -> None:
    """Label an axis of total / kept by sparsity in percent; when it is wide, it is logarithmic."""
    largest = max(factors, default=1.0)
    if largest < LOGARITHMIC_FROM:
        ticks = [1 / (1 - share / 20) for share in range(12) if 1 / (1 - share / 20) <= largest * 1.05]
        ticks = ticks[:: max(1, len(ticks) // 5)]
    else:
        if min(factors) == largest:  # one point
            axis.set_xlim(1, largest * 1.1)
        axis.set_xscale("log")
        ticks = [tick for tick in series(largest) if tick <= largest * 1.05]
    axis.set_xticks(ticks, [f"{100 - 100 / tick:.6g}" for tick in ticks])
    axis.set_xticks([], minor=True)


def share_axis(axis: Any, percents: Sequence[float]) -> None:
    """Label an axis of shares left, in percent, from 100 down to the right."""
    remaining_axis(axis, [value / 100 for value in percents])


def amount_axis(axis: Any, values: Sequence[float]) -> None:
    """Label an axis of amounts with units of thousands: 5G, 10G."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if low > 0 and high / low > 20:
        axis.set_xscale("log")
    else:
        axis.margins(x=0.08)
    axis.xaxis.set_major_formatter(lambda value, _: count(value))


def plain_axis(axis: Any, values: Sequence[float]) -> None:
    """Leave scale and ticks to matplotlib."""
    axis.margins(x=0.08)


AXES: Mapping[str, Axis] = {
    "compression": Axis(
        "compression (parameters, total / kept)",
        "compr.",
        lambda row: row["compression"],
        ratio,
        factor_axis,
        cheap_is_large=True,
    ),
    "sparsity": Axis(
        "sparsity (% of the prunable weights removed)",
        "sparsity",
        lambda row: row["sparsity"],
        percent,
        sparsity_axis,
        cheap_is_large=True,
    ),
    "macs": Axis(
        "MACs of one image, share left (%)",
        "MACs left",
        lambda row: _share(row["macs"], row["macs_dense"]),
        percent,
        share_axis,
        scale=100,
    ),
    "speedup": Axis(
        "theoretical speed-up (MACs, total / kept)",
        "speed",
        lambda row: row["speedup"],
        ratio,
        factor_axis,
        cheap_is_large=True,
    ),
    "latency": Axis(
        "measured latency (ms)",
        "latency (ms)",
        lambda row: row["latency"],
        "{:.4g}".format,
        plain_axis,
        asked="metrics=[latency] measures it",
        note="latency: of a forward pass with the smallest batch that all runs measured, by the physically "
        "smaller network where a run has one, on the run's own device",
    ),
    "train_macs": Axis(
        "MACs of the training so far",
        "train MACs",
        lambda row: row["train_macs"],
        count,
        amount_axis,
        asked="a finished run says it of its end",
    ),
}


def priced(runs: Sequence[Run], over: str) -> list[Run]:
    """The runs, their rounds with the price that is drawn where it stands elsewhere on disk.

    Latency is the number `milliseconds` of the metric of that name at the end of a round, or else
    `shrunk_milliseconds_B`, or `masked_milliseconds_B` in its absence, with the smallest batch size B that
    all rows have; what training had cost at the end is among the totals of a run.

    Raises:
      ValueError: if no run has the price.
    """
    if over not in ("latency", "train_macs"):
        return list(runs)
    values = _latencies(runs) if over == "latency" else [_train_macs(run) for run in runs]
    out = [_with(run, over, own) for run, own in zip(runs, values)]
    rows = [row for run in out for row in run.rounds]
    if rows and not any(row.get(over) is not None for row in rows):
        raise ValueError(f"--over {over}: no run here has it; {AXES[over].asked}")
    return out


def _with(run: Run, key: str, values: Mapping[str, float]) -> Run:
    rounds = [row | ({key: values[row["phase"]]} if row["phase"] in values else {}) for row in run.rounds]
    return replace(run, rounds=rounds)


def _latencies(runs: Sequence[Run]) -> list[dict[str, float]]:
    """For every run phase -> milliseconds."""
    rows = [_latency_rows(run) for run in runs]
    sized = [row for own in rows for row in own.values() if "milliseconds" not in row]
    sizes = [{int(found[1]) for key in row if (found := SIZED.fullmatch(key))} for row in sized]
    common = set.intersection(*sizes) if sizes else set()
    if sizes and not common:
        raise ValueError("--over latency: no batch size was measured by all runs (metrics.latency.batches)")
    names = ["milliseconds", *(f"{which}_milliseconds_{min(common)}" for which in NETWORKS if common)]
    return [{phase: next(row[n] for n in names if n in row) for phase, row in own.items()} for own in rows]


def _latency_rows(run: Run) -> dict[str, dict]:
    """Phase -> the row of the metric at its end."""
    try:
        rows = [*rows_of(run.directory / "metrics.jsonl", "metric", mark='"latency"')]
    except (OSError, ValueError) as error:
        raise ValueError(f"--over latency: {run.directory}: {error}") from error
    return {row["phase"]: row for row in rows if row.get("metric") == "latency" and row.get("when") == "end"}


def _train_macs(run: Run) -> dict[str, float]:
    """Phase -> MACs; of a run whose rounds do not say it, at its end."""
    if run.rounds and "train_macs" not in run.rounds[-1] and _is_number(run.totals.get("cost.train_macs")):
        return {run.rounds[-1]["phase"]: run.totals["cost.train_macs"]}
    return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
