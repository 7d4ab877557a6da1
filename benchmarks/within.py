"""P30: a step of methods that train dense weights under masks or thresholds, against a dense step."""

from collections.abc import Callable, Iterator

from benchmarks.parts import MNIST, Parts, plain_step, sgd, synthetic
from benchmarks.timing import Row, alternate, at_most, clocked, control, report
from prunebench.core.loop import Sink, enter
from prunebench.machine import keep_freed_memory

METHODS = {"dpf": (), "str": ("method.s_initial=-3.0",), "platon": ()}


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    small = ("dataset.channels=3", "dataset.size=8")
    yield from _steps("lenet300", MNIST, 128, 20, rounds(30))
    yield from _steps("resnet18", small, 32, 1, rounds(20))
    yield from _steps("vit_tiny", ("dataset.channels=3", "dataset.size=16"), 16, 1, rounds(15))


def _steps(model: str, shape: tuple[str, ...], batch_size: int, times: int, rounds: int) -> Iterator[Row]:
    """Forward, backward and `Method.step` on a constant batch, at steps that may rank and zero anew."""
    keep_freed_memory()  # as prune-run does
    p = synthetic(model, *shape, images=50 * batch_size, batch_size=batch_size)
    batch = p.run.data.batch(0, 0)
    optimizer = sgd(p.run.model, fused=True)
    dense = plain_step(p.run.model, optimizer, batch)
    cases = {"dense": clocked(dense, times=times), "again": clocked(dense, times=times)}
    for name, options in METHODS.items():
        other = synthetic(
            model, *shape, f"method={name}", *options, images=50 * batch_size, batch_size=batch_size
        )
        cases[name] = clocked(_step_of(other), times=times)
    seconds = alternate(cases, rounds, warmup=2)
    yield control(f"dense step, {model}", seconds, "dense", "again")
    for name in ("dpf", "str"):
        what = f"{name} / dense step: {model}, batch {batch_size}"
        yield at_most("P30", what, seconds[name] / seconds["dense"], 1.25, 1.1)
    what = f"platon / dense step, rankings included: {model}, batch {batch_size}"
    yield report("P30", what, seconds["platon"] / seconds["dense"])


def _step_of(p: Parts) -> Callable[[], None]:
    """One training step of the method within its phase, which begins anew when it is over.

    Over the phase the step costs what it costs in training: rankings, zeroings and readings of masks are in.
    """
    phase, run = p.plan[0], p.run
    enter(phase, run, p.method, p.make_optimizer, Sink())
    for group in run.optimizer.param_groups:
        group.update(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    run.clock.steps, run.clock.step = 2000, 1000  # in the middle of a phase of 2000 steps

    def update() -> None:
        p.method.step(run)
        run.clock.step = 1000 + (run.clock.step - 999) % 200

    return plain_step(run.model, run.optimizer, run.data.batch(0, 0), update)
