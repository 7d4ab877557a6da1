"""What all pictures have in common: colours, markers and dashes, axes, one legend.

Colours are those of Okabe and Ito, told apart by colour-blind readers. Lines also differ in marker and dash,
in such a way that 28 of them are told apart without any colour, as in grey print.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
)  # as many as have no divisor with the markers
DENSE = "#777777"
NARROW = 0.08  # lowest share of weights remaining down to which an axis has more ticks
NARROW_TICKS = (100, 70, 50, 40, 30, 20, 15, 10)
LETTER, HANDLE, LINE = 0.071, 0.6, 0.185  # inches of a legend: a character, all but the text, a line
ROOM = 2  # lines of the legend for which a figure has room
LONGEST = 60  # characters of a line of the legend


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the line with this number."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def styles_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The style of every label, in alphabetical order of the labels."""
    return {name: style(i) for i, name in enumerate(sorted(set(names)))}


def remaining_axis(axis: Any, shares: Sequence[float], *, of: Sequence[float] = NARROW_TICKS) -> None:
    """Shares in percent as papers draw weights remaining: logarithmic, from 100 % down to the right."""
    lowest = min((share for share in shares if share > 0), default=1.0)
    ticks = [100 / tick for tick in series(1 / lowest)] if lowest < NARROW else of
    ticks = [tick for tick in ticks if tick >= 91 * lowest]
    axis.set_xscale("log")
    axis.set_xlim(112, 100 * lowest / 1.12)
    axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axis.set_xticks([], minor=True)


def series(largest: float) -> list[float]:
    """1, 2, 5, 10, 20, ... to beyond `largest`."""
    decades = range(math.ceil(math.log10(largest)) + 1)
    return [digit * 10**decade for decade in decades for digit in (1, 2, 5)]


def tidy(axis: Any) -> None:
    """A light grid, and no frame at the top and on the right."""
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, columns: int) -> None:
    """One legend of all axes below them, in at most so many columns, and no wider than the figure.

    The figure grows where the legend has more than a few lines.
    """
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels())}
    if not handles:
        return
    room = int((figure.get_figwidth() - 0.2 - HANDLE) / LETTER)
    texts = [textwrap.fill(label, min(LONGEST, room)) for label in handles]
    widest = max(len(line) for text in texts for line in text.split("\n"))
    fit = max(1, min(columns, int((figure.get_figwidth() - 0.2) / (HANDLE + LETTER * widest))))
    entries = math.ceil(len(texts) / fit) * max(text.count("\n") + 1 for text in texts)
    figure.set_figheight(figure.get_figheight() + LINE * max(0, entries - ROOM))
    figure.legend(
        handles.values(),
        texts,
        loc="outside lower center",
        ncols=fit,
        frameon=False,
        fontsize=9,
        handlelength=2.7,
        columnspacing=1.2,
    )
