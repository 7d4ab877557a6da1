"""Training losses between two looks at them, and the two ways in which a run ends early."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint has been written."""

    def __init__(self, signal: int):
        super().__init__(f"signal {signal}")
        self.signal = signal


class Diverged(RuntimeError):
    """The training loss is not finite; the message names phase and step, and the last good checkpoint."""


class Losses:
    """Training losses of the epoch, kept on the device; read without making the device wait until they are due."""

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
