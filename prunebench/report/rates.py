"""lr.png: learning rate and sparsity over the epochs, from rows of kind "train" and "prune"."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.report.read import Run, rows_of
from prunebench.report.remaining import share_text
from prunebench.report.style import COLOURS, DENSE, legend_below

TITLE = 96  # characters in a line of a title
LABEL = 0.08  # of the axis: room for a share of weights remaining above the beginning of a phase


@dataclass(frozen=True)
class Rates:
    """The learning rates and sparsities of one run.

    Attributes:
      title, place: label and seed; model and data set.
      epochs, rates: epochs trained in all phases together, and the learning rate at the end of each.
      starts: where the phases begin, in epochs, with the share of weights remaining in them.
      sparsity: corners of the line of sparsity over epochs: (epochs, share of the prunable weights removed).
    """

    title: str
    place: tuple[str, str]
    epochs: list[float]
    rates: list[float]
    starts: list[tuple[float, float]]
    sparsity: list[tuple[float, float]]


def learning_rates(runs: Sequence[Run], names: Sequence[str]) -> list[Rates]:
    """Those of one run of every label, model and data set: finished, deepest, lowest seed.

    Raises:
      ValueError: if no run has any, or a metrics.jsonl is damaged.
    """
    chosen: dict[tuple, tuple[tuple, Run]] = {}
    for run, name in zip(runs, names):
        if run.aside:
            continue
        key = (run.identity["model"], run.identity["dataset"], name)
        deep = (run.target or 0.0) if run.rounds else 0.0
        order = (run.status != "done", -deep, run.identity["seed"], str(run.directory))
        if key not in chosen or order < chosen[key][0]:
            chosen[key] = (order, run)
    where = {key[:2] for key in chosen}
    out = []
    for key in sorted(chosen):
        run = chosen[key][1]
        title = f"{key[2]}, seed {run.identity['seed']}"
        title += f": {key[0]} on {key[1]}" if len(where) > 1 else ""
        try:
            rates = _rates(title, key[:2], run)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise ValueError(f"--lr: {run.directory}: {error}") from error
        out += [rates] if rates.epochs else []
    if not out:
        raise ValueError("--lr: no run here has rows of learning rates in its metrics.jsonl")
    return out


def together(found: Sequence[Rates]) -> list[Rates]:
    """Those that are alike from beginning to end come together, under the titles of all."""
    alike: dict[tuple, list[Rates]] = {}
    for rates in found:
        same = rates.place, *map(tuple, (rates.epochs, rates.rates, rates.starts, rates.sparsity))
        alike.setdefault(same, []).append(rates)
    return [
        replace(members[0], title=textwrap.fill("; ".join(rates.title for rates in members), TITLE))
        for members in alike.values()
    ]


def lr_png(found: Sequence[Rates], path: str | Path) -> None:
    """Draw them below each other, those of one model and data set on one scale; what is alike is drawn once.

    The line is the learning rate, the area the share of weights removed. A line is dashed where a phase
    begins with pruning, and says what remains; dotted where another begins. Learning rates are those at the
    ends of epochs, so that a peak within an epoch is missed.
    """
    from matplotlib.figure import Figure

    found = together(found)
    heights = [1.35 + 0.15 * rates.title.count("\n") for rates in found]
    figure = Figure(figsize=(8.0, 1.1 + 1.15 * sum(heights)), layout="constrained", dpi=150)
    axes = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, rates in zip(axes, found):
        of_place = [other for other in found if other.place == rates.place]
        longest, highest = max(r.epochs[-1] for r in of_place), max(max(r.rates) for r in of_place)
        _sparsity(axis, rates)
        (line,) = axis.plot(
            rates.epochs, rates.rates, color=COLOURS[0], linewidth=1.2, marker=".", markersize=3
        )
        _phases(axis, rates, longest)
        axis.set_title(rates.title, fontsize=9, loc="left")
        axis.set_xlim(0, 1.02 * longest)
        axis.set_ylim(0, 1.2 * highest if highest else 1)
        axis.spines["top"].set_visible(False)
    line.set_label("learning rate at the ends of epochs (left)")
    axes[-1].set_xlabel("epochs, all phases together")
    figure.supylabel("learning rate", fontsize=10)
    legend_below(figure, 2)
    figure.savefig(path)


def _sparsity(axis: Any, rates: Rates) -> None:
    """The share of weights removed, on a scale of its own at the right, behind the learning rate."""
    other = axis.twinx()
    x, y = zip(*((epoch, 100 * share) for epoch, share in rates.sparsity))
    style = {"color": COLOURS[1], "linewidth": 0.9, "linestyle": (0, (5, 1.5))}
    other.fill_between(x, y, color=COLOURS[1], alpha=0.12, linewidth=0)
    other.plot(x, y, label="sparsity in % (right, dashed)", **style)
    other.set_ylim(0, 120)
    other.set_yticks([0, 50, 100])
    other.spines["top"].set_visible(False)
    axis.set_zorder(other.get_zorder() + 1)
    axis.patch.set_visible(False)


def _phases(axis: Any, rates: Rates, longest: float) -> None:
    """Where phases begin, and what remains in them where there is room to say it."""
    before, written = 1.0, -longest
    for start, share in rates.starts:
        pruned = share < before
        axis.axvline(start, color=DENSE, linewidth=0.7, linestyle="--" if pruned else ":", alpha=0.7)
        if start - written > LABEL * longest and (pruned or start == 0):
            where = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points"}
            axis.annotate(f"{share_text(share)} % left", (start, 0.98), (2, 0), fontsize=7, va="top", **where)
            written = start
        before = share


def _rates(title: str, place: tuple[str, str], run: Run) -> Rates:
    """Rows at the same step of the run (a resumed one) count once, the later."""
    path = run.directory / "metrics.jsonl"
    rows = {row["total"]: row for row in rows_of(path, "train", mark='"train"')}
    events = {row["phase"]: row["sparsity"] for row in rows_of(path, "prune", mark='"prune"')}
    epochs, rates, starts, phase = [], [], [], None
    corners = [(0.0, 0.0)]
    for row in (rows[total] for total in sorted(rows)):
        steps_per_epoch = row["step"] / row["epoch"]
        epochs.append(row["total"] / steps_per_epoch)
        rates.append(row["lr"])
        if row["phase"] != phase:
            phase = row["phase"]
            start = (row["total"] - row["step"]) / steps_per_epoch
            # What a phase begins with is its pruning event's; without one, what was there.
            begun = events.get(phase, corners[-1][1])
            starts.append((start, 1 - begun if phase in events else 1 - row["sparsity"]))
            corners += [(start, corners[-1][1]), (start, begun)]
        corners.append((epochs[-1], row["sparsity"]))
    return Rates(title, place, epochs, rates, starts, corners)
