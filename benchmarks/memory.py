"""P25, P26: memory of a pruning event, and the precision that `auto` picks."""

import contextlib
import io
from collections.abc import Callable, Iterator

import torch

from benchmarks.children import child
from benchmarks.timing import Row, at_most
from prunebench.machine import precision_of


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    for prior in (0.0, 0.8):
        peaks = [float(child("memory", str(prior))) for _ in range(rounds(2))]
        what = f"peak memory of a pruning event / weights: ViT-B/16, {prior:.0%} pruned before"
        yield at_most("P25", what, peaks, 4, 3)
    wrong = precision_of("auto", torch.device("cpu")) is not None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        wrong += precision_of("bf16", torch.device("cpu")) is not torch.bfloat16
    print(f"      forced bf16 on this CPU: {said.getvalue().strip() or 'no warning, it has bf16 units'}")
    yield at_most("P26", "wrong precisions: auto on a CPU is fp32, bf16 is obeyed", int(wrong), 0, 0, unit="")
