"""STR: every layer learns the threshold below which its weights are 0."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.methods.latent import Latent


class STR(Latent):
    """Soft threshold reparameterisation: the effective weights are sign(w) relu(|w| - sigmoid(s)).

    Kusupati et al. 2020 (arXiv 2002.03231, eq. 3 to 5; RAIVNLab/STR). w and s, one number per layer, are
    learned by gradient descent with the optimizer's weight decay on both; decay of s towards 0 raises the
    threshold. There is no target: the sparsity is what `s_initial`, weight decay and length of training make
    of it (`protocol.target=null`). The final weights are the effective, shrunk ones.

    The gradients are those of the formula: with g at the effective weight, w gets g where |w| > sigmoid(s),
    else 0, and s gets -sigmoid'(s) times the sum of g sign(w) over the same weights. In the authors' ImageNet
    setting s_initial=-3200 and weight decay 2.2518e-5 give 90 % sparsity after 100 epochs; there sigmoid(s)
    and its gradient are 0 in float32, so that nothing but weight decay moves s at first, and a short training
    never prunes. The default of -5 is ours, for short training.

    Every weight of a convolution or linear layer is trained so, each layer with its own s, the first and the
    classifier included unless excluded; biases and normalisation are not pruned. A weight that is 0 has no
    gradient, but may return when its layer's threshold sinks or, with momentum, by itself. The network always
    holds the effective weights; masks are read off it every `interval` steps and at the ends of epochs,
    for rows and for the count of MACs; `zeros_hold: false` marks rows of metrics.jsonl in between.

    Args:
      s_initial: s of every layer at the start.
      interval: steps between two readings of the masks; training does not depend on it.

    Attributes:
      thresholds: one s per prunable parameter, in their order.

    Raises:
      ValueError: if s_initial is not finite or interval is below 1.
    """

    state = ("raw", "thresholds")

    def __init__(self, *, s_initial: float = -5.0, interval: int = 16):
        super().__init__()
        if not math.isfinite(s_initial):
            raise ValueError(f"s_initial={s_initial}: must be a finite number")
        if interval < 1:
            raise ValueError(f"interval={interval}: must be at least 1 step")
        self.s_initial, self.interval = s_initial, interval
        self.thresholds = nn.ParameterList()
        self._phases: list[Phase] = []

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The plan as it is: one phase, without a target, that ends with its last network.

        Raises:
          ValueError: if it is another.
        """
        if any(p.reach is not None for p in phases):
            raise ValueError(
                "protocol.target: STR reaches no given sparsity, it is the outcome of method.s_initial and "
                "optimizer.weight_decay; leave it null"
            )
        if len(phases) > 1:
            raise ValueError("protocol.before, protocol.control: STR trains one phase; leave them out")
        if phases[0].keep == "best" or phases[0].patience is not None:
            raise ValueError(
                "protocol.keep=best, protocol.patience: would choose among networks of any sparsity, and the "
                "densest comes first; leave them out"
            )
        self._phases = phases
        return phases

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse thresholds that leave nothing to train, and an interval beyond the end."""
        threshold = 1 / (1 + math.exp(-max(self.s_initial, -700.0)))
        params = dict(run.model.named_parameters())
        if all(float(params[n].detach().abs().max()) <= threshold for n in run.masks):
            raise ValueError(
                f"method.s_initial={self.s_initial}: the threshold of {threshold:.3g} is above every weight, "
                "none is left to train; lower it"
            )
        if self.interval >= (steps := self._phases[0].steps(run)):
            raise ValueError(
                f"method.interval={self.interval}: steps between two readings of the masks, but training has "
                f"{steps}; lower it or lengthen protocol.dense"
            )

    def attach(self, run: Run) -> None:
        """Begin with the thresholds of `s_initial`."""
        super().attach(run)
        self.thresholds = nn.ParameterList(
            nn.Parameter(raw.new_tensor(float(self.s_initial))) for raw in self.raw.values()
        )
        self._show(run)

    def param_groups(self) -> list[dict[str, Any]]:
        """The thresholds, with the optimizer's own learning rate and weight decay."""
        return [{"params": list(self.thresholds)}]

    @torch.no_grad()
    def step(self, run: Run) -> None:
        """Carry the gradients over to w and s, update both, and show the effective weights."""
        params = self.effective(run)
        torch._foreach_sign_(params)  # 0 below the threshold; what they held is written anew in the end
        trained = [(p, s) for p, s in zip(params, self.thresholds) if p.grad is not None]
        signs, gradients = [p for p, _ in trained], [p.grad for p, _ in trained]
        torch._foreach_mul_(gradients, signs)
        for gradient, (_, s) in zip(gradients, trained):
            threshold = torch.sigmoid(s)
            s.grad = gradient.sum() * (threshold * (threshold - 1))
        torch._foreach_mul_(gradients, signs)
        self.step_raw(run, params)
        self._show(run)
        run.zeros_hold = self.waits(run)
        if run.zeros_hold:
            masks = Masks({n: p != 0 for n, p in zip(self.raw, params)})
            masks.count()
            run.replace_masks(masks)

    def waits(self, run: Run) -> bool:
        """When the masks are read: how many weights are left, only the device knows."""
        time = run.clock.step + 1
        return time % self.interval == 0 or time % run.data.steps_per_epoch == 0 or time == run.clock.steps

    @torch.no_grad()
    def _show(self, run: Run) -> None:
        """Write the effective weights into the network: w less w clamped to [-t, t], t = sigmoid(s)."""
        for p, w, s in zip(self.effective(run), self.raw.values(), self.thresholds):
            threshold = torch.sigmoid(s)
            torch.minimum(w, threshold, out=p)  # `clamp` with tensors takes three times as long on a CPU
            torch.maximum(p, -threshold, out=p)
            torch.sub(w, p, out=p)
