"""P5, P6: augmented images per second, and the share of a training step that making its batch takes."""

from collections.abc import Callable, Iterator

import torch

from benchmarks import peers
from benchmarks.parts import CIFAR, MNIST, Parts, plain_step, sgd, synthetic
from benchmarks.timing import Case, Row, alternate, at_least, at_most, clocked, control


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group; batches of 128, the random table of an epoch of 50,000 or 60,000 images included."""
    cifar = synthetic("resnet20", *CIFAR, images=50_000)
    yield from _against_pillow(cifar, rounds(30))
    yield from _share(cifar, "resnet20 on 3x32x32, augmented", 1, rounds(30), (0.01, 0.002))
    mnist = synthetic("lenet300", *MNIST, images=60_000)
    yield from _share(mnist, "lenet300 on 1x28x28", 20, rounds(30), (0.08, 0.05))


def _batches(p: Parts, count: int) -> Case:
    """Seconds per batch over `count` consecutive batches, going on through the epochs."""
    position = 0

    def work() -> None:
        nonlocal position
        for _ in range(count):
            p.run.data.batch(0, position)
            position += 1

    case = clocked(work)
    return lambda: case() / count


def _against_pillow(p: Parts, rounds: int) -> Iterator[Row]:
    data, batches = p.run.data, 5
    pixels = torch.randint(256, (batches * 128, *data.shape), dtype=torch.uint8)
    labels = torch.randint(data.num_classes, (batches * 128,))
    loader = peers.pillow_loader(pixels, labels, batch_size=128, pad=data.pad, flip=data.flip)
    usual = clocked(lambda: [None for _ in loader])
    whole = data.steps_per_epoch  # a whole epoch, so that its random table has its due weight
    seconds = alternate(
        {"ours": _batches(p, whole), "again": _batches(p, whole), "usual": lambda: usual() / batches}, rounds
    )
    yield control("our batches", seconds, "ours", "again")
    what = "images/s, ours / PIL with DataLoader(0): crop, flip, normalise"
    yield at_least("P5", what, seconds["usual"] / seconds["ours"], 25, 45)


def _share(p: Parts, what: str, times: int, rounds: int, marks: tuple[float, float]) -> Iterator[Row]:
    step = plain_step(p.run.model, sgd(p.run.model, fused=True), p.run.data.batch(0, 0))
    seconds = alternate(
        {"batches": _batches(p, p.run.data.steps_per_epoch), "step": clocked(step, times=times)}, rounds
    )
    share = seconds["batches"] / (seconds["batches"] + seconds["step"])
    yield at_most("P6", f"data share of a step: {what}", share, *marks, unit="%")
