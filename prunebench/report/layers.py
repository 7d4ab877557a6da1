"""A number of every layer after every round: sparsity, or what a metric measured, as a table and as CSV."""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.report.group import close_ones, mean_std
from prunebench.report.read import Run, rows_of
from prunebench.report.remaining import share_text
from prunebench.report.sheets import Sheet
from prunebench.report.table import Column, continued, number, percent

SPARSITY = "sparsity"  # what --layers calls the share of every layer's weights that is removed
MARK = '"kept_per_layer"'


@dataclass(frozen=True)
class LayerMap:
    """A number of every layer after every round, mean over the runs; None where it is not known."""

    title: str
    layers: list[str]
    remaining: list[float]
    values: list[list[float | None]]


def layer_maps(
    runs: Sequence[Run], names: Sequence[str], rows: Sequence[Sequence[Mapping]], asked: str
) -> list[LayerMap]:
    """A map for every label, model and data set of one number of the rows' "layers", at phase ends.

    Args:
      runs: finished and partial runs.
      names: the label of each run, see `group.labels`.
      rows: their metric rows, see `diagnostics.read_metrics`, or for `SPARSITY` those of `sparsity_rows`.
      asked: "METRIC.NAME", or `SPARSITY`.

    Raises:
      ValueError: if no run measured it for every layer, naming the close ones.
    """
    metric, _, name = asked.partition(".")
    groups: dict[tuple, list[Mapping]] = {}
    known: dict[str, None] = {}
    for run, label, own in zip(runs, names, rows):
        for row in _ends(run, own):
            known |= dict.fromkeys(
                f"{row['metric']}.{n}" for layer in row["layers"] for n in layer if n != "name"
            )
            if row["metric"] == metric:
                who = (run.identity["model"], run.identity["dataset"], label, run.end)
                groups.setdefault(who, []).append(row)
    if asked != SPARSITY and asked not in known:
        what = (
            "no run measured it for every layer" if known else "no run here measured anything for every layer"
        )
        there = close_ones(asked, list(known)) if known else ""
        raise ValueError(f"--layers {asked}: {what}{there}, or {SPARSITY}, of every run")
    ends_of = {who[:3]: [other for other in groups if other[:3] == who[:3]] for who in groups}
    where = {who[:2] for who in groups}
    out = []
    for who in sorted(groups, key=lambda who: (*who[:3], -1.0 if who[3] is None else who[3])):
        asked_end = "null" if who[3] is None else f"{who[3]:.6g}"
        title = who[2] + (f" target={asked_end}" if len(ends_of[who[:3]]) > 1 else "")
        title += f"\n{who[0]} on {who[1]}" if len(where) > 1 else ""
        out.append(_layer_map(title, groups[who], name or SPARSITY))
    return [layer_map for layer_map in out if layer_map.layers]


def sparsity_rows(runs: Sequence[Run]) -> tuple[list[list[dict]], list[tuple[Path, str]]]:
    """For every run the sparsity of its layers at phase ends, in the form of metric rows; and damaged runs.

    From the rows of kind "phase" in metrics.jsonl: kept weights in all, names and sizes in that of the first
    phase.

    Raises:
      ValueError: if no run has such rows.
    """
    out, broken = [], []
    for run in runs:
        try:
            out.append(_sparsity_rows(run.directory / "metrics.jsonl"))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            broken.append((run.directory, str(error)))
            out.append([])
    if not any(out):
        more = f", and {broken[0][0]} is damaged: {broken[0][1]}" if broken else ""
        raise ValueError(
            f"--layers {SPARSITY}: no run here wrote the kept weights of its layers into metrics.jsonl (runs "
            f"of an earlier version did not; delete one and run it again){more}"
        )
    return out, broken


def text_lines(maps: Sequence[LayerMap], asked: str, *, width: int) -> list[str]:
    """A table per map: a row per layer, a column per round, none wider than `width`."""
    lines = []
    for layer_map in maps:
        lead, columns, rows = _table(layer_map, asked)
        lines += [_heading(layer_map, asked), *continued([lead], columns, rows, width=width), ""]
    return lines


def sheets(maps: Sequence[LayerMap], asked: str) -> list[Sheet]:
    """The same for documents."""
    out = []
    for layer_map in maps:
        lead, columns, rows = _table(layer_map, asked)
        out.append(Sheet(_heading(layer_map, asked), [lead, *columns], rows))
    return out


def write_csv(path: Path, maps: Sequence[LayerMap]) -> None:
    """A row per map, layer and round, unrounded; nothing where a value is not known."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "layer", "remaining", "value"])
        for layer_map in maps:
            group = _one_line(layer_map.title)
            for layer, values in zip(layer_map.layers, layer_map.values):
                writer.writerows([group, layer, *pair] for pair in zip(layer_map.remaining, values))


def _ends(run: Run, rows: Sequence[Mapping]) -> Iterator[Mapping]:
    """The rows with layers at the ends of those phases that the run itself stands for."""
    if not run.rounds:
        return
    last = run.rounds[-1]["phase"]
    for row in rows:
        layered = row["when"] == "end" and isinstance(row.get("layers"), list)
        if layered and (not run.is_control or row["phase"] == last):
            yield row


def _sparsity_rows(path: Path) -> list[dict]:
    """Of a phase that was written twice (a resumed run) the later row counts."""
    found = {row["phase"]: row for row in rows_of(path, "phase", mark=MARK)}
    first = [*found.values(), *(rows_of(path, "auxiliary", mark=MARK) if found else ())]
    sizes = next((row["layer_sizes"] for row in first if "layer_sizes" in row), None)
    if found and sizes is None:
        raise ValueError(f"{path.name}: kept weights without the names of their layers")
    return [
        {
            **{key: row[key] for key in ("phase", "cycle", SPARSITY)},
            "metric": SPARSITY,
            "when": "end",
            "layers": [
                {"name": layer, SPARSITY: 1 - kept / size}
                for (layer, size), kept in zip(sizes.items(), row["kept_per_layer"], strict=True)
            ],
        }
        for row in found.values()
    ]


def _layer_map(title: str, rows: Sequence[Mapping], name: str) -> LayerMap:
    cells: dict[str, dict[tuple, list[float]]] = {}
    shares: dict[tuple, list[float]] = {}
    for row in rows:
        at = (row["cycle"], row["phase"])
        shares.setdefault(at, []).append(1 - row["sparsity"])
        for layer in row["layers"]:
            if name in layer:
                of_layer = cells.setdefault(str(layer.get("name")), {})
                of_layer.setdefault(at, []).extend([layer[name]] if layer[name] is not None else [])
    order = sorted(shares)
    values = [[mean_std(of_layer.get(at, []))[0] for at in order] for of_layer in cells.values()]
    return LayerMap(title, list(cells), [statistics.fmean(shares[at]) for at in order], values)


def _table(layer_map: LayerMap, asked: str) -> tuple[Column, list[Column], list[dict]]:
    show = percent if asked == SPARSITY else number
    columns = [Column(str(i), share_text(share), show) for i, share in enumerate(layer_map.remaining)]
    rows = [
        {"layer": layer, **{str(i): value for i, value in enumerate(values)}}
        for layer, values in zip(layer_map.layers, layer_map.values)
    ]
    return Column("layer", "layer", text=True), columns, rows


def _heading(layer_map: LayerMap, asked: str) -> str:
    unit = " (%)" if asked == SPARSITY else ""
    return f"{_one_line(layer_map.title)}: {asked}{unit} by layer, over weights remaining (%)"


def _one_line(title: str) -> str:
    return ", ".join(title.split("\n"))
