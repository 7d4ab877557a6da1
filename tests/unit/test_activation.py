"""Scores of whole channels from activations, by the worked numbers of the cards and by plain loops."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.units import PrunableModel, Unit
from prunebench.criteria.activation import apoz, greedy_loss, hrank, mean_activation
from prunebench.methods.pruner import Pruner
from tests.conformance import kit
from tests.unit.toy_nets import Images, run_of, small_run, toy_run

torch.set_num_threads(1)

A0 = [[1, 0, 2, 0.3, 0], [0.5, 0.2, 2.5, 0.3, 0], [1.5, 0.1, 3, 0.6, 0.3]]
A1 = [[0.9, 4, 0, 1.2], [1.1, 5, 0, 0.8], [1, 6, 0.6, 1]]


class Split(Images):
    """Images that can be read as a whole, in batches of any size."""

    def evaluation(self, split, *, batch_size=2):
        assert split == "train"
        yield from zip(self.x.split(batch_size), self.y.split(batch_size))


class Given(PrunableModel):
    """Two layers whose activations on three one-hot images are the card's (dropnet.md, 7.1)."""

    head = "fc3"

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.double()
        a0, a1 = (torch.tensor(a, dtype=torch.float64) for a in (A0, A1))
        self.fc1.weight.data, self.fc1.bias.data = a0.T.contiguous(), torch.zeros(5, dtype=torch.float64)
        self.fc2.weight.data = torch.linalg.lstsq(a0, a1).solution.T.contiguous()
        self.fc2.bias.data.zero_()

    def forward(self, x):
        return self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x)))))

    def units(self):
        return [
            Unit("fc1", 5, (("fc1.weight", 0), ("fc1.bias", 0)), (("fc2.weight", 1),)),
            Unit("fc2", 4, (("fc2.weight", 0), ("fc2.bias", 0)), (("fc3.weight", 1),)),
        ]


def given(batch_size=2):
    data = Split(torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 0]), 3)
    data.evaluation = partial(data.evaluation, batch_size=batch_size)
    return run_of(Given(), data)


def small():
    run = small_run()
    run.data.__class__ = Split
    return run


def maps_of(run):
    """conv1 (behind its BatchNorm) and conv2: activations of all training images, from plain layers."""
    m, x = run.model.eval(), run.data.x
    first = F.relu(m.bn(m.conv1(x)))
    return first, F.relu(m.conv2(m.pool(first)))


def test_mean_activations_are_those_of_the_card():
    scores = mean_activation(given(), granularity="neuron")
    assert scores["fc1"].tolist() == pytest.approx([1, 0.1, 2.5, 0.4, 0.1])
    assert scores["fc2"].tolist() == pytest.approx([1, 5, 0.2, 1], abs=1e-12)
    negated = mean_activation(given(), granularity="neuron", drop="maximum")
    for name, score in scores.items():
        torch.testing.assert_close(negated[name], -score)


def test_mean_activation_does_not_depend_on_the_batches_and_scales_with_its_layer():
    once, single = (mean_activation(given(b), granularity="neuron") for b in (3, 1))
    for name, score in once.items():
        torch.testing.assert_close(single[name], score, rtol=1e-12, atol=1e-12)
    run = given()
    with torch.no_grad():
        run.model.fc1.weight.mul_(3), run.model.fc1.bias.mul_(3)
    torch.testing.assert_close(mean_activation(run, granularity="neuron")["fc1"], 3 * once["fc1"])


def test_scores_of_filters_are_means_over_images_and_positions():
    run = small()
    with torch.no_grad():
        for name, maps in zip(("conv1", "conv2"), maps_of(run)):
            kinds = {
                "mean": (mean_activation, {}, maps.abs().mean((0, 2, 3))),
                "position": (apoz, {}, (maps != 0).double().mean((0, 2, 3))),
                "map": (apoz, {"form": "map"}, (maps.mean((2, 3)) != 0).double().mean(0)),
                "rank": (
                    hrank,
                    {"batches": 3},
                    torch.linalg.matrix_rank(maps.float()).double().mean(0),
                ),
            }
            for score, options, wanted in kinds.values():
                found = score(run, granularity="filter", **options)[name]
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
            assert wanted.unique().numel() > 1


def test_ranks_of_maps_are_those_of_the_card():
    """structured-baselines 7.3: four maps of 2x2."""

    class Maps(PrunableModel):
        maps = torch.tensor([[[1.0, 2], [2, 4]], [[1, 0], [0, 1]], [[0, 0], [0, 0]], [[3, 1], [1, 3]]])

        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(4, 4, 1, bias=False), nn.ReLU(), nn.Linear(16, 2)
            self.conv.weight.data = torch.eye(4).view(4, 4, 1, 1)

        def forward(self, x):
            return self.fc(self.relu(self.conv(x)).flatten(1))

        def units(self):
            return [Unit("conv", 4, (("conv.weight", 0),), (("fc.weight", 1),))]

    run = run_of(Maps(), Split(Maps.maps.expand(3, 4, 2, 2), torch.zeros(3, dtype=torch.int64), 3))
    assert hrank(run, granularity="filter", batches=1)["conv"].tolist() == [1, 2, 0, 2]
    zeros = apoz(run, granularity="filter")["conv"]
    assert zeros.tolist() == [1, 0.5, 0, 1]


def test_a_residual_stream_has_the_mean_over_the_activations_of_its_blocks():
    options = ("model=resnet20", "model.depth=8", "model.option=B")
    run = kit.assemble(("method=one_shot", *kit.TINY, *options)).run
    x = torch.cat([x for x, _ in run.data.evaluation("train")])
    seen = {}
    for name in ("relu", "layer1.0.relu2"):
        module = run.model.get_submodule(name)
        module.register_forward_hook(lambda _, a, y, n=name: seen.update({n: y.detach()}))
    scores = mean_activation(run, granularity="filter")
    seen.clear()
    with torch.no_grad():
        run.model.eval()(x)
    stream = next(u.name for u in run.model.units() if ("conv1.weight", 0) in u.made_by)
    wanted = torch.stack([y.double().mean((0, 2, 3)) for y in seen.values()]).mean(0)
    torch.testing.assert_close(scores[stream], wanted, rtol=1e-5, atol=1e-7)


def reference_greedy(run):
    """Loss over all training images with the output of one channel after the other set to 0."""
    m, y = run.model.eval(), run.data.y
    first, _ = maps_of(run)
    losses = {"conv1": [], "conv2": []}
    for c in range(3):
        one = first.clone()
        one[:, c] = 0
        losses["conv1"].append(F.cross_entropy(m.fc(F.relu(m.conv2(m.pool(one))).flatten(1)), y))
    second = F.relu(m.conv2(m.pool(first)))
    for c in range(4):
        two = second.clone()
        two[:, c] = 0
        losses["conv2"].append(F.cross_entropy(m.fc(two.flatten(1)), y))
    return {n: torch.stack(values) for n, values in losses.items()}


def test_the_greedy_score_is_the_loss_with_the_channel_silenced():
    run = small()
    with torch.no_grad():
        wanted = reference_greedy(run)
    scores = greedy_loss(run, granularity="filter")
    for name, score in scores.items():
        torch.testing.assert_close(score, wanted[name], rtol=1e-9, atol=1e-12)
    before = {n: t.clone() for n, t in run.model.state_dict().items()}
    method = Pruner(partial(greedy_loss, granularity="filter"), granularity="filter", allocation="global")
    method.prune(run, 1 / 7)
    name = min(wanted, key=lambda n: float(wanted[n].min()))
    assert method.alive(run)[name].tolist() == (wanted[name] != wanted[name].min()).tolist()
    assert float(greedy_loss(run, granularity="filter")[name].min()) == -torch.inf
    assert torch.equal(before["bn.running_mean"], run.model.bn.running_mean)


@pytest.mark.parametrize(
    ("score", "run", "text"),
    [
        (partial(mean_activation, granularity="weight", drop="minimum", batches=None), small, "scores whole"),
        (partial(apoz, granularity="kernel", form="map", batches=None), small, "scores whole channels"),
        (partial(greedy_loss, granularity="weight", batches=None), small, "scores whole channels"),
        (partial(hrank, granularity="weight", batches=5), small, "scores whole channels"),
        (partial(hrank, granularity="neuron", batches=1), given, "neurons of fc1 have no map"),
        (partial(hrank, granularity="filter", batches=99), small, r"criterion\.batches=99: 99 x 5 images"),
        (
            partial(mean_activation, granularity="filter", drop="all", batches=None),
            small,
            "criterion.drop=all",
        ),
        (partial(apoz, granularity="filter", form="x", batches=None), small, "criterion.form=x"),
        (partial(apoz, granularity="filter", form="map", batches=0), small, "criterion.batches=0: must be"),
        (partial(greedy_loss, granularity="filter", batches=0), small, "criterion.batches=0: must be"),
    ],
)
def test_what_cannot_work_is_refused_before_training(score, run, text):
    granularity = score.keywords["granularity"]
    method = Pruner(score, granularity=granularity, allocation="uniform")
    with pytest.raises(ValueError, match=text):
        method.check(run(), [0.5])


def test_a_unit_without_a_nonlinearity_module_is_refused_before_training():
    run = toy_run()
    run.model.relu = nn.SiLU()
    with pytest.raises(
        ValueError, match=r"no ReLU or GELU module is seen behind fc1 of Toy; leave its layers out"
    ):
        mean_activation.check(run, granularity="neuron", drop="minimum", batches=None)
