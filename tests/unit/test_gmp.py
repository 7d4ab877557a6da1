"""Gradual magnitude pruning: the card's ramp, nested masks, exact counts at every update."""

import pytest
import torch
from torch import nn

from prunebench.core.loop import Sink, fit
from prunebench.core.phase import Phase
from prunebench.methods.gmp import GMP
from tests.unit.moving import run_of, sgd

torch.set_num_threads(1)


class Follow(Sink):
    """Masks and weights after every step."""

    def __init__(self):
        self.sparsities, self.masks, self.weights = [], [], []

    def after_step(self, run, method, phase, loss):
        self.sparsities.append(run.masks.sparsity)
        self.masks.append({n: m.clone() for n, m in run.masks.items()})
        self.weights.append({n: p.detach().clone() for n, p in run.model.named_parameters()})


def train(method, *, reach=0.8, length="40it"):
    run, watch = run_of(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)), Follow()
    plan = method.plan([Phase("train", length, lambda p: 1.0, within=True, reach=reach)])
    method.check(run, [reach])
    fit(plan, run, method, sgd, watch)
    return run, watch


def test_the_ramp_is_that_of_the_card():
    gmp = GMP(interval=3750)
    values = [gmp.sparsity_at(t, 32000, 0.9) for t in (10000, 13750, 17500, 21250, 25000)]
    assert values == pytest.approx([0, 0.520313, 0.7875, 0.885938, 0.9], abs=1e-6)  # six digits
    assert values[-1] == 0.9
    assert [gmp.sparsity_at(t, 32000, 0.9) for t in (9999, 10001, 25001)] == [None] * 3
    assert gmp.sparsity_at(10000, 32000, None) is None


@pytest.mark.parametrize(("sparsity", "card"), [(0.8, 0.559), (0.9, 0.504)])
def test_the_mean_cost_over_the_ramp_is_that_worked_out_by_hand(sparsity, card):
    """10k -> 25k of 32k steps, every 1000: the sum over k < 15 of 1 - (1 - k / 15)^3 is 15 - 120^2 / 15^3.

    The card has .559 and .504, a mean over update times that lie some hundred steps later.
    """
    gmp, now, total = GMP(interval=1000), 0.0, 0.0
    for step in range(32000):
        total += 1 - now
        now = gmp.sparsity_at(step + 1, 32000, sparsity) or now
    by_hand = 1 - sparsity * (1000 * (15 - 120**2 / 15**3) + 7000) / 32000
    assert total / 32000 == pytest.approx(by_hand, abs=1e-9)
    assert by_hand == pytest.approx(card, abs=3e-3)


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global", {"0.weight": 0.85, "*": 0.64}])
def test_every_update_has_the_count_of_the_ramp_and_masks_are_nested(allocation):
    # {"*": 0.64} comes last and wins: both layers, so that the target is 0.64
    given = isinstance(allocation, dict)
    reach = 1 - (29 + 9) / 104 if given else 0.8
    method = GMP(interval=4, allocation=allocation)
    run, watch = train(method, reach=reach)
    first, last = round(0.3125 * 40), round(0.78125 * 40)
    assert watch.sparsities[first - 1] == 0
    for time in range(first, last + 1):
        asked = method.sparsity_at(time, 40, reach)
        if asked is None:
            assert watch.sparsities[time - 1] == watch.sparsities[time - 2]
        else:
            kept = round((1 - watch.sparsities[time - 1]) * 104)
            assert abs(kept - (1 - asked) * 104) <= (2 if given else 0.5)
    assert set(watch.sparsities[last - 1 :]) == {1 - round((1 - reach) * 104) / 104}
    for before, after in zip(watch.masks, watch.masks[1:], strict=False):
        assert not any(bool((after[n] & ~m).any()) for n, m in before.items())
    assert run.masks.kept == round((1 - reach) * 104)


def test_the_smallest_weights_of_every_layer_go():
    """What an update removes is not larger than what it leaves, in the weights that the step left."""

    class Spy(GMP):
        def _masks(self, run, sparsity):
            before[run.clock.step] = {n: p.detach().clone() for n, p in run.model.named_parameters()}
            return super()._masks(run, sparsity)

    before, ranked = {}, []
    _, watch = train(Spy(interval=4))
    watch.before = before
    for number in range(1, 40):
        for name, mask in watch.masks[number].items():
            gone = watch.masks[number - 1][name] & ~mask
            if bool(gone.any()):
                assert bool((watch.weights[number][name][gone] == 0).all())
                ranked.append((watch.before[number][name], watch.masks[number - 1][name], mask))
    assert len(ranked) >= 8
    for weight, old, new in ranked:
        assert weight.abs()[old & ~new].max() <= weight.abs()[new].min()


def test_there_is_an_update_at_the_end_of_the_ramp_in_any_case():
    method = GMP(interval=7)  # from 12 to 31: 12, 19, 26, and 31
    times = [t for t in range(41) if method.sparsity_at(t, 40, 0.8) is not None]
    assert times == [12, 19, 26, 31]


def test_a_ramp_may_begin_above_0():
    _, watch = train(GMP(interval=4, start=0.5))
    assert watch.sparsities[10] == 0
    assert watch.sparsities[11] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0: must be at least 1"),
        ({"start": 1.0}, r"start=1.0: must lie in \[0, 1\)"),
        ({"begin": 0.9}, r"until=0.78125: must lie in \(begin=0.9, 1\]"),
        ({"until": 1.0}, "method.until=1.0: the ramp ends with training, 40 steps, and leaves none"),
        ({"interval": 20}, "method.interval=20: longer than the ramp"),
        ({"start": 0.85}, "method.start=0.85: must be below sparsity.target=0.8"),
        ({"min_kept": 11, "allocation": "global"}, "sparsity.min_kept=11: needs 22 weights in 2 layers"),
        ({"allocation": {"*": 0.7}}, "sparsity.allocation=.*leaves 31 of 104 weights"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        train(GMP(**options))
