"""DPF: the mask acts on dense weights, which all go on learning from the pruned network's gradients."""

from collections.abc import Sequence
from typing import get_args

import torch

from prunebench.core import parallel
from prunebench.core.phase import Phase
from prunebench.core.ranking import Allocation, ranked
from prunebench.core.run import Run
from prunebench.methods.latent import Latent
from prunebench.ramps import cubic


class DPF(Latent):
    """Dynamic pruning with feedback: gradients are taken at the pruned weights and applied to the dense ones.

    Lin et al. 2020 (arXiv 2006.07253), in the form of the comparison in arXiv 2111.00843 (ZIB-IOL/BIMP); the
    original code was not found. With dense weights w and mask m, every step is w <- w - lr g(m w) for all
    weights; momentum and weight decay act on w. m keeps the largest |w| of the network, is taken anew every
    `interval` steps and whenever the sparsity rises, and pruned weights return when they have grown. The
    sparsity rises at the end of every (n + 1)-th part of training, j = 1, ..., n times, to
    target (1 - (1 - j / n)^3), with n = `rises`: 100 epochs in parts of 10 make n = 9. The last part trains
    at the target, with masks that may still move. At the end w is m w.

    The network holds m w at every step; w lies beside it. Weights of convolutions and linear layers are
    pruned, the first and the classifier included unless excluded; biases and normalisation are not.

    Args:
      interval: steps between two masks.
      rises: n above.
      allocation: "global", one ranking of all weights, or "uniform", layer by layer.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(self, *, interval: int = 16, rises: int = 9, allocation: Allocation = "global"):
        super().__init__()
        if interval < 1:
            raise ValueError(f"interval={interval}: must be at least 1 step")
        if rises < 1:
            raise ValueError(f"rises={rises}: must be at least 1")
        if allocation not in get_args(Allocation):
            raise ValueError(f"sparsity.allocation={allocation}: must be one of global, uniform")
        self.interval, self.rises, self.allocation = interval, rises, allocation
        self._phases: list[Phase] = []

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The plan as it is; a target must be given.

        Raises:
          ValueError: if none is.
        """
        if any(p.within and p.reach is None for p in phases):
            raise ValueError("sparsity.target=null: must be a number, the sparsity after the last rise")
        self._phases = phases
        return phases

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse more rises than steps, and a sparsity that keeps nothing."""
        for phase in self._phases:
            if phase.within and (steps := phase.steps(run)) < 2 * (self.rises + 1):
                raise ValueError(
                    f"method.rises={self.rises}: must leave 2 steps for each part of training, which has "
                    f"{steps}; lower it or lengthen training"
                )
            if phase.within and self.interval >= steps:
                raise ValueError(
                    f"method.interval={self.interval}: steps between two masks, but training has {steps}; "
                    "lower it or lengthen protocol.dense"
                )
        for sparsity in asked:
            if round((1 - sparsity) * run.masks.total) < 1:
                raise ValueError(
                    f"sparsity.target={sparsity}: keeps no weight of {run.masks.total}; lower it"
                )

    @torch.no_grad()
    def step(self, run: Run) -> None:
        """Update all dense weights, take the mask anew where that is due, and apply it to a copy."""
        if run.goal is None:  # a phase of plain training before or after
            super().step(run)
            return
        params, time = self.effective(run), run.clock.step + 1
        if time == 1:  # a phase before may have trained them
            torch._foreach_copy_(list(self.raw.values()), params)
        self.step_raw(run, params)
        if self.renews(time, run.clock.steps):
            sizes = dict(zip(self.raw, torch._foreach_abs(list(self.raw.values()))))
            sparsity = self.sparsity_at(time, run.clock.steps, run.goal)
            masks = ranked(sizes, sparsity, allocation=self.allocation)
            run.replace_masks(parallel.from_first_rank(masks, run.world))
        torch._foreach_copy_(params, list(self.raw.values()))
        run.masks.zero_weights_(run.model)

    def sparsity_at(self, time: int, steps: int, goal: float) -> float:
        """Sparsity after step `time`, from 1, of a phase of so many steps.

        >>> [round(DPF().sparsity_at(t, 100, 0.9), 4) for t in (9, 10, 20, 59, 80, 90, 100)]
        [0.0, 0.2679, 0.4765, 0.821, 0.8988, 0.9, 0.9]
        """
        return cubic(min(self._risen(time, steps), self.rises) / self.rises, target=goal)

    def renews(self, time: int, steps: int) -> bool:
        """Whether the mask is taken anew after step `time`."""
        risen, before = self._risen(time, steps), self._risen(time - 1, steps)
        return risen > 0 and (time % self.interval == 0 or before < risen <= self.rises)

    def _risen(self, time: int, steps: int) -> int:
        """Whole parts of training done."""
        return time * (self.rises + 1) // steps

    def train_macs(self, run: Run, step: int, sparse: int, dense: int) -> int:
        """The gradient of every weight is needed, all else is sparse."""
        return 3 * sparse if run.goal is None else 2 * sparse + dense
