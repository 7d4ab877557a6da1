"""A network's forward pass read as a graph: where paths of kept weights lead."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
# On what is never negative these are the identity, or positive exactly where their argument is.
RECTIFIERS = (
    *(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh),
    *(F.gelu, F.silu, F.hardswish),
)
LEFT_OUT = (F.batch_norm, F.dropout, F.dropout2d, *RECTIFIERS)
POOLINGS = {F.max_pool1d: F.avg_pool1d, F.max_pool2d: F.avg_pool2d, F.max_pool3d: F.avg_pool3d}
ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
KNOWN = (
    *(F.pad, *POOLINGS, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.cat, torch.concat, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.mean),
    *(Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.transpose, Tensor.permute, Tensor.contiguous),
    *(Tensor.__getitem__, Tensor.squeeze, Tensor.unsqueeze, Tensor.mean, Tensor.sum),
    *(torch.chunk, torch.split, Tensor.chunk, Tensor.split),
)
QUESTIONS = (
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.stride, Tensor.is_contiguous),
    torch._assert,
)


def run_on_paths(
    model: nn.Module, masks: Mapping[str, Tensor], shape: Sequence[int], *, blind: bool = False
) -> "Paths":
    """The forward pass of a network on an image of ones, with masks as weights; see `Paths`."""
    paths = Paths(model, masks, blind=blind)
    image = torch.ones(1, *shape, dtype=torch.float64, device=next(model.parameters()).device)
    with paths.places(model), paths:
        logits = model(image)
    paths.result = logits.sum()
    return paths


class _Reach(torch.autograd.Function):
    """1 where the argument is positive, else 0; the same of the gradient. Blind: 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, blind: bool) -> Tensor:
        ctx.blind = blind
        return torch.ones_like(values) if blind else (values > 0).to(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.ones_like(gradient) if ctx.blind else (gradient > 0).to(gradient), None


class Paths(TorchFunctionMode):
    """Gives every operation of a forward pass the meaning that `EffectiveSparsity` describes.

    Args:
      model: whose parameters are met.
      masks: parameter name -> bool tensor; other weights of convolutions and linear layers are whole.
      blind: see no further than from one layer to the next: outputs of layers, and their gradients, are 1.

    Attributes:
      weights: parameter name -> float64 leaf tensor used in its place.
      outputs: name of the weight, output and channel axis, for every use of a layer.
      result: the sum of the network's outputs.
    """

    result: Tensor

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], *, blind: bool):
        super().__init__()
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.masks, self.blind = masks, blind
        self.weights: dict[str, Tensor] = {}
        self.outputs: list[tuple[str, Tensor, int]] = []
        self.inside: list[str] = []

    @contextmanager
    def places(self, model: nn.Module) -> Iterator[None]:
        """Know inside the block which module is running, for messages."""

        def enter(module: nn.Module, args: Any, *, title: str) -> None:
            self.inside.append(title)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.inside.pop()

        handles = []
        for name, module in model.named_modules():
            title = f"{name} ({type(module).__name__})" if name else type(module).__name__
            handles.append(module.register_forward_pre_hook(partial(enter, title=title)))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute `func` in its new meaning, or refuse it."""
        kwargs = dict(kwargs or {})
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func in CONVOLUTIONS:
            return self._convolution(func, *args, **kwargs)
        if func in LEFT_OUT:
            return kwargs["input"] if "input" in kwargs else args[0]
        operands = [*args, *kwargs.values()]
        if func in KNOWN or (func in ADDITIONS and all(isinstance(a, Tensor) for a in operands[:2])):
            self._refuse_own(operands)
            if func in POOLINGS:
                return _average(func, *args, **kwargs)
            return _pad(*args, **kwargs) if func is F.pad else func(*args, **kwargs)
        if func in QUESTIONS or func.__name__ == "__get__":  # the latter of an attribute
            answer = func(*args, **kwargs)
            if not isinstance(answer, Tensor):
                return answer
        if not any(isinstance(o, Tensor) and id(o) not in self.names for o in operands):
            self._refuse_own(operands)
        self._refuse(f"computes {resolve_name(func) or func.__name__}")

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name, kept = self._kept(weight)
        return self._reached(name, F.linear(input, kept), -1)

    def _convolution(
        self,
        func: Callable,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        name, kept = self._kept(weight)
        spatial = kept.ndim - 2
        sizes = [d * (k - 1) for d, k in zip(_each(dilation, spatial), kept.shape[2:])]
        if padding == "same":
            margins = [(size // 2, size - size // 2) for size in sizes]
        else:
            margins = [(p, p) for p in _each(0 if padding == "valid" else padding, spatial)]
        for dim, (before, after) in enumerate(margins, start=2):
            input = _wrap(input, dim, before, after)
        return self._reached(name, func(input, kept, None, stride, 0, dilation, groups), 1)

    def _kept(self, weight: Tensor) -> tuple[str, Tensor]:
        """Name of a parameter, and the leaf tensor in its place."""
        name = self.names.get(id(weight))
        if name is None:
            self._refuse("uses a weight that is no parameter")
        if name not in self.weights:
            kept = self.masks[name].double() if name in self.masks else torch.ones_like(weight).double()
            self.weights[name] = kept.detach().requires_grad_()
        return name, self.weights[name]

    def _reached(self, name: str, values: Tensor, axis: int) -> Tensor:
        values = _Reach.apply(values, self.blind)
        self.outputs.append((name, values, axis))
        return values

    def _refuse_own(self, operands: Sequence[Any]) -> None:
        """Refuse parameters and buffers as operands; a path may lead through activations only."""
        for operand in operands:
            if isinstance(operand, list | tuple):
                self._refuse_own(operand)
            elif id(operand) in self.names:
                self._refuse(f"uses {self.names[id(operand)]} outside the layers that are known")

    def _refuse(self, what: str) -> None:
        place = self.inside[-1] if self.inside else "the model"
        raise ValueError(
            f"metrics.effective_sparsity: {place} {what}; paths through that are not defined, "
            "leave the metric out"
        )


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _wrap(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Circular padding, also by more than the size; negative numbers crop."""
    if not before and not after:
        return x
    place = torch.arange(-before, x.shape[dim] + after, device=x.device) % x.shape[dim]
    return x.index_select(dim, place)


def _pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding of an image's sides in a circle, of its channels and of other tensors as it is."""
    if input.ndim == 4 and mode == "constant":
        for dim, (before, after) in zip((3, 2), zip(pad[::2], pad[1::2])):
            input = _wrap(input, dim, before, after)
        pad = [0, 0, 0, 0, *pad[4:]]
    return F.pad(input, pad, mode, 0.0 if mode == "constant" else value)


def _average(
    func: Callable,
    input: Tensor,
    size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Average-pooling in the place of max-pooling; on fields that are constant, dilation does not matter."""
    return POOLINGS[func](input, size, stride, padding, ceil_mode)
