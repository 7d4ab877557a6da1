"""Channel units of foreign networks, read off Torch-Pruning's dependency graph and checked by numbers.

The graph (DepGraph, Fang et al. 2023, arXiv 2301.12900) says which layer's outputs reach which layer's inputs
and how concatenations, splits and flattenings move their channels. The walk over it is ours: channels are
followed until nothing new is reached, and channels that meet in one place become one (the groups of a grouped
convolution, the channels of shortcuts), where the library's own walk may not end.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.units import Unit
from prunebench.models.layers import norm_entries

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Entry = tuple[str, int]
WB = ("weight", "bias")


def find_units(net: nn.Module, image: Tensor, *, classifiers: Iterable[str]) -> list[Unit]:
    """Every group of channels that can be cut out of a network with an unchanged function for the rest.

    These are the outputs of convolutions and linear layers with all that is added to them, and whole
    attention heads where timm's `Attention` computes them. Channels stay whole where what is left would not
    be the same function: those that a LayerNorm, GroupNorm or any other module reads that mixes channels,
    those of other kinds of attention, the image and the logits. A grouped convolution loses whole groups.

    Args:
      net: the network; it is left as it is.
      image: [1, C, H, W], of the size that it takes.
      classifiers: module names whose outputs are logits.

    Returns:
      Units of at least two channels, in the order of the modules that make them.

    Raises:
      ValueError: if Torch-Pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError:
        raise ValueError(
            "sparsity.granularity: filters and neurons of timm models need the package torch-pruning "
            "(pip install 'torch-pruning>=1.6'); or use sparsity.granularity=weight"
        ) from None
    copy = deepcopy(net).cpu().float().eval().requires_grad_(True)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(copy, image.cpu(), verbose=False)
    names = {module: name for name, module in copy.named_modules()}
    names |= {parameter: name for name, parameter in copy.named_parameters()}
    walk = _Walk(graph, names, copy, torch_pruning.ops)
    units = dict(_heads(copy))
    closed, made = set(classifiers), {entry for unit in units.values() for entry in unit.made_by}
    for name, module in copy.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module in graph.module2node and name not in closed:
            if (f"{name}.weight", 0) in made or module in walk.attention:
                continue
            unit = walk.unit(name, module)
            if unit is not None:
                units[name] = unit
                made.update(unit.made_by)
    order = {name: place for place, name in enumerate(names.values())}
    return sorted(units.values(), key=lambda unit: order[unit.name])


def _heads(net: nn.Module) -> Iterator[tuple[str, Unit]]:
    """Heads of timm's `Attention`; its joint projection holds all queries, then all keys, then all values."""
    from timm.layers.attention import Attention

    for name, module in net.named_modules():
        if type(module) is Attention and module.num_heads > 1 and module.gate is None:
            if not isinstance(module.norm, nn.Identity):
                continue  # normalises over all heads
            heads, qkv = module.num_heads, f"{name}.qkv"
            rows = tuple(torch.arange(heads).repeat_interleave(module.head_dim).repeat(3).tolist())
            made = tuple((f"{qkv}.{p}", 0) for p, _ in module.qkv.named_parameters())
            layout = dict.fromkeys(made, rows)
            yield name, Unit(name, heads, made, ((f"{name}.proj.weight", 1),), layout)


class _Walk:
    """Follows the output channels of a layer through the dependency graph."""

    def __init__(self, graph: Any, names: Mapping[Any, str], net: nn.Module, ops: Any):
        self.graph, self.names, self.net, self.ops = graph, names, net, ops
        inside = [m.modules() for m in net.modules() if isinstance(getattr(m, "num_heads", None), int)]
        self.attention = {module for modules in inside for module in modules}

    def unit(self, name: str, root: nn.Module) -> Unit | None:
        """The unit that a layer's outputs belong to; None where they must stay whole."""
        channels = root.out_channels if isinstance(root, nn.Conv2d) else root.out_features
        joined = list(range(channels))
        seen: dict[tuple[Any, str], dict[int, int]] = {}
        pending = [(self.graph.module2node[root], "out", {i: i for i in range(channels)})]
        while pending:
            node, side, arriving = pending.pop()
            if self._stays_whole(node, side):
                return None
            known, new = seen.setdefault((node, side), {}), {}
            for place, channel in arriving.items():
                if place in known:
                    _join(joined, known[place], channel)
                else:
                    known[place] = new[place] = channel
            if new:
                pending += self._across(node, side, new, joined)
                steps = list(self._along(node, side, new, joined))
                if None in steps:
                    return None
                pending += steps
        return self._assemble(name, seen, joined)

    def _stays_whole(self, node: Any, side: str) -> bool:
        """Whether cutting channels at this node would change what the rest computes, or cannot be done."""
        module = node.module
        if isinstance(module, nn.Parameter):
            return False
        if node.type == self.ops.OPTYPE.OUTPUT or module in self.attention:
            return True
        if module in self.names:
            known = (nn.Conv2d, nn.Linear, nn.PReLU, *NORMS)
            linked = not isinstance(module, nn.Linear) and not (
                isinstance(module, nn.Conv2d) and module.groups == 1
            )
            return not isinstance(module, known) or (side == "in" and linked and not node.inputs)
        return False

    def _across(self, node: Any, side: str, new: dict[int, int], joined: list[int]) -> list[tuple]:
        """From a node's inputs to its outputs, or back, where it keeps channels apart."""
        module, other = node.module, "in" if side == "out" else "out"
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            return []
        if not isinstance(module, nn.Conv2d):
            return [(node, other, dict(new))]
        sizes = {"in": module.in_channels // module.groups, "out": module.out_channels // module.groups}
        group: dict[int, int] = {}
        for place, channel in new.items():
            first = group.setdefault(place // sizes[side], channel)
            _join(joined, first, channel)
        whole = {s: {g * k + i: c for g, c in group.items() for i in range(k)} for s, k in sizes.items()}
        return [(node, other, whole[other]), (node, side, whole[side])]

    def _along(self, node: Any, side: str, new: dict[int, int], joined: list[int]) -> Iterator[tuple | None]:
        """To the neighbours of a node; None where the library cannot follow the channels."""
        from torch_pruning._helpers import _HybridIndex

        neighbours, arrives = (node.outputs, "in") if side == "out" else (node.inputs, "out")
        for edge in node.dependencies:
            if edge.target not in neighbours:
                continue
            moved = [_HybridIndex(idx=place, root_idx=channel) for place, channel in new.items()]
            for mapping in edge.index_mapping:
                moved = moved if mapping is None else mapping(moved)
            places: dict[int, int] = {}
            for place, channel in moved:
                if channel is None:
                    yield None
                    return
                _join(joined, places.setdefault(place, channel), channel)
            if places:
                yield edge.target, arrives, places

    def _assemble(self, name: str, seen: Mapping, joined: list[int]) -> Unit | None:
        """The unit of all places that were reached, its channels numbered by their first one in the root."""
        firsts = sorted({_find(joined, c) for c in range(len(joined))})
        number, state = {first: i for i, first in enumerate(firsts)}, self.net.state_dict()
        if len(firsts) < 2:
            return None
        made, used, layout = [], [], {}
        for (node, side), places in seen.items():
            for entry, reads in self._entries(node, side, state):
                row = [-1] * state[entry[0]].shape[entry[1]]
                for place, channel in places.items():
                    if place >= len(row):
                        return None
                    row[place] = number[_find(joined, channel)]
                (used if reads else made).append(entry)
                width, rest = divmod(len(row), len(firsts))
                if rest or row != [i for i in range(len(firsts)) for _ in range(width)]:
                    layout[entry] = tuple(row)
        return Unit(name, len(firsts), tuple(made), tuple(used), layout)

    def _entries(self, node: Any, side: str, state: Mapping[str, Tensor]) -> list[tuple[Entry, bool]]:
        """Tensors whose dimension holds the channels on this side of a node, and whether they read them."""
        module = node.module
        if module not in self.names:
            return []
        name = self.names[module]
        if isinstance(module, nn.Parameter):
            return [((name, node.pruning_dim % module.ndim), False)] if side == "out" else []
        if side == "out":
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                return []
            entries = norm_entries(name) if isinstance(module, NORMS) else [(f"{name}.{p}", 0) for p in WB]
            return [(entry, False) for entry in entries if entry[0] in state]
        reads = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        return [((f"{name}.weight", 1), True)] if reads else []


def _find(joined: list[int], channel: int) -> int:
    while joined[channel] != channel:
        channel = joined[channel]
    return channel


def _join(joined: list[int], a: int, b: int) -> None:
    a, b = _find(joined, a), _find(joined, b)
    joined[max(a, b)] = min(a, b)
