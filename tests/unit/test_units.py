"""Channels that live or die together: scores, masks and the smaller network, by hand."""

import pytest
import torch
from torch import nn

from prunebench.core.compact import compact
from prunebench.core.masks import Masks
from prunebench.core.units import (
    PrunableModel,
    Unit,
    alive_channels,
    model_units,
    prunable_names,
    select_units,
    unit_masks,
    unit_scores,
)

torch.set_num_threads(1)


class Net(PrunableModel):
    """1 channel -> 3 channels (with BatchNorm) -> flattened 2x2 maps -> 4 neurons -> 2 logits."""

    head = "fc2"

    def __init__(self, conv: int = 3, fc1: int = 4):
        super().__init__()
        self.widths = {"conv": conv, "fc1": fc1}
        self.conv, self.bn = nn.Conv2d(1, conv, 3), nn.BatchNorm2d(conv)
        self.relu, self.relu1 = nn.ReLU(), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(conv * 4, fc1), nn.Linear(fc1, 2)

    def forward(self, x):
        return self.fc2(self.relu1(self.fc1(self.relu(self.bn(self.conv(x))).flatten(1))))

    def units(self):
        entries = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        made = (("conv.weight", 0), ("conv.bias", 0), *((n, 0) for n in entries))
        return [
            Unit("conv", self.widths["conv"], made, (("fc1.weight", 1),)),
            Unit("fc1", self.widths["fc1"], (("fc1.weight", 0), ("fc1.bias", 0)), (("fc2.weight", 1),)),
        ]

    def with_widths(self, widths):
        return Net(**(self.widths | widths))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        for p in model.parameters():
            nn.init.normal_(p)
        model.train()(torch.randn(64, 1, 4, 4))
    return model.eval()


NAMES = ["conv.weight", "fc1.weight", "fc2.weight"]


def test_prunable_are_convolutions_and_linear_layers_with_first_and_head(net):
    assert prunable_names(net) == NAMES


@pytest.mark.parametrize(
    ("exclude", "left"),
    [(["head"], NAMES[:2]), (["fc*"], NAMES[:1]), (["conv.weight"], NAMES[1:]), (["fc1", "head"], NAMES[:1])],
)
def test_excluded_layers_stay_dense(net, exclude, left):
    assert prunable_names(net, exclude) == left


@pytest.mark.parametrize(
    ("exclude", "text"), [(["bn"], "matches no"), (["*"], "leaves nothing"), (["fc3"], "fc3")]
)
def test_patterns_without_effect_and_nothing_to_prune_are_refused(net, exclude, text):
    with pytest.raises(ValueError, match=text):
        prunable_names(net, exclude)


def test_filters_are_units_made_by_a_convolution_and_neurons_are_all(net):
    assert [u.name for u in model_units(net, "filter", NAMES)] == ["conv"]
    assert [u.name for u in model_units(net, "neuron", NAMES)] == ["conv", "fc1"]


def test_a_unit_whose_weights_are_excluded_is_left_out(net):
    assert [u.name for u in model_units(net, "neuron", ["fc1.weight", "fc2.weight"])] == ["fc1"]


@pytest.mark.parametrize("granularity", ["filter", "neuron"])
def test_a_network_without_such_units_is_refused_with_a_way_out(granularity):
    with pytest.raises(ValueError, match=r"sparsity\.granularity=.*use sparsity\.granularity=weight"):
        model_units(nn.Linear(2, 2), granularity, ["weight"])


def test_the_score_of_a_channel_is_the_sum_over_the_weights_that_make_it():
    scores = {
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]),
        "b": torch.tensor([[10.0, 20.0]]),
    }
    heads = Unit("heads", 2, (("a", 0), ("b", 1)), ())  # two rows of a and one column of b per channel
    assert unit_scores(scores, [heads])["heads"].tolist() == [1 + 2 + 3 + 4 + 10, 5 + 6 + 7 + 8 + 20]


def test_scores_beyond_float32_stay_finite_in_double_precision(net):
    """SynFlow's scores of deep networks reach 1e100."""
    scores = {"fc1.weight": torch.full((4, 12), 1e100, dtype=torch.float64)}
    unit = net.units()[1]
    assert unit_scores(scores, [unit])["fc1"].tolist() == pytest.approx([12e100] * 4)
    assert unit_scores({"fc1.weight": torch.ones(4, 12).half()}, [unit])["fc1"].dtype == torch.float32


def test_a_channel_is_alive_as_long_as_one_of_its_weights_is():
    masks = {"a": torch.tensor([[False, False], [False, True]]), "b": torch.tensor([[False], [False]])}
    assert alive_channels(masks, [Unit("u", 2, (("a", 0), ("b", 0)), ())])["u"].tolist() == [False, True]


def test_masks_of_a_dead_channel_cover_what_makes_it_and_what_reads_it(net):
    masks = unit_masks(net, {"conv": torch.tensor([True, False, True])}, NAMES)
    columns = torch.ones(4, 12, dtype=torch.bool)
    columns[:, 4:8] = False
    assert masks["conv.weight"].flatten(1).all(1).tolist() == [True, False, True]
    assert torch.equal(masks["fc1.weight"], columns)
    assert bool(masks["fc2.weight"].all())
    assert set(masks.tied) == {"conv.bias", "bn.weight", "bn.bias"}
    assert all(m.tolist() == [True, False, True] for m in masks.tied.values())
    assert masks.kept == 2 * 9 + 4 * 8 + 8


def test_select_units_keeps_the_asked_number_of_channels_over_all_units(net):
    scores = {n: p.detach().abs() for n, p in net.named_parameters() if n in NAMES}
    units = model_units(net, "neuron", NAMES)
    for sparsity, kept in ((0.0, 7), (0.3, 5), (0.5, 4), (0.7, 2)):
        for allocation in ("uniform", "global", "lamp"):
            alive = select_units(scores, sparsity, units=units, allocation=allocation)
            assert sum(int(a.sum()) for a in alive.values()) == kept
            assert all(bool(a.any()) for a in alive.values())


def test_a_unit_never_loses_its_last_channel():
    units = [Unit("low", 2, (("a", 0),), ()), Unit("high", 4, (("b", 0),), ())]
    scores = {"a": torch.full((2, 3), 0.01), "b": torch.full((4, 3), 9.0)}
    alive = select_units(scores, 0.5, units=units, allocation="global", min_kept=0)
    assert {n: int(a.sum()) for n, a in alive.items()} == {"low": 1, "high": 2}


def test_dead_channels_never_return(net):
    units = model_units(net, "neuron", NAMES)
    scores = {n: p.detach().abs() for n, p in net.named_parameters() if n in NAMES}
    first = select_units(scores, 0.3, units=units)
    masks = unit_masks(net, first, NAMES)
    turned = {n: (~masks[n]).float() + 0.01 for n in NAMES}
    second = select_units(turned, 0.5, units=units, previous=masks)
    assert not any(bool((second[n] & ~first[n]).any()) for n in first)


@pytest.mark.parametrize("allocation", ["er", "erk", "uniform_plus"])
def test_allocations_of_weights_are_refused_for_channels(net, allocation):
    with pytest.raises(ValueError, match=f"sparsity.allocation={allocation}"):
        select_units({}, 0.5, units=net.units(), allocation=allocation)


def test_the_compact_network_equals_the_masked_one_and_its_state_is_the_surviving_part(net):
    alive = {"conv": torch.tensor([True, False, True]), "fc1": torch.tensor([False, True, True, False])}
    masks = unit_masks(net, alive, NAMES)
    masks.zero_weights_(net)
    small, x = compact(net, alive), torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert small.widths == {"conv": 2, "fc1": 2}
    assert not small.training
    assert torch.equal(small.conv.weight, net.conv.weight[[0, 2]])
    assert torch.equal(small.bn.running_var, net.bn.running_var[[0, 2]])
    assert torch.equal(small.fc1.weight, net.fc1.weight[[1, 2]][:, [0, 1, 2, 3, 8, 9, 10, 11]])
    torch.testing.assert_close(small(x), net(x), rtol=1e-5, atol=1e-5)


def test_the_compact_network_has_as_many_weights_as_the_masks_keep(net):
    alive = {"conv": torch.tensor([True, False, False])}
    masks, small = unit_masks(net, alive, NAMES), compact(net, alive)
    assert masks.kept == Masks.ones(small, NAMES).total
