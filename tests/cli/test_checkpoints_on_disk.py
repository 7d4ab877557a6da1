"""Unusable checkpoints, disks that fill up, trainings that diverge: what is kept, and what is said."""

import re
import resource
import shutil

import pytest
import torch

from prunebench.core import checkpoint


@pytest.fixture
def stopped(prune, runs, monkeypatch):
    """Directory of a run that has stopped after dense training and one round, with a checkpoint."""

    def run(*arguments: str):
        from prunebench.record import Recorder

        def end(self, *_):
            raise OSError(28, "No space left on device", str(self.directory / "result.json"))

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "finish", end)
            assert prune(*arguments).code == 1
        return runs()[-1]

    return run


def test_a_truncated_checkpoint_is_named_with_the_way_out(prune, stopped):
    path = stopped() / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    outcome = prune()
    assert outcome.code == 1
    assert f"{path}: damaged" in outcome.line and f"delete {path.parent}" in outcome.line
    assert path.stat().st_size == 1000


def test_a_checkpoint_of_another_version_is_named_with_both_versions(prune, stopped):
    path = stopped() / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    outcome = prune()
    assert outcome.code == 1
    assert f"{path}: was written in checkpoint format 99" in outcome.line
    assert f"reads format {checkpoint.VERSION}" in outcome.line


def test_a_checkpoint_of_another_network_is_refused(prune, stopped, runs):
    wide = stopped()
    narrow = stopped("model.widths={fc1:20,fc2:10}")
    narrow = next(d for d in runs() if d != wide)
    shutil.copy(narrow / "checkpoint.pt", wide / "checkpoint.pt")
    shutil.copy(narrow / "metrics.jsonl", wide / "metrics.jsonl")
    outcome = prune()
    assert outcome.code == 1
    assert f"{wide / 'checkpoint.pt'}: does not fit this network" in outcome.line
    assert f"delete {wide}" in outcome.line


def test_rows_that_are_missing_are_noticed(prune, stopped):
    directory = stopped()
    (directory / "metrics.jsonl").write_text("")
    outcome = prune()
    assert outcome.code == 1
    assert f"{directory / 'metrics.jsonl'}: is shorter" in outcome.line


def test_a_damaged_result_is_written_again_from_the_checkpoint(prune, runs, result):
    assert prune().code == 0
    (directory,) = runs()
    before = result(directory)
    text = (directory / "result.json").read_text()
    (directory / "result.json").write_text(text[:200])
    assert prune().code == 0
    assert result(directory) == before


def test_a_run_goes_on_when_a_full_disk_has_room_again(prune, started, runs, result, until):
    process = started("protocol.dense=400it", "trainer.checkpoint_every=1it")
    until(lambda: process.poll() is not None or (runs() and (runs()[0] / "checkpoint.pt").exists()))
    # No file may grow beyond this any more, as on a full disk: writes fail in the middle of a checkpoint.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    _, err = process.communicate(timeout=60)
    (directory,) = runs()
    assert process.returncode == 1
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert "the last good checkpoint is kept" in err and "make room" in err and str(directory) in err
    assert not list(directory.glob(".*.tmp"))
    step = checkpoint.load(directory / "checkpoint.pt")["run"]["clock"]["total"]
    assert 0 < step < 400
    assert prune("protocol.dense=400it").code == 0
    assert prune("protocol.dense=400it", "out=whole").code == 0
    assert result(directory) == result(runs("whole")[0])


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(prune, runs):
    later = ("retrain=constant", "retrain.factor=1e30")  # dense training goes well, the first round does not
    arguments = (*later, "protocol.retrain=4it", "trainer.store=store")
    outcome = prune(*arguments)
    assert outcome.code == 1
    assert "training diverged: the loss is nan in phase round-01, step 2 of 4 (8 in all)" in outcome.line
    assert "the checkpoint of step 6 is kept; try a lower optimizer.lr (now 0.1)" in outcome.line
    kept = checkpoint.load(runs()[0] / "checkpoint.pt")
    assert kept["run"]["clock"]["total"] == 6
    assert all(bool(t.isfinite().all()) for t in kept["run"]["model"].values())
    again = prune(*arguments)
    assert (again.code, again.line) == (outcome.code, outcome.line)


@pytest.mark.parametrize("method", ["method=platon", "method=dpf"])
def test_scores_that_are_not_numbers_are_a_training_that_diverged(prune, method):
    options = ("model=lenet300", "dataset=synthetic", "trainer.threads=1", "protocol.dense=20it")
    options += ("method.interval=2",) if method == "method=dpf" else ()
    outcome = prune(method, *options, "optimizer.lr=1e30", tiny=False)
    assert outcome.code == 1
    seen = re.search(
        r"training diverged: (a score|the loss) is nan in phase train, step \d+ of 20", outcome.line
    )
    assert seen  # the loss, if the display looked at it before the scores were ranked


def test_a_network_that_diverges_at_the_end_of_a_phase_is_neither_kept_nor_shared(prune, runs, tmp_path):
    outcome = prune("protocol.dense=1it", "optimizer.lr=1e30", "dataset.validation=0")
    assert outcome.code == 1
    assert "training diverged: the test loss is nan in phase dense, step 1 of 1" in outcome.line
    assert not (runs()[0] / "result.json").exists()
    assert not list(tmp_path.rglob("checkpoint.pt"))
