"""When a metric is due, its fixed images, and that measuring leaves no trace."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from prunebench.core.feeds import hooked, is_rectifier
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.metrics import metric as module
from prunebench.metrics.metric import (
    Metric,
    as_json,
    probe,
    probe_losses,
    undisturbed,
)
from tests.conformance import kit
from tests.unit.fixed import run_of

torch.set_num_threads(1)


def tiny_run():
    case = next(c for c in kit.cases() if c.method == "one_shot")
    return kit.assemble(kit.tiny(case, "wrn")).run


@pytest.mark.parametrize("every", ["phase", "end", "2ep", "0.5ep", "100it"])
def test_every_is_phase_end_or_a_length(every):
    assert Metric(every=every).every == every


@pytest.mark.parametrize("every", ["", "epoch", "2", "0ep", "0it", "-1ep", "1.5it"])
def test_any_other_value_of_every_is_refused_by_name(every):
    with pytest.raises(ValueError, match=f"every={every}: must be"):
        Metric(every=every)


def test_a_length_is_due_at_its_multiples_but_not_at_the_end_of_a_phase():
    due = Metric(every="0.5ep").due
    assert [s for s in range(1, 21) if due(s, 20, 10)] == [5, 10, 15]
    assert [s for s in range(1, 8) if Metric(every="3it").due(s, 7, 10)] == [3, 6]
    assert not any(Metric(every=e).due(s, 20, 10) for e in ("phase", "end") for s in range(1, 21))


def test_metrics_that_compare_refuse_a_plan_with_one_measurement():
    phase = partial(Phase, length="1ep", schedule=lambda progress: 1.0)
    dense, retrained, between = phase("a"), phase("b"), phase("c", auxiliary=True)
    Metric().refuse_single_measurement([dense, retrained])
    Metric(every="1it").refuse_single_measurement([dense])
    for every, plan in (("phase", [dense]), ("phase", [between, dense]), ("end", [dense, retrained])):
        with pytest.raises(ValueError, match=f"^every={every}: needs two measurements"):
            Metric(every=every).refuse_single_measurement(plan)


def test_the_state_of_a_metric_is_what_it_names():
    class Counting(Metric):
        state = ("count",)
        count = 3

    fresh = Counting()
    fresh.load_state_dict(Counting().state_dict() | {"count": 5})
    assert fresh.count == 5 and Metric().state_dict() == {}


@pytest.mark.parametrize("size", [1, 7, 47, 48, 1000])
def test_the_images_of_the_probe_do_not_depend_on_the_batch_size(size):
    run = tiny_run()
    whole, labels = (torch.cat(part) for part in zip(*probe(run, 30, batch_size=10)))
    batches = list(probe(run, 30, batch_size=size))
    assert torch.equal(torch.cat([x for x, _ in batches]), whole)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    assert all(len(y) == size for _, y in batches[:-1])


def test_the_probe_is_not_augmented_and_the_same_for_every_seed_and_size():
    run, other = tiny_run(), tiny_run()
    other.seed, other.clock.place = 5, 17
    ((x, y),) = probe(run, 12)
    ((again, labels),) = probe(other, 20, batch_size=100)
    assert torch.equal(again[:12], x) and torch.equal(labels[:12], y)
    plain = torch.cat([images for images, _ in run.data.evaluation("train")])
    assert all(any(torch.equal(image, p) for p in plain) for image in x)
    assert len({tuple(image.flatten().tolist()) for image in x}) == 12


def test_the_probe_is_the_whole_training_split_where_that_is_smaller():
    run = tiny_run()
    assert sum(len(y) for _, y in probe(run, 2000)) == run.data.sizes["train"] == 48


def test_the_losses_of_the_probe_add_up_to_its_mean_cross_entropy(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.randn(10, 1, 2, 2), torch.randint(3, (10,))
    run = run_of(model, images, labels)
    run.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.3)
    monkeypatch.setattr(module, "PROBE_BATCH", 4)
    parts = list(probe_losses(run, Method(), 100))
    assert len(parts) == 3
    torch.testing.assert_close(sum(parts), nn.CrossEntropyLoss()(model(images), labels))


class Failing(Exception):
    pass


def test_undisturbed_restores_everything_also_after_an_error():
    run = tiny_run()
    run.model.train()
    next(run.model.children()).eval()
    run.network, run.precision = nn.Identity(), torch.bfloat16
    modes = [m.training for m in run.model.modules()]
    buffers = {n: b.clone() for n, b in run.model.named_buffers()}
    random, tf32 = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with pytest.raises(Failing), undisturbed(run):
            assert run.network is run.model and run.precision is None
            assert not any(m.training for m in run.model.modules())
            assert not torch.backends.cudnn.allow_tf32
            run.model.train()(torch.randn(2, *run.data.shape))
            raise Failing
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert isinstance(run.network, nn.Identity) and run.precision is torch.bfloat16
    assert [m.training for m in run.model.modules()] == modes
    assert all(torch.equal(b, buffers[n]) for n, b in run.model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)


def test_hooks_are_gone_after_the_block_also_after_an_error():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    with (
        pytest.raises(Failing),
        hooked({"first": model[0], "last": model[1]}, lambda name, output: seen.append((name, output.shape))),
    ):
        model(torch.ones(3, 2))
        raise Failing
    model(torch.ones(3, 2))
    assert seen == [("first", (3, 2)), ("last", (3, 2))]


def test_rectifiers_are_relus_and_gelus_of_torch_and_timm():
    class GELU(nn.Module):
        """As timm names its own."""

    assert all(map(is_rectifier, (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), GELU())))
    assert not any(map(is_rectifier, (nn.LeakyReLU(), nn.Hardtanh(), nn.SiLU(), nn.Tanh(), nn.Linear(2, 2))))


def test_numbers_that_json_does_not_have_become_none():
    row = {"a": float("nan"), "b": [1, {"c": float("-inf"), "d": 2.5}], "e": None, "f": True}
    assert as_json(row) == {"a": None, "b": [1, {"c": None, "d": 2.5}], "e": None, "f": True}
    json.dumps(as_json(row), allow_nan=False)
