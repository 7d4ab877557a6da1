"""Which layers feed which activation: nonlinearities are seen as modules, layers by the autograd graph."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

Call = tuple[str, int]
"""A module's name, and which of its calls in one forward pass, 0 for the first."""


@dataclass(frozen=True)
class Feed:
    """What feeds one call of an activation.

    Attributes:
      axis: dimension of the activation's output that counts channels.
      weights: names of the weights whose rows are the channels' incoming weights; None where not known.
    """

    axis: int
    weights: tuple[str, ...] | None


class Calls:
    """Hook for `hooked` that numbers the calls of a module in one forward pass: a ReLU may serve twice.

    Args:
      hook: is called with (name, number) and the output.
    """

    def __init__(self, hook: Callable[[Call, Tensor], None]):
        self.hook, self.seen = hook, Counter()

    def begin(self) -> None:
        """Another forward pass begins."""
        self.seen.clear()

    def __call__(self, name: str, output: Tensor) -> None:
        """Pass on what the module `name` gave."""
        self.hook((name, self.seen[name]), output)
        self.seen[name] += 1


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside the block, `hook(name, output)` is called after every call of one of the modules."""
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: hook(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_rectifier(module: nn.Module) -> bool:
    """Whether it is a ReLU, ReLU6 or GELU; timm has classes of its own for the last."""
    return isinstance(module, nn.ReLU | nn.ReLU6 | nn.GELU) or type(module).__name__ in ("GELU", "GELUTanh")


def rectifiers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of every ReLU, ReLU6 and GELU."""
    return {name: module for name, module in model.named_modules() if is_rectifier(module)}


def trace(model: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[Call, Feed]:
    """What feeds every call of a ReLU or GELU module, in order of execution, from one image's autograd graph.

    Args:
      forward: calls the modules of `model`.
      x: one image, [1, C, H, W].

    Raises:
      ValueError: if an activation sees more rows than images, so that they cannot be told apart.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    activations = rectifiers(model)
    # torch's activations of any kind end the search
    nonlinear = {n: m for n, m in model.named_modules() if type(m).__module__ == nn.ReLU.__module__}
    made: dict[Any, str | None] = {}  # node of the graph -> the layer whose output it is, None: an activation
    outputs: dict[Call, tuple[Any, torch.Size]] = {}  # node and shape, before something changes it in place

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            made[output.grad_fn] = name if name in layers else None

    def keep(call: Call, output: Tensor) -> None:
        outputs[call] = output.grad_fn, output.shape

    with (
        torch.enable_grad(),
        hooked({**layers, **nonlinear, **activations}, note),
        hooked(activations, Calls(keep)),
    ):
        forward(x.clone().requires_grad_())
    feeds = {}
    for call, (node, shape) in outputs.items():
        if shape[0] != 1:
            raise ValueError(
                f"{call[0]} does not keep images apart, its output for one image has {shape[0]} rows"
            )
        axes = {}
        for name in _behind(node, made):
            axis = len(shape) - 1 if isinstance(layers[name], nn.Linear) else 1
            if shape[axis] == len(layers[name].weight):
                axes[f"{name}.weight"] = axis
        unknown = 1 if len(shape) == 4 else len(shape) - 1
        axis = next(iter(axes.values()), unknown)
        feeds[call] = Feed(axis, tuple(n for n, a in axes.items() if a == axis) or None)
    return feeds


def _behind(node: Any, made: Mapping[Any, str | None]) -> list[str]:
    """Layers from which a path leads to the node of an autograd graph that crosses no entry of `made`."""
    found, seen, pending = [], set(), [n for n, _ in node.next_functions]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node not in made:
            pending += [n for n, _ in node.next_functions]
        elif made[node] is not None:
            found.append(made[node])
    return found
