"""What sparse training costs, what it refuses, and its controls."""

import json

import pytest
import torch

from prunebench.core.masks import Masks
from prunebench.methods.rigl import RigL
from tests.conformance import kit
from tests.unit.moving import layers, run_of, train

torch.set_num_threads(1)


READS = {  # steps whose dense gradient is read: RigL's updates with 4 weight steps in between, until t = 28
    "static": set(),
    "set": set(),
    "rigl": {0, 5, 10, 15, 20, 25, 30},
    "snfs_rigl": set(range(38)),
}


@pytest.mark.parametrize("method", READS)
def test_the_training_cost_is_that_of_the_cards_ledger(method, tmp_path):
    """An image costs 3 f_S, and 2 f_S + f_D where the dense gradient is read; batches of 20, 20 and 8."""
    parts = kit.recorded(kit.tiny(kit.Case(method), "lenet300"), tmp_path).fit()
    cost = json.loads((tmp_path / "result.json").read_text())["cost"]
    sparse, dense = parts.run.masks.kept, parts.run.masks.total
    expected = 0
    for step in range(38):
        image = 2 * sparse + dense if step in READS[method] else 3 * sparse
        expected += (20, 20, 8)[step % 3] * image
    assert cost["train_macs"] == expected


def test_the_mean_cost_of_rigl_is_the_formula_of_the_paper():
    """f_S = .2 f_D and interval 100: .60792 f_D a step (metrics 6), over whole periods."""
    run = run_of(*layers())
    method = RigL(anneal="constant", until=1.0)
    run.goal, run.clock.steps = 0.8, 10_100
    run.set_masks(Masks({n: torch.rand(m.shape) < 0.5 for n, m in run.masks.items()}))
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    mean = sum(method.train_macs(run, s, 200, 1000) for s in range(10_100)) / 10_100 / 1000
    assert mean == pytest.approx((3 * 0.2 * 100 + 2 * 0.2 + 1) / 101, rel=1e-12)
    assert mean == pytest.approx(0.60792, abs=5e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0: must be at least 1"),
        ({"drop_fraction": 3.0}, r"drop_fraction=3.0: must lie in \[0, 1\]"),
        ({"anneal": "step"}, "anneal=step: must be one of cosine, constant, linear, inverse_power"),
        ({"begin": 1.0}, r"begin=1.0: must lie in \[0, 1\)"),
        ({"until": 1.5}, "until=1.5: must lie in"),
        ({"begin": 0.5, "until": 0.5}, "until=0.5: must lie in"),
        ({"batches": 0}, "batches=0: must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RigL(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 24}, "method.interval=24: 24 steps between updates, but training has 24"),
        ({"interval": 20, "begin": 0.1, "until": 0.5}, "no update falls between"),
        ({"interval": 22, "until": 1.0}, "no training follows it; lower method.until"),
        ({"interval": 3, "batches": 5}, "method.batches=5: must be at most 4"),
        ({"allocation": "global"}, "sparsity.allocation=global: ranks layers"),
        ({"allocation": {"*": 0.5}, "interval": 3}, "leaves 52 of 104 weights"),
    ],
)
def test_what_cannot_work_with_this_training_is_refused_before_it(options, message):
    with pytest.raises(ValueError, match=message):
        train(RigL(**options), run_of(*layers()))


def test_sparsities_of_layers_can_be_given():
    run = train(RigL(interval=3, allocation={"*": 0.5, "2.weight": 0.75}), run_of(*layers()), reach=58 / 104)
    assert run.masks.kept_per_layer == {"0.weight": 40, "2.weight": 6}


def test_the_masks_found_stay_in_a_control(tmp_path):
    overrides = kit.tiny(kit.Case("rigl"), "lenet300", "protocol.control=reinit")
    parts = kit.recorded(overrides, tmp_path).fit()
    rows = json.loads((tmp_path / "result.json").read_text())["rounds"]
    assert [r["phase"] for r in rows] == ["train", "control"]
    assert rows[0]["kept"] == rows[1]["kept"] == round(0.2 * parts.run.masks.total)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not [r for r in lines if r["phase"] == "control" and "mask_updates" in r]
