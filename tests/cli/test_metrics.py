"""Diagnostics from the command line: rows on the disk, and one clear line for what cannot be measured."""

import json

import pytest

ALL = "metrics=[dead_neurons,spread,hessian,barrier,effective_sparsity,learning_distance,mask_overlap]"
QUICK = ("metrics.hessian.iterations=2", "metrics.hessian.probes=2", "metrics.barrier.points=3")
VIT = "model=vit_tiny model.depth=1 model.dim=6"
MISTAKES = {  # typed -> what the one line must say, in this order
    "metrics=[dead_neurons] metrics.dead_neurons.images=0": ("metrics.dead_neurons.images=0: must be at",),
    "metrics=[spread,hessian] metrics.hessian.probes=1": ("metrics.hessian.probes=1: must be at least 2",),
    "metrics=[spread] metrics.spread.every=never": ("metrics.spread.every=never: must be phase, end",),
    "metrics=[barrier] metrics.barrier.every=end": ("metrics.barrier.every=end: needs two",),
    "metrics=[barrier] metrics.barrier.other=nowhere": ("metrics.barrier.other=nowhere:", "no such one"),
    f"metrics=[effective_sparsity] {VIT}": ("metrics.effective_sparsity: ViT", "leave the metric out"),
    "metrics=[dead_neurons] model=timm model.name=efficientnet_b0": (
        "metrics.dead_neurons: the model has no ReLU or GELU module",
        "leave the metric out",
    ),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_what_cannot_be_measured_is_one_line_before_training(prune, runs, typed):
    outcome = prune(*typed.split())
    assert outcome.code == 2
    place = 0
    for part in MISTAKES[typed]:
        assert part in outcome.line[place:]
        place = outcome.line.index(part, place)
    assert runs() == []


def test_every_metric_leaves_a_row_per_phase_and_the_hessian_one_at_the_end(prune, runs):
    assert prune(ALL, *QUICK).code == 0
    (directory,) = runs()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    measured = [(r["phase"], r["metric"]) for r in rows if r["kind"] == "metric"]
    names = ALL.removeprefix("metrics=[").removesuffix("]").split(",")
    expected = [(p, n) for p in ("dense", "round-01") for n in names if n != "hessian"]
    assert measured == expected + [("round-02", n) for n in names]
    assert json.loads((directory / "result.json").read_text())["metrics"] == sorted(names)


def test_the_barrier_to_another_seed_is_read_from_its_directory(prune, runs):
    assert prune("seed=1").code == 0
    (other,) = runs()
    options = (f"metrics.barrier.other={other}", "metrics.barrier.points=3")
    assert prune("metrics=[barrier]", "metrics.barrier.every=end", *options).code == 0
    (directory,) = set(runs()) - {other}
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (row,) = [r for r in rows if r["kind"] == "metric"]
    assert row["phase"] == "round-02" and len(row["curve"]) == 3
    assert row["train_loss_barrier"] >= 0 and row["test_error_barrier"] >= 0
    narrow = prune(*("model.widths={fc1: 5}", "metrics=[barrier]"), *options)
    assert "another network; fc1.weight has shape [300, 64] there and shape [5, 64] here" in narrow.line
