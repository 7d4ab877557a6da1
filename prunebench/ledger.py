"""What every phase has cost, whether or not it is a row of the table of rounds."""

from collections.abc import Mapping
from typing import Any

from prunebench.core.phase import Phase
from prunebench.core.run import Run


class Ledger:
    """Training images, MACs and seconds of each trained phase.

    Attributes:
      entries: one dict per phase, plain numbers, as a checkpoint carries them.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, run: Run, phase: Phase, row: Mapping[str, Any]) -> dict[str, Any]:
        """Enter the phase that ends now; what its row says of it.

        Args:
          run: its clock stands at the phase's end.
          phase: what was trained.
          row: of the table of rounds, with MACs and the phase's own seconds.

        Returns:
          `seconds`, those of the phase's auxiliary phases included, and `train_macs` of the run up to here.
        """
        seconds = row["seconds"]
        for before in reversed(self.entries):
            if phase.auxiliary or not before["auxiliary"]:
                break
            seconds += before["seconds"]
        own = {k: row[k] for k in ("macs", "macs_dense", "seconds")} | {"samples": images_seen(run)}
        self.entries.append({"phase": phase.name, "auxiliary": phase.auxiliary, **own})
        return {"seconds": seconds, "train_macs": self.cost(run.clock.total)["train_macs"]}

    def cost(self, steps: int) -> dict[str, int]:
        """Cost of the run; a training step is counted as three forward passes."""
        return {
            "steps": steps,
            "samples": sum(e["samples"] for e in self.entries),
            "train_macs": sum(3 * e["samples"] * e["macs"] for e in self.entries),
            "train_macs_dense": sum(3 * e["samples"] * e["macs_dense"] for e in self.entries),
        }

    @property
    def seconds(self) -> float:
        """Wall time of all phases, evaluation included."""
        return sum(e["seconds"] for e in self.entries)


def images_seen(run: Run) -> int:
    """Training images of the phase that ends now; epochs go on over phases, with a smaller last batch."""
    return _images_until(run, run.clock.total) - _images_until(run, run.clock.total - run.clock.step)


def _images_until(run: Run, step: int) -> int:
    """Training images of the first `step` steps of the run."""
    epochs, rest = divmod(step, run.data.steps_per_epoch)
    return epochs * run.data.sizes["train"] + rest * run.data.batch_size
