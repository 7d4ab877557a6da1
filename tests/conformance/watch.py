"""Observers that look at every step, and runs that were trained once with all that was seen kept."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from prunebench.core.loop import Sink
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.record import Recorder
from tests.conformance.kit import Case, Parts, clone, recorded, tiny


def alive_again(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Weights that the earlier masks prune and the later ones keep."""
    return sum(int((after[n] & ~m).sum()) for n, m in before.items())


def not_zero(run: Run) -> list[str]:
    """What of the pruned entries is not 0: parameters, and every state tensor of the optimizer."""
    found, params = [], dict(run.model.named_parameters())
    for name, mask in [*run.masks.items(), *run.masks.tied.items()]:
        p, gone = params[name], ~mask
        tensors = {"value": p.detach(), **run.optimizer.state.get(p, {})}
        for what, t in tensors.items():
            if isinstance(t, Tensor) and t.shape == p.shape and bool((t[gone] != 0).any()):
                found.append(f"step {run.clock.total}: {what} of {name}")
    return found


class MaskWatch(Sink):
    """Observer that looks at the masks and at what is pruned after every step."""

    def __init__(self) -> None:
        self.not_zero: list[str] = []
        self.not_applied: list[str] = []  # values where masks prune that are new, or are said to hold
        self.masks = None
        self.steps = 0
        self.most_pruned = 0.0

    def after_step(self, run, method, phase, loss):
        self.steps += 1
        self.most_pruned = max(self.most_pruned, run.masks.sparsity)
        found = not_zero(run)
        self.not_zero += found
        if run.masks is not self.masks or run.zeros_hold:
            self.not_applied += [f for f in found if ": value of" in f]
        self.masks = run.masks


@dataclass
class Event:
    """A pruning event: what was asked, and what is kept."""

    phase: Phase
    kept: int
    total: int
    masks: dict[str, Tensor]


class Witness(Recorder):
    """The real recorder; it also keeps what it sees, and copies the directory as a crash would leave it."""

    crash_at: frozenset[int] = frozenset()

    def begin(self, run, method, make_optimizer):
        super().begin(run, method, make_optimizer)
        self.events: list[Event] = []
        self.ends: dict[str, dict] = {}  # phase -> the masks at its end
        self.steps = self.revived = 0
        self.states: dict[int, dict] = {}  # total -> the method's state at a crash
        self.batches: list[tuple] = []
        self.seen = clone(dict(run.masks))
        self._last = run.masks
        original = run.data.batch

        def batch(*args, **keywords):
            images, labels = original(*args, **keywords)
            self.batches.append((args, images.clone(), labels.clone()))
            return images, labels

        run.data.batch = batch

    def _look(self, run):
        if run.masks is not self._last:
            now = clone(dict(run.masks))
            self.revived += alive_again(self.seen, now)
            self.seen, self._last = now, run.masks

    def pruned(self, run, method, phase):
        super().pruned(run, method, phase)
        counted = method.channels(run)
        self.events.append(
            Event(phase, *(counted or (run.masks.kept, run.masks.total)), clone(dict(run.masks)))
        )
        self._look(run)

    def phase_end(self, run, method, phase):
        super().phase_end(run, method, phase)
        self.ends[phase.name] = clone(dict(run.masks))

    def settled(self, run, method, phase):
        super().settled(run, method, phase)
        self.steps += 1
        self._look(run)
        if run.clock.total in self.crash_at:
            self.states[run.clock.total] = clone(method.state_dict())
            self.rows.content()  # flushes
            target = self.directory / f"crash-{run.clock.total}"
            target.mkdir()
            for name in ("checkpoint.pt", "metrics.jsonl"):
                if (self.directory / name).exists():
                    shutil.copy(self.directory / name, target)
            with open(target / "metrics.jsonl", "ab") as rows:
                rows.write(b'{"kind": "train", "pha')  # killed in the middle of a write


@dataclass
class Trace:
    """A case that was trained once without interruption, and what was seen."""

    case: Case
    overrides: tuple[str, ...]
    directory: Path
    parts: Parts
    seen: Witness
    fresh: dict[str, Any]  # the method's state before training
    crashes: list[int]


def crash_points(parts: Parts) -> list[int]:
    """Steps done at a crash: early, soon after the first pruning event, right after the last, and late.

    Where masks change within a phase, also before, between and after its updates, every 4 or 5 steps.

    Checkpoints are written every 5 steps and at phase ends: the second crash hits one, others lie between.
    """
    start, events = 0, []
    for phase in parts.plan:
        if phase.sparsity is not None:
            events.append(start)
        start += 8 if callable(phase.length) else phase.steps(parts.run)
    first, last = (events[0], events[-1]) if events else (start // 2, start // 2)
    late = 3 * start // 4
    updates = {6, 16, 21, 22} if any(p.within for p in parts.plan) else set()  # around updates of masks
    return sorted({7, 5 * (first // 5 + 1), last + 1 + (last == 0) * 10, late + (late % 5 == 0), *updates})


class Traces:
    """Trains each case once, in folders under `root`."""

    def __init__(self, root: Any):
        self.root = root

    @cache  # noqa: B019 (lives as long as the session)
    def __call__(self, case: Case, network: str, *more: str) -> Trace:
        """The trace of a case on a network, with further overrides."""
        overrides = tiny(case, network, *more)
        directory = self.root.mktemp(f"{case}-{network}", numbered=True)
        parts = recorded(overrides, directory, kind=Witness)
        fresh, crashes = clone(parts.method.state_dict()), crash_points(parts)
        parts.recorder.crash_at = frozenset(crashes)
        parts.fit()
        return Trace(case, overrides, directory, parts, parts.recorder, fresh, crashes)
