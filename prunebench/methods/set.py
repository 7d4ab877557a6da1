"""SET: grow at random."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunebench.core.run import Run
from prunebench.methods.sparse_training import SparseTraining


class SET(SparseTraining):
    """Sparse training that drops the smallest weights and grows others at random.

    Sparse evolutionary training (Mocanu et al. 2018, arXiv 1707.04780) in the form that the RigL paper
    compares with (arXiv 1911.11134; google-research/rigl, sparse_optimizers.py): dropped by magnitude, grown
    with value 0, on RigL's schedule, and the update follows the weight step of its batch. As first published
    (recalled, not read) it drops the smallest positive and the largest negative weights once an epoch, with a
    constant share, and draws new values for what is grown; method.interval=1ep method.anneal=constant
    method.until=1 gives its schedule but not these.

    Training costs 3 f_S per image: no dense gradient is read. What is masked: see `Static`; ties and counts:
    see `SparseTraining`.
    """

    def growth(self, run: Run, names: Sequence[str]) -> Mapping[str, Tensor]:
        """U(0, 1), drawn on the CPU: the same on every device and process."""
        rng = run.rng("grow")
        sizes = {n: run.masks[n].shape for n in names}
        return {n: torch.rand(s, generator=rng).to(run.device, non_blocking=True) for n, s in sizes.items()}
