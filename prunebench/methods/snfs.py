"""SNFS (sparse momentum): grow where the momentum is largest, in the layers where it is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.methods.sparse_training import Anneal, SparseTraining

NEARLY_DENSE = 0.2  # sparsity below which a layer that still grows drops no larger share than this sparsity
FULL = 0.99  # share of a layer's free places that is filled at most in the first instance


class SNFS(SparseTraining):
    """Sparse training that grows where the exponential average of the dense gradient is largest.

    Sparse networks from scratch (Dettmers & Zettlemoyer 2019, arXiv 1907.04840; authors' code
    TimDettmers/sparse_learning, sparselearning/core.py) with redistribute=momentum: at an update every layer
    drops ceil(p n) of its n kept weights of smallest magnitude, and all that was dropped is grown again,
    shared out over the layers in proportion to the mean |average| over the weights that each kept before, at
    most 99 % of a layer's free places, the rest evenly over the others. A layer under 20 % sparsity whose
    part is above the mean drops min(sparsity, p). Once an epoch, p from 0.5 to 0 by a cosine; not in the very
    first step, where the average would be that of a single batch.
    With redistribute=none the form that the RigL paper compares with (arXiv 1911.11134; google-research/rigl,
    sparse_optimizers.py): every layer keeps its number of weights, at RigL's times, with the update after the
    weight step as in SET, from which that class is derived.

    Differs: the average is our own, a <- momentum a + (1 - momentum) g over all weights, since optimizer
    state of pruned weights is 0 here; the authors read SGD's buffer, the same up to a factor, and with Adam
    its quotient of moments. Parts are whole numbers that add up to the total (largest remainder, then the
    earlier layer), and no layer falls below `min_kept`: the authors' code rounds and lets the total drift,
    corrected over time. An update of redistribute=momentum makes the host wait once for the device.

    Training costs 2 f_S + f_D per image in every step: each needs the dense gradient. Phases of plain
    training (protocol.before, protocol.control) cost what they cost with any method. What is masked: see
    `Static`.

    Args:
      allocation, interval, drop_fraction, anneal, begin, until, update_replaces_step, min_kept: as in
        `SparseTraining`.
      momentum: decay of the average, in [0, 1).
      redistribute: "momentum" or "none".

    Attributes:
      average: parameter name -> exponential average of the dense gradient.
    """

    state = ("average",)
    changes_step = Method.changes_step  # every step reads dense gradients: none is plain

    def __init__(
        self,
        *,
        allocation: str | dict[str, float] = "erk",
        interval: int | str = "1ep",
        drop_fraction: float = 0.5,
        anneal: Anneal = "cosine",
        begin: float = 0.0,
        until: float = 1.0,
        update_replaces_step: bool = False,
        momentum: float = 0.9,
        redistribute: Literal["momentum", "none"] = "momentum",
        min_kept: int = 1,
    ):
        super().__init__(
            allocation=allocation,
            interval=interval,
            drop_fraction=drop_fraction,
            anneal=anneal,
            begin=begin,
            until=until,
            update_replaces_step=update_replaces_step,
            min_kept=min_kept,
        )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must lie in [0, 1)")
        if redistribute not in ("momentum", "none"):
            raise ValueError(f"redistribute={redistribute}: must be momentum or none")
        self.momentum, self.redistribute = momentum, redistribute
        self.average: dict[str, Tensor] = {}

    def waits(self, run: Run) -> bool:
        """In an update: the host must see how the momentum is spread over the layers."""
        return self.redistribute == "momentum" and bool(self.moves(run, run.clock.step))

    def attach(self, run: Run) -> None:
        """Begin with an average of 0."""
        params = dict(run.model.named_parameters())
        self.average = {n: torch.zeros_like(params[n], requires_grad=False) for n in run.masks}

    @torch.no_grad()
    def step(self, run: Run) -> None:
        """Follow the dense gradient, then as `SparseTraining` does."""
        if run.goal is None:  # a phase of plain training before or after
            super().step(run)
            return
        params = dict(run.model.named_parameters())
        pairs = [(a, params[n].grad) for n, a in self.average.items() if params[n].grad is not None]
        averages, gradients = [a for a, _ in pairs], [g for _, g in pairs]
        torch._foreach_mul_(averages, self.momentum)
        torch._foreach_add_(averages, gradients, alpha=1 - self.momentum)
        super().step(run)

    def growth(self, run: Run, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The average."""
        return self.average

    def update(
        self, run: Run, drops: Mapping[str, int], grows: Mapping[str, int], scores: Mapping[str, Tensor]
    ) -> None:
        """Drop and grow; where momentum redistributes, by numbers of its own."""
        if self.redistribute == "momentum":
            share = self.fraction(self._time(run, run.clock.step, run.clock.steps), run.clock.steps)
            parts = normalised(
                {n: (a.abs() * run.masks[n]).sum(dtype=torch.float64) for n, a in self.average.items()},
                run.masks.kept_per_layer,
            )
            drops, grows = moved(
                share,
                parts,
                run.masks.kept_per_layer,
                {n: m.numel() for n, m in run.masks.items()},
                self.min_kept,
            )
        super().update(run, drops, grows, scores)

    def train_macs(self, run: Run, step: int, sparse: int, dense: int) -> int:
        """2 f_S + f_D; 3 f_S where the masks stay."""
        return 3 * sparse if run.goal is None else 2 * sparse + dense

    def _time(self, run: Run, step: int, steps: int) -> int | None:
        """As in `SparseTraining`; redistribution waits for an average over more than one batch."""
        return super()._time(run, step, steps) if step or self.redistribute == "none" else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the average onto the device and into the memory format in which it is kept."""
        loaded = state["average"]
        super().load_state_dict({"average": {n: a.copy_(loaded[n]) for n, a in self.average.items()}})


def normalised(sums: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, float]:
    """Means over the kept weights of each layer, divided by their sum; equal parts if all are 0."""
    values = torch.stack(list(sums.values())).tolist()  # waits for the device
    means = {n: v / kept[n] if kept[n] else 0.0 for n, v in zip(sums, values)}
    whole = sum(means.values())
    if not 0 < whole < math.inf:
        return dict.fromkeys(means, 1 / len(means))
    return {n: m / whole for n, m in means.items()}


def moved(
    share: float, parts: Mapping[str, float], kept: Mapping[str, int], sizes: Mapping[str, int], floor: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Weights that each layer drops, and weights that it grows; the sums are equal.

    Args:
      share: of the kept weights to drop, in [0, 1].
      parts: of each layer in what is grown, adding up to 1.
      kept, sizes: weights kept and in all.
      floor: weights that every layer keeps, as far as it has them.

    >>> even = {"a": 200, "b": 200, "c": 100}
    >>> moved(0.2, {"a": 0.4, "b": 0.1, "c": 0.5}, even, dict.fromkeys("abc", 1000), 1)[1]
    {'a': 40, 'b': 10, 'c': 50}
    """
    drops = {}
    for n, count in kept.items():
        sparsity = 1 - count / sizes[n]
        grows_still = sparsity < NEARLY_DENSE and parts[n] > 1 / len(parts)
        drops[n] = math.ceil(min(sparsity, share) * count if grows_still else share * count)
    left = {n: kept[n] - drops[n] for n in kept}
    first = {n: max(0, min(floor, kept[n]) - left[n]) for n in kept}
    room = {n: sizes[n] - left[n] - first[n] for n in kept}
    rest = spread_out(sum(drops.values()) - sum(first.values()), parts, room)
    return drops, {n: first[n] + rest[n] for n in kept}


def spread_out(total: int, parts: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that add up to `total`, in proportion to `parts` where the room allows it.

    Args:
      total: at most the sum of `room`.
      parts: adding up to 1.
      room: free places of each layer, of which FULL are filled before any layer is filled up.
    """
    caps = {n: math.floor(FULL * r) for n, r in room.items()}
    caps = caps if sum(caps.values()) >= total else room
    exact = {n: total * parts[n] for n in parts}
    while True:
        over = sum(max(0.0, e - caps[n]) for n, e in exact.items())
        exact = {n: min(e, float(caps[n])) for n, e in exact.items()}
        free = [n for n, e in exact.items() if e < caps[n]]
        if over < 1e-6 or not free:
            break
        for n in free:
            exact[n] += over / len(free)
    counts = {n: math.floor(e + 1e-9) for n, e in exact.items()}
    while missing := total - sum(counts.values()):
        order = sorted((n for n in counts if counts[n] < caps[n]), key=lambda n: counts[n] - exact[n])
        for n in order[:missing]:
            counts[n] += 1
    return counts
