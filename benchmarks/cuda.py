"""G1 to G11: what only a GPU can tell; one line says so where there is none."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.parts import CIFAR, MNIST, Parts, epochs_of, plain_step, prune, sgd, synthetic
from benchmarks.structured import FILTERS, filter_step
from benchmarks.timing import Case, Row, alternate, at_least, at_most, clocked, control, report
from benchmarks.updates import rigl
from prunebench.core.loop import train_step
from prunebench.core.selection import topk_mask
from prunebench.metrics.cost import count_macs

IMAGES = 50_000
SPARSITY = 0.9
FAST = "trainer.deterministic=false"


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group; nothing without CUDA."""
    if not torch.cuda.is_available():
        print("      cuda: no CUDA device here, G1 to G11 are left out")
        return
    yield _epoch("G1", "resnet18", 512, rounds(10), 1.5, 0.9)
    yield _epoch("G2", "resnet18", 128, rounds(10), 2.0, 1.1, "trainer.cuda_graph=true")
    yield _epoch("G3", "resnet20", 128, rounds(10), 2.0, 0.5, "trainer.cuda_graph=true")
    for model, shape, bar, best in (
        ("lenet300", MNIST, 3, 5),
        ("resnet20", CIFAR, 2.5, 4),
        ("resnet18", CIFAR, 1.1, 1.3),
    ):
        yield from _graph(model, shape, rounds(30), bar, best)
    yield _compiled(rounds(30))
    yield from _masked(rounds(30))
    yield from _hooks(rounds(30))
    yield _data(rounds(30))
    yield _waits()
    yield _selection(rounds(10))
    yield _update(rounds(10))
    for model in ("resnet18", "vgg16_bn"):
        yield from _shrunk(model, rounds(10))


def _cuda(model: str, shape: tuple[str, ...], *overrides: str, images: int, batch_size: int = 128) -> Parts:
    return synthetic(model, *shape, FAST, *overrides, images=images, batch_size=batch_size, device="cuda")


def _finished(work: Callable[..., object], times: int) -> Case:
    """Seconds of one `work()` of many, until the device has done them."""

    def case() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    return case


def _epoch(
    goal: str, model: str, batch_size: int, rounds: int, bar: float, best: float, *overrides: str
) -> Row:
    p = _cuda(model, CIFAR, *overrides, images=IMAGES, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        epoch = _finished(epochs_of(p, Path(folder), SPARSITY), 1)
        seconds = alternate({"epoch": epoch}, rounds, warmup=2)["epoch"]
    what = " ".join((f"{model}, CIFAR-10's size, batch {batch_size}, 90 % sparse: epoch", *overrides))
    return at_most(goal, what, seconds, bar, best, unit="s")


def _real_step(p: Parts, sparsity: float | None) -> Callable[[], None]:
    """The step of the real loop, one after another."""
    run, phase = p.run, p.plan[0]
    if sparsity is not None:
        prune(p, sparsity)
    run.optimizer = p.make_optimizer(run, p.method)
    run.clock.steps = 10**9

    def step() -> None:
        train_step(phase, run, p.method)
        run.clock.tick()

    return step


def _graph(model: str, shape: tuple[str, ...], rounds: int, bar: float, best: float) -> Iterator[Row]:
    cases = {}
    for name, setting in (("eager", "false"), ("again", "false"), ("graph", "true")):
        p = _cuda(model, shape, f"trainer.cuda_graph={setting}", images=128 * 50)
        cases[name] = _finished(_real_step(p, SPARSITY), 50)
    seconds = alternate(cases, rounds, warmup=2)
    yield control(f"step on the GPU, {model}", seconds, "eager", "again")
    what = f"eager / CUDA graph, step of 128: {model}"
    yield at_least("G4", what, seconds["eager"] / seconds["graph"], bar, best)


def _compiled(rounds: int) -> Row:
    cases = {}
    for name in ("false", "true"):
        p = _cuda("resnet18", CIFAR, f"trainer.compile={name}", images=128 * 20)
        cases[name] = _finished(_real_step(p, SPARSITY), 20)
    seconds = alternate(cases, rounds, warmup=2)
    return report("G5", "eager / torch.compile, step of 128: resnet18", seconds["false"] / seconds["true"])


def _masked(rounds: int) -> Iterator[Row]:
    for setting, bar, best in (("false", 1.03, 1.01), ("true", 1.02, 1.01)):
        cases = {}
        for name, sparsity in (("dense", None), ("again", None), ("masked", SPARSITY)):
            p = _cuda("resnet18", CIFAR, f"trainer.cuda_graph={setting}", images=128 * 20)
            cases[name] = _finished(_real_step(p, sparsity), 20)
        seconds = alternate(cases, rounds, warmup=2)
        yield control("dense step on the GPU, resnet18", seconds, "dense", "again")
        how = "in a CUDA graph" if setting == "true" else "eager"
        what = f"masked / dense step of 128, {how}: resnet18"
        yield at_most("G6", what, seconds["masked"] / seconds["dense"], bar, best)


def _hooks(rounds: int) -> Iterator[Row]:
    p = _cuda("resnet20", CIFAR, "trainer.precision=fp32", images=128)
    batch = p.run.data.batch(0, 0)
    prune(p, SPARSITY)
    hooked = peers.hooked(p.run.model, dict(p.run.masks)).to(memory_format=torch.channels_last)
    ours, theirs = sgd(p.run.model, fused=True), sgd(hooked, fused=True)
    step = plain_step(p.run.model, ours, batch, lambda: p.run.masks.step_(p.run.model, ours))
    seconds = alternate(
        {
            "ours": _finished(step, 20),
            "again": _finished(step, 20),
            "hooks": _finished(plain_step(hooked, theirs, batch), 20),
        },
        rounds,
        warmup=2,
    )
    yield control("masked step on the GPU, resnet20", seconds, "ours", "again")
    what = "torch.nn.utils.prune / our masked step of 128: resnet20, fp32"
    yield at_least("G7", what, seconds["hooks"] / seconds["ours"], 1.05, 1.15)


def _data(rounds: int) -> Row:
    p = _cuda("resnet20", CIFAR, images=IMAGES)
    batches = iter(range(10**9))
    seconds = alternate(
        {
            "data": _finished(lambda: p.run.data.batch(0, next(batches)), p.run.data.steps_per_epoch),
            "step": _finished(_real_step(copy.copy(p), None), 50),
        },
        rounds,
    )
    what = "making an augmented batch, share of a step of 128: resnet20"
    return at_most("G8", what, seconds["data"] / seconds["step"], 0.05, 0.02, unit="%")


def _waits() -> Row:
    """Count the steps of an epoch in which the host waits for the device; the first epoch is left out."""
    p = _cuda("resnet20", CIFAR, images=128 * 40)
    step = clocked(_real_step(p, SPARSITY))
    for _ in range(p.run.data.steps_per_epoch):
        step()
    waited = 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(p.run.data.steps_per_epoch):
            try:
                step()
            except RuntimeError:
                waited += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return at_most("G9", "steps of an epoch in which the host waits for the GPU", waited, 0, 0, unit="")


def _selection(rounds: int) -> Row:
    """The exact selection among as many scores as a ViT-B has weights."""
    scores = torch.randn(86_000_000, device="cuda").abs()
    ours = _finished(lambda: topk_mask(scores, scores.numel() // 10), 1)
    seconds = alternate({"ours": ours, "sort": _finished(lambda: torch.sort(scores), 1)}, rounds)
    what = "exact selection of 10 % / torch.sort, 86 million scores on the GPU"
    return at_most("G10", what, seconds["ours"] / seconds["sort"], 1.0, 0.25)


def _update(rounds: int) -> Row:
    """A mask update of RigL against a training step."""
    update = rigl("resnet18", *CIFAR, "trainer.batch_size=128", FAST, device="cuda")
    seconds = alternate({"update": update.ours(), "step": update.step()}, rounds)
    return at_most(
        "G11", "update of RigL / step of 128: resnet18, 90 %", seconds["update"] / seconds["step"], 1, 0.3
    )


def _shrunk(model: str, rounds: int) -> Iterator[Row]:
    """Speed-up of training after filters are cut out; a GPU that is not filled gains less than its share."""
    options = (*CIFAR, *FILTERS, "sparsity.round_to=8")
    shares = (0.5, 0.75, 0.9)
    cases, macs = {}, {}
    for share in (None, *shares):
        shrink = f"trainer.shrink={'false' if share is None else 'true'}"
        p = synthetic(model, *options, shrink, FAST, images=512 * 4, batch_size=512, device="cuda")
        cases[share] = _finished(filter_step(p, share), 20)
        macs[share] = sum(count_macs(p.run.trained, p.run.data.shape).values())
    seconds = alternate(cases, rounds, warmup=2)
    for share in shares:
        ideal = macs[None] / macs[share]
        what = f"speed-up of training (ideal {ideal:.1f}), {model}, {share:.0%} of filters removed"
        yield report("", what, seconds[None] / seconds[share])
