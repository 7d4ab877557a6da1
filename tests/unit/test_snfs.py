"""SNFS in both forms: the card's redistribution, and updates followed with plain loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.methods.snfs import SNFS, moved, normalised, spread_out
from tests.unit.moving import Follow, run_of, train

torch.set_num_threads(1)


def layers():
    return nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)


def test_what_was_dropped_goes_where_the_momentum_is():
    """Mean |momentum| [.4, .1, .5], a hundred weights dropped: 40, 10 and 50 grow (dst-baselines 3)."""
    kept, sizes = {"a": 200, "b": 200, "c": 100}, dict.fromkeys("abc", 1000)
    drops, grows = moved(0.2, {"a": 0.4, "b": 0.1, "c": 0.5}, kept, sizes, 1)
    assert drops == {"a": 40, "b": 40, "c": 20}
    assert grows == {"a": 40, "b": 10, "c": 50}


def test_what_does_not_fit_is_spread_evenly():
    # a takes 99 of its 100 places, the other 61 of its 160 go half to b and half to c
    assert spread_out(200, {"a": 0.8, "b": 0.1, "c": 0.1}, {"a": 100, "b": 500, "c": 500}) == {
        "a": 99,
        "b": 51,
        "c": 50,
    }


def test_full_layers_are_filled_only_if_all_else_is():
    assert spread_out(30, {"a": 0.5, "b": 0.5}, {"a": 10, "b": 20}) == {"a": 10, "b": 20}


def test_parts_always_add_up_and_fit():
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        count = int(torch.randint(1, 6, (), generator=rng))
        parts = torch.rand(count, generator=rng)
        room = {str(i): int(r) for i, r in enumerate(torch.randint(0, 50, (count,), generator=rng))}
        total = int(torch.rand((), generator=rng) * (sum(room.values()) + 1))
        shares = dict(zip(room, (parts / parts.sum()).tolist()))
        got = spread_out(total, shares, room)
        assert sum(got.values()) == total
        assert all(0 <= got[n] <= room[n] for n in room)


def test_a_layer_that_is_nearly_dense_and_grows_drops_no_more_than_its_sparsity():
    kept, sizes = {"a": 90, "b": 90, "c": 50}, dict.fromkeys("abc", 100)
    drops, grows = moved(0.5, {"a": 0.6, "b": 0.3, "c": 0.1}, kept, sizes, 1)
    assert drops == {"a": 9, "b": 45, "c": 25}  # a: ceil(.1 * 90); b is below the mean of a third
    assert sum(grows.values()) == 79


def test_no_layer_falls_below_its_floor():
    drops, grows = moved(1.0, {"a": 1.0, "b": 0.0}, {"a": 3, "b": 2}, {"a": 20, "b": 20}, 2)
    assert drops == {"a": 3, "b": 2}
    assert grows == {"a": 3, "b": 2}


def test_parts_are_means_over_the_kept_weights():
    sums = {"a": torch.tensor(8.0), "b": torch.tensor(1.0), "c": torch.tensor(0.0)}
    assert normalised(sums, {"a": 2, "b": 1, "c": 0}) == {"a": 0.8, "b": 0.2, "c": 0.0}
    assert normalised({"a": torch.tensor(0.0), "b": torch.tensor(0.0)}, {"a": 1, "b": 1}) == {
        "a": 0.5,
        "b": 0.5,
    }


class Reference(SNFS):
    """Checks every update against an average and masks computed weight by weight."""

    def step(self, run):
        if not hasattr(self, "mine"):
            self.mine = {n: torch.zeros_like(m, dtype=torch.float64) for n, m in run.masks.items()}
            self.wrong, self.updates = [], 0
        params = dict(run.model.named_parameters())
        for n, a in self.mine.items():
            a.mul_(0.9).add_(0.1 * params[n].grad.double())
        before = dict(run.masks)
        super().step(run)
        if run.masks is not self.last_masks:
            self.updates += 1
            self.check_update(before, run, {n: p.detach() for n, p in params.items()})
        self.last_masks = run.masks

    def check_update(self, before, run, weights):
        for name, old in before.items():
            grown = run.masks[name] & ~old
            left_out = ~run.masks[name] & ~old
            if bool(grown.any()) and bool(left_out.any()):
                sizes = self.mine[name].abs()
                self.wrong += [name] if sizes[grown].min() < sizes[left_out].max() - 1e-7 else []


def follow(**options):
    method, watch = Reference(**options), Follow()
    run = run_of(*layers())
    method.last_masks = None
    original = method.prune

    def prune(run, sparsity):
        original(run, sparsity)
        method.last_masks = run.masks

    method.prune = prune
    return method, train(method, run, observer=watch), watch


def test_redistribution_moves_weights_between_layers_and_keeps_their_number():
    method, _, watch = follow(interval=3)
    assert method.updates > 5
    assert method.wrong == [] and watch.wrong == []
    assert {sum(c.values()) for c in watch.counts} == {round(0.4 * 104)}
    assert len({tuple(c.values()) for c in watch.counts}) > 1


def test_without_redistribution_layers_keep_their_numbers():
    method, _, watch = follow(interval=3, drop_fraction=0.5, redistribute="none", until=0.75)
    assert method.updates > 4
    assert method.wrong == [] and watch.wrong == []
    assert len({tuple(c.values()) for c in watch.counts}) == 1


def test_an_update_drops_the_smallest_weights_and_grows_the_largest_average():
    run = run_of(nn.Linear(10, 1, bias=False))
    weight = run.model[0].weight
    weight.data = torch.tensor([[0.9, -0.05, 0.4, 0, 0, -0.7, 0.1, 0, 0, 0]])
    weight.grad = torch.tensor([[0.1, 0.8, -0.3, 0.5, -0.9, 0.2, 0.05, 0.6, -0.4, 0.05]])
    run.masks = Masks({"0.weight": torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0]]).bool()})
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
    run.goal, run.clock.steps, run.clock.step = 0.5, 1000, 100
    method = SNFS(interval=100)
    method.attach(run)
    method.step(run)  # ceil(.5 * 5) = 3 go: 1, 6 and 2; the largest of what is free come: 4, 1 and 7
    assert run.masks["0.weight"][0].nonzero()[:, 0].tolist() == [0, 1, 4, 5, 7]
    assert method.average["0.weight"][0, 4] == pytest.approx(-0.09)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum=1.0: must lie in \[0, 1\)"),
        ({"redistribute": "size"}, "redistribute=size: must be momentum or none"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SNFS(**options)


def test_every_step_costs_the_dense_gradient_where_masks_change():
    assert SNFS().train_macs(SimpleNamespace(goal=0.8), 7, 200, 1000) == 1400
    assert math.isclose(1400 / 1000, 2 * 0.2 + 1)
    assert SNFS().train_macs(SimpleNamespace(goal=None), 7, 200, 1000) == 600


def test_nothing_is_redistributed_by_a_single_batch():
    _, _, watch = follow(interval=3)
    first = next(i for i, counts in enumerate(watch.counts) if counts != watch.counts[0])
    assert first >= 3
