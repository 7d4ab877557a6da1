"""What the recorder keeps between two looks: rows, losses, pace; and the two ways to end a run early."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prunebench.core import checkpoint, parallel
from prunebench.core.checkpoint import CheckpointError
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run

SHOW_EVERY = 0.25  # seconds between two looks at the loss for the display


AGREE_EVERY = 50  # steps between two exchanges about signals, with several processes


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint has been written."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.signal = number


class Stop:
    """Whether a signal asks the run to end; several processes agree on it, which costs a message.

    Args:
      asked: the number of a signal that has come in, or 0.
    """

    def __init__(self, asked: Callable[[], int]):
        self.asked = asked

    def within_phase(self, run: Run) -> bool:
        """Whether to end after this step; with several processes, looked into every `AGREE_EVERY` steps."""
        step = run.clock.step
        due = run.world == 1 or step % AGREE_EVERY == 0 or step % run.data.steps_per_epoch == 0
        return due and self.now(run)

    def now(self, run: Run) -> bool:
        """Whether to end now."""
        return parallel.any_rank(bool(self.asked()), run.device, run.world)

    @property
    def error(self) -> Interrupted:
        """What to raise, after a checkpoint."""
        return Interrupted(self.asked() or signal.SIGTERM)


class Diverged(RuntimeError):
    """The training loss is not finite; the message names phase and step, and the last good checkpoint."""


def diverged(run: Run, phase: Phase, what: str, *, step: int, saved: int | None) -> Diverged:
    """The error to raise when `what` is not finite.

    Args:
      run: at some step of the phase.
      phase: where it happened.
      what: subject and verb, "the loss is nan".
      step: of the phase, at most that of the run's clock.
      saved: step in all of the last checkpoint, or None if there is none.
    """
    kept = "no checkpoint had been written" if saved is None else f"the checkpoint of step {saved} is kept"
    groups = run.optimizer.param_groups if run.optimizer is not None else []
    now = f" (now {groups[0]['initial_lr']:g})" if groups else ""
    option = f"optimizer.lr{now}" if phase.peak is None else f"peak of this phase (now {phase.peak:g})"
    return Diverged(
        f"training diverged: {what} in phase {phase.name}, step {step} of {run.clock.steps} "
        f"({run.clock.total - run.clock.step + step} in all); {kept}; try a lower {option}"
    )


class Losses:
    """Training losses of the epoch, kept on the device, which does not wait before they are due."""

    def __init__(self, size: int, device: torch.device):
        self.values = torch.zeros(size, device=device)
        self.count = 0
        pinned = device.type == "cuda"
        self._host = torch.zeros((), pin_memory=pinned) if pinned else None
        self._copied: Any = None

    def add(self, loss: Tensor) -> None:
        """Append one loss (0-dim tensor on the device)."""
        self.values[self.count] = loss
        self.count += 1

    def peek(self) -> float | None:
        """A recent loss; on CUDA the one copied at the last call, if that copy has arrived."""
        if not self.count:
            return None
        if self._host is None:
            return float(self.values[self.count - 1])
        seen = float(self._host) if self._copied is not None and self._copied.query() else None
        if self._copied is None or seen is not None:
            self._host.copy_(self.values[self.count - 1], non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return seen

    def read(self) -> list[float]:
        """All losses since the last `clear`; waits for the device."""
        return self.values[: self.count].tolist()

    def load(self, values: Sequence[float]) -> None:
        """Put back what `read` gave."""
        self.count = len(values)
        self.values[: self.count] = torch.tensor(values)

    def clear(self) -> None:
        """Start anew."""
        self.count = 0


class Listener(Protocol):
    """Is told every row of a run, and must neither fail nor change anything in it."""

    def earlier(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows of the file: of the run before it was interrupted, or of a shared prefix, taken over."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row that has just been written."""

    def sync(self) -> None:
        """All rows so far are on the disk, a checkpoint is about to count on them."""


class Rows:
    """metrics.jsonl: one JSON object per line, appended, and cut back to where a checkpoint was written."""

    def __init__(self, path: Path):
        self.path = path
        self._listener: Listener | None = None
        self._file = open(path, "ab")  # noqa: SIM115 (open for the life of the run)

    def cut(self, size: int) -> None:
        """Drop what stands after the first `size` bytes.

        Raises:
          CheckpointError: if the file is shorter than that.
        """
        if self.path.stat().st_size < size:
            raise CheckpointError(
                f"{self.path}: is shorter than when the checkpoint beside it was written; "
                f"delete {self.path.parent} to start this run over"
            )
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    def tell(self, listener: Listener) -> None:
        """Tell a listener all rows so far, and from now on every row."""
        self._listener = listener
        listener.earlier([json.loads(line) for line in self.content().splitlines()])

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on the disk after the next `sync`."""
        self._file.write(json.dumps(row).encode() + b"\n")
        if self._listener is not None:
            self._listener.row(row)

    def write_at(self, run: Run, phase: Phase, kind: str, **values: Any) -> None:
        """Append a row that says where in the plan the run stands."""
        clock = run.clock
        place = {"phase": phase.name, "cycle": clock.cycle, "step": clock.step, "total": clock.total}
        epoch, sparsity = round(clock.step / run.data.steps_per_epoch, 6), run.masks.sparsity
        # the sparsity is that of the last masks, some of whose weights are not 0 at this moment
        loose = {} if run.zeros_hold else {"zeros_hold": False}
        aside = {"aside": True} if phase.aside else {}
        self.write({"kind": kind, **place, "epoch": epoch, "sparsity": sparsity, **aside, **loose, **values})

    def sync(self) -> int:
        """Put everything on the disk; the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._listener is not None:
            self._listener.sync()
        return self._file.tell()

    def content(self) -> bytes:
        """Everything written so far."""
        self._file.flush()
        return self.path.read_bytes()

    def replace(self, content: bytes) -> None:
        """Put other rows in the place of all; at every moment the old or the new ones are there."""
        self._file.close()
        checkpoint.write_atomically(self.path, lambda file: file.write(content))
        self._file = open(self.path, "ab")  # noqa: SIM115 (open for the life of the run)
        if self._listener is not None:
            self.tell(self._listener)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Checkpoints:
    """checkpoint.pt of a run: when the next one is due, and writing it.

    Args:
      path: of the file.
      every: optimizer steps between two.
      seconds: and when this long has passed since the last one.
    """

    def __init__(self, path: Path, *, every: int, seconds: float):
        self.path, self.every, self.seconds = path, every, seconds
        self._at, self._total = time.monotonic(), 0

    def due(self, total: int) -> bool:
        """Whether it is time for one when `total` steps of the run are done."""
        return time.monotonic() - self._at > self.seconds or total % self.every == 0

    @property
    def last(self) -> int | None:
        """Steps of the run in the file; None if there is none."""
        return self._total if self.path.exists() else None

    def begin(self, run: Run) -> None:
        """Count from here: the run goes on from a file, or from its start."""
        self._at, self._total = time.monotonic(), run.clock.total

    def write(self, run: Run, method: Method, extra: Mapping[str, Any]) -> None:
        """Write the state of the run, whole or not at all."""
        checkpoint.save(self.path, run=run, method=method, extra=extra)
        self.begin(run)


class Shown:
    """Feeds the display a few times per second: place in the plan, loss, pace."""

    def __init__(self, display: Any, plan: Sequence[Phase]):
        self.display, self.plan = display, plan
        self._at = 0.0
        self._rate = (time.monotonic(), 0)

    def start(self, run: Run, phase: Phase) -> None:
        """A phase begins, or is gone on with."""
        clock = run.clock
        lengths = [0 if callable(p.length) else p.steps(run) for p in self.plan if p is not phase]
        self._rate = (time.monotonic(), clock.total)
        whole = sum(lengths) + clock.steps
        self.display.start(
            phase.name, clock.phase, len(self.plan), clock.steps, clock.step, whole, clock.total
        )

    def resumed(self, run: Run) -> None:
        """Say where an interrupted run goes on."""
        where = [*(f"phase {phase.name}" for phase in self.plan), "the end"][run.clock.phase]
        self.display.event(f"resumed at {where}, step {run.clock.step} of it ({run.clock.total} in all)")

    def due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() - self._at > SHOW_EVERY

    def update(self, run: Run, loss: float | None, top1: float | None) -> None:
        """Show where the run is now."""
        clock, now = run.clock, time.monotonic()
        since, total = self._rate
        self._at, self._rate = now, (now, clock.total)
        lr = run.optimizer.param_groups[0]["lr"]
        self.display.update(
            clock.step,
            epoch=clock.step / run.data.steps_per_epoch,
            loss=loss,
            top1=top1,
            lr=float("nan") if isinstance(lr, Tensor) else lr,
            images_per_second=(clock.total - total) * run.data.batch_size / max(now - since, 1e-9),
        )
