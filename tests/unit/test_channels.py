"""Scores of whole channels from the weights, by the numbers of the card (structured-baselines)."""

from functools import partial

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.units import PrunableModel, Unit, model_units, select_units, unit_scores
from prunebench.criteria.channels import bn_scale, fpgm, l2, random_channels
from prunebench.criteria.magnitude import magnitude
from prunebench.methods.pruner import Pruner
from tests.unit.toy_nets import Images, Toy, run_of, small_run, toy_run

torch.set_num_threads(1)

W = [[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 2.0, 0.0], [-1.0, 0.0, 0.5]]


class Four(PrunableModel):
    """Four channels whose weights are the card's."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.fc.weight.data = torch.tensor(W)

    def units(self):
        return [Unit("fc", 4, (("fc.weight", 0),), (("out.weight", 1),))]


def four():
    return run_of(Four(), Images(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), 4))


def rounded(scores):
    return [round(v, 4) for v in scores.tolist()]


def test_norms_and_distances_are_those_of_the_card():
    run = four()
    assert rounded(unit_scores(magnitude(run), run.model.units())["fc"]) == [1, 1, 2, 1.5]
    assert rounded(l2(run, granularity="neuron")["fc"]) == [1, 0.9055, 2, 1.1180]
    assert rounded(fpgm(run, granularity="neuron")["fc"]) == [4.4390, 4.2110, 6.6297, 6.3201]


def test_distances_go_to_the_channels_that_are_left():
    run = four()
    run.set_masks(Masks({**run.masks, "fc.weight": torch.tensor([[1], [1], [0], [1]]).expand(4, 3).bool()}))
    w = torch.tensor(W, dtype=torch.float64)
    left = [0, 1, 3]
    wanted = [sum(float((w[i] - w[j]).norm()) for j in left) if i in left else 0.0 for i in range(4)]
    assert fpgm(run, granularity="neuron")["fc"].tolist() == pytest.approx(wanted, rel=1e-6)


def test_equal_channels_are_at_distance_0_however_large():
    run = four()
    with torch.no_grad():
        run.model.fc.weight.copy_(torch.full((4, 3), 1e4))
    assert fpgm(run, granularity="neuron")["fc"].tolist() == [0, 0, 0, 0]


class Stream(PrunableModel):
    """Two convolutions that make the same channels, one of them in a joint layer, in another order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(1, 3, 1, bias=False)
        self.a.weight.data = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
        self.b.weight.data = torch.tensor([2.0, 9.0, 4.0]).view(3, 1, 1, 1)

    def units(self):
        return [Unit("s", 2, (("a.weight", 0), ("b.weight", 0)), (), {("b.weight", 0): (1, -1, 0)})]


def test_a_channel_is_all_weights_that_make_it_wherever_they_lie():
    run = run_of(Stream(), four().data)
    assert l2(run, granularity="filter")["s"].tolist() == pytest.approx([5.0, 5.0**0.5])
    assert fpgm(run, granularity="filter")["s"].tolist() == pytest.approx([8.0**0.5] * 2)


def test_batchnorm_scales_are_scores_and_several_are_averaged():
    class Two(PrunableModel):
        def __init__(self):
            super().__init__()
            self.conv, self.n1, self.n2 = nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.n1.weight.data, self.n2.weight.data = (
                torch.tensor([-1.0, 2, 0]),
                torch.tensor([3.0, -1, 0.5]),
            )

        def units(self):
            return [
                Unit("c", 3, (("conv.weight", 0), ("n1.weight", 0), ("n2.weight", 0), ("n2.bias", 0)), ())
            ]

    run = run_of(Two(), four().data)
    assert bn_scale(run, granularity="filter")["c"].tolist() == [2.0, 1.5, 0.25]


def test_scales_of_a_joint_normalisation_go_to_their_channels():
    class Joint(PrunableModel):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(5)
            self.norm.weight.data = torch.tensor([8.0, 1, -2, 3, 5])

        def units(self):
            made = (("conv.weight", 0), ("norm.weight", 0))
            return [Unit("c", 2, made, (), {("norm.weight", 0): (-1, 1, 0, 0, 1)})]

    assert bn_scale(run_of(Joint(), four().data), granularity="filter")["c"].tolist() == [2.5, 3.0]


def test_random_channels_of_wide_and_narrow_layers_have_the_same_chance():
    class Wide(Toy):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(2, 200), nn.Linear(200, 200)
            self.out = nn.Linear(200, 2)

        def units(self):
            return [
                Unit("fc1", 200, (("fc1.weight", 0),), (("fc2.weight", 1),)),
                Unit("fc2", 200, (("fc2.weight", 0),), (("out.weight", 1),)),
            ]

    run = run_of(Wide(), toy_run().data)
    units = model_units(run.model, "neuron", run.masks)
    alive = select_units(random_channels(run, granularity="neuron"), 0.5, units=units, allocation="global")
    kept = [int(a.sum()) for a in alive.values()]
    assert sum(kept) == 200 and abs(kept[0] - 100) < 30  # 3 standard deviations
    run.clock.place = 1
    other = select_units(random_channels(run, granularity="neuron"), 0.5, units=units, allocation="global")
    assert not torch.equal(alive["fc1"], other["fc1"])


CRITERIA = {"l2": l2, "fpgm": fpgm, "bn_scale": bn_scale, "random_channels": random_channels}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_single_weights_are_refused_before_training(name, granularity):
    method = Pruner(partial(CRITERIA[name], granularity=granularity), granularity=granularity)
    text = f"^criterion={name}: scores whole channels, sparsity.granularity={granularity} prunes others; use"
    with pytest.raises(ValueError, match=text):
        method.check(small_run(), [0.5])


def test_scales_of_a_network_without_batchnorm_are_refused_before_training():
    method = Pruner(partial(bn_scale, granularity="neuron"), granularity="neuron", allocation="uniform")
    with pytest.raises(ValueError, match=r"^criterion=bn_scale: the neurons of fc1 in Toy have no BatchNorm"):
        method.check(toy_run(), [0.5])
    with pytest.raises(
        ValueError, match=r"^criterion=bn_scale: the filters of conv2 in Small have no BatchNorm"
    ):
        Pruner(partial(bn_scale, granularity="filter"), granularity="filter").check(small_run(), [0.5])


@pytest.mark.parametrize("name", ["l2", "fpgm", "random_channels"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp"])
def test_two_rounds_keep_exactly_what_is_asked_and_the_bias_goes_with_its_channel(name, allocation):
    run = small_run()
    method = Pruner(
        partial(CRITERIA[name], granularity="filter"), granularity="filter", allocation=allocation
    )
    method.prune(run, 2 / 7)
    first = method.alive(run)
    method.prune(run, 4 / 7)
    alive = method.alive(run)
    assert sum(int(a.sum()) for a in first.values()) == 5 and sum(int(a.sum()) for a in alive.values()) == 3
    assert not any(bool((a & ~first[n]).any()) for n, a in alive.items())
    assert bool((run.model.conv2.bias[~alive["conv2"]] == 0).all())
    assert bool((run.model.bn.weight[~alive["conv1"]] == 0).all())
    assert bool((run.model.bn.bias[~alive["conv1"]] == 0).all())


def test_a_criterion_of_another_granularity_than_that_of_the_method_is_refused():
    method = Pruner(partial(l2, granularity="filter"), granularity="neuron")
    with pytest.raises(
        ValueError, match=r"^criterion\.granularity=filter: must be sparsity\.granularity, neuron"
    ):
        method.check(small_run(), [0.5])
