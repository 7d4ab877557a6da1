"""A dense network that is as small as the sparse one."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.units import PrunableModel, prunable_names

HALVINGS = 14  # of the interval in which the factor lies: finer than one channel in 2048


class SmallDense(Method):
    """Trains a narrower dense network of the sparse network's size: every width times one factor.

    The baseline "Small-Dense" of Evci et al. 2020 (arXiv 1911.11134; google-research/rigl, notebook
    Resnet_50_Param_Flops_Counting). The factor is the one in (0, 1] whose network comes nearest to the size
    asked for. A sparse network's size is 32 bits for every kept weight and every other parameter, and one
    mask bit for every weight that masks cover (equal=bits, the paper's), or its number of weights alone
    (equal=weights). The factors quoted for ResNet-50 at 80, 90, 95 and 96.5 % are .465, .34, .26 and .231.

    Nothing is masked; the initial weights are those of the narrow network. In the result sparsity,
    compression and MACs are relative to the configured network, and `asked` is the sparsity whose size is
    taken; whole channels meet it nearly. With equal=bits the narrow network has more weights than the sparse
    one keeps: those that the mask's bits pay for, a thirty-second of all weights, and more at high sparsity
    than the sparse network has. Training costs 3 f of the narrow network per image, at equal size often more
    than that of the sparse one.

    Args:
      target: sparsity of the network whose size is taken, in (0, 1).
      equal: what is equal: "bits" or "weights".
      exclude: layer patterns that the sparse network keeps dense.
    """

    during_training = True

    def __init__(
        self, *, target: float | None, equal: Literal["bits", "weights"] = "bits", exclude: Sequence[str] = ()
    ):
        if target is None:
            raise ValueError(
                "sparsity.target=null: must be a number, method=small_dense takes no sparsity.compression"
            )
        if not 0 < target < 1:
            raise ValueError(f"sparsity.target={target}: must lie in (0, 1); for 0 choose method=dense")
        if equal not in ("bits", "weights"):
            raise ValueError(f"equal={equal}: must be bits or weights")
        self.target, self.equal, self.exclude = target, equal, exclude
        self.factor: float | None = None
        self._whole: nn.Module | None = None

    def network(self, model: nn.Module) -> nn.Module:
        """The narrow network.

        Raises:
          ValueError: if the model cannot be made narrow enough.
        """
        if not isinstance(model, PrunableModel) or not model.widths:
            raise ValueError(
                f"method=small_dense: {type(model).__name__} has no widths to change; choose another model"
            )
        if self.factor is None:
            self._whole = copy.deepcopy(model).to("meta")
            self.factor = self._search(model)
        return model.scaled(self.factor)

    @property
    def stands_for(self) -> tuple[nn.Module, float] | None:
        """The configured network and the factor."""
        return None if self._whole is None else (self._whole, self.factor)

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The sparsity is met as nearly as whole channels allow.

        Raises:
          ValueError: if a control is asked for, which would train found masks, or dense training before.
        """
        if any(p.uncontrolled is not None for p in phases):
            raise ValueError("protocol.control: no masks are found; set it to none")
        if len(phases) > 1:
            raise ValueError("protocol.before: the narrow network trains once; set it to null")
        return [replace(p, nearly=True) if p.within else p for p in phases]

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Nothing to refuse: `network` has looked at the model."""

    def size(self, model: nn.Module, density: float | None) -> float:
        """Bits or weights of a network; of its sparse form with this density of the prunable weights."""
        names = set(prunable_names(model, self.exclude))
        params = dict(model.named_parameters())
        prunable = sum(params[n].numel() for n in names)
        others = sum(p.numel() for p in params.values()) - prunable
        kept = prunable if density is None else round(density * prunable)
        if self.equal == "weights":
            return kept + others
        return 32 * (kept + others) + (0 if density is None else prunable)

    def _search(self, model: PrunableModel) -> float:
        goal = self.size(model, 1 - self.target)

        def narrow(factor: float) -> float:
            with torch.device("meta"):
                return self.size(model.scaled(factor), None)

        low, high = 0.0, 1.0
        if narrow(low) > goal:
            raise ValueError(
                f"sparsity.target={self.target}: with one channel in every unit this model is still larger "
                "than in its sparse form; lower the target"
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if narrow(middle) > goal else (middle, high)
        return min((low, high), key=lambda factor: abs(narrow(factor) - goal))
