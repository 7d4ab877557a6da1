"""RigL: grow where the dense gradient is largest."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prunebench.core.run import Run
from prunebench.methods.sparse_training import Anneal, SparseTraining


class RigL(SparseTraining):
    """Sparse training that drops the smallest weights and grows where the loss gradient is largest.

    Evci, Gale, Menick, Castro, Elsen 2020 (arXiv 1911.11134, algorithm 1; google-research/rigl,
    sparse_optimizers_base.py). For a layer with n kept weights at an update at time t:
    f = drop_fraction (1 + cos(pi (t - t0) / (t1 - t0))) / 2, k = int(f n); the k smallest |w| go, the k
    largest |dL/d(m w)| of those not kept then come (see `SparseTraining`). The gradient is that of the
    masked weights, without weight decay. RigL_5x is protocol.multiplier=5.

    An image costs 3 f_S multiply-adds in a weight step and 2 f_S + f_D in one whose dense gradient is read:
    (3 f_S interval + 2 f_S + f_D) / (interval + 1) on average (appendix H, as the method's other
    implementations quote it); where updates follow the weight step, one step of every interval costs so.

    Differs: ties go to the lower index, where the code adds noise of 1e-5 to |w|; counts add up to the
    sparsity exactly. t1 is `until` of the batches, update batches included. What is masked: see `Static`.

    Args:
      allocation, interval, drop_fraction, anneal, begin, until, update_replaces_step, min_kept: as in
        `SparseTraining`. update_replaces_step=false is the variant of ITOP (arXiv 2102.02887).
      batches: dense gradients of so many batches, the update's and those before it, are added up; a small
        batch has a noisy gradient (rigl-torch, grad_accumulation_n). At most `interval` plus the update.

    Attributes:
      gathered: sum of the dense gradients since the first of the batches.
    """

    reads_gradient = True

    def __init__(
        self,
        *,
        allocation: str | dict[str, float] = "erk",
        interval: int | str = 100,
        drop_fraction: float = 0.3,
        anneal: Anneal = "cosine",
        begin: float = 0.0,
        until: float = 0.75,
        update_replaces_step: bool = True,
        batches: int = 1,
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
        if batches < 1:
            raise ValueError(f"batches={batches}: must be 1 or more")
        self.batches = batches
        self.gathered: dict[str, Tensor] = {}

    @property
    def state(self) -> tuple[str, ...]:
        """Gradients are kept between steps only where several batches are added up."""
        return ("gathered",) if self.batches > 1 else ()

    def check(self, run: Run, asked: Sequence[float]) -> None:
        """Refuse more batches than lie between two updates."""
        super().check(run, asked)
        if self.batches > (between := self._steps_between(run) + self.update_replaces_step):
            raise ValueError(
                f"method.batches={self.batches}: must be at most {between}, the batches from one update to "
                f"the next with method.interval={self.interval}"
            )

    def step(self, run: Run) -> None:
        """Gather the dense gradient if an update is near, then as `SparseTraining` does."""
        if self.batches > 1 and self._gathers(run, run.clock.step):
            for name, grad in self._gradients(run).items():
                if name in self.gathered:
                    self.gathered[name].add_(grad)
                else:
                    self.gathered[name] = grad.clone()
        super().step(run)

    def growth(self, run: Run, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The dense gradients."""
        if self.batches == 1:
            return self._gradients(run)
        gathered, self.gathered = self.gathered, {}
        return gathered

    def moves(self, run: Run, step: int) -> dict[str, int]:
        """As in `SparseTraining`, without layers that the loss does not reach."""
        moves = super().moves(run, step)
        return {n: k for n, k in moves.items() if n in self._gradients(run)} if moves else moves

    def changes_step(self, run: Run) -> bool:
        """Whether this step reads dense gradients."""
        return self._gathers(run, run.clock.step)

    def train_macs(self, run: Run, step: int, sparse: int, dense: int) -> int:
        """3 f_S, and 2 f_S + f_D where the dense gradient is read."""
        return 2 * sparse + dense if self._gathers(run, step) else 3 * sparse

    def _gathers(self, run: Run, step: int) -> bool:
        """Whether the gradient of this step's batch is among those of the next update."""
        period = self._steps_between(run) + self.update_replaces_step
        update = -(-step // period) * period
        near = update < run.clock.steps and update - step < self.batches
        return near and bool(super().moves(run, update))

    def _gradients(self, run: Run) -> dict[str, Any]:
        params = dict(run.model.named_parameters())
        return {n: params[n].grad for n in run.masks if params[n].grad is not None}
