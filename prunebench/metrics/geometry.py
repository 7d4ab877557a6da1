"""How far the weights went and how much of a mask stays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric


class LearningDistance(Metric):
    """l2 distance of all trainable parameters from where they began, under the present mask.

    ||theta - m * theta_0||_2, BatchNorm scale and shift and biases included, buffers left out (sparse double
    descent, arXiv 2206.08684, section 4). theta_0 is the start of this phase, after pruning, rewinding or
    drawing anew, in `phase_distance` and `phase_prunable`, and the run's initial weights in `distance` and
    `prunable`. The paper does not say which it draws when it rewinds; the former is our reading. The
    `prunable` numbers are over prunable weights only; `relative` divides `distance` by ||m * theta_0||_2.
    Checkpoints hold one network more.
    """

    state = ("start",)

    def __init__(self, *, every: str = "phase"):
        super().__init__(every=every)
        self.start: dict[str, Tensor] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; checkpoints of earlier versions do not know the phase's start."""
        self.start = state.get("start")

    def begin(self, run: Run) -> None:
        """Keep the weights that the phase starts from."""
        self.start = {n: p.detach().clone() for n, p in run.model.named_parameters()}

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"distance", "relative", "prunable", "phase_distance", "phase_prunable"}, of non-negative size.

        "layers" has `distance` and `phase_distance` of every prunable layer.
        """
        first, base = distances(run, run.initial_state())
        whole, weights = _norm(first.values()), _norm(first[n] for n in run.masks)
        row = {"distance": whole, "relative": whole / base if base else None, "prunable": weights}
        layers = {n: {"name": n, "distance": float(first[n])} for n in first if n in run.masks}
        row |= {"phase_distance": None, "phase_prunable": None}
        if self.start is not None:
            moved, _ = distances(run, self.start)
            row["phase_distance"] = _norm(moved.values())
            row["phase_prunable"] = _norm(moved[n] for n in run.masks)
            for n, layer in layers.items():
                layer["phase_distance"] = float(moved[n])
        return row | {"layers": list(layers.values())}


def distances(run: Run, start: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """l2 distance of every parameter from its `start` under the present mask, and the norm of all starts."""
    moved, origin = {}, []
    for name, p in run.model.named_parameters():
        first = start[name].to(p.device)
        mask = run.masks[name] if name in run.masks else run.masks.tied.get(name)
        first = first if mask is None else first * mask
        moved[name] = (p.detach() - first).double().norm()
        origin.append(first.double().norm())
    return moved, _norm(origin)


def _norm(norms: Iterable[Tensor]) -> float:
    return float(torch.stack(list(norms)).norm())


class MaskOverlap(Metric):
    """Overlap of the masks now with those when it was last measured.

    Jaccard index |A & B| / |A | B|, Hamming distance mean(A != B), overlap coefficient |A & B| / min(|A|,
    |B|), over all prunable weights. `chance` is the Jaccard index of two independent masks of these
    densities. All are None at the first measurement.
    """

    state = ("last",)

    def __init__(self, *, every: str = "phase"):
        super().__init__(every=every)
        self.last: dict[str, Tensor] | None = None

    def check(self, run: Run, plan: Sequence[Phase]) -> None:
        """Refuse a plan that measures once."""
        self.refuse_single_measurement(plan)

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"jaccard", "hamming", "coefficient", "chance"}, in [0, 1]."""
        before, self.last = self.last, {n: m.clone() for n, m in run.masks.items()}
        if before is None:
            return dict.fromkeys(("jaccard", "hamming", "coefficient", "chance"))
        return compare_masks(Masks(before), run.masks)


def compare_masks(a: Masks, b: Masks) -> dict[str, float | None]:
    """Overlap of two masks over the same weights, see `MaskOverlap`.

    >>> one = Masks({"w": torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool)})
    >>> two = Masks({"w": torch.tensor([1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)})
    >>> compare_masks(one, two)["jaccard"], compare_masks(one, two)["hamming"]
    (0.5, 0.375)
    """
    both = sum(int(torch.count_nonzero(m & b[n])) for n, m in a.items())
    either, smaller, total = a.kept + b.kept - both, min(a.kept, b.kept), a.total
    p, q = a.kept / total, b.kept / total
    return {
        "jaccard": both / either if either else 1.0,
        "hamming": (either - both) / total,
        "coefficient": both / smaller if smaller else None,
        "chance": p * q / (p + q - p * q) if p + q else 1.0,
    }
