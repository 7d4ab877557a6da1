"""P17, P18: from typing a command to its answer, in processes that alternate."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.children import child, command_seconds, seconds_of
from benchmarks.timing import Row, alternate, at_most, control

OPTIMIZER = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)"


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    program = str(Path(sys.executable).with_name("prune-run"))
    python = [sys.executable, "-c"]
    seconds = alternate(
        {
            "help": lambda: command_seconds([program, "--help"]),
            "list": lambda: command_seconds([program, "list"]),
            "hydra": lambda: command_seconds([*python, "import hydra"]),
            "again": lambda: command_seconds([*python, "import hydra"]),
        },
        rounds(30),
    )
    yield control("import hydra", seconds, "hydra", "again")
    for name, shown in (("help", "--help"), ("list", "list")):
        what = f"prune-run {shown} / python -c 'import hydra'"
        yield at_most("P17", what, seconds[name] / seconds["hydra"], 2, 1.5)
    asked = ("--help", "--version", "list", "list methods")
    heavy = sum(child("modules", *arguments.split()) == "torch" for arguments in asked)
    yield at_most("P17", f"of {', '.join(asked)}: those that import torch", heavy, 0, 0, unit="")

    def first_step() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return seconds_of("stop", "1", f"out={folder}")[0]

    seconds = alternate(
        {
            "first": first_step,
            "torch": lambda: command_seconds([*python, OPTIMIZER]),
            "again": lambda: command_seconds([*python, OPTIMIZER]),
        },
        rounds(15),
    )
    yield control("import torch and first optimizer", seconds, "torch", "again")
    what = "time to the first training step / import torch and first optimizer"
    yield at_most("P18", what, seconds["first"] / seconds["torch"], 1.35, 1.15)
