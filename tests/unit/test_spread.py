"""Spread of gradients and activations against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.core.method import Method
from prunebench.metrics import metric as module
from prunebench.metrics.spread import Spread
from tests.unit.fixed import at, prune, run_of

torch.set_num_threads(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def reference(model: nn.Sequential, images, labels) -> tuple[list[np.ndarray], np.ndarray]:
    """Gradients of the mean cross-entropy in the two weights, and all hidden outputs; chain rule by hand."""
    x = images.flatten(1).double().numpy()
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in (model[1], model[3])
    )
    hidden = np.maximum(x @ w1.T + b1, 0)
    logits = hidden @ w2.T + b2
    soft = np.exp(logits - logits.max(1, keepdims=True))
    error = soft / soft.sum(1, keepdims=True)
    error[np.arange(len(x)), labels.numpy()] -= 1
    back = (error @ w2) * (hidden > 0)
    return [back.T @ x / len(x), error.T @ hidden / len(x)], hidden


def test_gradients_and_hidden_values_of_a_small_network_by_the_chain_rule(monkeypatch):
    monkeypatch.setattr(module, "PROBE_BATCH", 7)  # batches of 7, 7 and 3
    images, labels = torch.randn(17, 1, 2, 3), torch.randint(3, (17,))
    run = run_of(network(), images, labels)
    kept = torch.rand(5, 6) > 0.4
    prune(run, **{"1": kept})
    row = Spread().measure(run, Method())
    (first, second), hidden = reference(run.model, images, labels)
    first = first[kept.numpy()]
    expected = {"1.weight": first, "3.weight": second.ravel()}
    assert [layer["name"] for layer in row["layers"]] == [*expected, "2"]
    for name, gradient in expected.items():
        layer = at(row["layers"], name)
        assert layer["gradient_std"] == pytest.approx(gradient.std(), rel=1e-6)
        assert layer["gradient_mean"] == pytest.approx(gradient.mean(), rel=1e-5, abs=1e-9)
    together = np.concatenate(list(expected.values()))
    assert row["gradient_std"] == pytest.approx(together.std(), rel=1e-6)
    assert row["gradient_mean"] == pytest.approx(together.mean(), rel=1e-5, abs=1e-9)
    for part in (row, at(row["layers"], "2")):
        assert part["hidden_std"] == pytest.approx(hidden.std(), rel=1e-6)
        assert part["hidden_mean"] == pytest.approx(hidden.mean(), rel=1e-6)


def test_all_activations_together_weigh_every_output_the_same():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 3), nn.ReLU())
    run = run_of(nn.Sequential(*model, nn.Linear(3, 2)), torch.tensor([2.0, 4.0]).view(2, 1, 1, 1))
    with torch.no_grad():
        run.model[1].weight.fill_(1.0)
        run.model[3].weight.zero_()
        run.model[3].bias.copy_(torch.tensor([1.0, 0.0, -5.0]))
    row = Spread().measure(run, Method())
    outputs = [2.0, 4.0] + 2 * [1.0, 0.0, 0.0]
    assert row["hidden_mean"] == pytest.approx(np.mean(outputs))
    assert row["hidden_std"] == pytest.approx(np.std(outputs))
    assert at(row["layers"], "2")["hidden_std"] == 1.0
    assert at(row["layers"], "4")["hidden_std"] == pytest.approx(math.sqrt(2) / 3)


def test_a_layer_that_keeps_nothing_and_a_network_without_activations_have_none():
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 1, 2, 2))
    prune(run, **{"1": torch.zeros(3, 4, dtype=torch.bool)})
    row = Spread().measure(run, Method())
    layer = at(row["layers"], "1.weight")
    assert (layer["gradient_std"], layer["gradient_mean"]) == (None, None)
    assert (row["hidden_std"], row["hidden_mean"], len(row["layers"])) == (None, None, 2)
    assert row["gradient_std"] == at(row["layers"], "2.weight")["gradient_std"]


def test_the_batch_size_does_not_matter(monkeypatch):
    run, rows = run_of(network(), torch.randn(60, 1, 2, 3), torch.randint(3, (60,))), []
    for size in (60, 1, 17):
        monkeypatch.setattr(module, "PROBE_BATCH", size)
        rows.append(Spread().measure(run, Method()))
    for row in rows[1:]:
        for key in ("gradient_std", "hidden_std", "hidden_mean"):
            assert row[key] == pytest.approx(rows[0][key], rel=1e-6)
