"""Spread of weight gradients and of hidden representations, which pruning is said to narrow."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.feeds import hooked, is_rectifier
from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric, check_at_least, probe_losses

OTHERS = (
    *(nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Softplus, nn.Tanh),
)


class Spread(Metric):
    """Standard deviation and mean of the weight gradient and of the activations, in all and per layer.

    The quantities that SILO's theory is about (arXiv 2212.06144; from its abstract): pruning narrows the
    distributions of hidden representations and of gradients, so that later cycles want a larger learning
    rate. Statistics are of the population (divided by n), in the units of the loss in nats per unit of
    weight, and of the activation.

      gradient_std, gradient_mean: of the gradient of the mean cross-entropy over a fixed probe with respect
        to the kept weights of a prunable layer; in all, over the kept weights of all layers together. None
        for a layer that keeps nothing.
      hidden_std, hidden_mean: of the outputs of an activation module over all images, channels and
        positions; in all, over the outputs of all of them together. None if the network has no such module
        (functional activations cannot be seen).

    Assumed: the gradient of the probe as one batch, in eval mode (BatchNorm with its running statistics),
    without augmentation and label smoothing. Training sees noisier ones; near a minimum this one follows the
    training error that is left. For a method with soft masks it is with respect to the raw weights. Batches
    are added up in float64, so that their size does not matter. Cost: one forward and one backward pass over
    the probe.

    Args:
      every: see `Metric`.
      images: size of the probe, at least 1.
    """

    def __init__(self, *, every: str = "phase", images: int = 2000):
        super().__init__(every=every)
        check_at_least(1, "images", images)
        self.images = images

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"gradient_std", "gradient_mean", "hidden_std", "hidden_mean"}, and "layers", activations last."""
        weights = {n: p for n, p in run.model.named_parameters() if n in run.masks}
        gradients = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in weights.items()}
        modules = {n: m for n, m in run.model.named_modules() if is_rectifier(m) or isinstance(m, OTHERS)}
        hidden = {n: torch.zeros(2, dtype=torch.float64, device=run.device) for n in modules}
        outputs = dict.fromkeys(modules, 0)

        def add(name: str, output: Tensor) -> None:
            values = output.detach().double()
            hidden[name] += torch.stack([values.sum(), values.square().sum()])
            outputs[name] += values.numel()

        with hooked(modules, add):
            for loss in probe_losses(run, method, self.images):
                of_batch = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
                for total, gradient in zip(gradients.values(), of_batch):
                    total += gradient
        masked = [gradient * run.masks[n] for n, gradient in gradients.items()]
        of_weights = [torch.stack([g.sum(), g.square().sum()]) for g in masked]
        found = torch.stack([*of_weights, *hidden.values()]).tolist()
        kept = run.masks.kept_per_layer
        layers = [(n, kept[n], *sums) for n, sums in zip(weights, found)]
        activations = [(n, outputs[n], *sums) for n, sums in zip(modules, found[len(weights) :])]
        return {
            **_moments("gradient", *_total(layers)),
            **_moments("hidden", *_total(activations)),
            "layers": [{"name": n, **_moments("gradient", *sums)} for n, *sums in layers]
            + [{"name": n, **_moments("hidden", *sums)} for n, *sums in activations],
        }


def _total(rows: Sequence[tuple[str, int, float, float]]) -> tuple[int, float, float]:
    """Count, sum and sum of squares over all rows."""
    return sum(r[1] for r in rows), math.fsum(r[2] for r in rows), math.fsum(r[3] for r in rows)


def _moments(what: str, count: int, total: float, squares: float) -> dict[str, float | None]:
    """Standard deviation and mean of `count` values, from their sum and sum of squares."""
    if not count:
        return {f"{what}_std": None, f"{what}_mean": None}
    mean = total / count
    return {f"{what}_std": math.sqrt(max(squares / count - mean * mean, 0.0)), f"{what}_mean": mean}
