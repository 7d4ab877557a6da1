"""Phase prefixes that runs share, found by content address: the dense training of a sweep happens once."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunebench.core import checkpoint


def address(content: Any) -> str:
    """16 hex digits that depend on nothing but the content (JSON types)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class PrefixStore:
    """End states of phase prefixes, each trained by one run and read by every other that shares it.

    A key must name all that can influence the state: the caller builds it from the configuration of the prefix,
    the seed, the device kind, the number of threads and the library versions. While a run trains a prefix that is
    not there yet it holds that prefix's lock, so that jobs side by side wait for it instead of training it again;
    the lock of a killed process is free.

    Args:
      directory: holds one folder per key.
      keys: phase index -> content address of the plan up to and including that phase; only these are shared.
      waiting: called about once a second while another process trains the prefix; may raise to give up.
    """

    def __init__(self, directory: Path, keys: dict[int, str], waiting: Callable[[str], None]):
        self.directory, self.keys, self.waiting = directory, keys, waiting
        self._lock: Any = None

    def _folder(self, key: str) -> Path:
        return self.directory / key

    def longest(self, after: int) -> tuple[int, Path] | None:
        """Index and folder of the longest stored prefix that ends at phase `after` or later; else None.

        When the next prefix is not there, its lock is taken (waiting if another process holds it), and the store
        is looked into once more.
        """
        self.release()
        found = self._stored(after)
        if found is None and after in self.keys:
            self._acquire(self.keys[after])
            found = self._stored(after)
            if found is not None:
                self.release()
        return found

    def _stored(self, after: int) -> tuple[int, Path] | None:
        for index in sorted(self.keys, reverse=True):
            folder = self._folder(self.keys[index])
            if index >= after and (folder / "checkpoint.pt").exists():
                return index, folder
        return None

    def _acquire(self, key: str) -> None:
        from filelock import FileLock, Timeout

        self._folder(key).mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self._folder(key) / "lock"))
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                self.waiting(key)
        for left in self._folder(key).glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        self._lock = lock

    def put(self, index: int, rows: bytes, write: Callable[[Path], None]) -> None:
        """Store the end state of the phase, unless another run has done so; rows first, the checkpoint makes it valid."""
        key = self.keys.get(index)
        if key is None:
            return
        folder = self._folder(key)
        if not (folder / "checkpoint.pt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_atomically(folder / "metrics.jsonl", lambda file: file.write(rows))
            write(folder / "checkpoint.pt")
        self.release()

    def release(self) -> None:
        """Let other processes train the prefix."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
