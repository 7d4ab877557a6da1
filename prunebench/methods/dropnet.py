"""DropNet: nodes and filters with the lowest mean activation go, the rest starts again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.units import model_units
from prunebench.methods.pruner import Criterion, Pruner


class DropNet(Pruner):
    """Trains, drops a share of the remaining nodes and filters, trains the others from their first weights.

    Tan & Motani 2020 (arXiv 2207.06646, algorithm 1; tanchongmin/DropNet). Its metrics (table 1) are criteria
    with an allocation: minimum `criterion=mean_activation`, maximum with `criterion.drop=maximum`, random
    `criterion=random_channel`, APoZ `criterion=apoz`, the greedy Oracle `criterion=leave_one_out`; over all
    layers with sparsity.allocation=global, layer by layer (minimum_layer, ...) with uniform. The paper
    advises minimum for small networks and minimum_layer for large ones.

    Every round drops max(1, int(rate * n)) of the n that are left, in all (global) or of each layer
    (uniform), as the authors' code does; so a rate below 1 / n drops one at a time. Exactly the lowest go:
    the code keeps one candidate more and may spare one of them. No layer is emptied (the code can).

    protocol.weights=init starts every round from the initial weights, protocol.control=reinit trains the last
    round's mask from new ones (the paper's ablation, sec. 6, which never influences the mask); keep and
    random are possible. The paper trains at most 100 epochs and stops when the validation loss has not fallen
    for 5 (protocol.patience=5ep protocol.monitor=loss, in the experiments; not the default here, where all
    methods train equally long), and scores the last network, not the best. Its stop when accuracy falls below
    a share kappa of the dense one has no published value and is not offered: the number of rounds is
    sparsity.rounds.

    What is dropped: at granularity neuron hidden nodes and filters, a channel with its weights, bias and
    BatchNorm entries, so that it gives 0 as under the paper's mask behind the activation. The channels of a
    residual stream live or die together (ours; the paper masks every convolution of a block by itself and its
    ResNet-18 has no BatchNorm). The output layer is never touched; the paper's large networks also leave the
    linear layer behind the flattened maps (sparsity.exclude).

    Args:
      criterion: scores of channels, or of weights, which are summed.
      allocation: "global" or "uniform"; with rate=None as in `Pruner`.
      granularity: "neuron" (nodes and filters) or "filter".
      rate: share of what remains that a round drops, in (0, 1); the protocol's. None: as many as the protocol
        asks for.
      min_kept: channels that every layer keeps, at least 1.

    Raises:
      ValueError: if an option is out of range or two do not fit together.
    """

    def __init__(
        self,
        criterion: Criterion,
        *,
        allocation: str | dict[str, float] = "uniform",
        granularity: Literal["weight", "kernel", "filter", "neuron"] = "neuron",
        rate: float | None = 0.2,
        min_kept: int = 1,
    ):
        super().__init__(criterion, allocation=allocation, granularity=granularity, min_kept=min_kept)
        if granularity not in ("filter", "neuron"):
            raise ValueError(
                f"sparsity.granularity={granularity}: method=dropnet drops whole nodes and filters; use "
                "neuron or filter"
            )
        if rate is not None and allocation not in ("global", "uniform"):
            raise ValueError(
                f"sparsity.allocation={allocation}: with sparsity.rate, method=dropnet counts over all "
                "layers (global) or in each (uniform)"
            )
        self.rate = rate

    def plan(self, phases: list[Phase]) -> list[Phase]:
        """The rounds with the sparsity that whole numbers of channels give."""
        phases, rounds, out = super().plan(phases), 0, []
        for phase in phases:
            if self.rate is not None and phase.sparsity is not None:
                rounds += 1
                usual = 1.0 - (1.0 - self.rate) ** rounds
                if phase.sparsity != usual:
                    raise ValueError(
                        f"sparsity.rate={self.rate}: this plan has another sparsity in {phase.name}; set "
                        "sparsity.rate=null, or use protocol=iterative with sparsity.target=null"
                    )
                phase = replace(phase, sparsity=partial(self._sparsity_after, rounds=rounds))
            out.append(phase)
        return out

    def _sparsity_after(self, run: Run, *, rounds: int) -> float:
        """Share of the channels dropped after so many rounds."""
        sizes = {u.name: u.size for u in model_units(run.model, self.granularity, run.masks)}
        total = left = sum(sizes.values())
        for j in range(1, rounds + 1):
            before, left = left, self._after_round(sizes, left)
            if left == before or left < max(1, self.min_kept) * len(sizes):
                raise ValueError(
                    f"sparsity.rounds: round {j} would leave fewer than {max(1, self.min_kept)} channels "
                    f"in a layer, {before} are left in {len(sizes)} layers; lower it or sparsity.rate"
                )
        return 1.0 - left / total

    def _after_round(self, sizes: dict[str, int], left: int) -> int:
        """What a round leaves in all; with allocation=uniform `sizes` are lowered in place."""
        if self.allocation == "global":
            return left - max(1, int(self.rate * left))
        for name, size in sizes.items():
            sizes[name] = max(size - max(1, int(self.rate * size)), min(size, max(1, self.min_kept)))
        return sum(sizes.values())

    def _allocation(self, run: Run) -> Any:
        """Layer by layer, the counts of repeated rounds; else as given."""
        if self.rate is None or self.allocation != "uniform":
            return super()._allocation(run)
        return self._layer_by_layer

    def _layer_by_layer(self, shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
        """Sparsity of every layer after the rounds that give this one overall."""
        kept = {name: shape[0] for name, shape in shapes.items()}
        total = left = sum(kept.values())
        while left > round((1 - sparsity) * total):
            left = self._after_round(kept, left)
        return {name: 1 - kept[name] / shape[0] for name, shape in shapes.items()}
