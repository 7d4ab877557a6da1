"""DPF against a loop over two copies of the weights, and what its masks do."""

from itertools import pairwise

import pytest
import torch

from prunebench.core.loop import Sink, enter, fit
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.methods.dpf import DPF
from tests.unit.within import NAMES, Look, Plain, falling, fitted, phase, sgd, small_run

torch.set_num_threads(1)

CUBIC = {1: 0.2679, 2: 0.4765, 3: 0.6333, 4: 0.7457, 5: 0.821, 6: 0.8667, 7: 0.8901, 8: 0.8988, 9: 0.9}


def test_the_sparsity_rises_at_the_ends_of_nine_of_ten_parts():
    method = DPF()
    for part, sparsity in CUBIC.items():
        assert method.sparsity_at(100 * part, 1000, 0.9) == pytest.approx(sparsity, abs=5e-5)
        assert method.sparsity_at(100 * part + 99, 1000, 0.9) == method.sparsity_at(100 * part, 1000, 0.9)
    assert method.sparsity_at(99, 1000, 0.9) == 0.0
    assert method.sparsity_at(1000, 1000, 0.9) == 0.9


def test_masks_are_taken_anew_every_interval_and_at_every_rise():
    method = DPF(interval=16, rises=3)
    assert [t for t in range(1, 81) if method.renews(t, 80)] == [20, 32, 40, 48, 60, 64, 80]


def reference_dpf(steps, target, interval, rises):
    """w <- w - lr v with the gradient at m w, for all weights; states after every step."""
    plain = Plain(steps)
    dense = {n: p.detach().clone() for n, p in plain.parameters.items()}
    mask = {n: torch.ones_like(dense[n], dtype=torch.bool) for n in NAMES}
    ends = [-(-steps * j // (rises + 1)) for j in range(1, rises + 1)]
    seen = []
    for step in range(steps):
        with torch.no_grad():
            for n, p in plain.parameters.items():
                p.copy_(dense[n] * mask[n] if n in mask else dense[n])
        plain.momentum_step(step, dense, plain.gradients(step))
        time, done = step + 1, sum(e <= step + 1 for e in ends)
        if done and (time % interval == 0 or time in ends):
            sparsity = target * (1 - (1 - done / rises) ** 3)
            flat = torch.cat([dense[n].abs().flatten() for n in NAMES])
            kept = torch.zeros(flat.numel(), dtype=torch.bool)
            kept[flat.argsort(descending=True)[: round((1 - sparsity) * flat.numel())]] = True
            parts = kept.split([dense[n].numel() for n in NAMES])
            mask = {n: part.view(dense[n].shape) for n, part in zip(NAMES, parts)}
        seen.append((copies(dense), dict(mask)))
    return seen


def copies(tensors):
    return {n: t.clone() for n, t in tensors.items()}


@pytest.mark.parametrize(("interval", "rises"), [(4, 4), (16, 3), (7, 9)])
def test_a_whole_run_is_that_of_a_loop_over_dense_and_masked_weights(interval, rises):
    method = DPF(interval=interval, rises=rises)
    run, look = fitted(method)
    expected = reference_dpf(60, 0.75, interval, rises)
    for t, (dense, mask) in enumerate(expected):
        for n in NAMES:
            assert torch.equal(look.masks[t][n], mask[n])
            torch.testing.assert_close(look.weights[t][n], dense[n] * mask[n], rtol=1e-9, atol=1e-12)
    for n in NAMES:
        torch.testing.assert_close(method.raw[n], expected[-1][0][n], rtol=1e-9, atol=1e-12)
    assert run.masks.kept == 10


def test_masked_weights_keep_learning_and_return():
    method = DPF(interval=4, rises=4)
    _, look = fitted(method, phase(120))
    alive = [torch.cat([m.flatten() for m in masks.values()]) for masks in look.masks]
    assert sum(int((b & ~a).sum()) for a, b in pairwise(alive)) > 0
    start = small_run().model.state_dict()
    gone = {n: ~m for n, m in look.masks[-1].items()}
    assert all(bool((method.raw[n] != start[n])[g].all()) for n, g in gone.items())
    assert all(bool((look.weights[-1][n][g] == 0).all()) for n, g in gone.items())
    assert look.hold == [True] * 120


def test_the_parameters_are_the_same_objects_in_the_same_place_after_a_step():
    method, run = DPF(interval=2, rises=2), small_run()
    (train,) = method.plan([phase(12)])
    method.attach(run)
    enter(train, run, method, sgd, Sink())
    weight, address = run.model.fc1.weight, run.model.fc1.weight.data_ptr()
    run.goal = 0.75
    for p in run.model.parameters():
        p.grad = torch.ones_like(p)
    method.step(run)
    assert run.model.fc1.weight is weight
    assert weight.data_ptr() == address != method.raw["fc1.weight"].data_ptr()


def test_a_dense_phase_before_and_a_control_after_it_are_plain_training():
    method = DPF(interval=4, rises=4)
    plan = (
        Phase("dense", "10it", falling),
        phase(40),
        Phase("control", "12it", falling, weights="init", uncontrolled="keep"),
    )
    run = small_run()
    start = run.model.state_dict()
    run.snapshots["init"] = copies(start)
    look_run, look = fitted_on(run, method, plan)
    plain = fitted_on(small_run(), Method(), (Phase("dense", "10it", falling),))[1]
    assert all(torch.equal(look.weights[9][n], plain.weights[9][n]) for n in NAMES)
    found = look.masks[49]
    for t in range(50, 62):  # the masks stay, and hold
        assert all(torch.equal(look.masks[t][n], found[n]) for n in NAMES)
        assert all(bool((look.weights[t][n][~found[n]] == 0).all()) for n in NAMES)
    assert look_run.masks.kept == 10


def fitted_on(run, method, plan):
    look, plan = Look(), method.plan(list(plan))
    method.attach(run)
    fit(plan, run, method, sgd, look)
    return run, look


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0: must be at least 1 step"),
        ({"rises": 0}, "rises=0: must be at least 1"),
        ({"allocation": "erk"}, "sparsity.allocation=erk: must be one of global, uniform"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DPF(**options)


@pytest.mark.parametrize(
    ("options", "plan", "message"),
    [
        ({"rises": 30}, phase(), "method.rises=30: must leave 2 steps"),
        ({}, phase(reach=None), "sparsity.target=null"),
        ({}, phase(reach=0.999), "sparsity.target=0.999: keeps no weight of 40"),
    ],
)
def test_what_cannot_be_reached_is_refused_before_training(options, plan, message):
    with pytest.raises(ValueError, match=message):
        fitted(DPF(**options), plan)
