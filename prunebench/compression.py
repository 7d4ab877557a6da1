"""A target given as compression of the whole model, the way ShrinkBench gives it (arXiv 2003.03033).

Compression is T / N with T all parameters of the network and N those kept, so with P prunable weights a
target c leaves the share (T/c - (T - P)) / P of these (pruning/utils.py:141-164 of JJGO/shrinkbench). The
network has to be known for that; every protocol with a `target` gets the sparsity in its place. Different
from that code: the count is exact, and biases are not among the prunable.
"""

import math
from collections.abc import Mapping
from typing import Any


def sparsity_of(compression: float, total: int, prunable: int) -> float:
    """Share of the prunable weights to remove for a compression of the whole model.

    T/c is rounded to a whole number of parameters, so that the sparsity is reached to the weight.

    Args:
      compression: c, parameters over kept parameters, at least 1; 1 removes nothing.
      total: T, all parameters of the network: weights, biases, normalisation, what is excluded from pruning.
      prunable: P, those that masks cover, in [1, T].

    Returns:
      Sparsity in [0, 1); at least one weight is kept.

    Raises:
      ValueError: if the compression is below 1 or beyond what the other parameters allow.
    """
    if not 1.0 <= compression < math.inf:
        raise ValueError(f"sparsity.compression={compression:g}: must be 1 (nothing removed) or more")
    keep = round(total / compression) - (total - prunable)
    if keep < 1:
        raise ValueError(
            f"sparsity.compression={compression:g}: must be at most {_largest(total, prunable)} for this "
            f"network, {total - prunable:,} of whose {total:,} parameters are never pruned"
        )
    return 1.0 - keep / prunable


def target_of(cfg: Mapping[str, Any], run: Any, granularity: str) -> float | None:
    """The sparsity that the configuration asks for by `sparsity.compression`; None where it does not.

    Args:
      cfg: the resolved configuration.
      run: its model and masks say what there is and what is prunable.
      granularity: of the method.

    Raises:
      ValueError: if another target is given too, or single weights are not what is pruned; and as
        `sparsity_of`.
    """
    protocol, compression = cfg["protocol"], cfg["sparsity"]["compression"]
    if compression is None or "target" not in protocol:
        return None
    if granularity != "weight":
        raise ValueError(
            f"sparsity.compression={compression:g}: counts weights, sparsity.granularity={granularity} "
            "prunes others; give sparsity.target instead, or use sparsity.granularity=weight"
        )
    for key in ("target", "rate"):
        if protocol.get(key) is not None:
            given = f"sparsity.{key}={protocol[key]} sparsity.compression={compression:g}"
            raise ValueError(f"{given}: exactly one must be given; set the other to null")
    return sparsity_of(compression, *_sizes(run))


def with_target(protocol: Mapping[str, Any], target: float | None) -> dict[str, Any]:
    """The protocol's configuration with the sparsity that a compression asks for, if one does."""
    return dict(protocol) if target is None else dict(protocol) | {"target": target}


def provisional(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's configuration with a target of 0 where the network will say what it is."""
    protocol = cfg["protocol"]
    waits = "target" in protocol and protocol["target"] is None and protocol.get("rate") is None
    return with_target(protocol, 0.0 if waits and cfg["sparsity"]["compression"] is not None else None)


def unless(given: Any, otherwise: Any) -> Any:
    """`${unless:${a},b}` is null where `a` is given, else b: the default of an option that `a` stands for."""
    return otherwise if given is None else None


def told(compression: float, run: Any) -> str:
    """What is shown of an asked compression before the run."""
    total, prunable = _sizes(run)
    keep = round(total / compression)
    return (
        f"{compression:g} asked, of the whole model: {keep:,} of {total:,} parameters stay, "
        f"{total - prunable:,} of them not prunable; at most {_largest(total, prunable)}"
    )


def _sizes(run: Any) -> tuple[int, int]:
    return sum(p.numel() for p in run.model.parameters()), run.masks.total


def _largest(total: int, prunable: int) -> str:
    """The largest compression, which keeps one weight, rounded down to two decimals."""
    return f"{math.floor(100 * total / (total - prunable + 1)) / 100:.12g}"
