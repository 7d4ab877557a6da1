import contextlib
import io
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

PRUNE_RUN = Path(sys.executable).with_name("prune-run")
TINY = (
    *("model=lenet300", "dataset=synthetic", "trainer.threads=1", "trainer.quiet=true"),
    *("protocol.dense=6it", "protocol.retrain=3it", "sparsity.rounds=2"),
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line on stderr."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[0]


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """An empty folder: a run that forgot `out` cannot touch the checkout, and relative paths are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def tiny():
    """The overrides that `prune` adds, as Hydra writes them."""
    return [t.replace("true", "True") for t in TINY]


@pytest.fixture
def prune(monkeypatch):
    """Runs the command inside this process, as cli.main does; importing torch takes seconds."""

    def run(*arguments: str, tiny: bool = True) -> Outcome:
        from hydra.core.global_hydra import GlobalHydra

        from prunebench.launch import launch

        GlobalHydra.instance().clear()
        typed = [*(TINY if tiny else ()), *arguments]
        monkeypatch.setattr(sys, "argv", ["prune-run", *typed])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = launch(typed)
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def prune_process():
    """Runs the installed command in a process of its own."""

    def run(*arguments: str, tiny: bool = True, **options) -> Outcome:
        typed = [str(PRUNE_RUN), *(TINY if tiny else ()), *arguments]
        done = subprocess.run(typed, capture_output=True, text=True, timeout=120, **options)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def started():
    """Starts the installed command and gives the process; what still runs at the end is killed."""
    processes = []

    def start(*arguments: str, **options) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([str(PRUNE_RUN), *TINY, *arguments], **(pipes | options))
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def runs():
    """Result directories in a folder of the working directory, sorted."""
    return lambda out="runs": sorted(p for p in Path(out).glob("*-*-*") if p.is_dir())


@pytest.fixture
def result():
    """The content of a run's result.json without times, and of its metrics.jsonl without seconds."""

    def read(directory: Path) -> tuple[dict, list[dict]]:
        content = json.loads((directory / "result.json").read_text())
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return _timeless(content), _timeless(rows)

    return read


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "time")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def until():
    """Waits until a condition holds."""

    def wait(condition, *, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)

    return wait


@pytest.fixture
def crash(monkeypatch):
    """Ends the next run right after trackers were told its n-th row, without a checkpoint of that moment."""

    def at(number):
        from prunebench.trackers.session import Session

        seen, tell = [], Session.row

        def row(self, row):
            tell(self, row)
            seen.append(row)
            if len(seen) == number:
                monkeypatch.setattr(Session, "row", tell)
                raise KeyboardInterrupt

        monkeypatch.setattr(Session, "row", row)

    return at
