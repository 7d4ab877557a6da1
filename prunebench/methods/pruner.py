"""Criterion x allocation x granularity, at the pruning events that the protocol sets."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunebench.core import parallel
from prunebench.core.allocation import by_rates, resolve_layers
from prunebench.core.method import Method
from prunebench.core.phase import LENGTH, Phase
from prunebench.core.run import Run
from prunebench.core.selection import layer_counts, select
from prunebench.core.units import (
    PrunableModel,
    alive_channels,
    compact,
    model_units,
    select_units,
    unit_masks,
)

Criterion = Callable[[Run], dict[str, Tensor]]
"""Run -> scores by name. Three attributes of the function are heeded: `snapshots`, the (name, time) pairs
that it reads; `check`, a function (run, *, options) that raises ValueError before training if it cannot work;
and `of_units`, true where it scores channels: both are given the units too, and scores are by unit name."""


def _unbound(criterion: Criterion) -> tuple[Callable, dict[str, Any]]:
    """The criterion's function and the options that the configuration has given it."""
    return getattr(criterion, "func", criterion), getattr(criterion, "keywords", {})


class Pruner(Method):
    """Removes the entries of the lowest scores; pruned weights never return.

    With the magnitude criterion this is magnitude pruning (Han et al. 2015, arXiv 1506.02626): one-shot,
    iterative (IMP, arXiv 2111.00843) or with rewinding (lottery tickets, arXiv 1803.03635), as the protocol
    says. Weights of convolutions and linear layers are pruned, the first and the classifier included unless
    excluded; biases and normalisation are not (at filter and neuron granularity those of a dead channel go
    with it).

    Args:
      criterion: gives the scores, name -> tensor of the parameter's shape, higher = keep.
      allocation: "global", "lamp", "uniform", "uniform_plus", "er", "erk", "rates" (each layer by its rate in
        `layer_rates`), or layer pattern -> sparsity.
      granularity: "weight", "kernel", "filter" (channels made by a convolution) or "neuron" (all channels).
        With filters and neurons the sparsity is the share of channels.
      layer_rates: layer pattern (fnmatch on parameter names, "head" for the classifier) -> share of the
        remaining weights removed per round; later patterns win; for allocation "rates" only.
      min_kept: floor of every layer, in entries of the granularity.
      iterations: how often scores are taken within one pruning event, with the density falling by the same
        factor each time (SynFlow, arXiv 2006.05467, algorithm 1: 100 times).

    Raises:
      ValueError: if `iterations` is below 1, `min_kept` is negative, a rate is outside [0, 1), or rates lack
        their allocation.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        allocation: str | dict[str, float] = "global",
        granularity: Literal["weight", "kernel", "filter", "neuron"] = "weight",
        layer_rates: dict[str, float] | None = None,
        min_kept: int = 1,
        iterations: int = 1,
    ):
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: must be 1 or more")
        if min_kept < 0:
            raise ValueError(f"sparsity.min_kept={min_kept}: must be 0 or more")
        if (allocation == "rates") != bool(layer_rates):
            raise ValueError(
                f"sparsity.layer_rates={layer_rates}: goes with sparsity.allocation=rates, "
                f"which is {allocation!r} here"
            )
        for pattern, rate in (layer_rates or {}).items():
            if not 0 <= rate < 1:
                raise ValueError(f"sparsity.layer_rates.{pattern}={rate}: must lie in [0, 1)")
        self.criterion, self.allocation, self.granularity = criterion, allocation, granularity
        self.layer_rates, self.min_kept, self.iterations = layer_rates, min_kept, iterations

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """Add the snapshots that the criterion reads to every phase before a pruning event."""
        function, _ = _unbound(self.criterion)
        needed = getattr(function, "snapshots", ())
        if not needed:
            return phases
        if phases[0].sparsity is not None:
            raise ValueError(
                f"criterion: {function.__name__} looks back on training, this plan prunes before any; choose "
                "protocol=iterative or another criterion"
            )
        follows = [following.sparsity is not None for following in phases[1:]] + [False]
        for p, f in zip(phases, follows):
            if f and isinstance(p.length, str) and float(LENGTH.fullmatch(p.length.strip())[1]) == 0:
                raise ValueError(
                    f"criterion: {function.__name__} looks back on training, phase {p.name} trains nothing; "
                    "give it a length or choose another criterion"
                )
            if f and p.keep == "best":
                raise ValueError(
                    f"protocol.keep=best: criterion {function.__name__} looks back from the last epoch, "
                    "which need not be the best one; use protocol.keep=last or another criterion"
                )
        return [replace(p, snapshot=p.snapshot + needed) if f else p for p, f in zip(phases, follows)]

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse a granularity, an allocation, a sparsity or a criterion that this network cannot have."""
        if asked:
            self._check_criterion(run)
        floor = self.min_kept
        if self.granularity in ("filter", "neuron"):
            floor, units = max(1, self.min_kept), model_units(run.model, self.granularity, run.masks)
            sizes, shapes = {u.name: u.size for u in units}, {u.name: (u.size,) for u in units}
        else:
            shapes = {n: tuple(m.shape) for n, m in run.masks.items()}
            grain = 2 if self.granularity == "kernel" else None
            sizes = {n: math.prod(s[:grain]) for n, s in shapes.items()}
        allocation, total = self._allocation(run), sum(sizes.values())
        if self.granularity == "kernel" and allocation in ("er", "erk", "uniform_plus"):
            raise ValueError(
                f"sparsity.allocation={allocation}: is defined on weights; with kernels use uniform, global "
                "or lamp"
            )
        for j, sparsity in enumerate(asked, start=1):
            if allocation not in ("global", "lamp"):
                counts = layer_counts(shapes, sizes, sparsity, allocation, min_kept=floor)
                self._check_sum(sum(counts.values()), total, sparsity, len(sizes))
            elif (keep := round((1 - sparsity) * total)) < floor * len(sizes):
                raise ValueError(
                    f"sparsity.min_kept={floor}: needs {floor * len(sizes)} entries in "
                    f"{len(sizes)} layers, but round {j} with sparsity {sparsity:.12g} keeps {keep} of "
                    f"{total}; lower the sparsity or min_kept"
                )

    def _check_criterion(self, run: Run) -> None:
        """Refuse a criterion that cannot score this network, or not at this granularity."""
        function, options = _unbound(self.criterion)
        if not getattr(function, "of_units", False):
            if hasattr(function, "check"):
                function.check(run, **options)
            return
        if self.granularity not in ("filter", "neuron"):
            raise ValueError(
                f"criterion={function.__name__}: scores whole channels, not what "
                f"sparsity.granularity={self.granularity} prunes; use sparsity=filter, or "
                "sparsity.granularity=filter or neuron"
            )
        if hasattr(function, "check"):
            function.check(run, units=model_units(run.model, self.granularity, run.masks), **options)

    def _check_sum(self, kept: int, total: int, sparsity: float, layers: int) -> None:
        """Refuse given sparsities per layer that are not those of a pruning event; each may be rounded."""
        if isinstance(self.allocation, Mapping) and abs(kept - round((1 - sparsity) * total)) > layers:
            raise ValueError(
                f"sparsity.allocation={dict(self.allocation)}: leaves {kept} of {total} entries, a sparsity "
                f"of {1 - kept / total:.6g}, but a pruning event asks for {sparsity:.6g}; use "
                f"method=one_shot with sparsity.target={1 - kept / total:.6g}"
            )

    def prune(self, run: Run, sparsity: float) -> None:
        """Set the masks to this sparsity by the criterion's scores."""
        kept, total = self.channels(run) or (run.masks.kept, run.masks.total)
        before, after = kept / total, 1 - sparsity
        for j in range(1, self.iterations):
            self._prune_once(run, 1 - before * (after / before) ** (j / self.iterations))
        self._prune_once(run, sparsity)

    def _prune_once(self, run: Run, sparsity: float) -> None:
        allocation, units = self._allocation(run), ()
        if self.granularity in ("filter", "neuron"):
            units = model_units(run.model, self.granularity, run.masks)
        of_units = getattr(_unbound(self.criterion)[0], "of_units", False)
        scores = self.criterion(run, units=units) if of_units else self.criterion(run)
        if self.granularity in ("weight", "kernel"):
            masks = select(
                scores,
                sparsity,
                allocation=allocation,
                granularity=self.granularity,
                previous=run.masks if run.masks.sparsity else None,
                min_kept=self.min_kept,
            )
        else:
            alive = select_units(
                scores,
                sparsity,
                units=units,
                allocation=allocation,
                previous=run.masks if run.masks.sparsity else None,
                min_kept=self.min_kept,
            )
            masks = unit_masks(run.model, alive, run.masks)
        run.set_masks(parallel.from_first_rank(masks, run.world))

    def channels(self, run: Run) -> tuple[int, int] | None:
        """Channels kept and in all, at filter and neuron granularity; else None."""
        if self.granularity in ("weight", "kernel"):
            return None
        alive = alive_channels(run.masks, model_units(run.model, self.granularity, run.masks))
        return sum(int(torch.count_nonzero(a)) for a in alive.values()), sum(
            a.numel() for a in alive.values()
        )

    def compact(self, run: Run) -> nn.Module:
        """The physically smaller network at filter and neuron granularity; else the network itself."""
        if self.granularity in ("weight", "kernel") or not isinstance(run.model, PrunableModel):
            return run.model
        return compact(
            run.model, alive_channels(run.masks, model_units(run.model, self.granularity, run.masks))
        )

    def _allocation(self, run: Run) -> Any:
        """The allocation with patterns resolved to this network's layers, or to its units."""
        names = list(run.masks)
        if self.granularity in ("filter", "neuron"):
            names = [u.name for u in model_units(run.model, self.granularity, run.masks)]
        if self.allocation == "rates":
            return partial(by_rates, rates=resolve_layers("layer_rates", self.layer_rates, names, run.model))
        if isinstance(self.allocation, Mapping):
            return resolve_layers("allocation", self.allocation, names, run.model)
        return self.allocation
