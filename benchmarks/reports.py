"""P28, P29: prune-report of a thousand runs, and of a hundred thousand."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.children import child, command_seconds
from benchmarks.timing import Row, alternate, at_most, control, report
from benchmarks.trees import write_tree

MANY, VERY_MANY = 1_000, 100_000


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        child("run", f"out={root / 'real'}", "trainer.share=none")
        template = next((root / "real").glob("*/result.json")).parent
        yield from _seconds(root, template, rounds(10))
        tree = root / "very_many"
        write_tree(tree, template, VERY_MANY)
        peaks = [float(child("report", str(tree), *_text(root))) for _ in range(rounds(1))]
        what = f"peak memory in MB, table and CSV of {VERY_MANY:,} runs"
        yield at_most("P29", what, peaks, 1000, 500, unit="")


def _seconds(root: Path, template: Path, rounds: int) -> Iterator[Row]:
    """Wall time of the whole process, from start to end."""
    tree = root / "many"
    write_tree(tree, template, MANY)
    command = [str(Path(sys.executable).with_name("prune-report")), str(tree)]
    seconds = alternate(
        {
            "text": lambda: command_seconds([*command, *_text(root)]),
            "picture": lambda: command_seconds([*command, "--out", str(root / "out")]),
            "again": lambda: command_seconds([*command, *_text(root)]),
        },
        rounds,
    )
    yield control("prune-report", seconds, "text", "again")
    yield at_most("P28", f"table and CSV of {MANY:,} runs", seconds["text"], 2, 1, unit="s")
    what = f"table, CSV, Markdown and picture of {MANY:,} runs, 40 lines"
    yield report("P28", what, seconds["picture"], unit="s")


def _text(root: Path) -> list[str]:
    """Arguments for what is made without a picture."""
    return ["--out", str(root / "out"), "--format", "table,csv", "--no-plot"]
