"""Scores that need no data."""

import torch
from torch import Tensor

from prunebench.core.run import Run


def magnitude(run: Run) -> dict[str, Tensor]:
    """|w| (Han et al. 2015, arXiv 1506.02626).

    Returns:
      parameter name -> score of the parameter's shape and memory format, higher = keep.
    """
    return {n: p.detach().abs() for n, p in run.model.named_parameters() if n in run.masks}


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
