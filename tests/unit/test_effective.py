"""Effective sparsity against a search in an explicit graph, and the numbers of the card."""

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.units import prunable_names
from prunebench.metrics.effective import EffectiveSparsity, effective_weights
from prunebench.models.conv import Conv
from prunebench.models.resnet import ResNet, resnet_cifar
from prunebench.models.wrn import WRN
from tests.unit.fixed import at, prune, run_of

torch.set_num_threads(1)


def measured(run) -> dict:
    EffectiveSparsity().check(run, [])
    return EffectiveSparsity().measure(run, Method())


def mlp(*sizes: int):
    layers = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return run_of(nn.Sequential(*layers[:-1]), torch.zeros(1, 1, 1, sizes[0]))


def test_worked_example_of_the_card():
    """metrics.md, check 3."""
    run = mlp(3, 3, 2)
    masks = {"1": [[1, 0, 1], [0, 0, 0], [0, 1, 0]], "3": [[1, 1, 0], [0, 1, 0]]}
    prune(run, **{name: torch.tensor(mask, dtype=torch.bool) for name, mask in masks.items()})
    assert measured(run) == {
        **{"nominal_sparsity": pytest.approx(0.6), "effective_sparsity": pytest.approx(0.8)},
        **{"ineffective": 3, "units": 5, "dead_in": 1, "dead_out": 1, "collapse": False},
        "layers": [
            {
                **{"name": "1.weight", "weights": 9, "kept": 3, "effective": 2},
                **{"units": 3, "dead_in": 1, "dead_out": 1},  # neuron 1; neuron 2
            },
            {
                **{"name": "3.weight", "weights": 6, "kept": 3, "effective": 1},
                **{"units": 2, "dead_in": 0, "dead_out": 0},
            },
        ],
    }


def test_a_dense_network_is_effective_and_one_without_a_layer_is_nothing():
    """metrics.md, check 12."""
    run = mlp(4, 3, 3, 2)
    row = measured(run)
    assert (row["nominal_sparsity"], row["effective_sparsity"], row["ineffective"]) == (0.0, 0.0, 0)
    assert (row["dead_in"], row["dead_out"], row["collapse"]) == (0, 0, False)
    prune(run, **{"3": torch.zeros(3, 3, dtype=torch.bool)})
    row = measured(run)
    assert row["effective_sparsity"] == 1.0 and row["collapse"]
    assert (row["ineffective"], row["dead_in"], row["dead_out"]) == (12 + 6, 3, 3)


def random_masks(model: nn.Module, sparsity: float) -> Masks:
    """Every weight is pruned with this probability, drawn in the order of the layers."""
    params = dict(model.named_parameters())
    return Masks({n: torch.rand_like(params[n]) > sparsity for n in prunable_names(model)})


@pytest.mark.parametrize(
    ("sparsity", "nominal", "effective"),
    [(0.9, 0.9002, 0.9044), (0.99, 0.9902, 0.9930), (0.995, 0.9948, 0.9982)],
)
def test_reference_values_of_resnet20_with_random_masks(sparsity, nominal, effective):
    """metrics.md, section 6."""
    model = resnet_cifar(depth=20, in_channels=3, num_classes=10, image_size=32)
    run = run_of(model, torch.zeros(1, 3, 32, 32))
    torch.manual_seed(1)
    run.set_masks(random_masks(run.model, sparsity))
    row = measured(run)
    assert row["nominal_sparsity"] == pytest.approx(nominal, abs=5e-5)
    assert row["effective_sparsity"] == pytest.approx(effective, abs=5e-5)


# An explicit graph: nodes are channels, an edge is a kept weight (with its name and place) or is free (None).

Node = tuple[str, int]
Edge = tuple[Node, Node, tuple | None]


def weight_edges(masks: Masks, name: str, source: str, target: str, *, positions: int = 1) -> list[Edge]:
    """Edges of a layer; `positions` columns belong to each channel that it reads."""
    found, mask = [], masks[f"{name}.weight"]
    for place in product(*map(range, mask.shape)):
        if mask[place]:
            found.append(((source, place[1] // positions), (target, place[0]), (f"{name}.weight", place)))
    return found


def free_edges(source: str, target: str, channels: int, shift: int = 0) -> list[Edge]:
    return [((source, c), (target, c + shift), None) for c in range(channels)]


def spread_from(nodes: set[Node], edges: list[Edge]) -> set[Node]:
    """All nodes that edges lead to, again and again until nothing is added."""
    reached, size = set(nodes), -1
    while len(reached) != size:
        size = len(reached)
        reached |= {target for source, target, _ in edges if source in reached}
    return reached


def reference(edges: list[Edge], masks: Masks, targets: dict[str, str]) -> dict[str, dict]:
    """Per layer: the effective weights, and the output channels without a kept input or output."""
    sources = {n for s, t, _ in edges for n in (s, t) if n[0] == "image"}
    sinks = {n for s, t, _ in edges for n in (s, t) if n[0] == "logits"}
    from_image = spread_from(sources, edges)
    to_logits = spread_from(sinks, [(t, s, w) for s, t, w in edges])
    free = [e for e in edges if e[2] is None]
    read = {s for s, _, w in edges if w is not None}
    result = {}
    for name, mask in masks.items():
        effective = torch.zeros_like(mask)
        for source, target, weight in edges:
            if weight is not None and weight[0] == name and source in from_image and target in to_logits:
                effective[weight[1]] = True
        into = {t[1] for _, t, w in edges if w is not None and w[0] == name}
        nodes = [(targets[name], c) for c in range(len(mask))]
        last = targets[name] == "logits"
        out = [not last and not (spread_from({n}, free) & read) for n in nodes]
        result[name] = {"effective": effective, "dead_in": len(mask) - len(into), "dead_out": out}
    return result


def mlp_graph(masks):
    names = ["image", "first", "second", "logits"]
    edges = [e for n, (s, t) in zip("135", pairwise(names)) for e in weight_edges(masks, n, s, t)]
    return edges, {f"{n}.weight": t for n, t in zip("135", names[1:])}


def conv_graph(masks):
    edges = (
        weight_edges(masks, "conv1", "image", "a")
        + weight_edges(masks, "conv2", "a", "b")
        + weight_edges(masks, "fc1", "b", "c", positions=4)
        + weight_edges(masks, "fc2", "c", "d")
        + weight_edges(masks, "fc3", "d", "logits")
    )
    names = ("conv1", "conv2", "fc1", "fc2", "fc3")
    return edges, {f"{n}.weight": t for n, t in zip(names, ("a", "b", "c", "d", "logits"))}


def resnet_graph(masks):
    """Stem, a block of 2 channels, one of 4, classifier; the second's shortcut is "downsample" or padded."""
    edges = weight_edges(masks, "conv1", "image", "stem") + free_edges("stem", "s1", 2)
    edges += weight_edges(masks, "layer1.0.conv1", "stem", "h1")
    edges += weight_edges(masks, "layer1.0.conv2", "h1", "s1")
    edges += weight_edges(masks, "layer2.0.conv1", "s1", "h2")
    edges += weight_edges(masks, "layer2.0.conv2", "h2", "s2")
    targets = {"conv1": "stem", "layer1.0.conv1": "h1", "layer1.0.conv2": "s1", "layer2.0.conv1": "h2"}
    targets |= {"layer2.0.conv2": "s2", "fc": "logits"}
    if "layer2.0.downsample.0.weight" in masks:
        edges += weight_edges(masks, "layer2.0.downsample.0", "s1", "s2")
        targets["layer2.0.downsample.0"] = "s2"
    else:
        edges += free_edges("s1", "s2", 2, shift=1)
    edges += weight_edges(masks, "fc", "s2", "logits")
    return edges, {f"{n}.weight": t for n, t in targets.items()}


def small_resnet(option: str) -> ResNet:
    return ResNet(
        **{"block": "basic", "planes": (2, 4), "blocks": (1, 1), "stem": "cifar", "option": option},
        **{"widths": None, "in_channels": 1, "num_classes": 3},
    )


SMALL_CONV = {"conv1": 3, "conv2": 4, "fc1": 5, "fc2": 4}


def small_conv() -> Conv:
    return Conv(depth=2, widths=SMALL_CONV, in_channels=2, num_classes=3, image_size=4)


GRAPHS = {
    "mlp": (lambda: mlp(4, 6, 5, 3), mlp_graph),
    "conv": (lambda: run_of(small_conv(), torch.zeros(1, 2, 4, 4)), conv_graph),
    "resnet A": (lambda: run_of(small_resnet("A"), torch.zeros(1, 1, 4, 4)), resnet_graph),
    "resnet B": (lambda: run_of(small_resnet("B"), torch.zeros(1, 1, 2, 2)), resnet_graph),
}


@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("network", GRAPHS)
def test_weights_and_units_equal_those_of_a_search_in_the_graph(network, sparsity):
    build, graph = GRAPHS[network]
    run, lost, dead = build(), 0, 0
    for seed in range(4):
        torch.manual_seed(seed)
        run.set_masks(random_masks(run.model, sparsity))
        edges, targets = graph(run.masks)
        expected = reference(edges, run.masks, targets)
        effective, unread = effective_weights(run.model, run.masks, run.data.shape)
        row = measured(run)
        assert set(expected) == set(effective) == set(unread) == set(run.masks)
        for name, want in expected.items():
            assert torch.equal(effective[name], want["effective"]), name
            assert unread[name].tolist() == want["dead_out"], name
            layer = at(row["layers"], name)
            assert (layer["dead_in"], layer["dead_out"]) == (want["dead_in"], sum(want["dead_out"])), name
            assert layer["effective"] == int(want["effective"].sum())
        lost, dead = lost + row["ineffective"], dead + row["dead_in"] + row["dead_out"]
    assert sparsity < 0.5 or (lost and dead), "something to find"


@pytest.mark.parametrize(
    ("build", "options", "side"),
    [
        (Conv, {"depth": 6, "widths": dict.fromkeys([f"conv{i}" for i in range(1, 7)], 4)}, 4),
        (WRN, {"depth": 10, "width": 1}, 4),
        (resnet_cifar, {"depth": 110}, 8),
    ],
)
def test_dense_networks_are_whole_on_maps_of_one_pixel_and_at_any_depth(build, options, side):
    model = build(**options, in_channels=1, num_classes=3, image_size=side)
    row = measured(run_of(model, torch.zeros(1, 1, side, side)))
    assert row["effective_sparsity"] == 0.0 and not row["collapse"]


def test_two_hundred_layers_neither_overflow_nor_vanish():
    """The number of paths is about 40^200; the first unit of every hidden layer is dead."""
    layers, size = 200, 40
    run = mlp(*[size] * (layers + 1))
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[0] = False
    prune(run, **{str(1 + 2 * i): mask for i in range(layers - 1)})
    row = measured(run)
    assert row["ineffective"] == (layers - 2) * (size - 1) + size, "what reads the dead units"
    assert row["dead_in"] == layers - 1 and row["dead_out"] == 0


def test_removing_a_block_of_a_residual_network_leaves_the_shortcut():
    run = run_of(small_resnet("B"), torch.zeros(1, 1, 4, 4))
    prune(run, layer1_0_conv1=torch.zeros(2, 2, 3, 3, dtype=torch.bool))
    row = measured(run)
    assert row["collapse"], "no effective weight is left in the block's layers"
    assert at(row["layers"], "layer1.0.conv2.weight")["effective"] == 0
    assert row["ineffective"] == 36, "those of the block's second convolution"


def test_layers_that_are_not_pruned_are_whole_and_not_counted():
    run = mlp(3, 3, 2)
    run.set_masks(Masks({"3.weight": torch.tensor([[True, False, False], [False, False, False]])}))
    row = measured(run)
    assert [layer["name"] for layer in row["layers"]] == ["3.weight"]
    assert row["effective_sparsity"] == row["nominal_sparsity"] == pytest.approx(5 / 6)
