"""Learning rates over one phase: pure functions of Progress, as multiples of `optimizer.lr`.

With T the steps of the phase and t the 0-based step, every schedule is a closed form in t and T; nothing is
stored. Warm-up is linear over its first W steps, t -> (t + 1) / W: 1/W at step 0 and exactly 1 at step W - 1,
so that the peak is reached even where a drop follows at once. A curve that ends in `final` reaches it at t =
T, one step after the last. Options are checked at every evaluation; to see errors before training, evaluate a
schedule at step 0.
"""

import math
from itertools import pairwise

from prunebench.core.phase import parse_length
from prunebench.core.run import Progress


def constant(p: Progress, *, factor: float = 1.0) -> float:
    """The same learning rate at every step.

    Args:
      p: where the phase stands.
      factor: multiple of `optimizer.lr`, above 0. As a retraining schedule 0.01 is the small fixed rate of
        "Rethinking the Value of Network Pruning" (arXiv 1810.05270).

    Raises:
      ValueError: if `factor` is not positive.
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor={factor}: must be a finite number above 0")
    return factor


def step(
    p: Progress,
    *,
    milestones: list[float],
    gamma: float = 0.1,
    warmup: float | str = 0.0,
) -> float:
    """Linear warm-up to 1, then a drop by `gamma` at each milestone.

    The schedule of most CIFAR recipes; with a long warm-up that of the lottery ticket hypothesis (arXiv
    1803.03635, section 4) and of one SILO cycle (arXiv 2212.06144). The value is 1 from the end of the
    warm-up to the first milestone, and gamma ** len(milestones) at the end.

    Args:
      p: where the phase stands.
      milestones: shares of the phase, increasing, in (0, 1); milestone m drops from step round(m * T) on. The
        first must not lie before the end of the warm-up.
      gamma: factor of each drop, in (0, 1].
      warmup: share of the phase in [0, 1), or a length such as "5ep" or "10000it".

    Raises:
      ValueError: if an option is out of range, or the warm-up does not end before the first drop.
    """
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma={gamma}: must lie in (0, 1]")
    edges = [0.0, *milestones, 1.0]
    if not all(a < b for a, b in pairwise(edges)):
        raise ValueError(f"milestones={list(milestones)}: must be increasing shares of the phase in (0, 1)")
    ramp = warmup_steps(p, warmup)
    drops = [round(share * p.steps) for share in milestones]
    if drops and drops[0] < ramp:
        raise ValueError(
            f"milestones={list(milestones)}: must not lie before the end of the warm-up "
            f"(drop at step {drops[0]}, warmup={warmup} is {ramp} steps); shorten warmup"
        )
    if p.step < ramp:
        return (p.step + 1) / ramp
    return gamma ** sum(p.step >= drop for drop in drops)


def cosine(p: Progress, *, warmup: float | str = 0.0, final: float = 0.0) -> float:
    """Linear warm-up to 1, then half a cosine down to `final` (SGDR without restarts, arXiv 1608.03983, eq.
    5).

    Args:
      p: where the phase stands.
      warmup: share of the phase in [0, 1), or a length such as "5ep" or "10000it".
      final: value at the end of the phase, in [0, 1].

    Raises:
      ValueError: if an option is out of range.
    """
    ramp = _ramp(p, warmup, final)
    if p.step < ramp:
        return (p.step + 1) / ramp
    x = (p.step - ramp) / (p.steps - ramp)
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * x)) / 2.0


def linear(p: Progress, *, warmup: float | str = 0.0, final: float = 0.0) -> float:
    """Linear warm-up to 1, then a straight line down to `final` (the dense phase of BIMP, arXiv 2111.00843).

    Args:
      p: where the phase stands.
      warmup: share of the phase in [0, 1), or a length such as "5ep" or "10000it".
      final: value at the end of the phase, in [0, 1].

    Raises:
      ValueError: if an option is out of range.
    """
    ramp = _ramp(p, warmup, final)
    if p.step < ramp:
        return (p.step + 1) / ramp
    x = (p.step - ramp) / (p.steps - ramp)
    return final + (1.0 - final) * (1.0 - x)


def one_cycle(p: Progress, *, peak: float = 0.3, div: float = 25.0, final_div: float = 10000.0) -> float:
    """Half a cosine up from 1 / div to 1, then half a cosine down (Smith & Topin, arXiv 1708.07120).

    Equal to `torch.optim.lr_scheduler.OneCycleLR` with two phases: the value is 1 / div at step 0, 1 at step
    peak * T - 1 and 1 / (div * final_div) at the last step. Momentum is left alone.

    Args:
      p: where the phase stands.
      peak: share of the phase spent rising, in (0, 1); torch's `pct_start`.
      div: peak over first value, at least 1; torch's `div_factor`.
      final_div: first over last value, at least 1; torch's `final_div_factor`.

    Raises:
      ValueError: if an option is out of range.
    """
    if not 0.0 < peak < 1.0:
        raise ValueError(f"peak={peak}: must lie in (0, 1)")
    if not 1.0 <= div < math.inf:
        raise ValueError(f"div={div}: must be a finite number of at least 1")
    if not 1.0 <= final_div < math.inf:
        raise ValueError(f"final_div={final_div}: must be a finite number of at least 1")
    first, last = 1.0 / div, 1.0 / (div * final_div)
    top = max(peak * p.steps - 1.0, 0.0)  # a phase too short to rise starts at the peak
    if p.step < top:
        return first + (1.0 - first) * (1.0 - math.cos(math.pi * p.step / top)) / 2.0
    x = (p.step - top) / (p.steps - 1.0 - top) if p.steps > 1 else 0.0
    return last + (1.0 - last) * (1.0 + math.cos(math.pi * x)) / 2.0


def warmup_steps(p: Progress, warmup: float | str) -> int:
    """Steps of the warm-up in this phase.

    Args:
      p: where the phase stands; only its length and the steps per epoch count.
      warmup: share of the phase in [0, 1), or a length such as "5ep" or "10000it", shorter than the phase.

    Raises:
      ValueError: if `warmup` is neither, or not shorter than the phase.
    """
    if not isinstance(warmup, str):
        if not 0.0 <= warmup < 1.0:
            raise ValueError(
                f"warmup={warmup}: must be a share of the phase in [0, 1), or a length such as 5ep"
            )
        return min(round(warmup * p.steps), p.steps - 1)
    try:
        ramp = parse_length(warmup, p.steps_per_epoch)
    except ValueError:
        rule = "must be a share of the phase in [0, 1), or a length such as 5ep or 10000it"
        raise ValueError(f"warmup={warmup!r}: {rule}") from None
    if ramp >= p.steps:
        raise ValueError(
            f"warmup={warmup}: must be shorter than the phase ({ramp} of {p.steps} steps); "
            "give it as a share such as 0.1"
        )
    return ramp


def _ramp(p: Progress, warmup: float | str, final: float) -> int:
    """Warm-up steps, after the check of `final` that `cosine` and `linear` share."""
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final={final}: must lie in [0, 1]")
    return warmup_steps(p, warmup)
