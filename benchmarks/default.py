"""P22, P23: the run that `prune-run` does without arguments, on all cores."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.children import child, command_seconds
from benchmarks.timing import Row, at_most, report


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    cores = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    shares, evaluation = [], []
    for _ in range(rounds(3)):
        with tempfile.TemporaryDirectory() as folder:
            spent = json.loads(child("share", f"out={folder}", **cores))
        shares.append((spent["record"] - spent["evaluate"]) / spent["fit"])
        evaluation.append(spent["evaluate"] / spent["fit"])
    what = "checkpoints, rows, display, picture: share of the default run"
    yield at_most("P22", what, shares, 0.05, 0.02, unit="%")
    yield report("", "evaluation: share of the default run", evaluation, unit="%")
    program, whole, torch = str(Path(sys.executable).with_name("prune-run")), [], []
    for _ in range(rounds(5)):
        with tempfile.TemporaryDirectory() as folder:
            whole.append(command_seconds([program, f"out={folder}"], **cores))
        torch.append(command_seconds([sys.executable, "-c", "import torch"], **cores))
    yield at_most("P23", "prune-run without arguments, from start to end", whole, 20, 10, unit="s")
    yield report("", "the same / import torch", [w / t for w, t in zip(whole, torch)])
