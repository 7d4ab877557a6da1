"""What a tracker must hold of a run, and crashes, for the tests of trackers."""

import json
from collections import defaultdict

from prunebench.trackers.points import SPEED, points

CHECKPOINTS = "trainer.checkpoint_every=2it"
SINGLE = {"phase/seconds", SPEED}  # wall times: another one each time


def expected(directory):
    """Name -> points, from the rows of a run."""
    found = defaultdict(list)
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in points(row).items():
            found[name].append((row["total"], value))
    return found
