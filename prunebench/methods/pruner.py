"""Criterion x allocation x granularity, at the pruning events that the protocol sets."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunebench.core import parallel
from prunebench.core.allocation import by_rates, floors, resolve_layers
from prunebench.core.compact import compact, round_up
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import LENGTH, Phase
from prunebench.core.run import Run
from prunebench.core.selection import layer_counts, select
from prunebench.core.units import (
    alive_channels,
    model_units,
    select_units,
    unit_masks,
    unit_scores,
)

Criterion = Callable[[Run], dict[str, Tensor]]
"""Run -> scores by name. Two attributes of the function are heeded: `snapshots`, the (name, time) pairs that
it reads, and `check`, a function (run, *, options) that raises ValueError before training if it cannot
work."""


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
      round_to: filters or neurons that every unit keeps are rounded up to a multiple of it; None for exact
        counts. Fewer channels than asked for are removed then.
      max_ratio: largest share that a ranking over all layers removes of any of them, in (0, 1]; None for 1.
      normalizer: what a layer's scores are divided by before that ranking: "none", its "mean" or "max".

    Raises:
      ValueError: if `iterations` is below 1, `min_kept` is negative, a rate is outside [0, 1), rates lack
        their allocation, `round_to` is below 2 or given for weights or kernels, or `max_ratio` or
        `normalizer` is out of range or given without a ranking over all layers.
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
        round_to: int | None = None,
        max_ratio: float | None = None,
        normalizer: Literal["none", "mean", "max"] = "none",
    ):
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: must be 1 or more")
        _check_ranking(allocation, max_ratio, normalizer)
        if round_to is not None and (round_to < 2 or granularity in ("weight", "kernel")):
            raise ValueError(
                f"sparsity.round_to={round_to}: must be 2 or more, with sparsity.granularity=filter or neuron"
            )
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
        self.round_to, self.max_ratio, self.normalizer = round_to, max_ratio, normalizer
        self._alive: tuple[Masks, dict[str, Tensor]] | None = None  # of these masks, which never change

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
            self.check_criterion(run)
        if self.granularity in ("filter", "neuron"):
            units = model_units(run.model, self.granularity, run.masks)
            sizes, shapes = {u.name: u.size for u in units}, {u.name: (u.size,) for u in units}
            least = max(1, self.min_kept)  # a layer without channels would cut the network in two
        else:
            shapes = {n: tuple(m.shape) for n, m in run.masks.items()}
            grain = 2 if self.granularity == "kernel" else None
            sizes, least = {n: math.prod(s[:grain]) for n, s in shapes.items()}, self.min_kept
        allocation, total = self._allocation(run), sum(sizes.values())
        if asked and self.round_to is not None and self.round_to >= max(sizes.values()):
            raise ValueError(
                f"sparsity.round_to={self.round_to}: would leave every {self.granularity} in place, the "
                f"widest layer has {max(sizes.values())}; lower it"
            )
        if self.granularity != "weight" and allocation in ("er", "erk", "uniform_plus"):
            raise ValueError(
                f"sparsity.allocation={allocation}: is defined on weights; with {self.granularity}s use "
                "uniform, global or lamp"
            )
        for j, sparsity in enumerate(asked, start=1):
            if allocation not in ("global", "lamp"):
                counts = layer_counts(shapes, sizes, sparsity, allocation, min_kept=least)
                self._check_sum(sum(counts.values()), total, sparsity, len(sizes))
            else:
                self._check_floors(sizes, least, sparsity, f"round {j}")

    def _check_floors(self, sizes: Mapping[str, int], least: int, sparsity: float, event: str) -> None:
        """Refuse a ranking over all layers that would leave less than the layers must keep."""
        total = sum(sizes.values())
        keep, kept_too = round((1 - sparsity) * total), " or min_kept" * (least == self.min_kept)
        for key, ratio, also in (("min_kept", None, kept_too), ("max_ratio", self.max_ratio, " or raise it")):
            if keep < (needed := sum(floors(sizes, least, ratio).values())):
                raise ValueError(
                    f"sparsity.{key}={getattr(self, key)}: needs {needed} entries in {len(sizes)} layers, "
                    f"but {event} with sparsity {sparsity:.12g} keeps {keep} of {total}; lower the sparsity"
                    f"{also}"
                )

    def check_criterion(self, run: Run) -> None:
        """Refuse a criterion that cannot work with this network."""
        function, options = _unbound(self.criterion)
        if (scored := options.get("granularity", self.granularity)) != self.granularity:
            raise ValueError(
                f"criterion.granularity={scored}: must be sparsity.granularity, {self.granularity}"
            )
        if hasattr(function, "check"):
            function.check(run, **options)

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
        if self.iterations > 1:
            kept, total = self.channels(run) or (run.masks.kept, run.masks.total)
            before, after = kept / total, 1 - sparsity
            for j in range(1, self.iterations):
                self._prune_once(run, 1 - before * (after / before) ** (j / self.iterations))
        self._prune_once(run, sparsity)

    def _prune_once(self, run: Run, sparsity: float) -> None:
        scores, allocation = self.criterion(run), self._allocation(run)
        if self.granularity in ("weight", "kernel"):
            masks = select(
                scores,
                sparsity,
                allocation=allocation,
                granularity=self.granularity,
                previous=run.masks if run.masks.sparsity else None,
                min_kept=self.min_kept,
                **self._ranking,
            )
        else:
            masks = unit_masks(run.model, self._choose_channels(run, scores, sparsity), run.masks)
        run.set_masks(parallel.from_first_rank(masks, run.world))

    def _choose_channels(self, run: Run, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Unit name -> bool tensor of the channels to keep."""
        units = model_units(run.model, self.granularity, run.masks)
        chosen = select_units(
            scores,
            sparsity,
            units=units,
            allocation=self._allocation(run),
            previous=run.masks if run.masks.sparsity else None,
            min_kept=self.min_kept,
            **self._ranking,
        )
        if self.round_to is None:
            return chosen
        before, channels = alive_channels(run.masks, units), unit_scores(scores, units)
        return round_up(chosen, channels, multiple=self.round_to, before=before)

    @property
    def _ranking(self) -> dict[str, Any]:
        return {"max_ratio": self.max_ratio, "normalizer": self.normalizer}

    def alive(self, run: Run) -> dict[str, Tensor] | None:
        """Channels that are left at filter and neuron granularity, by unit; else None."""
        if self.granularity in ("weight", "kernel"):
            return None
        if self._alive is None or self._alive[0] is not run.masks:
            units = model_units(run.model, self.granularity, run.masks)
            self._alive = (run.masks, alive_channels(run.masks, units))
        return self._alive[1]

    def channels(self, run: Run) -> tuple[int, int] | None:
        """Channels kept and in all, at filter and neuron granularity; else None."""
        if (alive := self.alive(run)) is None:
            return None
        kept = sum(int(torch.count_nonzero(a)) for a in alive.values())
        return kept, sum(a.numel() for a in alive.values())

    def remarks(self, run: Run) -> list[str]:
        """Layers that a ranking over all of them has emptied down to the floor."""
        if self.allocation not in ("global", "lamp") or self.granularity == "kernel":
            return []
        kept, floor = dict(run.masks.kept_per_layer), self.min_kept
        sizes = {n: m.numel() for n, m in run.masks.items()}
        if (alive := self.alive(run)) is not None:
            kept, floor = {n: int(torch.count_nonzero(a)) for n, a in alive.items()}, max(1, floor)
            sizes = {n: a.numel() for n, a in alive.items()}
        down = [n for n, size in sizes.items() if kept[n] <= floor < size]
        if not down:
            return []
        entries = self.granularity + "s" * (floor != 1)
        which = f"{len(down)} of {len(sizes)} layers are down to {floor} {entries}"
        return [f"{which}; sparsity.normalizer and sparsity.max_ratio spread the loss"]

    def compact(self, run: Run) -> nn.Module:
        """The physically smaller network at filter and neuron granularity; else the network itself."""
        alive = self.alive(run)
        return run.model if alive is None else compact(run.model, alive)

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


def _check_ranking(allocation: object, max_ratio: float | None, normalizer: str) -> None:
    """Options of a ranking over all layers need one."""
    if normalizer not in ("none", "mean", "max"):
        raise ValueError(f"sparsity.normalizer={normalizer}: must be one of none, mean, max")
    if max_ratio is not None and not 0 < max_ratio <= 1:
        raise ValueError(f"sparsity.max_ratio={max_ratio}: must lie in (0, 1]")
    if normalizer != "none" and allocation != "global":
        raise ValueError(f"sparsity.normalizer={normalizer}: goes with sparsity.allocation=global")
    if max_ratio is not None and allocation not in ("global", "lamp"):
        raise ValueError(f"sparsity.max_ratio={max_ratio}: goes with sparsity.allocation=global or lamp")
