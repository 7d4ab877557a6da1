"""Write what was read and grouped: terminal table, CSV, Markdown."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prunebench.report.compare import TESTS, p_text
from prunebench.report.group import control
from prunebench.report.metric import is_loss, place, title
from prunebench.report.read import Found, Run
from prunebench.report.sheets import Sheet
from prunebench.report.table import Column, count, number, percent, points, ratio, seconds, table

MINUS = "minus baseline"


def columns(metric: str) -> list[Column]:
    """Columns of a table of `group.summarise` rows, accuracies in percent."""
    show, signed = formats(metric)
    of = title(metric)

    def between(ends: tuple[float, float]) -> str:
        return "[{}, {}]".format(*map(signed, ends))

    return [
        Column("method", "method", text=True),
        Column("target", "asked", percent, "sparsity"),
        Column("asked", "round", percent, "sparsity", rank=3),
        Column("sparsity", "reached", percent, "sparsity", rank=3),
        Column("n", "n"),
        Column("pruned", "pruned", show, of, rank=7),
        Column("value", "mean", show, of),
        Column("std", "std", show, of, rank=1),
        Column("reach", "+-95 %", show, of, rank=6),
        Column("top5", "top-5", show, rank=9),
        Column("change", "mean", signed, "change", rank=2),
        Column("change_std", "std", show, "change", rank=12),
        Column("difference", "mean", signed, MINUS),
        Column("difference_between", "95 %", between, MINUS, rank=1),
        Column("p_holm", "p", p_text, MINUS, rank=1),
        Column("params", "params", count, rank=9),
        Column("compression", "compr.", ratio, rank=4),
        Column("macs", "MACs", count, rank=10),
        Column("speedup", "speed", ratio, rank=5),
        Column("train_macs", "train", count, "MACs", rank=8),
        Column("seconds", "seconds", seconds, rank=11),
        Column("partial", "partial", rank=1),
    ]


def formats(metric: str) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """How a value of the metric and a signed difference of two are printed."""
    return (number, "{:+.4g}".format) if is_loss(metric) else (percent, points)


def panels(rows: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    """The rows by (model, data set)."""
    out: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        out.setdefault((row["model"], row["dataset"]), []).append(row)
    return out


def heading(model: str, dataset: str, runs: Sequence[Run], metric: str) -> str:
    """One line for a model on a data set, with its dense control."""
    show, _ = formats(metric)
    here = [run for run in runs if (run.identity["model"], run.identity["dataset"]) == (model, dataset)]
    mean, std, n = control(here, metric)
    if mean is None:
        return f"{model} on {dataset} (no dense control)"
    spread = f", std {show(std)}" if std is not None else ""
    return f"{model} on {dataset} (dense {title(metric)}: {show(mean)}{spread}, n={n})"


def counts(found: Found, runs: Sequence[Run]) -> str:
    """How many runs there are, and how many were left out and why, in one line."""
    partial = [run for run in runs if run.status == "partial"]
    empty = sum(not run.rounds for run in partial)
    parts = [
        f"{len(runs)} run{'s' * (len(runs) != 1)}: {len(runs) - len(partial)} done, {len(partial)} partial"
    ]
    parts += [f"{empty} of them without a finished phase"] if empty else []
    parts += [f"{len(found.runs) - len(runs)} not selected"] if len(found.runs) > len(runs) else []
    parts += [f"{len(found.broken)} broken (left out)"] if found.broken else []
    parts += [f"{len(found.other_version)} of another version (left out)"] if found.other_version else []
    return ", ".join(parts)


def notes(rows: Sequence[dict], metric: str, alike: int) -> list[str]:
    """What a reader of the numbers has to know."""
    unit = "" if is_loss(metric) else " in percent, change in points"
    out = [f"{title(metric)}: {place(metric)}{unit}; std: sample, over seeds; speed: theoretical"]
    if any(row["n"] == 1 for row in rows):
        out.append("std -: one run only, no interval")
    if any(row["reach"] is not None for row in rows):
        out.append("+-95 %: half of the t-interval of the mean over seeds")
    if any(row["partial"] for row in rows):
        out.append("partial: runs that have not reached the sparsity asked, at their last finished round")
    return [*out, repeated_note(alike)] if alike else out


def notes_on_differences(rows: Sequence[dict], baseline: str, test: str) -> list[str]:
    """What a reader of the comparison with a baseline has to know."""
    family = sum(row.get("p") is not None for row in rows)
    out = [
        f"minus baseline: minus {baseline} at the same sparsity, mean over common seeds [95 % t-interval]; "
        f"p: {TESTS[test]}, Holm-corrected over the table ({family} comparison{'s' * (family != 1)} in all)"
    ]
    fewest = min((row["difference_n"] for row in rows if row.get("p") is not None), default=0)
    if test == "wilcoxon" and 1 < fewest < 6:
        out.append(f"Wilcoxon's test cannot give a p below {2.0 ** (1 - fewest):g} for {fewest} pairs")
    return out


def repeated_note(alike: int) -> str:
    """A line about runs that repeat a seed of their row, see `group.repeated`."""
    verb = "run repeats" if alike == 1 else "runs repeat"
    return f"{alike} {verb} a seed of their row: copies, or they differ in what config.yaml does not say"


def text_lines(rows: Sequence[dict], runs: Sequence[Run], metric: str, *, width: int) -> list[str]:
    """The terminal report: a table per model and data set, none wider than `width`."""
    lines = []
    for (model, dataset), members in panels(rows).items():
        lines += [
            heading(model, dataset, runs, metric),
            *table(_columns(members, metric), members, width=width),
            "",
        ]
    return lines


def sheets(rows: Sequence[dict], runs: Sequence[Run], metric: str) -> list[Sheet]:
    """The same for documents, with every column."""
    return [
        Sheet(heading(model, dataset, runs, metric), _columns(members, metric), members)
        for (model, dataset), members in panels(rows).items()
    ]


def write_summary(path: Path, rows: Sequence[dict], metric: str) -> None:
    """The table unrounded: one row per row of it, fractions as fractions, and what was averaged."""
    left_out = ("values", "difference_between")
    keys = dict.fromkeys(key for row in rows for key in row if key not in left_out)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["metric", *keys], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"metric": metric, **row} for row in rows)


def _columns(rows: Sequence[dict], metric: str) -> list[Column]:
    """The columns: a round's own sparsity only beside earlier rounds, a difference only if there is one."""
    early = any(row["asked"] != row["target"] for row in rows if not row["partial"])
    needless = {"asked": not early, "difference": all(row.get("difference") is None for row in rows)}
    return [column for column in columns(metric) if not needless.get(column.key)]
