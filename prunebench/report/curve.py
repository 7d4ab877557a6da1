"""Pictures: accuracy over sparsity of one run, accuracy over compression of many.

Colours are those of Okabe and Ito, told apart by colour-blind readers; lines also differ in marker and dash.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.report.group import control, summarise
from prunebench.report.metric import is_loss, words
from prunebench.report.read import Run
from prunebench.report.render import panels

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
DENSE = "#777777"
LOGARITHMIC_FROM = 2.5  # largest total / kept from which an axis is logarithmic
ZOOM_BELOW = 0.25  # share of the picture's height below which the retrained line gets a picture of its own
ZOOM_AT_LEAST = 1.0  # points: less is noise, and drawn flat
PANELS_IN_A_ROW = 3
NARROW = 0.08  # lowest share of weights remaining down to which an axis has more ticks
NARROW_TICKS = (100, 70, 50, 40, 30, 20, 15, 10)
AXES: Mapping[str, tuple[Callable[[Mapping], float], str]] = {
    "compression": (lambda row: row["compression"], "compression (parameters, total / kept)"),
    "speedup": (lambda row: row["speedup"], "theoretical speed-up (MACs, total / kept)"),
}  # x of a row of `group.summarise`, at least 1, and what it is


def curve_png(result: Mapping, path: str | Path) -> None:
    """Draw test top-1 over sparsity of one run: right after pruning, after retraining, and dense.

    When the run prunes deep, the axis is logarithmic in the share of weights kept (0, 50, 80, 90, 95 % are
    about equally far apart). Where pruning costs so much that the retrained line would look flat, it
    is drawn once more below on its own scale.

    Args:
      result: the content of result.json.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    rows = [row for row in result["rounds"] if row["sparsity"] < 1]
    retrained = [(_kept_times(row), 100 * row["test"]["top1"]) for row in rows]
    pruned = [(_kept_times(row), 100 * row["pruned"]["top1"]) for row in rows if row.get("pruned")]
    dense = 100 * result["dense"]["top1"] if result.get("dense") else None
    fine = [y for _, y in retrained] + ([dense] if dense is not None else [])
    all_values = fine + [y for _, y in pruned]
    zoom = max(fine) - min(fine) < ZOOM_BELOW * (max(all_values) - min(all_values)) and len(retrained) > 1
    figure = Figure(figsize=(6.4, 6.0 if zoom else 4.2), layout="constrained", dpi=150)
    axes = figure.subplots(
        2 if zoom else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if zoom else [1]
    )
    for axis in axes[:, 0]:
        if dense is not None:
            axis.axhline(dense, color=DENSE, linewidth=1.2, label=f"dense control ({dense:.2f} %)")
        axis.plot(*_xy(retrained), "-o", color=COLOURS[0], markersize=4.5, label="after retraining")
        tidy(axis)
    top, bottom = axes[0, 0], axes[-1, 0]
    top.plot(*_xy(pruned), "--s", color=COLOURS[1], markersize=4, label="right after pruning")
    top.set_title(
        f"{result['method']}: {result['model']} on {result['dataset']}, seed {result['seed']}", fontsize=11
    )
    top.set_ylabel("test top-1 (%)")
    top.legend(frameon=False, fontsize=9, loc="best")
    if zoom:
        bottom.set_ylabel("retrained, zoomed")
        middle = (max(fine) + min(fine)) / 2
        reach = max(0.6 * (max(fine) - min(fine)), ZOOM_AT_LEAST / 2)
        bottom.set_ylim(middle - reach, middle + reach)
    bottom.set_xlabel("sparsity (% of the prunable weights removed)")
    _sparsity_axis(bottom, [x for x, _ in retrained + pruned])
    figure.savefig(path)


def report_png(
    runs: Sequence[Run], names: Sequence[str], metric: str, path: str | Path, *, over: str = "compression"
) -> None:
    """Draw the metric over compression or another price: a panel per model and data set, a line per method.

    A line joins the ends of runs that differ in the sparsity asked; where all runs of a method ask for one
    sparsity, it joins their rounds. Beside several ends, rounds are thin lines. Error bars and the band
    around the dense control are sample standard deviations over seeds.

    Args:
      runs: finished and partial runs.
      names: the label of each run, see `group.labels`.
      metric: "top1", "top5" or "loss".
      path: the PNG, PDF or SVG to write.
      over: one of `AXES`.
    """
    from matplotlib.figure import Figure

    ends = panels(summarise(runs, names, metric))
    rounds = panels(summarise(runs, names, metric, rounds=True))
    styles = styles_of(names)
    across = min(len(rounds), PANELS_IN_A_ROW)
    down = math.ceil(len(rounds) / across)
    figure = Figure(figsize=(1.2 + 4.6 * across, 0.8 + 3.6 * down), layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    for axis, (model, dataset) in zip(axes.flat, rounds):
        here = [run for run in runs if (run.identity["model"], run.identity["dataset"]) == (model, dataset)]
        _panel(
            axis, ends[model, dataset], rounds[model, dataset], control(here, metric), styles, metric, over
        )
        axis.set_title(f"{model} on {dataset}", fontsize=11)
    for axis in axes.flat[len(rounds) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{words(metric)}" + ("" if is_loss(metric) else " (%)"))
    legend_below(figure, 2 * across + 1)
    figure.savefig(path)


def _panel(
    axis: Any,
    ends: Sequence[dict],
    rounds: Sequence[dict],
    dense: tuple[float | None, float | None, int],
    styles: Mapping[str, dict],
    metric: str,
    over: str,
) -> None:
    scale = 1 if is_loss(metric) else 100
    mean, std, _ = dense
    at, words = AXES[over]
    if mean is not None:
        axis.axhline(scale * mean, color=DENSE, linewidth=1.2, label="dense control")
        if std is not None:
            axis.axhspan(scale * (mean - std), scale * (mean + std), color=DENSE, alpha=0.15, linewidth=0)
    largest = 1.0
    for name, style in styles.items():
        finished = [row for row in ends if row["method"] == name and not row["partial"]]
        steps = [row for row in rounds if row["method"] == name]
        targets = {row["target"] for row in steps}
        several = len({row["asked"] for row in finished}) > 1
        points = _drawable(finished if several else steps)
        if several:
            for target in targets:
                thin = _drawable([row for row in steps if row["target"] == target])
                x, y = [at(row) for row in thin], [scale * row["value"] for row in thin]
                axis.plot(x, y, color=style["color"], linewidth=0.8, alpha=0.4)
            if any(row["asked"] != row["target"] for row in _drawable(steps)):
                axis.plot([], [], color=DENSE, linewidth=0.8, alpha=0.6, label="rounds before the end (thin)")
        if points:
            x, y = [at(row) for row in points], [scale * row["value"] for row in points]
            bars = [scale * (row["std"] or 0) for row in points]
            axis.errorbar(x, y, yerr=bars, label=name, capsize=3, markersize=5, linewidth=1.4, **style)
            largest = max(largest, *x)
    _factor_axis(axis, largest)
    axis.set_xlabel(words)
    tidy(axis)


def _drawable(rows: Sequence[dict]) -> list[dict]:
    """Pruned points with finite values, by compression."""
    kept = [
        row
        for row in rows
        if row["sparsity"] > 0 and row["value"] is not None and math.isfinite(row["value"])
    ]
    return sorted(kept, key=lambda row: row["compression"])


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the line with this number."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def styles_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The style of every label, in alphabetical order of the labels."""
    return {name: style(i) for i, name in enumerate(sorted(set(names)))}


def remaining_axis(axis: Any, shares: Sequence[float]) -> None:
    """Weights remaining in percent as papers draw them: a logarithmic axis from 100 % down to the right."""
    lowest = min((share for share in shares if share > 0), default=1.0)
    ticks = [100 / tick for tick in _series(1 / lowest)] if lowest < NARROW else NARROW_TICKS
    ticks = [tick for tick in ticks if tick >= 91 * lowest]
    axis.set_xscale("log")
    axis.set_xlim(112, 100 * lowest / 1.12)
    axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axis.set_xticks([], minor=True)


def tidy(axis: Any) -> None:
    """A light grid, and no frame at the top and on the right."""
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, columns: int) -> None:
    """One legend of all axes below them."""
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels())}
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )


def _kept_times(row: Mapping) -> float:
    """Prunable weights, total / kept."""
    return 1 / (1 - row["sparsity"])


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _series(largest: float) -> list[float]:
    """1, 2, 5, 10, 20, ... to beyond `largest`."""
    decades = range(math.ceil(math.log10(largest)) + 1)
    return [digit * 10**decade for decade in decades for digit in (1, 2, 5)]


def _sparsity_axis(axis: Any, factors: Sequence[float]) -> None:
    """Label an axis of total / kept by sparsity in percent."""
    largest = max(factors, default=1.0)
    if largest < LOGARITHMIC_FROM:
        ticks = [1 / (1 - share / 20) for share in range(12) if 1 / (1 - share / 20) <= largest * 1.05]
        ticks = ticks[:: max(1, len(ticks) // 5)]
    else:
        if min(factors) == largest:  # one point
            axis.set_xlim(1, largest * 1.1)
        axis.set_xscale("log")
        ticks = [tick for tick in _series(largest) if tick <= largest * 1.05]
    axis.set_xticks(ticks, [f"{100 - 100 / tick:.6g}" for tick in ticks])
    axis.set_xticks([], minor=True)


def _factor_axis(axis: Any, largest: float) -> None:
    """Label an axis of compression as 1x, 2x, 5x, ... when it is wide enough for a logarithmic one."""
    if largest >= LOGARITHMIC_FROM:
        axis.set_xscale("log")
        powers = [2.0**k for k in range(math.ceil(math.log2(largest)) + 1)]
        powers = powers if len(powers) <= 8 else _series(largest)
        ticks = [tick for tick in powers if tick <= largest * 1.1]
        axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axis.set_xticks([], minor=True)
