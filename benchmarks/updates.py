"""P11: one mask update of RigL against the usual scheme, and its share of training."""

from collections.abc import Callable, Iterator

import torch

from benchmarks import peers
from benchmarks.parts import CIFAR, MNIST, Parts, synthetic
from benchmarks.timing import Case, Row, alternate, at_least, at_most, clocked, control
from prunebench.core.loop import Sink, enter, train_step
from prunebench.core.masks import Masks
from prunebench.machine import keep_freed_memory

SPARSITY, SHARE, INTERVAL = 0.9, 0.3, 100


class Update:
    """A mask update that can be had again and again, in the middle of training.

    Args:
      p: a run of method=rigl.
    """

    def __init__(self, p: Parts):
        self.p, self.run, self.phase = p, p.run, p.plan[0]
        enter(self.phase, p.run, p.method, p.make_optimizer, Sink())
        p.run.clock.step = 1  # no update is due
        for _ in range(2):
            train_step(self.phase, p.run, p.method)
        params = dict(p.run.model.named_parameters())
        self.params = {n: params[n] for n in p.run.masks}
        self.gradients = {n: torch.randn_like(w) * w.std() for n, w in self.params.items()}
        self.weights = {n: w.detach().clone() for n, w in self.params.items()}
        self.masks = {n: m.clone() for n, m in p.run.masks.items()}
        sizes = p.run.masks.kept_per_layer
        self.wait = torch.cuda.synchronize if p.run.device.type == "cuda" else lambda: None
        self.moves = {n: int(SHARE * k) for n, k in sizes.items() if k < self.masks[n].numel()}

    @torch.no_grad()
    def prepare(self) -> None:
        """Weights and masks as they were, and memory as `prune-run` has it."""
        keep_freed_memory()
        for name, weight in self.params.items():
            weight.copy_(self.weights[name])
        self.run.set_masks(Masks({n: m.clone() for n, m in self.masks.items()}))
        self.wait()

    def ours(self) -> Case:
        """The method's own update."""

        def work(_: None) -> None:
            self.p.method.update(self.run, self.moves, self.moves, self.gradients)
            self.wait()

        return clocked(work, self.prepare)

    def theirs(self) -> Case:
        """The usual scheme, on copies in the usual memory format."""
        names = list(self.moves)
        masks = [self.masks[n].contiguous() for n in names]
        gradients = [self.gradients[n].contiguous() for n in names]

        def fresh() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            peers.usual_memory()
            return [self.weights[n].contiguous().clone() for n in names], [g.clone() for g in gradients]

        def work(given: tuple[list[torch.Tensor], list[torch.Tensor]]) -> None:
            peers.topk_scatter_update(given[0], masks, gradients, given[1], SHARE)

        return clocked(work, fresh)

    def step(self) -> Case:
        """A training step between two updates."""

        def work(_: None) -> None:
            train_step(self.phase, self.run, self.p.method)
            self.wait()

        return clocked(work, self.prepare)

    def differing(self) -> int:
        """Weights by which the masks of both schemes differ; none where no two scores are equal."""
        self.prepare()
        names = list(self.moves)
        theirs = peers.topk_scatter_update(
            [self.weights[n].contiguous().clone() for n in names],
            [self.masks[n].contiguous() for n in names],
            [self.gradients[n].contiguous() for n in names],
            [torch.zeros_like(self.weights[n]) for n in names],
            SHARE,
        )
        self.p.method.update(self.run, self.moves, self.moves, self.gradients)
        return sum(int((self.run.masks[n] != m).sum()) for n, m in zip(names, theirs))


def rigl(model: str, *overrides: str, device: str = "cpu") -> Update:
    """An update of RigL on a model."""
    sparse = ("method=rigl", f"sparsity.target={SPARSITY}", f"method.interval={INTERVAL}")
    return Update(synthetic(model, *sparse, "protocol.dense=1000it", *overrides, images=512, device=device))


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    large = rigl("resnet18", "dataset.channels=3", "dataset.size=32", "trainer.batch_size=8")
    seconds = alternate({"ours": large.ours(), "again": large.ours(), "usual": large.theirs()}, rounds(7))
    yield control("our update, resnet18", seconds, "ours", "again")
    what = "topk-and-scatter scheme / our update: resnet18, 90 %"
    yield at_least("P11", what, seconds["usual"] / seconds["ours"], 10, 20)
    yield at_most("P11", "weights by which the masks of both differ", large.differing(), 0, 0, unit="")
    for name, model, data, bar, best in (
        ("LeNet-300", "lenet300", MNIST, 0.015, 0.007),
        ("ResNet-20", "resnet20", CIFAR, 0.002, 0.0005),
    ):
        update = rigl(model, *data)
        seconds = alternate({"update": update.ours(), "step": update.step()}, rounds(15))
        share = seconds["update"] / (INTERVAL * seconds["step"] + seconds["update"])
        yield at_most(
            "P11", f"share of training, an update every {INTERVAL}: {name}", share, bar, best, unit="%"
        )
