"""Sparse from the first step: a random mask drawn before training, with exact counts in every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from prunebench.core.allocation import resolve_layers
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.selection import layer_counts, select


def sparse_start(phases: list[Phase]) -> list[Phase]:
    """The plan whose phases that prune while they train begin with the sparsity that they are to reach.

    Raises:
      ValueError: if no sparsity is asked for.
    """
    if any(p.within and p.reach is None for p in phases):
        raise ValueError("sparsity.target=null: must be a number, the sparsity that training begins with")
    return [replace(p, sparsity=p.reach) if p.within else p for p in phases]


def check_span(begin: float, until: float, min_kept: int) -> None:
    """Refuse options of methods whose masks change between two shares of training.

    Raises:
      ValueError: unless 0 <= begin < until <= 1 and min_kept is not negative.
    """
    if not 0 <= begin < 1:
        raise ValueError(f"begin={begin}: must lie in [0, 1), a share of training")
    if not begin < until <= 1:
        raise ValueError(f"until={until}: must lie in (begin={begin}, 1], a share of training")
    if min_kept < 0:
        raise ValueError(f"sparsity.min_kept={min_kept}: must be 0 or more")


def check_start(run: Run, asked: Sequence[float], allocation: Any, min_kept: int) -> None:
    """Refuse a random mask that cannot be drawn.

    Raises:
      ValueError: if the allocation needs scores, cannot give the sparsity, or empties a layer.
    """
    if allocation in ("global", "lamp"):
        raise ValueError(
            f"sparsity.allocation={allocation}: ranks layers against each other by score, and there is none "
            "before training; use erk, er, uniform, uniform_plus or {pattern: sparsity}"
        )
    for sparsity in asked:
        check_counts(run, sparsity, allocation, min_kept)


def check_counts(run: Run, sparsity: float, allocation: Any, min_kept: int) -> None:
    """Refuse a sparsity that an allocation over layers cannot give to one weight.

    Raises:
      ValueError: naming the way out.
    """
    shapes = {n: tuple(m.shape) for n, m in run.masks.items()}
    sizes, total = {n: m.numel() for n, m in run.masks.items()}, run.masks.total
    counts = layer_counts(shapes, sizes, sparsity, resolved(run, allocation), min_kept=min_kept)
    if (kept := sum(counts.values())) != round((1 - sparsity) * total):
        raise ValueError(
            f"sparsity.allocation={allocation}: leaves {kept} of {total} weights; set sparsity.target to "
            f"{1 - kept / total!r}"
        )


def draw_masks(run: Run, sparsity: float, allocation: Any, min_kept: int) -> None:
    """Set masks whose zeros lie at random in every layer (google-research/rigl, sparse_utils.py).

    The weights keep their dense initial values, without rescaling, as in the authors' code. Drawn on the CPU,
    the same on every device and process.
    """
    rng = run.rng("sparse start")
    scores = {n: torch.rand(m.shape, generator=rng).to(m.device) for n, m in run.masks.items()}
    run.set_masks(select(scores, sparsity, allocation=resolved(run, allocation), min_kept=min_kept))


def resolved(run: Run, allocation: Any) -> Any:
    """The allocation with patterns resolved to this network's layers."""
    if isinstance(allocation, Mapping):
        return resolve_layers("allocation", allocation, list(run.masks), run.model)
    return allocation
