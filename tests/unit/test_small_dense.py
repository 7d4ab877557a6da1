"""Small-Dense: the card's factors for ResNet-50, sizes by hand, and what the result says."""

import json

import pytest
import torch
from torch import nn

from prunebench.methods.small_dense import SmallDense
from prunebench.models.lenet import LeNet300
from tests.conformance import kit

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resnet50():
    cfg = kit.plain_of(
        ("model=resnet50", "dataset=synthetic", "dataset.size=224", "dataset.num_classes=1000")
    )
    with torch.device("meta"):
        return kit.instantiate(cfg["model"], in_channels=3, num_classes=1000, image_size=224)


@pytest.mark.parametrize(("sparsity", "factor"), [(0.8, 0.465), (0.9, 0.34), (0.95, 0.26), (0.965, 0.231)])
def test_the_factors_of_resnet50_are_those_of_the_card(resnet50, sparsity, factor):
    method = SmallDense(target=sparsity)
    method.network(resnet50)
    assert method.factor == pytest.approx(factor, abs=0.006)


def test_sizes_are_those_worked_out_by_hand():
    """LeNet-300-100 on 8x8 images: 64 x 300, 300 x 100, 100 x 10 weights and 410 biases."""
    model = LeNet300(in_channels=1, num_classes=10, image_size=8)
    weights = 19200 + 30000 + 1000
    assert SmallDense(target=0.9).size(model, 0.1) == 32 * (5020 + 410) + weights
    assert SmallDense(target=0.9).size(model, None) == 32 * (weights + 410)
    assert SmallDense(target=0.9, equal="weights").size(model, 0.1) == 5020 + 410
    assert SmallDense(target=0.9, exclude=["head"]).size(model, 0.1) == 32 * (4920 + 1410) + 49200


@pytest.mark.parametrize("equal", ["bits", "weights"])
@pytest.mark.parametrize("target", [0.5, 0.9])
def test_no_other_factor_comes_nearer(target, equal):
    model = LeNet300(in_channels=1, num_classes=10, image_size=8)
    method = SmallDense(target=target, equal=equal)
    goal = method.size(model, 1 - target)
    got = abs(method.size(method.network(model), None) - goal)
    others = [abs(method.size(model.scaled(f / 1000), None) - goal) for f in range(1, 1001)]
    assert got <= min(others) * (1 + 1e-9)


@pytest.mark.parametrize("option", ["A", "B"])
def test_all_channels_of_a_resnet_are_scaled(option):
    cfg = kit.plain_of(("model=resnet20", f"model.option={option}"))
    model = kit.instantiate(cfg["model"], in_channels=3, num_classes=10, image_size=32)
    small = model.scaled(0.5)
    assert small.conv1.weight.shape == (8, 3, 3, 3)
    assert small.layer3[2].conv2.weight.shape == (32, 32, 3, 3)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_result_is_relative_to_the_configured_network(tmp_path):
    parts = kit.recorded(kit.tiny(kit.Case("small_dense"), "wrn"), tmp_path).fit()
    whole = kit.assemble(kit.tiny(kit.Case("dense"), "wrn")).run
    result = json.loads((tmp_path / "result.json").read_text())
    row = result["final"]
    assert row["total"] == whole.masks.total
    assert row["kept"] == parts.run.masks.total < row["total"]
    assert row["sparsity"] == 1 - row["kept"] / row["total"]
    assert row["params_total"] == sum(p.numel() for p in whole.model.parameters())
    assert row["params"] == sum(p.numel() for p in parts.run.model.parameters())
    assert row["compression"] == row["params_total"] / row["params"] > 2
    assert row["speedup"] > 1
    assert (row["asked"], row["delta"], result["dense"]) == (0.8, None, None)
    about = json.loads((tmp_path / "final.json").read_text())
    assert about["scaled"] == parts.method.factor
    weights = parts.run.model.state_dict()
    rebuilt = whole.model.scaled(about["scaled"]).state_dict()
    assert {n: w.shape for n, w in rebuilt.items()} == {n: w.shape for n, w in weights.items()}


def vit():
    """A transformer, whose residual stream has no widths."""
    cfg = kit.plain_of(("model=vit_tiny", "model.depth=2", "model.patch=2"))
    return kit.instantiate(cfg["model"], in_channels=1, num_classes=10, image_size=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SmallDense(target=0.0), r"sparsity.target=0.0: must lie in \(0, 1\)"),
        (lambda: SmallDense(target=0.5, equal="flops"), "equal=flops: must be bits or weights"),
        (lambda: SmallDense(target=0.5).network(nn.Linear(2, 2)), "Linear has no widths to change"),
        (lambda: SmallDense(target=0.99).network(vit()), "sparsity.target=0.99: with one channel in every"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_there_are_no_masks_for_a_control():
    with pytest.raises(ValueError, match=r"protocol\.control"):
        kit.assemble(kit.tiny(kit.Case("small_dense"), "lenet300", "protocol.control=init"))
