"""Multiply-adds counted as they are computed, and the cost of scores in results."""

import json
from itertools import pairwise

import torch
from torch import nn

from prunebench.core.counting import MultiplyAdds
from tests.conformance import kit

torch.set_num_threads(1)

CONV, LINEAR = 8 * 3 * 9 * 16, 128 * 10


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


def test_a_forward_pass_costs_its_layers():
    with torch.no_grad(), MultiplyAdds() as work:
        network()(torch.randn(5, 3, 4, 4))
    assert work.count == 5 * (CONV + LINEAR)


def test_a_backward_pass_costs_what_it_computes():
    """Gradients of weights for all, of inputs for all but the first layer; an equal sum stays the same."""
    net = network()
    with MultiplyAdds() as work:
        net(torch.randn(5, 3, 4, 4)).sum().backward()
    assert work.count == 5 * (2 * CONV + 3 * LINEAR)
    assert all(p.grad is not None for p in net.parameters())


def test_other_work_costs_nothing():
    with MultiplyAdds() as work:
        torch.sort(torch.randn(1000).abs() * 2)
    assert work.count == 0


def scored(tmp_path, method, *options):
    """Rows and cost of a run on lenet300 of 48 images in 8 x 8 x 3."""
    overrides = kit.tiny(kit.Case(method), "lenet300", *options)
    parts = kit.recorded(overrides, tmp_path).fit()
    result = json.loads((tmp_path / "result.json").read_text())
    return parts, result["rounds"], result["cost"]


def test_the_cost_of_activations_is_a_pass_over_the_training_images_with_the_masks_before(tmp_path):
    parts, rounds, cost = scored(tmp_path, "imp", "criterion=mean_activation", "sparsity=neuron")
    images = parts.run.data.sizes["train"]
    assert "score_macs" not in rounds[0]
    for before, row in pairwise(rounds):
        # and one or two images with which the layers behind each activation are found
        assert images <= row["score_macs"] / before["macs"] * (1 + 1e-6) <= images + 2.01
    assert cost["score_macs"] == sum(row["score_macs"] for row in rounds[1:])


def test_magnitudes_cost_nothing_and_gradients_about_three_passes(tmp_path):
    _, rounds, cost = scored(tmp_path / "imp", "imp")
    assert [row["score_macs"] for row in rounds[1:]] == [0, 0, 0] and cost["score_macs"] == 0
    parts, (row,), _ = scored(tmp_path / "snip", "snip", "criterion.batches=2")
    images = parts.run.data.sizes["train"]
    assert row["score_macs"] <= 3 * images * row["macs_dense"]
    assert row["score_macs"] >= 1.5 * 20 * row["macs_dense"]  # a batch, less the first layer's input


def test_the_oracle_costs_more_than_training(tmp_path):
    options = ("criterion=greedy_loss", "sparsity=neuron", "model.widths={fc1: 12, fc2: 6}")
    *_, cost = scored(tmp_path, "imp", *options)
    assert cost["score_macs"] > cost["train_macs"] / 3 > 0
