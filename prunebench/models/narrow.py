"""Foreign networks made smaller in place, and the check that they then compute what the masked ones do."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunebench.core.compact import Kept, surviving_part, survivors
from prunebench.core.units import PrunableModel, Unit
from prunebench.models.dependency import NORMS
from prunebench.models.layers import SAFE_CHANNELS, PointwiseConv2d

TOLERANCE = 1e-8
"""Of float64 outputs, relative to the largest: some 1e-13 of rounding in networks of a hundred layers."""


@torch.no_grad()
def narrow_(net: nn.Module, kept: Kept) -> None:
    """Cut positions out of a network's tensors, in place, and set what its modules know of their sizes.

    Args:
      kept: from `prunebench.core.compact.survivors`, with the names of this network.
    """
    from timm.layers.attention import Attention

    touched: dict[nn.Module, int | None] = {}
    for name, dims in kept.items():
        path, _, last = name.rpartition(".")
        module = net.get_submodule(path)
        tensor = getattr(module, last)
        for dim, positions in dims:
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        grouped = isinstance(module, nn.Conv2d) and module.groups > 1
        touched.setdefault(module, module.out_channels // module.groups if grouped else None)
        if last in module._parameters:
            tensor = nn.Parameter(tensor, requires_grad=getattr(module, last).requires_grad)
        setattr(module, last, tensor)
    for module, per_group in touched.items():
        _resize_(module, per_group)
    for module in net.modules():
        if type(module) is Attention:
            module.attn_dim = module.proj.in_features
            module.num_heads = module.attn_dim // module.head_dim


def _resize_(module: nn.Module, per_group: int | None) -> None:
    """Set the sizes that a module keeps beside its tensors; `per_group`: outputs per group, if grouped."""
    if isinstance(module, nn.Conv2d):
        module.out_channels, inputs = module.weight.shape[:2]
        module.groups = 1 if per_group is None else module.out_channels // per_group
        module.in_channels = inputs * module.groups
        narrow = type(module) is nn.Conv2d and module.in_channels < SAFE_CHANNELS and module.groups == 1
        if narrow and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.padding == (0, 0):
            module.__class__ = PointwiseConv2d  # the strided kernel of such a layer is not safe on a CPU
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, NORMS):
        module.num_features = len(module.running_mean if module.weight is None else module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def narrowed_units(units: Sequence[Unit], widths: Mapping[str, int], kept: Kept) -> list[Unit]:
    """The units of a network that has kept the first `widths` channels of each."""
    found = []
    for unit in units:
        width, layout = widths[unit.name], {}
        for name, dim in unit.made_by + unit.used_by:
            positions = dict(kept.get(name, ())).get(dim)
            if (name, dim) in unit.layout:
                row = torch.tensor(unit.layout[name, dim])
                row = row if positions is None else row[positions.cpu()]
                layout[name, dim] = tuple(row.tolist())
        found.append(replace(unit, size=width, layout=layout))
    return found


def check_units(model: PrunableModel, x: Tensor) -> None:
    """See on random weights that the network without half of every unit's channels equals the masked one.

    In float64 and eval mode, with random scales, shifts and statistics: many networks start with a scale of 0
    that would hide a mistake. The model is left as it is.

    Args:
      model: its `with_widths` and `units` are checked.
      x: [N, C, H, W], images.

    Raises:
      ValueError: naming a unit that was read wrongly.
    """
    if not _wrong(model, [u.name for u in model.units()], x):
        return
    one_by_one = (unit.name for unit in model.units() if _wrong(model, [unit.name], x))
    named = next(one_by_one, "several layers")
    raise ValueError(
        f"the network without the pruned channels of {named} does not compute what the masked one does"
    )


@torch.no_grad()
def _wrong(model: PrunableModel, names: Sequence[str], x: Tensor) -> bool:
    """Whether the masked and the smaller network differ when half of these units' channels are pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = deepcopy(model).cpu().double().eval()
        _randomise_(whole)
        units = [unit for unit in model.units() if unit.name in names]
        alive = {u.name: torch.rand(u.size) < 0.5 for u in units}
        for keep in alive.values():
            keep[torch.randint(len(keep), (1,))] = True
        kept, params = survivors(whole, alive), dict(whole.named_parameters())
        for unit in units:
            for name, dim in unit.made_by:
                if name in params:
                    places = unit.places(name, dim, params[name].shape[dim])
                    dead = (places >= 0) & ~alive[unit.name][places]
                    params[name].index_fill_(dim, dead.nonzero().flatten(), 0)
        x = x.cpu().double()
        try:
            small = model.with_widths({n: int(a.sum()) for n, a in alive.items()}).double().eval()
            small.load_state_dict(surviving_part(whole.state_dict(), kept))
            masked, shrunk = whole(x), small(x)
        except RuntimeError:  # sizes that do not fit
            return True
    return not bool((masked - shrunk).abs().max() <= TOLERANCE * masked.abs().max())  # NaN is wrong, too


def _randomise_(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for p in model.parameters():
        if p.ndim < 2:
            p.uniform_(0.5, 1.5)
        elif not bool(p.any()):
            p.normal_(std=0.02)
