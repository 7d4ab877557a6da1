"""Second-order scores: how much the loss would rise without a weight, at a minimum."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from prunebench.core.run import Run
from prunebench.criteria.gradient import (
    Weights,
    check_images,
    gradients,
    hessian_times,
    network,
    prunable_weights,
    scoring_images,
)

PER_SAMPLE_ENTRIES = 2**25  # gradients of single images held at once: 128 MB in float32


def obd(run: Run, *, batches: int = 4, probes: int = 10) -> dict[str, Tensor]:
    """0.5 * H_ii * w^2, with the diagonal of the loss's Hessian estimated by Hutchinson's method.

    Optimal Brain Damage (LeCun, Denker, Solla 1990, Advances in NIPS 2). H_ii is the mean of
    v_i * (Hv)_i over random sign vectors v, an unbiased estimate whose variance is the sum of H_ij^2 over
    j != i; every batch has its own vectors. The network is in eval mode, as OBD asks for a trained minimum.

    Differs: the paper takes the Levenberg-Marquardt (Gauss-Newton) diagonal, which is never negative; here
    scores can be, where the loss curves down or by chance. The paper prunes and retrains in turns, which the
    protocol says here. Biases and normalisation are not pruned.

    Args:
      batches: batches of the training batch size, over which the mean loss is taken, at least 1.
      probes: sign vectors per batch, at least 1; each costs a Hessian-vector product.

    Returns:
      parameter name -> score of the parameter's shape, of either sign; 0 for pruned weights.

    Raises:
      ValueError: if an option is out of range or there are too few images.
    """
    check_obd(run, batches=batches, probes=probes)
    weights, rng = prunable_weights(run), run.rng("probes")
    mean = {n: torch.zeros_like(w) for n, w in weights.items()}
    with network(run, "eval") as forward:
        for x, y in scoring_images(run, batches=batches):
            grads = gradients(F.cross_entropy(forward(weights, x), y), weights, create_graph=True)
            vectors = (_signs(run.masks, weights, rng) for _ in range(probes))
            for n, h in hessian_diagonal(grads, weights, vectors, count=probes).items():
                mean[n] += h / batches
    return {n: 0.5 * mean[n] * w.detach().square() for n, w in weights.items()}


def hessian_diagonal(
    grads: Weights, weights: Weights, vectors: Iterator[Weights], *, count: int
) -> dict[str, Tensor]:
    """Mean of v * Hv over `count` vectors v: the diagonal of H if the mean of v v^T is the identity."""
    mean = {n: torch.zeros_like(w) for n, w in weights.items()}
    for j, v in enumerate(vectors, start=1):
        for n, product in hessian_times(grads, v, weights, keep_graph=j < count).items():
            mean[n] += v[n] * product / count
    return mean


def _signs(masks: Mapping[str, Tensor], weights: Weights, rng: torch.Generator) -> dict[str, Tensor]:
    """+1 or -1 for every alive weight, drawn on the CPU; 0 for a pruned one, which adds no variance."""
    drawn = {n: torch.randint(2, w.shape, generator=rng, dtype=torch.int8) for n, w in weights.items()}
    return {n: (2 * d - 1).to(weights[n]) * masks[n] for n, d in drawn.items()}


def obd_fisher(run: Run, *, batches: int = 4) -> dict[str, Tensor]:
    """0.5 * mean over images of g_i^2, times w^2: the empirical Fisher information in the Hessian's place.

    A common stand-in for the diagonal in Optimal Brain Damage (LeCun, Denker, Solla 1990); it equals it where
    the network's probabilities are those of the labels. g_i is the gradient of one image's loss at its true
    label. Computed by vectorised per-image gradients, in chunks whose gradients fit 128 MB; their number
    changes the result by rounding only. The network is in eval mode.

    Differs from the paper as `obd` does, but never negative. Biases and normalisation are not pruned.

    Args:
      batches: batches of the training batch size, at least 1.

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights.

    Raises:
      ValueError: if an option is out of range or there are too few images.
    """
    images = scoring_images(run, batches=batches)
    # contiguous: in channels_last some layers are batched one image at a time, with a warning
    weights = {n: w.detach().contiguous() for n, w in prunable_weights(run).items()}
    chunk = max(1, PER_SAMPLE_ENTRIES // sum(w.numel() for w in weights.values()))
    total, count = {n: torch.zeros_like(w) for n, w in weights.items()}, sum(len(y) for _, y in images)
    with network(run, "eval") as forward:

        def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(forward(weights, x[None]), y[None])

        single = vmap(grad(loss), in_dims=(None, 0, 0))
        # Else the sums would hold the graph of every image, by way of the parameters that are not scored.
        with torch.no_grad():
            for x, y in images:
                for part in zip(x.contiguous().split(chunk), y.split(chunk)):
                    for n, g in single(weights, *part).items():
                        total[n] += g.square().sum(0)
    return {n: 0.5 * total[n] / count * w.square() for n, w in weights.items()}


def check_obd(run: Run, *, batches: int, probes: int) -> None:
    """Refuse options of `obd` before training."""
    check_images(run, batches=batches)
    if probes < 1:
        raise ValueError(f"criterion.probes={probes}: must be 1 or more")


obd.check = check_obd
obd_fisher.check = check_images
