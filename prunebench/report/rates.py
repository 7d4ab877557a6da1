"""The learning rate over the epochs: rows of kind "train" in metrics.jsonl, and lr.png."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.report.curve import COLOURS, DENSE, tidy
from prunebench.report.read import Run, rows_of
from prunebench.report.remaining import share_text

LABEL = 0.06  # of the axis: room for a share of weights remaining above the beginning of a phase


@dataclass(frozen=True)
class Rates:
    """The learning rates of one run.

    Attributes:
      title, place: label and seed; model and data set.
      epochs, rates: epochs trained in all phases together, and the learning rate at the end of each.
      starts: where the phases begin, in epochs, with the share of weights remaining in them.
    """

    title: str
    place: tuple[str, str]
    epochs: list[float]
    rates: list[float]
    starts: list[tuple[float, float]]


def learning_rates(runs: Sequence[Run], names: Sequence[str]) -> list[Rates]:
    """The learning rates of one run of every label, model and data set: finished, deepest, lowest seed.

    Raises:
      ValueError: if no run has any, or a metrics.jsonl is damaged.
    """
    chosen: dict[tuple, tuple[tuple, Run]] = {}
    for run, name in zip(runs, names):
        key = (run.identity["model"], run.identity["dataset"], name)
        deep = (run.target or 0.0) if run.rounds else 0.0
        order = (run.status != "done", -deep, run.identity["seed"], str(run.directory))
        if key not in chosen or order < chosen[key][0]:
            chosen[key] = (order, run)
    where = {key[:2] for key in chosen}
    out = []
    for key in sorted(chosen):
        run = chosen[key][1]
        title = f"{key[2]}, seed {run.identity['seed']}" + (
            f": {key[0]} on {key[1]}" if len(where) > 1 else ""
        )
        try:
            rates = _rates(title, key[:2], run)
        except ValueError as error:
            raise ValueError(f"--lr: {run.directory}: {error}") from error
        out += [rates] if rates.epochs else []
    if not out:
        raise ValueError("--lr: no run here has rows of learning rates in its metrics.jsonl")
    return out


def lr_png(found: Sequence[Rates], path: str | Path) -> None:
    """Draw them below each other, those of one model and data set on one scale.

    A line is dashed where a phase begins with pruning, and says what remains; dotted where another begins.
    Learning rates are those at the ends of epochs, so that a peak within an epoch is missed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.9 + 1.5 * len(found)), layout="constrained", dpi=150)
    axes = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axis, rates in zip(axes, found):
        together = [other for other in found if other.place == rates.place]
        longest, highest = max(r.epochs[-1] for r in together), max(max(r.rates) for r in together)
        axis.plot(rates.epochs, rates.rates, color=COLOURS[0], linewidth=1.2, marker=".", markersize=3)
        before, written = 1.0, -longest
        for start, share in rates.starts:
            pruned = share < before
            axis.axvline(start, color=DENSE, linewidth=0.7, linestyle="--" if pruned else ":", alpha=0.7)
            if start - written > LABEL * longest and (pruned or start == 0):
                where = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points"}
                text = f"{share_text(share)} %"
                axis.annotate(text, (start, 0.98), (2, 0), fontsize=7, va="top", **where)
                written = start
            before = share
        axis.set_title(rates.title, fontsize=9, loc="left")
        axis.set_xlim(0, 1.02 * longest)
        axis.set_ylim(0, 1.2 * highest if highest else 1)
        tidy(axis)
    axes[-1].set_xlabel("epochs, all phases together")
    figure.supylabel("learning rate at the ends of epochs", fontsize=10)
    figure.savefig(path)


def _rates(title: str, place: tuple[str, str], run: Run) -> Rates:
    """Rows at the same step of the run (a resumed one) count once, the later."""
    rows = {row["total"]: row for row in rows_of(run.directory / "metrics.jsonl", "train", mark='"train"')}
    rows = [rows[total] for total in sorted(rows)]
    epochs, rates, starts, phase = [], [], [], None
    for row in rows:
        steps_per_epoch = row["step"] / row["epoch"]
        epochs.append(row["total"] / steps_per_epoch)
        rates.append(row["lr"])
        if row["phase"] != phase:
            starts.append(((row["total"] - row["step"]) / steps_per_epoch, 1 - row["sparsity"]))
            phase = row["phase"]
    return Rates(title, place, epochs, rates, starts)
