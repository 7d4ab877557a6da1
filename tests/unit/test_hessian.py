"""Eigenvalue and trace of the Hessian: the numbers of the card, explicit matrices, and masks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.metrics import metric as module
from prunebench.metrics.hessian import (
    Hessian,
    free_coordinates,
    hessian_product,
    hutchinson,
    power_iteration,
)
from prunebench.metrics.metric import undisturbed
from prunebench.models.vit import ViT
from tests.unit.fixed import prune, run_of

torch.set_num_threads(1)


def matrix(losses, params, free) -> torch.Tensor:
    """The Hessian column by column."""
    return torch.stack([hessian_product(losses, params, free, e) for e in torch.eye(len(free)).to(free)])


def top_of(losses, params, free, *, seed: int = 0, iterations: int = 2000, tolerance: float = 1e-15):
    start = torch.randn(len(free), generator=torch.Generator().manual_seed(seed)).to(free) * free
    return power_iteration(
        lambda v: hessian_product(losses, params, free, v), start, iterations=iterations, tolerance=tolerance
    )


def quadratic(*diagonal: float):
    w = torch.ones(len(diagonal), dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(diagonal, dtype=torch.float64)
    return (lambda: [0.5 * (scale * w * w).sum()]), [w], torch.ones_like(scale)


def test_a_quadratic_has_the_eigenvalues_and_trace_of_its_matrix():
    """metrics.md, check 5."""
    losses, params, free = quadratic(1, 2, 5)
    top = top_of(losses, params, free)
    assert top.eigenvalue == pytest.approx(5, rel=1e-12) and top.converged
    assert hutchinson(losses, params, free, probes=3) == (8.0, 0.0), "exact for a diagonal matrix"


def test_the_eigenvalue_of_largest_magnitude_may_be_negative():
    top = top_of(*quadratic(-3, 1, 2))
    assert top.eigenvalue == pytest.approx(-3)
    assert top.vector.abs() == pytest.approx([1, 0, 0], abs=1e-6)


def test_the_residual_bounds_the_distance_to_an_eigenvalue_and_few_iterations_do_not_converge():
    top = top_of(*quadratic(1, 4, 5), iterations=3, tolerance=1e-6)
    assert (top.iterations, top.converged) == (3, False)
    assert 0 < min(abs(top.eigenvalue - e) for e in (1, 4, 5)) <= top.residual
    assert top.vector.norm() == pytest.approx(1)


def test_a_flat_loss_has_eigenvalue_0():
    top = top_of(*quadratic(0, 0))
    assert (top.eigenvalue, top.converged, top.iterations) == (0.0, True, 1)


def test_a_loss_that_is_no_number_ends_the_iteration():
    top = top_of(*quadratic(1, math.nan))
    assert (top.iterations, top.converged) == (1, False) and math.isnan(top.eigenvalue)


@pytest.fixture(scope="module")
def tanh_net():
    """metrics.md, check 6: the net of 26 parameters, its loss as one part and in two batches."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x = torch.randn(20, 3)
    finally:
        torch.set_default_dtype(before)
    y = (x[:, 0] * x[:, 1] > 0).long()

    def in_batches():
        for part in (slice(0, 13), slice(13, 20)):
            yield F.cross_entropy(net(x[part]), y[part], reduction="sum") / 20

    params = list(net.parameters())
    return in_batches, (lambda: [F.cross_entropy(net(x), y)]), params, torch.ones(26, dtype=torch.float64)


def test_worked_example_of_the_tanh_network(tanh_net):
    in_batches, whole, params, free = tanh_net
    full = matrix(in_batches, params, free)
    eigenvalues = torch.linalg.eigvalsh(full)
    assert eigenvalues[-1] == pytest.approx(0.6662767, abs=5e-8)
    assert eigenvalues[0] == pytest.approx(-0.3978569, abs=5e-8)
    assert full.trace() == pytest.approx(1.0924679, abs=5e-8)
    top = top_of(in_batches, params, free)
    assert top.eigenvalue == pytest.approx(float(eigenvalues[-1]), abs=1e-10)
    assert top.residual < 1e-6
    torch.testing.assert_close(matrix(whole, params, free), full, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(full, full.T, rtol=1e-12, atol=1e-14)


def test_the_standard_error_of_the_trace_is_that_of_theory(tanh_net):
    in_batches, _, params, free = tanh_net
    full = matrix(in_batches, params, free)
    theory = math.sqrt(2 * (full.square().sum() - full.diag().square().sum()))
    assert theory == pytest.approx(1.7295, abs=5e-5)
    trace, error = hutchinson(in_batches, params, free, probes=400)
    assert error * math.sqrt(400) == pytest.approx(theory, rel=0.1)  # std of a std of 400: 3.5 %
    assert abs(trace - 1.0924679) < 3 * error


def masked_run():
    torch.manual_seed(1)
    layers = (nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    run = run_of(nn.Sequential(*layers), torch.randn(30, 1, 2, 3), torch.randint(3, (30,)))
    alive = torch.tensor([True, True, False, True])
    tied = dict.fromkeys(("1.bias", "3.weight", "3.bias"), alive)
    masks = {"1.weight": (torch.rand(4, 6) > 0.5) & alive[:, None], "4.weight": alive.repeat(3, 1)}
    run.set_masks(Masks(masks, tied))
    return run


def test_pruned_coordinates_are_exactly_0_and_the_rest_is_a_submatrix():
    """metrics.md, check 11; entries tied to a dead channel are no free coordinates either."""
    run = masked_run()
    params, free = free_coordinates(run)
    (x, y) = run.data.images, run.data.labels

    def losses():
        return [F.cross_entropy(run.model(x), y)]

    count = run.masks.kept + sum(p.numel() for n, p in run.model.named_parameters() if n not in run.masks) - 3
    assert int(free.sum()) == count
    whole, inside = matrix(losses, params, torch.ones_like(free)), free.bool()
    part = matrix(losses, params, free)
    assert torch.equal(part[inside][:, inside], whole[inside][:, inside])
    assert not part[~inside].any() and not part[:, ~inside].any()
    top = top_of(losses, params, free, iterations=50)
    assert not top.vector[~inside].any() and top.vector[inside].all()


def test_the_metric_gives_the_eigenvalue_and_trace_of_the_explicit_matrix(monkeypatch):
    run, rows = masked_run(), []
    params, free = free_coordinates(run)
    full = matrix(lambda: [F.cross_entropy(run.model(run.data.images), run.data.labels)], params, free)
    eigenvalues = torch.linalg.eigvalsh(full.double())
    for size in (30, 8):
        monkeypatch.setattr(module, "PROBE_BATCH", size)
        with undisturbed(run):
            rows.append(Hessian(iterations=500, tolerance=1e-7, probes=60).measure(run, Method()))
    row, other = rows
    assert row["eigenvalue"] == pytest.approx(float(eigenvalues[eigenvalues.abs().argmax()]), rel=1e-4)
    assert row["radius"] == abs(row["eigenvalue"]) and row["converged"]
    assert row["coordinates"] == int(free.sum())
    assert abs(row["trace"] - float(full.trace())) < 3 * row["trace_error"]
    for key in ("eigenvalue", "trace", "trace_error"):
        assert other[key] == pytest.approx(row[key], rel=1e-4)


def test_attention_is_differentiated_twice():
    """Against a difference of gradients, in float64: the fused kernel has no second derivative."""
    torch.manual_seed(2)
    model = ViT(dim=6, depth=1, heads=2, patch=2, in_channels=1, num_classes=3, image_size=4).double()
    run = run_of(model, torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1]))
    params, free = free_coordinates(run)
    v = torch.randn(len(free), dtype=torch.float64)

    def losses():
        return [F.cross_entropy(model(run.data.images), run.data.labels)]

    def gradient_at(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(params, v.split([p.numel() for p in params])):
                p.add_(step * d.view_as(p))
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses()[0], params)])

    with sdpa_kernel(SDPBackend.MATH):
        exact = hessian_product(losses, params, free, v)
    step = 1e-7  # LayerNorm of weights of size 0.02 has a large third derivative
    difference = (gradient_at(step) - gradient_at(-2 * step)) / (2 * step)
    gradient_at(step)
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=1e-8)
    row = Hessian(iterations=3, probes=2).measure(run, Method())
    assert row["iterations"] == 3 and math.isfinite(row["trace"]) and row["eigenvalue"] != 0


def test_the_vectors_are_the_same_for_every_seed_and_round():
    run = masked_run()
    first = Hessian(iterations=3, probes=3).measure(run, Method())
    run.seed, run.clock.place = 7, 99
    assert Hessian(iterations=3, probes=3).measure(run, Method()) == first


def test_a_network_that_keeps_only_biases_still_has_a_curvature():
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(6, 1, 2, 2))
    prune(run, **{"1": torch.zeros(2, 4, dtype=torch.bool)})
    torch.nn.init.zeros_(run.model[1].bias)
    row = Hessian().measure(run, Method())
    assert row["coordinates"] == 2
    assert row["eigenvalue"] == pytest.approx(0.5)  # p (1 - p) [[1, -1], [-1, 1]] with p = 1/2


def test_a_network_that_cannot_be_differentiated_twice_is_refused_before_training():
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Hardsigmoid()), torch.randn(3, 1, 2, 2))
    with pytest.raises(ValueError, match=r"^metrics\.hessian: .* twice \(derivative for .*hardsigmoid"):
        Hessian().check(run, [])
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize(
    ("option", "value"), [("images", 0), ("iterations", 0), ("tolerance", -0.1), ("probes", 1)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option}={value}: must be at least"):
        Hessian(**{option: value})
