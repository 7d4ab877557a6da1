"""Network slimming: scales of BatchNorm that are trained to be sparse, and channels that go by them."""

from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.criteria.gradient import NORMS
from prunebench.methods.pruner import Criterion, Pruner


class Slimming(Pruner):
    """Training with an L1 penalty on the scales of BatchNorm, then pruning by their size.

    Network Slimming (Liu et al. 2017, arXiv 1708.06519, eq. 1): the loss is that of the method's base plus
    strength * sum of |gamma| over all BatchNorms, whose gradient is strength * sign(gamma), 0 at 0. Channels
    go by criterion=bn_scale in one ranking over the network. Fine-tuning is without the penalty (`during`),
    as the authors' scripts do it by default. Differs: counts are exact, where their comparison with a
    threshold keeps one channel less; channels of residual streams go with all layers that make them, where
    they leave the stream whole and select channels behind the first BatchNorm of a block. Layers without
    BatchNorm behind them are not pruned at filter granularity if they are linear, and refused if they are
    convolutions.

    The training loss in the rows includes the penalty.

    Args:
      criterion: gives the scores, higher = keep.
      strength: of the penalty, above 0; 1e-4 for VGG, 1e-5 for ResNet-164 and DenseNet-40 in the paper.
      during: training with the penalty: "dense" (before the first pruning event) or "all".
      allocation, granularity, layer_rates, min_kept, round_to, max_ratio, normalizer: as in
        `Pruner`.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        strength: float = 1e-4,
        during: Literal["dense", "all"] = "dense",
        allocation: str | dict[str, float] = "global",
        granularity: Literal["weight", "kernel", "filter", "neuron"] = "filter",
        layer_rates: dict[str, float] | None = None,
        min_kept: int = 1,
        round_to: int | None = None,
        max_ratio: float | None = None,
        normalizer: Literal["none", "mean", "max"] = "none",
    ):
        super().__init__(
            criterion,
            allocation=allocation,
            granularity=granularity,
            layer_rates=layer_rates,
            min_kept=min_kept,
            round_to=round_to,
            max_ratio=max_ratio,
            normalizer=normalizer,
        )
        if strength <= 0:
            raise ValueError(f"method.strength={strength}: must be above 0; use method=one_shot for 0")
        if during not in ("dense", "all"):
            raise ValueError(f"method.during={during}: must be dense or all")
        self.strength, self.during = strength, during

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Refuse a plan in which no training has the penalty."""
        if self.during == "dense" and phases[0].sparsity is not None:
            raise ValueError(
                "method.during=dense: this plan prunes before any training, so that the penalty has no "
                "effect; use protocol=one_shot or iterative, or method.during=all"
            )
        return super().plan(phases)

    def check(self, run: Run, asked: list[float]) -> None:
        """As every pruner, and refuse a network without scales."""
        if not scales(run.model):
            raise ValueError(
                f"method=slimming: {type(run.model).__name__} has no BatchNorm whose scales could be "
                "trained to be sparse; choose a model that has, such as vgg16_bn"
            )
        super().check(run, asked)

    def loss(self, run: Run, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the batch, and the penalty while it is on."""
        loss = super().loss(run, logits, targets)
        if self.during == "dense" and run.clock.cycle:
            return loss
        return loss + self.strength * torch.cat(scales(run.model)).abs().sum()


def scales(model: nn.Module) -> list[Tensor]:
    """The scale gamma of every BatchNorm that has one."""
    return [m.weight for m in model.modules() if isinstance(m, NORMS) and m.weight is not None]
