"""oracle.png: the near-best peaks of the learning rate in every cycle, and the peaks that schedules take."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunebench.report.oracle import interval
from prunebench.report.remaining import share_text
from prunebench.report.search import Search
from prunebench.report.style import DENSE, legend_below, styles_of, tidy
from prunebench.report.table import number

IN_A_ROW = 2
WORST = 5.0  # points below the best of the cycle from which dots have the last colour
BAR = 9.0  # width of the bars of near-best peaks, points
TICKS = 8  # peaks of the grid that are named
LEGEND = 44  # characters in a line of the legend


def oracle_png(found: Sequence[Search], names: Sequence[str], path: str | Path) -> None:
    """Draw every search: bars over the near-best peaks, dots for the whole grid, a star at the best.

    Dots are coloured by validation top-1 below the best of the cycle, those of near-best peaks ringed. Lines
    are the largest learning rates of schedules that differ from cycle to cycle.

    Args:
      found: see `search.searches`.
      names: all labels, so that colours are those of the other pictures.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    across = min(IN_A_ROW, len(found))
    down = math.ceil(len(found) / across)
    longest = max(len(search.cycles) for search in found)
    size = (1.6 + across * max(4.4, 1.2 + 0.38 * longest), 1.1 + 3.8 * down)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    for axis, search in zip(axes.flat, found):
        dots = _panel(axis, search, styles_of(names))
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.colorbar(
        dots, ax=axes, shrink=0.8, extend="min", label="validation top-1 minus the cycle's best (points)"
    )
    legend_below(figure, 2 * across)
    figure.savefig(path)


def _panel(axis: Any, search: Search, styles: dict) -> Any:
    places, peaks, below, rings = [], [], [], []
    for place, cycle in enumerate(search.cycles):
        low, high = interval(cycle)
        label = "near-best" if place == 0 else None
        axis.plot(
            *([place, place], [low, high]),
            color=DENSE,
            alpha=0.3,
            linewidth=BAR,
            solid_capstyle="round",
            label=label,
        )
        best = max(branch["valid"]["top1"] for branch in cycle["branches"])
        for branch in cycle["branches"]:
            places.append(place)
            peaks.append(branch["max_lr"])
            below.append(100 * (branch["valid"]["top1"] - best))
            rings.append("black" if branch["max_lr"] in cycle["near_best"] else "none")
    dots = axis.scatter(
        places,
        peaks,
        c=below,
        cmap="cividis",
        vmin=-WORST,
        vmax=0,
        s=26,
        edgecolors=rings,
        linewidths=0.8,
        zorder=3,
    )
    best = [cycle["best"] for cycle in search.cycles]
    star = {"marker": "*", "s": 130, "facecolors": "white", "edgecolors": "black", "linewidths": 0.9}
    axis.scatter(range(len(best)), best, label="best", zorder=4, **star)
    for labels, rates in search.followers.items():
        known = [(place, rate) for place, rate in enumerate(rates) if rate is not None]
        style = {**styles[labels[0]], "markersize": 4, "linewidth": 1.6}
        axis.plot(
            *zip(*known), label=textwrap.fill(f"max_lr of {', '.join(labels)}", LEGEND), zorder=5, **style
        )
    axis.set_yscale("log")
    grid = search.content["grid"]
    ticks = grid[:: math.ceil(len(grid) / TICKS)]
    axis.set_yticks(ticks, [number(peak) for peak in ticks])
    axis.set_yticks([], minor=True)
    shares = [share_text(1 - cycle["sparsity"]) for cycle in search.cycles]
    axis.set_xticks(range(len(shares)), shares, fontsize=8, rotation=90 if len(shares) > 10 else 0)
    axis.set_xlabel("cycle, by weights remaining (%)")
    axis.set_ylabel("peak learning rate")
    axis.set_title(search.title, fontsize=10)
    tidy(axis)
    return dots
