"""Second-order scores against the exact Hessian, and per-image gradients against a loop."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunebench.core.masks import Masks
from prunebench.core.run import seeded
from prunebench.criteria import curvature
from prunebench.criteria.curvature import obd, obd_fisher
from prunebench.criteria.gradient import gradients, hessian_times, network, prunable_weights
from prunebench.criteria.grasp import gradient_flow, grasp
from prunebench.models.vit import ViT
from tests.unit.toy_nets import Images, flat, run_of, small_run, toy_run

torch.set_num_threads(1)


def as_vector(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def as_tensors(vector, run):
    parts = vector.split([m.numel() for m in run.masks.values()])
    return {n: v.view(m.shape) for v, (n, m) in zip(parts, run.masks.items())}


def reference_hessian(run, loss):
    """Gradient and Hessian of a loss over all prunable weights as one vector, by torch.autograd.functional.

    `loss` takes the logits function of a network in eval mode.
    """
    model = deepcopy(run.model).eval()
    theta = as_vector({n: p.detach() for n, p in model.named_parameters() if n in run.masks})

    def of(vector):
        return loss(lambda x: functional_call(model, as_tensors(vector, run), (x,)))

    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.functional.jacobian(of, theta)
        return theta, gradient, torch.autograd.functional.hessian(of, theta)


def cross_entropy(run, temperature=1.0):
    return lambda logits: F.cross_entropy(logits(run.data.x) / temperature, run.data.y)


# Optimal Brain Damage

OBD = [
    *(0.042012, 0.042012, 0.453565, 0.011010, 0.031957, 0.640247),
    *(0.099436, 0.066844, 0.009504, 0.008949, 0.171120, 0.342150),
]


def test_the_exact_hessian_diagonal_of_the_toy_net_gives_the_scores_of_the_card():
    run = toy_run()
    theta, _, hessian = reference_hessian(run, cross_entropy(run))
    assert flat({"all": 0.5 * hessian.diagonal() * theta**2}) == OBD


@pytest.mark.parametrize("batches", [1, 2])
def test_orthogonal_sign_vectors_give_the_scores_of_the_card_exactly(batches, monkeypatch):
    """The rows of a Hadamard matrix average to v v^T = 1, so the estimator has no error left."""
    run = toy_run(repeat=batches)
    rows = iter(torch.from_numpy(hadamard(16)[:, :12]).double().repeat(batches, 1))
    monkeypatch.setattr(curvature, "_signs", lambda *arguments: as_tensors(next(rows), run))
    assert flat(obd(run, batches=batches, probes=16)) == OBD


def test_hutchinsons_estimate_is_unbiased_within_its_standard_error():
    run, probes = small_run(images=10), 400
    theta, _, hessian = reference_hessian(run, cross_entropy(run))  # of two batches of five: their mean loss
    each = [reference_hessian(part, cross_entropy(part))[2] for part in halves(run)]
    variance = sum((h**2).sum(1) - h.diagonal() ** 2 for h in each) / 4
    error = as_vector(obd(run, batches=2, probes=probes)) - 0.5 * hessian.diagonal() * theta**2
    standard = 0.5 * theta**2 * (variance / probes).sqrt()
    z = error[standard > 0] / standard[standard > 0]
    assert float(z.abs().max()) < 4.5  # of some 160 weights
    assert 0.7 < float(z.std()) < 1.3  # a bias or a wrong factor would show
    assert abs(float(z.mean())) < 0.5


def halves(run):
    return [run_of(run.model, Images(run.data.x[i : i + 5], run.data.y[i : i + 5], 5)) for i in (0, 5)]


def test_every_batch_has_sign_vectors_of_its_own_and_two_calls_agree():
    run = small_run(images=20)
    first = as_vector(obd(run, batches=1, probes=1))
    run.data.x[5:10], run.data.y[5:10] = run.data.x[:5].clone(), run.data.y[:5].clone()
    assert not torch.equal(as_vector(obd(run, batches=2, probes=1)), first)  # the same batch twice
    assert torch.equal(as_vector(obd(run, batches=1, probes=1)), first)


# The Fisher information


def test_the_empirical_fisher_of_the_toy_net_is_that_of_the_card():
    run = toy_run()
    params = dict(run.model.named_parameters())
    second = [0.075013, 0.176088, 0.739302]
    assert flat({n: 2 * s / params[n].detach() ** 2 for n, s in obd_fisher(run, batches=1).items()}) == [
        *(0.126772, 0.031693, 0.141250, 0.089604, 0.432033, 0.170973),
        *(*second, *second),
    ]


def reference_fisher(run, batches):
    """One backward pass per image."""
    model, count = deepcopy(run.model).eval(), batches * run.data.batch_size
    params = {n: p for n, p in model.named_parameters() if n in run.masks}
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for i in range(count):
        model.zero_grad()
        F.cross_entropy(model(run.data.x[i : i + 1]), run.data.y[i : i + 1]).backward()
        total = {n: t + params[n].grad ** 2 for n, t in total.items()}
    return {n: 0.5 * t / count * params[n].detach() ** 2 for n, t in total.items()}


@pytest.mark.parametrize("entries", [1, 500, 2**25])
def test_fisher_scores_equal_a_loop_over_images_whatever_the_chunks(entries, monkeypatch):
    monkeypatch.setattr(curvature, "PER_SAMPLE_ENTRIES", entries)
    run = small_run()
    scores, wanted = obd_fisher(run, batches=3), reference_fisher(run, 3)
    assert all(torch.allclose(s, wanted[n], rtol=1e-9, atol=0) for n, s in scores.items())
    assert not any(s.requires_grad for s in scores.values())


# GraSP


def test_grasp_of_the_toy_net_with_temperature_1_on_the_whole_batch_is_that_of_the_card():
    run = toy_run()
    with network(run, "train") as forward:
        scores = gradient_flow(
            forward,
            prunable_weights(run),
            [(run.data.x, run.data.y)],
            masks=run.masks,
            temperature=1.0,
        )
    assert flat(scores) == [
        *(0.149406, 0.149406, -0.400805, 0.019864, 0.096538, 0.080430),
        *(0.231479, -0.119937, 0.039457, 0.069444, -0.191898, 0.236744),
    ]


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("pruned", [0.0, 0.4])
def test_grasp_equals_the_exact_hessian_times_the_gradient_of_two_half_batches(temperature, pruned):
    run = small_run(images=30, batch_size=4)
    alive = {n: torch.rand(m.shape, generator=run.rng(n)) >= pruned for n, m in run.masks.items()}
    run.set_masks(Masks(alive))
    batches = run.data.scoring(None, per_class=5)
    x, y = (torch.cat(parts) for parts in zip(*batches))
    keep = as_vector(alive).double()

    def both(logits):
        return sum(F.cross_entropy(logits(x[i : i + 5]) / temperature, y[i : i + 5]) for i in (0, 5))

    theta, g, hessian = reference_hessian(run, both)
    wanted = theta * (hessian @ (keep * g))  # of the masked network: a pruned weight has no gradient
    scores = as_vector(grasp(run, per_class=5, temperature=temperature, bn_mode="eval"))
    torch.testing.assert_close(scores, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))
    assert bool((wanted < 0).any())


def test_grasp_takes_batch_statistics_in_train_mode_and_has_temperature_200():
    run = small_run(images=30)
    train, evaluated = (as_vector(grasp(run, per_class=5, bn_mode=m)) for m in ("train", "eval"))
    assert not torch.allclose(train, evaluated, rtol=0.1)
    assert torch.equal(train, as_vector(grasp(run, per_class=5, temperature=200.0)))


def test_attention_has_second_derivatives_and_gradients_of_single_images():
    with seeded("vit"):
        vit = ViT(dim=4, depth=1, heads=2, patch=2, in_channels=1, num_classes=2, image_size=4).double()
    run = run_of(vit, small_run().data)
    theta, g, hessian = reference_hessian(run, lambda logits: F.cross_entropy(logits(run.data.x), run.data.y))
    with network(run, "train") as forward:
        scores = gradient_flow(
            forward,
            prunable_weights(run),
            [(run.data.x, run.data.y)],
            masks=run.masks,
            temperature=1.0,
        )
    torch.testing.assert_close(as_vector(scores), theta * (hessian @ g), rtol=1e-6, atol=1e-12)
    wanted = reference_fisher(run, 3)
    for n, s in obd_fisher(run, batches=3).items():
        torch.testing.assert_close(s, wanted[n], rtol=1e-6, atol=1e-15)


def test_a_layer_without_second_derivative_is_refused_with_the_way_out():
    run = run_of(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Hardsigmoid(), nn.Linear(4, 2)).double(),
        small_run(images=30).data,
    )
    with pytest.raises(ValueError, match=r"hardsigmoid_backward.*use criterion=snip, taylor or obd_fisher"):
        grasp(run, per_class=3)


def test_other_errors_of_a_second_derivative_are_not_swallowed():
    w = torch.ones(2, requires_grad=True)
    grads = gradients((w**3).sum(), {"w": w}, create_graph=True)
    hessian_times(grads, {"w": torch.ones(2)}, {"w": w})
    with pytest.raises(RuntimeError, match="second time"):
        hessian_times(grads, {"w": torch.ones(2)}, {"w": w})
