"""report.png: accuracy over compression or another price, of many runs, and the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.report.axes import AXES, Axis
from prunebench.report.group import control, summarise
from prunebench.report.metric import is_loss, words
from prunebench.report.pareto import front, operating_points
from prunebench.report.read import Run
from prunebench.report.render import panels
from prunebench.report.student import LEVEL, quantile
from prunebench.report.style import DENSE, legend_below, styles_of, tidy

PANELS_IN_A_ROW = 3
PANEL, ALONE = 4.6, 6.6  # width of a panel in inches; of one that is alone
BARS = {"std": "bars: std over seeds", "interval": "bars: 95 % t-interval"}
CROWDED = 8  # lines of a panel above which error bars are thin


def report_png(
    runs: Sequence[Run],
    names: Sequence[str],
    metric: str,
    path: str | Path,
    *,
    over: str = "compression",
    bars: str = "std",
    pareto: bool = False,
) -> None:
    """Draw the metric over compression or another price: a panel per model and data set, a line per method.

    A line joins the operating points of a method, see `pareto.operating_points`. Where these are ends of
    runs, rounds are thin lines.

    Args:
      runs: finished and partial runs, see `axes.priced`.
      names: the label of each run, see `group.labels`.
      metric: one of `metric.KNOWN`.
      path: the PNG, PDF or SVG to write.
      over: one of `AXES`.
      bars: what error bars and the band around the dense control are, one of `BARS`.
      pareto: also draw the front over all methods, see `pareto.front`.
    """
    from matplotlib.figure import Figure

    ends = panels(summarise(runs, names, metric))
    rounds = panels(summarise(runs, names, metric, rounds=True))
    styles = styles_of(names)
    across = min(len(rounds), PANELS_IN_A_ROW)
    down = math.ceil(len(rounds) / across)
    wide = ALONE if across == 1 else 1.2 + PANEL * across
    figure = Figure(figsize=(wide, 0.8 + (4.0 if across == 1 else 3.6) * down), layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    for axis, (model, dataset) in zip(axes.flat, rounds):
        here = [run for run in runs if (run.identity["model"], run.identity["dataset"]) == (model, dataset)]
        panel = _Panel(axis, AXES[over], 1 if is_loss(metric) else 100, bars)
        panel.dense(*control(here, metric))
        of_panel = ends.get((model, dataset), []), rounds[model, dataset]
        panel.lines(*of_panel, styles)
        if pareto:
            panel.front(front(operating_points(*of_panel), metric, AXES[over]))
        axis.set_title(f"{model} on {dataset}", fontsize=11)
        tidy(axis)
    for axis in axes.flat[len(rounds) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{words(metric)}{'' if is_loss(metric) else ' (%)'}\n{BARS[bars]}")
    legend_below(figure, 2 * across + 1)
    figure.savefig(path)


class _Panel:
    """The picture of one model and data set.

    Args:
      axis: of matplotlib.
      price: what it is drawn over.
      scale: factor of what is drawn, 100 for percent.
      bars: one of `BARS`.
    """

    def __init__(self, axis: Any, price: Axis, scale: float, bars: str):
        self.axis, self.price, self.scale, self.bars = axis, price, scale, bars

    def dense(self, mean: float | None, std: float | None, n: int) -> None:
        """The dense control as a line, with a band where it has a spread."""
        if mean is None:
            return
        y = self.scale * mean
        self.axis.axhline(y, color=DENSE, linewidth=1.2, linestyle=(0, (8, 2)), label="dense control")
        if std is not None:
            reach = (
                self.scale * std * (quantile(LEVEL, n - 1) / math.sqrt(n) if self.bars == "interval" else 1)
            )
            self.axis.axhspan(y - reach, y + reach, color=DENSE, alpha=0.15, linewidth=0)

    def lines(self, ends: Sequence[dict], rounds: Sequence[dict], styles: Mapping[str, dict]) -> None:
        """The operating points of every method; the rounds of runs that differ in their ends are thin."""
        points = [row for row in operating_points(ends, rounds) if self._drawable(row)]
        places = []
        crowded = len({row["method"] for row in points}) > CROWDED
        bar = {"capsize": 0 if crowded else 3, "elinewidth": 0.6 if crowded else 1.2}
        for name, style in styles.items():
            own = [row for row in points if row["method"] == name]
            steps = [row for row in rounds if row["method"] == name and self._drawable(row)]
            if any(row["asked"] == row["target"] for row in own) and len({row["target"] for row in own}) > 1:
                self._thin(steps, style)
            if own:
                x, y = self._places(own), [self.scale * row["value"] for row in own]
                reach = [self.scale * (row["std" if self.bars == "std" else "reach"] or 0.0) for row in own]
                self.axis.errorbar(x, y, yerr=reach, label=name, markersize=5, linewidth=1.4, **bar, **style)
                places += x
        self.price.draw(self.axis, places)
        self.axis.set_xlabel(self.price.words)

    def front(self, points: Sequence[dict]) -> None:
        """A ring around the points of the front, and its stairs."""
        x, y = self._places(points), [self.scale * row["value"] for row in points]
        self.axis.plot(x, y, color="black", linewidth=0.9, alpha=0.6, drawstyle="steps-post", zorder=1.5)
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": "black", "linestyle": "none"}
        self.axis.plot(x, y, marker="o", label="Pareto front (of means)", zorder=4, **ring)

    def _thin(self, steps: Sequence[dict], style: Mapping[str, Any]) -> None:
        for target in {row["target"] for row in steps}:
            own = [row for row in steps if row["target"] == target]
            self.axis.plot(
                self._places(own),
                [self.scale * row["value"] for row in own],
                color=style["color"],
                linewidth=0.8,
                alpha=0.4,
            )
        if any(row["asked"] != row["target"] for row in steps):
            self.axis.plot(
                [], [], color=DENSE, linewidth=0.8, alpha=0.6, label="rounds before the end (thin)"
            )

    def _drawable(self, row: Mapping) -> bool:
        return (
            row["sparsity"] > 0
            and row["value"] is not None
            and math.isfinite(row["value"])
            and self.price.place(row) is not None
        )

    def _places(self, rows: Sequence[Mapping]) -> list[float]:
        return [self.price.place(row) for row in rows]
