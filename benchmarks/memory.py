"""P25, P26: memory of a pruning event, and the precision that `auto` picks."""

import contextlib
import io
from collections.abc import Callable, Iterator

import torch

from benchmarks.children import Worker, child
from benchmarks.timing import Row, alternate, at_most, report
from prunebench.machine import precision_of


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    for prior in (0.0, 0.8):
        peaks = [float(child("memory", str(prior))) for _ in range(rounds(2))]
        what = f"peak memory of a pruning event / weights: ViT-B/16, {prior:.0%} pruned before"
        yield at_most("P25", what, peaks, 4, 3)
    for model in ("resnet20", "resnet18"):
        yield from _kept_memory(model, rounds(8))
    wrong = precision_of("auto", torch.device("cpu")) is not None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        wrong += precision_of("bf16", torch.device("cpu")) is not torch.bfloat16
    print(f"      forced bf16 on this CPU: {said.getvalue().strip() or 'no warning, it has bf16 units'}")
    yield at_most("P26", "wrong precisions: auto on a CPU is fp32, bf16 is obeyed", int(wrong), 0, 0, unit="")


def _kept_memory(model: str, rounds: int) -> Iterator[Row]:
    workers = {kind: Worker("steps", kind, model) for kind in ("kept", "usual")}

    def case(worker: Worker) -> Callable[[], float]:
        def seconds() -> float:
            worker.ask()
            return worker.answer()

        return seconds

    try:
        seconds = alternate({kind: case(worker) for kind, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    what = f"step with glibc's memory as it is / kept: {model}, batch 128, two threads"
    yield report("", what, seconds["usual"] / seconds["kept"])
