"""Scores that need no data."""

import torch
from torch import Tensor

from prunebench.core.allocation import lamp_scores
from prunebench.core.run import Run


def magnitude(run: Run) -> dict[str, Tensor]:
    """|w| (Han et al. 2015, arXiv 1506.02626).

    Returns:
      parameter name -> score of the parameter's shape and memory format, higher = keep.
    """
    return {n: p.detach().abs() for n, p in run.model.named_parameters() if n in run.masks}


def lamp(run: Run) -> dict[str, Tensor]:
    """w^2 over the sum of the squares that are not smaller in its layer: magnitude made fit for one ranking.

    Lee et al. 2021 (arXiv 2010.07611, eq. 2; jaeho-lee/layer-adaptive-sparsity, which turns the global
    ranking into amounts per layer and prunes by magnitude, the same). Meant for sparsity.allocation=global:
    the largest weight of every layer gets 1, so that none empties. Where every layer is ranked by itself, and
    with a prior per layer, it is magnitude. For filters and kernels the scores are summed;
    sparsity.allocation=lamp takes LAMP scores of sums instead. Biases and normalisation are not pruned.

    Returns:
      parameter name -> float64 score of the parameter's shape, in [0, 1]; 0 for pruned weights.
    """
    params = dict(run.model.named_parameters())
    return {n: lamp_scores(params[n].detach().abs()) for n in run.masks}


def random(run: Run) -> dict[str, Tensor]:
    """U(0, 1): every weight is as likely to go as any other. Drawn on the CPU, the same on every device.

    The counts are exact, where ShrinkBench (arXiv 2003.03033) keeps each weight independently.

    Returns:
      parameter name -> score of the parameter's shape, higher = keep.
    """
    rng = run.rng("criterion")
    return {n: torch.rand(m.shape, generator=rng).to(m.device) for n, m in run.masks.items()}


def no_scores(run: Run) -> dict[str, Tensor]:
    """Refuse: the method in use chooses weights in its own way.

    Raises:
      ValueError: always.
    """
    raise ValueError(
        "criterion=none: this method asks for scores; choose a criterion, such as criterion=magnitude"
    )


no_scores.check = no_scores
