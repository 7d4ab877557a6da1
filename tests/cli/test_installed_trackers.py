"""TensorBoard, Weights & Biases and MLflow where they are installed: read back, everything is there once."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.cli.watched import CHECKPOINTS, SINGLE, expected

REAL = ("tensorboard", "wandb", "mlflow")


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """Caches and settings of the libraries: those of nobody."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


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
