"""PLATON: weights ranked by smoothed sensitivity times its uncertainty, pruned and revived while training."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunebench.core import parallel
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase, parse_length
from prunebench.core.ranking import Allocation, ranked
from prunebench.core.run import Run
from prunebench.ramps import cubic

Uncertainty = Literal["abs", "var", "none"]
ScorePoint = Literal["post_step", "pre_step"]


class PLATON(Method):
    """Keeps weights of large or uncertain importance; zeroed weights may revive until the last stage.

    Zhang et al. 2022 (arXiv 2206.12562), as the authors' code does it (QingruZhang/PLATON, Pruner.py). Step
    t = 1, ..., T of the phase:

    1. The gradients are clipped to a global norm of 1, the optimizer steps.
    2. Sensitivity s = |w g| with the weights after the step and the clipped gradient of this batch.
    3. With j = t mod window: j > 0 puts s into the window's mean, ipt <- (j ipt + s) / (j + 1). j = 0 ends a
       window: I <- beta1 I + (1 - beta1) ipt; then with the new I, U <- beta2 U + (1 - beta2) |ipt - I|; then
       ipt <- s. So scores lag a step behind, and the first window's mean has a 0 in it.
    4. Sparsity 0 up to step t_i; from T - t_f on the target; between them
       target - (target - start) (1 - (t - t_i) / (T - t_i - t_f))^3.
    5. The weights of lowest I U are set to 0: in the middle stage at the ends of windows, in the last stage
       at every step, where the ranking is new at the ends of windows only.

    The optimizer's state, gradients and scores of zeroed weights go on. In the middle stage a zeroed weight
    is thus updated at the next step and has a value until the next zeroing: masks and sparsity in
    metrics.jsonl are those of the last zeroing, `zeros_hold: false` marks rows written since then (accuracy
    included), and training is counted there as dense. In the last stage the zeros are there after every step.

    Differs: exactly the asked number of weights is zeroed, where the code zeroes what lies strictly below the
    k-th smallest score (one fewer, or fewer still among ties; `exact_k=false` does that in the middle stage,
    the last is always exact). The paper's equations, recalled, have the scores of the current step; this is
    the code. The paper prunes the encoder's linear layers with their biases; here every convolution and
    linear layer, the first and the classifier included unless `sparsity.exclude` names them; biases and
    normalisation are not pruned. It fine-tunes pre-trained networks: give one by model.checkpoint or
    model.pretrained of model=timm, or let `protocol.before` train densely first (without clipping or scores).
    The ViT settings of the paper were not at hand: t_initial, t_final and window are the card's choice.

    Args:
      beta1, beta2: smoothing of importance and of uncertainty, in [0, 1).
      window: steps over which sensitivities are averaged, and between two rankings (Delta T).
      t_initial, t_final: first and last stage, each a share of the phase or a length such as "5400it".
      start: sparsity where the ramp begins; no zeroing takes place before.
      allocation: "global", one ranking of all weights as in the paper, or "uniform", layer by layer.
      uncertainty: "abs" as above; "none" ranks by I alone (beta2 = 1 in the code); "var" by I sqrt(V), V the
        mean of (ipt - I)^2 over all windows (the code's running variance in our words, an ablation).
      score_point: "post_step", or "pre_step" with the weights before the step (first-order Taylor).
      exact_k: see above.
      grad_clip: largest global gradient norm; null for none.

    Attributes:
      window_mean, importance, deviation: parameter name -> ipt, I and U (or V), float tensors of its shape.

    Raises:
      ValueError: if an option is out of range.
    """

    state = ("window_mean", "importance", "deviation")
    hard_masks = False
    revives = True
    during_training = True

    def __init__(
        self,
        *,
        beta1: float = 0.85,
        beta2: float = 0.95,
        window: int = 10,
        t_initial: float | str = 0.05,
        t_final: float | str = 0.3,
        start: float = 0.0,
        allocation: Allocation = "global",
        uncertainty: Uncertainty = "abs",
        score_point: ScorePoint = "post_step",
        exact_k: bool = True,
        grad_clip: float | None = 1.0,
    ):
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name}={beta}: must lie in [0, 1)")
        if window < 1:
            raise ValueError(f"window={window}: must be at least 1 step")
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: must lie in [0, 1)")
        for key, value, kind in (
            ("sparsity.allocation", allocation, Allocation),
            ("uncertainty", uncertainty, Uncertainty),
            ("score_point", score_point, ScorePoint),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{key}={value}: must be one of {', '.join(get_args(kind))}")
        if grad_clip is not None and not 0 < grad_clip < math.inf:
            raise ValueError(f"grad_clip={grad_clip}: must be above 0 and finite; null for no clipping")
        self.beta1, self.beta2, self.window = beta1, beta2, window
        self.t_initial, self.t_final, self.start = t_initial, t_final, start
        self.allocation, self.uncertainty, self.score_point = allocation, uncertainty, score_point
        self.exact_k, self.grad_clip = exact_k, grad_clip
        self.window_mean: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}
        self.deviation: dict[str, Tensor] = {}
        self._phases: list[Phase] = []

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The plan as it is.

        Raises:
          ValueError: if no sparsity is asked for, or one not above `start`.
        """
        for phase in phases:
            if phase.within and phase.reach is None:
                raise ValueError("sparsity.target=null: must be a number, the sparsity of the last stage")
            if phase.within and phase.reach <= self.start:
                raise ValueError(
                    f"method.start={self.start}: must be below sparsity.target={phase.reach}, where it ends"
                )
        self._phases = phases
        return phases

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse stages that do not fit into the phase, and a sparsity that keeps nothing."""
        for phase in self._phases:
            if phase.within:
                self._check_stages(run, phase.steps(run))
        for sparsity in asked:
            if round((1 - sparsity) * run.masks.total) < 1:
                raise ValueError(
                    f"sparsity.target={sparsity}: keeps no weight of {run.masks.total}; lower it"
                )

    def _check_stages(self, run: Run, steps: int) -> None:
        lengths = {k: self._stage(k, run, steps) for k in ("t_initial", "t_final")}
        middle = steps - sum(lengths.values())
        if lengths["t_final"] < 1 or middle < self.window:
            raise ValueError(
                f"method.t_initial={self.t_initial} method.t_final={self.t_final}: leave {middle} of {steps} "
                f"steps between the first stage and the last ({lengths['t_final']}); there must be at least "
                f"method.window={self.window}, and 1 in the last"
            )

    def _stage(self, key: str, run: Run, steps: int) -> int:
        """Steps of the first or last stage of a phase of so many steps."""
        value = getattr(self, key)
        if isinstance(value, str):
            try:
                return parse_length(value, run.data.steps_per_epoch)
            except ValueError as error:
                raise ValueError(f"method.{key}={value}: {str(error).partition(': ')[2]}") from None
        if not 0 <= value < 1:
            raise ValueError(
                f"method.{key}={value}: must lie in [0, 1), a share of training, or be a length such as 200it"
            )
        return round(value * steps)

    def attach(self, run: Run) -> None:
        """Begin with all scores at 0."""
        params = dict(run.model.named_parameters())

        def zeros() -> dict[str, Tensor]:
            return {n: torch.zeros_like(params[n], requires_grad=False) for n in run.masks}

        self.window_mean, self.importance = zeros(), zeros()
        self.deviation = {} if self.uncertainty == "none" else zeros()

    def step(self, run: Run) -> None:
        """Update, score, and zero the weights of lowest score where that is due."""
        if run.goal is None:  # a phase of plain training before or after
            super().step(run)
            return
        time, (weights, gradients) = run.clock.step + 1, self._scored(run)
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(run.model.parameters(), self.grad_clip)
        with torch.no_grad():
            if self.score_point == "pre_step":
                sensitivity = torch._foreach_mul(weights, gradients)
                run.optimizer.step()
            else:
                run.optimizer.step()
                torch._foreach_mul_(gradients, weights)  # nobody needs the gradients any more
                sensitivity = gradients
            torch._foreach_abs_(sensitivity)
            self.gather_(sensitivity, time)
            self._zero(run, time)

    def _scored(self, run: Run) -> tuple[list[Tensor], list[Tensor]]:
        """Prunable weights and their gradients; 0 where a weight took no part in the batch."""
        params = dict(run.model.named_parameters())
        weights = [params[n] for n in self.window_mean]
        return weights, [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]

    @torch.no_grad()
    def gather_(self, sensitivity: list[Tensor], time: int) -> None:
        """Put the sensitivities |w g| of step `time`, from 1, into the scores."""
        means, place = list(self.window_mean.values()), time % self.window
        if place:
            torch._foreach_lerp_(means, sensitivity, 1 / (place + 1))
            return
        importance = list(self.importance.values())
        torch._foreach_lerp_(importance, means, 1 - self.beta1)
        if self.uncertainty != "none":
            apart, deviation = torch._foreach_sub(means, importance), list(self.deviation.values())
            if self.uncertainty == "abs":
                torch._foreach_abs_(apart)
                torch._foreach_lerp_(deviation, apart, 1 - self.beta2)
            else:
                torch._foreach_mul_(apart, apart)
                torch._foreach_lerp_(deviation, apart, self.window / time)
        torch._foreach_copy_(means, sensitivity)

    def scores(self) -> dict[str, Tensor]:
        """I U by parameter name: I sqrt(V) with uncertainty "var", I with "none"."""
        if self.uncertainty == "none":
            return self.importance
        spread = list(self.deviation.values())
        if self.uncertainty == "var":
            spread = torch._foreach_sqrt(spread)
        return dict(zip(self.importance, torch._foreach_mul(list(self.importance.values()), spread)))

    def sparsity_at(self, run: Run, time: int) -> float:
        """Sparsity of the ramp at step `time`, from 1, of this phase."""
        first, middle = self._span(run)
        return cubic((time - first) / middle, target=run.goal, start=self.start) if time > first else 0.0

    def zeroes(self, run: Run, time: int) -> bool:
        """Whether weights are set to 0 after step `time`."""
        first, middle = self._span(run)
        return time > first and (time > first + middle or time % self.window == 0)

    def _span(self, run: Run) -> tuple[int, int]:
        """Steps of the first and of the middle stage."""
        steps = run.clock.steps
        first = self._stage("t_initial", run, steps)
        return first, steps - first - self._stage("t_final", run, steps)

    def _zero(self, run: Run, time: int) -> None:
        run.zeros_hold = self.zeroes(run, time) or time <= self._span(run)[0]
        if not self.zeroes(run, time):
            return
        # in the last stage nothing but a window's end changes scores or sparsity
        if time % self.window == 0 or time == sum(self._span(run)) + 1:
            run.replace_masks(parallel.from_first_rank(self._masks(run, time), run.world))
        run.masks.zero_weights_(run.model)

    def _masks(self, run: Run, time: int) -> Masks:
        sparsity, scores = self.sparsity_at(run, time), self.scores()
        if self.exact_k or time > sum(self._span(run)):
            return ranked(scores, sparsity, allocation=self.allocation)
        return not_below(scores, sparsity, allocation=self.allocation)

    def train_macs(self, run: Run, step: int, sparse: int, dense: int) -> int:
        """Dense; two of the three passes sparse where a zeroing has just been."""
        if run.goal is None:
            return 3 * sparse
        return 2 * sparse + dense if self.zeroes(run, step) else 3 * dense

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scores onto the device where they are gathered."""
        own = {key: getattr(self, key) for key in self.state}
        super().load_state_dict({k: {n: t.copy_(state[k][n]) for n, t in v.items()} for k, v in own.items()})


def not_below(scores: dict[str, Tensor], sparsity: float, *, allocation: Allocation = "global") -> Masks:
    """Masks without the scores strictly below the k-th smallest, k = int(sparsity * n) and at least 1.

    The rule of the authors' code: k - 1 entries go when all scores differ, fewer with ties at the threshold.

    Args:
      scores: parameter name -> scores.
      sparsity: in [0, 1).
      allocation: "global" takes n and k over all layers, "uniform" in each.
    """
    groups = [list(scores)] if allocation == "global" else [[n] for n in scores]
    masks = {}
    for names in groups:
        values = torch.cat([scores[n].reshape(-1) for n in names])
        k = max(1, int(sparsity * values.numel()))
        threshold = torch.sort(values).values[k - 1]
        masks |= {n: scores[n] >= threshold for n in names}
    return Masks(masks)
