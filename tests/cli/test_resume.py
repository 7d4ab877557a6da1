import random
import signal
import time
from pathlib import Path

import pytest

from prunebench.core import checkpoint

LONGER = ("protocol.dense=200it", "protocol.retrain=50it")
WRITING = "trainer.checkpoint_every=1it"  # a checkpoint after every step: a kill nearly always hits a write


@pytest.fixture
def clock():
    """The clock in a run's last checkpoint."""
    return lambda directory: checkpoint.load(directory / "checkpoint.pt")["run"]["clock"]


@pytest.fixture
def training(started, runs, until):
    """Starts a run that is the only one, and gives its process when it has written a checkpoint."""

    def written() -> int:
        path = Path("runs") if not runs() else runs()[0] / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.is_file() else 0

    def start(*arguments: str):
        before = written()
        process = started(*LONGER, WRITING, *arguments)
        until(lambda: written() > before or process.poll() is not None)
        return process

    return start


@pytest.fixture
def equals_uninterrupted(prune, runs, result):
    """Whether the only run is, times aside, what the same command gives without interruption."""

    def compare() -> bool:
        assert prune(*LONGER, "out=whole").code == 0
        return result(runs()[0]) == result(runs("whole")[0])

    return compare


def test_the_same_command_again_says_that_it_is_done(prune, runs):
    assert prune("trainer.quiet=false").code == 0
    written = {p: p.stat().st_mtime_ns for p in runs()[0].iterdir()}
    again = prune("trainer.quiet=false")
    assert (again.code, again.err) == (0, "")
    assert again.out == f"already done: {runs()[0]} (delete it to run again)\n"
    assert {p: p.stat().st_mtime_ns for p in runs()[0].iterdir()} == written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_from_which_it_goes_on(
    number, prune, training, runs, clock, equals_uninterrupted
):
    process = training()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == "prune-run: stopped, with a checkpoint; type the same command to go on"
    assert "Traceback" not in out + err
    stopped_at = clock(runs()[0])["total"]
    assert 0 < stopped_at < 300
    again = prune(*LONGER, "trainer.quiet=false")
    assert again.code == 0, again.err
    assert "resumed at phase" in again.out and f"({stopped_at} in all)" in again.out
    assert equals_uninterrupted()


def test_a_second_process_in_the_same_directory_leaves_and_a_second_signal_ends_the_first(
    prune, training, runs
):
    process = training("protocol.dense=100000it")
    outcome = prune(*LONGER, "protocol.dense=100000it")
    assert outcome.code == 2
    assert outcome.line == (
        f"prune-run: {runs()[0]}: another process is running this configuration; wait for it or stop it"
    )
    assert process.poll() is None
    # Two signals before the next step ends: a stopped process takes them together when it goes on.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 2
    assert process.returncode in (130, 143)
    assert "stopped, with a checkpoint" not in err


def test_a_run_that_is_killed_three_times_equals_an_uninterrupted_one(
    prune, training, runs, clock, equals_uninterrupted
):
    moments, steps = random.Random(0), [0]
    for _ in range(3):
        process = training()
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run had ended before it was killed"
        steps.append(clock(runs()[0])["total"])
    assert sorted(set(steps)) == steps, "each time it had gone on from where it was"
    assert prune(*LONGER).code == 0
    assert equals_uninterrupted()
    assert not list(runs()[0].glob(".*.tmp")), "what a kill left in the middle of a write is cleared away"


def test_what_only_says_how_to_compute_leads_to_the_same_directory(prune, runs):

    assert prune("trainer.checkpoint_every=1it", "trainer.checkpoint_seconds=5").code == 0
    assert "already done" in prune("trainer.quiet=false").out
    assert prune("trainer.label_smoothing=0.1").code == 0
    assert len(runs()) == 2
