"""Dead neurons: the worked numbers of the cards, and what counts as a unit's incoming weights."""

import pytest
import torch
from torch import nn

from prunebench.core.feeds import Feed
from prunebench.core.method import Method
from prunebench.metrics.dead_neurons import DeadNeurons, trace_feeds
from prunebench.models.resnet import ResNet
from prunebench.models.vit import ViT
from prunebench.models.wrn import WRN
from tests.unit.fixed import at, prune, run_of

torch.set_num_threads(1)


def measured(run) -> dict:
    return DeadNeurons().measure(run, Method())


def identity_layer(rows: list[list[float]], pruned: int | None = None):
    """A linear layer with ReLU whose pre-activations are the given rows; one unit's weights are pruned."""
    images, size = torch.tensor(rows)[:, None, None, :], len(rows[0])
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(size, size, bias=False), nn.ReLU()), images)
    with torch.no_grad():
        run.model[1].weight.copy_(torch.eye(size))
    if pruned is not None:
        mask = torch.ones(size, size, dtype=torch.bool)
        mask[pruned] = False
        prune(run, **{"1": mask})
    return run


AP = [[1, -1, 0, 2], [2, -2, 0, -1], [-1, -0.5, 0, 3], [0.5, 1, 0, -2], [3, -1, 0, 1.0]]


def test_worked_example_of_ap():
    """ap.md, check 6: neuron 2 has all incoming weights pruned."""
    row = measured(identity_layer(AP, pruned=2))
    assert row["dnr"] == pytest.approx(0.60)
    assert row["static"] == 0.25
    assert row["dynamic"] == pytest.approx(0.35)
    assert (row["neurons"], row["channels"], row["dead_channels"], row["traced"]) == (4, 4, 1, 1.0)


def test_worked_example_of_the_metrics_card():
    """metrics.md, check 4: what is dead on the whole probe need not be so by structure."""
    row = measured(identity_layer([[1, 0, 0, 0], [0, 2, 0, 0], [3, 0, 0, 1.0]]))
    assert row["dnr"] == pytest.approx(0.6667, abs=5e-5)
    assert row["never_active"] == 0.25
    assert row["dynamic_observed"] == pytest.approx(0.4167, abs=5e-5)
    assert (row["static"], row["dynamic"]) == (0.0, row["dnr"])


def test_a_bias_keeps_a_unit_alive_whose_weights_are_all_pruned():
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU()), torch.zeros(3, 1, 1, 2))
    with torch.no_grad():
        run.model[1].bias.copy_(torch.tensor([1.0, -1.0]))
    prune(run, **{"1": torch.zeros(2, 2, dtype=torch.bool)})
    row = measured(run)
    assert (row["dnr"], row["static"], row["dynamic"], row["dead_channels"]) == (0.5, 0.5, 0.0, 1)


def test_every_position_of_a_convolution_is_a_neuron_and_a_channel_dies_with_all_of_them():
    """Two 1x1 filters, 1 and -1, and a pruned one, over two images of 2x2."""
    images = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]]], [[[3.0, -1.0], [-2.0, -2.0]]]])
    run = run_of(nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU()), images)
    with torch.no_grad():
        run.model[0].weight.copy_(torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1))
    prune(run, **{"0": torch.tensor([True, True, False]).view(3, 1, 1, 1)})
    row = measured(run)
    # outputs per image: filter 0 has 2 and 1 positive, filter 1 has 2 and 3, filter 2 none
    assert row["neurons"] == 12 and row["channels"] == 3 and row["dead_channels"] == 1
    assert row["dnr"] == pytest.approx(1 - (2 + 1 + 2 + 3) / 24)
    # filter 0 never sees x > 0 at positions 1 and 3, filter 1 never x < 0 at position 0
    assert row["never_active"] == pytest.approx((2 + 1 + 4) / 12)
    assert row["static"] == pytest.approx(4 / 12)


def test_of_a_gelu_what_is_not_positive_counts_as_dead():
    images = torch.tensor([[-1.0, 0.0, 2.0]]).view(1, 1, 1, 3)
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False), nn.GELU()), images)
    with torch.no_grad():
        run.model[1].weight.copy_(torch.eye(3))
    assert measured(run)["dnr"] == pytest.approx(2 / 3)


def test_of_a_transformer_the_hidden_neurons_of_every_token_count():
    model = ViT(dim=6, depth=2, heads=2, patch=2, in_channels=1, num_classes=3, image_size=4)
    run = run_of(model, torch.randn(3, 1, 4, 4))
    mask = torch.ones(24, 6, dtype=torch.bool)
    mask[:5] = False
    prune(run, **{"blocks_1_mlp_fc1": mask})
    row = measured(run)
    assert [layer["name"] for layer in row["layers"]] == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert row["neurons"] == 2 * 5 * 24 and row["channels"] == 2 * 24
    assert at(row["layers"], "blocks.1.mlp.act")["static"] == pytest.approx(5 / 24)  # biases start from 0
    assert row["static"] == pytest.approx(5 / 48) and row["dead_channels"] == 5


def small_resnet(option: str) -> ResNet:
    return ResNet(
        **{"block": "basic", "planes": (2, 4), "blocks": (1, 1), "stem": "cifar", "option": option},
        **{"widths": None, "in_channels": 1, "num_classes": 3},
    )


def feeds_of(model) -> dict[str, tuple | None]:
    feeds = trace_feeds(run_of(model, torch.randn(2, 1, 8, 8)), Method())
    return {name: feed.weights and tuple(sorted(feed.weights)) for (name, _), feed in feeds.items()}


@pytest.mark.parametrize("option", ["A", "B"])
def test_the_last_activation_of_a_block_is_fed_by_its_convolution_and_its_projection(option):
    projection = ("layer2.0.downsample.0.weight",) if option == "B" else ()
    assert feeds_of(small_resnet(option)) == {
        "relu": ("conv1.weight",),
        "layer1.0.relu1": ("layer1.0.conv1.weight",),
        "layer1.0.relu2": ("layer1.0.conv2.weight",),
        "layer2.0.relu1": ("layer2.0.conv1.weight",),
        "layer2.0.relu2": ("layer2.0.conv2.weight", *projection),
    }


def test_a_pre_activation_is_fed_by_all_that_write_its_stream():
    feeds = feeds_of(WRN(depth=16, width=1, in_channels=1, num_classes=3, image_size=8))
    assert feeds["layer1.0.relu1"] == ("conv1.weight",)
    assert feeds["layer1.1.relu1"] == ("conv1.weight", "layer1.0.conv2.weight")
    assert feeds["layer1.1.relu2"] == ("layer1.1.conv1.weight",)
    assert feeds["layer2.1.relu1"] == ("layer2.0.conv2.weight", "layer2.0.shortcut.weight")


def test_both_must_be_pruned_before_a_channel_is_dead_by_structure():
    torch.manual_seed(0)
    run = run_of(small_resnet("B"), torch.randn(4, 1, 8, 8))
    one = torch.ones(4, 4, 3, 3, dtype=torch.bool)
    one[1] = False
    prune(run, layer2_0_conv2=one)
    assert at(measured(run)["layers"], "layer2.0.relu2")["static"] == 0.0
    other = torch.ones(4, 2, 1, 1, dtype=torch.bool)
    other[1] = False
    prune(run, layer2_0_conv2=one, layer2_0_downsample_0=other)
    row = at(measured(run)["layers"], "layer2.0.relu2")
    assert (row["static"], row["dead_channels"]) == (0.25, 1)


def test_an_identity_shortcut_keeps_a_channel_alive():
    torch.manual_seed(0)
    run = run_of(small_resnet("A"), torch.randn(4, 1, 8, 8))
    prune(run, layer1_0_conv2=torch.zeros(2, 2, 3, 3, dtype=torch.bool))
    row = at(measured(run)["layers"], "layer1.0.relu2")
    assert row["static"] == row["dead_channels"] == 0
    assert row["never_active"] > 0, "though some positions are 0 for every image"


class Dense(nn.Module):
    """A convolution whose output is put beside its input before the last activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.relu = nn.ReLU()
        self.joined = nn.ReLU()

    def forward(self, x):
        return self.joined(torch.cat([x, self.relu(self.conv(x))], 1))


def test_behind_a_concatenation_structure_is_not_known_and_left_out_of_the_totals():
    images = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    run = run_of(Dense(), images)
    with torch.no_grad():
        run.model.conv.weight.copy_(torch.tensor([1.0, 1.0]).view(2, 1, 1, 1))
    prune(run, conv=torch.tensor([True, False]).view(2, 1, 1, 1))
    row = measured(run)
    first, last = row["layers"]
    assert (first["static"], first["dynamic"], first["dnr"]) == (0.5, 0.25, 0.75)
    assert (last["static"], last["dynamic"]) == (None, None)
    assert last["dnr"] == pytest.approx(4 / 6) and last["never_active"] == pytest.approx(1 / 3)
    assert (row["static"], row["dynamic"]) == (0.5, 0.25), "of the first activation alone"
    assert row["dnr"] == pytest.approx(7 / 10) and row["traced"] == pytest.approx(2 / 5)


class Reused(nn.Module):
    """One ReLU serves twice, the first time in place before something else changes its output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.first(x.flatten(1)))
        y += 1
        return self.act(self.second(y))


def test_an_activation_that_serves_twice_is_two_layers():
    run = run_of(Reused(), torch.randn(3, 1, 2, 2))
    assert trace_feeds(run, Method()) == {
        ("act", 0): Feed(1, ("first.weight",)),
        ("act", 1): Feed(1, ("second.weight",)),
    }
    row = measured(run)
    assert [(layer["name"], layer["neurons"]) for layer in row["layers"]] == [("act", 3), ("act (call 2)", 2)]
    assert row["neurons"] == 5


def reference_rates(model: nn.Sequential, images) -> tuple[float, float]:
    """Mean dead share and share never active, with a loop over all outputs of all ReLUs."""
    dead = total = 0
    alive: dict[tuple[int, int], bool] = {}
    for image in images:
        x = image[None]
        for depth, layer in enumerate(model):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                for place, value in enumerate(x.flatten().tolist()):
                    dead, total = dead + (value == 0), total + 1
                    alive[depth, place] = alive.get((depth, place), False) or value > 0
    return dead / total, 1 - sum(alive.values()) / len(alive)


def test_rates_equal_a_loop_over_single_outputs():
    torch.manual_seed(1)
    layers = (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    images = torch.randn(9, 2, 6, 6)
    row = measured(run_of(model, images))
    assert (row["dnr"], row["never_active"]) == pytest.approx(reference_rates(model, images))


def test_shares_are_ordered_and_static_never_falls_with_nested_masks_and_zero_biases():
    """ap.md, check 7."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 12, bias=False), nn.ReLU(), nn.Linear(12, 8, bias=False))
    run = run_of(nn.Sequential(*model, nn.ReLU()), torch.randn(20, 1, 3, 3))
    masks, before = {n: m.clone() for n, m in run.masks.items()}, 0.0
    for _ in range(6):
        masks = {n: m & (torch.rand(m.shape) > 0.4) for n, m in masks.items()}
        prune(run, **{n.removesuffix(".weight"): m for n, m in masks.items()})
        row = measured(run)
        for r in (row, *row["layers"]):
            assert 0 <= r["static"] <= r["never_active"] <= r["dnr"] <= 1
            assert r["dynamic"] == r["dnr"] - r["static"]
        assert row["static"] >= before
        before = row["static"]
    assert before > 0.2


def test_zeroing_a_negative_weight_wakes_neurons_and_never_kills_one():
    """ap.md, check 8, for every negative weight of the second layer and every image."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU())
    images = torch.randn(5, 1, 2, 3)

    def dead() -> list[float]:
        rows = [measured(run_of(model, image[None])) for image in images]
        return [at(row["layers"], "4")["dnr"] for row in rows]

    before, weight, fewer = dead(), model[3].weight.data, False
    for place in (weight < 0).nonzero().tolist():
        kept = weight[tuple(place)].clone()
        weight[tuple(place)] = 0.0
        now = dead()
        weight[tuple(place)] = kept
        assert all(n <= b for n, b in zip(now, before))
        fewer |= now != before
    assert fewer


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.unused = nn.Linear(4, 2), nn.ReLU()

    def forward(self, x):
        return torch.relu(self.fc(x.flatten(1)))


def test_a_network_whose_activations_cannot_be_seen_is_refused():
    run = run_of(Functional(), torch.randn(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"^metrics\.dead_neurons: the model has no ReLU or GELU module"):
        DeadNeurons().check(run, [])
    assert measured(run) == {"neurons": 0, "layers": []}, "as when a method takes them away later"


def test_a_network_that_puts_positions_where_images_are_is_refused():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(1, 3), nn.ReLU()

        def forward(self, x):
            return self.act(self.fc(x.reshape(-1, 1))).view(len(x), -1)

    with pytest.raises(ValueError, match="act does not keep images apart, its output for one image has 4"):
        DeadNeurons().check(run_of(Folded(), torch.randn(2, 1, 2, 2)), [])
