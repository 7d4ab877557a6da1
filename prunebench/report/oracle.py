"""The Oracle's search as text and as a picture: peaks of the learning rate, cycle by cycle."""

from collections.abc import Mapping
from typing import Any

from prunebench.report.table import Column, count, duration, number, percent, table

CYCLES = (
    Column("phase", "phase", text=True),
    Column("sparsity", "reached", percent, "sparsity", rank=2),
    Column("best", "best", number, "peak"),
    Column("interval", "near-best", group="peak"),
    Column("valid", "valid", percent, "top-1 of the best"),
    Column("test", "test", percent, "top-1 of the best"),
    Column("spread", "worst to best", group="valid top-1 over the grid", rank=1),
)


def branch_line(phase: str, branch: Mapping[str, Any]) -> str:
    """One line about a branch that is trained."""
    return (
        f"{phase}, peak {number(branch['max_lr'])}: top-1 {percent(branch['valid']['top1'])} valid, "
        f"{percent(branch['test']['top1'])} test, {duration(branch['seconds'])}"
    )


def interval(cycle: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest near-best peak."""
    return min(cycle["near_best"]), max(cycle["near_best"])


def oracle_lines(content: Mapping[str, Any], *, width: int = 100) -> list[str]:
    """The search of an oracle.json as a table, a line per phase."""
    rows = []
    for cycle in content["cycles"]:
        valid = [b["valid"]["top1"] for b in cycle["branches"]]
        best = next(b for b in cycle["branches"] if b["max_lr"] == cycle["best"])
        low, high = interval(cycle)
        rows.append(
            {
                "phase": cycle["phase"],
                "sparsity": cycle["sparsity"],
                "best": cycle["best"],
                "interval": f"{number(low)} to {number(high)}" if low < high else number(low),
                "valid": best["valid"]["top1"],
                "test": best["test"]["top1"],
                "spread": f"{percent(min(valid))} to {percent(max(valid))}",
            }
        )
    cost = content["cost"]
    return [
        "",
        *table(CYCLES, rows, width=width),
        f"grid {', '.join(number(peak) for peak in content['grid'])}; near-best: validation top-1 at most "
        f"{percent(content['tolerance'])} points below the best",
        f"the search trained {cost['branches']} branches, {count(cost['train_macs'])} MACs",
    ]
