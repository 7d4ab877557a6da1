"""The Pareto front: operating points that no other beats in accuracy and price at once."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunebench.report.axes import AXES, Axis
from prunebench.report.group import summarise
from prunebench.report.metric import is_loss, title
from prunebench.report.read import Run
from prunebench.report.render import formats, panels
from prunebench.report.sheets import Sheet
from prunebench.report.table import Column, percent, table

Fronts = Mapping[tuple[str, str], Sequence[dict]]
"""(model, data set) -> the rows of its front, the cheapest first."""


def operating_points(ends: Sequence[dict], rounds: Sequence[dict]) -> list[dict]:
    """The pruned networks that a method offers: rows of one model and data set, by method and compression.

    Where its finished runs ask for several sparsities these are their ends; where they ask for one, their
    rounds.

    Args:
      ends, rounds: rows of `group.summarise`, without and with `rounds`.
    """
    out = []
    for name in dict.fromkeys(row["method"] for row in rounds):
        finished = [row for row in ends if row["method"] == name and not row["partial"]]
        several = len({row["asked"] for row in finished}) > 1
        own = finished if several else [row for row in rounds if row["method"] == name]
        out += sorted(
            (row for row in own if row["sparsity"] > 0 and row["value"] is not None),
            key=lambda row: row["compression"],
        )
    return out


def front(rows: Sequence[dict], metric: str, axis: Axis) -> list[dict]:
    """Of the rows those that no other dominates, the cheapest first.

    A row dominates another if it is no more expensive, its mean is no worse, and one of the two is better.
    Means are compared as they are: two rows within the spread of their seeds are not taken for equal. Rows
    that are equal in both stay together.
    """
    better = -1 if is_loss(metric) else 1
    known = [
        (cost, -better * row["value"], place)
        for place, row in enumerate(rows)
        if (cost := axis.cost(row)) is not None and math.isfinite(row["value"])
    ]
    out: list[int] = []
    best = (math.nan, math.inf)
    for cost, worse, place in sorted(known):
        if worse < best[1] or (cost, worse) == best:
            best = (cost, worse)
            out.append(place)
    return [rows[place] for place in out]


def fronts(runs: Sequence[Run], names: Sequence[str], metric: str, over: str) -> Fronts:
    """The front of every model and data set."""
    ends = panels(summarise(runs, names, metric))
    return {
        place: found
        for place, rounds in panels(summarise(runs, names, metric, rounds=True)).items()
        if (found := front(operating_points(ends.get(place, []), rounds), metric, AXES[over]))
    }


def sheets(found: Fronts, metric: str, over: str) -> list[Sheet]:
    """The fronts as tables."""
    axis, (show, _) = AXES[over], formats(metric)
    of = title(metric)
    columns = [
        Column("method", "method", text=True),
        Column("sparsity", "sparsity", percent),
        *([] if over == "sparsity" else [Column("price", axis.short, axis.show)]),
        Column("value", "mean", show, of),
        Column("std", "std", show, of),
        Column("reach", "+-95 %", show, of),
        Column("n", "n"),
    ]
    return [
        Sheet(
            f"Pareto front of {model} on {dataset}: {of} against {axis.words}",
            columns,
            [{**row, "price": axis.at(row)} for row in rows],
        )
        for (model, dataset), rows in found.items()
    ]


def text_lines(found: Fronts, metric: str, over: str, *, width: int) -> list[str]:
    """The same for the terminal."""
    made = sheets(found, metric, over)
    return [
        line for sheet in made for line in (sheet.title, *table(sheet.columns, sheet.rows, width=width), "")
    ]


def write_csv(path: Path, found: Fronts, metric: str, over: str) -> None:
    """A row per point of a front, unrounded."""
    keys = ("model", "dataset", "method", "target", "asked", "sparsity", "value", "std", "reach", "n")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "over", "price", *keys])
        for rows in found.values():
            writer.writerows([metric, over, AXES[over].at(row), *(row[key] for key in keys)] for row in rows)


NOTE = (
    "Pareto front: pruned networks (ends of runs where they ask for several sparsities, else their rounds) "
    "than which no other is better in one and no worse in the other; by means over seeds, whatever their "
    "spread"
)
