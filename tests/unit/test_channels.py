"""Criteria of whole channels: worked numbers of the cards, slow references, and what is refused."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.run import generator
from prunebench.core.units import PrunableModel, Unit, alive_channels, model_units, unit_masks
from prunebench.criteria.activation import apoz, hrank, mean_activation, shuffled_ties
from prunebench.criteria.channels import bn_scale, filter_norm, fpgm, random_channel
from prunebench.criteria.gradient import taylor
from prunebench.criteria.magnitude import magnitude
from prunebench.criteria.removal import leave_one_out, taylor_gate
from prunebench.methods.pruner import Pruner
from prunebench.models.conv import Conv
from prunebench.models.resnet import resnet_cifar
from tests.unit.toy_nets import Images, Small, run_of, small_run, toy_run

torch.set_num_threads(1)

# structured-baselines, section 7
W = [[1.0, 0, 0], [0.9, 0.1, 0], [0, 2.0, 0], [-1.0, 0, 0.5]]
G = [[0.1, 0.2, 0], [-0.3, 0.1, 0.4], [0.05, -0.02, 0.1], [0.2, 0.2, 0.2]]
MAPS = [[[1.0, 2], [2, 4]], [[1.0, 0], [0, 1]], [[0.0, 0], [0, 0]], [[3.0, 1], [1, 3]]]


class Rows(PrunableModel):
    """Linear layer of the given rows, ReLU, two logits; float64."""

    head = "out"

    def __init__(self, rows):
        super().__init__()
        rows = torch.tensor(rows, dtype=torch.float64)
        self.flatten, self.relu = nn.Flatten(), nn.ReLU()
        self.fc, self.out = nn.Linear(rows.shape[1], len(rows), bias=False), nn.Linear(len(rows), 2)
        self.double()
        self.fc.weight.data = rows

    def forward(self, x):
        return self.out(self.relu(self.fc(self.flatten(x))))

    def units(self):
        return [Unit("fc", self.fc.out_features, (("fc.weight", 0),), (("out.weight", 1),))]


class Given(PrunableModel):
    """Two layers of 1x1 convolutions that pass the image's channels through ReLUs; float64."""

    head = "out"

    def __init__(self, channels):
        super().__init__()
        self.a, self.relu_a = nn.Conv2d(channels, channels, 1, bias=False), nn.ReLU()
        self.flatten, self.out = nn.Flatten(), nn.LazyLinear(2)
        self.out(torch.zeros(1, channels * 4))
        self.double()
        self.a.weight.data = torch.eye(channels, dtype=torch.float64)[:, :, None, None]

    def forward(self, x):
        return self.out(self.flatten(self.relu_a(self.a(x))))

    def units(self):
        return [Unit("a", self.a.out_channels, (("a.weight", 0),), (("out.weight", 1),))]


def all_units(run):
    return model_units(run.model, "neuron", run.masks)


def rows_run(rows=W):
    return run_of(Rows(rows), Images(torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 0]), 3))


def scored(score, run, digits=4):
    scores = score(run, all_units(run))
    return {n: [round(v, digits) for v in s.tolist()] for n, s in scores.items()}


# Without data


def test_norms_of_the_card():
    assert scored(filter_norm, rows_run())["fc"] == [1, 1, 2, 1.5]
    assert scored(partial(filter_norm, p=2), rows_run())["fc"] == [1, 0.9055, 2, 1.1180]


def test_fpgm_of_the_card_is_on_raw_weights():
    assert scored(fpgm, rows_run())["fc"] == [4.4390, 4.2110, 6.6297, 6.3201]


def test_fpgm_leaves_dead_filters_out_of_the_distances():
    run = rows_run()
    run.set_masks(unit_masks(run.model, {"fc": torch.tensor([True, True, False, True])}, run.masks))
    others = torch.tensor([W[0], W[1], W[3]], dtype=torch.float64)
    wanted = [float(sum((row - o).norm() for o in others)) for row in others]
    got = fpgm(run, all_units(run))["fc"]
    torch.testing.assert_close(got[[0, 1, 3]], torch.tensor(wanted, dtype=torch.float64))


def test_the_l1_norm_is_the_sum_of_magnitudes_and_normalised_by_the_layer():
    run = small_run()
    units = all_units(run)
    norms = filter_norm(run, units)
    for unit in units:
        magnitudes = magnitude(run)[f"{unit.name}.weight"].flatten(1).sum(1)
        torch.testing.assert_close(norms[unit.name], magnitudes)
    for how in ("mean", "max"):
        scores = filter_norm(run, units, normalize=how)
        assert all(float(getattr(s, how)()) == pytest.approx(1) for s in scores.values())


def test_random_scores_of_a_channel_do_not_depend_on_its_weights_or_size():
    run = small_run()
    scores = random_channel(run, all_units(run))
    assert {n: len(s) for n, s in scores.items()} == {"conv1": 3, "conv2": 4}
    assert all(bool(((s >= 0) & (s < 1)).all()) for s in scores.values())
    again = random_channel(run, all_units(run))
    assert all(torch.equal(s, again[n]) for n, s in scores.items())


def test_scales_are_those_of_the_batchnorm_and_the_mean_over_those_of_a_stream():
    run = small_run()
    (unit, _) = all_units(run)
    assert torch.equal(bn_scale(run, [unit])["conv1"], run.model.bn.weight.detach().abs())
    model = resnet_cifar(8, "B", in_channels=1, num_classes=2, image_size=8)
    run = run_of(model, run.data)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.normal_(generator=generator("scales"))
    norms = [model.bn1, model.layer1[0].bn2]
    wanted = sum(m.weight.detach().double().abs() for m in norms) / 2
    torch.testing.assert_close(bn_scale(run, all_units(run))["layer1"], wanted)


# With data


class Passes(Images):
    """Images whose whole training split can be asked for, `size` at a time; float64."""

    def __init__(self, x, y, *, size=1000):
        super().__init__(x, y, batch_size=len(y))
        self.size = size

    def evaluation(self, split, batch_size=1000):
        assert split == "train"
        yield from zip(self.x.split(self.size), self.y.split(self.size))


# dropnet, section 7: activations of two layers, three samples
E0 = [[1, 0, 2, 0.3, 0], [0.5, 0.2, 2.5, 0.3, 0], [1.5, 0.1, 3, 0.6, 0.3]]
E1 = [[0.9, 4, 0, 1.2], [1.1, 5, 0, 0.8], [1, 6, 0.6, 1]]


class Two(PrunableModel):
    """The first 5 and the last 4 numbers of an input go through ReLUs of their own; float64."""

    head = "out"

    def __init__(self):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(9, 5, bias=False), nn.Linear(9, 4, bias=False)
        self.relu0, self.relu1, self.out = nn.ReLU(), nn.ReLU(), nn.Linear(9, 2)
        self.double()
        eye = torch.eye(9, dtype=torch.float64)
        self.fc0.weight.data, self.fc1.weight.data = eye[:5].clone(), eye[5:].clone()

    def forward(self, x):
        return self.out(torch.cat([self.relu0(self.fc0(x)), self.relu1(self.fc1(x))], 1))

    def units(self):
        return [Unit("fc0", 5, (("fc0.weight", 0),), ()), Unit("fc1", 4, (("fc1.weight", 0),), ())]


def two_run(size=1000):
    x = torch.tensor([a + b for a, b in zip(E0, E1)], dtype=torch.float64)
    return run_of(Two(), Passes(x, torch.tensor([0, 1, 0]), size=size))


def test_mean_activations_of_the_card_whatever_the_batch_size():
    for size in (1, 2, 1000):
        assert scored(mean_activation, two_run(size)) == {
            "fc0": [1, 0.1, 2.5, 0.4, 0.1],
            "fc1": [1, 5, 0.2, 1],
        }
    turned = scored(partial(mean_activation, drop="maximum"), two_run())
    assert turned["fc1"] == [-1, -5, -0.2, -1]


def dropped(method, run, sparsity):
    method.prune(run, sparsity)
    alive = alive_channels(run.masks, all_units(run))
    return {n: (~a).nonzero().flatten().tolist() for n, a in alive.items()}


def test_exact_minimum_of_the_card_drops_the_lowest_over_all_layers_and_in_each():
    whole = Pruner(mean_activation, granularity="neuron", allocation="global")
    assert dropped(whole, two_run(), 3 / 9) == {"fc0": [1, 4], "fc1": [2]}
    layered = Pruner(mean_activation, granularity="neuron", allocation={"fc0": 2 / 5, "fc1": 1 / 4})
    assert dropped(layered, two_run(), 3 / 9) == {"fc0": [1, 4], "fc1": [2]}


def test_scaling_a_layer_scales_its_means():
    run = two_run()
    before = mean_activation(run, all_units(run))
    run.model.fc1.weight.data *= 3
    after = mean_activation(run, all_units(run))
    torch.testing.assert_close(after["fc1"], 3 * before["fc1"])
    torch.testing.assert_close(after["fc0"], before["fc0"])


def test_apoz_counts_zeros_over_samples():
    assert scored(apoz, two_run()) == {"fc0": [1, 0.6667, 1, 1, 0.3333], "fc1": [1, 1, 0.3333, 1]}


def maps_run():
    """An image of the card's four maps, and the same with the signs of half a map turned."""
    image = torch.tensor(MAPS, dtype=torch.float64)
    other = image.clone()
    other[0, 0] *= -1
    return run_of(Given(4), Passes(torch.stack([image, other]), torch.tensor([0, 1])))


def test_apoz_of_maps_counts_positions_or_whole_maps():
    run = maps_run()
    # map 0 has 4 and 2 positions above 0, map 1 two of four
    assert scored(apoz, run)["a"] == [0.75, 0.5, 0, 1]
    assert scored(partial(apoz, zeros="map"), run)["a"] == [1, 1, 0, 1]


def test_ranks_of_the_card():
    run = maps_run()
    assert scored(partial(hrank, batches=1), run)["a"] == [1, 2, 0, 2]  # also of [[0, 0], [2, 4]]


def test_the_mean_activation_of_a_stream_is_that_of_its_activations():
    model = resnet_cifar(8, "B", in_channels=1, num_classes=2, image_size=8)
    run = run_of(model, Passes(torch.randn(6, 1, 8, 8, generator=generator("x")), torch.arange(6) % 2))
    seen = {}
    for name in ("relu", "layer1.0.relu2", "layer1.0.relu1"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, o))
    scores = mean_activation(run, all_units(run))
    with torch.no_grad():
        model.eval()(run.data.x)
    mean = {n: o.double().abs().mean((0, 2, 3)) for n, o in seen.items()}
    torch.testing.assert_close(scores["layer1.0.conv1"], mean["layer1.0.relu1"])
    torch.testing.assert_close(scores["layer1"], (mean["relu"] + mean["layer1.0.relu2"]) / 2)


def test_ties_are_broken_at_random_and_nothing_else_changes_places():
    scores = {"a": torch.tensor([0.0, 2.0, 0.0, 1.0]).double(), "b": torch.tensor([1.0, 0.0]).double()}
    orders = set()
    for seed in range(20):
        apart = shuffled_ties(scores, torch.Generator().manual_seed(seed))
        flat = torch.cat(list(apart.values()))
        assert len(set(flat.tolist())) == 6
        assert set(flat.argsort()[:3].tolist()) == {0, 2, 5} and int(flat.argmax()) == 1
        torch.testing.assert_close(flat, torch.cat(list(scores.values())), rtol=1e-15, atol=1e-300)
        orders.add(tuple(flat.argsort().tolist()))
    assert len(orders) > 3


# What removal does


def test_the_gate_equals_the_square_of_the_sum_over_a_filter_without_bias():
    """A ReLU network without bias is homogeneous: z dL/dz is the sum of w dL/dw over the filter."""
    run = toy_run(repeat=2)
    got = taylor_gate(run, all_units(run), batches=2)["fc1"]
    wanted = taylor(run, batches=2, form="unit")["fc1.weight"].sum(1)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert bool((got > 0).any())


def test_the_gate_of_a_stream_sums_over_its_activations_and_is_divided_by_their_number():
    model = resnet_cifar(8, "B", in_channels=1, num_classes=2, image_size=8).double()
    x = torch.randn(5, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    run = run_of(model, Images(x, torch.arange(5) % 2, 5))
    gate = torch.ones(16, dtype=torch.float64, requires_grad=True)
    scores = taylor_gate(run, all_units(run), batches=1)["layer1"]
    for name in ("relu", "layer1.0.relu2"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o: o * gate[None, :, None, None])
    loss = F.cross_entropy(model.eval()(x), run.data.y)
    (grad,) = torch.autograd.grad(loss, gate)
    torch.testing.assert_close(scores, grad.square() / 2, rtol=1e-9, atol=1e-15)


def test_leave_one_out_is_the_training_loss_without_the_unit():
    run = small_run()
    run.data = Passes(run.data.x, run.data.y, size=4)
    alive = {"conv1": torch.tensor([True, True, False]), "conv2": torch.tensor([True] * 4)}
    run.set_masks(unit_masks(run.model, alive, run.masks))
    scores = leave_one_out(run, all_units(run))
    assert float(scores["conv1"][2]) == 0
    for unit in all_units(run):
        for channel in range(unit.size - (unit.name == "conv1")):
            other = Small()
            other.load_state_dict(run.model.state_dict())
            params = dict(other.named_parameters())
            with torch.no_grad():
                for name, dim in unit.made_by:
                    if name in params:
                        params[name].select(dim, channel).zero_()
                loss = F.cross_entropy(other.eval()(run.data.x), run.data.y)
            assert float(scores[unit.name][channel]) == pytest.approx(float(loss), rel=1e-12)


# All of them

ALL = {
    "random_channel": random_channel,
    "filter_norm": filter_norm,
    "fpgm": fpgm,
    "mean_activation": mean_activation,
    "apoz": apoz,
    "hrank": partial(hrank, batches=1),
    "taylor_gate": partial(taylor_gate, batches=1),
    "leave_one_out": leave_one_out,
}


def with_passes():
    run = small_run()
    run.data = Passes(run.data.x, run.data.y)
    return run


@pytest.mark.parametrize("score", ALL.values(), ids=ALL)
def test_scoring_leaves_no_trace_and_two_rounds_keep_what_is_asked(score):
    run = with_passes()
    run.model.train()
    before = {n: v.clone() for n, v in run.model.state_dict().items()}
    scores = score(run, all_units(run))
    assert {n: (s.shape, s.dtype) for n, s in scores.items()} == {
        "conv1": ((3,), torch.float64),
        "conv2": ((4,), torch.float64),
    }
    assert run.model.training and all(p.grad is None for p in run.model.parameters())
    assert all(torch.equal(v, before[n]) for n, v in run.model.state_dict().items())
    method = Pruner(score, granularity="filter", allocation="global")
    method.prune(run, 2 / 7)
    first = alive_channels(run.masks, all_units(run))
    method.prune(run, 4 / 7)
    second = alive_channels(run.masks, all_units(run))
    assert [sum(int(a.sum()) for a in alive.values()) for alive in (first, second)] == [5, 3]
    assert not any(bool((second[n] & ~first[n]).any()) for n in first)


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
@pytest.mark.parametrize("name", [*ALL, "bn_scale"])
def test_a_criterion_of_channels_is_refused_where_weights_are_pruned(name, granularity):
    function = {**ALL, "bn_scale": bn_scale}[name]
    text = f"criterion={name}: scores whole channels, not what sparsity.granularity={granularity} prunes"
    with pytest.raises(ValueError, match=text):
        Pruner(function, granularity=granularity).check(with_passes(), [0.5])


CONV = {"in_channels": 1, "num_classes": 2, "image_size": 4}


@pytest.mark.parametrize(
    ("score", "granularity", "text"),
    [
        (bn_scale, "filter", "criterion=bn_scale: the channels of conv1 have no BatchNorm"),
        (partial(hrank, batches=1), "neuron", "criterion=hrank: fc1 gives no feature maps"),
        (partial(hrank, batches=0), "filter", "criterion.batches=0: must be 1 or more"),
        (partial(filter_norm, p=3, normalize="none"), "filter", "criterion.p=3: must be 1 or 2"),
        (partial(fpgm, normalize="sum"), "filter", "criterion.normalize=sum: must be none, mean or max"),
        (partial(mean_activation, drop="middle", batches=None), "filter", "criterion.drop=middle"),
        (partial(mean_activation, drop="minimum", batches=9), "filter", "criterion.batches=9"),
        (partial(apoz, zeros="all", batches=None), "filter", "criterion.zeros=all: must be position or map"),
        (partial(taylor_gate, batches=9), "filter", "criterion.batches=9"),
        (partial(leave_one_out, batches=0), "filter", "criterion.batches=0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(score, granularity, text):
    x = torch.randn(4, 1, 4, 4, generator=generator("x"))
    run = run_of(Conv(2, **CONV), Passes(x, torch.arange(4) % 2))
    with pytest.raises(ValueError, match=text):
        Pruner(score, granularity=granularity).check(run, [0.5])


@pytest.mark.parametrize("min_kept", [0, 1])
def test_a_target_that_would_empty_a_layer_is_refused_before_training(min_kept):
    for allocation in ("uniform", "global"):
        score = partial(fpgm, normalize="none")
        method = Pruner(score, granularity="filter", allocation=allocation, min_kept=min_kept)
        with pytest.raises(ValueError, match=r"sparsity\.min_kept=1: "):
            method.check(with_passes(), [0.9])
