"""The parts of a report: what each prints, what it remarks, and what it writes.

A part is computed before anything is printed or written, so that a question without an answer leaves nothing.
Plotting libraries are imported where a file is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prunebench.report import all_rounds, diagnostics, layers, pareto, remaining_table, render, search
from prunebench.report.axes import AXES
from prunebench.report.compare import against
from prunebench.report.group import repeated, summarise
from prunebench.report.metric import parts as metric_parts
from prunebench.report.metric_pictures import diagnostics_png, layers_png
from prunebench.report.oracle_picture import oracle_png
from prunebench.report.published import beside, published, remarks
from prunebench.report.rates import learning_rates, lr_png
from prunebench.report.read import Run
from prunebench.report.remaining import baselines, by_channels, remaining
from prunebench.report.sheets import Sheet
from prunebench.report.tradeoff import report_png

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
    bars: str = "std",
    front: bool = False,
    merged: bool = False,
    width: int,
) -> Part:
    """The ends of runs, with `rounds` all their rounds, against the dense control and against a baseline.

    Args:
      runs: see `axes.priced`.
      names: the label of each run, see `group.labels`.
      metric, rounds: what the table shows.
      baseline, test: see `compare.against`.
      over, bars, front: see `tradeoff.report_png`.
      merged: rows hold runs of several configurations by the reader's choice, so that seeds repeat.
      width: of the terminal, in characters.
    """
    rows = summarise(runs, names, metric, rounds=rounds)
    notes = render.notes(rows, metric, 0 if merged else repeated(runs, names))
    if baseline is not None:
        rows = against(rows, baseline, test=test)
        notes += render.notes_on_differences(rows, baseline, test)
    if metric_parts(metric) == ("test", "top1"):
        rows, footnotes = beside(rows, runs, names)
        notes += footnotes
    if priceless := sum(AXES[over].at(row) is None for row in rows):
        which = "row is" if priceless == 1 else "rows are"
        notes.append(f"{priceless} {which} not in report.png, {over} is not known of them")
    notes += [AXES[over].note] if AXES[over].note else []
    picture = partial(report_png, runs, names, metric, over=over, bars=bars, pareto=front)
    return Part(
        "report",
        text=render.text_lines(rows, runs, metric, width=width),
        notes=[*notes, *search.cost_notes(runs, names)],
        sheets=render.sheets(rows, runs, metric),
        csvs={
            ".csv": partial(all_rounds.write_csv, runs=runs, names=names),
            "_summary.csv": partial(render.write_summary, rows=rows, metric=metric),
        },
        picture=picture if rows else None,
    )


def pareto_front(runs: Sequence[Run], names: Sequence[str], metric: str, *, over: str, width: int) -> Part:
    """The operating points that no other beats in the metric and in what it is drawn over."""
    found = pareto.fronts(runs, names, metric, over)
    return Part(
        "pareto",
        text=pareto.text_lines(found, metric, over, width=width),
        notes=[pareto.NOTE],
        sheets=pareto.sheets(found, metric, over),
        csvs={".csv": partial(pareto.write_csv, found=found, metric=metric, over=over)},
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
    merged: bool = False,
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
    alike = 0 if merged else repeated(runs, names)
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


def measured(
    runs: Sequence[Run], names: Sequence[str], *, asked: str | None, numbers: str | None, width: int
) -> list[Part]:
    """What was measured beside accuracy, if anything was, and a number of every layer.

    Args:
      runs, names: see `ends`.
      asked: "METRIC.NAME" or "sparsity" of every layer, None for no table and picture of layers.
      numbers: what diagnostics.png shows, None for all that change.
      width: of the terminal, in characters.
    """
    rows, broken = diagnostics.read_metrics(runs)
    parts = []
    found = diagnostics.readings(runs, names, rows)
    drawn = diagnostics.lines(found)
    chosen = diagnostics.chosen(drawn, numbers) if numbers is not None else drawn
    if found or broken:
        constant = [".".join(number) for number, lines in chosen.items() if diagnostics.constant(lines)]
        changing = {number: lines for number, lines in chosen.items() if ".".join(number) not in constant}
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
    if asked is not None:
        parts.append(_layers(runs, names, rows, asked, width=width))
    return parts


def _layers(
    runs: Sequence[Run], names: Sequence[str], rows: Sequence[Sequence[Mapping]], asked: str, *, width: int
) -> Part:
    """A number of every layer after every round, by label."""
    broken: list[tuple[Path, str]] = []
    if asked == layers.SPARSITY:
        rows, broken = layers.sparsity_rows(runs)
    maps = layers.layer_maps(runs, names, rows, asked)
    notes = [_damaged("layers", broken)] if broken else []
    wordless = sum(bool(run.rounds) and not own for run, own in zip(runs, rows)) - len(broken)
    silent = wordless if asked == layers.SPARSITY else 0
    if silent > 0:
        which = "run has" if silent == 1 else "runs have"
        notes.append(f"left out of layers: {silent} {which} no kept weights of layers in metrics.jsonl")
    return Part(
        "layers",
        text=layers.text_lines(maps, asked, width=width),
        notes=notes,
        sheets=layers.sheets(maps, asked),
        csvs={".csv": partial(layers.write_csv, maps=maps)},
        picture=partial(layers_png, maps, asked),
    )


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
