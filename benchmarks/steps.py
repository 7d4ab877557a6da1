"""P1, P2, P15: one training step, masked, dense, and in both memory formats."""

import copy
from collections.abc import Callable, Iterator

import torch

from benchmarks.parts import CIFAR, MNIST, plain_step, prune, sgd, synthetic
from benchmarks.timing import Row, alternate, at_least, at_most, clocked, control, report


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    small = ("dataset.channels=3", "dataset.size=8")
    yield from _masked("lenet300", MNIST, 128, 20, rounds(40), ((1.06, 1.03), (1.00, 0.95)))
    yield from _masked("resnet18", small, 32, 1, rounds(30), ((1.03, 1.015), (1.00, 0.97)))
    yield from _channels_last("lenet5", (*MNIST, "model.variant=lecun"), 128, 3, rounds(30))
    yield from _channels_last("resnet20", CIFAR, 64, 1, rounds(30))
    yield from _channels_last("resnet18", CIFAR, 8, 1, rounds(20))


def _masked(
    model: str,
    shape: tuple[str, ...],
    batch_size: int,
    times: int,
    rounds: int,
    marks: tuple[tuple[float, float], tuple[float, float]],
) -> Iterator[Row]:
    p = synthetic(model, *shape, images=batch_size, batch_size=batch_size)
    batch = p.run.data.batch(0, 0)
    dense, fused = copy.deepcopy(p.run.model), copy.deepcopy(p.run.model)
    prune(p, 0.9)
    ours = p.make_optimizer(p.run, p.method)
    for group in ours.param_groups:
        group.update(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    default, same = sgd(dense), sgd(fused, fused=True)
    seconds = alternate(
        {
            "dense": clocked(plain_step(dense, default, batch), times=times),
            "again": clocked(plain_step(dense, default, batch), times=times),
            "fused": clocked(plain_step(fused, same, batch), times=times),
            "masked": clocked(
                plain_step(p.run.model, ours, batch, lambda: p.run.masks.step_(p.run.model, ours)),
                times=times,
            ),
        },
        rounds,
        warmup=2,
    )
    name = f"{model}, batch {batch_size}, 90 % sparse"
    yield control(f"dense step, {model}", seconds, "dense", "again")
    yield at_most(
        "P1", f"masked / dense step, same SGD: {name}", seconds["masked"] / seconds["fused"], *marks[0]
    )
    yield at_most(
        "P2", f"masked / dense step, default SGD: {name}", seconds["masked"] / seconds["dense"], *marks[1]
    )
    yield report("", f"fused / default SGD, dense step: {model}", seconds["fused"] / seconds["dense"])


def _channels_last(
    model: str, shape: tuple[str, ...], batch_size: int, times: int, rounds: int
) -> Iterator[Row]:
    cases = {}
    for name, setting in (("ours", "auto"), ("again", "auto"), ("contiguous", "false")):
        p = synthetic(
            model, *shape, f"trainer.channels_last={setting}", images=batch_size, batch_size=batch_size
        )
        step = plain_step(p.run.model, sgd(p.run.model, fused=True), p.run.data.batch(0, 0))
        cases[name] = clocked(step, times=times)
        wanted = torch.contiguous_format if setting == "false" else torch.channels_last
        assert p.run.data.memory_format is wanted
    seconds = alternate(cases, rounds)
    yield control(f"step in channels_last, {model}", seconds, "ours", "again")
    what = f"contiguous / our default format, step: {model}, batch {batch_size}"
    yield at_least("P15", what, seconds["contiguous"] / seconds["ours"], 1.07, 1.1)
