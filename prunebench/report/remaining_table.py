"""Write the tables of shares of weights remaining: terminal, Markdown, CSV."""

import csv
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunebench.report.compare import TESTS, Comparison, fields, p_text
from prunebench.report.metric import is_loss, words
from prunebench.report.published import Published, marks, nearest
from prunebench.report.read import Run
from prunebench.report.remaining import Cell, Panel, Row, differences, share_text
from prunebench.report.render import formats
from prunebench.report.sheets import Sheet
from prunebench.report.table import Column, continued

PUBLISHED = "  published"
MINUS = "  minus published"
ONE = "*"  # marks a number of one seed

Line = tuple[str, "Sequence[Text | None]"]
"""The label of a row, and its cells."""


@dataclass(frozen=True)
class Text:
    """A cell as text in two parts, so that means stand below each other; `n` seeds, 0 if published."""

    mean: str
    rest: str
    n: int


@dataclass(frozen=True)
class Table:
    """A table as text: heading, columns that every block of it has, columns of the shares, rows."""

    title: str
    lead: list[Column]
    columns: list[Column]
    rows: list[dict]


def tables(
    panel: Panel,
    baseline: Row | None,
    entries: Published,
    metric: str,
    *,
    test: str = "t",
    of: str = "weights",
) -> list[Table]:
    """The table of a panel, and that of the differences to a row of it, if one is given; shares are `of`."""
    show, signed = formats(metric)
    where = f"{panel.model} on {panel.dataset}: {words(metric)}"
    percent = not is_loss(metric)
    by = f" by {of} remaining"
    lines: list[Line] = []
    for row in panel.rows:
        lines.append((row.label, [_value(cell, show) for cell in row.cells]))
        met = entries.get((panel.model, panel.dataset, row.label), []) if entries else []
        for footnote, mark in marks(entries).items():
            values = [nearest([e for e in met if e.footnote == footnote], share) for share in panel.shares]
            if any(value is not None for value in values):
                texts = [None if value is None else Text(show(value), "", 0) for value in values]
                lines.append((f"{PUBLISHED} {mark}", texts))
                lines.append((f"{MINUS} {mark}", [_from(*pair, signed) for pair in zip(row.cells, values)]))
    out = [_laid_out(where + " (%)" * percent + by, "seed", lines, panel)]
    if baseline is not None and len(panel.rows) > 1:
        lines = [
            (label, [_change(one, signed) for one in found])
            for label, found in differences(panel, baseline, test=test).items()
        ]
        title = f"{where} minus that of {baseline.label}" + " (points)" * percent + by
        out.append(_laid_out(title, "common seed", lines, panel))
    return out


def text_lines(shown: Sequence[Table], *, width: int) -> list[str]:
    """Lines for the terminal, none wider than `width`."""
    lines = []
    for table in shown:
        blocks = continued(table.lead, table.columns, table.rows, width=width)
        lines += [*textwrap.wrap(table.title, width, subsequent_indent="  "), *blocks, ""]
    return lines


def sheets(shown: Sequence[Table]) -> list[Sheet]:
    """The same for documents, with all columns side by side."""
    out = []
    for table in shown:
        rows = [{key: " ".join(text.split()) for key, text in row.items()} for row in table.rows]
        columns = [replace(column, group="", header=f"{column.header} %") for column in table.columns]
        out.append(Sheet(table.title, [*table.lead, *columns], rows))
    return out


def notes(
    panels: Sequence[Panel], baselines: Sequence[Row | None], metric: str, *, test: str = "t"
) -> list[str]:
    """What a reader of the tables has to know."""
    cells = [cell for panel in panels for row in panel.rows for cell in row.cells if cell]
    best = [row.label for panel in panels for row in panel.rows if any(map(_keeps_best, row.runs))]
    when = "at the end of the last epoch of each round"
    when += f" (of {', '.join(dict.fromkeys(best))}: of the epoch best in validation top-1)" if best else ""
    out = [f"{words(metric)} {when}; mean +- sample standard deviation over seeds of finished runs"]
    odd = [
        cell for p in panels for row in p.rows for cell in row.cells if cell and cell.n != usual(row.cells)
    ]
    if any(cell.n > 1 for cell in odd):
        out.append("in brackets: the seeds of a cell where they are not the row's n")
    joined = {row.label for panel in panels for row in panel.rows if len({r.end for r in row.runs}) > 1}
    if joined:
        out.append(
            f"{', '.join(sorted(joined))}: runs to several sparsities, in each column those that pass it"
        )
    if any(cell.n == 1 for cell in cells):
        out.append(f"{ONE}: one seed, no spread")
    return out + _notes_on_differences(panels, baselines, test)


def _notes_on_differences(panels: Sequence[Panel], baselines: Sequence[Row | None], test: str) -> list[str]:
    if not any(baselines):
        return []
    out = [
        f"differences: mean over the seeds that both have [95 % t-interval] p-value of a {TESTS[test]}, "
        "Holm-corrected over the table"
    ]
    for panel, baseline in zip(panels, baselines):
        where = f"{panel.model} on {panel.dataset}"
        if baseline is None:
            out.append(f"{where}: no run of the baseline")
            continue
        if len(panel.rows) == 1:
            out.append(f"{where}: no other row than the baseline")
        found = differences(panel, baseline)
        strange = [
            row.label
            for row in panel.rows
            if any(mine and other for mine, other in zip(row.cells, baseline.cells))
            and row is not baseline
            and not any(found[row.label])
        ]
        if strange:
            out.append(f"{where}: no seed in common with {baseline.label}: {', '.join(strange)}")
    return out


def write_csv(
    path: Path,
    panels: Sequence[Panel],
    baselines: Sequence[Row | None],
    metric: str,
    *,
    test: str = "t",
) -> None:
    """A row per label, share and seed, unrounded; shares and accuracies as fractions.

    With a baseline also, the same for all seeds of a cell, the paired difference, its 95 % t-interval and its
    p-value, before and after Holm's correction.
    """
    rows = []
    for panel, baseline in zip(panels, baselines):
        known = differences(panel, baseline, test=test) if baseline is not None else {}
        for row in panel.rows:
            others = baseline if baseline is not None and row is not baseline else None
            found = known.get(row.label, [None] * len(row.cells))
            who = {"label": row.label, "model": panel.model, "dataset": panel.dataset, "metric": metric}
            for share, cell, one in zip(panel.shares, row.cells, found):
                against = {"baseline": others.label, **_fields(one)} if others else {}
                rows += _csv_rows({**who, "remaining_asked": share.asked}, cell, against) if cell else []
    keys = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(keys))
        writer.writeheader()
        writer.writerows(rows)


def _csv_rows(who: Mapping, cell: Cell, against: Mapping) -> list[dict]:
    mean, std = cell.mean_std
    return [
        {**who, "remaining": cell.reached[seed], "n": cell.n, "mean": mean, "std": std, "seed": seed}
        | {"value": value, **against}
        for seed, value in cell.values.items()
    ]


def _fields(one: Comparison | None) -> dict:
    if one is None:
        return {"difference_n": 0}
    return {key: value for key, value in fields(one).items() if key != "difference_between"}


def _value(cell: Cell | None, show: Callable[[float], str]) -> Text | None:
    if cell is None:
        return None
    mean, std = cell.mean_std
    return Text(show(mean), ONE if std is None else f"+-{show(std)}", cell.n)


def _from(cell: Cell | None, value: float | None, signed: Callable[[float], str]) -> Text | None:
    """The mean of a cell minus a published number, where there are both."""
    known = cell is not None and value is not None
    return Text(signed(cell.mean_std[0] - value), "", 0) if known else None


def _change(one: Comparison | None, signed: Callable[[float], str]) -> Text | None:
    if one is None:
        return None
    if one.low is None or one.high is None:
        return Text(signed(one.mean), ONE, one.n)
    p = "" if one.adjusted is None else f" {p_text(one.adjusted)}"
    return Text(signed(one.mean), f"[{signed(one.low)}, {signed(one.high)}]{p}", one.n)


def _laid_out(title: str, counted: str, lines: Sequence[Line], panel: Panel) -> Table:
    """The table, its cells padded to stand below each other; n stands in the title where it is the same."""
    known = {text.n for _, texts in lines for text in texts if text and text.n}
    lead = [Column("label", "", text=True, folded=True), *([Column("n", "n")] if len(known) > 1 else [])]
    if len(known) == 1:
        title += f", n = {max(known)} {counted}{'s' * (max(known) > 1)}"
    columns = [
        Column(f"cell{i}", share_text(share.asked), group="remaining (%)")
        for i, share in enumerate(panel.shares)
    ]
    rows = [{"label": label} | ({"n": str(n)} if (n := usual(texts)) else {}) for label, texts in lines]
    for i in range(len(panel.shares)):
        parts = [_parts(texts[i], usual(texts)) for _, texts in lines]
        before = max((len(mean) for mean, _ in filter(None, parts)), default=0)
        after = max((len(rest) for _, rest in filter(None, parts)), default=0)
        for row, pair in zip(rows, parts):
            if pair:
                row[f"cell{i}"] = f"{pair[0]:>{before}}" + (f" {pair[1]:<{after}}" if after else "")
    return Table(title, lead, columns, rows)


def _parts(text: Text | None, n: int) -> tuple[str, str] | None:
    """Mean and rest, with the number of seeds where it is not that of the row."""
    if text is None:
        return None
    return text.mean, f"{text.rest} ({text.n})" if 1 < text.n != n else text.rest


def usual(cells: Sequence[Cell | Text | None]) -> int:
    """The number of seeds of most cells, of equally many the larger; 0 without cells."""
    counts = Counter(cell.n for cell in cells if cell)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _keeps_best(run: Run) -> bool:
    return (run.configuration or run.overrides).get("protocol.keep") == "best"
