"""curve.png: accuracy over sparsity of one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prunebench.report.axes import sparsity_axis
from prunebench.report.style import COLOURS, DENSE, tidy

ZOOM_BELOW = 0.25  # share of the picture's height below which the retrained line gets a picture of its own
ZOOM_AT_LEAST = 1.0  # points: less is noise, and drawn flat


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
    zoom = len(retrained) > 1 and _spread(fine) < ZOOM_BELOW * _spread(all_values)
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
    sparsity_axis(bottom, [x for x, _ in retrained + pruned])
    figure.savefig(path)


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _kept_times(row: Mapping) -> float:
    """Prunable weights, total / kept."""
    return 1 / (1 - row["sparsity"])


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
