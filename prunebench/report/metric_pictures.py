"""diagnostics.png and layers.png: what was measured beside accuracy, over the share of weights remaining."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.report.curve import legend_below, remaining_axis, styles_of, tidy
from prunebench.report.diagnostics import LayerMap, Point
from prunebench.report.remaining import share_text

IN_A_ROW, MANY, IN_A_LONG_ROW = 3, 12, 5  # panels; so many are few
LAYERS_NAMED = 40  # of more layers than this, every second, third, ... is named
LONGEST_NAME = 28  # characters of a layer's name


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

    Cells without a value are grey.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    known = [v for m in maps for row in m.values for v in row if v is not None and math.isfinite(v)]
    across = min(IN_A_ROW, len(maps))
    down = math.ceil(len(maps) / across)
    tall, wide = max(len(m.layers) for m in maps), max(len(m.remaining) for m in maps)
    size = (1.6 + across * (1.4 + 0.3 * max(wide, 6)), 0.8 + down * (1.1 + 0.17 * min(max(tall, 6), 60)))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(down, across, squeeze=False)
    colours = colormaps["cividis"].with_extremes(bad="#BBBBBB")
    scale = {"vmin": min(known, default=0.0), "vmax": max(known, default=1.0), "cmap": colours}
    for axis, layer_map in zip(axes.flat, maps):
        cells = [[math.nan if v is None else v for v in row] for row in layer_map.values]
        image = axis.imshow(cells, aspect="auto", interpolation="nearest", **scale)
        step = math.ceil(len(layer_map.layers) / LAYERS_NAMED)
        axis.set_yticks(
            range(0, len(layer_map.layers), step), list(map(_name, layer_map.layers[::step])), fontsize=7
        )
        axis.set_xticks(
            range(len(layer_map.remaining)),
            list(map(share_text, layer_map.remaining)),
            fontsize=7,
            rotation=90,
        )
        axis.set_title(layer_map.title, fontsize=9)
        axis.set_xlabel("weights remaining (%)", fontsize=8)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label=asked)
    figure.savefig(path)


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
