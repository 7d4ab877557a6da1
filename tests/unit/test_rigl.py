"""RigL and its relatives: the card's worked numbers, and a slow update written from the paper's text."""

import math
import os
from itertools import pairwise

import pytest
import torch
from torch import nn

from prunebench.core.loop import Sink
from prunebench.core.masks import Masks
from prunebench.methods.rigl import RigL
from prunebench.methods.set import SET
from prunebench.methods.sparse_training import SparseTraining
from prunebench.methods.static import Static
from prunebench.ramps import FALLS
from tests.conformance import kit
from tests.unit.moving import Follow, layers, run_of, sgd, train

torch.set_num_threads(1)

THETA = [0.9, -0.05, 0.4, 0, 0, -0.7, 0.1, 0, 0, 0]  # rigl 7.6
MASK = [1, 1, 1, 0, 0, 1, 1, 0, 0, 0]
GRADIENT = [0.1, 0.8, -0.3, 0.5, -0.9, 0.2, 0.05, 0.6, -0.4, 0.05]


def card(fraction):
    """The card's layer after one update of RigL with momentum 1, 2, ... before it."""
    run = run_of(nn.Linear(10, 1, bias=False))
    (weight,) = run.model.parameters()
    weight.data = torch.tensor([THETA])
    weight.grad = torch.tensor([GRADIENT])
    run.masks, run.goal = Masks({"0.weight": torch.tensor([MASK]).bool()}), 0.5
    run.optimizer = sgd(run, None)
    run.optimizer.state[weight]["momentum_buffer"] = torch.arange(1.0, 11.0)[None] * torch.tensor([MASK])
    run.clock.steps = 1000
    RigL(drop_fraction=fraction).step(run)
    return run, weight, run.optimizer.state[weight]["momentum_buffer"]


def test_the_cards_example_drops_one_weight_and_grows_another():
    run, weight, momentum = card(0.3)
    assert run.masks["0.weight"][0].nonzero()[:, 0].tolist() == [0, 2, 4, 5, 6]
    assert weight[0, 4] == 0 and momentum[0, 4] == 0
    assert weight[0].tolist() == pytest.approx([0.9, 0, 0.4, 0, 0, -0.7, 0.1, 0, 0, 0])
    assert momentum[0].tolist() == [1, 0, 3, 0, 0, 6, 7, 0, 0, 0]


def test_a_weight_dropped_and_regrown_at_once_keeps_its_value_and_its_momentum():
    run, weight, momentum = card(0.5)
    assert run.masks["0.weight"][0].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5]
    assert weight[0].tolist() == pytest.approx([0.9, -0.05, 0.4, 0, 0, -0.7, 0, 0, 0, 0])
    assert momentum[0].tolist() == [1, 2, 3, 0, 0, 6, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("anneal", "expected"),
    [
        ("cosine", [0.3, 0.256066, 0.15, 0.043934, 0.0]),
        ("linear", [0.3, 0.225, 0.15, 0.075, 0.0]),
        ("constant", [0.3] * 5),
        ("inverse_power", [0.3, 0.3 * 0.421875, 0.3 / 8, 0.3 / 64, 0.0]),
    ],
)
def test_the_drop_fraction_falls_as_the_card_says(anneal, expected):
    method = RigL(anneal=anneal)
    got = [method.fraction(t, 100_000) for t in (0, 18750, 37500, 56250, 75000)]
    assert got == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("anneal", FALLS)
def test_the_fraction_never_rises(anneal):
    values = [FALLS[anneal](i / 50) for i in range(51)]
    assert values[0] == 1.0
    assert all(0 <= b <= a + 1e-15 for a, b in pairwise(values))


def test_the_fraction_begins_where_the_updates_do():
    method = RigL(begin=0.25, until=0.75)
    assert method.fraction(25, 100) == 0.3
    assert method.fraction(50, 100) == pytest.approx(0.15)
    assert method.fraction(75, 100) == pytest.approx(0.0, abs=1e-12)


def reference_update(weight, mask, gradient, fraction):
    """One update of a layer, weight by weight (arXiv 1911.11134, algorithm 1)."""
    flat = range(weight.numel())
    w, m, g = weight.flatten().tolist(), mask.flatten().tolist(), gradient.flatten().tolist()
    count = int(fraction * sum(m))
    alive = sorted((i for i in flat if m[i]), key=lambda i: (abs(w[i]), -i))
    kept = set(alive[count:])
    free = sorted((i for i in flat if i not in kept), key=lambda i: (-abs(g[i]), i))
    new = kept | set(free[:count])
    return torch.tensor([i in new for i in flat]).view(mask.shape)


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("kind", [RigL, SET])
def test_layers_keep_their_numbers_and_what_is_grown_begins_at_0(kind, replaces):
    watch = Follow()
    method = kind(interval=3, drop_fraction=0.5, anneal="constant", update_replaces_step=replaces)
    run = train(method, run_of(*layers()), observer=watch)
    assert len({tuple(c.values()) for c in watch.counts}) == 1
    assert run.masks.kept == round(0.4 * 104)
    assert watch.wrong == []


def test_updates_are_interval_weight_steps_apart_and_end_at_until():
    watch = Follow()
    method = RigL(interval=3, drop_fraction=0.5, anneal="constant", until=0.5)
    train(method, run_of(*layers()), observer=watch)
    assert watch.changed == [0, 4, 8, 12, 16]  # t = 0, 3, 6, 9, 12 = until
    watch = Follow()
    method = RigL(interval=3, drop_fraction=0.5, anneal="constant", until=0.5, update_replaces_step=False)
    train(method, run_of(*layers()), observer=watch)
    assert watch.changed == [0, 3, 6, 9, 12]


def test_every_update_is_that_of_the_slow_reference(monkeypatch):
    """Twenty-four steps; before each update weights and dense gradients are put aside."""
    seen = []
    original = SparseTraining.update

    def update(self, run, drops, grows, scores):
        params = dict(run.model.named_parameters())
        share = self.fraction(self._time(run, run.clock.step, run.clock.steps), run.clock.steps)
        wanted = {
            n: reference_update(params[n].detach(), m, params[n].grad, share) for n, m in run.masks.items()
        }
        original(self, run, drops, grows, scores)
        seen.append([int((run.masks[n] != m).sum()) for n, m in wanted.items()])

    monkeypatch.setattr(SparseTraining, "update", update)
    train(RigL(interval=2, drop_fraction=0.6), run_of(*layers()))
    assert len(seen) >= 6
    assert not any(map(any, seen))


def test_an_update_takes_the_place_of_the_weight_step():
    class Weights(Sink):
        def __init__(self):
            self.moved = []

        def entered(self, run, method, phase):
            self.before = run.model[0].bias.detach().clone()

        def after_step(self, run, method, phase, loss):
            now = run.model[0].bias.detach().clone()
            self.moved.append(not torch.equal(now, self.before))
            self.before = now

    for replaces, still in ((True, {0, 4, 8, 12, 16, 20}), (False, set())):
        watch = Weights()
        method = RigL(interval=3, until=0.9, anneal="constant", update_replaces_step=replaces)
        train(method, run_of(*layers()), observer=watch)
        assert {i for i, moved in enumerate(watch.moved) if not moved} == still


def test_with_a_drop_fraction_of_0_the_run_is_static_bit_for_bit():
    runs = [
        train(method, run_of(*layers()))
        for method in (RigL(interval=3, drop_fraction=0.0), SET(interval=3, drop_fraction=0.0), Static())
    ]
    moving = train(RigL(interval=3), run_of(*layers()))
    for run in runs[:2]:
        assert all(torch.equal(m, runs[2].masks[n]) for n, m in run.masks.items())
        assert kit.differences(run.model.state_dict(), runs[2].model.state_dict()) == []
    assert kit.differences(moving.model.state_dict(), runs[2].model.state_dict())


def test_the_growth_of_set_is_uniform_over_the_free_places():
    """Every place free after dropping is grown with the probability k / free; 3000 draws."""
    run = run_of(nn.Linear(10, 1, bias=False))
    run.masks, run.goal = Masks({"0.weight": torch.tensor([MASK]).bool()}), 0.5
    run.optimizer, run.clock.steps = sgd(run, None), 1000
    mask, count, draws = run.masks["0.weight"], torch.zeros(10), 3000
    method = SET(drop_fraction=0.5)
    for place in range(draws):
        run.clock.place = place
        run.model[0].weight.data = torch.tensor([THETA])
        run.masks = Masks({"0.weight": mask.clone()})
        method.update(run, {"0.weight": 2}, {"0.weight": 2}, method.growth(run, ["0.weight"]))
        count += run.masks["0.weight"][0]
    assert count[[0, 2, 5]].tolist() == [draws] * 3
    free = count[[1, 3, 4, 6, 7, 8, 9]] / draws
    expected = 2 / 7
    assert (free - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / draws)


def test_gradients_of_several_batches_are_added_up():
    """One weight step is in between; the update must grow where the sum of both gradients is largest."""
    gradients, method = [], RigL(interval=3, drop_fraction=0.5, batches=2)

    class Spy(RigL):
        def growth(self, run, names):
            scores = super().growth(run, names)
            gradients.append({n: (scores[n].clone(), list(dense)) for n in names for dense in [seen[n]]})
            return scores

        def step(self, run):
            for n, p in run.model.named_parameters():
                if n in run.masks:
                    seen.setdefault(n, []).append(p.grad.clone())
            super().step(run)

    seen, method = {}, Spy(interval=3, drop_fraction=0.5, batches=2)
    train(method, run_of(*layers()))
    assert len(gradients) > 3
    for scores in gradients[1:]:
        for gathered, dense in scores.values():
            assert torch.equal(gathered, dense[-2] + dense[-1])
    assert method.gathered == {}


def test_a_run_that_gathers_gradients_resumes_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    more = ("method.batches=3", "trainer.checkpoint_every=1it")
    overrides = kit.tiny(kit.Case("rigl"), "wrn", *more)
    whole = kit.recorded(overrides, tmp_path / "whole").fit()
    for total in (4, 9):
        parts = kit.recorded(overrides, tmp_path / str(total))
        settled = parts.recorder.settled

        def stop(run, method, phase, settled=settled, total=total):
            settled(run, method, phase)
            if run.clock.total == total:
                raise KeyboardInterrupt

        parts.recorder.settled = stop
        with pytest.raises(KeyboardInterrupt):
            parts.fit()
        resumed = kit.recorded(overrides, tmp_path / str(total)).fit()
        assert kit.differences(kit.state_of(whole), kit.state_of(resumed)) == []
        assert kit.differences(kit.on_disk(tmp_path / "whole"), kit.on_disk(tmp_path / str(total))) == []
