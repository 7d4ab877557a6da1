"""Gradual magnitude pruning while training."""

from collections.abc import Mapping, Sequence

from prunebench.core import parallel
from prunebench.core.growth import drop_smallest
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.selection import layer_counts, select
from prunebench.criteria.magnitude import magnitude
from prunebench.methods.sparse_start import check_counts, check_span, resolved
from prunebench.ramps import cubic


class GMP(Method):
    """Prunes by magnitude in small steps while it trains, fast at first and slowly at the end.

    Zhu & Gupta 2017 (arXiv 1710.01878, eq. 1): at times t in [t0, t1], every `interval` steps, the sparsity
    becomes s_f + (s_0 - s_f) (1 - (t - t0) / (t1 - t0))^3. An update follows the weight step of its batch; t
    is the number of steps done, and there is one at t1 in any case, so that the target is reached exactly.
    The RigL paper's baseline prunes between steps 10,000 and 25,000 of 32,000, every 1,000
    (google-research/rigl), with the same sparsity in every layer but a dense first one: begin=0.3125
    until=0.78125 interval=1000 sparsity.allocation=uniform and sparsity.exclude naming that layer. Against
    global pruning compare with sparsity.allocation=global.

    Differs: pruned weights are 0 and never return (masks are nested), where the TensorFlow implementation
    freezes their values and may take them back; counts are exact over the network, where the zeros of every
    layer were rounded down. Weights of convolutions and linear layers are pruned, the first and the
    classifier included unless excluded; biases and normalisation are not.

    Args:
      allocation: "uniform", "global", "lamp", "erk", "er", "uniform_plus", or layer pattern -> sparsity,
        which is that of the target; on the way every layer has the same part of its own.
      interval: steps between two updates.
      start: sparsity at the first update, in [0, 1).
      begin, until: t0 and t1 as shares of the phase.
      min_kept: floor of every layer, in weights.

    Raises:
      ValueError: if an option is out of range.
    """

    during_training = True

    def __init__(
        self,
        *,
        allocation: str | dict[str, float] = "uniform",
        interval: int = 100,
        start: float = 0.0,
        begin: float = 0.3125,
        until: float = 0.78125,
        min_kept: int = 1,
    ):
        if interval < 1:
            raise ValueError(f"interval={interval}: must be at least 1 step")
        if not 0 <= start < 1:
            raise ValueError(f"start={start}: must lie in [0, 1)")
        check_span(begin, until, min_kept)
        self.allocation, self.interval, self.start = allocation, interval, start
        self.begin, self.until, self.min_kept = begin, until, min_kept
        self._phases: list[Phase] = []

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The plan as it is; a target must be given.

        Raises:
          ValueError: if none is.
        """
        for phase in phases:
            if phase.within and phase.reach is None:
                raise ValueError(
                    "sparsity.target=null: must be a number, the sparsity at the end of the ramp"
                )
            if phase.within and phase.reach <= self.start:
                raise ValueError(
                    f"method.start={self.start}: must be below sparsity.target={phase.reach}, where it ends"
                )
        self._phases = phases
        return phases

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse an allocation that this network cannot have, and a phase in which the ramp does not fit."""
        for sparsity in asked:
            if self.allocation not in ("global", "lamp"):
                check_counts(run, sparsity, self.allocation, self.min_kept)
            elif (keep := round((1 - sparsity) * run.masks.total)) < self.min_kept * len(run.masks):
                raise ValueError(
                    f"sparsity.min_kept={self.min_kept}: needs {self.min_kept * len(run.masks)} weights in "
                    f"{len(run.masks)} layers, sparsity {sparsity:.12g} keeps {keep}; lower one of the two"
                )
        for phase in self._phases:
            if phase.within:
                self._check_length(phase.steps(run))

    def _check_length(self, steps: int) -> None:
        first, last = self._span(steps)
        if last >= steps:
            raise ValueError(
                f"method.until={self.until}: the ramp ends with training, {steps} steps, and leaves none for "
                "the sparse network; lower method.until"
            )
        if self.interval > last - first:
            raise ValueError(
                f"method.interval={self.interval}: longer than the ramp from method.begin={self.begin} to "
                f"method.until={self.until}, {last - first} of {steps} steps; lower it or lengthen training"
            )

    def step(self, run: Run) -> None:
        """A weight step; then an update where one is due."""
        super().step(run)
        sparsity = self.sparsity_at(run.clock.step + 1, run.clock.steps, run.goal)
        if sparsity is not None and sparsity > 0:
            run.set_masks(parallel.from_first_rank(self._masks(run, sparsity), run.world))

    def changes_step(self, run: Run) -> bool:
        """Whether an update follows this step."""
        return bool(self.sparsity_at(run.clock.step + 1, run.clock.steps, run.goal))

    def sparsity_at(self, time: int, steps: int, goal: float | None) -> float | None:
        """Sparsity that the update at time t gives; None where none is due.

        Args:
          time: steps done in the phase.
          steps: length of the phase.
          goal: sparsity at t1; None in a phase that keeps its masks.

        >>> gmp = GMP(interval=3750)
        >>> [round(gmp.sparsity_at(t, 32000, 0.9), 4) for t in (10000, 13750, 17500, 21250, 25000)]
        [0.0, 0.5203, 0.7875, 0.8859, 0.9]
        """
        first, last = self._span(steps)
        due = first <= time <= last and ((time - first) % self.interval == 0 or time == last)
        if goal is None or not due:
            return None
        return cubic((time - first) / (last - first), target=goal, start=self.start)

    def _span(self, steps: int) -> tuple[int, int]:
        """Times of the first and of the last update in a phase of so many steps, both at least 1."""
        return max(1, round(self.begin * steps)), max(1, round(self.until * steps))

    def _masks(self, run: Run, sparsity: float) -> Masks:
        """Masks of this sparsity within the present ones; counts that are known are not counted again."""
        kept, sizes = run.masks.kept_per_layer, {n: m.numel() for n, m in run.masks.items()}
        allocation = resolved(run, self.allocation)
        if isinstance(allocation, Mapping):
            allocation = {n: s * sparsity / run.goal for n, s in allocation.items()}
        if allocation not in ("global", "lamp"):
            shapes = {n: tuple(m.shape) for n, m in run.masks.items()}
            counts = layer_counts(shapes, sizes, sparsity, allocation, min_kept=self.min_kept)
            if all(counts[n] <= kept[n] for n in kept):
                params = dict(run.model.named_parameters())
                drops = {n: kept[n] - counts[n] for n in kept}
                new = {n: drop_smallest(params[n], m, drops[n]) for n, m in run.masks.items()}
                return Masks(new, run.masks.tied, kept=counts)
        return select(
            magnitude(run), sparsity, allocation=allocation, previous=run.masks, min_kept=self.min_kept
        )
