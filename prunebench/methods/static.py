"""A random sparse network, trained as it is."""

from collections.abc import Sequence

from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.methods.sparse_start import check_start, draw_masks, sparse_start


class Static(Method):
    """Trains a network whose random mask, drawn before the first step, never changes.

    The baseline "Static" of Evci et al. 2020 (arXiv 1911.11134; google-research/rigl, training method
    `scratch`). Training costs 3 f_S per image, with f_S the MACs of the sparse network.

    Differs: counts add up to the sparsity exactly, where the authors' code rounds the zeros of each layer
    down. Weights of convolutions and linear layers are masked, the first and the classifier included unless
    excluded: the paper's uniform allocation keeps the first convolution dense, which is
    sparsity.allocation=uniform with sparsity.exclude naming it. Biases and normalisation are not masked.

    Args:
      allocation: "erk", "er", "uniform", "uniform_plus", or layer pattern -> sparsity.
      min_kept: floor of every layer, in weights.
    """

    during_training = True

    def __init__(self, *, allocation: str | dict[str, float] = "erk", min_kept: int = 1):
        if min_kept < 0:
            raise ValueError(f"sparsity.min_kept={min_kept}: must be 0 or more")
        self.allocation, self.min_kept = allocation, min_kept

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Sparse from the first step."""
        return sparse_start(phases)

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse an allocation that this network cannot have."""
        check_start(run, asked, self.allocation, self.min_kept)

    def prune(self, run: Run, sparsity: float) -> None:
        """Draw the masks."""
        draw_masks(run, sparsity, self.allocation, self.min_kept)
