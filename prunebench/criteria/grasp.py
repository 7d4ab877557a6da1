"""GraSP: keep the weights without which gradients would flow less."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prunebench.core.run import Run
from prunebench.criteria.gradient import (
    Forward,
    Mode,
    Weights,
    check_images,
    gradients,
    hessian_times,
    network,
    prunable_weights,
    scoring_images,
)


def grasp(
    run: Run, *, per_class: int = 10, temperature: float = 200.0, bn_mode: Mode = "train"
) -> dict[str, Tensor]:
    """Gradient flow lost without the weight, theta * Hg.

    Wang, Zhang, Grosse 2020 (arXiv 2002.07376, algorithm 1), whose own score is the negative and whose
    highest are removed. It is half of what the squared norm of the gradient loses to first order. The images
    of every class are cut into two half-batches. g is the sum of their gradients of cross-entropy(logits /
    temperature), Hg the sum over both of the Hessian of the same loss times g. Gradient and Hessian are those
    over the alive prunable weights. The score has a sign: below 0 are weights without which gradients flow
    better.

    Differs from the authors' code (alecwangcq/GraSP, pruner/GraSP.py): linear layers are not drawn anew
    (Xavier normal) before scoring, so that what is scored is what is trained; the halves are random, not the
    first and the second half of the classes; exactly the asked number of weights goes; biases and
    normalisation are not pruned, as there. Each half is one batch: memory grows with per_class * classes,
    and the second derivative takes about three times that of training.

    Args:
      per_class: images of every class (10 in the authors' configurations, 25 in the function's default).
      temperature: divides the logits, above 0.
      bn_mode: mode of the network, "train" (statistics of the half-batch, as in the authors' code) or "eval"
        (running ones, as in that of arXiv 2006.05467).

    Returns:
      parameter name -> score of the parameter's shape, of either sign; 0 for pruned weights.

    Raises:
      ValueError: if an option is out of range or there are too few images.
    """
    check_grasp(run, per_class=per_class, temperature=temperature, bn_mode=bn_mode)
    batches = scoring_images(run, per_class=per_class)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    half = len(y) // 2
    with network(run, bn_mode) as forward:
        return gradient_flow(
            forward,
            prunable_weights(run),
            [(x[:half], y[:half]), (x[half:], y[half:])],
            masks=run.masks,
            temperature=temperature,
        )


def check_grasp(run: Run, *, per_class: int, temperature: float, bn_mode: str) -> None:
    """Refuse options of `grasp` before training."""
    check_images(run, per_class=per_class)
    if not temperature > 0:
        raise ValueError(f"criterion.temperature={temperature}: must be above 0")
    if per_class * run.data.num_classes < 2:
        raise ValueError(f"criterion.per_class={per_class}: must give two images at least")


def gradient_flow(
    forward: Forward,
    weights: Weights,
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    masks: Weights,
    temperature: float,
) -> dict[str, Tensor]:
    """Scores theta * Hg, with g and H summed over the parts, each of which counts by its mean loss.

    Args:
      forward: (weights, images) -> logits.
      weights: leaves that want gradients.
      parts: images with labels.
      masks: name -> bool tensor; g is 0 where it is False.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(forward(weights, x) / temperature, y)

    total = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x, y in parts:
        for n, g in gradients(loss(x, y), weights).items():
            total[n] += g * masks[n]
    scores = {n: torch.zeros_like(w) for n, w in weights.items()}
    for x, y in parts:
        grads = gradients(loss(x, y), weights, create_graph=True)
        for n, product in hessian_times(grads, total, weights).items():
            scores[n] += weights[n].detach() * product
    return scores


grasp.check = check_grasp
