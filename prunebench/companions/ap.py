"""AP, Activating-while-Pruning: part of each round's removals goes to negative weights that hardly moved."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from prunebench.core.allocation import spread
from prunebench.core.masks import Masks
from prunebench.core.method import Companion, Method
from prunebench.core.phase import LENGTH, Phase
from prunebench.core.run import Run
from prunebench.core.selection import select, topk_mask

START = "cycle"  # snapshot: the network at the start of the training before a pruning event
SHARE = 0.1


class AP(Companion):
    """Selective activation around any method that prunes single weights in rounds (arXiv 2212.06145).

    Of the weights that a round removes, the base method chooses the first part by its own scores. Then AP
    takes its share among the alive weights that are negative: those with the smallest movement |w* - w_0|,
    where w_0 is the weight at the start of the training that has just ended and w* the weight at its end.
    Inputs of a ReLU layer are not negative, so that removing a negative weight can only raise a
    pre-activation and wake dead neurons. The total is the base method's, to the weight.

    Modes, after the authors' script (`resnet_20.py`); the paper's own listings were not at hand, and the
    names are from memory, with low confidence:
      lite: AP's choice within the base method's rounds; nothing else changes.
      pro: every round trains twice. From the round's start (as `protocol.weights` says) the network is
        trained with the old masks, pruned, put back to the round's start, and trained again; the second
        training is the result. Both are phases of the plan ("round-01a", "round-01") and count in the cost.
      solo: AP chooses everything, the base method nothing (an ablation).
      matched: a control for pro: the base method alone, with rounds of twice the length. Ours; the script
        compares pro with the base method at half of pro's training.

    What differs from the script: counts are exact (it prunes one weight more); only weights of convolutions
    and linear layers are candidates (it takes BatchNorm scales for weights); the optimizer is new in each
    training. Biases and normalisation are not pruned.

    Args:
      base: the method around which AP works.
      mode: see above.
      share: part of a round's removals that AP chooses, in [0, 1]; None: 0.1 (the script's 2 of 20 %). In
        modes lite and pro only. 0 is the base method, 1 is solo. Where fewer candidates are left, AP takes
        them all and the base method removes the rest.
      start_cycle: first pruning event, counted from 1, in which AP takes part.
      scope: rank the candidates over all layers, or take from each layer in proportion to its alive weights.
      skip_first_layer: leave the first prunable layer to the base method: its inputs may be negative.
      min_kept: weights that AP leaves in every layer.

    Raises:
      ValueError: if an option is out of range, or has no effect in this mode.
    """

    def __init__(
        self,
        base: Method,
        *,
        mode: Literal["lite", "pro", "solo", "matched"] = "lite",
        share: float | None = None,
        start_cycle: int = 1,
        scope: Literal["global", "layer"] = "global",
        skip_first_layer: bool = False,
        min_kept: int = 1,
    ):
        super().__init__(base)
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"companion.ap.share={share}: must lie in [0, 1], or null for {SHARE}")
        if share is not None and mode in ("solo", "matched"):
            raise ValueError(
                f"companion.ap.share={share}: has no effect with companion.ap.mode={mode}; leave it null"
            )
        if mode == "matched" and (start_cycle, scope, skip_first_layer) != (1, "global", False):
            raise ValueError(
                "companion.ap.mode=matched: AP takes no part, companion.ap.start_cycle, scope and "
                "skip_first_layer have no effect; leave them at 1, global and false"
            )
        if start_cycle < 1:
            raise ValueError(f"companion.ap.start_cycle={start_cycle}: must be 1 or more")
        if min_kept < 0:
            raise ValueError(f"companion.ap.min_kept={min_kept}: must be 0 or more")
        self.mode, self.share, self.start_cycle = mode, share, start_cycle
        self.scope, self.skip_first_layer, self.min_kept = scope, skip_first_layer, min_kept

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Snapshots of the starts of trainings; in mode pro two trainings for every round."""
        events = [p for p in phases if p.sparsity is not None]
        if not events:
            raise ValueError(
                "companion=[ap]: needs pruning events to take part in, this plan has none; choose "
                "method=imp, one_shot or lth, or leave the companion out"
            )
        if len(events) < self.start_cycle:
            raise ValueError(
                f"companion.ap.start_cycle={self.start_cycle}: must be at most {len(events)}, the pruning "
                "events of this plan"
            )
        if phases[0].sparsity is not None:
            raise ValueError(
                "companion=[ap]: measures how far weights moved in training, this plan prunes before any; "
                "choose protocol=iterative or one_shot"
            )
        if any(p.hands_on for p in phases):
            raise ValueError(
                "protocol.optimizer_state=keep: AP trains its rounds from other weights; set it to reset"
            )
        return self.base.plan({"pro": _twice, "matched": _longer}.get(self.mode, _remember)(phases))

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse a base method that prunes more than single weights."""
        if self.base.granularity != "weight":
            raise ValueError(
                f"companion=[ap]: chooses single weights, sparsity.granularity={self.base.granularity} "
                "prunes others; use sparsity.granularity=weight"
            )
        total, alive, of_base = run.masks.total, run.masks.total, []
        for event, sparsity in enumerate(asked, start=1):
            keep = round((1 - sparsity) * total)
            mine = self._part(alive - keep, event)
            of_base += [1 - (keep + mine) / total if mine else sparsity] if keep + mine < alive else []
            alive = keep
        super().check(run, of_base or asked)

    def prune(self, run: Run, sparsity: float) -> None:
        """Let the base method remove its part, then remove the negative weights that moved least."""
        alive, total = run.masks.kept, run.masks.total
        keep = round((1 - sparsity) * total)
        mine = self._part(alive - keep, run.clock.cycle + 1)
        sizes = run.masks.kept_per_layer
        if keep + mine < alive:
            self.base.prune(run, 1 - (keep + mine) / total if mine else sparsity)
        if mine:
            run.set_masks(self._without_unmoved(run, mine, sizes))
        if run.masks.kept == keep:
            return
        if self.mode == "solo":
            raise ValueError(
                f"companion.ap.mode=solo: pruning event {run.clock.cycle + 1} is to remove {mine} weights, "
                f"only {alive - run.masks.kept} are negative and may go; lower the sparsity or choose "
                "companion.ap.mode=lite"
            )
        self.base.prune(run, sparsity)

    def _part(self, removals: int, event: int) -> int:
        """How many of the removals of a pruning event, counted from 1, AP chooses."""
        share = {"solo": 1.0, "matched": 0.0}.get(self.mode, SHARE if self.share is None else self.share)
        return round(share * removals) if event >= self.start_cycle else 0

    @torch.no_grad()
    def _without_unmoved(self, run: Run, count: int, sizes: dict[str, int]) -> Masks:
        """The masks less `count` negative weights, or all there are, that moved least.

        Args:
          sizes: alive weights per layer before the event.
        """
        start = run.snapshots.get(START) or run.initial_state()
        weights = {n: p.detach() for n, p in run.model.named_parameters() if n in run.masks}
        movement = {n: (w - start[n].to(w.device)).abs() for n, w in weights.items()}
        candidates = {n: run.masks[n] & (w < 0) for n, w in weights.items()}
        if self.skip_first_layer:
            candidates[next(iter(candidates))].zero_()
        for n, mask in candidates.items():
            spared = self.min_kept - (run.masks.kept_per_layer[n] - int(torch.count_nonzero(mask)))
            if spared > 0:
                best = min(spared, int(torch.count_nonzero(mask)))
                mask &= ~topk_mask(movement[n].masked_fill(~mask, -torch.inf), best)
        there = Masks(candidates)
        left = self._left(there, count, sizes)
        if not sum(left.values()):
            return Masks({n: m & ~there[n] for n, m in run.masks.items()})
        by_layer = {n: 1 - left[n] / m.numel() for n, m in there.items() if n in left}
        stay = select(
            movement, 1 - sum(left.values()) / there.total, allocation=by_layer or "global", previous=there
        )
        return Masks({n: m & (~there[n] | stay[n]) for n, m in run.masks.items()})

    def _left(self, there: Masks, count: int, sizes: dict[str, int]) -> dict[str, int]:
        """Candidates of each layer that stay; under "" those of all layers, where one ranking decides."""
        if self.scope == "global":
            return {"": max(there.kept - count, 0)}
        share = 1 - count / sum(sizes.values())
        go = spread(dict.fromkeys(sizes, share), sizes, share)
        return {n: max(c - go[n], 0) for n, c in there.kept_per_layer.items()}


def _remember(phases: list[Phase]) -> list[Phase]:
    """Snapshots at the starts of trainings that end in a pruning event; dense training's start is known."""
    before = [following.sparsity is not None for following in phases[1:]] + [False]
    return [
        replace(p, snapshot=((START, "0it"), *p.snapshot)) if due and place else p
        for place, (p, due) in enumerate(zip(phases, before))
    ]


def _twice(phases: list[Phase]) -> list[Phase]:
    """Two trainings for every round, from the same start."""
    plan = []
    for phase in phases:
        if phase.sparsity is None:
            plan.append(phase)
            continue
        first = replace(
            phase,
            name=f"{phase.name}a",
            sparsity=None,
            weights=phase.uncontrolled or phase.weights,
            uncontrolled=None,
            shuffle=None,
            snapshot=((START, "0it"), *phase.snapshot),
            auxiliary=True,
            beside=None,
        )
        plan += [first, phase if phase.uncontrolled else replace(phase, weights=START)]
    return plan


def _longer(phases: list[Phase]) -> list[Phase]:
    """Rounds of twice the length."""
    return [p if p.sparsity is None else replace(p, length=_doubled(p.length)) for p in phases]


def _doubled(length: str) -> str:
    number, unit = LENGTH.fullmatch(length.strip()).groups()
    return f"{2 * float(number):.12g}{unit}"
