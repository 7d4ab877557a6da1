"""DropNet: whole channels go by their activations, the rest begins again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from prunebench.core import parallel
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.selection import NanScores
from prunebench.core.units import alive_channels, model_units, select_units, unit_masks, unit_scores
from prunebench.methods.pruner import Criterion, Pruner


class DropNet(Pruner):
    """Iterative pruning of filters and neurons by a metric of their activations.

    DropNet (Chong Min & Motani 2020, arXiv 2207.06646, algorithm 1): train, score every unit over the
    training images, drop a share of those that are left, rewind to the initial weights, repeat. The metric
    is the criterion: mean_activation (minimum, and maximum with criterion.drop), random_channels, apoz,
    greedy_loss (the Oracle); their layer-wise forms are allocation "uniform", the global ones "global". The
    protocol says what is rewound to (weights=init) and when training ends early (patience, monitor).

    Counts are the paper's: every round drops max(1, int(rate * N)) of the N units that are left, layer by
    layer or over all. Differs from the authors' code, which compares with a threshold one too high and takes
    units from the first layers first: here exactly the lowest go, equal ones in random order. No layer loses
    its last unit. The mask of a dropped unit is on its weights, bias and BatchNorm entries in place of its
    output, which is 0 all the same; a residual stream is dropped from as a whole (they mask every convolution
    by itself). The output layer is not pruned. Ending at an accuracy (kappa, which the paper gives no value)
    is not offered.

    Args:
      criterion: gives the scores, higher = keep.
      rate: share of the units left that a round drops, in (0, 1); null to follow sparsity.target.
      allocation: "uniform" (ranks within each layer) or "global" (over all).
      granularity: "filter" or "neuron".
      layer_rates: must be null; they belong to an allocation that is not offered here.
      min_kept: units that every layer keeps, at least 1.

    Raises:
      ValueError: if an option is out of range.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        rate: float | None = 0.2,
        allocation: Literal["uniform", "global"] = "uniform",
        granularity: Literal["filter", "neuron"] = "neuron",
        layer_rates: dict[str, float] | None = None,
        min_kept: int = 1,
    ):
        if allocation not in ("uniform", "global"):
            raise ValueError(
                f"sparsity.allocation={allocation}: DropNet ranks units within each layer (uniform) or over "
                "all (global)"
            )
        if granularity not in ("filter", "neuron"):
            raise ValueError(
                f"sparsity.granularity={granularity}: DropNet drops whole channels; use filter or neuron"
            )
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"sparsity.rate={rate}: must lie in (0, 1)")
        if min_kept < 1:
            raise ValueError(f"sparsity.min_kept={min_kept}: must be 1 or more, no layer may vanish")
        super().__init__(
            criterion,
            allocation=allocation,
            granularity=granularity,
            layer_rates=layer_rates,
            min_kept=min_kept,
        )
        self.rate = rate

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The plan with sparsities that follow from whole numbers of units, where `rate` says them."""
        phases, event = super().plan(phases), 0
        if self.rate is None:
            return phases
        result = []
        for phase in phases:
            if phase.sparsity is not None:
                event += 1
                if phase.sparsity != 1.0 - (1.0 - self.rate) ** event:
                    raise ValueError(
                        f"sparsity.rate={self.rate}: goes with protocol=iterative and sparsity.target=null; "
                        "set sparsity.rate=null where the target says how much is dropped"
                    )
                phase = replace(phase, sparsity=partial(self._sparsity_after, event))
            result.append(phase)
        return result

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """As every pruner, and refuse rounds that find nothing to drop."""
        if self.rate is None or self.allocation == "global":
            super().check(run, asked)
        elif asked:  # no layer goes below its floor, and the counts are not those of an allocation
            self.check_criterion(run)
        whole = sum(self._sizes(run).values()) if asked else 0
        for event, (before, after) in enumerate(zip([0.0, *asked], asked), start=1):
            if round((1 - before) * whole) == round((1 - after) * whole):
                raise ValueError(
                    f"sparsity.rounds={len(asked)}: round {event} finds nothing to drop, every layer is "
                    f"down to sparsity.min_kept={self.min_kept}; lower sparsity.rounds"
                )

    def _sizes(self, run: Run) -> dict[str, int]:
        return {u.name: u.size for u in model_units(run.model, self.granularity, run.masks)}

    def _next(self, left: Mapping[str, int]) -> dict[str, int]:
        """Units left by layer after one more round."""
        if self.allocation == "global":
            left = {"all": sum(left.values())}
        floors = {n: min(self.min_kept, count) for n, count in left.items()}
        return {n: max(floors[n], c - max(1, int(self.rate * c))) for n, c in left.items()}

    def _sparsity_after(self, event: int, run: Run) -> float:
        """Share of the units dropped after so many rounds."""
        left = sizes = self._sizes(run)
        for _ in range(event):
            left = self._next(left)
        return 1 - sum(left.values()) / sum(sizes.values())

    def _prune_once(self, run: Run, sparsity: float) -> None:
        units = model_units(run.model, self.granularity, run.masks)
        allocation = self.allocation
        if self.rate is not None and allocation == "uniform":
            left = {n: int(a.sum()) for n, a in alive_channels(run.masks, units).items()}
            allocation = {u.name: 1 - self._next(left)[u.name] / u.size for u in units}
        alive = select_units(
            ranks(unit_scores(self.criterion(run), units), run.rng("ties")),
            sparsity,
            units=units,
            allocation=allocation,
            previous=run.masks if run.masks.sparsity else None,
            min_kept=self.min_kept,
        )
        run.set_masks(parallel.from_first_rank(unit_masks(run.model, alive, run.masks), run.world))


def ranks(scores: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """The place of every score among all of them, 0 for the lowest; equal ones in random order.

    Returns:
      name -> float64 tensor of the score's shape, on its device.

    Raises:
      ValueError: if a score is NaN.
    """
    flat = torch.cat([s.flatten().double().cpu() for s in scores.values()])
    if bool(flat.isnan().any()):
        raise NanScores
    drawn = torch.randperm(len(flat), generator=rng)
    places = torch.empty_like(flat)
    places[drawn[flat[drawn].argsort(stable=True)]] = torch.arange(len(flat), dtype=torch.float64)
    parts = places.split([s.numel() for s in scores.values()])
    return {n: p.view(s.shape).to(s.device) for (n, s), p in zip(scores.items(), parts)}
