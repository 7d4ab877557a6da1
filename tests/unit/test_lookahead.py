"""Lookahead: the worked numbers of the method card, the paper's distortion, loops over residual networks."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.run import seeded
from prunebench.core.units import Junction, PrunableModel, Unit, prunable_names
from prunebench.criteria.lookahead import lookahead
from prunebench.models.conv import Conv
from prunebench.models.lenet import LeNet5, LeNet300
from prunebench.models.resnet import resnet, resnet_cifar
from prunebench.models.timm import timm_model
from prunebench.models.vgg import VGG
from prunebench.models.vit import ViT
from prunebench.models.wrn import WRN
from tests.unit.toy_nets import Images, flat, run_of, small_run, toy_run

torch.set_num_threads(1)

DATA = {"in_channels": 1, "num_classes": 3, "image_size": 8}


def run_with(model):
    return run_of(model, Images(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), 4))


def test_the_toy_net_has_the_scores_of_the_card():
    assert flat(lookahead(toy_run())) == [
        *(0.522015, 1.044031, 1.415097, 0.235850, 0.912414, 2.433105),
        *(1.118034, 0.760345, 0.427200, 0.335410, 1.216553, 2.563201),
    ]


def test_in_a_chain_of_linear_layers_the_score_is_how_far_the_product_of_three_moves():
    """arXiv 2002.04809: || W3 W2 W1 - W3 W2' W1 ||_F, W2' being W2 with one entry 0."""
    with seeded("chain"):
        model = nn.Sequential(*(nn.Linear(i, o, bias=False).double() for i, o in ((3, 4), (4, 5), (5, 2))))

    class Chain(PrunableModel):
        def __init__(self):
            super().__init__()
            self.net = model

        def units(self):
            names = [f"net.{i}.weight" for i in range(3)]
            return [Unit(n, 1, ((n, 0),), ((m, 1),)) for n, m in pairwise(names)]

    scores = lookahead(run_of(Chain(), toy_run().data))["net.1.weight"]
    w1, w2, w3 = (layer.weight.detach() for layer in model)
    for j, k in product(range(5), range(4)):
        less = w2.clone()
        less[j, k] = 0
        moved = torch.linalg.matrix_norm(w3 @ w2 @ w1 - w3 @ less @ w1)
        torch.testing.assert_close(scores[j, k], moved, rtol=1e-12, atol=0)


IDENTITY = "identity"  # counts 1 for every channel
# layer -> what writes its input and what reads its output; (first, end) is an identity for those channels
SMALL = {"conv1": ([], ["conv2"]), "conv2": (["conv1"], ["fc"]), "fc": (["conv2"], [])}
OPTION_A = {
    "conv1": ([], ["layer1.0.conv1", IDENTITY]),
    "layer1.0.conv1": (["conv1"], ["layer1.0.conv2"]),
    "layer1.0.conv2": (["layer1.0.conv1"], ["layer2.0.conv1", IDENTITY]),
    "layer2.0.conv1": (["layer1.0.conv2", IDENTITY], ["layer2.0.conv2"]),
    "layer2.0.conv2": (["layer2.0.conv1"], ["layer3.0.conv1", IDENTITY]),
    "layer3.0.conv1": (["layer2.0.conv2", (8, 24)], ["layer3.0.conv2"]),
    "layer3.0.conv2": (["layer3.0.conv1"], ["fc"]),
    "fc": (["layer3.0.conv2", (16, 48)], []),
}
SKIP2, SKIP3 = "layer2.0.downsample.0", "layer3.0.downsample.0"
OPTION_B = OPTION_A | {
    "layer1.0.conv2": (["layer1.0.conv1"], ["layer2.0.conv1", SKIP2]),
    SKIP2: (["layer1.0.conv2", IDENTITY], ["layer3.0.conv1", SKIP3]),
    "layer2.0.conv2": (["layer2.0.conv1"], ["layer3.0.conv1", SKIP3]),
    "layer3.0.conv1": (["layer2.0.conv2", SKIP2], ["layer3.0.conv2"]),
    SKIP3: (["layer2.0.conv2", SKIP2], ["fc"]),
    "fc": (["layer3.0.conv2", SKIP3], []),
}
WIDE = {
    "conv1": ([], ["layer1.0.conv1", "layer1.0.shortcut"]),
    "layer1.0.conv1": (["conv1"], ["layer1.0.conv2"]),
    "layer1.0.shortcut": (["conv1"], ["layer2.0.conv1", "layer2.0.shortcut"]),
    "layer1.0.conv2": (["layer1.0.conv1"], ["layer2.0.conv1", "layer2.0.shortcut"]),
    "layer2.0.conv1": (["layer1.0.conv2", "layer1.0.shortcut"], ["layer2.0.conv2"]),
    "layer2.0.shortcut": (["layer1.0.conv2", "layer1.0.shortcut"], ["layer3.0.conv1", "layer3.0.shortcut"]),
    "layer2.0.conv2": (["layer2.0.conv1"], ["layer3.0.conv1", "layer3.0.shortcut"]),
    "layer3.0.conv1": (["layer2.0.conv2", "layer2.0.shortcut"], ["layer3.0.conv2"]),
    "layer3.0.shortcut": (["layer2.0.conv2", "layer2.0.shortcut"], ["fc"]),
    "layer3.0.conv2": (["layer3.0.conv1"], ["fc"]),
    "fc": (["layer3.0.conv2", "layer3.0.shortcut"], []),
}
WIDE_1 = WIDE | {  # width 1: the first block keeps the stem's channels
    "conv1": ([], ["layer1.0.conv1", IDENTITY]),
    "layer2.0.conv1": (["layer1.0.conv2", IDENTITY], ["layer2.0.conv2"]),
    "layer2.0.shortcut": (["layer1.0.conv2", IDENTITY], ["layer3.0.conv1", "layer3.0.shortcut"]),
}
del WIDE_1["layer1.0.shortcut"]


def reference_score(weights, around, name, entry):
    """One entry's score, with loops over the channels of its neighbours."""
    (j, k, *_), (before, after) = entry, around[name]
    w = weights[name]

    def writes(other):
        if isinstance(other, tuple):
            return 1.0 if other[0] <= k < other[1] else 0.0
        if other == IDENTITY:
            return 1.0
        channel = k // (w.shape[1] // len(weights[other]))  # pixels of one channel follow each other
        return sum(v**2 for v in weights[other][channel].flatten().tolist())

    def reads(other):
        if other == IDENTITY:
            return 1.0
        per_channel = weights[other].shape[1] // len(w)
        columns = weights[other][:, j * per_channel : (j + 1) * per_channel]
        return sum(v**2 for v in columns.flatten().tolist())

    into = sum(map(writes, before)) if before else 1.0
    out_of = sum(map(reads, after)) if after else 1.0
    return abs(float(w[entry])) * math.sqrt(into * out_of)


NETWORKS = {
    "chain with flattening": (lambda: small_run().model, SMALL),
    "resnet8-A": (lambda: resnet_cifar(depth=8, option="A", **DATA), OPTION_A),
    "resnet8-B": (lambda: resnet_cifar(depth=8, option="B", **DATA), OPTION_B),
    "wrn10-2": (lambda: WRN(depth=10, width=2, **DATA), WIDE),
    "wrn10-1": (lambda: WRN(depth=10, width=1, **DATA), WIDE_1),
}


@pytest.mark.parametrize(("build", "around"), NETWORKS.values(), ids=NETWORKS)
def test_scores_equal_a_loop_over_the_neighbours_of_each_weight(build, around):
    with seeded("lookahead"):
        run = run_with(build().double())
    assert {f"{name}.weight" for name in around} == set(run.masks)
    alive = {n: torch.rand(m.shape, generator=run.rng(n)) < 0.8 for n, m in run.masks.items()}
    run.set_masks(Masks(alive))  # pruned neighbours count 0
    weights = {n.removesuffix(".weight"): p.detach() for n, p in run.model.named_parameters()}
    for name, scores in lookahead(run).items():
        for index in torch.randperm(scores.numel(), generator=run.rng(name))[:25]:
            entry = tuple(int(i) for i in torch.unravel_index(index, scores.shape))
            wanted = reference_score(weights, around, name.removesuffix(".weight"), entry)
            assert float(scores[entry]) == pytest.approx(wanted, rel=1e-12)


FAMILIES = {
    "lenet300": lambda: LeNet300(**DATA),
    "lenet5": lambda: LeNet5(in_channels=1, num_classes=3, image_size=28),
    "conv4": lambda: Conv(4, **DATA),
    "vgg11": lambda: VGG(11, head_layers=2, head_norm=True, **DATA),
    "resnet18": lambda: resnet(18, **DATA),
    "resnet50": lambda: resnet(50, stem="imagenet", **DATA),
    "resnet20": lambda: resnet_cifar(20, **DATA),
    "resnet20-B": lambda: resnet_cifar(20, option="B", width=2, **DATA),
    "wrn16": lambda: WRN(16, 2, **DATA),
}


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_every_layer_of_a_family_reads_one_junction_but_the_first_and_writes_one_but_the_last(build):
    with torch.device("meta"):
        model = build()
    shapes = {n: p.shape for n, p in model.named_parameters()}
    names = prunable_names(model)
    read = [n for junction in model.junctions() for n in junction.used_by]
    written = [n for junction in model.junctions() for n in junction.made_by]
    assert sorted(read) == sorted(names[1:])
    assert sorted(written) == sorted(n for n in names if n != f"{model.head}.weight")
    for junction in model.junctions():
        (channels,) = {shapes[n][0] for n in junction.made_by}
        assert all(shapes[n][1] % channels == 0 for n in junction.used_by)
        assert 0 <= junction.shortcut_in[0] <= junction.shortcut_in[1] <= channels


def test_in_a_bottleneck_the_inner_convolutions_are_a_chain_between_the_streams():
    with torch.device("meta"):
        found = resnet(50, **DATA).junctions()
    first, skip = "layer1.0.conv1.weight", "layer1.0.downsample.0.weight"
    ends = ("layer1.0.conv3.weight", skip)
    assert found[:5] == [
        Junction(("conv1.weight",), (first, skip)),
        Junction((first,), ("layer1.0.conv2.weight",)),
        Junction(("layer1.0.conv2.weight",), ("layer1.0.conv3.weight",)),
        Junction(ends, ("layer1.1.conv1.weight",), shortcut_out=True),
        Junction(("layer1.1.conv1.weight",), ("layer1.1.conv2.weight",)),
    ]
    assert found[-1] == Junction(("layer4.2.conv3.weight",), ("fc.weight",), shortcut_in=(0, 2048))


def test_normalised_scores_of_every_layer_have_norm_1_and_the_same_order():
    run = small_run()
    plain, scores = lookahead(run), lookahead(run, normalize=True)
    for name, score in scores.items():
        assert float(score.norm()) == pytest.approx(1.0)
        torch.testing.assert_close(score * plain[name].norm(), plain[name], rtol=1e-12, atol=0)
    with torch.no_grad():
        run.model.fc.weight.zero_()
    assert not lookahead(run, normalize=True)["fc.weight"].any()


class Forked(PrunableModel):
    """Two layers make the channels of a unit, and nobody says which layers are neighbours."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def units(self):
        return [Unit("u", 3, (("a.weight", 0), ("b.weight", 0)), (("c.weight", 1),))]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ViT(dim=6, depth=1, **DATA), "the layers of a ViT are no neighbours"),
        (lambda: timm_model("resnet10t", **DATA | {"image_size": 32}), r"model\.name=resnet10t"),
        (Forked, "Forked does not say which of its layers are neighbours"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), "Sequential does not say which"),
    ],
)
def test_networks_without_known_neighbours_are_refused_with_the_way_out(build, text):
    with pytest.raises(ValueError, match=f"^criterion=lookahead: .*{text}.*use criterion=magnitude or lamp"):
        lookahead.check(run_with(build()), normalize=False)
