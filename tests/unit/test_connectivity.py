"""Barriers on the line between two networks."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from prunebench.core.method import Method, Reparameterized
from prunebench.core.phase import Phase
from prunebench.metrics import connectivity
from prunebench.metrics.connectivity import Barrier, barrier, estimate_statistics_, instability, seen_state
from prunebench.metrics.metric import undisturbed
from tests.unit.fixed import prune, run_of

torch.set_num_threads(1)

PLAN = [Phase(n, length="1ep", schedule=lambda progress: 1.0) for n in ("a", "b")]
NAMES = {f"{q}_{k}" for q in connectivity.QUANTITIES for k in ("barrier", "instability")} | {"curve"}


def test_barrier_and_instability_of_the_worked_values():
    """metrics.md, check 8."""
    assert barrier([0.2, 0.9, 0.4]) == pytest.approx(0.6)
    assert instability([0.2, 0.9, 0.4]) == pytest.approx(0.6)
    assert barrier([0.2, 0.7, 0.4, 0.9]) == pytest.approx(0.7 - (2 * 0.2 + 0.9) / 3)
    assert instability([0.2, 0.7, 0.4, 0.9]) == pytest.approx(0.9 - 0.55)


def test_barrier_of_a_double_well_is_its_height():
    """metrics.md, check 8: L = (w^2 - 1)^2 from -1 to 1."""
    values = [((2 * i / 10 - 1) ** 2 - 1) ** 2 for i in range(11)]
    assert barrier(values) == instability(values) == 1.0


@pytest.mark.parametrize("values", [[0.3] * 5, [0.1, 0.2, 0.3], [0.5, 0.1, 0.4]])
def test_there_is_no_barrier_where_nothing_exceeds_the_line(values):
    assert barrier(values) == pytest.approx(0, abs=1e-15)


def test_a_value_that_is_no_number_leaves_no_barrier_to_speak_of():
    for values in ([0.1, math.nan, 0.2], [math.nan, 0.5, 0.2], [0.1, 0.5, math.nan]):
        assert math.isnan(barrier(values)) and math.isnan(instability(values))


def network(*, norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 3))


def trained(*, norm: bool = True, seed: int = 0, steps: int = 60):
    """A run of a network that fits 40 random images."""
    torch.manual_seed(7)
    images, labels = torch.randn(40, 1, 4, 4), torch.randint(3, (40,))
    torch.manual_seed(seed)
    model = network(norm=norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return run_of(model, images, labels)


def measured(metric: Barrier, run, method: Method | None = None) -> dict:
    with undisturbed(run):
        return metric.measure(run, method or Method())


def test_the_first_measurement_has_nothing_to_compare_with_and_the_second_has_itself():
    run, metric = trained(), Barrier()
    first = measured(metric, run)
    assert set(first) == NAMES and set(first.values()) == {None}
    same = measured(metric, run)
    assert {v for n, v in same.items() if n.endswith("barrier")} == {0.0}
    assert {v for n, v in same.items() if n.endswith("instability")} == {0.0}
    json.dumps(same, allow_nan=False)


@pytest.mark.parametrize("norm", [True, False])
def test_a_permuted_copy_computes_the_same_and_lies_behind_a_barrier(norm):
    run, metric = trained(norm=norm), Barrier()
    measured(metric, run)
    order, state = [5, 3, 4, 1, 2, 0], run.model.state_dict()
    for name, tensor in state.items():
        if name == "4.weight":
            tensor.copy_(tensor.view(3, 6, 4)[:, order].reshape(3, 24))
        elif tensor.ndim and name != "4.bias":
            tensor.copy_(tensor[order])
    row = measured(metric, run)
    ends = row["curve"][0], row["curve"][-1]
    assert ends[0]["train_error"] == ends[1]["train_error"] == 0.0
    assert ends[0]["train_loss"] == pytest.approx(ends[1]["train_loss"], rel=1e-4)
    assert row["train_error_barrier"] > 0.1
    assert row["train_error_instability"] == pytest.approx(row["train_error_barrier"])
    assert row["test_loss_barrier"] == pytest.approx(row["train_loss_barrier"], rel=1e-6), "the same images"
    assert [p["share"] for p in row["curve"]] == [i / 10 for i in range(11)]


def test_the_values_are_those_of_the_interpolated_networks():
    """Recomputed at a quarter of the way."""
    run, other, metric = trained(seed=0), trained(seed=1), Barrier(points=5)
    metric.last = seen_state(other, Method())
    row = measured(metric, run)
    pairs = zip(other.model.state_dict().items(), run.model.state_dict().values())
    mixed = {n: 0.75 * a + 0.25 * b if a.is_floating_point() else b for (n, a), b in pairs}
    model, images, labels = network().eval(), run.data.images, run.data.labels
    model.load_state_dict(mixed)
    with torch.no_grad():
        hidden = model[0](images)  # the probe is one batch, whose variance is unbiased in the statistics
        model[1].running_mean.copy_(hidden.mean((0, 2, 3)))
        model[1].running_var.copy_(hidden.var((0, 2, 3)))
        logits = model(images)
    point = row["curve"][1]
    assert point["train_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert point["train_error"] == pytest.approx(float((logits.argmax(1) != labels).double().mean()))


def test_without_batchnorm_the_ends_are_the_two_networks():
    run, other, metric = trained(norm=False, seed=0), trained(norm=False, seed=1, steps=3), Barrier(points=3)
    metric.last = seen_state(other, Method())
    curve = measured(metric, run)["curve"]
    for point, net in ((curve[0], other), (curve[-1], run)):
        loss = F.cross_entropy(net.model(run.data.images), run.data.labels).detach()
        assert point["test_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_statistics_are_plain_averages_over_the_batches():
    model, images = network().eval(), torch.randn(30, 1, 4, 4)
    momentum = model[1].momentum
    estimate_statistics_(model, [images[:20], images[20:]])
    hidden = [model[0](part) for part in (images[:20], images[20:])]
    mean = torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0)
    variance = torch.stack([h.var((0, 2, 3)) for h in hidden]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == momentum and not any(m.training for m in model.modules())


def test_between_two_masked_networks_the_union_is_kept():
    run, metric = trained(norm=False), Barrier(points=3)
    first, second = torch.rand(3, 24) > 0.5, torch.rand(3, 24) > 0.5
    whole = {n: t.clone() for n, t in run.model.state_dict().items()}
    prune(run, **{"4": first})
    measured(metric, run)
    run.model.load_state_dict(whole)
    prune(run, **{"4": second})
    middle = torch.lerp(metric.last["4.weight"], run.model[4].weight.detach(), 0.5)
    assert torch.equal(middle != 0, first | second)
    assert measured(metric, run)["curve"][1]["train_loss"] > 0


def test_the_last_network_survives_a_checkpoint_and_nothing_else_changes():
    run, metric, resumed = trained(), Barrier(points=3), Barrier(points=3)
    measured(metric, run)
    resumed.load_state_dict(metric.state_dict())
    with torch.no_grad():
        run.model[4].weight.add_(0.3)
    before = {n: t.clone() for n, t in run.model.state_dict().items()}
    assert measured(metric, run) == measured(resumed, run)
    assert all(torch.equal(t, before[n]) for n, t in run.model.state_dict().items())


class Halved(Reparameterized):
    """Soft masks: the forward pass halves the weights of the classifier."""

    def weights(self, run):
        return {"4.weight": 0.5 * run.model[4].weight}


def test_of_soft_masks_the_weights_that_the_forward_pass_uses_are_compared():
    run = trained(norm=False)
    state = seen_state(run, Halved())
    assert torch.equal(state["4.weight"], 0.5 * run.model[4].weight.detach())
    assert torch.equal(state["0.weight"], run.model[0].weight.detach())
    metric = Barrier(points=3)
    measured(metric, run, Halved())
    loss = measured(metric, run, Halved())["curve"][0]["train_loss"]
    expected = F.cross_entropy(Halved().forward(run, run.data.images), run.data.labels).detach()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert not run.model._forward_pre_hooks


def test_another_finished_run_is_read_from_its_directory(tmp_path):
    run, other = trained(seed=0), trained(seed=1)
    save_file(other.model.state_dict(), tmp_path / "final.safetensors")
    metric = Barrier(every="end", other=str(tmp_path), points=3)
    metric.check(run, PLAN)
    row, previous = measured(metric, run), Barrier(points=3)
    previous.last = seen_state(other, Method())
    assert measured(previous, run) == row
    assert row["train_loss_barrier"] > 0 and metric.state_dict() == {"last": None}


def test_what_cannot_be_compared_is_refused_before_training(tmp_path):
    run = trained(norm=False)
    with pytest.raises(ValueError, match=r"^every=end: needs two measurements"):
        Barrier(every="end").check(run, PLAN)
    with pytest.raises(ValueError, match=r"^other=/nowhere: must be previous or the directory of a finished"):
        Barrier(other="/nowhere").check(run, PLAN)
    there = Barrier(other=str(tmp_path))
    with pytest.raises(ValueError, match=f"^other={tmp_path}: has no final.safetensors"):
        there.check(run, PLAN)
    (tmp_path / "final.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"final\.safetensors cannot be read"):
        there.check(run, PLAN)
    state = run.model.state_dict()
    save_file(state | {"4.weight": torch.zeros(2, 24)}, tmp_path / "final.safetensors")
    with pytest.raises(ValueError, match=r"4.weight has shape \[2, 24\] there and shape \[3, 24\] here"):
        there.check(run, PLAN)
    save_file(trained().model.state_dict(), tmp_path / "final.safetensors")
    with pytest.raises(ValueError, match=r"1.bias has shape \[6\] there and no entry here"):
        there.check(run, PLAN)


def test_statistics_that_processes_share_are_refused():
    run = run_of(nn.SyncBatchNorm.convert_sync_batchnorm(network()), torch.randn(4, 1, 4, 4))
    with pytest.raises(ValueError, match=r"^metrics\.barrier: .*trainer\.sync_bn=true"):
        Barrier().check(run, PLAN)


@pytest.mark.parametrize(("option", "value"), [("points", 2), ("images", 1)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option}={value}: must be at least"):
        Barrier(**{option: value})
