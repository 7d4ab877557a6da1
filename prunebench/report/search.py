"""Searches of the Oracle among the runs: oracle.json, and how other schedules compare with what it found."""

import csv
import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.report.oracle import interval
from prunebench.report.read import Run
from prunebench.report.remaining import TOLERANCE, Share, share_text
from prunebench.report.table import Column, count, number, percent, table

VERSION = 1
VARIES = 1.01  # ratio of the largest learning rates of two cycles from which a schedule differs between them
LEEWAY = 0.01  # relative: a schedule's steps may miss its own peak by so much


@dataclass(frozen=True)
class Search:
    """A run of the Oracle with its oracle.json, and the schedules that are compared with it.

    Attributes:
      followers: labels -> for every cycle the largest learning rate, mean over the runs; None where none of
        their rounds has about as many weights remaining. Only labels on the same model and data set whose
        learning rate differs from cycle to cycle; those with the same learning rates stand together.
    """

    run: Run
    label: str
    content: Mapping[str, Any]
    followers: dict[tuple[str, ...], list[float | None]]

    @property
    def cycles(self) -> list[dict]:
        """A row per phase of the plan: the branches, the best, the near-best."""
        return self.content["cycles"]

    @property
    def title(self) -> str:
        """Whose search it is."""
        who = self.run.identity
        return f"{self.label}, seed {who['seed']}: {who['model']} on {who['dataset']}"


def searches(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Search], list[tuple[Path, str]]]:
    """The searches in the runs' directories, and those whose oracle.json is damaged, with the reason."""
    out, broken = [], []
    for run, name in zip(runs, names):
        path = run.directory / "oracle.json"
        if not path.exists() or run.aside:
            continue
        try:
            content = _checked(json.loads(path.read_text(encoding="utf-8")))
            out.append(Search(run, name, content, _followers(run, content, runs, names)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            broken.append((run.directory, f"oracle.json: {reason}"))
    return sorted(out, key=lambda s: (s.run.identity["model"], s.label, s.run.identity["seed"])), broken


def inside(cycle: Mapping[str, Any], rate: float) -> bool:
    """Whether a learning rate lies between the lowest and highest near-best peak of a cycle, within 1 %."""
    low, high = interval(cycle)
    return low * (1 - LEEWAY) <= rate <= high * (1 + LEEWAY)


def comparison_lines(found: Sequence[Search], *, width: int) -> list[str]:
    """For every search its cycles with the learning rates of the others, and how often these are inside."""
    lines = []
    for search in found:
        lines += [*_wrapped(f"Oracle: {search.title}", width), *_cycle_table(search, width)]
        for i, (labels, rates) in enumerate(search.followers.items(), start=1):
            judged = [inside(cycle, rate) for cycle, rate in zip(search.cycles, rates) if rate is not None]
            counted = f"inside in {sum(judged)} of {len(judged)} cycles"
            lines += _wrapped(f"({i}) {', '.join(labels)}: {counted}", width)
        tolerance, grid = percent(search.content["tolerance"]), map(number, search.content["grid"])
        told = f"near-best: validation top-1 at most {tolerance} points below the best of {', '.join(grid)}; "
        if search.followers:
            told += "max_lr: largest learning rate of a round, in: between the lowest and highest near-best"
        else:
            told += "no other run here has a learning rate that differs from cycle to cycle"
        lines += [*_wrapped(told, width), ""]
    return lines


def _cycle_table(search: Search, width: int) -> list[str]:
    rows = []
    for place, cycle in enumerate(search.cycles):
        low, high = interval(cycle)
        row = {"phase": cycle["phase"], "remaining": share_text(1 - cycle["sparsity"]), "best": cycle["best"]}
        row["interval"] = f"{number(low)} to {number(high)}" if low < high else number(low)
        for i, rates in enumerate(search.followers.values(), start=1):
            if (rate := rates[place]) is not None:
                row[f"of{i}"] = f"{number(rate)} {'in ' if inside(cycle, rate) else 'out'}"
        rows.append(row)
    others = range(1, len(search.followers) + 1)
    columns = [
        Column("phase", "phase", text=True),
        Column("remaining", "remaining", group="weights (%)"),
        Column("best", "best", number, "peak"),
        Column("interval", "near-best", group="peak"),
        *(Column(f"of{i}", f"({i})", group="max_lr", rank=i) for i in others),
    ]
    return table(columns, rows, width=width)


def cost_notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What the searches cost, which is not in the tables: these show the run along the winners."""
    by_label: dict[str, list[Run]] = {}
    for run, name in zip(runs, names):
        if run.identity.get("search.train_macs") is not None:
            by_label.setdefault(name, []).append(run)
    out = []
    for name, members in sorted(by_label.items()):
        searched = statistics.fmean(run.identity["search.train_macs"] for run in members)
        own = statistics.fmean(run.totals.get("cost.train_macs") or 0 for run in members)
        branches = statistics.fmean(run.identity.get("search.branches") or 0 for run in members)
        times = f", {searched / own:.3g} times the run itself" if own else ""
        out.append(
            f"{name}: tables hold the run along the winners only; its search trained {count(branches)} "
            f"branches, {count(searched)} MACs{times}" + " (mean)" * (len(members) > 1)
        )
    return out


def write_csv(path: Path, found: Sequence[Search]) -> None:
    """A row per cycle and peak of the grid; accuracies and shares as fractions."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        head = ("label", "model", "dataset", "seed", "phase", "remaining", "max_lr")
        writer.writerow([*head, "valid_top1", "test_top1", "near_best", "best"])
        for search in found:
            who = search.run.identity
            start = (search.label, who["model"], who["dataset"], who["seed"])
            for cycle in search.cycles:
                for branch in cycle["branches"]:
                    peak = branch["max_lr"]
                    values = (branch["valid"]["top1"], branch["test"]["top1"])
                    chosen = (peak in cycle["near_best"], peak == cycle["best"])
                    writer.writerow([*start, cycle["phase"], 1 - cycle["sparsity"], peak, *values, *chosen])


def _checked(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of an oracle.json; KeyError, TypeError or ValueError if something is missing from it."""
    if content["version"] != VERSION:
        raise ValueError("of another version")
    cycles = content["cycles"]
    if not cycles or not all(cycle["near_best"] and cycle["branches"] for cycle in cycles):
        raise ValueError("a cycle without branches")
    needed: list[Any] = [(content["grid"], content["tolerance"])]  # looked up, which is the check
    needed += [(cycle["phase"], cycle["sparsity"], cycle["best"]) for cycle in cycles]
    needed += [(b["max_lr"], b["valid"]["top1"], b["test"]["top1"]) for c in cycles for b in c["branches"]]
    return content


def _followers(
    run: Run, content: Mapping[str, Any], runs: Sequence[Run], names: Sequence[str]
) -> dict[tuple[str, ...], list[float | None]]:
    place = (run.identity["model"], run.identity["dataset"])
    by_label: dict[str, list[Run]] = {}
    for other, name in zip(runs, names):
        here = (other.identity["model"], other.identity["dataset"]) == place
        if here and other.identity.get("protocol") != "oracle" and varies(other):
            by_label.setdefault(name, []).append(other)
    out = {}
    for name, members in sorted(by_label.items()):
        rates = []
        for cycle in content["cycles"]:
            left = 1 - cycle["sparsity"]
            share = Share(left, left * (1 - TOLERANCE), left * (1 + TOLERANCE))
            there = [
                row["max_lr"] for row in map(share.nearest, members) if row and row.get("max_lr") is not None
            ]
            rates.append(statistics.fmean(there) if there else None)
        if any(rate is not None for rate in rates):
            same = next((labels for labels, others in out.items() if _alike(rates, others)), ())
            out = {labels: others for labels, others in out.items() if labels != same} | {
                (*same, name): rates
            }
    return out


def _alike(rates: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """Whether learning rates are the same to the digits that are shown."""
    return [r and number(r) for r in rates] == [r and number(r) for r in others]


def varies(run: Run) -> bool:
    """Whether the largest learning rate of a run differs between the cycles that begin with pruning."""
    peaks = [row["max_lr"] for row in run.rounds if row["sparsity"] > 0 and row.get("max_lr")]
    return len(peaks) > 1 and max(peaks) > VARIES * min(peaks)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")
