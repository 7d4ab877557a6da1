"""The parts of a report: what each prints, what it remarks, and what it writes.

A part is computed before anything is printed or written, so that a question without an answer leaves nothing.
Plotting libraries are imported where a file is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prunebench.report import diagnostics, remaining_table, render, search
from prunebench.report.compare import against
from prunebench.report.curve import report_png
from prunebench.report.group import repeated, summarise
from prunebench.report.metric import parts as metric_parts
from prunebench.report.metric_pictures import diagnostics_png, layers_png
from prunebench.report.oracle_picture import oracle_png
from prunebench.report.published import published, remarks
from prunebench.report.rates import learning_rates, lr_png
from prunebench.report.read import Run
from prunebench.report.remaining import baselines, by_channels, remaining
from prunebench.report.sheets import Sheet

NAMED = 6  # things that a remark names one by one

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Part:
    """What a part of the report prints and writes.

    Attributes:
      name: of its files, less the suffix.
      text: lines for the terminal.
      notes: what a reader has to know, a line each, below the text and the Markdown.
      sheets: tables of NAME.md and NAME.tex, and of the page. None: there are no such files.
      csvs: what follows NAME in a file's name, ".csv" or "_summary.csv" -> writes it.
      picture: writes NAME.png, .pdf or .svg. None: there is no picture.
    """

    name: str
    text: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sheets: list[Sheet] | None = None
    csvs: Mapping[str, Write] = field(default_factory=dict)
    picture: Write | None = None


def ends(
    runs: Sequence[Run],
    names: Sequence[str],
    metric: str,
    *,
    rounds: bool = False,
    baseline: str | None = None,
    test: str = "t",
    over: str = "compression",
    width: int,
) -> Part:
    """The ends of runs, with `rounds` all their rounds, against the dense control and against a baseline."""
    rows = summarise(runs, names, metric, rounds=rounds)
    notes = render.notes(rows, metric, repeated(runs, names))
    if baseline is not None:
        rows = against(rows, baseline, test=test)
        notes += render.notes_on_differences(rows, baseline, test)
    return Part(
        "report",
        text=render.text_lines(rows, runs, metric, width=width),
        notes=[*notes, *search.cost_notes(runs, names)],
        sheets=render.sheets(rows, runs, metric),
        csvs={
            ".csv": partial(render.write_csv, runs=runs, names=names),
            "_summary.csv": partial(render.write_summary, rows=rows, metric=metric),
        },
        picture=partial(report_png, runs, names, metric, over=over) if rows else None,
    )


def shares(
    runs: Sequence[Run],
    names: Sequence[str],
    metric: str,
    *,
    asked: str,
    channels: bool = False,
    baseline: str | None = None,
    test: str = "t",
    width: int,
) -> Part:
    """The papers' tables: a row per label, a column per share of weights, or of channels, remaining."""
    panels = remaining(by_channels(runs, names) if channels else runs, names, asked, metric)
    bases = baselines(panels, baseline) if baseline is not None else [None] * len(panels)
    entries = published(panels) if metric_parts(metric) == ("test", "top1") and not channels else {}
    tables = [
        table
        for panel, row in zip(panels, bases)
        for table in remaining_table.tables(
            panel, row, entries, metric, test=test, of="channels" if channels else "weights"
        )
    ]
    notes = [*remaining_table.notes(panels, bases, metric, test=test), *remarks(panels, entries)]
    alike = repeated(runs, names)
    notes += [render.repeated_note(alike)] if alike else []
    return Part(
        "remaining",
        text=remaining_table.text_lines(tables, width=width),
        notes=[*notes, *search.cost_notes(runs, names)],
        sheets=remaining_table.sheets(tables),
        csvs={
            ".csv": partial(
                remaining_table.write_csv, panels=panels, baselines=bases, metric=metric, test=test
            )
        },
    )


def measured(runs: Sequence[Run], names: Sequence[str], *, layers: str | None) -> list[Part]:
    """What was measured beside accuracy, if anything was; `layers`: a number to draw for every layer."""
    rows, broken = diagnostics.read_metrics(runs)
    parts = []
    found = diagnostics.readings(runs, names, rows)
    if found or broken:
        numbers = diagnostics.lines(found)
        constant = [".".join(number) for number, lines in numbers.items() if diagnostics.constant(lines)]
        changing = {number: lines for number, lines in numbers.items() if ".".join(number) not in constant}
        notes = [_damaged("diagnostics", broken)] if broken else []
        if constant:
            notes.append(f"not in diagnostics.png, the same after every round: {_named(constant)}")
        parts.append(
            Part(
                "diagnostics",
                notes=notes,
                csvs={".csv": partial(diagnostics.write_csv, found=found)} if found else {},
                picture=partial(diagnostics_png, changing, names) if changing else None,
            )
        )
    if layers is not None:
        maps = diagnostics.layer_maps(runs, names, rows, layers)
        parts.append(Part("layers", picture=partial(layers_png, maps, layers)))
    return parts


def oracle(runs: Sequence[Run], names: Sequence[str], *, width: int) -> list[Part]:
    """The searches of the Oracle, where there are any."""
    found, broken = search.searches(runs, names)
    if not found and not broken:
        return []
    return [
        Part(
            "oracle",
            text=search.comparison_lines(found, width=width),
            notes=[_damaged("the Oracle's part", broken)] if broken else [],
            csvs={".csv": partial(search.write_csv, found=found)} if found else {},
            picture=partial(oracle_png, found, names) if found else None,
        )
    ]


def rates(runs: Sequence[Run], names: Sequence[str]) -> Part:
    """The learning rate over the epochs."""
    return Part("lr", picture=partial(lr_png, learning_rates(runs, names)))


def _damaged(what: str, broken: Sequence[tuple[Path, str]]) -> str:
    path, reason = broken[0]
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"left out of {what}: {path}: {reason}{more}"


def _named(things: Sequence[str]) -> str:
    more = f" and {len(things) - NAMED} more" if len(things) > NAMED else ""
    return ", ".join(things[:NAMED]) + more
