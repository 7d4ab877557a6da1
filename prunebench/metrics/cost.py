"""Size and multiply-adds of a network, dense and masked.

The conventions of ShrinkBench (arXiv 2003.03033, section 6): compression = T / N with T all parameters of the
model and N those kept; MACs of convolutions and linear layers only, one multiply-add = 1, for one image; a
masked layer costs its MACs times its density. Biases, normalisation, activations and pooling cost nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTENTION = "attention"
"""Key under which `count_macs` reports products of two activations; no parameter can have this name."""

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (F.linear, F.conv1d, F.conv2d, F.conv3d)
MATMULS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


class _FunctionCounter(TorchFunctionMode):
    """Counts what module hooks cannot see: attention, and layers whose weight is used without a call.

    Args:
      weights: id of a parameter -> its name.
    """

    def __init__(self, weights: dict[int, str]):
        super().__init__()
        self.weights = weights
        self.direct: Counter[str] = Counter()
        self.attention = 0

    def __torch_function__(
        self, func: Callable, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            q, k, v = (*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
            # q k^T and the weighted sum of v: queries * keys * (size of a key + size of a value), over all
            # heads
            self.attention += prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        elif func in MATMULS and len(args) >= 2:
            a, b = args[:2]
            if not isinstance(a, nn.Parameter) and not isinstance(b, nn.Parameter):
                self.attention += out.numel() * a.shape[-1]
        elif func in WEIGHTED:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            if id(weight) in self.weights:
                self.direct[self.weights[id(weight)]] += out.numel() * weight[0].numel()
        return out


@contextmanager
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run the block in eval mode without gradients; then restore modes, buffers and random generators."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def count_macs(
    model: nn.Module, shape: tuple[int, int, int], *, device: torch.device | None = None
) -> dict[str, int]:
    """Multiply-adds of every convolution and linear layer for one image, from a real forward pass.

    Groups, strides, padding and tokens are counted as they come out: outputs times weights per output. Layers
    are seen by hooks and, where a model uses a weight without calling its module (BEiT's qkv), in the
    function itself. Products of two activations (attention: for L layers, T tokens and embedding D, 2 L T^2
    D) are reported apart under `ATTENTION`; they are seen in `scaled_dot_product_attention` and in matrix
    products, not inside `nn.MultiheadAttention` or `einsum`. Mode, buffers and random state are left as
    found; hooks of others do run.

    Args:
      model: any network of one image tensor; it may lie on the meta device.
      shape: C, H, W of the image.
      device: where the image is made; default: the device of the model's first parameter.

    Returns:
      Name of each layer's weight -> MACs in model order (0 for a layer that was not used), then `ATTENTION`.
    """
    first = next(model.parameters())
    device = device or first.device
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, (*CONVS, nn.Linear))}
    called: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def count(module: nn.Module, args: tuple, out: Tensor) -> None:
            called[name] += out.numel() * (module.weight.numel() // module.weight.shape[0])

        return count

    counter = _FunctionCounter({id(m.weight): n for n, m in layers.items()})
    with ExitStack() as stack:
        stack.enter_context(_left_as_found(model, device))
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        stack.enter_context(counter)
        model(torch.zeros(1, *shape, dtype=first.dtype, device=device))
    return {n: called[n] or counter.direct[n] for n in layers} | {ATTENTION: counter.attention}


def cost(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    macs: dict[str, int],
    *,
    tied: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Parameters and MACs of the masked network against the dense one, over the whole model and per layer.

    Kept entries are counted by mask, not by value: a freshly initialised zero is a parameter. Buffers are
    none.

    Args:
      model: the network that the masks belong to.
      masks: parameter name -> bool tensor of its shape, True = kept; other parameters are kept whole.
      macs: from `count_macs` of this model.
      tied: further masks (biases, BatchNorm) that lower `params`.

    Returns:
      `params` and `params_total`: N kept and T all parameters; `compression`: T / N. `macs` and `macs_dense`:
      of one image over convolutions and linear layers; `speedup`: macs_dense / macs, theoretical, None when
      no MAC is left;
      `macs_attention`: products of activations, in neither sum and not reduced by masks. `layers`: a dict per
      convolution or linear layer with name, shape, total and kept weights, macs_dense and macs.

    Raises:
      ValueError: if a mask names no parameter or has another shape.
    """
    params = dict(model.named_parameters())
    every = {**masks, **(tied or {})}
    for name, mask in every.items():
        if name not in params:
            raise ValueError(f"masks[{name!r}]: must name a parameter of the model")
        if mask.shape != params[name].shape:
            raise ValueError(
                f"masks[{name!r}]: must have shape {list(params[name].shape)}, got {list(mask.shape)}"
            )
    counts = torch.stack([torch.count_nonzero(m) for m in every.values()]).tolist() if every else []
    kept = {n: p.numel() for n, p in params.items()} | dict(zip(every, counts))

    layers = []
    for name, dense in macs.items():
        if name == ATTENTION:
            continue
        total = params[name].numel()
        layers.append(
            {
                "name": name,
                "shape": list(params[name].shape),
                "total": total,
                "kept": kept[name],
                "macs_dense": dense,
                "macs": dense * kept[name] // total,  # exact: every weight is used equally often
            }
        )
    total_params, kept_params = sum(p.numel() for p in params.values()), sum(kept.values())
    dense_macs, kept_macs = sum(x["macs_dense"] for x in layers), sum(x["macs"] for x in layers)
    return {
        "params": kept_params,
        "params_total": total_params,
        "compression": total_params / kept_params,
        "macs": kept_macs,
        "macs_dense": dense_macs,
        "speedup": dense_macs / kept_macs if kept_macs else None,
        "macs_attention": macs.get(ATTENTION, 0),
        "layers": layers,
    }
