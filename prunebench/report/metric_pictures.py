"""diagnostics.png and layers.png: what was measured beside accuracy, over the share of weights remaining."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.report.diagnostics import Point
from prunebench.report.layers import SPARSITY, LayerMap
from prunebench.report.remaining import share_text
from prunebench.report.style import legend_below, remaining_axis, styles_of, tidy

IN_A_ROW, MANY, IN_A_LONG_ROW = 3, 12, 5  # panels; so many are few
LAYERS_NAMED = 40  # of more layers than this, every second, third, ... is named
LONGEST_NAME = 28  # characters of a layer's name
UNKNOWN = "#BBBBBB"
SPARSITIES = (0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)  # on the scale of colours


def diagnostics_png(numbers: Mapping, names: Sequence[str], path: str | Path) -> None:
    """Draw every number: a panel for each on each model and data set, a line per label.

    Bands, and the bars of lone points, are sample standard deviations over seeds.

    Args:
      numbers: (metric, name) -> (model, data set, label, target) -> points, see `diagnostics.lines`.
      names: all labels, so that colours are those of the other pictures.
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    places = sorted({who[:2] for of_number in numbers.values() for who in of_number})
    shown = [(at, n) for at in places for n, lines in numbers.items() if any(who[:2] == at for who in lines)]
    across = min(IN_A_ROW if len(shown) <= MANY else IN_A_LONG_ROW, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(0.8 + 3.6 * across, 0.9 + 2.7 * down), layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    styles = styles_of(names)
    for axis, (place, number) in zip(axes.flat, shown):
        _panel(axis, {who: points for who, points in numbers[number].items() if who[:2] == place}, styles)
        where = f"\n{place[0]} on {place[1]}" if len(places) > 1 else ""
        axis.set_title(".".join(number) + where, fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for column in range(across):
        lowest = max(i for i in range(len(shown)) if i % across == column)
        axes.flat[lowest].set_xlabel("weights remaining (%)")
    if len(places) == 1:
        figure.suptitle(f"{places[0][0]} on {places[0][1]}, at the end of every round", fontsize=11)
    legend_below(figure, across)
    figure.savefig(path)


def layers_png(maps: Sequence[LayerMap], asked: str, path: str | Path) -> None:
    """Draw one number of every layer after every round: a heat map per label, on one scale of colour.

    The colours are uniform to the eye, and lighter where the number is larger, also in grey print. Those of
    sparsity are logarithmic in the share kept, so that 0, 50, 90 and 99 % are told apart. Cells without a
    value are grey and crossed.
    """
    from matplotlib.figure import Figure

    across = min(IN_A_ROW, len(maps))
    down = math.ceil(len(maps) / across)
    tall, wide = max(len(m.layers) for m in maps), max(len(m.remaining) for m in maps)
    alike = all(m.layers == maps[0].layers for m in maps)  # then named once in a row of panels
    size = (1.6 + across * (1.0 + 0.3 * max(wide, 6)), 0.9 + down * (0.95 + 0.17 * min(max(tall, 6), 60)))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    values = [v for m in maps for row in m.values for v in row if v is not None and math.isfinite(v)]
    scale, ticks = (_shares if asked == SPARSITY else _linear)(values)
    for place, (axis, layer_map) in enumerate(zip(axes.flat, maps)):
        cells = [[math.nan if v is None else v for v in row] for row in layer_map.values]
        image = axis.imshow(cells, aspect="auto", interpolation="nearest", **scale)
        unknown = [(x, y) for y, row in enumerate(layer_map.values) for x, v in enumerate(row) if v is None]
        axis.plot(*zip(*unknown), "x", color="black", markersize=4) if unknown else None
        step = math.ceil(len(layer_map.layers) / LAYERS_NAMED)
        named = list(map(_name, layer_map.layers[::step])) if place % across == 0 or not alike else []
        axis.set_yticks(range(0, len(named) * step, step), named, fontsize=7)
        shares = list(map(share_text, layer_map.remaining))
        axis.set_xticks(range(len(shares)), shares, fontsize=7, rotation=90 if len(shares) > 6 else 0)
        axis.set_title(layer_map.title, fontsize=9)
        if place + across >= len(maps):
            axis.set_xlabel("weights remaining (%)", fontsize=8)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8 if down < 3 else 0.4, aspect=25, **ticks)
    bar.set_label(f"{asked} of a layer's weights (%)" if asked == SPARSITY else asked, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path)


def _linear(values: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How `imshow` and `colorbar` show numbers of any kind."""
    from matplotlib import colormaps

    colours = colormaps["cividis"].with_extremes(bad=UNKNOWN)
    return {"vmin": min(values, default=0.0), "vmax": max(values, default=1.0), "cmap": colours}, {}


def _shares(values: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How they show sparsities: logarithmic in the share kept; a layer without weights is white."""
    from matplotlib import colormaps
    from matplotlib.colors import FuncNorm

    lowest = min((1 - v for v in values if v < 1), default=0.5)
    deepest = 1 - min(lowest, 0.5)
    empty = any(v >= 1 for v in values)

    def depth(sparsity: Any) -> Any:
        import numpy as np

        return -np.log10(np.maximum(1 - np.asarray(sparsity, float), lowest / 10))

    def sparsity(depth: Any) -> Any:
        return 1 - 10.0**-depth

    colours = colormaps["cividis"].with_extremes(bad=UNKNOWN, over="white")
    norm = FuncNorm((depth, sparsity), vmin=0.0, vmax=deepest)
    ticks = [tick for tick in SPARSITIES if tick <= deepest]
    labels = [f"{100 * tick:.6g}" for tick in ticks]
    bar = {"ticks": ticks, "format": lambda tick, _: labels[ticks.index(tick)] if tick in ticks else ""}
    return {"norm": norm, "cmap": colours}, bar | {"extend": "max" if empty else "neither"}


def _panel(axis: Any, lines: Mapping[tuple, Sequence[Point]], styles: Mapping[str, Mapping]) -> None:
    seen: set[str] = set()
    for (_, _, label, _), points in sorted(lines.items()):
        points = [p for p in points if p.remaining > 0]  # the axis is logarithmic
        x, y = [100 * p.remaining for p in points], [p.mean for p in points]
        style = styles[label]
        axis.plot(x, y, label=None if label in seen else label, markersize=4, linewidth=1.3, **style)
        spread = [p.std or 0.0 for p in points]
        if len(points) == 1:
            axis.errorbar(x, y, yerr=spread, color=style["color"], fmt="none", capsize=3)
        low, high = ([v + sign * s for v, s in zip(y, spread)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        seen.add(label)
    remaining_axis(axis, [p.remaining for points in lines.values() for p in points])
    axis.ticklabel_format(axis="y", useOffset=False)
    tidy(axis)


def _name(layer: str) -> str:
    return layer if len(layer) <= LONGEST_NAME else f"..{layer[2 - LONGEST_NAME :]}"
