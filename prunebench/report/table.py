"""Text tables that never wrap: the least important columns go when the terminal is narrow.

Values are stored as fractions, counts and seconds; percent and units appear only here. Everything is ASCII,
so that no terminal and no log file can refuse it.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GAP = "  "
WIDEST_TEXT = 0.35  # share of the width that a text column may take from other columns
NARROWEST_TEXT = 8  # characters left of a text column when even the essential columns are too wide


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
      key: where the value is in a row; dots lead into nested mappings ("test.top1").
      header: at most one short word.
      show: value (never None) -> text.
      group: word printed above neighbouring columns that share it.
      rank: 0 stays always; of the others, the highest rank leaves first when the table is too wide.
      text: left-aligned, and shortened when nothing else helps; numbers are right-aligned and never
        shortened.
    """

    key: str
    header: str
    show: Callable[[Any], str] = str
    group: str = ""
    rank: int = 0
    text: bool = False


def lookup(row: Mapping, key: str) -> Any:
    """Value at a dotted key, or None where the row has no such entry."""
    value: Any = row
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def cells(column: Column, rows: Sequence[Mapping]) -> list[str]:
    """The column's text in every row; "-" where there is no value."""
    values = (lookup(row, column.key) for row in rows)
    return ["-" if value is None else column.show(value) for value in values]


def filled(columns: Sequence[Column], rows: Sequence[Mapping]) -> list[Column]:
    """The columns with a value in at least one row, and those of rank 0."""
    return [c for c in columns if c.rank == 0 or any(lookup(row, c.key) is not None for row in rows)]


def table(columns: Sequence[Column], rows: Sequence[Mapping], *, width: int) -> list[str]:
    """Lines of a table no wider than `width` characters.

    Empty columns of rank > 0 are left out; then columns leave by rank (among equals the rightmost first)
    until the rest fits; then text columns are shortened, the longest first, to no less than `NARROWEST_TEXT`.
    Where two texts of a column would look the same then, its long ones go on in lines of their own.
    """
    shown = filled(columns, rows)
    content = {c.key: cells(c, rows) for c in shown}
    while True:
        natural = _widths(shown, content)
        most = max(NARROWEST_TEXT, int(WIDEST_TEXT * width))
        widths = [min(w, most) if c.text else w for c, w in zip(shown, natural)]
        room = width - sum(widths) - len(GAP) * (len(widths) - 1)
        spare = [i for i, c in enumerate(shown) if c.rank > 0]
        if room >= 0 or not spare:
            break
        shown.pop(max(spare, key=lambda i: (shown[i].rank, i)))
    for i in (i for i, c in enumerate(shown) if c.text):
        change = max(min(room, natural[i] - widths[i]), min(0, NARROWEST_TEXT - widths[i]))
        widths[i] += change
        room -= change
    folded = [c.key for c, w in zip(shown, widths) if c.text and _collide(content[c.key], w)]
    body = [
        line
        for i in range(len(rows))
        for line in _lines(shown, widths, [content[c.key][i] for c in shown], folded)
    ]
    head = [_line(shown, widths, [c.header for c in shown])]
    if any(c.group for c in shown):
        head.insert(0, _group_line(shown, widths))
    return [*head, "-" * max(map(len, head + body)), *body]


def continued(
    lead: Sequence[Column], columns: Sequence[Column], rows: Sequence[Mapping], *, width: int
) -> list[str]:
    """Lines of a table that goes on below, with the leading columns again, where it is too wide for one.

    No column is left out; the blocks have about the same number of columns.
    """
    natural = [max(map(len, [c.header, *cells(c, rows)])) + len(GAP) for c in (*lead, *columns)]
    taken, widest = sum(natural[: len(lead)]), max(natural[len(lead) :], default=1)
    fit = max(1, (width - taken + len(GAP)) // widest)
    blocks = math.ceil(len(columns) / fit)
    size = math.ceil(len(columns) / blocks) if blocks else 0
    lines = []
    for start in range(0, len(columns), size or 1):
        lines += ["", *table([*lead, *columns[start : start + size]], rows, width=width)]
    return lines[1:]


def _widths(columns: list[Column], content: dict[str, list[str]]) -> list[int]:
    widths = [max(map(len, [c.header, *content[c.key]])) for c in columns]
    for start, stop in spans(columns):
        room = sum(widths[start:stop]) + len(GAP) * (stop - start - 1)
        widths[start] += max(0, len(columns[start].group) - room)
    return widths


def spans(columns: list[Column]) -> list[tuple[int, int]]:
    """[start, stop) of every stretch of neighbours with the same group."""
    starts = [i for i, c in enumerate(columns) if i == 0 or not c.group or c.group != columns[i - 1].group]
    return list(zip(starts, [*starts[1:], len(columns)]))


def _group_line(columns: list[Column], widths: list[int]) -> str:
    parts = []
    for start, stop in spans(columns):
        room = sum(widths[start:stop]) + len(GAP) * (stop - start - 1)
        label = columns[start].group
        # A label over several columns is drawn as a bracket, so that it is seen which columns it covers.
        parts.append(
            f" {label} ".center(room, ".") if label and room >= len(label) + 4 else label.rjust(room)
        )
    return GAP.join(parts).rstrip()


def _line(columns: list[Column], widths: list[int], texts: list[str]) -> str:
    parts = []
    for column, width, text in zip(columns, widths, texts):
        short = text if len(text) <= width else _shortened(text, width)
        parts.append(short.ljust(width) if column.text else short.rjust(width))
    return GAP.join(parts).rstrip()


def _lines(columns: list[Column], widths: list[int], texts: list[str], folded: Sequence[str]) -> list[str]:
    """The line of a row, and one for every line more of a text that is folded."""
    parts = [
        textwrap.wrap(t, w, subsequent_indent="  ") if c.key in folded else [t]
        for c, w, t in zip(columns, widths, texts)
    ]
    return [
        _line(columns, widths, [part[i] if i < len(part) else "" for part in parts])
        for i in range(max(map(len, parts), default=1))
    ]


def _collide(texts: Sequence[str], width: int) -> bool:
    """Whether two different texts look the same in so many characters."""
    different = set(texts)
    return len({text if len(text) <= width else _shortened(text, width) for text in different}) < len(
        different
    )


def _shortened(text: str, width: int) -> str:
    """Both ends of a text, because names often differ in their last word."""
    tail = (width - 2) // 2
    return f"{text[: width - 2 - tail]}..{text[len(text) - tail :]}"


def markdown(columns: Sequence[Column], rows: Sequence[Mapping]) -> list[str]:
    """Lines of a Markdown table with every filled column; a group's word stands before its headers."""
    shown = filled(columns, rows)
    content = [cells(c, rows) for c in shown]
    heads = [f"{c.group} {c.header}".strip() for c in shown]
    rule = [":---" if c.text else "---:" for c in shown]
    lines = [heads, rule, *([column[i] for column in content] for i in range(len(rows)))]
    return ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]


def percent(share: float) -> str:
    """A fraction as percent with two decimals; more, where two would turn a share below 1 into 100."""
    text = f"{100 * share:.2f}"
    return f"{100 * share:.4f}" if text == "100.00" and share < 1 else text


def points(change: float) -> str:
    """A difference of two fractions in percentage points, signed: 0.0042 -> "+0.42"."""
    return f"{round(100 * change, 2) + 0.0:+.2f}"


def count(number: float) -> str:
    """A number of things in at most five characters (up to 999 P): 50610 -> "50.6k"."""
    scaled = float(number)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(scaled) < 999.5 or unit == "P":
            break
        scaled /= 1000
    if unit == "" and scaled == int(scaled):
        return str(int(scaled))
    return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"


def ratio(factor: float) -> str:
    """A factor: 19.97 -> "20.0x"; two decimals below 10, none from 1000 on."""
    digits = 2 if factor < 9.995 else 1 if factor < 999.95 else 0
    return f"{factor:.{digits}f}x"


def seconds(duration: float) -> str:
    """Seconds with one decimal below a minute, "12:34" or "1:02:03" above."""
    return f"{duration:.1f}" if duration < 59.95 else clock(duration)


def duration(length: float) -> str:
    """Seconds as "12.3 s" below a minute, "12:34" or "1:02:03" above."""
    return f"{seconds(length)} s" if length < 59.95 else clock(length)


def clock(duration: float) -> str:
    """Whole seconds as "0:07", "12:34" or "1:02:03"."""
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """A loss or a learning rate with four significant digits."""
    return f"{value:.4g}"
