"""What trackers are told: names, points left out after an interruption, and what becomes of a failing one."""

import pytest

from prunebench.trackers.mlflow import local_database
from prunebench.trackers.points import points, summary
from prunebench.trackers.session import Guarded, Session, about_run
from prunebench.trackers.tracker import About, flat, need

PLACE = {"phase": "round-01", "cycle": 1, "step": 3, "total": 9, "epoch": 0.75, "sparsity": 0.5}


class Fake:
    """Remembers points; holds some from the start, and fails in the verb `bad`."""

    def __init__(self, *, held=None, bad=""):
        self.held, self.bad, self.logged, self.verbs = held or {}, bad, [], []

    def _note(self, verb):
        self.verbs.append(verb)
        if verb == self.bad:
            raise RuntimeError(f"{verb} is broken\nsecond line")

    def start(self, about, step):
        self._note("start")
        return self.held

    def log(self, values, step):
        self._note("log")
        self.logged += [(name, step, value) for name, value in values.items()]

    def sync(self):
        self._note("sync")

    def finish(self, summary, files):
        self._note("finish")

    def close(self, done):
        self._note(f"close {done}")


def train(total, loss):
    return {"kind": "train", **PLACE, "total": total, "loss": loss, "lr": 0.1}


@pytest.fixture
def session(tmp_path):
    def make(tracker, step=0):
        made = Session({"fake": tracker}, About(tmp_path, {}, {}, ""), batch_size=10, step=step)
        made.start()
        return made

    return make


def test_names_of_points_are_stable():
    measured = {"top1": 0.5, "top5": 1.0, "loss": 2.0}
    three = {"top1", "top5", "loss"}
    event = {"kind": "prune", **PLACE, "split": "test", "when": "pruned", "asked": 0.5, **measured}
    assert set(points(train(9, 1.0))) == {"sparsity", "train/loss", "train/lr"}
    for split in ("valid", "test"):
        row = {"kind": "eval", **PLACE, "split": split, "when": "epoch", **measured}
        assert set(points(row)) == {f"{split}/{key}" for key in three}
    assert set(points(event)) == {"sparsity", "pruned/asked", *(f"pruned/{key}" for key in three)}


def test_of_a_metric_all_numbers_are_points_and_lists_are_not():
    row = {"kind": "metric", **PLACE, "metric": "spread", "when": "end", "a": 1, "b": {"c": 2.5, "d": None}}
    assert points({**row, "layers": [{"x": 1}], "traced": True}) == {"spread/a": 1, "spread/b/c": 2.5}


def test_of_a_phase_everything_is_a_point_that_has_no_curve_of_its_own():
    round_ = {"phase": "round-01", "kept": 5, "test": {"top1": 1}, "pruned": None, "valid": {"top1": 0.5}}
    assert points({"kind": "phase", **PLACE, "round": round_}) == {"phase/kept": 5, "phase/valid/top1": 0.5}


def test_the_summary_leaves_out_the_change_of_a_run_without_control():
    final = {"test": {"top1": 0.9}, "sparsity": 0.5, "compression": 2.0, "speedup": 3.0, "delta": None}
    assert summary({"final": final}) == {
        "final/top1": 0.9,
        "final/sparsity": 0.5,
        "final/compression": 2.0,
        "final/speedup": 3.0,
    }


def test_a_configuration_is_flattened_without_targets():
    assert flat({"a": {"_target_": "x", "b": 1, "c": [1, 2]}, "d": None, "e": {}}) == {
        "a.b": 1,
        "a.c": "[1, 2]",
        "d": "null",
    }


def test_parameters_tell_the_chosen_options_and_hide_the_trackers(tmp_path):
    groups = ("method", "model", "dataset", "optimizer", "schedule", "retrain", "criterion", "protocol")
    cfg = {
        "companion": {"ap": {}},
        "seed": 3,
        "tracker": {"mlflow": {"uri": "secret"}},
        "optimizer": {"lr": 1},
    }
    about = about_run(cfg, {g: f"some_{g}" for g in groups}, tmp_path / "name")
    assert about.parameters == {**{g: f"some_{g}" for g in groups}, "seed": 3, "optimizer.lr": 1}
    assert about.tags == {
        "method": "some_method+ap",
        "model": "some_model",
        "dataset": "some_dataset",
        "seed": "3",
    }
    assert (about.name, about.group) == ("name", "some_method+ap-some_model-some_dataset")


def test_points_that_a_tracker_holds_are_left_out_and_lost_ones_given_again(session):
    fake = Fake(held={"train/loss": 2, "train/lr": 1, "sparsity": 4, "train/images_per_second": 2})
    going_on = session(fake, step=2)
    going_on.earlier([train(1, 0.1), train(2, 0.2)])  # before the checkpoint; the second lr was lost
    going_on.row(train(3, 0.3))
    going_on.row(train(4, 0.4))
    assert [p for p in fake.logged if p[0] == "train/loss"] == [
        ("train/loss", 3, 0.3),
        ("train/loss", 4, 0.4),
    ]
    assert [p[1] for p in fake.logged if p[0] == "train/lr"] == [2, 3, 4]
    assert [p[1] for p in fake.logged if p[0] == "sparsity"] == []
    assert [p[1] for p in fake.logged if p[0] == "train/images_per_second"] == [3, 4]


def test_rows_taken_from_the_store_are_told_once(session):
    fake = Fake()
    going_on = session(fake)
    going_on.earlier([])
    going_on.row(train(1, 0.1))
    going_on.earlier([train(1, 0.1), train(2, 0.2), train(3, 0.3)])
    going_on.row(train(4, 0.4))
    assert [p[1] for p in fake.logged if p[0] == "train/loss"] == [1, 2, 3, 4]


def test_speed_is_images_over_the_time_since_the_last_row(session, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("prunebench.trackers.session.time.monotonic", lambda: now[0])
    fake = Fake()
    going_on = session(fake, step=4)
    now[0] += 2.0
    going_on.row(train(8, 0.1))
    assert [p for p in fake.logged if "images" in p[0]] == [("train/images_per_second", 8, 20.0)]


@pytest.mark.parametrize("bad", ["start", "log", "sync", "close False"])
def test_a_failing_tracker_is_off_after_one_line(session, capsys, bad):
    fake = Fake(bad=bad)
    going_on = session(fake)
    for total in (1, 2):
        going_on.row(train(total, 0.1))
        going_on.sync()
    going_on.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"prune-run: tracker.fake is off, the run goes on (RuntimeError: {bad} is broken)")
    assert "leave the tracker out" in line
    assert fake.verbs.count(bad) == 1 and fake.verbs[-1] == bad


def test_a_failing_tracker_leaves_the_others_alone(tmp_path, capsys):
    good, bad = Fake(), Fake(bad="log")
    both = Session({"bad": bad, "good": good}, About(tmp_path, {}, {}, ""), batch_size=1, step=0)
    both.start()
    both.row(train(1, 0.1))
    both.close()
    assert good.verbs == ["start", "log", "close False"]
    assert bad.verbs == ["start", "log"]


def test_a_signal_is_not_a_failure_of_the_tracker():
    class Stopped(Fake):
        def log(self, values, step):
            raise KeyboardInterrupt

    guarded = Guarded("fake", Stopped())
    with pytest.raises(KeyboardInterrupt):
        guarded.log({"a": 1.0}, 1)


def test_a_missing_package_is_one_line_with_the_way_out():
    with pytest.raises(ValueError, match=r"tracker=wandb: No module named 'no_such_package'; .*\[wandb\]"):
        need("no_such_package", "wandb")


def test_only_an_sqlite_uri_is_a_local_database():
    assert str(local_database("sqlite:////a/b.db")) == "/a/b.db"
    assert local_database("http://host:5000") is None
