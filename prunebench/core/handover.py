"""The optimizer's state on its way from one phase to the next, with the weights that it belongs to."""

from typing import Any

import torch
from torch import Tensor

NAME = "optimizer state"  # of the snapshot


@torch.no_grad()
def take_state(run: Any) -> None:
    """Put the optimizer's state among the snapshots, at the size of the whole network.

    Entries of channels that have been cut out for training are 0, as are those of pruned weights.
    """
    whole, kept = dict(run.model.named_parameters()), {}
    for name, p in run.trained.named_parameters():
        for key, value in run.optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                of_weights = value.shape == p.shape and run.shrunk is not None
                kept[f"{name}/{key}"] = (
                    run.shrunk.whole(name, value, whole[name]) if of_weights else value.clone()
                )
    run.snapshots[NAME] = kept


@torch.no_grad()
def give_state(run: Any) -> None:
    """Hand what `take_state` took to the optimizer of the phase that begins, if anything was taken.

    State of weights that are gone is dropped. Tensors that the optimizer has already stay where they are,
    since captured CUDA graphs read their addresses.
    """
    taken = run.snapshots.pop(NAME, {})
    whole, small = dict(run.model.named_parameters()), dict(run.trained.named_parameters())
    for place, value in taken.items():
        name, _, key = place.rpartition("/")
        if run.shrunk is not None and value.shape == whole[name].shape:
            value = run.shrunk.part(name, value)
        p = small[name]
        state = run.optimizer.state[p]
        if key in state:
            state[key].copy_(value)
        elif value.shape == p.shape:  # in the parameter's memory format
            state[key] = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)
        else:
            state[key] = value
    if taken and run.shrunk is None:
        run.masks.zero_optimizer_(run.model, run.optimizer)
