"""Phase prefixes that runs share, found by content address: the dense training of a sweep happens once."""

import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunebench import __version__
from prunebench.core import checkpoint
from prunebench.core.method import Method, leaves_training_alone
from prunebench.core.phase import Phase, cycles
from prunebench.core.run import Run
from prunebench.journal import Interrupted


def address(content: Any) -> str:
    """16 hex digits that depend on nothing but the content (JSON types)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class PrefixStore:
    """End states of phase prefixes, each trained by one run and read by every other that shares it.

    A key must name all that can influence the state: the caller builds it from the configuration of the
    prefix, the seed, the device kind, the number of threads and the library versions. While a run trains a
    prefix that is not there yet it holds that prefix's lock, so that jobs side by side wait for it instead of
    training it again; the lock of a killed process is free.

    Args:
      directory: holds one folder per key.
      keys: phase index -> content address of the plan up to and including that phase; only these are shared.
      plain: the indices of those phases up to which no method has a say; their states are taken over by runs
        of other methods.
      waiting: called about once a second while another process trains the prefix; may raise to give up.
    """

    def __init__(
        self,
        directory: Path,
        keys: dict[int, str],
        waiting: Callable[[str], None],
        plain: Container[int] = (),
    ):
        self.directory, self.keys, self.waiting, self.plain = directory, keys, waiting, plain
        self._lock: Any = None

    def _folder(self, key: str) -> Path:
        return self.directory / key

    def longest(self, after: int) -> tuple[int, Path] | None:
        """Index and folder of the longest stored prefix that ends at phase `after` or later; else None.

        When the next prefix is not there, its lock is taken (waiting if another process holds it), and the
        store is looked into once more.
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

    def content(self, index: int, method: Method) -> dict[str, Any]:
        """The stored state at the end of a phase, for a run with this method.

        Raises:
          CheckpointError: if the stored file cannot be used.
        """
        content = checkpoint.load(self._folder(self.keys[index]) / "checkpoint.pt")
        if index in self.plain:  # whoever trained it, its method had nothing to say yet
            content["method"] = method.state_dict()
        return content

    def put(self, index: int, rows: bytes, write: Callable[[Path], None]) -> None:
        """Store the end state of the phase, unless there is one; rows first, the checkpoint validates."""
        key = self.keys.get(index)
        if key is None:
            return
        folder = self._folder(key)
        if not (folder / "checkpoint.pt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            checkpoint.write_atomically(folder / "metrics.jsonl", lambda file: file.write(rows))
            write(folder / "checkpoint.pt")
        self.release()

    def release(self) -> None:
        """Let other processes train the prefix."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def copy_checkpoint(source: Path, path: Path) -> None:
    """Put a copy of a checkpoint at `path`, whole or not at all."""
    checkpoint.write_atomically(path, lambda file: file.write(source.read_bytes()))


def open_store(
    cfg: Mapping[str, Any],
    plan: Sequence[Phase],
    run: Run,
    method: Method,
    threads: int,
    display: Any,
    asked_to_stop: Callable[[], int],
) -> PrefixStore | None:
    """The store of shared prefixes, with the addresses of this run's; None when it is not to be used."""
    trainer = cfg["trainer"]
    if trainer["share"] == "none" or run.world > 1:
        return None
    said = set()

    def waiting(key: str) -> None:
        if key not in said:
            said.add(key)
            display.event(f"waiting: another job is training the shared phase {key}")
        if asked_to_stop():
            raise Interrupted(asked_to_stop())

    keys = prefix_keys(cfg, plan, run, method, threads)
    alone = leaves_training_alone(method)
    plain = [i for i in keys if alone and cycles(plan[: i + 1]) == 1]
    return PrefixStore(Path(trainer["store"]).absolute(), keys, waiting, plain)


def prefix_keys(
    cfg: Mapping[str, Any], plan: Sequence[Phase], run: Run, method: Method, threads: int
) -> dict[int, str]:
    """Phase index -> content address of all that can influence the run's state at that phase's end."""
    trainer = {
        k: cfg["trainer"][k]
        for k in (
            *("batch_size", "precision", "channels_last", "compile", "cuda_graph", "deterministic"),
            *("label_smoothing", "decay", "eval_every"),
        )
    }
    device = str(torch.cuda.get_device_name(run.device)) if run.device.type == "cuda" else "cpu"
    content: dict[str, Any] = {
        "versions": [__version__, torch.__version__, checkpoint.VERSION],
        "device": [device, threads],
        "seed": cfg["seed"],
        "trainer": trainer,
        "exclude": cfg["sparsity"]["exclude"],
        **{k: cfg[k] for k in ("model", "dataset", "optimizer", "schedule", "metrics")},
        "phases": [],
    }
    alone, keys = leaves_training_alone(method), {}
    for index, phase in enumerate(plan):
        pruned = cycles(plan[: index + 1]) > 1
        if callable(phase.length) or (pruned and cfg["trainer"]["share"] == "dense"):
            break
        content["phases"].append(
            [
                *(phase.name, phase.length, phase.sparsity, phase.weights, phase.shuffle),
                *(list(phase.snapshot), phase.keep, phase.patience, phase.peak),
                *((phase.reach,) if phase.within else ()),
                *(["loss"] if phase.monitor == "loss" else []),
                *(["hands on"] if phase.hands_on else []),
                *(["aside"] if phase.aside else []),
            ]
        )
        if index:  # later phases are trained by the retraining schedule, also those before any pruning
            content["retrain"] = cfg["retrain"]
        if pruned or not alone:
            content |= {k: cfg[k] for k in ("method", "companion", "criterion")}
            if pruned and cfg["trainer"]["shrink"]:
                content["shrink"] = True
        keys[index] = address(content)
    return keys
