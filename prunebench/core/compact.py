"""The smaller network that whole dead channels leave behind, and the way back to the whole one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from prunebench.core.selection import topk_mask
from prunebench.core.units import PrunableModel, Unit

Kept = dict[str, list[tuple[int, Tensor]]]
"""state_dict name -> [(dim, positions that stay)], for the tensors that get smaller."""


def round_up(
    alive: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    *,
    multiple: int,
    before: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Channels to keep, in every unit as many as a multiple that is no less than what was chosen.

    Kernels on CPUs and GPUs work on blocks of 8 or more channels: a count in between costs as much as the
    next multiple. Rounded up, no later event can ask for more channels than are left.

    Args:
      alive: unit name -> bool tensor, what was chosen.
      scores: unit name -> score of each channel, higher = keep.
      multiple: at least 1.
      before: channels that were alive before; others do not return. Where fewer than the next multiple are
        there, all of them stay.
    """
    rounded = {}
    for name, chosen in alive.items():
        there = torch.ones_like(chosen) if before is None else before[name]
        count = -(-int(torch.count_nonzero(chosen)) // multiple) * multiple
        left = scores[name].masked_fill(~there, -torch.inf)
        rounded[name] = topk_mask(left, min(count, int(torch.count_nonzero(there))))
    return rounded


def survivors(model: PrunableModel, alive: Mapping[str, Tensor]) -> Kept:
    """What the smaller network keeps of each narrowed tensor: state_dict name -> [(dim, positions)].

    Args:
      model: the network.
      alive: unit name -> bool tensor of the channels that stay; units not named keep all.

    Returns:
      int64 positions in ascending order, on the model's device; tensors that stay whole are left out.
    """
    keep: dict[tuple[str, int], Tensor] = {}
    state, device = model.state_dict(), next(model.parameters()).device
    for unit in model.units():
        if unit.name in alive and not bool(alive[unit.name].all()):
            there = alive[unit.name].cpu()
            for name, dim in unit.made_by + unit.used_by:
                stays = _positions_that_stay(unit, there, name, dim, state[name].shape[dim])
                keep[name, dim] = keep[name, dim] & stays if (name, dim) in keep else stays
    found: Kept = {}
    positions: dict[int, Tensor] = {}  # of most units' tensors they are the same
    for (name, dim), kept in keep.items():
        if id(kept) not in positions:
            positions[id(kept)] = kept.nonzero().flatten().to(device)
        found.setdefault(name, []).append((dim, positions[id(kept)]))
    return found


def _positions_that_stay(unit: Unit, keep: Tensor, name: str, dim: int, length: int) -> Tensor:
    """Which positions of a tensor's dimension stay, bool [length], where `keep` says which channels do."""
    if (name, dim) in unit.layout:
        places = unit.places(name, dim, length)
        return (places < 0) | keep[places]
    return keep if length == unit.size else keep.repeat_interleave(length // unit.size)


def surviving_part(state: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """The state dict of the smaller network, cut out of the whole one's by what `survivors` gave."""
    cut = {n: t.detach() for n, t in state.items()}
    for name, dims in kept.items():
        for dim, positions in dims:
            cut[name] = cut[name].index_select(dim, positions)
    return cut


def compact(model: PrunableModel, alive: Mapping[str, Tensor]) -> PrunableModel:
    """The same function as the masked `model`, in eval mode, with the dead channels gone.

    Args:
      model: network whose dead channels are 0, as `unit_masks` leaves them.
      alive: unit name -> bool tensor of the channels that stay; units not named keep all.

    Returns:
      A new network on the model's device; its outputs equal the masked ones up to float rounding.
    """
    return cut_down(model, survivors(model, alive), widths_of(alive))


def widths_of(alive: Mapping[str, Tensor]) -> dict[str, int]:
    """Unit name -> number of channels that stay."""
    return {n: int(torch.count_nonzero(a)) for n, a in alive.items()}


def cut_down(model: PrunableModel, kept: Kept, widths: dict[str, int]) -> PrunableModel:
    """A new network of these widths, of the model's values, mode, dtype, device and memory format."""
    state = surviving_part(model.state_dict(), kept)
    with torch.random.fork_rng(devices=[]), _Undrawn():
        small = model.with_widths(widths)
    if any(name not in state for name, _ in small.named_buffers()):
        small = small.to(next(model.parameters()))  # the state brings all else in its own dtype and place
    small.load_state_dict({n: t if n in kept else t.clone() for n, t in state.items()}, assign=True)
    if any(_is_channels_last(p) for p in model.parameters()):
        small = small.to(memory_format=torch.channels_last)
    return small.train(model.training)


class _Undrawn(TorchFunctionMode):
    """Zeros in place of initial weights that are replaced at once: drawing them is half of the time of a cut.

    Not what memory holds, where it could be read: `trunc_normal_` draws until everything lies within its
    bounds. The default of convolutions and linear layers is not read.
    """

    DRAWING = (Tensor.normal_, Tensor.uniform_, init.uniform_, init.normal_)

    def __torch_function__(
        self, func: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is init.kaiming_uniform_:
            return args[0] if args else kwargs["tensor"]
        if func in self.DRAWING:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)


def _is_channels_last(t: Tensor) -> bool:
    return t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


class Shrunk:
    """The small network that is trained in the place of the masked one, and the places of its values there.

    Args:
      model: the whole network; its dead channels are 0.
      alive: unit name -> bool tensor of the channels that stay.

    Attributes:
      network: the small network, in train mode.
    """

    def __init__(self, model: PrunableModel, alive: Mapping[str, Tensor]):
        self.kept = survivors(model, alive)
        self.network = cut_down(model, self.kept, widths_of(alive)).train()

    @torch.no_grad()
    def take_(self, model: PrunableModel) -> None:
        """Copy the values of the whole network into the small one."""
        self.network.load_state_dict(surviving_part(model.state_dict(), self.kept))

    @torch.no_grad()
    def give_(self, model: PrunableModel) -> None:
        """Copy the values of the small network to their places in the whole one; the rest stays as it is."""
        whole = model.state_dict()
        for name, value in self.network.state_dict().items():
            self._place_(name, value, whole[name])

    def part(self, name: str, value: Tensor) -> Tensor:
        """What the small network keeps of a tensor that is shaped as one of the whole network."""
        for dim, positions in self.kept.get(name, ()):
            value = value.index_select(dim, positions)
        return value

    def whole(self, name: str, part: Tensor, like: Tensor) -> Tensor:
        """The opposite of `part`: a tensor as `like`, with 0 where the small network has nothing."""
        result = torch.zeros_like(like, dtype=part.dtype, requires_grad=False)
        self._place_(name, part, result)
        return result

    def _place_(self, name: str, part: Tensor, whole: Tensor) -> None:
        dims = dict(self.kept.get(name, ()))
        if not dims:
            whole.copy_(part)
            return
        index = [dims.get(d, torch.arange(n, device=part.device)) for d, n in enumerate(whole.shape)]
        whole[torch.meshgrid(*index, indexing="ij")] = part
