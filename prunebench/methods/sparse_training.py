"""Sparse from the first step, with weights that are dropped and grown while training: what is common."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from prunebench.core import parallel
from prunebench.core.growth import drop_smallest, grow_largest
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase, parse_length
from prunebench.core.run import Run
from prunebench.methods.sparse_start import check_span, check_start, draw_masks, sparse_start
from prunebench.ramps import FALLS

Anneal = Literal["cosine", "constant", "linear", "inverse_power"]


class SparseTraining(Method):
    """Base of RigL, SET and SNFS: a random mask, then updates that drop small weights and grow others.

    At an update, in every layer with n kept weights, k = int(f n) of smallest |w| are dropped and as many of
    those not kept then, the dropped ones included, are grown by `growth` (arXiv 1911.11134, algorithm 1;
    google-research/rigl, sparse_optimizers_base.py). A weight that comes new is 0 with optimizer state 0; one
    that was dropped and grown at once keeps both, as in the authors' code. Layers without zeros are passed
    over, as is an update that moves no weight at all.

    Steps are batches, counted in the phase. With `update_replaces_step` the batch of an update changes no
    weight and t, the time of the rule, stands still, as in the authors' code: updates are interval + 1
    batches apart. Else the update follows the weight step of its batch.

    Args:
      allocation: of the sparsity over layers: "erk", "er", "uniform", "uniform_plus", or layer pattern ->
        sparsity.
      interval: weight steps between two updates, or a length such as "1ep".
      drop_fraction: share f of the kept weights dropped at the first update, in [0, 1].
      anneal: how f falls until the last: cosine, constant, linear, or inverse_power, (1 - x)^3.
      begin, until: updates happen at t in [begin, until], shares of the phase.
      update_replaces_step: whether an update takes the place of the batch's weight step.
      min_kept: floor of every layer, in weights.

    Raises:
      ValueError: if an option is out of range.
    """

    during_training = True
    revives = True

    def __init__(
        self,
        *,
        allocation: str | dict[str, float] = "erk",
        interval: int | str = 100,
        drop_fraction: float = 0.3,
        anneal: Anneal = "cosine",
        begin: float = 0.0,
        until: float = 0.75,
        update_replaces_step: bool = True,
        min_kept: int = 1,
    ):
        if isinstance(interval, int) and interval < 1:
            raise ValueError(f"interval={interval}: must be at least 1 step")
        if not 0 <= drop_fraction <= 1:
            raise ValueError(f"drop_fraction={drop_fraction}: must lie in [0, 1]")
        if anneal not in FALLS:
            raise ValueError(f"anneal={anneal}: must be one of {', '.join(FALLS)}")
        check_span(begin, until, min_kept)
        self.allocation, self.interval, self.min_kept = allocation, interval, min_kept
        self.drop_fraction, self.anneal = drop_fraction, anneal
        self.begin, self.until, self.update_replaces_step = begin, until, update_replaces_step
        self._phases: list[Phase] = []

    # Before training

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Sparse from the first step."""
        self._phases = sparse_start(phases)
        return self._phases

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse an allocation that this network cannot have, and a phase that is too short for updates."""
        check_start(run, asked, self.allocation, self.min_kept)
        for phase in self._phases:
            if phase.within:
                self._check_length(run, phase.steps(run))

    def _check_length(self, run: Run, steps: int) -> None:
        try:
            interval = self._steps_between(run)
        except ValueError as error:
            reason = str(error).split(": ", 1)[1]
            raise ValueError(f"method.interval={self.interval}: {reason}") from None
        if interval < 1:
            raise ValueError(f"method.interval={self.interval}: must be at least one step, 1it")
        if interval >= steps:
            raise ValueError(
                f"method.interval={self.interval}: {interval} steps between updates, but training has "
                f"{steps}; lower it or lengthen protocol.dense"
            )
        times = [s for s in range(steps) if self._time(run, s, steps) is not None]
        if not times or round(self.begin * steps) == round(self.until * steps):
            raise ValueError(
                f"method.begin={self.begin} method.until={self.until}: no update falls between, with "
                f"method.interval={self.interval} and {steps} steps; lower the interval or widen the span"
            )
        if times == [0]:
            raise ValueError(
                f"method.interval={self.interval}: the only update of {steps} steps would be the very first "
                f"step, with method.until={self.until}; lower the interval"
            )
        if times[-1] == steps - 1 and self.drop_fraction > 0:
            raise ValueError(
                f"method.until={self.until}: the last of {steps} steps is an update, no training follows it; "
                "lower method.until"
            )

    # The rule

    def prune(self, run: Run, sparsity: float) -> None:
        """Draw the first masks."""
        draw_masks(run, sparsity, self.allocation, self.min_kept)

    def growth(self, run: Run, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Scores of the named layers: the largest |score| is grown first. Gradients are there, dense."""
        raise NotImplementedError

    def step(self, run: Run) -> None:
        """A weight step, an update in its place, or one after the other."""
        moves = self.moves(run, run.clock.step)
        if not moves:
            super().step(run)
            return
        scores = self.growth(run, list(moves))
        if not self.update_replaces_step:
            if self.reads_gradient:  # the weight step zeroes the gradients of what is not kept
                scores = {n: s.clone() for n, s in scores.items()}
            super().step(run)
        self.update(run, moves, moves, scores)

    reads_gradient = False
    """Whether `growth` gives gradients themselves."""

    def update(
        self, run: Run, drops: Mapping[str, int], grows: Mapping[str, int], scores: Mapping[str, Tensor]
    ) -> None:
        """Drop and grow so many weights in each of these layers; elsewhere none."""
        params, new, kept = dict(run.model.named_parameters()), dict(run.masks), run.masks.kept_per_layer
        for name in drops:
            left = drop_smallest(params[name], run.masks[name], drops[name])
            new[name] = grow_largest(scores[name], left, grows[name])
        kept = kept | {n: kept[n] - drops[n] + grows[n] for n in drops}
        run.set_masks(parallel.from_first_rank(Masks(new, run.masks.tied, kept=kept), run.world))

    def moves(self, run: Run, step: int) -> dict[str, int]:
        """Weights that every layer drops and grows in a step of this phase; {} if that is no update."""
        time = self._time(run, step, run.clock.steps)
        if time is None or run.goal is None:
            return {}
        share = self.fraction(time, run.clock.steps)
        return {
            n: int(share * kept)
            for n, kept in run.masks.kept_per_layer.items()
            if kept < run.masks[n].numel() and int(share * kept)
        }

    def fraction(self, time: int, steps: int) -> float:
        """Share of the kept weights that an update at this time drops, in a phase of so many steps."""
        first, last = round(self.begin * steps), round(self.until * steps)
        return self.drop_fraction * FALLS[self.anneal]((time - first) / (last - first))

    def changes_step(self, run: Run) -> bool:
        """Whether this step is an update."""
        return bool(self.moves(run, run.clock.step))

    def _time(self, run: Run, step: int, steps: int) -> int | None:
        """The time t of an update at this step of the phase; None if there is none."""
        interval = self._steps_between(run)
        number, rest = divmod(step, interval + self.update_replaces_step)
        time = number * interval
        return time if not rest and self.begin * steps <= time <= round(self.until * steps) else None

    def _steps_between(self, run: Run) -> int:
        if isinstance(self.interval, int):
            return self.interval
        return parse_length(self.interval, run.data.steps_per_epoch)
