"""SynFlow: the share of every weight in the flow through the network, without data."""

import torch
from torch import Tensor

from prunebench.core.run import Run
from prunebench.criteria.gradient import gradients, network


def synflow(run: Run) -> dict[str, Tensor]:
    """|theta * dR/dtheta|, R the sum of the outputs for an image of ones, all tensors made absolute.

    Tanaka, Kunin, Yamins, Ganguli 2020 (arXiv 2006.05467, algorithm 1; Pruners/pruners.py of
    ganguli-lab/Synaptic-Flow). Every tensor of the state dict is replaced by its absolute value, BatchNorm's
    included, and the network is in eval mode. In a chain of layers without bias the scores of every layer
    have the same sum, so that repeated pruning empties none. The 100 repetitions, each on what the one before
    left, are `method.iterations`; one pass with criterion=synflow alone is another method. In float64,
    because R of a deep network leaves float32's range. Differs: what every repetition keeps is rounded to the
    nearest number, where the authors' code rounds the number removed down.

    Biases and normalisation are not pruned, nor in the authors' experiments. The network itself is not
    touched: it is evaluated with other tensors in the parameters' places.

    Returns:
      parameter name -> float64 score of the parameter's shape, at least 0; 0 for pruned weights.
    """
    model, saved = run.model, set(run.model.state_dict())
    tensors = {n: p.detach().double().abs() for n, p in model.named_parameters()}
    for n, b in model.named_buffers():
        b = b.double() if b.is_floating_point() else b
        tensors[n] = b.abs() if n in saved else b
    weights = {n: tensors[n].requires_grad_() for n in run.masks}
    with network(run, "eval") as forward:
        ones = torch.ones(1, *run.data.shape, dtype=torch.float64, device=run.device)
        grads = gradients(forward(tensors, ones).sum(), weights)
    return {n: (weights[n].detach() * g).abs() for n, g in grads.items()}
