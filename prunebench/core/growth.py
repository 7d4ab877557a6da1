"""Dropping and growing single weights of a layer while it trains: exact counts, a stated tie rule, no waits.

Weights and scores are compared by size, |x|. Among equal sizes the lower flat index (logical order, whatever
the memory format) stays when dropping and comes first when growing. NaN counts as the largest.
"""

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def drop_smallest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """A mask with the `count` kept entries of smallest |values| taken out.

    Args:
      values: any shape.
      mask: bool of that shape; an entry with False is not considered.
      count: in [0, number of True entries].

    Returns:
      A new bool tensor of the mask's shape and memory format.
    """
    if values.device.type != "cpu":
        return mask & ~_by_sorting(values, mask, count, largest=False)
    result, last = torch.empty_like(mask).copy_(mask), _is_channels_last(mask)
    flat = _in_order(result, last)
    places = np.flatnonzero(flat)
    sizes = np.abs(_in_order(values, last)[places])
    flat[places[_chosen(sizes, places, count, mask, last, largest=False)]] = False
    return result


@torch.no_grad()
def grow_largest(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """A mask with the `count` entries of largest |scores| among those with False added.

    Args:
      scores: any shape.
      mask: bool of that shape; an entry with True is not considered.
      count: in [0, number of False entries].

    Returns:
      A new bool tensor of the mask's shape and memory format.
    """
    if scores.device.type != "cpu":
        return mask | _by_sorting(scores, ~mask, count, largest=True)
    result, last = torch.empty_like(mask).copy_(mask), _is_channels_last(mask)
    flat = _in_order(result, last)
    if not count:
        return result
    sizes = np.abs(_in_order(scores, last))
    # Only what reaches a bound that a sample gives is partitioned: twice as fast as all that is free.
    places = np.flatnonzero(~((sizes < _bound(sizes, flat, count)) | flat))
    if places.size < count:
        places = np.flatnonzero(~flat)
    flat[places[_chosen(sizes[places], places, count, mask, last, largest=True)]] = True
    return result


def _bound(sizes: np.ndarray, taken: np.ndarray, count: int) -> float:
    """A value that some 1.5 times `count` of the sizes not taken reach, by a sample; else -inf."""
    step = max(1, sizes.size // 4096)
    sample = np.sort(sizes[::step][~taken[::step]])
    index = sample.size - int(1.5 * count / step + 16)
    return sample[index] if index > 0 and not np.isnan(sample[index]) else -np.inf


def _chosen(
    sizes: np.ndarray, places: np.ndarray, count: int, mask: Tensor, last: bool, *, largest: bool
) -> np.ndarray:
    """Indices into `sizes` of exactly `count` smallest or largest ones.

    Args:
      sizes: not negative.
      places: where they lie in the mask's memory order.
    """
    if count <= 0:
        return np.empty(0, np.int64)
    if np.isnan(sizes.sum()):
        sizes = np.where(np.isnan(sizes), np.inf, sizes)
    index = sizes.size - count if largest else count - 1
    edge = np.partition(sizes, index)[index]
    beyond = np.flatnonzero(sizes > edge if largest else sizes < edge)
    tied = np.flatnonzero(sizes == edge)
    need = count - beyond.size
    if need < tied.size:
        order = np.argsort(_logical(places[tied], mask, last))
        tied = tied[order[:need] if largest else order[tied.size - need :]]
    return np.concatenate([beyond, tied])


def _by_sorting(values: Tensor, among: Tensor, count: int, *, largest: bool) -> Tensor:
    """Bool tensor with exactly `count` entries of `among`; nothing here waits for the device."""
    sizes = values.abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    keys = (sizes if largest else -sizes).masked_fill(~among, -torch.inf).reshape(-1)  # logical order
    # of equal keys the first come first; an infinite size must still come before what is not asked about
    keys = torch.where(among.reshape(-1), keys.clamp(min=-torch.finfo(keys.dtype).max), keys)
    if largest:
        order = torch.sort(keys, descending=True, stable=True).indices[:count]
    else:  # of equal ones the last go
        order = keys.numel() - 1 - torch.sort(keys.flip(0), descending=True, stable=True).indices[:count]
    chosen = torch.zeros_like(keys, dtype=torch.bool).index_fill_(0, order, True).view(among.shape)
    return torch.empty_like(among).copy_(chosen)


def _logical(places: np.ndarray, mask: Tensor, last: bool) -> np.ndarray:
    """Flat indices in logical order of places in memory order."""
    if not last:
        return places
    n, c, h, w = mask.shape
    i, y, x, j = np.unravel_index(places, (n, h, w, c))
    return np.ravel_multi_index((i, j, y, x), (n, c, h, w))


def _is_channels_last(t: Tensor) -> bool:
    return t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _in_order(t: Tensor, last: bool) -> np.ndarray:
    """One-dimensional array in channels_last or in logical order; a view where the tensor lies so."""
    return (t.detach().permute(0, 2, 3, 1) if last else t.detach()).reshape(-1).numpy()
