"""Channels that live or die together, and the smaller network that they leave behind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.core.masks import Masks
from prunebench.core.selection import Allocation, select


@dataclass(frozen=True)
class Unit:
    """Channels that live or die together: one layer's output, or a whole residual stream.

    A dimension of size `size * k` holds k consecutive entries of each channel (a flattened k-pixel map, say).

    Attributes:
      name: unique in the model.
      size: number of channels.
      made_by: (state_dict name, dim) that produce the channels: convolution rows, BatchNorm entries, biases.
      used_by: (state_dict name, dim) that read them: the columns of the next layers.
    """

    name: str
    size: int
    made_by: tuple[tuple[str, int], ...]
    used_by: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Junction:
    """Channels on their way from the layers that write them to the layers that read them.

    Unlike a `Unit` it names only the layers next to it: a residual stream is a junction before every block
    and one at its end. It exists whether or not its channels can be removed. Poolings, normalisation and
    nonlinearities lie in it.

    Attributes:
      made_by: names of the weights whose rows (dim 0) write the channels, at least one.
      used_by: names of the weights whose columns (dim 1) read them, k consecutive ones per channel where a
        k-pixel map was flattened.
      shortcut_in: first channel and end of those that an identity shortcut adds to; (0, 0) for none.
      shortcut_out: whether an identity shortcut reads the channels, too.
    """

    made_by: tuple[str, ...]
    used_by: tuple[str, ...]
    shortcut_in: tuple[int, int] = (0, 0)
    shortcut_out: bool = False


class PrunableModel(nn.Module):
    """Contract of every model family of ours.

    Nonlinearities and shortcuts are modules, one instance per use, so that methods can hook them.
    """

    head: str
    """Module name of the classifier."""
    widths: dict[str, int]
    """Unit name -> channels of this network."""

    def units(self) -> list[Unit]:
        """Every group of channels that can be removed; the logits are in none."""
        raise NotImplementedError

    def with_widths(self, widths: dict[str, int]) -> "PrunableModel":
        """A fresh network of the same family and options with other numbers of channels."""
        raise NotImplementedError

    def junctions(self) -> list[Junction]:
        """Every place between two layers, for scores that look at a layer's neighbours.

        The default reads them off the units of a chain, where every unit lies between two layers.

        Raises:
          ValueError: if the network is no chain and does not say which layers are neighbours.
        """
        weights, found = {n for n, p in self.named_parameters() if p.ndim > 1}, []
        for unit in self.units():
            made, used = (
                tuple(n for n, _ in entries if n in weights) for entries in (unit.made_by, unit.used_by)
            )
            if len(made) != 1 or len(used) != 1:
                raise ValueError(f"{type(self).__name__} does not say which of its layers are neighbours")
            found.append(Junction(made, used))
        return found


def prunable_names(model: nn.Module, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the weights of all convolutions and linear layers, the first and the classifier included.

    Biases, normalisation, embeddings and tokens are never pruned.

    Args:
      model: any module.
      exclude: fnmatch patterns on parameter or module names that stay dense ("head" stands for the model's
        classifier, whatever its name).

    Raises:
      ValueError: if a pattern matches nothing, or no weight is left to prune.
    """
    modules = {
        f"{n}.weight": n
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    }
    known = {n for n, p in model.named_parameters()}
    names = [n for n in modules if n in known]
    for pattern in exclude:
        wanted = getattr(model, "head", pattern) if pattern == "head" else pattern
        dropped = [n for n in names if fnmatchcase(n, wanted) or fnmatchcase(modules[n], wanted)]
        if not dropped:
            raise ValueError(
                f"sparsity.exclude={pattern}: matches no convolution or linear layer of this model, "
                f"such as {names[0]}"
            )
        names = [n for n in names if n not in dropped]
    if not names:
        raise ValueError(f"sparsity.exclude={list(exclude)}: leaves nothing to prune")
    return names


def model_units(
    model: nn.Module, granularity: Literal["filter", "neuron"], names: Iterable[str]
) -> list[Unit]:
    """Units that the granularity covers: made by a convolution ("filter"), or any ("neuron").

    A unit all of whose weights are excluded from pruning is left out.

    Raises:
      ValueError: if the model declares no such units.
    """
    declared = getattr(model, "units", None)
    units = declared() if callable(declared) else []
    params, names = dict(model.named_parameters()), set(names)
    units = [u for u in units if all(n in names for n, _ in u.made_by if n in params and params[n].ndim > 1)]
    if granularity == "filter":
        units = [u for u in units if any(n in params and params[n].ndim == 4 for n, _ in u.made_by)]
    if not units:
        raise ValueError(
            f"sparsity.granularity={granularity}: {type(model).__name__} declares no {granularity}s that "
            "can be removed; use sparsity.granularity=weight"
            + (" or neuron" if granularity == "filter" else "")
        )
    return units


def _broadcast(channels: Tensor, tensor: Tensor, dim: int, size: int) -> Tensor:
    """Values of channels shaped to multiply `tensor` along `dim`."""
    per_channel = tensor.shape[dim] // size
    shape = [1] * tensor.ndim
    shape[dim] = tensor.shape[dim]
    return channels.to(tensor.device).repeat_interleave(per_channel).view(shape)


def unit_scores(scores: Mapping[str, Tensor], units: Sequence[Unit]) -> dict[str, Tensor]:
    """Unit name -> score of each channel: the sum over all weights that make it."""
    result = {}
    for unit in units:
        total = None
        for name, dim in unit.made_by:
            if name in scores:
                s = scores[name] if scores[name].dtype == torch.float64 else scores[name].float()
                s = s.movedim(dim, 0).reshape(unit.size, -1).sum(1)
                total = s if total is None else total + s
        result[unit.name] = total
    return result


def spread_over_weights(
    channels: Mapping[str, Tensor], weights: Mapping[str, Tensor], units: Sequence[Unit]
) -> dict[str, Tensor]:
    """Scores of weights whose `unit_scores` are `channels`: a channel's is shared evenly by what makes it.

    Args:
      channels: unit name -> score of each channel.
      weights: parameter name -> tensor; those that make no channel of the units are left out.
      units: every weight makes channels of at most one.

    Returns:
      parameter name -> score of the parameter's shape.
    """
    result = {}
    for unit in units:
        entries = [(n, dim) for n, dim in unit.made_by if n in weights]
        count = sum(weights[n].numel() for n, _ in entries) // unit.size
        for name, dim in entries:
            share = _broadcast(channels[unit.name] / count, weights[name], dim, unit.size)
            result[name] = share.expand_as(weights[name]).clone()
    return result


def alive_channels(masks: Mapping[str, Tensor], units: Sequence[Unit]) -> dict[str, Tensor]:
    """Unit name -> bool tensor: channels with at least one kept weight that makes them."""
    result = {}
    for unit in units:
        alive = None
        for name, dim in unit.made_by:
            if name in masks:
                a = masks[name].movedim(dim, 0).reshape(unit.size, -1).any(1)
                alive = a if alive is None else alive | a
        result[unit.name] = alive
    return result


def select_units(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    units: Sequence[Unit],
    allocation: str | Allocation | Mapping[str, float] = "uniform",
    previous: Masks | None = None,
    min_kept: int = 1,
) -> dict[str, Tensor]:
    """Channels to keep: unit name -> bool tensor with round((1 - sparsity) * N) entries True over all units.

    The score of a channel is its own, or the sum over all weights that make it, in every layer of its unit.

    Args:
      scores: parameter name -> score of the parameter's shape, or unit name -> score of each channel.
      sparsity: share of the channels to remove, in [0, 1).
      units: from `model_units`.
      allocation: "global", "lamp", "uniform", a function, or the sparsity of every unit.
      previous: masks whose dead channels never return.
      min_kept: channels that every unit keeps, at least 1.

    Raises:
      ValueError: as `select`; or for an allocation that is defined on weights only (er, erk, uniform_plus).
    """
    if allocation in ("er", "erk", "uniform_plus"):
        raise ValueError(
            f"sparsity.allocation={allocation}: is defined on weights; with filters or neurons use uniform, "
            "global or lamp"
        )
    own = all(unit.name in scores for unit in units)
    channels = {unit.name: scores[unit.name] for unit in units} if own else unit_scores(scores, units)
    before = None if previous is None else Masks(alive_channels(previous, units))
    masks = select(channels, sparsity, allocation=allocation, previous=before, min_kept=max(1, min_kept))
    return dict(masks)


def unit_masks(model: nn.Module, alive: Mapping[str, Tensor], prunable: Iterable[str]) -> Masks:
    """Masks of the weights that make or read a pruned channel; what else belongs to it is tied, not counted.

    A dead channel is 0 everywhere (weights, bias, BatchNorm scale and shift), so the weights that read it
    have no effect; they are masked too, and the counts are those of the physically smaller network.
    """
    params = dict(model.named_parameters())
    full = {n: torch.ones_like(p, dtype=torch.bool) for n, p in params.items()}
    for unit in model.units():
        if unit.name in alive:
            for name, dim in unit.made_by + unit.used_by:
                if name in params:
                    full[name] &= _broadcast(alive[unit.name], params[name], dim, unit.size)
    prunable = list(prunable)
    tied = {n: m for n, m in full.items() if n not in prunable and not bool(m.all())}
    return Masks({n: full[n] for n in prunable}, tied)


def compact(model: PrunableModel, alive: Mapping[str, Tensor]) -> PrunableModel:
    """The same function as the masked `model`, in eval mode, with the dead channels gone.

    Args:
      model: network whose dead channels are 0, as `unit_masks` leaves them.
      alive: unit name -> bool tensor of the channels that stay; units not named keep all.

    Returns:
      A new network on the model's device; its outputs equal the masked ones up to float rounding.
    """
    device = next(model.parameters()).device
    small = model.with_widths({n: int(torch.count_nonzero(a)) for n, a in alive.items()}).to(device)
    state = {k: v.detach() for k, v in model.state_dict().items()}
    for unit in model.units():
        if unit.name in alive:
            for name, dim in unit.made_by + unit.used_by:
                per_channel = model.state_dict()[name].shape[dim] // unit.size
                keep = alive[unit.name].to(device).repeat_interleave(per_channel).nonzero().flatten()
                state[name] = state[name].index_select(dim, keep)
    small.load_state_dict(state)
    return small.train(model.training)
