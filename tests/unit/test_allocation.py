"""How a sparsity is spread over layers: the numbers of the method cards."""

import math

import pytest
import torch

from prunebench.core.allocation import by_rates, er, erk, lamp_scores, spread, uniform, uniform_plus
from prunebench.core.masks import Masks
from prunebench.core.selection import layer_counts, select
from prunebench.core.units import prunable_names
from prunebench.launch import instantiate
from prunebench.metrics.cost import count_macs
from prunebench.models.conv import Conv
from prunebench.models.lenet import LeNet300
from tests.conformance import kit

torch.set_num_threads(1)

TOY = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (10, 16)}  # baselines-scoring 7.8
RIGL = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (10, 32)}  # rigl 7.1


def sizes(shapes):
    return {n: math.prod(s) for n, s in shapes.items()}


def as_in_the_code(shapes, sparsity):
    """The overall sparsity that the authors' code aims at: it rounds the zeros of a layer down, we do not."""
    return sum(math.floor(sparsity * n) for n in sizes(shapes).values()) / sum(sizes(shapes).values())


def densities(sparsities):
    return [round(1 - s, 4) for s in sparsities.values()]


def reached(sparsities, shapes):
    return sum(s * math.prod(shapes[n]) for n, s in sparsities.items()) / sum(sizes(shapes).values())


@pytest.mark.parametrize(
    ("rule", "sparsity", "expected"),
    [
        (erk, 0.8, [0.3310, 0.1095, 0.6834]),
        (er, 0.8, [0.4126, 0.1688, 0.1463]),
        (erk, 0.5, [1.0, 0.3368, 1.0]),
        (er, 0.5, [1.0, 0.4246, 0.3680]),
        (uniform_plus, 0.5, [1.0, round(1 - 0.582317, 4), round(1 - 0.582317, 4)]),
        (uniform_plus, 0.8, [1.0, round(1 - 0.949653, 4), 0.2]),
        (uniform, 0.8, [0.2, 0.2, 0.2]),
    ],
)
def test_densities_of_the_toy_network_are_those_of_the_card(rule, sparsity, expected):
    per_layer = rule in (er, erk)
    goal = (
        as_in_the_code(TOY if per_layer else {"all": (1528,)}, sparsity) if rule is not uniform else sparsity
    )
    assert densities(rule(TOY, goal)) == pytest.approx(expected, abs=1e-4)
    assert reached(rule(TOY, sparsity), TOY) == pytest.approx(sparsity, abs=1e-12)


def test_uniform_plus_refuses_what_it_cannot_reach():
    with pytest.raises(ValueError, match=r"sparsity\.target=0\.85"):
        uniform_plus(TOY, 0.85)


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.8, [0.448400, 0.888301, 0.0]), (0.5, [0.0, 0.581597, 0.0]), (0.9, [0.743170, 0.947992, 0.417510])],
)
def test_erk_sparsities_are_those_of_the_rigl_card(sparsity, expected):
    assert list(erk(RIGL, as_in_the_code(RIGL, sparsity)).values()) == pytest.approx(expected, abs=1e-6)


def network(name, *options):
    """Shapes and forward MACs of the prunable layers of a model, as `prune-run` builds it."""
    size, classes = (224, 1000) if name == "resnet50" else (32, 10)
    data = (f"dataset.size={size}", f"dataset.num_classes={classes}", "dataset.channels=3")
    cfg = kit.plain_of((f"model={name}", "dataset=synthetic", *data, *options))
    with torch.device("meta"):
        model = instantiate(cfg["model"], in_channels=3, num_classes=classes, image_size=size)
    names = prunable_names(model)
    macs = count_macs(model, (3, size, size))
    return {n: tuple(p.shape) for n, p in model.named_parameters() if n in names}, macs


def ratio(shapes, macs, sparsities):
    """f_S / f_D: kept over all MACs."""
    return sum(macs[n] * (1 - sparsities[n]) for n in shapes) / sum(macs[n] for n in shapes)


@pytest.fixture(scope="module")
def resnet50():
    return network("resnet50")


def first_dense(shapes, sparsity):
    """The uniform allocation of the RigL paper: all but the first layer."""
    return uniform(shapes, sparsity) | {next(iter(shapes)): 0.0}


def test_erk_of_resnet50_is_that_of_the_rigl_card(resnet50):
    shapes, _ = resnet50
    assert (len(shapes), sum(sizes(shapes).values())) == (54, 25_502_912)
    nine = erk(shapes, 0.9)
    assert [n for n, s in nine.items() if s == 0] == [list(shapes)[1]]  # the first 1x1 of block 1
    first, second, *_ = (nine[n] for n in list(shapes)[:1] + list(shapes)[2:3])
    assert (first, second) == pytest.approx((0.5800, 0.8227), abs=5e-5)
    assert nine[list(shapes)[-1]] == pytest.approx(0.9274, abs=5e-5)
    wide = [nine[n] for n, s in shapes.items() if s == (512, 512, 3, 3)]
    assert wide == pytest.approx([0.9787] * len(wide), abs=5e-5)
    eight = erk(shapes, 0.8)
    dense = [shapes[n] for n, s in eight.items() if s == 0]
    assert len(dense) == 8 and all(64 in s and s[2:] == (1, 1) for s in dense[:7])
    assert eight[next(iter(shapes))] == pytest.approx(0.1428, abs=5e-5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(erk, [0.414, 0.242, 0.122, 0.085, 0.024]), (first_dense, [0.223, 0.126, 0.077, 0.063, 0.039])],
)
def test_macs_of_resnet50_by_sparsity_are_those_of_the_rigl_card(resnet50, rule, expected):
    shapes, macs = resnet50
    assert 2 * sum(macs.values()) == pytest.approx(8.178e9, rel=1e-3)
    found = [ratio(shapes, macs, rule(shapes, s)) for s in (0.8, 0.9, 0.95, 0.965, 0.99)]
    assert found == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("rule", "expected"), [(first_dense, 0.226), (erk, 0.416)])
def test_the_training_cost_of_rigl_on_resnet50_is_that_of_the_card(resnet50, rule, expected):
    shapes, macs = resnet50
    sparse = ratio(shapes, macs, rule(shapes, 0.8))
    mean = (3 * sparse * 100 + 2 * sparse + 1) / 101 / 3
    assert mean == pytest.approx(expected, abs=6e-4)
    assert 5 * mean == pytest.approx({0.226: 1.13, 0.416: 2.08}[expected], abs=6e-3)


def test_erk_of_wrn_22_2_is_that_of_the_rigl_card():
    shapes, macs = network("wrn", "model.depth=22", "model.width=2")
    assert sum(sizes(shapes).values()) == 1_076_912
    dense = [shapes[n] for n, s in erk(shapes, 0.8).items() if s == 0]
    assert sorted(dense) == sorted(
        [(16, 3, 3, 3), (32, 16, 1, 1), (64, 32, 1, 1), (128, 64, 1, 1), (10, 128)]
    )
    found = [ratio(shapes, macs, rule(shapes, s)) for s in (0.8, 0.9) for rule in (erk, first_dense)]
    assert found == pytest.approx([0.352, 0.202, 0.174, 0.103], abs=6e-4)


@pytest.mark.parametrize(
    ("sparsity", "cost", "first", "block"), [(0.9, 0.1857, 0, 0.3026), (0.95, 0.0908, 0.4826, 0.1475)]
)
def test_erk_of_resnet20_is_that_of_the_metrics_card(sparsity, cost, first, block):
    shapes, macs = network("resnet20")
    found = erk(shapes, sparsity)
    names = list(shapes)
    assert found[names[-1]] == 0
    assert found[names[0]] == pytest.approx(first, abs=5e-5)
    assert 1 - found[names[1]] == pytest.approx(block, abs=5e-5)
    assert ratio(shapes, macs, found) == pytest.approx(cost, abs=5e-5)


def test_lamp_scores_are_those_of_the_card():
    first = lamp_scores(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert first.tolist() == pytest.approx([1 / 30, 4 / 29, 9 / 25, 1.0], abs=1e-12)
    assert first.tolist() == pytest.approx([0.033333, 0.137931, 0.36, 1], abs=1e-6)
    second = lamp_scores(torch.tensor([0.1, 0.2, 0.3, 0.6], dtype=torch.float64))
    assert second.tolist() == pytest.approx([0.02, 0.081633, 0.2, 1], abs=1e-6)


def test_lamp_leaves_pruned_weights_out_and_never_empties_a_layer():
    alive = torch.tensor([True, False, True, True])
    scores = lamp_scores(torch.tensor([1.0, 9.0, 3.0, 4.0]), alive)
    assert scores.tolist() == pytest.approx([1 / 26, -math.inf, 9 / 25, 1.0])
    layers = {"tiny": torch.full((50,), 1e-6), "huge": torch.full((50,), 1e6)}
    assert select(layers, 0.98, allocation="lamp").kept_per_layer == {"tiny": 1, "huge": 1}


def test_equal_lamp_scores_rank_the_earlier_weight_higher():
    assert lamp_scores(torch.ones(4)).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert lamp_scores(torch.zeros(3)).tolist() == [0, 0, 0]


def test_spread_gives_the_missing_weights_to_the_largest_remainders():
    # exact shares 2.1, 3.5, 0.7 of 6.3, rounded down 2, 3, 0; one is missing
    assert spread({"a": 0.79, "b": 0.65, "c": 0.93}, {"a": 10, "b": 10, "c": 10}, 0.79) == {
        "a": 2,
        "b": 3,
        "c": 1,
    }


def test_spread_gives_equal_remainders_to_the_earlier_layer():
    assert spread(dict.fromkeys("abc", 0.5), dict.fromkeys("abc", 3), 0.5) == {"a": 2, "b": 1, "c": 1}


def test_spread_always_adds_up():
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        n = int(torch.randint(1, 6, (), generator=rng))
        size = {str(i): int(s) for i, s in enumerate(torch.randint(1, 50, (n,), generator=rng))}
        sparsity = float(torch.rand((), generator=rng))
        counts = spread(uniform(size, sparsity), size, sparsity)
        assert sum(counts.values()) == round((1 - sparsity) * sum(size.values()))
        assert all(abs(counts[k] - (1 - sparsity) * size[k]) < 1 + 1e-9 for k in size)


# Layer rates (lottery tickets)

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
# lth 7.1: percent of the weights that remain after each round
LENET_ROWS = "100 80.04 64.06 51.28 41.05 32.87 26.32 21.07 16.88 13.52 10.83 8.68 6.95 5.57 4.47 3.58"


def remaining(shapes, rates, n):
    """Share of the weights that n rounds leave, layer l losing rates[l] of its rest in each."""
    return sum(size * (1 - rates[k]) ** n for k, size in sizes(shapes).items()) / sum(sizes(shapes).values())


@pytest.mark.parametrize("n", range(16))
def test_layer_rates_reproduce_the_densities_of_the_lottery_ticket_paper(n):
    rates = {"fc1.weight": 0.2, "fc2.weight": 0.2, "fc3.weight": 0.1}
    left = remaining(LENET, rates, n)
    assert round(100 * left, 2) == float(LENET_ROWS.split()[n])
    found = by_rates(LENET, 1 - left, rates=rates)
    assert {k: 1 - s for k, s in found.items()} == pytest.approx(
        {k: (1 - r) ** n for k, r in rates.items()}, abs=1e-9
    )
    counts = layer_counts(LENET, sizes(LENET), 1 - left, lambda shapes, s: by_rates(shapes, s, rates=rates))
    assert sum(counts.values()) == round(left * 266_200)
    assert all(abs(c - (1 - rates[k]) ** n * sizes(LENET)[k]) <= 1 for k, c in counts.items())


@pytest.mark.parametrize(
    ("depth", "conv", "rows"),
    [(2, 0.1, {11: 8.81, 14: 4.57}), (4, 0.1, {11: 11.06, 12: 9.18})],
)
def test_conv_networks_keep_what_the_paper_says(depth, conv, rows):
    with torch.device("meta"):
        model = Conv(depth=depth, in_channels=3, num_classes=10, image_size=32)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim > 1}
    rates = {n: conv if len(s) == 4 else 0.2 for n, s in shapes.items()}
    rates[f"{model.head}.weight"] = 0.1
    for n, percent in rows.items():
        left = remaining(shapes, rates, n)
        assert round(100 * left, 2) == percent
        found = by_rates(shapes, 1 - left, rates=rates)
        assert {k: 1 - s for k, s in found.items()} == pytest.approx(
            {k: (1 - r) ** n for k, r in rates.items()}, abs=1e-9
        )


def test_resnet_20_keeps_what_the_paper_says_when_shortcuts_and_classifier_stay_dense():
    """lth 7.1: a global 20 % per round of 267,696 of 270,896 weights."""
    rows = [80.24, 64.43, 51.78, 41.66, 33.56, 27.09, 21.91, 17.76, 14.44, 11.79, 9.67]
    shapes, rates = {"convs": (267_696,), "rest": (3_200,)}, {"convs": 0.2, "rest": 0.0}
    assert [round(100 * remaining(shapes, rates, n), 2) for n in range(1, 12)] == rows
    for n in range(1, 12):
        found = by_rates(shapes, 1 - remaining(shapes, rates, n), rates=rates)
        assert found["rest"] == 0.0
        assert found["convs"] == pytest.approx(1 - 0.8**n, abs=1e-9)


def test_layers_without_a_rate_bound_the_reachable_sparsity():
    with pytest.raises(ValueError, match=r"sparsity\.target=0\.6: out of reach"):
        by_rates({"a": (10,), "b": (10,)}, 0.6, rates={"a": 0.2, "b": 0.0})


def test_sparsity_0_removes_nothing_by_rates():
    assert by_rates({"a": (10,), "b": (10,)}, 0.0, rates={"a": 0.2, "b": 0.0}) == {"a": 0.0, "b": 0.0}


def test_lenet_300_has_the_weights_of_the_card():
    with torch.device("meta"):
        model = LeNet300(in_channels=1, num_classes=10, image_size=28)
    assert Masks.ones(model, list(LENET)).total == 266_200
