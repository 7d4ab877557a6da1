"""Trackers from the command line: they change nothing, go on where the run goes on, and cannot fail it."""

import subprocess
import sys
from collections import defaultdict

import pytest

from prunebench import experiment, oracle
from prunebench.trackers.points import SPEED
from tests.cli.watched import CHECKPOINTS, SINGLE, expected

REAL = ("tensorboard", "wandb", "mlflow")


class Fake:
    """Holds what it is told, over several runs of the command."""

    def __init__(self, bad=""):
        self.bad, self.points, self.calls, self.about, self.final = bad, defaultdict(list), [], None, {}

    def _note(self, verb):
        self.calls.append(verb)
        if self.bad == verb:
            raise OSError("no space left on device")

    def check(self):
        self._note("check")

    def start(self, about, step):
        self._note("start")
        self.about = about
        return {name: len(found) for name, found in self.points.items()}

    def log(self, values, step):
        self._note("log")
        for name, value in values.items():
            self.points[name].append((step, value))

    def sync(self):
        self._note("sync")

    def finish(self, summary, files):
        self._note("finish")
        self.final, self.files = dict(summary), [path.name for path in files]

    def close(self, done):
        self._note("close")
        self.done = done


@pytest.fixture
def fake(monkeypatch):
    """The tracker of every run from now on."""

    def use(bad=""):
        tracker = Fake(bad)
        monkeypatch.setattr(experiment, "make_trackers", lambda cfg, instantiate: {"fake": tracker})
        return tracker

    return use


def test_a_tracker_is_told_every_row_the_summary_and_the_files(prune, runs, fake):
    tracker = fake()
    assert prune("metrics=[spread]").code == 0
    (directory,) = runs()
    wanted = expected(directory)
    assert {name: found for name, found in tracker.points.items() if name != SPEED} == wanted
    assert [step for step, _ in tracker.points[SPEED]] == [step for step, _ in wanted["train/loss"]]
    assert all(value > 0 for _, value in tracker.points[SPEED])
    final = ("top1", "sparsity", "compression", "speedup", "change")
    assert set(tracker.final) == {f"final/{key}" for key in final}
    assert {"config.yaml", "result.json", "curve.png"} <= set(tracker.files)
    assert tracker.about.name == directory.name and tracker.about.parameters["model"] == "lenet300"
    assert tracker.calls[-1] == "close" and tracker.done


def test_a_run_with_a_tracker_equals_one_without(prune, runs, result, fake):
    assert prune("out=without").code == 0
    fake()
    assert prune().code == 0
    assert result(runs()[0]) == result(runs("without")[0])
    for name in ("final.safetensors", "masks.safetensors"):
        assert (runs()[0] / name).read_bytes() == (runs("without")[0] / name).read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 11, 13])
def test_a_tracker_of_an_interrupted_run_has_every_point_once(prune, runs, fake, crash, number):
    tracker = fake()
    crash(number)
    assert prune(CHECKPOINTS, "trainer.share=none").code == 130
    assert not tracker.done
    assert prune(CHECKPOINTS, "trainer.share=none").code == 0
    assert {k: v for k, v in tracker.points.items() if k not in SINGLE} == {
        k: v for k, v in expected(runs()[0]).items() if k not in SINGLE
    }
    assert tracker.done


def test_a_tracker_that_comes_late_is_told_what_was_before(prune, runs, fake, crash):
    fake()
    crash(8)
    assert prune(CHECKPOINTS).code == 130
    late = fake()
    assert prune(CHECKPOINTS).code == 0
    assert {k: v for k, v in late.points.items() if k != SPEED} == expected(runs()[0])


def test_a_tracker_is_told_what_comes_from_the_shared_store(prune, runs, fake):
    assert prune("sparsity.target=0.5").code == 0
    tracker = fake()
    before = set(runs())
    assert prune("sparsity.target=0.8", "trainer.quiet=false").out.count("shared store") >= 1
    (directory,) = set(runs()) - before
    assert {k: v for k, v in tracker.points.items() if k != SPEED} == expected(directory)


@pytest.mark.parametrize("bad", ["start", "log", "sync", "finish", "close"])
def test_a_failing_tracker_costs_one_line_and_not_the_run(prune, runs, result, fake, bad):
    assert prune("out=without").code == 0
    tracker = fake(bad)
    outcome = prune()
    assert outcome.code == 0
    off = "prune-run: tracker.fake is off, the run goes on (OSError: no space left on device); leave"
    assert outcome.line.startswith(off)
    assert tracker.calls.count(bad) == 1 and tracker.calls[-1] == bad
    assert result(runs()[0]) == result(runs("without")[0])


def test_of_an_oracle_only_the_run_itself_is_tracked(prune, runs, monkeypatch):
    tracker = Fake()
    for module in (experiment, oracle):
        monkeypatch.setattr(
            module, "make_trackers", lambda cfg, instantiate: {"fake": tracker} if cfg["tracker"] else {}
        )
    search = ("protocol=oracle", "schedule=warmup_step", "protocol.grid=[0.05,0.2]")
    assert prune(*search, "tracker=[tensorboard]").code == 0
    assert tracker.calls.count("start") == 1 and tracker.about.directory.name == runs()[0].name
    assert {k: v for k, v in tracker.points.items() if k != SPEED} == expected(runs()[0])


# What is typed


MISTAKES = {  # typed -> what the one line must say
    "tracker=[tensorbord]": ("tracker=tensorbord: no such tracker", "did you mean 'tensorboard'"),
    "tracker=null": ("tracker=null: no such tracker", "mlflow, tensorboard, wandb"),
    "tracker=wandb tracker.wandb.projct=x": ("tracker.wandb.projct", "did you mean 'tracker.wandb.project'"),
    "tracker=wandb tracker.wandb.mode=on": ("tracker.wandb.mode=on: must be one of offline, online",),
    "tracker=tensorboard tracker.tensorboard.folder=3": ("tracker.tensorboard.folder=3: must be text",),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_before_training(prune, runs, typed):
    outcome = prune(*typed.split())
    assert outcome.code == 2
    assert all(part in outcome.line for part in MISTAKES[typed])
    assert runs() == []


@pytest.mark.parametrize("protocol", ["iterative", "oracle"])
@pytest.mark.parametrize("name", REAL)
def test_a_missing_package_is_one_line_before_training(prune, tmp_path, monkeypatch, name, protocol):
    monkeypatch.setitem(sys.modules, name, None)
    outcome = prune(f"tracker={name}", f"protocol={protocol}", "schedule=warmup_step")
    assert outcome.code == 2
    assert f"tracker={name}: " in outcome.line and f'pip install -e ".[{name}]"' in outcome.line
    assert [str(p) for p in tmp_path.rglob("*") if "runs" in str(p)] == []


def test_no_tracker_is_imported_by_a_run_without_one():
    code = """
import sys
from prunebench.launch import launch
sys.argv[1:] = ["dataset=synthetic", "protocol.dense=2it", "protocol.retrain=1it", "sparsity.rounds=1"]
sys.argv.append("trainer.quiet=true")
print(launch(sys.argv[1:]), sorted({"tensorboard", "wandb", "mlflow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0 []", done.stderr
