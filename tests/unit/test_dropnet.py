"""DropNet: level sizes of the card, rewinding, and the scores of the paper's networks."""

import pytest
import torch

from prunebench.core.loop import Sink, fit
from prunebench.core.run import generator
from prunebench.core.units import alive_channels, model_units
from prunebench.criteria.activation import apoz, mean_activation
from prunebench.criteria.channels import filter_norm
from prunebench.methods.dropnet import DropNet
from prunebench.models.dropnet import DropNetResNet, DropNetVGG
from tests.conformance import kit
from tests.unit.test_channels import Passes
from tests.unit.toy_nets import run_of

torch.set_num_threads(1)

SHORT = ("protocol.dense=2it", "dataset=synthetic", "dataset.train_images=64", "dataset.test_images=32",
         "dataset.validation=0.25", "trainer.batch_size=16", "trainer.device=cpu", "trainer.precision=fp32",
         "method=dropnet")  # fmt: skip


class Levels(Sink):
    """Alive channels of every unit at the end of every phase, and the weights at its start."""

    def __init__(self):
        self.counts, self.entered_with = [], []

    def entered(self, run, method, phase):
        self.entered_with.append({n: v.clone() for n, v in run.model.state_dict().items()})

    def phase_end(self, run, method, phase):
        units = model_units(run.model, method.granularity, run.masks)
        self.counts.append([int(a.sum()) for a in alive_channels(run.masks, units).values()])


def levels(*overrides):
    parts = kit.assemble((*SHORT, *overrides))
    seen = Levels()
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, seen)
    return parts, seen


def asked_counts(parts, total):
    return [round((1 - (p.sparsity or 0)) * total) for p in parts.plan]


def test_global_levels_of_model_a_are_those_of_the_card():
    parts, seen = levels("model=dropnet_a", "sparsity.allocation=global", "sparsity.rounds=12")
    wanted = [80, 64, 52, 42, 34, 28, 23, 19, 16, 13, 11, 9, 8]
    assert asked_counts(parts, 80) == wanted
    assert [sum(c) for c in seen.counts] == wanted


MODEL_C = ("model=dropnet_c", "sparsity.exclude=[fc1]")


def test_global_fractions_of_model_c_are_those_of_the_card():
    parts = kit.assemble((*SHORT, *MODEL_C, "sparsity.allocation=global"))
    fractions = [round(n / 384, 4) for n in asked_counts(parts, 384)]
    assert fractions == [
        *(1.0, 0.8021, 0.6432, 0.5156, 0.4141, 0.3333, 0.2682, 0.2161, 0.1745, 0.1406, 0.1146, 0.0938),
    ]


def test_levels_of_model_c_layer_by_layer_are_those_of_the_card():
    _, seen = levels(*MODEL_C, "model.widths={fc1: 8}", "criterion=random_channel")
    assert seen.counts[:5] == [
        *([64, 64, 128, 128], [52, 52, 103, 103], [42, 42, 83, 83], [34, 34, 67, 67], [28, 28, 54, 54]),
    ]
    fractions = [round(sum(c) / 384, 4) for c in seen.counts]
    assert fractions == [
        *(1.0, 0.8073, 0.651, 0.526, 0.4271, 0.349, 0.2865, 0.2344, 0.1927, 0.1615, 0.1302, 0.1094),
    ]


def test_a_small_rate_drops_one_unit_in_a_round():
    _, seen = levels("model=dropnet_a", "model.widths={fc1: 4, fc2: 4}", "sparsity.allocation=global",
                         "sparsity.rate=0.001", "sparsity.rounds=6", "criterion=leave_one_out")  # fmt: skip
    assert [sum(c) for c in seen.counts] == [8, 7, 6, 5, 4, 3, 2]


def test_no_layer_is_emptied_layer_by_layer():
    _, seen = levels("model=dropnet_a", "model.widths={fc1: 2, fc2: 9}", "sparsity.rounds=4",
                       "sparsity.rate=0.5")  # fmt: skip
    assert seen.counts == [[2, 9], [1, 5], [1, 3], [1, 2], [1, 1]]


def test_survivors_start_every_round_from_the_initial_weights_and_the_dropped_give_0():
    parts, seen = levels("model=dropnet_a", "sparsity.rounds=2", "protocol.dense=20it")
    run, first = parts.run, seen.entered_with[0]
    masks = {**run.masks, **run.masks.tied}
    for name, value in seen.entered_with[-1].items():
        mask = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, first[name] * mask)
    assert not torch.equal(run.model.fc1.weight, seen.entered_with[-1]["fc1.weight"])
    dead = ~alive_channels(run.masks, run.model.units())["fc1"]
    seen_by_relu = []
    run.model.relu_fc1.register_forward_hook(lambda m, i, o: seen_by_relu.append(o))
    run.model.eval()(torch.randn(5, *run.data.shape, generator=generator("any")))
    assert int(dead.sum()) == 14 and not bool(seen_by_relu[0][:, dead].any())


def test_reinit_keeps_the_mask_and_changes_the_weights():
    plain, _ = levels("model=dropnet_a", "sparsity.rounds=2")
    other, seen = levels("model=dropnet_a", "sparsity.rounds=2", "protocol.control=reinit")
    assert all(torch.equal(m, other.run.masks[n]) for n, m in plain.run.masks.items())
    start, first = seen.entered_with[-1]["fc1.weight"], seen.entered_with[0]["fc1.weight"]
    assert not bool(((start == first) & (start != 0)).any())


def test_a_target_without_a_rate_is_met_as_by_other_methods():
    _, seen = levels("model=dropnet_a", "sparsity.rate=null", "sparsity.target=0.75", "sparsity.rounds=1")
    assert seen.counts[-1] == [10, 10]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ("sparsity.rounds=40", r"sparsity\.rounds: round \d+ would leave fewer than 1 channels in a layer"),
        ("sparsity.rounds=40 sparsity.allocation=global", "in a layer, 2 are left in 2 layers; lower it"),
        ("sparsity.target=0.5 protocol=one_shot", r"sparsity\.rate=0\.2: this plan has another sparsity"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_training(overrides, text):
    with pytest.raises(ValueError, match=text):
        kit.assemble((*SHORT, "model=dropnet_a", *overrides.split()))


def test_single_weights_and_rankings_that_have_no_counts_are_refused():
    with pytest.raises(ValueError, match=r"granularity=weight: method=dropnet drops whole nodes and filters"):
        DropNet(mean_activation, granularity="weight")
    with pytest.raises(ValueError, match=r"sparsity\.allocation=lamp: with sparsity\.rate, method=dropnet"):
        DropNet(mean_activation, allocation="lamp")


def test_a_criterion_of_weights_is_summed_over_the_channel():
    method, run = DropNet(filter_norm, allocation="global"), two_layers()
    method.prune(run, 0.25)
    norms = filter_norm(run, run.model.units())
    alive = alive_channels(run.masks, run.model.units())
    lowest = min(float(s.min()) for s in norms.values())
    assert sum(int(a.sum()) for a in alive.values()) == round(0.75 * sum(len(a) for a in alive.values()))
    assert lowest <= min(float(norms[n][a].min()) for n, a in alive.items())


def two_layers():
    model = kit.assemble((*SHORT, "model=dropnet_a")).run.model
    shape = (1, model.image_size, model.image_size)
    x = torch.randn(6, *(model.in_channels, *shape[1:]), generator=generator("x"))
    return run_of(model, Passes(x, torch.arange(6) % 2))


# The paper's networks


def network_run(make):
    model = make(in_channels=1, num_classes=2, image_size=32)
    return run_of(model, Passes(torch.randn(4, 1, 32, 32, generator=generator("x")), torch.arange(4) % 2))


def test_the_residual_network_has_20_layers_of_4800_filters():
    with torch.device("meta"):
        model = DropNetResNet(in_channels=3, num_classes=10, image_size=32)
    assert len(model.units()) == 20
    by_width = {w: sum(u.size == w for u in model.units()) for w in (64, 128, 256, 512)}
    assert by_width == {64: 5, 128: 5, 256: 5, 512: 5}
    assert sum(u.size for u in model.units()) == 4800


def test_a_vgg_stage_is_scored_behind_its_batchnorm_and_its_zeros_counted_before():
    run = network_run(lambda **data: DropNetVGG(widths={"fc1": 8}, **data))
    model, seen = run.model, {}
    with torch.no_grad():
        model.norm1.bias.normal_(generator=generator("bias"))
    for name in ("relu1_1", "relu1_2", "norm1"):
        model.get_submodule(name).register_forward_hook(
            lambda m, i, o, n=name: seen.__setitem__(n, o.detach())
        )
    units = model_units(model, "neuron", run.masks)
    means, shares = mean_activation(run, units), apoz(run, units)
    model.eval()(run.data.x)
    wanted = {n: o.double().abs().mean((0, 2, 3)) for n, o in seen.items()}
    torch.testing.assert_close(means["conv1_1"], wanted["relu1_1"])
    torch.testing.assert_close(means["conv1_2"], wanted["norm1"])
    torch.testing.assert_close(shares["conv1_2"], (seen["relu1_2"] != 0).double().mean((0, 2, 3)))
