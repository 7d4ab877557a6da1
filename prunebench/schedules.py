"""Learning rates over one phase: pure functions of Progress, as multiples of `optimizer.lr`.

With T the steps of the phase and t the 0-based step, every schedule is a closed form in t and T; nothing is
stored. Warm-up is linear over its first W steps, t -> (t + 1) / W: 1/W at step 0 and exactly 1 at step W - 1,
so that the peak is reached even where a drop follows at once. A curve that ends in `final` reaches it at t =
T, one step after the last. Options are checked at every evaluation; to see errors before training, evaluate a
schedule at step 0.
"""

import math
from itertools import pairwise

from prunebench.core.phase import Schedule, parse_length
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


def cyclical(p: Progress, *, period: float | str = 0.2, low: float = 0.0) -> float:
    """Triangles from `low` up to 1 and down again (Smith, arXiv 1506.01186, section 3, policy "triangular").

    The value is `low` at step 0 and exactly 1 in the middle of every triangle. A last triangle that does not
    fit into the phase is cut off.

    Args:
      p: where the phase stands.
      period: of one triangle, a share of the phase in (0, 1], or a length such as "8ep"; rounded to an even
        number of steps.
      low: lowest value, in [0, 1].

    Raises:
      ValueError: if an option is out of range.
    """
    if not 0.0 <= low <= 1.0:
        raise ValueError(f"low={low}: must lie in [0, 1]")
    half = max(1, round(_period_steps(p, period) / 2.0))
    place = p.step % (2 * half)
    return low + (1.0 - low) * min(place, 2 * half - place) / half


def silo(
    p: Progress,
    *,
    within: Schedule,
    base: float,
    eps: float,
    delta: float | None = None,
    beta: float = 5.0,
    delay: int = 1,
) -> float:
    """SILO: the peak of the learning rate grows along an S-curve over the pruning cycles (arXiv 2212.06144).

    In cycle m (pruning events so far) the shape `within` is multiplied by

        max_lr(m) = eps                                            for m <= delay,
        max_lr(m) = eps + delta / (1 + (gamma / (1 - gamma))^-beta)   after it,

    with gamma = 1 - (1 - p)^(m - delay) for a share p of the remaining weights pruned in every cycle, as in
    the authors' code (`resnet_20_cifar_10.py`; the paper's listing was not at hand). It is computed here as
    gamma = 1 - density^((m - delay) / m) from the density reached, which is the same for equal shares and
    needs no p for other plans. As sigmoid(beta * logit(gamma)) it is finite at gamma = 0 and 1. Nothing is
    kept between runs, where the authors' max_lr leaks from one run into the next.

    With a cyclical `within` this is S-Cyc (arXiv 2110.08764); with delta = 0 it is `within` alone.

    Args:
      p: where the phase stands.
      within: learning rate within a cycle, with 1 as its peak.
      base: `optimizer.lr`, of which the result is a multiple; above 0.
      eps: peak of the first `delay` + 1 cycles, a learning rate above 0.
      delta: largest growth of the peak, a learning rate of at least 0; None: 4/3 eps, as in the authors'
        setting for ResNet-20 (0.03 and 0.04).
      beta: steepness of the S-curve, above 0; 1 makes the growth equal to gamma.
      delay: cycles that the curve lags behind, at least 0; the authors' code has 1.

    Raises:
      ValueError: if an option is out of range, the plan has too few cycles for the peak to grow in, or it
        sets the peak itself.
    """
    for name, value in (("eps", eps), ("base", base), ("beta", beta)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be a finite number above 0")
    if delta is not None and not 0.0 <= delta < math.inf:
        raise ValueError(f"delta={delta}: must be a finite number of at least 0, or null for 4/3 eps")
    if delay < 0:
        raise ValueError(f"delay={delay}: must be 0 or more")
    if p.peak is not None:
        raise ValueError(
            f"schedule.eps={eps}: SILO sets the peak of every cycle, and so does the plan (protocol=oracle "
            "or protocol.peaks); choose schedule=warmup_step there"
        )
    if p.cycles <= delay + 1:
        raise ValueError(
            f"delay={delay}: SILO raises the peak from pruning cycle {delay + 1} on, this plan has "
            f"{p.cycles - 1} pruning event{'s' if p.cycles != 2 else ''}; choose protocol=iterative with "
            "more rounds, or another schedule such as warmup_step"
        )
    growth = 4.0 / 3.0 * eps if delta is None else delta
    return (eps + growth * _s_curve(p, beta, delay)) / base * within(p)


def _s_curve(p: Progress, beta: float, delay: int) -> float:
    """sigmoid(beta * logit(gamma)) in [0, 1]."""
    if p.cycle <= delay or p.density >= 1.0:
        return 0.0
    if p.density <= 0.0:
        return 1.0
    rest = (p.cycle - delay) / p.cycle * math.log(p.density)  # log(1 - gamma)
    gamma = -math.expm1(rest)
    x = beta * (math.log(gamma) - rest)
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


def _period_steps(p: Progress, period: float | str) -> float:
    """Steps of a period given as a share of the phase or as a length."""
    rule = "must be a share of the phase in (0, 1], or a length such as 8ep"
    if not isinstance(period, str):
        if not 0.0 < period <= 1.0:
            raise ValueError(f"period={period}: {rule}")
        return period * p.steps
    try:
        steps = parse_length(period, p.steps_per_epoch)
    except ValueError:
        raise ValueError(f"period={period!r}: {rule}") from None
    if steps < 2:
        raise ValueError(f"period={period}: must be at least 2 steps")
    return steps


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
