"""Protocols: functions that give the whole plan of a run, a list of phases, before any training.

Every protocol is called with the training schedule and the retraining schedule; all other arguments are
options of conf/protocol. Lengths are "160ep" or "2000it". A phase of length 0 trains nothing (prune only).
"""

import math
from dataclasses import replace
from typing import Literal

from prunebench.core.phase import Phase, Schedule
from prunebench.rounds import (
    Control,
    ControlAt,
    OptimizerState,
    asked_sparsities,
    check_choice,
    check_common,
    check_control,
    check_rewind,
    controlled,
    keeps_state,
    peak_of_phases,
    round_lengths,
)

Weights = Literal["keep", "init", "rewind", "random"]
Keep = Literal["last", "best"]
Monitor = Literal["top1", "loss"]
Spacing = Literal["geometric", "linear"]


def dense(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    dense: str,
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Monitor = "top1",
) -> list[Phase]:
    """One phase of training without pruning: the control of every other run.

    Args:
      schedule, retrain_schedule: learning rate; the second is not used.
      dense: length of training.
      keep: end with the last network, or the one best in validation.
      patience: end early when validation has not got better for this long.
      monitor: what is better in validation, a higher top-1 or a lower loss.

    Raises:
      ValueError: if an option is out of range.
    """
    check_common(dense, keep, patience, monitor)
    return [Phase("dense", dense, schedule, keep=keep, patience=patience, monitor=monitor)]


def one_shot(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    target: float,
    dense: str,
    retrain: str | None = None,
    weights: Weights = "keep",
    rewind_to: str = "0it",
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Monitor = "top1",
    control: Control = "none",
    optimizer_state: OptimizerState = "reset",
    peaks: list[float] | None = None,
) -> list[Phase]:
    """Dense training, one pruning event, retraining: `iterative` with one round.

    Args:
      schedule, retrain_schedule: learning rate of dense training and after pruning.
      target: share of the prunable weights to remove, in [0, 1).
      dense, retrain, weights, rewind_to, keep, patience, monitor, control, optimizer_state, peaks: as in
        `iterative`.

    Raises:
      ValueError: if an option is out of range or two do not fit together.
    """
    return iterative(
        schedule=schedule,
        retrain_schedule=retrain_schedule,
        target=target,
        rounds=1,
        dense=dense,
        retrain=retrain,
        weights=weights,
        rewind_to=rewind_to,
        keep=keep,
        patience=patience,
        monitor=monitor,
        control=control,
        optimizer_state=optimizer_state,
        peaks=peaks,
    )


def at_init(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    target: float,
    dense: str,
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Monitor = "top1",
    control: Control = "none",
) -> list[Phase]:
    """One phase: prune the initial network, then train it (SNIP, arXiv 1810.02340).

    Training goes on from the initial weights that were scored. There is no dense control in the run.

    Args:
      schedule, retrain_schedule: learning rate; the second is not used.
      target: share of the prunable weights to remove, in [0, 1).
      dense, keep, patience, monitor: as in `dense`.
      control: what is trained instead, as in `iterative`: the mask with new weights, or a shuffled one.

    Raises:
      ValueError: if an option is out of range.
    """
    check_common(dense, keep, patience, monitor)
    check_choice("protocol.control", control, Control)
    if not 0.0 <= target < 1.0:
        raise ValueError(f"sparsity.target={target}: must lie in [0, 1)")
    ends = {"keep": keep, "patience": patience, "monitor": monitor}
    trained = Phase("train", dense, schedule, sparsity=target, **ends)
    return [trained if control == "none" else controlled(trained, control)]


def iterative(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    rounds: int,
    dense: str,
    target: float | None = None,
    rate: float | None = None,
    layer_rates: dict[str, float] | None = None,
    spacing: Spacing = "geometric",
    retrain: str | None = None,
    retrain_total: str | None = None,
    budget: str | None = None,
    weights: Weights = "keep",
    rewind_to: str = "0it",
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Monitor = "top1",
    control: Control = "none",
    control_at: ControlAt = "last",
    optimizer_state: OptimizerState = "reset",
    peaks: list[float] | None = None,
) -> list[Phase]:
    """Dense training, then `rounds` times: prune, restore `weights`, retrain.

    Phases "dense", "round-01", ... of Han et al. (arXiv 1506.02626; weights=keep), the lottery ticket
    hypothesis (arXiv 1803.03635; init, rewind), learning-rate rewinding (arXiv 2003.02389; keep with
    retrain=lrw) and BIMP (arXiv 2111.00843; budget). A control trains the mask found so far, or a
    random one, from new random weights. It takes the place of the last round, so that all earlier rounds are
    those of the run without control; with control_at=every it is trained beside every round, in phases
    "round-01-reinit" and the like that leave no trace in the rounds: both are equal bit for bit to runs of
    their own.

    Args:
      schedule: learning rate of dense training.
      retrain_schedule: learning rate of every round.
      rounds: pruning events, at least 1.
      dense: length of dense training.
      target: sparsity after the last round, in [0, 1). Either this or `rate`.
      rate: share of the remaining weights removed in every round, in (0, 1).
      layer_rates: layer pattern -> that share for each layer. With neither `target` nor `rate` they say how
        many weights every round leaves (arXiv 1803.03635, figure 2).
      spacing: of the rounds towards `target`: equal shares of the remaining weights (geometric), or equal
        counts.
      retrain: length of every round. One of `retrain`, `retrain_total` and `budget`; with none, a round that
        does not keep its weights lasts as long as dense training, less `rewind_to`.
      retrain_total: length of all rounds together; each takes the whole part of an equal share, the last also
        the remainder (arXiv 2111.00843, authors' code).
      budget: length of dense training and all rounds together; the rounds share budget - dense as above.
      weights: what a round starts from: the pruned weights (keep), those of the start (init) or of step
        `rewind_to` of dense training (rewind), or new ones in every round (random).
      rewind_to: where in dense training weights=rewind goes back to, before its end.
      keep, patience, monitor: of every phase, as in `dense`.
      control: none; reinit (the found mask, new weights); random_layerwise, random_global, random_even (new
        weights and the found mask shuffled within each layer, over all layers, or with equal sparsity in
        every layer; `lottery/branch` of facebookresearch/open_lth).
      control_at: the round whose place the control takes (last), or beside every round (the ablation of
        DropNet, ICML 2020, section 6, at all levels; figure 3 of arXiv 1803.03635).
      optimizer_state: what every round's optimizer begins with: nothing (reset), or the momentum and the like
        of the weights that are left (keep; with weights=keep).
      peaks: learning rate of dense training and of every round, 1 + `rounds` of them, which the schedules
        multiply in place of `optimizer.lr`.

    Returns:
      1 + `rounds` phases. The asked sparsity of the last is exactly `target` where that is given.

    Raises:
      ValueError: if an option is out of range or two do not fit together.
    """
    check_common(dense, keep, patience, monitor)
    check_choice("protocol.weights", weights, Weights)
    check_control(control, control_at, weights)
    check_choice("sparsity.spacing", spacing, Spacing)
    check_rewind(weights, rewind_to, dense)
    carried = keeps_state(optimizer_state, weights, control, keep)
    asked = asked_sparsities(rounds, target, rate, layer_rates, spacing)
    lengths = round_lengths(rounds, dense, retrain, retrain_total, budget, weights, rewind_to)

    every_peak = peak_of_phases(peaks, rounds)
    snapshot = (("rewind", rewind_to),) if weights == "rewind" else ()
    ends = {"keep": keep, "patience": patience, "monitor": monitor}
    plan = [Phase("dense", dense, schedule, snapshot=snapshot, peak=every_peak[0], hands_on=carried, **ends)]
    for j, (sparsity, length) in enumerate(zip(asked, lengths, strict=True), start=1):
        pruned = Phase(
            f"round-{j:02d}",
            length,
            retrain_schedule,
            sparsity=sparsity,
            weights=weights,
            peak=every_peak[j],
            hands_on=carried and j < rounds,
            **ends,
        )
        if control_at == "every":
            pruned = replace(pruned, beside=control)
        elif control != "none" and j == rounds:
            pruned = controlled(pruned, control)
        plan.append(pruned)
    return plan


def oracle(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    grid: list[float],
    tolerance: float,
    rounds: int,
    dense: str,
    target: float | None = None,
    rate: float | None = None,
    layer_rates: dict[str, float] | None = None,
    spacing: Spacing = "geometric",
    retrain: str | None = None,
    retrain_total: str | None = None,
    budget: str | None = None,
    weights: Weights = "keep",
    rewind_to: str = "0it",
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Monitor = "top1",
    control: Control = "none",
) -> list[Phase]:
    """The plan of `iterative`, every phase of which is trained once for each peak of the learning rate.

    The best branch by validation goes on (Oracle of SILO, arXiv 2212.06144); see `prunebench.oracle`.

    Args:
      grid: peaks to try in every phase, distinct learning rates above 0.
      tolerance: a peak is near-best if its validation top-1 is at most so much below the best, in [0, 1).
      schedule, rounds and all others: as in `iterative`.

    Raises:
      ValueError: as there.
    """
    for peak in grid:
        if not 0.0 < peak < math.inf:
            raise ValueError(f"protocol.grid={grid}: must be finite learning rates above 0, not {peak}")
    if len(set(grid)) != len(grid) or len(grid) < 2:
        raise ValueError(f"protocol.grid={grid}: must be at least two different learning rates")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"protocol.tolerance={tolerance}: must lie in [0, 1)")
    return iterative(
        schedule=schedule,
        retrain_schedule=retrain_schedule,
        rounds=rounds,
        dense=dense,
        target=target,
        rate=rate,
        layer_rates=layer_rates,
        spacing=spacing,
        retrain=retrain,
        retrain_total=retrain_total,
        budget=budget,
        weights=weights,
        rewind_to=rewind_to,
        keep=keep,
        patience=patience,
        monitor=monitor,
        control=control,
        peaks=[grid[0]] * (rounds + 1),
    )
