"""How far the weights went and how much of a mask stays."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric


class LearningDistance(Metric):
    """l2 distance of all trainable parameters from their initial values under the present mask.

    ||theta - m * theta_0||_2 with theta_0 the run's initial weights, BatchNorm scale and shift and biases
    included, buffers left out (sparse double descent, arXiv 2206.08684, section 4). `relative` divides by
    ||m * theta_0||_2; `prunable` is the distance over prunable weights only.
    """

    @torch.no_grad()
    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"distance", "relative", "prunable"}, of any non-negative size."""
        start = run.initial_state()
        moved, origin, prunable, layers = [], [], [], []
        for name, p in run.model.named_parameters():
            first = start[name].to(p.device)
            mask = run.masks[name] if name in run.masks else run.masks.tied.get(name)
            first = first if mask is None else first * mask
            distance = (p.detach() - first).double().norm()
            moved.append(distance)
            origin.append(first.double().norm())
            if name in run.masks:
                prunable.append(distance)
                layers.append((name, distance))
        whole, base, weights = (float(torch.stack(n).norm()) for n in (moved, origin, prunable))
        return {
            "distance": whole,
            "relative": whole / base if base else None,
            "prunable": weights,
            "layers": [{"name": n, "distance": float(d)} for n, d in layers],
        }


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
