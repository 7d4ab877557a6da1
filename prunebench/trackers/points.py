"""Names and values that trackers get from a row of metrics.jsonl and from result.json."""

from collections.abc import Mapping
from typing import Any

SPEED = "train/images_per_second"
SUMMARY = {  # name -> key of a row of the table of rounds
    "final/sparsity": "sparsity",
    "final/compression": "compression",
    "final/speedup": "speedup",
    "final/change": "delta",
}


def points(row: Mapping[str, Any]) -> dict[str, float]:
    """Name -> number of everything in a row that is one.

    Names are `train/loss`, `train/lr`, `valid/top1`, `test/top1`, `pruned/top1` (right after pruning), each
    also with `top5` and `loss`; `<metric>/<key>`; `phase/<key>` and `auxiliary/<key>`, from the table of
    rounds without what has curves of its own; and `sparsity`, at epoch ends and pruning events. Lists, such
    as those layer by layer, are left to metrics.jsonl.
    """
    kind = row["kind"]
    place = {"kind", "phase", "cycle", "step", "total", "epoch", "sparsity", "split", "when", "metric"}
    own = {k: v for k, v in row.items() if k not in place}
    if kind in ("train", "prune"):
        prefix = {"train": "train", "prune": "pruned"}[kind]
        return {"sparsity": row["sparsity"], **_numbers(own, prefix)}
    if kind in ("eval", "metric"):
        return _numbers(own, row["split" if kind == "eval" else "metric"])
    return _numbers({k: v for k, v in own["round"].items() if k not in ("test", "pruned")}, kind)


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """Final numbers of a run: `final/top1`, and those of `SUMMARY` that the run has."""
    final = result["final"]
    found = {"final/top1": final["test"]["top1"]}
    return found | {name: final[key] for name, key in SUMMARY.items() if final[key] is not None}


def _numbers(node: Any, prefix: str) -> dict[str, float]:
    if isinstance(node, Mapping):
        parts = [_numbers(value, f"{prefix}/{key}") for key, value in node.items()]
        return {name: value for part in parts for name, value in part.items()}
    number = isinstance(node, int | float) and not isinstance(node, bool)
    return {prefix: node} if number else {}
