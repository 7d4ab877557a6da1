"""Channels that live or die together, and the smaller network that they leave behind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunebench.core.masks import Masks
from prunebench.core.selection import Allocation, select


@dataclass(frozen=True)
class Unit:
    """Channels that live or die together: one layer's output, or a whole residual stream.

    A dimension of size `size * k` holds k consecutive entries of each channel (a flattened k-pixel map, say),
    unless `layout` says otherwise.

    Attributes:
      name: unique in the model.
      size: number of channels.
      made_by: (state_dict name, dim) that produce the channels: convolution rows, BatchNorm entries, biases.
      used_by: (state_dict name, dim) that read them: the columns of the next layers.
      layout: (state_dict name, dim) -> for every position of that dimension the channel that it belongs to,
        or -1 where the position is no channel of this unit (concatenations, heads of a joint projection).
    """

    name: str
    size: int
    made_by: tuple[tuple[str, int], ...]
    used_by: tuple[tuple[str, int], ...]
    layout: Mapping[tuple[str, int], tuple[int, ...]] = field(default_factory=dict, compare=False)

    def places(self, name: str, dim: int, length: int) -> Tensor:
        """int64 [length]: the channel at every position of a dimension, -1 for none."""
        if (name, dim) in self.layout:
            return torch.tensor(self.layout[name, dim])
        return torch.arange(self.size).repeat_interleave(length // self.size)

    def entries(self, tensor: Tensor, name: str, dim: int) -> int:
        """Entries of a tensor that belong to channels of the unit."""
        places = self.places(name, dim, tensor.shape[dim])
        return tensor.numel() // len(places) * int((places >= 0).sum())


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

    def scaled(self, factor: float) -> "PrunableModel":
        """A fresh network with `factor` times the channels in every unit, rounded, at least one."""
        return self.with_widths({n: max(1, round(factor * w)) for n, w in self.widths.items()})

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
    units = model.units() if hasattr(model, "units") else []
    params, names = dict(model.named_parameters()), set(names)
    if granularity == "filter":
        units = [u for u in units if any(n in params and params[n].ndim == 4 for n, _ in u.made_by)]
    none = not units
    units = [u for u in units if all(n in names for n, _ in u.made_by if n in params and params[n].ndim > 1)]
    if not (units or none):
        raise ValueError(f"sparsity.exclude: leaves no {granularity} to prune; exclude less")
    if not units:
        raise ValueError(
            f"sparsity.granularity={granularity}: {type(model).__name__} declares no {granularity}s that "
            f"can be removed; use sparsity.granularity=weight{' or neuron' * (granularity == 'filter')}"
        )
    return units


def _broadcast(channels: Tensor, tensor: Tensor, unit: Unit, entry: tuple[str, int]) -> Tensor:
    """Values of channels shaped to multiply `tensor` along a dimension; 0 (False) where no channel lies."""
    places = unit.places(*entry, tensor.shape[entry[1]]).to(channels.device)
    shape = [-1 if dim == entry[1] else 1 for dim in range(tensor.ndim)]
    return torch.where(places >= 0, channels[places], channels.new_zeros(())).to(tensor.device).view(shape)


def _over_channels(rows: Tensor, unit: Unit, entry: tuple[str, int]) -> Tensor:
    """Sum over what belongs to each channel, bool: whether any is True; dim 0 of `rows` is the entry's."""
    if entry not in unit.layout:
        grouped = rows.reshape(unit.size, -1)
        return grouped.any(1) if rows.dtype == torch.bool else grouped.sum(1)
    places = unit.places(*entry, len(rows)).to(rows.device)
    rows = rows.flatten(1)[places >= 0]
    if rows.dtype == torch.bool:
        alive = torch.zeros(unit.size, dtype=torch.bool, device=rows.device)
        alive[places[places >= 0][rows.any(1)]] = True
        return alive
    return rows.new_zeros(unit.size).index_add_(0, places[places >= 0], rows.sum(1))


def unit_scores(scores: Mapping[str, Tensor], units: Sequence[Unit]) -> dict[str, Tensor]:
    """Unit name -> score of each channel: what `scores` has under that name, or the sum over its weights."""
    result = {}
    for unit in units:
        total = scores.get(unit.name)
        for name, dim in unit.made_by if total is None else ():
            if name in scores:
                s = scores[name] if scores[name].dtype == torch.float64 else scores[name].float()
                s = _over_channels(s.movedim(dim, 0), unit, (name, dim))
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
        count = sum(unit.entries(weights[n], n, dim) for n, dim in entries) // unit.size
        for name, dim in entries:
            share = _broadcast(channels[unit.name] / count, weights[name], unit, (name, dim))
            result[name] = share.expand_as(weights[name]).clone()
    return result


def alive_channels(masks: Mapping[str, Tensor], units: Sequence[Unit]) -> dict[str, Tensor]:
    """Unit name -> bool tensor: channels with at least one kept weight that makes them."""
    result = {}
    for unit in units:
        alive = None
        for name, dim in unit.made_by:
            if name in masks:
                a = _over_channels(masks[name].movedim(dim, 0), unit, (name, dim))
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
    **ranking: Any,
) -> dict[str, Tensor]:
    """Channels to keep: unit name -> bool tensor with round((1 - sparsity) * N) entries True over all units.

    The score of a channel is the sum over all weights that make it, in every layer of its unit.

    Args:
      scores: parameter name -> score of the parameter's shape, or unit name -> score of each channel.
      sparsity: share of the channels to remove, in [0, 1).
      units: from `model_units`.
      allocation: "global", "lamp", "uniform", a function, or the sparsity of every unit.
      previous: masks whose dead channels never return.
      min_kept: channels that every unit keeps, at least 1.
      ranking: `max_ratio` and `normalizer` of `select`.

    Raises:
      ValueError: as `select`; or for an allocation that is defined on weights only (er, erk, uniform_plus).
    """
    if allocation in ("er", "erk", "uniform_plus"):
        raise ValueError(
            f"sparsity.allocation={allocation}: is defined on weights; with filters or neurons use uniform, "
            "global or lamp"
        )
    channels = unit_scores(scores, units)
    before = None if previous is None else Masks(alive_channels(previous, units))
    ranking |= {"allocation": allocation, "previous": before, "min_kept": max(1, min_kept)}
    return dict(select(channels, sparsity, **ranking))


def unit_masks(model: nn.Module, alive: Mapping[str, Tensor], prunable: Iterable[str]) -> Masks:
    """Masks of the weights that make or read a pruned channel; what else belongs to it is tied, not counted.

    A dead channel is 0 everywhere (weights, bias, BatchNorm scale and shift), so the weights that read it
    have no effect; they are masked too, and the counts are those of the physically smaller network.
    """
    params = dict(model.named_parameters())
    factors: dict[str, Tensor] = {}  # what several units say of a tensor, in its few dimensions that matter
    for unit in model.units():
        if unit.name in alive:
            for entry in unit.made_by + unit.used_by:
                if (name := entry[0]) in params:
                    keep = ~_broadcast(~alive[unit.name], params[name], unit, entry)
                    factors[name] = factors[name] & keep if name in factors else keep
    prunable, whole = list(prunable), torch.ones((), dtype=torch.bool)
    names = dict.fromkeys((*prunable, *factors))
    full = {n: torch.empty_like(params[n], dtype=torch.bool).copy_(factors.get(n, whole)) for n in names}
    tied = {n: m for n, m in full.items() if n not in prunable and not bool(factors[n].all())}
    return Masks({n: full[n] for n in prunable}, tied)
