"""Learning rates of the retraining phases, derived from the training schedule (arXiv 2111.00843).

eta_0..eta_{T-1} are the learning rates of dense training (`of` over `dense`), eta_max their maximum, and
eta_min their minimum without the warm-up. The warm-up of a training schedule is everything before its first
maximum, which holds for every schedule here but the cyclical ones and needs no second description of it. A
training schedule that depends on the pruning cycle (SILO) is taken as it is in the cycle that retrains.

With T_rt the steps of the retraining phase and i its 0-based step, SLR, CLR, LLR and ALLR rise over the first
n_w = int(warmup * T_rt) steps by half a cosine from 0 to eta_1, eta_1 / 2 * (1 - cos(pi * i / n_w)), and
follow their own form in k = i - n_w of n_r = T_rt - n_w steps after it. FT and LRW have no warm-up. These are
closed forms per step; the authors chain torch schedulers, which repeats the last warm-up value and overshoots
CLR by 0.8 %.

All values are multiples of `optimizer.lr`. Every phase starts with a new optimizer, while the authors keep
the momentum of the previous phase.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from prunebench.core.phase import Schedule, parse_length
from prunebench.core.run import Progress


class _Training(NamedTuple):
    """Learning rates of dense training: every step, steps before the first maximum, extremes."""

    curve: tuple[float, ...]
    warmup: int
    high: float  # eta_max
    low: float  # eta_min


def ft(p: Progress, *, of: Schedule, dense: str) -> float:
    """Fine-tuning: constant eta_min (Han et al., arXiv 1506.02626). Near 0 for training schedules that end
    near 0.

    Args:
      p: where the retraining phase stands.
      of: training schedule.
      dense: length of dense training, such as "160ep".

    Raises:
      ValueError: if `dense` is not a length of at least one step.
    """
    return _training(p, of, dense).low


def lrw(p: Progress, *, of: Schedule, dense: str) -> float:
    """Learning-rate rewinding: replay eta_{T-T_rt}, ..., eta_{T-1} (Renda et al., arXiv 2003.02389).

    Args:
      p: where the retraining phase stands.
      of: training schedule.
      dense: length of dense training, such as "160ep"; at least as long as the retraining phase.

    Raises:
      ValueError: if `dense` is not a length of at least one step, or shorter than the retraining phase.
    """
    curve = _training(p, of, dense).curve
    if p.steps > len(curve):
        raise ValueError(
            f"protocol.dense={dense}: must be at least as long as retraining with retrain=lrw ({p.steps} "
            f"steps of retraining, {len(curve)} of training); shorten the retraining or choose retrain=slr"
        )
    return curve[len(curve) - p.steps + p.step]


def slr(p: Progress, *, of: Schedule, dense: str, warmup: float = 0.1) -> float:
    """Scaled schedule: the training schedule compressed into the phase (Le & Hua, arXiv 2105.03193).

    After the warm-up eta_train[floor(k * T / n_r)], with eta_max in place of the training warm-up; eta_1 =
    eta_max.

    Args:
      p: where the retraining phase stands.
      of: training schedule.
      dense: length of dense training, such as "160ep".
      warmup: share of the phase in [0, 1).

    Raises:
      ValueError: if `dense` is not a length of at least one step, or `warmup` is out of range.
    """
    train, n_w = _training(p, of, dense), _warmup_steps(p, warmup)
    if p.step < n_w:
        return _rise(p.step, n_w, train.high)
    t = (p.step - n_w) * len(train.curve) // (p.steps - n_w)
    return train.high if t < train.warmup else train.curve[t]


def clr(p: Progress, *, of: Schedule, dense: str, warmup: float = 0.1) -> float:
    """Cyclic restart: half a cosine from eta_max to eta_min (Le & Hua, arXiv 2105.03193).

    After the warm-up eta_min + (eta_max - eta_min) / 2 * (1 + cos(pi * k / n_r)); eta_1 = eta_max.

    Args:
      p: where the retraining phase stands.
      of: training schedule.
      dense: length of dense training, such as "160ep".
      warmup: share of the phase in [0, 1).

    Raises:
      ValueError: if `dense` is not a length of at least one step, or `warmup` is out of range.
    """
    train, n_w = _training(p, of, dense), _warmup_steps(p, warmup)
    if p.step < n_w:
        return _rise(p.step, n_w, train.high)
    x = (p.step - n_w) / (p.steps - n_w)
    return train.low + (train.high - train.low) / 2.0 * (1.0 + math.cos(math.pi * x))


def llr(p: Progress, *, of: Schedule, dense: str, warmup: float = 0.1) -> float:
    """Linear restart: eta_max * (1 - k / n_r) after the warm-up; eta_1 = eta_max (arXiv 2111.00843).

    Args:
      p: where the retraining phase stands.
      of: training schedule.
      dense: length of dense training, such as "160ep".
      warmup: share of the phase in [0, 1).

    Raises:
      ValueError: if `dense` is not a length of at least one step, or `warmup` is out of range.
    """
    return _line(p, _training(p, of, dense).high, warmup)


def allr(p: Progress, *, of: Schedule, dense: str, warmup: float = 0.1) -> float:
    """Adaptive linear restart: as LLR from eta_1 = eta_max * clip(d1, d2, 1) (arXiv 2111.00843).

    d1 = ||W - W^p|| / (||W|| * sqrt(r)) measures what the last pruning event did to the network: r is the
    share of the alive weights that it removed, and the norms run over all weights and biases. d2 = min(T_rt /
    T, 1) is the share of the training length that there is to recover in. An event that removed nothing has
    d1 = 0.

    Args:
      p: where the retraining phase stands; its `norm_drop` and `pruned` belong to the last pruning event.
      of: training schedule.
      dense: length of dense training, such as "160ep".
      warmup: share of the phase in [0, 1).

    Raises:
      ValueError: if `dense` is not a length of at least one step, or `warmup` is out of range.
    """
    train = _training(p, of, dense)
    d1 = p.norm_drop / math.sqrt(p.pruned) if p.pruned > 0.0 else 0.0
    d2 = min(p.steps / len(train.curve), 1.0)
    return _line(p, train.high * min(max(d1, d2), 1.0), warmup)


def same(p: Progress, *, of: Schedule) -> float:
    """The training schedule over the whole phase, as in a full training of the pruned network.

    Retraining of the lottery ticket hypothesis (arXiv 1803.03635) and Scratch-E of "Rethinking the Value of
    Network Pruning" (arXiv 1810.05270).

    Args:
      p: where the retraining phase stands.
      of: training schedule.
    """
    return of(p)


def _training(p: Progress, of: Schedule, dense: str) -> _Training:
    """Learning rates of dense training on this run's data."""
    steps = parse_length(dense, p.steps_per_epoch)
    if steps == 0:
        raise ValueError(
            f"protocol.dense={dense}: must be longer than 0 steps; choose retrain=same otherwise"
        )
    return _curve(of, steps, p.steps_per_epoch, p.cycle, p.cycles, p.density, p.peak)


@lru_cache(maxsize=4)
def _curve(
    of: Schedule,
    steps: int,
    steps_per_epoch: int,
    cycle: int,
    cycles: int,
    density: float,
    peak: float | None,
) -> _Training:
    """Evaluate the training schedule at every step, once for a cycle."""
    place = Progress(0, steps, steps_per_epoch, cycle=cycle, cycles=cycles, density=density, peak=peak)
    curve = tuple(of(replace(place, step=t)) for t in range(steps))
    high = max(curve)
    warmup = curve.index(high)
    return _Training(curve, warmup, high, min(curve[warmup:]))


def _warmup_steps(p: Progress, warmup: float) -> int:
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"retrain.warmup={warmup}: must be a share of the retraining phase in [0, 1)")
    return int(warmup * p.steps)


def _rise(step: int, n_w: int, first: float) -> float:
    """Half-cosine warm-up from 0 at step 0 towards `first` at step `n_w`."""
    return first / 2.0 * (1.0 - math.cos(math.pi * step / n_w))


def _line(p: Progress, first: float, warmup: float) -> float:
    """Warm-up to `first`, then a straight line to 0 at the end of the phase."""
    n_w = _warmup_steps(p, warmup)
    if p.step < n_w:
        return _rise(p.step, n_w, first)
    return first * (1.0 - (p.step - n_w) / (p.steps - n_w))
