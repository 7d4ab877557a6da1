"""STR: the worked numbers, and gradients as autograd takes them from the formula."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from prunebench.core.phase import Phase
from prunebench.methods.str import STR
from tests.unit.within import NAMES, Small, falling, fitted, phase, sgd, small_run

torch.set_num_threads(1)


def train(steps=60):
    return phase(steps, reach=None)


def test_a_threshold_of_minus_one_and_a_half():
    run = small_run()
    with torch.no_grad():
        run.model.fc1.weight.copy_(torch.full((8, 3), 0.0))
        run.model.fc1.weight[0] = torch.tensor([0.5, -0.1, 0.3])
        run.model.fc1.weight[1] = torch.tensor([-0.5, 0.1, -0.3])
    STR(s_initial=-1.5).attach(run)
    assert run.model.fc1.weight[0].tolist() == pytest.approx([0.317574, 0, 0.117574], abs=1e-6)
    assert run.model.fc1.weight[1].tolist() == pytest.approx([-0.317574, 0, -0.117574], abs=1e-6)


def test_the_papers_start_is_a_threshold_of_0_without_a_gradient():
    assert float(torch.sigmoid(torch.tensor(-3200.0))) == 0.0
    method = STR(s_initial=-3200.0)
    run, look = fitted(method, train(20))
    dense = dict(small_run().model.named_parameters())
    plain, _ = fitted(STR(s_initial=-200.0), train(20))
    assert all(torch.equal(look.weights[-1][n], dict(plain.model.named_parameters())[n]) for n in NAMES)
    assert run.masks.sparsity == 0.0
    assert float(method.thresholds[0].detach()) > -3200.0  # weight decay alone
    assert not torch.equal(dense["fc1.weight"], look.weights[-1]["fc1.weight"])


def reference_str(steps, s_initial):
    """The formula inside the forward pass, its gradients by autograd; effective weights after every step."""
    model = Small()
    raw = {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}
    s = {n: nn.Parameter(torch.tensor(s_initial, dtype=torch.float64)) for n in NAMES}

    def effective():
        weights = dict(raw)
        for n in NAMES:
            weights[n] = torch.sign(raw[n]) * torch.relu(raw[n].abs() - torch.sigmoid(s[n]))
        return weights

    optimizer = torch.optim.SGD([*raw.values(), *s.values()], lr=0.3, momentum=0.8, weight_decay=1e-3)
    data, seen = small_run().data, []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - 0.5 * step / steps)
        x, y = data.batch(0, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(functional_call(model, effective(), (x,)), y).backward()
        optimizer.step()
        seen.append({n: w.detach().clone() for n, w in effective().items()})
    return seen, s


@pytest.mark.parametrize("s_initial", [-1.5, -3.0])
def test_a_whole_run_is_that_of_autograd_through_the_formula(s_initial):
    method = STR(s_initial=s_initial)
    run, look = fitted(method, train())
    seen, s = reference_str(60, s_initial)
    for t in range(60):
        for n in NAMES:
            torch.testing.assert_close(look.weights[t][n], seen[t][n], rtol=1e-9, atol=1e-12)
    for learned, wanted in zip(method.thresholds, s.values()):
        assert float(learned.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
        assert float(learned.detach()) != pytest.approx(s_initial, abs=1e-3)
    params = dict(run.model.named_parameters())
    assert all(torch.equal(run.masks[n], seen[-1][n] != 0) for n in NAMES)
    assert all(torch.equal(run.masks[n], params[n] != 0) for n in NAMES)
    assert 0 < run.masks.sparsity < 1


def test_masks_are_read_every_interval_and_at_epoch_ends_and_rows_in_between_say_so():
    _, look = fitted(STR(s_initial=-1.5, interval=5), train(20))
    assert look.hold == [t % 5 == 0 or t % 3 == 0 or t == 20 for t in range(1, 21)]
    for weights, masks, hold in zip(look.weights, look.masks, look.hold):
        if hold:
            assert all(torch.equal(masks[n], weights[n] != 0) for n in NAMES)


def test_reading_masks_more_often_changes_no_weight():
    ends = [fitted(STR(s_initial=-1.5, interval=i), train(20))[1].weights[-1] for i in (1, 19)]
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in NAMES)


def test_thresholds_are_trained_with_the_optimizers_weight_decay():
    run, method = small_run(), STR()
    method.attach(run)
    group = sgd(run, method).param_groups[-1]
    assert len(group["params"]) == 2 and group["weight_decay"] == 1e-3


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([phase()], "protocol.target: STR reaches no given sparsity"),
        ([Phase("dense", "5it", falling), train()], "protocol.before, protocol.control"),
        ([Phase(**(vars(train()) | {"keep": "best"}))], "protocol.keep=best, protocol.patience"),
        ([Phase(**(vars(train()) | {"patience": "2ep"}))], "protocol.keep=best, protocol.patience"),
    ],
)
def test_plans_with_a_target_or_more_phases_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        STR().plan(plan)


@pytest.mark.parametrize(
    ("options", "message"), [({"s_initial": float("inf")}, "s_initial=inf"), ({"interval": 0}, "interval=0")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        STR(**options)
