"""The content of the papers' tables: a row per label, a column per share of weights remaining."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunebench.report.compare import Comparison, compared, corrected
from prunebench.report.group import close_ones, mean_std
from prunebench.report.metric import reading
from prunebench.report.read import Run, is_dense

TOLERANCE = 0.03  # relative: so near to a column a round has to be
FINER = (TOLERANCE, 0.01, 3e-3, 1e-3, 1e-4)  # for all columns: the first that keeps the rounds of a run apart


@dataclass(frozen=True)
class Share:
    """A column: the rounds of about one share of weights remaining.

    Attributes:
      asked: the nominal share, a fraction.
      low, high: the shares that count for it.
    """

    asked: float
    low: float
    high: float

    def nearest(self, run: Run) -> dict | None:
        """The run's round nearest to the nominal share; None if none counts.

        Of equal ones the dense network, not that retrained after nothing was removed; else the last.
        """
        there = [run.rounds[i] for i in run.places if self.low <= left(run.rounds[i]) <= self.high]
        return min(
            reversed(there), key=lambda row: (abs(left(row) - self.asked), not is_dense(row)), default=None
        )


@dataclass(frozen=True)
class Cell:
    """One number of the table, by seed.

    Attributes:
      values: the metric after retraining; of a seed that several runs have, their mean.
      reached: the share of weights remaining.
    """

    values: dict[Any, float]
    reached: dict[Any, float]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean_std(self) -> tuple[float, float | None]:
        """Mean and sample standard deviation over seeds, which one seed does not have."""
        return mean_std(self.values.values())


@dataclass(frozen=True)
class Row:
    """One row of the table: a label, its finished runs, a cell per column; None where no round counts."""

    label: str
    runs: list[Run]
    cells: list[Cell | None]


@dataclass(frozen=True)
class Panel:
    """The table of one model and data set."""

    model: str
    dataset: str
    shares: list[Share]
    rows: list[Row]


def remaining(runs: Sequence[Run], names: Sequence[str], asked: str, metric: str) -> list[Panel]:
    """The tables of finished runs, one per model and data set.

    Args:
      runs: finished and partial runs.
      names: the label of each run, see `group.labels`.
      asked: shares of weights remaining in percent, "100,32.8,26.2", or "all" for those that there are.
      metric: "top1", "top5" or "loss".

    Raises:
      ValueError: if `asked` is no such list, no run is finished, or none has a round near a share.
    """
    wanted = _parsed(asked)
    finished = [(run, name) for run, name in zip(runs, names) if run.status == "done"]
    if not finished:
        raise ValueError(f"--remaining {asked}: no run is finished")
    panels: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run, name in finished:
        of_panel = panels.setdefault((run.identity["model"], run.identity["dataset"]), {})
        of_panel.setdefault(name, []).append(run)
    for share in wanted or ():
        if not any(share.nearest(run) for run, _ in finished):
            there = ", ".join(share_text(known.asked) for known in every_share([run for run, _ in finished]))
            raise ValueError(
                f"--remaining {asked}: no finished run has a round within 3 %, relative, of "
                f"{share_text(share.asked)} (there are: {there})"
            )
    out = []
    for (model, dataset), by_name in sorted(panels.items()):
        shares = wanted or every_share([run for members in by_name.values() for run in members])
        rows = [
            row for name, members in sorted(by_name.items()) for row in _rows(name, members, shares, metric)
        ]
        out.append(Panel(model, dataset, shares, rows))
    return out


def every_share(runs: Sequence[Run]) -> list[Share]:
    """Columns that hold every round of the runs once, the largest share first.

    Rounds within 3 % of each other are in one column; within less where that would join two rounds of a run.
    """
    of_runs = [{left(run.rounds[i]) for i in run.places} for run in runs]
    values = sorted(set().union(*of_runs), reverse=True)
    for tolerance in FINER:
        groups: list[list[float]] = []
        for value in values:
            if not groups or value < groups[-1][0] * (1 - tolerance):
                groups.append([])
            groups[-1].append(value)
        column = {value: place for place, group in enumerate(groups) for value in group}
        if all(len({column[value] for value in there}) == len(there) for there in of_runs):
            break
    return [Share(statistics.median_low(group), group[-1], group[0]) for group in groups]


def differences(panel: Panel, baseline: Row, *, test: str = "t") -> dict[str, list[Comparison | None]]:
    """Label -> for every column the comparison with the baseline, over the seeds that both have.

    All of them are one family for Holm's correction. None: no seed in common. The baseline is left out.
    """
    others = [row for row in panel.rows if row is not baseline]
    found = [
        compared(mine.values, base.values, test=test) if mine and base else None
        for row in others
        for mine, base in zip(row.cells, baseline.cells)
    ]
    found, columns = corrected(found), len(panel.shares)
    return {row.label: found[i * columns : (i + 1) * columns] for i, row in enumerate(others)}


def baselines(panels: Sequence[Panel], label: str) -> list[Row | None]:
    """The baseline's row of every table; None where it has none.

    Raises:
      ValueError: if it is in no table, naming the close ones.
    """
    found = [next((row for row in panel.rows if row.label == label), None) for panel in panels]
    if not any(found):
        there = list(dict.fromkeys(row.label for panel in panels for row in panel.rows))
        raise ValueError(f"--baseline {label}: no such row{close_ones(label, there)}")
    return found


def by_channels(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs with the share of channels removed as the sparsity of every round.

    Raises:
      ValueError: if a run has pruned something else than channels.
    """
    out = []
    for run, name in zip(runs, names):
        rounds = []
        for row in run.rounds:
            if row["sparsity"] and "channels" not in row:
                raise ValueError(f"--channels: {name} prunes no channels; leave it out with --where")
            share = row["channels"] / row["channels_total"] if "channels" in row else 1.0
            rounds.append({**row, "sparsity": 1 - share})
        out.append(replace(run, rounds=rounds))
    return out


def left(row: dict) -> float:
    """Share of the prunable weights remaining in a round."""
    return 1 - row["sparsity"]


def share_text(share: float) -> str:
    """A share in percent with three digits, more where it is not 100: 0.32768 -> "32.8"."""
    text = f"{100 * share:.3g}"
    return text if text != "100" or share == 1 else f"{100 * share:.6g}"


def _parsed(asked: str) -> list[Share] | None:
    """The shares of a list, None for "all"."""
    if asked == "all":
        return None
    shares = []
    for part in asked.split(","):
        try:
            value = float(part) / 100
        except ValueError:
            value = math.nan
        if not 0 < value <= 1:
            raise ValueError(
                f"--remaining {asked}: must be all, or shares of weights remaining in percent, above 0 and "
                f"at most 100, such as 100,32.8,13.4, not {part!r}"
            )
        shares.append(Share(value, value * (1 - TOLERANCE), value * (1 + TOLERANCE)))
    return list(dict.fromkeys(shares))


def _rows(name: str, members: Sequence[Run], shares: Sequence[Share], metric: str) -> list[Row]:
    """The row of a label; a row for each sparsity asked where they do not fit into one.

    Runs that end at different sparsities fill different columns of one row. Where two of them have a round in
    the same column, on their ways to different ends, they are no seeds of one another and stay apart; dense
    training before any pruning is the same for all.
    """
    by_target: dict[float | None, list[Run]] = {}
    for run in members:
        by_target.setdefault(run.end, []).append(run)
    rows = []
    for target in sorted(by_target, key=lambda t: -1.0 if t is None else t):
        runs = by_target[target]
        asked = "null" if target is None else f"{target:.6g}"
        label = f"{name} target={asked}" if len(by_target) > 1 else name
        rows.append(Row(label, runs, [_cell(runs, share, metric) for share in shares]))
    if all(map(_one_thing, zip(*(row.cells for row in rows)))):
        return [Row(name, list(members), [_cell(members, share, metric) for share in shares])]
    return rows


def _cell(runs: Sequence[Run], share: Share, metric: str) -> Cell | None:
    found: dict[Any, list[tuple[float, float]]] = {}
    for run in runs:
        row = share.nearest(run)
        value = reading(row, metric) if row else None
        if value is not None and math.isfinite(value):
            found.setdefault(run.identity["seed"], []).append((value, left(row)))
    if not found:
        return None
    means = {seed: tuple(map(statistics.fmean, zip(*found[seed]))) for seed in sorted(found)}
    return Cell({s: value for s, (value, _) in means.items()}, {s: share for s, (_, share) in means.items()})


def _one_thing(cells: Sequence[Cell | None]) -> bool:
    """Whether cells of one column and different ends are one number: there is but one, or all are dense."""
    known = [cell for cell in cells if cell]
    return len(known) < 2 or all(share == 1 for cell in known for share in cell.reached.values())
