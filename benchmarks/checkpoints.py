"""P20, P21: size and time of a checkpoint, and what resuming costs."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.children import child, seconds_of
from benchmarks.parts import CIFAR, Parts, prune, synthetic
from benchmarks.timing import Row, alternate, at_most, clocked, control
from prunebench.core import checkpoint
from prunebench.core.loop import train_step

STOPPED = ("model=resnet18", "method=one_shot", "protocol.dense=1ep", "protocol.retrain=1ep")


def measure(rounds: Callable[[int], int]) -> Iterator[Row]:
    """Rows of the group."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _packed(Path(folder), rounds(30))
        yield from _resume(Path(folder), rounds(7))
        yield from _exact(Path(folder))


def _packed(folder: Path, rounds: int) -> Iterator[Row]:
    p = synthetic("resnet18", *CIFAR, images=16, batch_size=8)
    prune(p, 0.9)
    p.run.optimizer = p.make_optimizer(p.run, p.method)
    p.run.clock.steps = 2
    train_step(p.plan[0], p.run, p.method)  # momentum
    p.run.clock.tick()
    ours, whole = folder / "packed.pt", folder / "whole.pt"
    seconds = alternate(
        {
            "ours": clocked(lambda: checkpoint.save(ours, run=p.run, method=p.method, extra={})),
            "again": clocked(lambda: checkpoint.save(ours, run=p.run, method=p.method, extra={})),
            "whole": clocked(lambda: _save_whole(whole, p)),
            "load": clocked(lambda: checkpoint.load(ours)),
        },
        rounds,
    )
    yield control("our checkpoint", seconds, "ours", "again")
    size = ours.stat().st_size / whole.stat().st_size
    what = "ours / torch.save of weights, momentum, masks: resnet18, 90 %"
    yield at_most("P20", f"size, {what}", size, 0.12, 0.08)
    yield at_most("P20", f"time, {what}", seconds["ours"] / seconds["whole"], 1, 0.4)
    yield at_most("P21", "time to read the checkpoint of resnet18", seconds["load"], 0.5, 0.2, unit="s")
    wrong = _differences(p, checkpoint.load(ours)["run"])
    yield at_most("P20", "tensors that come back changed", wrong, 0, 0, unit="")


def _save_whole(path: Path, p: Parts) -> None:
    content = {"model": p.run.model.state_dict(), "optimizer": p.run.optimizer.state_dict()}
    content["masks"] = {n: m.float() for n, m in p.run.masks.items()}
    checkpoint.write_atomically(path, lambda file: torch.save(content, file))


def _differences(p: Parts, loaded: dict) -> int:
    pairs = [(t, loaded["model"][n]) for n, t in p.run.model.state_dict().items()]
    pairs += [(m, loaded["masks"]["masks"][n]) for n, m in p.run.masks.items()]
    for index, values in p.run.optimizer.state_dict()["state"].items():
        found = loaded["optimizer"]["state"][index]
        pairs += [(v, found[k]) for k, v in values.items() if isinstance(v, torch.Tensor)]
    return sum(not torch.equal(ours, theirs) for ours, theirs in pairs)


def _resume(folder: Path, rounds: int) -> Iterator[Row]:
    """A run stopped in the middle of a phase goes on, against the same run started afresh."""
    stopped = [*STOPPED, "trainer.threads=1", f"out={folder / 'stopped'}", "trainer.share=none"]
    child("stop", "3", *stopped, "trainer.checkpoint_every=2it")
    done = []

    def resumed() -> float:
        seconds, text = seconds_of("stop", "1", *stopped)
        done.append(int(text.split()[-1]))
        return seconds

    def fresh() -> float:
        with tempfile.TemporaryDirectory() as new:
            return seconds_of("stop", "1", *stopped[:-2], f"out={new}", "trainer.share=none")[0]

    seconds = alternate({"resumed": resumed, "fresh": fresh, "again": fresh}, rounds)
    yield control("fresh start to the first step", seconds, "fresh", "again")
    extra = seconds["resumed"] - seconds["fresh"]
    yield at_most("P21", "resumed less fresh start, to the first step: resnet18", extra, 0.5, 0.2, unit="s")
    replayed = abs(
        np.asarray(done) - 3
    ).max()  # the checkpoint was written after two steps, this is the third
    yield at_most("P21", "steps done again after the checkpoint", replayed, 0, 0, unit="")


def _exact(folder: Path) -> Iterator[Row]:
    """Final weights of a run that was killed twice, against an uninterrupted one."""
    small = ["method=one_shot", "protocol.dense=2ep", "protocol.retrain=2ep", "trainer.share=none"]
    small += ["trainer.checkpoint_every=4it", "trainer.threads=1"]
    child("run", *small, f"out={folder / 'whole'}")
    for _ in range(2):
        child("stop", "33", *small, f"out={folder / 'killed'}")
    child("run", *small, f"out={folder / 'killed'}")
    whole, killed = (next((folder / f).glob("*/final.safetensors")).read_bytes() for f in ("whole", "killed"))
    wrong = sum(a != b for a, b in zip(whole, killed)) + abs(len(whole) - len(killed))
    what = "bytes of the final weights that differ after two kills"
    yield at_most("P21", what, wrong, 0, 0, unit="")
