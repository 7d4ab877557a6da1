"""Trackers from the command line: they change nothing, go on where the run goes on, and cannot fail it.

Crashes are played: a KeyboardInterrupt at some row leaves the run without a checkpoint of that moment.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from prunebench import experiment, oracle
from prunebench.trackers.points import SPEED, points
from prunebench.trackers.session import Session

REAL = ("tensorboard", "wandb", "mlflow")
CHECKPOINTS = "trainer.checkpoint_every=2it"
SINGLE = {"phase/seconds", SPEED}  # wall times: another one each time


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Caches and settings of the libraries: those of nobody."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


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


@pytest.fixture
def crash(monkeypatch):
    """Ends the next run at its n-th row, after that was told."""

    def at(number):
        seen, tell = [], Session.row

        def row(self, row):
            tell(self, row)
            seen.append(row)
            if len(seen) == number:
                monkeypatch.setattr(Session, "row", tell)
                raise KeyboardInterrupt

        monkeypatch.setattr(Session, "row", row)

    return at


def expected(directory):
    """Name -> points, from the rows of a run."""
    found = defaultdict(list)
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in points(row).items():
            found[name].append((row["total"], value))
    return found


def in_tensorboard(directory):
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()[SCALARS]}


def in_mlflow(directory):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('runs/.mlflow/mlflow.db').absolute()}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "prunebench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == directory.name and run.info.status == "FINISHED"
    assert run.data.params["model"] == "lenet300" and run.data.tags["seed"] == "0"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "result.json", "curve.png"} <= files
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: sorted(((m.step, m.value) for m in found), key=lambda p: p[0])
        for name, found in histories.items()
    }


def records(path):
    """Records of an offline file: blocks of 32 KiB of pieces, each with 7 bytes of checksum, length, kind."""
    from wandb.proto import wandb_internal_pb2

    data, place, text = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        text = (b"" if kind in (1, 2) else text) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(text)
            yield record


def end_of_process(name):
    """What wandb does when a process ends: it waits for its service, which closes the files."""
    if name == "wandb":
        import wandb

        wandb.teardown()


def in_wandb(directory):
    end_of_process("wandb")
    (file,) = (directory / "wandb").glob("offline-run-*/*.wandb")
    found = defaultdict(list)
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert record.run.run_id == record.run.display_name == directory.name
            assert record.run.run_group == "imp-lenet300-synthetic" and "seed 0" in record.run.tags
        items = {"history": record.history.item, "summary": record.summary.update}.get(kind, ())
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        for name, value in row.items():
            if (kind == "history") == (not name.startswith("final/")) and not name.startswith(("_", "curve")):
                found[name].append((row.get("_step", 0), value))
    return found


READ = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


def assert_whole(got, directory, name):
    """Every point of the run is there once, and the final numbers."""
    wanted = expected(directory)
    if name == "wandb":  # keeps the last of several points of a curve at one step
        wanted = {curve: list(dict(found).items()) for curve, found in wanted.items()}
    assert set(wanted) <= set(got)
    for curve in set(wanted) - SINGLE:
        steps, values = zip(*wanted[curve])
        assert [step for step, _ in got[curve]] == list(steps), curve
        assert [value for _, value in got[curve]] == pytest.approx(values, rel=1e-6), curve  # float32
    final = json.loads((directory / "result.json").read_text())["final"]
    assert got["final/top1"][-1][1] == pytest.approx(final["test"]["top1"], rel=1e-6)
    assert got["final/compression"][-1][1] == pytest.approx(final["compression"], rel=1e-6)


# The logic, with a tracker that needs no package


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


# The real ones, where they are installed


@pytest.mark.parametrize("name", REAL)
def test_a_real_tracker_has_the_whole_run_and_changes_nothing(prune, runs, result, name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    assert prune("out=without").code == 0
    outcome = prune(f"tracker={name}")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert_whole(READ[name](runs()[0]), runs()[0], name)
    assert result(runs()[0]) == result(runs("without")[0])
    assert runs()[0].name == runs("without")[0].name


@pytest.mark.parametrize("name", REAL)
def test_a_real_tracker_goes_on_with_its_run_after_an_interruption(prune, runs, crash, name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    crash(8)
    assert prune(f"tracker={name}", CHECKPOINTS, "trainer.share=none").code == 130
    end_of_process(name)
    assert prune(f"tracker={name}", CHECKPOINTS, "trainer.share=none").code == 0
    assert_whole(READ[name](runs()[0]), runs()[0], name)


def test_mlflow_that_cannot_be_reached_costs_one_line(prune):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    outcome = prune("tracker=mlflow", "tracker.mlflow.uri=sqlite:////proc/nowhere/mlflow.db")
    assert outcome.code == 0
    assert "prune-run: tracker.mlflow is off, the run goes on (" in outcome.line


def test_tensorboard_writes_where_it_is_told(prune, runs):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert prune("tracker=tensorboard", "tracker.tensorboard.folder=boards").code == 0
    assert list(Path("boards", runs()[0].name).glob("events.*"))


def test_wandb_online_without_a_key_is_one_line_and_asks_nothing(prune, runs):
    pytest.importorskip("wandb", reason="wandb is not installed")
    outcome = prune("tracker=wandb", "tracker.wandb.mode=online")
    assert outcome.code == 2
    assert "tracker.wandb.mode=online: not logged in" in outcome.line
    assert runs() == []
