"""Sparse double descent from the command line: the modes of retraining, the noise, what is measured."""

import json

import pytest
from safetensors.torch import load_file

SMALL = (
    *("experiment=sparse_double_descent", "dataset=digits", "dataset.subset=200", "trainer.threads=1"),
    *("trainer.quiet=true", "protocol.dense=30it", "sparsity.rounds=2"),
)
LOTTERY = ("protocol.rewind_to=4it",)
KEEP = ("protocol.weights=keep", "protocol.rewind_to=0it", "protocol.retrain=30it")
SCRATCH = ("protocol.weights=random", "protocol.rewind_to=0it")
# mode -> overrides, learning rate of the levels, their steps
MODES = {
    "lottery": (LOTTERY, 0.1, 26),
    "finetune": ((*KEEP, "retrain=constant"), 0.001, 30),
    "rewindLR": ((*KEEP, "retrain=same"), 0.1, 30),
    "scratch": (SCRATCH, 0.1, 30),
}


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def measured(directory, metric):
    """The rows of a metric at the ends of phases."""
    return [r for r in rows_of(directory) if r["kind"] == "metric" and r["metric"] == metric]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_its_learning_rate_and_length_at_every_level(prune, runs, result, mode):
    overrides, lr, steps = MODES[mode]
    assert prune(*SMALL, *overrides, tiny=False).code == 0
    rounds = result(runs()[0])[0]["rounds"]
    assert [r["max_lr"] for r in rounds] == pytest.approx([0.1, lr, lr])
    assert [r["steps"] for r in rounds] == [30, steps, steps]


@pytest.mark.parametrize(("mode", "moved"), [(LOTTERY, False), (KEEP, False), (SCRATCH, True)])
def test_a_level_starts_where_its_mode_says(prune, runs, mode, moved):
    """Levels that do not train end where they start: with the weights before them, or with new ones."""
    still = [o for o in mode if "retrain=" not in o] + ["protocol.retrain=0it"]
    weights = []
    for rounds in (1, 2):
        out = f"out=level{rounds}"
        assert prune(*SMALL, *still, f"sparsity.rounds={rounds}", out, tiny=False).code == 0
        weights.append(load_file(runs(f"level{rounds}")[0] / "final.safetensors")["fc1.weight"])
    last, kept = weights[1], weights[1] != 0
    assert bool((last[kept] != weights[0][kept]).all()) == moved
    distance = measured(runs("level2")[0], "learning_distance")
    assert [r["phase_distance"] for r in distance][1:] == [0.0, 0.0]
    assert distance[0]["phase_distance"] == distance[0]["distance"] > 0 < distance[2]["distance"]


def test_noise_is_the_same_for_all_seeds_and_its_true_share_is_in_the_result(prune, runs, result):
    shares = []
    for seed in (0, 1):
        assert prune(*SMALL, *LOTTERY, f"seed={seed}", f"out={seed}", tiny=False).code == 0
        shares.append(result(runs(str(seed))[0])[0]["labels_flipped"])
    assert shares[0] == shares[1]
    assert 0.12 < shares[0] < 0.2  # 40 of 200 labels are drawn again, 36 of them wrong on average
    assert prune(*SMALL, *LOTTERY, "dataset.label_noise=0.0", "out=clean", tiny=False).code == 0
    assert result(runs("clean")[0])[0]["labels_flipped"] == 0.0


def test_the_plan_says_how_many_labels_are_wrong(prune):
    outcome = prune(*SMALL, *LOTTERY, "trainer.quiet=false", "plan=true", tiny=False)
    assert "label noise" in outcome.out and "random 0.2: " in outcome.out
    clean = prune(*SMALL, *LOTTERY, "dataset.label_noise=0.0", "trainer.quiet=false", "plan=true", tiny=False)
    assert "label noise" not in clean.out


def test_training_accuracy_is_measured_at_every_level(prune, runs):
    assert prune(*SMALL, *LOTTERY, tiny=False).code == 0
    rows = measured(runs()[0], "train_accuracy")
    assert [r["phase"] for r in rows] == ["dense", "round-01", "round-02"]
    assert all(0 < r["top1"] <= 1 and 0 < r["true_top1"] <= 1 and 0 <= r["wrong_top1"] <= 1 for r in rows)
