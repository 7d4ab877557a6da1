"""DropNet: counts, exact selection and rewinding, by the numbers of its card (dropnet.md, section 7)."""

import json
import re
from functools import partial

import pytest
import torch

from prunebench.core.phase import Phase
from prunebench.core.run import generator
from prunebench.criteria.activation import mean_activation
from prunebench.methods.dropnet import DropNet, ranks
from prunebench.metrics.evaluation import evaluate
from prunebench.models.dropnet import DropNetModel
from tests.conformance import kit
from tests.unit.fixed import run_of as plain_run
from tests.unit.test_activation import given

torch.set_num_threads(1)

SCORE = partial(mean_activation, granularity="neuron", drop="minimum", batches=None)
CASE = kit.Case("dropnet")


def plan_of(rate, rounds):
    later = [Phase(f"round-{j}", "1it", None, sparsity=1.0 - (1.0 - rate) ** j) for j in range(1, rounds + 1)]
    return [Phase("dense", "1it", None), *later]


def planned(method, run, rounds):
    """The method's plan with numbers for sparsities, for this network."""
    return [p.settled(run) for p in method.plan(plan_of(method.rate, rounds))]


def net(variant, **widths):
    data = {"in_channels": 3, "num_classes": 2, "image_size": 16}
    return plain_run(DropNetModel(variant, widths, **data), torch.randn(4, 3, 16, 16))


@pytest.mark.parametrize(
    ("allocation", "dropped"),
    [("global", {"fc1": [1, 4], "fc2": [2]}), ("uniform", {"fc1": [1, 4], "fc2": [2]})],
)
def test_a_round_drops_the_units_of_the_card(allocation, dropped):
    run, method = given(), DropNet(SCORE, rate=0.4, allocation=allocation)
    (_, phase) = planned(method, run, 1)
    method.prune(run, phase.sparsity)
    gone = {n: (~a).nonzero().flatten().tolist() for n, a in method.alive(run).items()}
    assert gone == dropped


def counts_of(method, run, rounds):
    return [
        round((1 - p.sparsity) * sum(run.model.widths.values()))
        for p in planned(method, run, rounds)
        if p.sparsity is not None
    ]


def test_units_left_over_all_layers_of_model_a_are_those_of_the_card():
    left = counts_of(DropNet(SCORE, allocation="global"), net("A"), 12)
    assert left == [64, 52, 42, 34, 28, 23, 19, 16, 13, 11, 9, 8]


def test_fractions_left_of_model_c_are_those_of_the_card():
    run = net("C")
    method = DropNet(SCORE, allocation="global", granularity="filter")
    left = [round(1 - p.sparsity, 4) for p in planned(method, run, 11)[1:]]
    assert left == [0.8021, 0.6432, 0.5156, 0.4141, 0.3333, 0.2682, 0.2161, 0.1745, 0.1406, 0.1146, 0.0938]
    method = DropNet(SCORE, allocation="uniform", granularity="filter")
    left = [round(1 - p.sparsity, 4) for p in planned(method, run, 11)[1:]]
    assert left[:10] == [0.8073, 0.6510, 0.5260, 0.4271, 0.3490, 0.2865, 0.2344, 0.1927, 0.1615, 0.1302]


def test_every_layer_of_model_c_loses_its_own_share():
    run = net("C", fc1=8)
    method = DropNet(partial(mean_activation, granularity="filter"), granularity="filter")
    seen = []
    run.data.evaluation = lambda split: iter([(run.data.images, run.data.labels)])
    for phase in planned(method, run, 4)[1:]:
        method.prune(run, phase.sparsity)
        seen.append([int(a.sum()) for a in method.alive(run).values()])
    assert seen == [[52, 52, 103, 103], [42, 42, 83, 83], [34, 34, 67, 67], [28, 28, 54, 54]]


def test_no_layer_loses_its_last_unit_and_a_round_without_loss_is_refused():
    run = net("A", fc1=1, fc2=3)
    method = DropNet(SCORE, rate=0.5)
    run.data.evaluation = lambda split: iter([(run.data.images, run.data.labels)])
    asked = [p.sparsity for p in planned(method, run, 2)[1:]]
    method.check(run, asked)
    for sparsity in asked:
        method.prune(run, sparsity)
    assert [int(a.sum()) for a in method.alive(run).values()] == [1, 1]
    message = (
        r"sparsity\.rounds=3: round 3 finds nothing to drop, every layer is down to sparsity\.min_kept=1"
    )
    with pytest.raises(ValueError, match=message):
        method.check(run, [p.sparsity for p in planned(method, run, 3)[1:]])
    everywhere = DropNet(SCORE, rate=0.5, allocation="global")
    with pytest.raises(ValueError, match=r"sparsity\.min_kept=1: needs 2 entries in 2 layers, but round 2"):
        everywhere.check(run, [p.sparsity for p in planned(everywhere, run, 2)[1:]])


def test_equal_scores_are_ranked_at_random_and_others_never():
    scores = {"a": torch.tensor([2.0, 0, 0, 0, -1]), "b": torch.tensor([0.0, 1.5, 0])}
    seen = set()
    for seed in range(40):
        places = ranks(scores, generator("test", seed))
        flat = [*places["a"].tolist(), *places["b"].tolist()]
        assert sorted(flat) == list(range(8)) and (flat[4], flat[6], flat[0]) == (0, 6, 7)
        seen.add(flat.index(1))
    assert seen == {1, 2, 3, 5, 7}
    with pytest.raises(ValueError, match="NaN"):
        ranks({"a": torch.tensor([float("nan")])}, generator("test"))


def test_survivors_begin_each_round_from_the_initial_weights(traced_dropnet):
    run = traced_dropnet.run
    init = run.initial_state()
    for phase, weights, masks in traced_dropnet.entered:
        for name, value in weights.items():
            wanted = init[name] * masks[name] if name in masks else init[name]
            assert phase == "dense" or torch.equal(value, wanted), (phase, name)
    names = [phase for phase, _, _ in traced_dropnet.entered]
    assert names == ["dense", "round-01", "round-02", "round-03"]


@pytest.fixture
def traced_dropnet():
    from prunebench.core.loop import Sink, fit

    parts = kit.assemble(kit.tiny(CASE, "lenet300"))

    class Watch(Sink):
        def entered(self, run, method, phase):
            masks = {**run.masks, **run.masks.tied}
            found = {n: p.detach().clone() for n, p in run.model.named_parameters()}
            parts.entered.append((phase.name, found, {n: m.clone() for n, m in masks.items()}))

    parts.entered = []
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, Watch())
    return parts


def test_a_dropped_unit_is_0_for_every_image(traced_dropnet):
    run, seen = traced_dropnet.run, {}
    run.model.relu1.register_forward_hook(lambda _, a, y: seen.update(y=y))
    run.model.eval()(100 * torch.randn(16, *run.data.shape))
    dead = ~traced_dropnet.method.alive(run)["fc1"]
    assert int(dead.sum()) > 0 and bool((seen["y"][:, dead] == 0).all())
    assert bool((seen["y"][:, ~dead] != 0).any())


@pytest.mark.parametrize("model", [("resnet18", "dataset.size=8"), ("vgg19_bn", "dataset.size=32")])
def test_resnet18_and_vgg19_lose_filters_layer_by_layer(model):
    name, size = model
    options = (f"model={name}", size, "sparsity=filter", "dataset.train_images=20")
    parts = kit.assemble((*CASE.overrides, *kit.TINY, *options))
    parts.method.prune(parts.run, next(p.sparsity for p in parts.plan if p.sparsity is not None))
    sizes = {u.name: u.size for u in parts.run.model.units()}
    alive = {n: int(a.sum()) for n, a in parts.method.alive(parts.run).items()}
    assert alive == {n: sizes[n] - int(0.2 * sizes[n]) for n in alive}


def test_new_initial_weights_change_nothing_but_the_last_round():
    plain, other = (
        kit.assemble(kit.tiny(CASE, "lenet300", f"protocol.control={c}")).plan for c in ("none", "reinit")
    )
    assert [p.sparsity for p in plain] == [p.sparsity for p in other]
    assert [p.weights for p in plain] == ["keep", "init", "init", "init"]
    assert [p.weights for p in other] == ["keep", "init", "init", "random"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sparsity.allocation=lamp",), "sparsity.allocation=lamp: DropNet ranks units within each layer"),
        (("sparsity.granularity=weight",), "sparsity.granularity=weight: DropNet drops whole channels"),
        (("sparsity.rate=1.0",), "sparsity.rate=1.0: must lie in (0, 1)"),
        (("sparsity.min_kept=0",), "sparsity.min_kept=0: must be 1 or more"),
        (("sparsity.layer_rates={fc1: 0.5}",), "goes with sparsity.allocation=rates"),
        (("protocol=one_shot", "sparsity.target=0.5"), "set sparsity.rate=null where the target says"),
        (("criterion=none",), "criterion=none: this method asks for scores"),
        (("sparsity.rate=0.9", "sparsity.rounds=9"), "sparsity.rounds=9: round 4 finds nothing to drop"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_training(overrides, message):
    with pytest.raises(Exception, match=re.escape(message)):
        kit.assemble((*CASE.overrides, *kit.TINY, *overrides))


def test_with_a_target_the_counts_are_those_of_every_method():
    options = ("sparsity.rate=null", "sparsity.target=0.5", "sparsity.rounds=2")
    parts = kit.assemble((*CASE.overrides, *kit.TINY, "model=lenet300", *options))
    imp = kit.assemble(("method=lth", *kit.TINY, "model=lenet300", "sparsity=neuron", *options[1:]))
    assert [p.sparsity for p in parts.plan] == [p.sparsity for p in imp.plan]


@pytest.mark.parametrize(("monitor", "better"), [("loss", min), ("top1", max)])
def test_the_phase_ends_with_the_network_that_is_best_by_what_is_monitored(monitor, better, tmp_path):
    options = ("protocol.keep=best", "protocol.patience=null", f"protocol.monitor={monitor}")
    more = (
        "recipe.lr=0.3",
        "optimizer=sgd",
        "schedule=constant",
        "trainer.eval_every=1it",
        "sparsity.rounds=1",
    )
    parts = kit.recorded(kit.tiny(CASE, "lenet300", *options, *more), tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in lines if row.get("split") == "valid" and row["phase"] == "round-01"]
    steps = [row for row in seen if row["when"] == "epoch"]
    assert steps[-1][monitor] != better(row[monitor] for row in steps)
    final = evaluate(parts.run, parts.method, "valid")
    assert final[monitor] == pytest.approx(better(row[monitor] for row in steps))
