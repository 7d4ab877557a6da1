"""How much of the network dynamic sparse training has tried."""

from typing import Any

import torch
from torch import Tensor

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.run import Run
from prunebench.metrics.metric import Metric


class Exploration(Metric):
    """In-time over-parameterization rate: share of the prunable weights that were kept at any time so far.

    R_s of Liu, Yin, Mocanu, Pechenizkiy 2021 (arXiv 2102.02887; authors' code, sparselearning/core.py): the
    union of all masks since training began, over all weights that masks cover. It begins at the density and
    never falls; it is 1 from the start where training begins dense. Masks are looked at when a phase begins
    and whenever they change. Checkpoints hold one mask more.
    """

    state = ("ever",)

    def __init__(self, *, every: str = "phase"):
        super().__init__(every=every)
        self.ever: dict[str, Tensor] | None = None
        self._seen: Masks | None = None

    def begin(self, run: Run) -> None:
        """Count the masks that the phase begins with."""
        self.watch(run)

    def watch(self, run: Run) -> None:
        """Count the masks if they are others than at the last look; waits for nothing."""
        if run.masks is self._seen:
            return
        before, self._seen = self.ever or {}, run.masks
        self.ever = {n: m | before[n] if n in before else m.clone() for n, m in run.masks.items()}

    def measure(self, run: Run, method: Method) -> dict[str, Any]:
        """{"rate", "density"}, in [0, 1]; "layers" has both of every layer."""
        self.watch(run)
        kept, total = run.masks.kept_per_layer, {n: m.numel() for n, m in run.masks.items()}
        counts = torch.stack([torch.count_nonzero(m) for m in self.ever.values()]).tolist()
        ever = dict(zip(self.ever, counts))
        return {
            "rate": sum(counts) / run.masks.total,
            "density": run.masks.kept / run.masks.total,
            "layers": [{"name": n, "rate": ever[n] / t, "density": kept[n] / t} for n, t in total.items()],
        }
