"""Scores to masks: exact counts, a stated tie rule, and no way back for a pruned weight."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunebench.core.allocation import ALLOCATIONS, floors, lamp_scores, normalized, spread, within_alive
from prunebench.core.masks import Masks

Allocation = Callable[[Mapping[str, tuple[int, ...]], float], dict[str, float]]
"""(shapes, sparsity) -> sparsity of each layer."""


class NanScores(ValueError):
    """A criterion returned NaN."""

    def __init__(self) -> None:
        super().__init__("score: a criterion returned NaN; check the loss and the learning rate")


def topk_mask(scores: Tensor, keep: int) -> Tensor:
    """Bool mask of exactly `keep` highest scores.

    Args:
      scores: any shape; -inf marks entries that must go. NaN raises.
      keep: entries to keep, in [0, scores.numel()].

    Returns:
      bool tensor of `scores.shape`. Among equal scores the lower flat index stays.

    Raises:
      ValueError: if a score is NaN or `keep` is out of range.
    """
    return _keep_highest([scores], keep, [None])[0]


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    allocation: str | Allocation | Mapping[str, float] = "global",
    granularity: Literal["weight", "kernel"] = "weight",
    previous: Masks | None = None,
    min_kept: int = 0,
    max_ratio: float | None = None,
    normalizer: Literal["none", "mean", "max"] = "none",
) -> Masks:
    """Masks that keep round((1 - sparsity) * N) entries of the highest scores.

    Ties: the lower flat index stays, layers in the order of `scores`, whatever the device and memory format.
    An allocation over layers keeps the same total: each layer gets its share rounded down or up
    (largest remainder first). Filters and neurons are chosen by `prunebench.core.units.select_units`.

    Args:
      scores: parameter name -> score of the parameter's shape, higher = keep.
      sparsity: share to remove of all entries, not of those still alive, in [0, 1).
      allocation: "global" (one ranking), "lamp" (one ranking of LAMP scores, arXiv 2010.07611 eq. 2),
        "uniform", "uniform_plus", "er", "erk" (see `prunebench.core.allocation`), a function of the shapes,
        or the sparsity of every layer.
      granularity: "weight", or "kernel": the kh x kw slice of one input channel in one filter, whose score
        is the sum of its weights' scores; a linear weight is a kernel of its own.
      previous: pruned entries of these masks never return; without it they may.
      min_kept: floor of every layer, in entries. A global ranking first keeps that many in each layer.
      max_ratio: largest share that a global ranking removes of any layer, in (0, 1]; None for 1.
      normalizer: what the scores of a layer are divided by before a global ranking, see
        `prunebench.core.allocation.normalized`.

    Raises:
      ValueError: if a score is NaN, or the sparsity cannot be reached: more weights asked for than are
        alive, or a layer would fall below `min_kept` or lose more than `max_ratio`.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity.target={sparsity}: must lie in [0, 1)")
    groups = {n: _reduce(s, granularity) for n, s in scores.items()}
    alive = {n: None if previous is None else _reduce_mask(previous[n], granularity) for n in groups}
    total = sum(g.numel() for g in groups.values())
    keep = round((1 - sparsity) * total)
    if allocation in ("global", "lamp"):
        if allocation == "lamp":
            groups = {n: lamp_scores(g, alive[n]) for n, g in groups.items()}
        elif normalizer != "none":
            groups = {n: normalized(g, alive[n], by=normalizer) for n, g in groups.items()}
        kept = _global(groups, keep, alive, min_kept, max_ratio, sparsity)
    else:
        shapes = {n: tuple(scores[n].shape) for n in groups}
        sizes = {n: g.numel() for n, g in groups.items()}
        counts = layer_counts(shapes, sizes, sparsity, allocation, min_kept=min_kept)
        if previous is not None:
            counts = within_alive(counts, {n: int(torch.count_nonzero(a)) for n, a in alive.items()})
        kept = {n: _keep_highest([g], counts[n], [alive[n]])[0] for n, g in groups.items()}
    return Masks({n: _expand(m, scores[n]) for n, m in kept.items()})


def layer_counts(
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    sparsity: float,
    allocation: str | Allocation | Mapping[str, float],
    *,
    min_kept: int = 0,
) -> dict[str, int]:
    """Entries that each layer keeps; they add up to round((1 - sparsity) * N) to the entry.

    Args:
      shapes: parameter name -> weight shape (out, in, ...), which ER and ERK read.
      sizes: parameter name -> number of entries to choose among (weights, kernels or channels).

    Raises:
      ValueError: if the allocation cannot reach the sparsity, or a layer falls below `min_kept`.
    """
    if isinstance(allocation, Mapping):
        if missing := sorted(set(sizes) - set(allocation)):
            raise ValueError(
                f"sparsity.allocation={dict(allocation)}: gives no sparsity for layer {missing[0]}"
            )
        if wrong := [n for n in sizes if not 0 <= allocation[n] <= 1]:
            value = allocation[wrong[0]]
            raise ValueError(f"sparsity.allocation: {value} for layer {wrong[0]}: must lie in [0, 1]")
        counts = {n: round((1 - allocation[n]) * size) for n, size in sizes.items()}
    else:
        rule = ALLOCATIONS.get(allocation) if isinstance(allocation, str) else allocation
        if rule is None:
            options = ", ".join(["global", "lamp", *ALLOCATIONS])
            raise ValueError(f"sparsity.allocation={allocation}: must be one of {options}")
        counts = spread(rule(shapes, sparsity), sizes, sparsity)
    for name, count in counts.items():
        if count < min_kept:
            raise ValueError(
                f"sparsity.min_kept={min_kept}: is more than layer {name} keeps at sparsity {sparsity:.12g}, "
                f"{count} of {sizes[name]} entries; lower the sparsity or min_kept, or exclude the layer"
            )
    return counts


def _global(
    groups: dict[str, Tensor],
    keep: int,
    alive: dict[str, Tensor | None],
    min_kept: int,
    max_ratio: float | None,
    sparsity: float,
) -> dict[str, Tensor]:
    """One ranking over all layers; layers that would fall below the floor get their best entries back."""
    names = list(groups)
    least = floors({n: g.numel() for n, g in groups.items()}, min_kept, max_ratio)
    for name, there in alive.items():
        if there is not None and least[name]:
            least[name] = min(least[name], int(torch.count_nonzero(there)))
    if keep < sum(least.values()):
        key, way_out = f"min_kept={min_kept}", "min_kept"
        if max_ratio is not None:
            key, way_out = f"max_ratio={max_ratio}", "raise max_ratio"
        raise ValueError(
            f"sparsity.{key}: needs {sum(least.values())} entries in {len(names)} layers, "
            f"sparsity {sparsity:.12g} keeps {keep}; lower the sparsity or {way_out}"
        )
    masks = dict(zip(names, _keep_highest(list(groups.values()), keep, [alive[n] for n in names])))
    free = [n for n in names if least[n]]
    while short := [n for n in free if _holds_fewer(masks[n], least[n])]:
        # What they get back is taken from the lowest that the other layers keep.
        for n in short:
            masks[n] = _keep_highest([groups[n]], least[n], [alive[n]])[0]
        free = [n for n in free if n not in short]
        left = keep - sum(least[n] for n in names if n not in free)
        masks |= zip(free, _keep_highest([groups[n] for n in free], left, [masks[n] for n in free]))
    return masks


def _holds_fewer(mask: Tensor, floor: int) -> bool:
    """Whether fewer than `floor` entries are True; for the usual floor of 1 the first one settles it."""
    first = mask.flatten()[:1000] if mask.is_contiguous() else mask[:1]
    if floor <= 1 and bool(first.any()):
        return False
    return int(torch.count_nonzero(mask)) < floor


def _reduce(score: Tensor, granularity: str) -> Tensor:
    """Score of each entry: the weights themselves, or sums over kernels."""
    score = score if score.dtype in (torch.float32, torch.float64) else score.float()
    if granularity == "weight":
        return score
    if granularity == "kernel":
        return score.flatten(2).sum(2) if score.ndim > 2 else score
    raise ValueError(f"sparsity.granularity={granularity}: must be weight or kernel here")


def _reduce_mask(mask: Tensor, granularity: str) -> Tensor:
    return mask.flatten(2).any(2) if granularity == "kernel" and mask.ndim > 2 else mask


def _expand(mask: Tensor, score: Tensor) -> Tensor:
    """Mask of entries as a mask of weights."""
    if mask.shape == score.shape:
        return mask
    return mask.view(mask.shape + (1,) * (score.ndim - mask.ndim)).expand_as(score).clone()


@torch.no_grad()
def _keep_highest(groups: Sequence[Tensor], keep: int, alive: Sequence[Tensor | None]) -> list[Tensor]:
    """One bool tensor per group: exactly `keep` alive entries, of the highest scores over all groups."""
    counts = [g.numel() if a is None else int(torch.count_nonzero(a)) for g, a in zip(groups, alive)]
    if not 0 <= keep <= sum(counts):
        raise ValueError(f"keep={keep}: must lie in [0, {sum(counts)}], the number of entries that are alive")
    if keep == 0:
        if any(bool(g.isnan().any()) for g in groups):
            raise NanScores
        return [torch.zeros_like(g, dtype=torch.bool) for g in groups]
    threshold, ties, equal = _threshold(groups, keep, alive, counts)
    compare = torch.ge if ties == equal else torch.gt
    masks = [compare(g, threshold) for g in groups]
    if ties != equal:
        for g, a, mask in zip(groups, alive, masks):
            tied = (g == threshold) if a is None else (g == threshold) & a
            if (count := int(torch.count_nonzero(tied))) <= ties:
                mask |= tied
                ties -= count
            else:
                first = tied.flatten().nonzero()[:ties, 0]  # flat index, whatever the memory format
                mask[torch.unravel_index(first, mask.shape)] = True
                ties = 0
            if ties == 0:
                break
    return [mask if a is None else mask.logical_and_(a) for mask, a in zip(masks, alive)]


def _threshold(
    groups: Sequence[Tensor], keep: int, alive: Sequence[Tensor | None], counts: list[int]
) -> tuple[float, int, int]:
    """The keep-th highest alive score, how many entries equal to it are kept, and how many there are."""
    survivors = sum(counts)
    if groups[0].device.type == "cpu":
        values = _survivors(groups, alive, counts)
        if np.isnan(values.max()):
            raise NanScores
        value, above, equal = _order_statistic(values, survivors - keep)
    else:
        parts = [g.flatten() if a is None else g[a] for g, a in zip(groups, alive)]
        values = torch.sort(torch.cat(parts)).values  # kthvalue is 20 times slower on CUDA, topk sorts too
        if bool(values[-1].isnan()):
            raise NanScores
        value = values[survivors - keep]
        above, equal = int((values > value).sum()), int((values == value).sum())
    return float(value), keep - int(above), int(equal)


def _survivors(groups: Sequence[Tensor], alive: Sequence[Tensor | None], counts: list[int]) -> np.ndarray:
    """Alive scores in one array, in no particular order (memory order costs half of logical order)."""
    dtype = np.float64 if any(g.dtype == torch.float64 for g in groups) else np.float32
    values = np.empty(sum(counts), dtype)
    start = 0
    for g, a, count in zip(groups, alive, counts):
        part = values[start : start + count]
        if _is_channels_last(g):
            g, a = g.permute(0, 2, 3, 1), None if a is None else a.permute(0, 2, 3, 1)
        if a is None or count == g.numel():
            part[:] = g.reshape(-1).numpy()
        else:
            part[:] = np.compress(a.reshape(-1).numpy(), g.reshape(-1).numpy())  # a fifth of the time of g[a]
        start += count
    return values


def _is_channels_last(t: Tensor) -> bool:
    return t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _order_statistic(values: np.ndarray, index: int) -> tuple[float, int, int]:
    """The value at `index` of the sorted array, how many are above it, and how many equal it.

    Quickselect is up to 25 times slower when half the values are equal, so a value that a sample shows to be
    common is settled by counting first. `values` is permuted.
    """
    sample = np.sort(values[:: max(1, values.size // 512)])
    common, repeats = np.unique(sample, return_counts=True)
    most = repeats.argmax()
    if repeats[most] <= sample.size // 8:  # else the value that is wanted, if that is repeated
        most = np.searchsorted(common, sample[index * sample.size // values.size])
    if values.size > 4096 and repeats[most] > 2:
        value = common[most]
        below = np.count_nonzero(values < value)
        if index < below:
            found, above, equal = _order_statistic(np.compress(values < value, values), index)
            return found, above + values.size - below, equal
        equal = np.count_nonzero(values == value)
        if index < below + equal:
            return value, values.size - below - equal, equal
        return _order_statistic(np.compress(values > value, values), index - below - equal)
    values.partition(index)
    value = values[index]
    below, above = np.count_nonzero(values[:index] < value), np.count_nonzero(values[index + 1 :] > value)
    return value, above, values.size - below - above
