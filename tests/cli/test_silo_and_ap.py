"""SILO and AP from the command line: what they equal, what they share, and what they refuse."""

import json

import pytest

ROUNDS = ("method=lth", "protocol.retrain=null", "sparsity.rounds=3")


def weights(directory):
    return (directory / "final.safetensors").read_bytes()


def test_silo_without_growth_is_the_warm_up_schedule_bit_for_bit(prune, runs):
    assert prune(*ROUNDS, "schedule=silo", "schedule.delta=0", "out=silo").code == 0
    assert prune(*ROUNDS, "schedule=warmup_step", "out=warmup").code == 0
    assert weights(runs("silo")[0]) == weights(runs("warmup")[0])


def test_the_peak_of_every_round_is_in_the_result(prune, runs, result):
    prune(*ROUNDS, "schedule=silo", "schedule.delta=0.4", "schedule.beta=1", "optimizer.lr=0.1")
    rounds = result(runs()[0])[0]["rounds"]
    kept = 1 - rounds[1]["sparsity"]
    expected = [0.1, 0.1, *(0.1 + 0.4 * (1 - kept ** (m - 1)) for m in (2, 3))]
    assert [r["max_lr"] for r in rounds] == pytest.approx(expected, rel=1e-3)


def test_ap_with_share_0_is_the_base_method_bit_for_bit(prune, runs):
    assert prune(*ROUNDS, "companion=[ap]", "companion.ap.share=0", "out=ap").code == 0
    assert prune(*ROUNDS, "out=base").code == 0
    assert weights(runs("ap")[0]) == weights(runs("base")[0])


def test_ap_and_its_base_method_share_dense_training(prune, runs, result):
    prune(*ROUNDS)
    for mode in ("lite", "pro", "matched"):
        prune(*ROUNDS, "companion=[ap]", f"companion.ap.mode={mode}")
    results = {d.name.split("-")[0]: [] for d in runs()}
    for d in runs():
        results[d.name.split("-")[0]].append(result(d)[0])
    assert [entry["phase"] for r in results["lth+ap"] for entry in r["shared"]] == ["dense"] * 3
    assert all(r["companion"] == ["ap"] for r in results["lth+ap"])


def test_pro_and_matched_cost_the_same_and_the_ledger_counts_both_trainings(prune, runs, result):
    costs = {}
    for mode in ("lite", "pro", "matched"):
        prune(*ROUNDS, "companion=[ap]", f"companion.ap.mode={mode}", f"out={mode}")
        content = result(runs(mode)[0])[0]
        costs[mode] = content["cost"]
        assert [r["phase"] for r in content["rounds"]] == ["dense", "round-01", "round-02", "round-03"]
    assert costs["lite"]["steps"] == 4 * 6
    assert costs["pro"]["steps"] == costs["matched"]["steps"] == 7 * 6
    assert costs["pro"]["samples"] == costs["matched"]["samples"] > costs["lite"]["samples"]


def test_rows_of_trainings_that_only_serve_a_pruning_event_are_marked(prune, runs):
    prune(*ROUNDS, "companion=[ap]", "companion.ap.mode=pro")
    rows = [json.loads(line) for line in (runs()[0] / "metrics.jsonl").read_text().splitlines()]
    ends = [(r["kind"], r["phase"]) for r in rows if r["kind"] in ("phase", "auxiliary")]
    assert ends[:4] == [
        *(("phase", "dense"), ("auxiliary", "round-01a"), ("phase", "round-01"), ("auxiliary", "round-02a")),
    ]


def test_retraining_schedules_share_no_training_before_pruning(prune, runs, result):
    pro = ("method=lth", "companion=[ap]", "companion.ap.mode=pro")
    prune("-m", *pro, "retrain=same,constant")
    prune(*pro, "retrain=constant", "trainer.share=none", "out=alone")
    shared = next(d for d in runs() if d.name == runs("alone")[0].name)
    assert weights(shared) == weights(runs("alone")[0])
    assert result(shared)[0]["rounds"] == result(runs("alone")[0])[0]["rounds"]


def test_a_control_of_pro_trains_the_mask_that_pro_finds(prune, runs):
    pro = (*ROUNDS, "companion=[ap]", "companion.ap.mode=pro")
    prune(*pro, "out=plain")
    prune(*pro, "protocol.control=reinit", "out=reinit")
    masks = [(runs(out)[0] / "masks.safetensors").read_bytes() for out in ("plain", "reinit")]
    assert masks[0] == masks[1]
    assert weights(runs("plain")[0]) != weights(runs("reinit")[0])


def test_a_run_without_a_dense_control_shows_no_change(prune, runs, result):
    outcome = prune("method=snip", "model=lenet300", "dataset=synthetic", "protocol.dense=6it", tiny=False)
    assert outcome.code == 0
    assert result(runs()[0])[0]["rounds"][0]["delta"] is None
    assert "+0.00" not in outcome.out


def test_metrics_that_a_finished_run_measured_otherwise_are_refused(prune):
    assert prune("metrics=[learning_distance]").code == 0
    assert prune("metrics=[learning_distance]").code == 0
    other = prune("metrics=[learning_distance]", "metrics.learning_distance.every=end")
    assert other.code == 2
    assert "is done and did not measure learning_distance in this way" in other.line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("method=dense", "companion=[ap]"), "companion=[ap]: needs pruning events"),
        (("method=snip", "companion=[ap]"), "companion=[ap]: measures how far weights moved in training"),
        (("method=dense", "schedule=silo"), "schedule.delay=1: SILO raises the peak from pruning cycle 2 on"),
        (("method=snip", "schedule=silo"), "schedule.delay=1: SILO raises the peak from pruning cycle 2 on"),
    ],
)
def test_plans_without_rounds_are_refused_before_training(typed, said, prune, runs):
    outcome = prune(*typed, "model=lenet300", "trainer.quiet=true", tiny=False)
    assert outcome.code == 2
    assert outcome.line.startswith(f"prune-run: {said}")
    assert not runs()
