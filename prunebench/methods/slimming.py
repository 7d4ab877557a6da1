"""Network slimming: BatchNorm scales trained to be sparse, channels of the smallest go."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.criteria.gradient import NORMS
from prunebench.methods.pruner import Criterion, Pruner


class Slimming(Pruner):
    """Trains with an L1 penalty on all BatchNorm scales, then removes the channels of the smallest.

    Liu et al. 2017 (arXiv 1708.06519): the loss has penalty * sum |gamma| in addition, whose subgradient
    penalty * sign(gamma) is added to the gradient of every scale at every step (0 for a scale of 0), as in
    the authors' code; the reported training loss is without it. Channels are ranked by |gamma| over all
    layers (criterion=bn_scale, sparsity.allocation=global in the YAML). Filter, bias, scale and shift go
    together. Retraining is plain fine-tuning.

    The paper: 1e-4 for VGG, 1e-5 for residual networks; 70 % of VGG-19's channels on CIFAR-10. Differs: the
    authors start VGG's scales at 0.5, here they start at the model's own value (1); exactly the asked number
    of channels goes, theirs is a threshold (rethinking-network-pruning, vggprune.py); no layer is emptied; in
    residual networks streams are pruned as wholes, where the paper selects the inputs of every block. Its
    multi-pass scheme is protocol=iterative with during=always.

    Args:
      criterion, allocation, granularity, layer_rates, min_kept: as in `Pruner`.
      penalty: weight of the penalty, above 0.
      during: "dense", the training before the first pruning event; or "always", retraining too.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        allocation: str | dict[str, float] = "global",
        granularity: Literal["weight", "kernel", "filter", "neuron"] = "filter",
        layer_rates: dict[str, float] | None = None,
        min_kept: int = 1,
        penalty: float = 1e-4,
        during: Literal["dense", "always"] = "dense",
    ):
        super().__init__(
            criterion,
            allocation=allocation,
            granularity=granularity,
            layer_rates=layer_rates,
            min_kept=min_kept,
        )
        if not penalty > 0:
            raise ValueError(f"method.penalty={penalty}: must be above 0; without it choose method=one_shot")
        if during not in ("dense", "always"):
            raise ValueError(f"method.during={during}: must be dense or always")
        self.penalty, self.during = penalty, during

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Refuse a plan that prunes before any training."""
        if phases[0].sparsity is not None:
            raise ValueError(
                "method=slimming: trains the scales before it prunes, this plan prunes before any training; "
                "choose protocol=one_shot or iterative"
            )
        return super().plan(phases)

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse a network without scales."""
        if not _scales(run.model):
            raise ValueError(
                f"method=slimming: {type(run.model).__name__} has no BatchNorm with scales to train; "
                "choose a model such as vgg16_bn or resnet18"
            )
        super().check(run, asked)

    @torch.no_grad()
    def step(self, run: Run) -> None:
        """Add the penalty's subgradient, then update the weights."""
        if self.during == "always" or run.clock.cycle == 0:
            scales = [p for p in _scales(run.model) if p.grad is not None]
            signs = torch._foreach_sign(scales)
            torch._foreach_add_([p.grad for p in scales], signs, alpha=self.penalty)
        super().step(run)


def _scales(model: nn.Module) -> list[nn.Parameter]:
    """Every BatchNorm's scale."""
    return [m.weight for m in model.modules() if isinstance(m, NORMS) and m.affine]
