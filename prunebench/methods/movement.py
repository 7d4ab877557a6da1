"""Movement pruning: scores that are gathered while training."""

from typing import Any, Literal

import torch
from torch import Tensor

from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.methods.pruner import Pruner


class Movement(Pruner):
    """Keeps the weights that training moves away from 0: S <- S - lr_S * dL/dW * W, the highest S stay.

    First-order movement pruning, Sanh, Wolf, Rush 2020 (arXiv 2005.07683, sec. 4; authors' code in
    huggingface/block_movement_pruning, emmental/modules/binarizer.py). dL/dW is the gradient of the masked
    weights at every step, before the masks zero it; the paper gets the same update by letting the gradient of
    S pass the top-v mask unchanged. A constant factor in lr_S changes no ranking, so there is no option for
    it (the authors: 1e-2): lr_S is the learning rate of the weights at that step, which follows the same
    schedule as in the paper.

    Differs: the paper fine-tunes BERT and prunes at every step of a cubic schedule, and a pruned weight keeps
    its value and may return while its S grows; here pruning events are the protocol's, pruned weights are 0,
    their S stands still, and they never return. S is updated by plain gradient descent, as the paper writes
    it, not by the weights' optimizer (Adam in the code). S is gathered from the first step on and never
    reset, also where a round starts from earlier weights. The soft variant (a threshold and a penalty on S)
    is not offered. The paper ranks every matrix by itself, sparsity.allocation=uniform in the YAML, and
    prunes the encoder's matrices only; here every convolution and linear layer, the classifier too unless
    excluded. Biases and normalisation are not pruned.

    Args:
      allocation, granularity, layer_rates, min_kept, round_to, max_ratio, normalizer: as in
        `Pruner`.

    Attributes:
      scores: parameter name -> S.
    """

    state = ("scores",)

    def __init__(
        self,
        *,
        allocation: str | dict[str, float] = "global",
        granularity: Literal["weight", "kernel", "filter", "neuron"] = "weight",
        layer_rates: dict[str, float] | None = None,
        min_kept: int = 1,
        round_to: int | None = None,
        max_ratio: float | None = None,
        normalizer: Literal["none", "mean", "max"] = "none",
    ):
        super().__init__(
            self.gathered,
            allocation=allocation,
            granularity=granularity,
            layer_rates=layer_rates,
            min_kept=min_kept,
            round_to=round_to,
            max_ratio=max_ratio,
            normalizer=normalizer,
        )
        self.scores: dict[str, Tensor] = {}

    def gathered(self, run: Run) -> dict[str, Tensor]:
        """S, the criterion of this method."""
        return self.scores

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Refuse a plan that prunes before any training."""
        if phases[0].sparsity is not None:
            raise ValueError(
                "method=movement: scores are gathered while training, this plan prunes before any; choose "
                "protocol=iterative or one_shot"
            )
        return super().plan(phases)

    def attach(self, run: Run) -> None:
        """Begin with S = 0."""
        params = dict(run.model.named_parameters())
        self.scores = {n: torch.zeros_like(params[n], requires_grad=False) for n in run.masks}

    @torch.no_grad()
    def step(self, run: Run) -> None:
        """Gather S from the dense gradients, then update the weights."""
        params, lr = dict(run.model.named_parameters()), run.optimizer.param_groups[0]["lr"]
        moved = [(s, params[n]) for n, s in self.scores.items() if params[n].grad is not None]
        scores, weights = [s for s, _ in moved], [p for _, p in moved]
        torch._foreach_addcmul_(scores, [p.grad for p in weights], weights, value=-lr)
        super().step(run)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load S onto the device where it is gathered."""
        super().load_state_dict({"scores": {n: s.copy_(state["scores"][n]) for n, s in self.scores.items()}})
