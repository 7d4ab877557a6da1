"""A plan is a list of phases: what is pruned on entry, what is restored, and how long is trained."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

LENGTH = re.compile(r"(\d+(?:\.\d+)?)(ep|it)")

Schedule = Callable[[Any], float]
"""Progress -> learning rate as a multiple of `optimizer.lr`; pure and stateless."""


def parse_length(text: str, steps_per_epoch: int) -> int:
    """Optimizer steps of a duration such as "160ep" (epochs, fractions allowed) or "2000it" (steps).

    Args:
      text: a number with its unit, `ep` or `it`.
      steps_per_epoch: steps in one pass over the training split, at least 1.

    Returns:
      The number of steps, rounded to the nearest one, at least 0.

    Raises:
      ValueError: if the text is no such duration.
    """
    match = LENGTH.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f"length={text!r}: must be a number with its unit, such as 160ep (epochs) or 2000it (steps)"
        )
    number = float(match[1])
    if match[2] == "it" and number != int(number):
        raise ValueError(f"length={text!r}: a number of steps must be whole")
    return round(number * steps_per_epoch) if match[2] == "ep" else int(number)


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one schedule, and what happens on entering it.

    Attributes:
      name: appears in every result row; unique in the plan.
      length: "160ep" or "2000it", or a function of the run where it depends on the pruned network.
      schedule: learning rate over the phase.
      sparsity: prune to this on entry, a share of all prunable weights; None leaves the masks alone. A
        function of the run where it depends on the layers' sizes; `settled` puts its value in.
      within: the method prunes or regrows while this phase trains (`prunebench.during_training`).
      reach: sparsity at the end of such a phase, exact to one weight; None where it is the method's outcome.
      nearly: `reach` is met as nearly as the method can (whole channels), not to one weight.
      weights: after pruning, "keep" the weights, draw them again ("random"), or restore a snapshot by name.
      uncontrolled: what `weights` would be without the control that this phase is; None if it is none.
      peak: learning rate that the schedule multiplies, in place of `optimizer.lr`; None keeps that.
      shuffle: control that permutes the new masks: within each layer, over all layers, or with the same
        sparsity in each layer ("even"); None keeps them.
      snapshot: pairs (name, time in this phase): copies of the network taken while training. A time with a
        minus sign counts back from the phase's end ("-1ep"), but not beyond its beginning.
      keep: which network the phase ends with, the last or the one best in validation.
      patience: ends the phase when validation has not got better for this long.
      monitor: what is better in validation, a higher top-1 or a lower loss.
      hands_on: the next phase, which goes on from this one's weights, begins with its optimizer's state.
      auxiliary: the phase only serves the next pruning event: its end is no row in the table of rounds. What
        it costs is counted.
      beside: the control to train beside this phase (`prunebench.rounds.with_controls`); None: none.
      aside: such a control, of the phase before: it begins where that one began, with the masks (as they are
        or shuffled) that it had, and the next phase begins as if there had been no control.
    """

    name: str
    length: str | Callable[[Any], str]
    schedule: Schedule
    sparsity: float | Callable[[Any], float] | None = None
    within: bool = False
    reach: float | None = None
    nearly: bool = False
    weights: str = "keep"
    uncontrolled: str | None = None
    peak: float | None = None
    shuffle: Literal["layerwise", "global", "even"] | None = None
    snapshot: tuple[tuple[str, str], ...] = ()
    keep: Literal["last", "best"] = "last"
    patience: str | None = None
    monitor: Literal["top1", "loss"] = "top1"
    hands_on: bool = False
    auxiliary: bool = False
    beside: str | None = None
    aside: bool = False

    @property
    def kind(self) -> Literal["phase", "control", "auxiliary"]:
        """Which rows its end belongs to: the table of rounds, the controls beside it, or neither."""
        return "control" if self.aside else "auxiliary" if self.auxiliary else "phase"

    @property
    def is_round(self) -> bool:
        """Whether its end is a row of the table of rounds."""
        return self.kind == "phase"

    @property
    def asked(self) -> float | None:
        """Sparsity that the phase is to end with; None where that is not changed, or not asked for."""
        return self.reach if self.within else self.sparsity

    def settled(self, run: Any) -> "Phase":
        """This phase with the sparsity as a number."""
        return replace(self, sparsity=self.sparsity(run)) if callable(self.sparsity) else self

    def steps(self, run: Any) -> int:
        """Length in optimizer steps for this run's data."""
        text = self.length(run) if callable(self.length) else self.length
        return parse_length(text, run.data.steps_per_epoch)

    def snapshots_at(self, run: Any) -> dict[int, tuple[str, ...]]:
        """Step of this phase, which has been entered -> names of the snapshots to take when it is done."""
        found: dict[int, tuple[str, ...]] = {}
        for name, at in self.snapshot:
            steps = parse_length(at.removeprefix("-"), run.data.steps_per_epoch)
            place = max(run.clock.steps - steps, 0) if at.startswith("-") else steps
            found[place] = (*found.get(place, ()), name)
        return found


def end_of(plan: Sequence[Phase]) -> Phase:
    """The phase that the plan's network comes from: the last round."""
    return next(phase for phase in reversed(plan) if phase.is_round)


def cycles(plan: Sequence[Phase]) -> int:
    """Pruning events of the plan and phases that prune while they train, and the training before them."""
    return 1 + sum(phase.sparsity is not None or phase.within for phase in plan)
