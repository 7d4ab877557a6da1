"""Effective sparsity: kept weights that lie on no path from the image to the logits do nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric, undisturbed
from prunebench.metrics.paths import run_on_paths


class EffectiveSparsity(Metric):
    """Sparsity that counts only weights on a path of kept weights from the image to the logits as kept.

    Effective sparsity of Vysogorets & Kempe (arXiv 2107.02306; the definition is from memory). The network
    runs on an image of ones with its masks in place of its weights, without biases and BatchNorm, with
    average-pooling for max-pooling (which would follow the winner only) and circular for zero padding (else
    a 3x3 kernel on a 1x1 map would seem dead); R is the sum of the outputs, and a kept weight is effective
    if dR/dm is not 0. Against overflow every entry of a layer's output is divided by itself, and every entry
    of its gradient as well: 1 where there is a path and 0 where not, which is exact at any depth.

      nominal_sparsity, effective_sparsity: 1 - kept / total and 1 - effective / total, in [0, 1].
      ineffective: weights that are kept for nothing.
      dead_in: output channels of prunable layers, of `units` in all, into which no kept weight leads.
      dead_out: those from which none leads: no layer that reads the channel, directly or along shortcuts,
        keeps a weight for it. (These two look at one layer, effective weights at whole paths.)
      collapse: whether some layer has no effective weight left.
    "layers" holds the same per layer, with the numbers of weights.

    Paths through biases and BatchNorm shifts are not counted: they carry constants. Known are convolutions,
    linear layers, BatchNorm, ReLU, ReLU6, GELU, SiLU, Hardswish, poolings, dropout, additions of activations,
    concatenations, slices, zero padding of channels (option-A shortcuts) and changes of shape, as modules or
    as functions. Everything else (LayerNorm, attention, products, parameters outside these layers) is
    refused. Layers excluded from pruning are whole, and not counted. Cost: two forward and backward passes
    over one image in float64.
    """

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse a network with an operation of unknown meaning."""
        with undisturbed(run), torch.no_grad():
            run_on_paths(run.model, run.masks, run.data.shape)

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"nominal_sparsity", "effective_sparsity", "ineffective", "dead_in", ...} and "layers"."""
        effective, dead_out = effective_weights(run.model, run.masks, run.data.shape)
        counts = torch.stack(
            [
                torch.stack([torch.count_nonzero(effective[n]), *_dead(m, dead_out[n])])
                for n, m in run.masks.items()
            ]
        ).tolist()
        kept, layers = run.masks.kept_per_layer, []
        for (name, mask), (useful, dead_in, out) in zip(run.masks.items(), counts):
            layers.append(
                {
                    **{"name": name, "weights": mask.numel(), "kept": kept[name], "effective": useful},
                    **{"units": len(mask), "dead_in": dead_in, "dead_out": out},
                }
            )
        useful = sum(layer["effective"] for layer in layers)
        return {
            "nominal_sparsity": run.masks.sparsity,
            "effective_sparsity": 1 - useful / run.masks.total,
            "ineffective": run.masks.kept - useful,
            **{n: sum(layer[n] for layer in layers) for n in ("units", "dead_in", "dead_out")},
            "collapse": any(not layer["effective"] for layer in layers),
            "layers": layers,
        }


def _dead(mask: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    return (~mask.flatten(1).any(1)).sum(), out.sum()


def effective_weights(
    model: nn.Module, masks: Masks, shape: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What of the kept weights is effective, and which output channels nothing reads.

    Args:
      model: in eval mode; its weights do not matter.
      masks: of its prunable weights.
      shape: C, H, W of an image.

    Returns:
      Name of a prunable weight -> bool tensor of its shape, a part of its mask; and -> bool [channels].

    Raises:
      ValueError: if the network has an operation of unknown meaning.
    """
    paths = run_on_paths(model, masks, shape)
    used = {n: w for n, w in paths.weights.items() if n in masks}
    gradients = torch.autograd.grad(paths.result, list(used.values()), materialize_grads=True)
    effective = {n: torch.zeros_like(m) for n, m in masks.items()}
    effective |= {n: masks[n] & (g != 0) for n, g in zip(used, gradients)}

    paths = run_on_paths(model, masks, shape, blind=True)
    outputs = [(n, y, axis) for n, y, axis in paths.outputs if n in masks]
    gradients = torch.autograd.grad(paths.result, [y for _, y, _ in outputs], materialize_grads=True)
    unread = {n: torch.ones(len(m), dtype=torch.bool, device=m.device) for n, m in masks.items()}
    for (name, _, axis), gradient in zip(outputs, gradients):
        unread[name] &= ~(gradient != 0).movedim(axis, 0).flatten(1).any(1)
    return effective, unread
