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
