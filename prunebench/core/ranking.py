"""Masks of the highest scores for methods that rank anew again and again while they train."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from prunebench.core.masks import Masks
from prunebench.core.selection import layer_counts, select

Allocation = Literal["global", "uniform"]


@torch.no_grad()
def ranked(scores: Mapping[str, Tensor], sparsity: float, *, allocation: Allocation = "global") -> Masks:
    """Masks that keep exactly round((1 - sparsity) * N) entries of the highest scores; any may return.

    The same masks as `select` gives, but on CUDA nothing here waits for the device. Among equal scores the
    lower flat index stays, layers in the order of `scores`.

    Args:
      scores: parameter name -> score of the parameter's shape, higher = keep. On CUDA a NaN counts as the
        highest score (looking for one would wait); on a CPU it raises.
      sparsity: share to remove of all entries, in [0, 1).
      allocation: "global", one ranking of all entries, or "uniform", the same sparsity in every layer.

    Raises:
      ValueError: if a score is NaN (CPU) or the sparsity is out of range.
    """
    if next(iter(scores.values())).device.type == "cpu":
        return select(scores, sparsity, allocation=allocation)
    return _sorted(scores, sparsity, allocation)


def _sorted(scores: Mapping[str, Tensor], sparsity: float, allocation: Allocation) -> Masks:
    """By a stable sort, which leaves equal scores in the order of their places."""
    sizes = {n: s.numel() for n, s in scores.items()}
    if allocation == "global":
        keep = round((1 - sparsity) * sum(sizes.values()))
        flat = _first(torch.cat([s.reshape(-1) for s in scores.values()]), keep)
        parts, kept = dict(zip(scores, flat.split(list(sizes.values())))), keep
    else:
        kept = layer_counts({n: tuple(s.shape) for n, s in scores.items()}, sizes, sparsity, allocation)
        parts = {n: _first(s.reshape(-1), kept[n]) for n, s in scores.items()}
    masks = {
        n: torch.empty_like(s, dtype=torch.bool).copy_(parts[n].view(s.shape)) for n, s in scores.items()
    }
    return Masks(masks, kept=kept)


def _first(scores: Tensor, keep: int) -> Tensor:
    """Bool tensor with the `keep` highest of one dimension."""
    order = torch.sort(scores, descending=True, stable=True).indices[:keep]
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order, True)
