"""The two tables of one run: its plan before training, its rounds afterwards."""

import textwrap
from collections.abc import Mapping, Sequence

from prunebench.report.table import Column, count, duration, number, percent, points, ratio, seconds, table

PLAN_ROWS = 24  # phases of a plan that are printed; the middle of a longer one is folded

PLAN = (
    Column("name", "phase", text=True),
    Column("epochs", "epochs", "{:.4g}".format),
    Column("steps", "steps", "{:,}".format),
    Column("sparsity", "sparsity", percent),
    Column("weights", "weights", rank=3, text=True),
    Column("schedule", "schedule", rank=2, text=True),
    Column("peak", "peak", number, rank=2),
    Column("cost", "MACs", count, rank=4),
    Column("share", "cost", "{:.1%}".format, rank=1),
    Column("note", "note", rank=5, text=True),
)

ROUNDS = (
    Column("phase", "phase", text=True),
    Column("asked", "asked", percent, "sparsity", rank=3),
    Column("sparsity", "reached", percent, "sparsity"),
    Column("pruned.top1", "top-1", percent, "pruned", rank=1),
    Column("pruned.top5", "top-5", percent, "pruned", rank=9),
    Column("test.top1", "top-1", percent, "retrained"),
    Column("test.top5", "top-5", percent, "retrained", rank=8),
    Column("delta", "change", points, "retrained", rank=1),
    Column("params", "kept", count, "params", rank=4),
    Column("compression", "compr.", ratio, "params", rank=5),
    Column("macs_dense", "dense", count, "MACs", rank=10),
    Column("macs", "kept", count, "MACs", rank=7),
    Column("speedup", "speed", ratio, "MACs", rank=2),
    Column("seconds", "seconds", seconds, rank=6),
)


LATENCY = (
    Column("batch", "batch", "{:,}".format),
    Column("masked", "median", "{:.3g}".format, "masked"),
    Column("masked_iqr", "iqr", "{:.2g}".format, "masked"),
    Column("shrunk", "median", "{:.3g}".format, "shrunk"),
    Column("shrunk_iqr", "iqr", "{:.2g}".format, "shrunk"),
    Column("speed", "speed", ratio),
)


def plan_lines(title: str, phases: Sequence[Mapping], facts: Mapping[str, str], *, width: int) -> list[str]:
    """The plan as text: title, facts, a table of the phases with their total.

    Args:
      title: one line, e.g. "imp: resnet18 on digits".
      phases: rows with `name`, `epochs`, `steps`, `sparsity` (fraction asked, None: no pruning), `weights`
        ("keep", "init", ...), `schedule` (name), `cost` (3 x MACs per image x images seen in the phase) and,
        where there is something to say ("done", "shared"), `note`. Unknown values are None.
      facts: label -> text.
      width: columns of the terminal.
    """
    known = [row["cost"] for row in phases if row.get("cost") is not None]
    whole = sum(known)
    rows = [{**row, "share": _share(row.get("cost"), whole)} for row in phases]
    total = {"name": "total", "epochs": _total(rows, "epochs"), "steps": _total(rows, "steps"), "weights": ""}
    total |= {"schedule": "", "note": "", "cost": whole if known else None, "share": _share(whole, whole)}
    if len(rows) > PLAN_ROWS:
        half = PLAN_ROWS // 2
        folded = {"name": f"... {len(rows) - 2 * half} more", "weights": "", "schedule": "", "note": ""}
        rows = [*rows[:half], folded, *rows[-half:]]
    label = max(map(len, facts), default=0)
    told = []
    for name, text in facts.items():
        start = f"  {name.ljust(label)}  "
        # A path stays in one piece, to be copied, even where it is wider than the terminal.
        told += textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    hint = (
        "sparsity in percent; MACs of dense training (3 x images x MACs per image)"
        if known
        else "sparsity in percent"
    )
    noted = [column for column in PLAN if column.key != "note" or any(row.get("note") for row in rows)]
    return [title, *told, "", *table(noted, [*rows, total], width=width), hint]


def round_lines(result: Mapping, *, width: int) -> list[str]:
    """The rounds of a result.json as text: asked, reached, kept, gained, and against which control."""
    last = result["rounds"][-1]
    dense = result.get("dense")
    control = (
        f"dense control: top-1 {percent(dense['top1'])} %, " if dense else "no dense control; dense network: "
    )
    method = "+".join([result["method"], *result.get("companion", [])])
    lines = [f"{method}: {result['model']} on {result['dataset']}, seed {result['seed']}", ""]
    lines += table(ROUNDS, _with_controls(result["rounds"], result.get("controls", [])), width=width)
    lines.append(f"{control}{last['params_total']:,} parameters, {count(last['macs_dense'])} MACs per image")
    lines.append("test accuracy in percent, change in points against the dense control")
    if "channels" in last:
        gone = percent(1 - last["channels"] / last["channels_total"])
        lines.append(
            f"asked: of channels ({gone} % of {last['channels_total']:,} are gone); reached: of their weights"
        )
    lines.append("speed: theoretical, dense MACs by kept MACs")
    if result.get("shared"):
        lines.append(
            f"taken from the shared store: {', '.join(entry['phase'] for entry in result['shared'])}"
        )
    return lines + _latency_lines(result.get("measured", {}).get("latency"), width=width)


def _latency_lines(measured: Mapping | None, *, width: int) -> list[str]:
    """What the metric `latency` found, a row per batch size; nothing if it did not measure."""
    if measured is None:
        return []
    sizes = [int(key.rpartition("_")[2]) for key in measured if key.startswith("masked_milliseconds_iqr_")]
    rows = [
        {"batch": size, "speed": measured.get(f"measured_speedup_{size}")}
        | {name: measured.get(f"{name}_milliseconds_{size}") for name in ("masked", "shrunk")}
        | {f"{name}_iqr": measured.get(f"{name}_milliseconds_iqr_{size}") for name in ("masked", "shrunk")}
        for size in sizes
    ]
    shown = [c for c in LATENCY if c.key == "batch" or any(row.get(c.key) is not None for row in rows)]
    threads = f", {measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
    where = f"{measured['device']}{'' if 'NVIDIA' in measured['device'] else threads}"
    return ["", f"measured: milliseconds of a forward pass on {where}", *table(shown, rows, width=width)]


def _with_controls(rounds: Sequence[Mapping], controls: Sequence[Mapping]) -> list[Mapping]:
    """Every round, and after it the control that was trained beside it."""
    beside = {row["cycle"]: row for row in controls}
    return [row for round_ in rounds for row in (round_, beside.get(round_["cycle"])) if row is not None]


def phase_line(row: Mapping) -> str:
    """One line about a finished phase, given its row of `rounds`."""
    after = f"top-1 {percent(row['test']['top1'])}"
    if row.get("pruned"):
        after = f"top-1 {percent(row['pruned']['top1'])} pruned, {percent(row['test']['top1'])} retrained"
    if row.get("delta") is not None and row["sparsity"] > 0:
        after += f" ({points(row['delta'])})"
    return f"{row['phase']}: {percent(row['sparsity'])} % sparse, {after}, {duration(row['seconds'])}"


def _share(part: float | None, whole: float) -> float | None:
    return part / whole if whole and part is not None else None


def _total(rows: Sequence[Mapping], key: str) -> float | None:
    """Sum over the rows, or None when one is unknown."""
    values = [row.get(key) for row in rows]
    return None if None in values else sum(values)
