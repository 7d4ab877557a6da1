"""What was measured beside accuracy: rows of kind "metric" in metrics.jsonl, as numbers over the rounds."""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prunebench.report.group import close_ones, mean_std
from prunebench.report.read import Run, rows_of

PLACE = ("kind", "phase", "cycle", "step", "total", "epoch", "sparsity", "metric", "when")
MARK = '"metric"'
CONSTANT = 1e-3  # relative: a number that changes less is the same; counts of weights are rounded


class Reading(NamedTuple):
    """One number of one run.

    Attributes:
      directory, label, model, dataset, seed, target: whose; target is the sparsity asked at the end, in which
        runs of one label may differ.
      phase, cycle, remaining: where in the plan; share of the prunable weights remaining.
      when, epoch: "end" of the phase, or "epoch" with the epochs of it that were trained.
      metric, name, value: what.
    """

    directory: str
    label: str
    model: str
    dataset: str
    seed: Any
    target: float | None
    phase: str
    cycle: int
    remaining: float
    when: str
    epoch: float
    metric: str
    name: str
    value: float


class Point(NamedTuple):
    """Mean and sample standard deviation over the runs of a line; std is None for one."""

    remaining: float
    mean: float
    std: float | None


def read_metrics(runs: Sequence[Run]) -> tuple[list[list[dict]], list[tuple[Path, str]]]:
    """The metric rows of every run, and the runs whose metrics.jsonl is damaged, with the reason.

    Finished runs say whether they measured anything; the others are looked through. Of a row that was written
    twice (a resumed run) the later one counts.
    """
    out, broken = [], []
    for run in runs:
        found: dict[tuple, dict] = {}
        if run.status == "partial" or run.identity.get("metrics"):
            try:
                for row in rows_of(run.directory / "metrics.jsonl", "metric", mark=MARK):
                    found[row["metric"], row["phase"], row["when"], row["step"]] = row
            except (OSError, ValueError, KeyError) as error:
                broken.append((run.directory, str(error)))
                found = {}
        out.append(list(found.values()))
    return out, broken


def readings(runs: Sequence[Run], names: Sequence[str], rows: Sequence[Sequence[Mapping]]) -> list[Reading]:
    """The numbers at the top of the runs' metric rows; what is None, or a list, is left out."""
    return [
        reading
        for run, name, own in zip(runs, names, rows)
        if run.rounds
        for row in own
        if not run.is_control or row["phase"] == run.rounds[-1]["phase"]
        for reading in _readings(run, name, row)
    ]


def lines(found: Sequence[Reading]) -> dict[tuple[str, str], dict[tuple[str, str, str, float], list[Point]]]:
    """What is drawn: (metric, name) -> (model, data set, label, target) -> points at the ends of phases.

    Phases come in the order of the plan. Partial runs count in the phases that they finished.
    """
    values: dict[tuple, dict[tuple, dict[tuple, list[Reading]]]] = {}
    for r in found:
        if r.when == "end":
            line = values.setdefault((r.metric, r.name), {}).setdefault(
                (r.model, r.dataset, r.label, r.target), {}
            )
            line.setdefault((r.cycle, r.phase), []).append(r)
    return {
        number: {who: [_point(points[at]) for at in sorted(points)] for who, points in of_number.items()}
        for number, of_number in values.items()
    }


def chosen(drawn: Mapping[tuple[str, str], Any], asked: str) -> dict[tuple[str, str], Any]:
    """Of the numbers that can be drawn those that are asked for, in that order.

    Args:
      drawn: see `lines`.
      asked: "METRIC" for all of a metric, "METRIC.NAME", or several with commas.

    Raises:
      ValueError: if no run here measured one of them, naming the close ones.
    """
    out = {}
    for word in asked.split(","):
        found = {number: of for number, of in drawn.items() if word in (number[0], ".".join(number))}
        if not found and not drawn:
            raise ValueError(f"--numbers {asked}: no run here measured anything (metrics=[...] does)")
        if not found:
            known = [*dict.fromkeys(metric for metric, _ in drawn), *map(".".join, drawn)]
            raise ValueError(f"--numbers {word}: no run measured it{close_ones(word, known)}")
        out |= found
    return out


def constant(of_number: Mapping[tuple, Sequence[Point]]) -> bool:
    """Whether a number never changes by more than 1e-3 of it on any one model and data set."""
    values: dict[tuple, list[float]] = {}
    for who, points in of_number.items():
        reach = [value for p in points for value in (p.mean - (p.std or 0), p.mean + (p.std or 0))]
        values.setdefault(who[:2], []).extend(reach)
    return all(max(v) - min(v) <= CONSTANT * max(map(abs, v)) for v in values.values())


def write_csv(path: Path, found: Sequence[Reading]) -> None:
    """A row per number, unrounded."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Reading._fields)
        writer.writerows(found)


def _readings(run: Run, name: str, row: Mapping) -> Iterator[Reading]:
    who = run.identity
    start = (str(run.directory), name, who["model"], who["dataset"], who["seed"], run.end)
    place = (row["phase"], row["cycle"], 1 - row["sparsity"], row["when"], row["epoch"], row["metric"])
    for key, value in row.items():
        if key not in PLACE and isinstance(value, (int, float)):
            yield Reading(*start, *place, key, value)


def _point(members: Sequence[Reading]) -> Point:
    mean, std = mean_std(float(r.value) for r in members)
    return Point(statistics.fmean(r.remaining for r in members), mean, std)
