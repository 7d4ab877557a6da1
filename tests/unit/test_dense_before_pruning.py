"""Dense training before a phase that prunes while it trains, and rows about masks that do not hold."""

import json

import pytest

from prunebench.during_training import during_training
from tests.conformance import kit


def constant(progress):
    return 1.0


def plan(**options):
    asked = {"target": 0.8, "dense": "10ep"} | options
    return during_training(schedule=constant, retrain_schedule=constant, **asked)


def test_a_dense_phase_comes_first_and_the_pruning_phase_has_its_own_peak():
    dense, train, control = plan(before="7ep", peak=0.01, multiplier=2.0, control="init")
    assert (dense.name, dense.length, dense.within, dense.asked, dense.peak) == (
        *("dense", "7ep", False),
        *(None, None),
    )
    assert (train.length, train.within, train.reach, train.peak) == ("20ep", True, 0.8, 0.01)
    assert (control.name, control.peak) == ("control", None)
    assert [p.name for p in plan()] == ["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": "7"}, "protocol.before=7: must be a number with its unit"),
        ({"peak": 0.1}, "protocol.peak=0.1: .* that follows protocol.before; without that set optimizer.lr"),
        ({"before": "7ep", "peak": 0.0}, "protocol.peak=0.0: must be a finite learning rate above 0"),
    ],
)
def test_a_length_without_unit_and_a_peak_without_use_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


def recorded(method, tmp_path, *more):
    parts = kit.recorded(kit.tiny(kit.Case(method), "lenet300", *more), tmp_path / method).fit()
    rows = (tmp_path / method / "metrics.jsonl").read_text().splitlines()
    return json.loads((tmp_path / method / "result.json").read_text()), list(map(json.loads, rows)), parts


def test_platon_after_dense_training_has_a_dense_control_and_says_where_its_masks_do_not_hold(tmp_path):
    result, rows, _ = recorded(
        "platon", tmp_path, "protocol.before=10it", "protocol.peak=0.05", "method.window=4"
    )
    dense, train = result["rounds"]
    assert (dense["phase"], dense["asked"], dense["sparsity"]) == ("dense", 0.0, 0.0)
    assert (train["asked"], train["cycle"], train["kept"]) == (0.8, 1, round(0.2 * train["total"]))
    assert train["delta"] == train["test"]["top1"] - dense["test"]["top1"]
    assert (dense["max_lr"], train["max_lr"]) == (pytest.approx(1e-3), pytest.approx(0.05))
    within = {r["step"]: r.get("zeros_hold", True) for r in rows if r["phase"] == "train"}
    # t_initial is 0.05 * 38 = 2 steps, t_final 11: zeroings at 4, 8, ..., 24 and from 28 on
    assert within == {s: s in (12, 24) or s > 27 for s in within}
    assert all("zeros_hold" not in r for r in rows if r["phase"] == "dense")
    assert False in within.values() and len(within) == 13


def test_str_has_no_target_and_its_outcome_is_the_result(tmp_path):
    result, _, parts = recorded("str", tmp_path)
    (row,) = result["rounds"]
    assert row["asked"] is None
    assert 0 < row["sparsity"] < 1
    zeros = sum(int((p == 0).sum()) for n, p in parts.run.model.named_parameters() if n in parts.run.masks)
    assert row["kept"] == row["total"] - zeros
