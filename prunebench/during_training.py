"""The protocol of methods that prune or regrow while they train."""

import math
from typing import Literal

from prunebench.core.phase import Phase, Schedule
from prunebench.lengths import check_length, times
from prunebench.rounds import check_choice, check_common

Control = Literal["none", "reinit", "init"]
Keep = Literal["last", "best"]


def during_training(
    *,
    schedule: Schedule,
    retrain_schedule: Schedule,
    target: float | None,
    dense: str,
    multiplier: float = 1.0,
    keep: Keep = "last",
    patience: str | None = None,
    monitor: Literal["top1", "loss"] = "top1",
    control: Control = "none",
    before: str | None = None,
    peak: float | None = None,
) -> list[Phase]:
    """One phase "train" in which the method changes the masks, so that it ends with exactly `target`.

    There is no dense control in the run, unless dense training comes `before`. Schedules and the methods' own
    ramps count in shares of the phase, so `multiplier` stretches them with it (RigL_5x of arXiv 1911.11134);
    a warm-up given as a length keeps it.

    Args:
      schedule: learning rate.
      retrain_schedule: not used; every protocol is called with it.
      target: sparsity at the end, share of the prunable weights, in (0, 1); None leaves it to a method whose
        outcome it is.
      dense: length of training, as of the dense control.
      multiplier: the phase is so many times as long as `dense`, above 0.
      keep: end with the last network, or the one best in validation among those that have the target
        sparsity, with the masks that it had.
      patience: end early when validation has not got better for this long, counted from where the target
        sparsity was reached.
      monitor: what is better in validation, a higher top-1 or a lower loss.
      control: add a phase "control" of the same length and schedule that trains the masks found, which stay,
        from new weights (reinit) or from those of the run's start (init).
      before: length of dense training that comes first, under the same schedule; for methods that prune a
        trained network. None: the phase starts from the initial weights, or those that the model was given.
      peak: learning rate of the pruning phase after it, in place of `optimizer.lr`; None keeps that.

    Raises:
      ValueError: if an option is out of range.
    """
    check_common(dense, keep, patience, monitor)
    check_choice("protocol.control", control, Control)
    if target is not None and not 0.0 < target < 1.0:
        raise ValueError(f"sparsity.target={target}: must lie in (0, 1); for 0 choose method=dense")
    if not 0.0 < multiplier < math.inf:
        raise ValueError(f"protocol.multiplier={multiplier}: must be a finite number above 0")
    if before is not None:
        check_length("protocol.before", before)
    if peak is not None and (before is None or not 0.0 < peak < math.inf):
        raise ValueError(
            f"protocol.peak={peak}: must be a finite learning rate above 0, of the phase that follows "
            "protocol.before; without that set optimizer.lr"
        )
    length = times(dense, multiplier)
    trained = [] if before is None else [Phase("dense", before, schedule)]
    ends = {"keep": keep, "patience": patience, "monitor": monitor}
    train = Phase("train", length, schedule, within=True, reach=target, peak=peak, **ends)
    if control == "none":
        return [*trained, train]
    weights = "random" if control == "reinit" else "init"
    again = Phase("control", length, schedule, weights=weights, uncontrolled="keep", **ends)
    return [*trained, train, again]
