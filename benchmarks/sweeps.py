"""P16, P19: jobs side by side, and the time between jobs of one sweep."""

import json
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.children import Worker, child
from benchmarks.timing import Row, at_least, at_most

STEPS = 100
JOBS = (
    *("method=one_shot", "protocol.dense=3ep", "protocol.retrain=1ep"),
    *("trainer.threads=1", "trainer.share=none"),
)


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    yield from _side_by_side(rounds(30))
    found = []
    for _ in range(rounds(3)):
        with tempfile.TemporaryDirectory() as folder:
            found += json.loads(child("gaps", "-m", *JOBS, "seed=0,1,2,3,4", f"out={folder}"))
    what = "between the last step of a job and the first of the next: digits"
    yield at_most("P19", what, found, 0.3, 0.1, unit="s")


def _side_by_side(rounds: int) -> Iterator[Row]:
    workers = [Worker("work", str(STEPS)) for _ in range(2)]
    try:
        ratios = []
        for number in range(rounds):
            alone = _together(workers[number % 2 :][:1])
            both = _together(workers)
            ratios.append(2 * alone / both)
    finally:
        for worker in workers:
            worker.close()
    what = f"two jobs side by side / one, steps per second: lenet300, {STEPS} steps"
    yield at_least("P16", what, np.asarray(ratios), 1.85, 1.95)


def _together(workers: list[Worker]) -> float:
    """Seconds until the slower one is done."""
    for worker in workers:
        worker.ask()
    return max(worker.answer() for worker in workers)
