"""P3, P4: an epoch of the real loop, its floor (nothing but arithmetic), and the usual loop of others."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.parts import CIFAR, MNIST, epochs_of, plain_step, sgd, synthetic
from benchmarks.timing import Row, alternate, at_least, at_most, clocked, control
from prunebench.core.selection import select
from prunebench.criteria.magnitude import magnitude

SPARSITY = 0.9


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group; every epoch is a part of the real one, so that a round takes seconds."""
    yield from _epoch("lenet300", MNIST, 200, rounds(9), ((1.25, 1.12), (5, 8)))
    lecun = (*MNIST, "model.variant=lecun")
    yield from _epoch("lenet5", lecun, 40, rounds(9), ((1.10, 1.05), (2, 2.7)))
    yield from _epoch("resnet20", CIFAR, 4, rounds(9), ((1.05, 1.02), (1.15, 1.25)))


def _epoch(
    model: str,
    shape: tuple[str, ...],
    steps: int,
    rounds: int,
    marks: tuple[tuple[float, float], tuple[float, float]],
) -> Iterator[Row]:
    p = synthetic(model, *shape, images=steps * 128)
    data = p.run.data
    floor_model = copy.deepcopy(p.run.model)
    floor = plain_step(floor_model, sgd(floor_model, fused=True), data.batch(0, 0))
    masks = dict(select(magnitude(p.run), SPARSITY))
    hooked = peers.hooked(p.run.model, masks)
    optimizer = sgd(hooked)
    pixels = torch.randint(256, (data.sizes["train"], *data.shape), dtype=torch.uint8)
    labels = torch.randint(data.num_classes, (data.sizes["train"],))
    loader = peers.pillow_loader(pixels, labels, batch_size=128, pad=data.pad, flip=data.flip)
    with tempfile.TemporaryDirectory() as folder:
        seconds = alternate(
            {
                "floor": clocked(lambda: [floor() for _ in range(steps)]),
                "again": clocked(lambda: [floor() for _ in range(steps)]),
                "ours": clocked(epochs_of(p, Path(folder), SPARSITY)),
                "usual": clocked(lambda: peers.usual_epoch(hooked, optimizer, loader)),
            },
            rounds,
        )
    yield control(f"floor, {model}", seconds, "floor", "again")
    what = f"{model}, {steps} steps of 128, 90 % sparse"
    yield at_most("P3", f"our epoch / floor: {what}", seconds["ours"] / seconds["floor"], *marks[0])
    yield at_least("P4", f"usual epoch / ours: {what}", seconds["usual"] / seconds["ours"], *marks[1])
