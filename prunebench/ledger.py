"""What every phase has cost, whether or not it is a row of the table of rounds."""

from collections.abc import Mapping
from typing import Any

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.metrics.cost import ATTENTION


class Ledger:
    """Training images, MACs and seconds of each trained phase.

    Masks may change while a phase trains: every step is counted with the masks that it began with, and the
    kept MACs are worked out anew only when there are other masks.

    Args:
      macs: prunable name -> MACs of one image, as `prunebench.metrics.cost.count_macs` gives them.

    Attributes:
      entries: one dict per phase, plain numbers, as a checkpoint carries them.
      running: of the phase that trains: MACs of one image now, MACs of its training so far, how often masks
        changed since the last row of metrics.jsonl, and MACs of the scores of its pruning event, if it has
        one; None in a phase that was begun without it.
    """

    def __init__(self, macs: Mapping[str, int]) -> None:
        self.macs = {n: m for n, m in macs.items() if n != ATTENTION}
        self.dense = sum(self.macs.values())
        self.entries: list[dict[str, Any]] = []
        self.running: dict[str, int] | None = None
        self._masks: Masks | None = None

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return {"entries": self.entries, "running": self.running and dict(self.running)}

    def load(self, state: Mapping[str, Any] | list[dict[str, Any]], run: Run) -> None:
        """Load what `state` gave; the run has its masks already.

        Checkpoints of earlier versions hold the entries alone; their masks did not change within a phase.
        """
        older = isinstance(state, list)
        self.entries, self.running = (state, None) if older else (state["entries"], state["running"])
        self._masks = run.masks

    def begin(self, run: Run) -> None:
        """A phase begins with the masks that the run has now."""
        self._masks = run.masks
        self.running = {"macs": self._of_an_image(run.masks), "train_macs": 0, "changes": 0}
        if run.scoring is not None:
            computed, scored = run.scoring
            self.running["score_macs"] = computed * self._of_an_image(scored) // self.dense

    def step(self, run: Run, method: Method) -> None:
        """Count the step that has just been done; waits for the device only if new masks must be counted."""
        now, masks = self.running, run.masks
        if now is None:
            return
        place = run.clock.place
        images = _images_until(run, place) - _images_until(run, place - 1)
        now["train_macs"] += images * method.train_macs(run, run.clock.step - 1, now["macs"], self.dense)
        if masks is not self._masks:
            now["changes"] += 1
            now["macs"], self._masks = self._of_an_image(masks), masks

    def changes(self, run: Run) -> dict[str, Any]:
        """For a row: how often masks changed since the last one, and weights kept by layer; {} if never."""
        if self.running is None or not self.running["changes"]:
            return {}
        count, self.running["changes"] = self.running["changes"], 0
        layers = [{"name": n, "kept": kept} for n, kept in run.masks.kept_per_layer.items()]
        return {"mask_updates": count, "layers": layers}

    def add(self, run: Run, phase: Phase, row: Mapping[str, Any]) -> dict[str, Any]:
        """Enter the phase that ends now; what its row says of it.

        Args:
          run: its clock stands at the phase's end.
          phase: what was trained.
          row: of the table of rounds, with MACs and the phase's own seconds.

        Returns:
          `seconds`, those of the phase's auxiliary phases included, and `train_macs` up to here: of the way
          to this network. Phases aside are not on the way to others, nor is the phase beside one on its own.
          `score_macs` of its pruning event, if it has one: what the scores took, counted as it was computed,
          less the same share of zeros as training's.
        """
        seconds = row["seconds"]
        for before in reversed(self.entries):
            if phase.auxiliary or not before["auxiliary"]:
                break
            seconds += before["seconds"]
        own = {k: row[k] for k in ("macs", "macs_dense", "seconds")} | {"samples": images_seen(run)}
        trained = 3 * own["samples"] * own["macs"] if self.running is None else self.running["train_macs"]
        scores = {k: v for k, v in (self.running or {}).items() if k == "score_macs"}
        kind = {"auxiliary": phase.auxiliary} | ({"aside": True} if phase.aside else {})
        self.entries.append({"phase": phase.name, **kind, "train_macs": trained, **own, **scores})
        way = [e for e in self.entries if not e.get("aside")]
        if phase.aside:
            way[-1] = self.entries[-1]
        return {"seconds": seconds, "train_macs": sum(map(_train_macs, way)), **scores}

    def cost(self, steps: int, *, aside: bool = False) -> dict[str, int]:
        """Cost of the run; a training step is counted as three forward passes (`Method.train_macs`).

        Args:
          steps: optimizer steps that were done.
          aside: of the phases aside, which are left out otherwise.
        """
        entries = [e for e in self.entries if bool(e.get("aside")) is aside]
        return {
            "steps": steps,
            "samples": sum(e["samples"] for e in entries),
            "train_macs": sum(map(_train_macs, entries)),
            "train_macs_dense": sum(3 * e["samples"] * e["macs_dense"] for e in entries),
            "score_macs": sum(e.get("score_macs", 0) for e in entries),
        }

    @property
    def seconds(self) -> float:
        """Wall time of all phases, evaluation included."""
        return sum(e["seconds"] for e in self.entries)

    def _of_an_image(self, masks: Masks) -> int:
        """Kept MACs of one image, rounded down layer by layer as in `prunebench.metrics.cost.cost`."""
        kept = masks.kept_per_layer
        return self.dense - sum(
            m - m * kept[n] // masks[n].numel() for n, m in self.macs.items() if n in masks
        )


def _train_macs(entry: Mapping[str, Any]) -> int:
    """Multiply-adds of a phase's training; entries of earlier versions hold what they follow from."""
    return entry.get("train_macs", 3 * entry["samples"] * entry["macs"])


def images_seen(run: Run) -> int:
    """Training images of the phase that ends now; epochs go on over phases, with a smaller last batch."""
    return _images_until(run, run.clock.place) - _images_until(run, run.clock.place - run.clock.step)


def _images_until(run: Run, step: int) -> int:
    """Training images of the first `step` steps on the way to a network."""
    epochs, rest = divmod(step, run.data.steps_per_epoch)
    return epochs * run.data.sizes["train"] + rest * run.data.batch_size
