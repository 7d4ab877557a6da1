"""Compression of the whole model as a target: ShrinkBench's worked numbers (arXiv 2003.03033), refusals."""

from types import SimpleNamespace

import pytest
import torch

from prunebench.compression import provisional, sparsity_of, target_of, told, with_target
from prunebench.core.selection import select
from prunebench.core.units import prunable_names
from prunebench.metrics.cost import cost, count_macs
from prunebench.models.resnet import resnet_cifar
from prunebench.models.vgg import VGG

torch.set_num_threads(1)

CIFAR = {"in_channels": 3, "num_classes": 10, "image_size": 32}
POINTS = (2, 4, 8, 16, 32)
# network: T, P (biases of pruned layers among them), densities at POINTS, all computed with JJGO/shrinkbench
NETWORKS = {
    "resnet20": (269_722, 267_696, (0.496216, 0.244324, 0.118378, 0.055405, 0.023918)),
    "resnet56": (853_018, 848_304, (0.497222, 0.245832, 0.120138, 0.057290, 0.025867)),
    "cifar_vgg": (14_991_946, 14_977_344, (0.499513, 0.249269, 0.124147, 0.061586, 0.030306)),
}


def build(name):
    if name == "cifar_vgg":
        return VGG(depth=16, head_layers=2, head_norm=True, **CIFAR)
    return resnet_cifar(depth=int(name.removeprefix("resnet")), **CIFAR)


def sizes(model):
    """All parameters, and the prunable weights without the classifier."""
    params = dict(model.named_parameters())
    return sum(p.numel() for p in params.values()), sum(
        params[n].numel() for n in prunable_names(model, ["head"])
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_share_of_prunable_weights_to_keep_is_the_papers(name):
    total, prunable, densities = NETWORKS[name]
    for compression, density in zip(POINTS, densities):
        # printed to six digits, and T/c is rounded to a whole parameter
        reached = 1 - sparsity_of(compression, total, prunable)
        assert reached == pytest.approx(density, abs=5.1e-7 + 0.5 / prunable)


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_have_the_papers_numbers_of_parameters(name):
    with torch.device("meta"):
        model = build(name)
    total, prunable = sizes(model)
    biases = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 512 if name == "cifar_vgg" else 0
    assert (total, prunable + biases) == NETWORKS[name][:2]


@pytest.mark.parametrize("compression", [1, 1.0001, 1.5, 3, 7.77, 31, 100, 180.9])
def test_the_reached_count_is_the_asked_one_to_the_parameter(compression):
    total, prunable, _ = NETWORKS["resnet56"]
    keep = round((1 - sparsity_of(compression, total, prunable)) * prunable)  # as `select` counts
    assert keep + total - prunable == round(total / compression)


def test_compression_1_removes_nothing():
    assert sparsity_of(1, 100, 90) == 0.0


def test_without_other_parameters_compression_is_total_over_kept_weights():
    assert sparsity_of(4, 100, 100) == 0.75
    assert sparsity_of(100, 100, 100) == pytest.approx(0.99, abs=1e-12)


# A 4 -> 3 layer, prunable with its bias, and a 3 -> 2 classifier: T = 23, P = 15
W = torch.tensor([[0.9, -0.1, 0.05, 0.4], [-0.3, 0.8, -0.02, 0.6], [0.15, -0.7, 0.25, -0.01]])
B = torch.tensor([0.12, -0.03, 0.5])


@pytest.mark.parametrize(
    ("compression", "allocation", "weight", "bias"),
    [
        (1.5, "global", [[1, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0]], [0, 0, 1]),
        (2, "global", [[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]], [0, 0, 0]),
        (2, "uniform", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], [0, 0, 1]),
    ],
)
def test_masks_of_the_tiny_network(compression, allocation, weight, bias):
    masks = select({"w": W.abs(), "b": B.abs()}, sparsity_of(compression, 23, 15), allocation=allocation)
    assert masks["w"].int().tolist() == weight
    assert masks["b"].int().tolist() == bias
    assert masks.kept + 8 == {1.5: 15, 2: 12}[compression]


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
@pytest.mark.parametrize("compression", POINTS)
def test_layerwise_speedup_follows_from_the_density_and_the_dense_classifier(name, compression):
    model = build(name)
    total, prunable = sizes(model)
    macs, params = count_macs(model, (3, 32, 32)), dict(model.named_parameters())
    scores = {n: params[n].detach().abs() for n in prunable_names(model, ["head"])}
    size = cost(model, select(scores, sparsity_of(compression, total, prunable), allocation="uniform"), macs)
    assert size["params"] == round(total / compression)
    assert size["compression"] == total / round(total / compression)
    density = NETWORKS[name][2][POINTS.index(compression)]
    everything, head = {"resnet20": 40_551_040, "resnet56": 125_485_696}[name], 640
    # every layer keeps a whole number of weights, the smallest of 432
    assert size["speedup"] == pytest.approx(everything / (density * (everything - head) + head), rel=2e-3)


def test_of_a_fresh_network_layerwise_speedup_is_about_the_compression_and_global_far_less():
    torch.manual_seed(0)
    model = build("resnet20")
    macs, params = count_macs(model, (3, 32, 32)), dict(model.named_parameters())
    scores = {n: params[n].detach().abs() for n in prunable_names(model, ["head"])}
    speedup = {
        allocation: cost(model, select(scores, sparsity_of(8, *sizes(model)), allocation=allocation), macs)[
            "speedup"
        ]
        for allocation in ("uniform", "global")
    }
    assert speedup["uniform"] == pytest.approx(8.44, abs=0.01)
    assert speedup["global"] == pytest.approx(4.47, abs=0.1)  # of another draw of the weights


def test_what_no_network_reaches_is_refused_with_the_largest_compression():
    with pytest.raises(ValueError) as error:
        sparsity_of(200, 853_018, 848_304)
    assert str(error.value) == (
        "sparsity.compression=200: must be at most 180.91 for this network, 4,714 of whose 853,018 "
        "parameters are never pruned"
    )
    assert 1 - sparsity_of(180.91, 853_018, 848_304) >= 1 / 848_304


@pytest.mark.parametrize("compression", [0.5, 0, -3, float("nan"), float("inf")])
def test_a_compression_below_1_is_refused(compression):
    with pytest.raises(ValueError, match=rf"^sparsity.compression={compression:g}: must be 1 "):
        sparsity_of(compression, 100, 90)


def a_run():
    model = torch.nn.Linear(9, 10)  # 90 weights, 10 biases
    return SimpleNamespace(model=model, masks=SimpleNamespace(total=90))


def configured(compression, **protocol):
    return {"sparsity": {"compression": compression}, "protocol": protocol}


def test_the_protocol_gets_the_sparsity_where_its_target_was():
    cfg = configured(2.0, target=None, rounds=3)
    target = target_of(cfg, a_run(), "weight")
    assert target == 1 - 40 / 90
    assert with_target(cfg["protocol"], target) == {"target": target, "rounds": 3}
    assert cfg["protocol"]["target"] is None
    assert provisional(cfg) == {"target": 0.0, "rounds": 3}


def test_without_compression_or_target_everything_stays():
    for cfg in (configured(None, target=0.9), configured(4.0, dense="40ep")):
        assert target_of(cfg, a_run(), "weight") is None
        assert with_target(cfg["protocol"], None) == provisional(cfg) == cfg["protocol"]


@pytest.mark.parametrize("other", [{"target": 0.9}, {"target": None, "rate": 0.2}])
def test_two_targets_are_refused(other):
    with pytest.raises(ValueError, match=r"sparsity.compression=4: exactly one must be given"):
        target_of(configured(4.0, **other), a_run(), "weight")


@pytest.mark.parametrize("granularity", ["kernel", "filter", "neuron"])
def test_a_coarser_granularity_is_refused(granularity):
    with pytest.raises(ValueError, match=f"granularity={granularity} prunes others; give sparsity.t"):
        target_of(configured(4.0, target=0.5), a_run(), granularity)


def test_the_plan_tells_what_stays():
    assert told(2.0, a_run()) == (
        "2 asked, of the whole model: 50 of 100 parameters stay, 10 of them not prunable; at most 9.09"
    )
