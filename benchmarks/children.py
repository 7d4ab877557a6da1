"""What has to be measured in a process of its own: `python -m benchmarks.children NAME ARGUMENT ...`."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def child(name: str, *arguments: str, **environment: str) -> str:
    """Run one of the functions below in a fresh process; the last line that it printed."""
    command = [sys.executable, "-m", "benchmarks.children", name, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.strip().splitlines()[-1]


def seconds_of(name: str, *arguments: str, **environment: str) -> tuple[float, str]:
    """Wall time of such a process from its start to its end, and the last line that it printed."""
    start = time.perf_counter()
    text = child(name, *arguments, **environment)
    return time.perf_counter() - start, text


def command_seconds(command: list[str], **environment: str) -> float:
    """Wall time of any command."""
    start = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | environment
    )
    return time.perf_counter() - start


def launch(arguments: list[str]) -> int:
    """`prune-run ARGUMENTS` in this process."""
    from prunebench.launch import launch

    sys.argv = ["prune-run", *arguments]
    return launch(arguments)


def watch_steps(after: Callable[[Any, float, float], None]) -> None:
    """Call `after(run, begin, end)` when a training step is done, before its clock ticks."""
    from prunebench.core import loop

    step = loop.train_step

    def watched(phase: Any, run: Any, method: Any) -> Any:
        begin = time.perf_counter()
        loss = step(phase, run, method)
        after(run, begin, time.perf_counter())
        return loss

    loop.train_step = watched


def run(*arguments: str) -> None:
    """A whole run."""
    sys.exit(launch(list(arguments)))


def stop(number: str, *arguments: str) -> None:
    """A run that ends, as if killed, when this many steps are done; prints the steps of the run so far."""
    left = int(number)

    def count(run: Any, begin: float, end: float) -> None:
        nonlocal left
        left -= 1
        if not left:
            print(f"\nstopped after {run.clock.total + 1}", flush=True)
            os._exit(0)

    watch_steps(count)
    sys.exit(launch(list(arguments)) or 1)


def modules(*arguments: str) -> None:
    """`prune-run ARGUMENTS`, which must end at once; prints "torch" if that was imported."""
    from prunebench import cli

    sys.argv = ["prune-run", *arguments]
    try:
        cli.main()
    except SystemExit:
        print("torch" if "torch" in sys.modules else "light")


def gaps(*arguments: str) -> None:
    """A sweep in this process; prints seconds between the last step of a job and the first of the next."""
    last: list[tuple[Any, float]] = []
    found: list[float] = []

    def note(run: Any, begin: float, end: float) -> None:
        if last and last[0][0] is not run:
            found.append(begin - last[0][1])
        last[:] = [(run, end)]

    watch_steps(note)
    code = launch(list(arguments))
    print("\n" + json.dumps(found))
    sys.exit(code)


def share(*arguments: str) -> None:
    """A run; prints the seconds of checkpoints and rows, of evaluation, and of all of `fit`."""
    from prunebench import experiment, record
    from prunebench.metrics.evaluation import evaluate

    spent = {"record": 0.0, "evaluate": 0.0, "fit": 0.0}
    depth = 0

    def timed(function: Callable, key: str) -> Callable:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal depth
            outer, start = depth, time.perf_counter()
            depth += key == "record"
            try:
                return function(*args, **options)
            finally:
                passed = time.perf_counter() - start
                if key == "record":
                    depth -= 1
                if key != "record" or not outer:
                    spent[key] += passed

        return wrapper

    for name in ("pruned", "entered", "after_step", "settled", "phase_end", "between", "finish"):
        setattr(record.Recorder, name, timed(getattr(record.Recorder, name), "record"))
    record.evaluate = timed(evaluate, "evaluate")
    experiment.fit = timed(experiment.fit, "fit")
    code = launch(list(arguments))
    print("\n" + json.dumps(spent))
    sys.exit(code)


def memory(prior: str) -> None:
    """A pruning event on a ViT-B/16; prints its peak memory beyond what was in use, over the weights'."""
    import torch

    from benchmarks.parts import synthetic
    from benchmarks.pruning import Event, dense_weights

    torch.set_num_threads(1)
    p = synthetic(
        *("timm", "model.name=vit_base_patch16_224", "dataset.channels=3", "dataset.size=224"),
        *("dataset.pad=0", "dataset.num_classes=10"),
        images=10,
        batch_size=8,
    )
    event = Event(p, dense_weights(p), prior=float(prior))
    event.prepare()
    weights = sum(4 * m.numel() for m in p.run.masks.values())
    before = _reset_peak()
    p.method.prune(p.run, event.sparsity)
    print((_status("VmHWM") - before) / weights)


def report(*arguments: str) -> None:
    """`prune-report ARGUMENTS`; prints the peak of this process's memory in MB."""
    from prunebench.report.cli import main

    code = main(list(arguments))
    print(f"\n{_status('VmHWM') / 1e6}")
    sys.exit(code)


def _reset_peak() -> int:
    """Give back what is free, and forget the peak of this process's memory; what is in use now, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def narrow() -> None:
    """Widths whose gradients are wrong in channels_last; the process dies where memory is corrupted."""
    from benchmarks.structured import unsafe_widths

    print(unsafe_widths())


def steps(kept: str, model: str) -> None:
    """For every line read, times a dense CIFAR step of batch 128 on two threads, in seconds.

    Args:
      kept: "kept" where the C library keeps freed memory as `prune-run` has it, "usual" for its own ways.
      model: the network.
    """
    import torch

    from benchmarks.parts import CIFAR, plain_step, sgd, synthetic
    from prunebench.machine import keep_freed_memory

    torch.set_num_threads(2)
    if kept == "kept":
        keep_freed_memory()
    p = synthetic(model, *CIFAR, images=128)
    step = plain_step(p.run.model, sgd(p.run.model, fused=True), p.run.data.batch(0, 0))
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(2):
            step()
        print((time.perf_counter() - start) / 2, flush=True)


def work(steps: str) -> None:
    """A worker of a sweep: for every line read, trains this many steps and prints the seconds; one thread."""
    import torch

    from benchmarks.parts import epochs_of, synthetic

    torch.set_num_threads(1)
    p = synthetic("lenet300", "dataset.channels=1", "dataset.size=28", images=int(steps) * 128)
    with tempfile.TemporaryDirectory() as folder:
        epoch = epochs_of(p, Path(folder), 0.9)
        epoch()
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            epoch()
            print(time.perf_counter() - start, flush=True)


class Worker:
    """A process of one of the functions above that answers every line it is sent with a number."""

    def __init__(self, name: str, *arguments: str):
        command = [sys.executable, "-m", "benchmarks.children", name, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        while self._line() != "ready":
            pass

    def ask(self) -> None:
        """Let it begin."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> float:
        """Wait for its number."""
        return float(self._line())

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self.process.wait(), self.process.args)
        return line.strip()


FUNCTIONS = {f.__name__: f for f in (run, stop, modules, gaps, share, memory, report, narrow, steps, work)}

if __name__ == "__main__":
    FUNCTIONS[sys.argv[1]](*sys.argv[2:])
