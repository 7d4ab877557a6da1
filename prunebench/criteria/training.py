"""Scores that look back on training."""

from typing import Literal

import torch
from torch import Tensor

from prunebench.core.run import Run

BEFORE = "epoch_before"


def weight_change(
    run: Run, *, form: Literal["change", "change_times_weight"] = "change"
) -> dict[str, Tensor]:
    """|w_end - w_before|, w_before the weights one epoch before the end of the phase that is over.

    The "global gradient" of SILO's experiments (arXiv 2212.06144; base criterion of the ResNet-20 script,
    pruned over all layers; the VGG-19 script takes |change| * |w| and prunes layer by layer, which is
    form=change_times_weight sparsity.allocation=uniform). The change over an epoch stands for the gradient.
    The snapshot is asked for by the attribute `snapshots`, which `Pruner.plan` enters into the phases before
    pruning events; of a phase shorter than an epoch it is the network at its start. With protocol.keep=best
    w_end is the best network, whose epoch may be another.

    Differs: the scripts prune BatchNorm's scales too; here biases and normalisation are not pruned.

    Args:
      form: "change", or "change_times_weight" for |w_end - w_before| * |w_end|.

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights.

    Raises:
      ValueError: if the snapshot was not taken, or no weight has changed since: nothing was trained.
    """
    if form not in ("change", "change_times_weight"):
        raise ValueError(f"criterion.form={form}: must be change or change_times_weight")
    if BEFORE not in run.snapshots:
        raise ValueError(
            "criterion=weight_change: this method takes no snapshot an epoch before the pruning event; use "
            "method=imp, lth or one_shot, or another criterion"
        )
    before, params = run.snapshots[BEFORE], dict(run.model.named_parameters())
    changes = {n: (params[n].detach() - before[n]).abs() for n in run.masks}
    if not bool(torch.stack([c.any() for c in changes.values()]).any()):
        raise ValueError(
            "criterion=weight_change: no weight has changed in the epoch before; the phase before a pruning "
            "event must train"
        )
    if form == "change":
        return changes
    return {n: c * params[n].detach().abs() for n, c in changes.items()}


weight_change.snapshots = ((BEFORE, "-1ep"),)
