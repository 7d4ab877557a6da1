"""Gates on activations, and the scores of DropNet's own large networks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from prunebench.core.run import generator
from prunebench.core.units import alive_channels, model_units
from prunebench.criteria.activation import apoz, mean_activation
from prunebench.criteria.gates import taylor_gate
from prunebench.criteria.gradient import taylor
from prunebench.methods.pruner import Pruner
from prunebench.models.conv import Conv
from prunebench.models.dropnet_large import DropNetResNet, DropNetVGG
from prunebench.models.resnet import resnet_cifar
from tests.unit.test_activation import Split
from tests.unit.toy_nets import Images, run_of, toy_run

torch.set_num_threads(1)


def data_of(images, size, kind=Images, dtype=torch.float32):
    x = torch.randn(images, 1, size, size, generator=generator("x"), dtype=dtype)
    return kind(x, torch.arange(images) % 2, images)


def test_a_gate_equals_the_square_of_the_sum_over_a_neuron_without_bias():
    """A ReLU network without bias is homogeneous: z dL/dz is the sum of w dL/dw over the neuron."""
    run = toy_run(repeat=2)
    got = taylor_gate(run, granularity="neuron", batches=2)["fc1"]
    wanted = taylor(run, batches=2, form="unit")["fc1.weight"].sum(1)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert bool((got > 0).any())


def test_the_gate_of_a_stream_sums_over_its_activations_and_is_divided_by_their_number():
    model = resnet_cifar(8, "B", in_channels=1, num_classes=2, image_size=8).double()
    run = run_of(model, data_of(5, 8, dtype=torch.float64))
    scores = taylor_gate(run, granularity="filter", batches=1)
    for unit, names in {"layer1": ("relu", "layer1.0.relu2"), "layer1.0.conv1": ("layer1.0.relu1",)}.items():
        gate = torch.ones(16, dtype=torch.float64, requires_grad=True)
        handles = [
            model.get_submodule(n).register_forward_hook(lambda m, i, o, z=gate: o * z[None, :, None, None])
            for n in names
        ]
        loss = F.cross_entropy(model.eval()(run.data.x), run.data.y)
        (grad,) = torch.autograd.grad(loss, gate)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(scores[unit], grad.square() / len(names), rtol=1e-9, atol=1e-15)


def test_gates_are_refused_for_single_weights_and_too_few_images():
    run = run_of(Conv(2, in_channels=1, num_classes=2, image_size=4), data_of(4, 4))
    for granularity, batches, text in (("weight", 1, "criterion=taylor_gate: scores whole channels"),
                                       ("filter", 9, "criterion.batches=9")):  # fmt: skip
        score = partial(taylor_gate, granularity=granularity, batches=batches)
        with pytest.raises(ValueError, match=text):
            Pruner(score, granularity=granularity).check(run, [0.5])


def test_every_layer_may_have_its_own_share_of_filters():
    run = run_of(Conv(2, in_channels=1, num_classes=2, image_size=4), data_of(4, 4))
    score = partial(taylor_gate, granularity="filter", batches=1)
    method = Pruner(score, granularity="filter", allocation={"*": 0.25, "conv2": 0.5})
    method.check(run, [0.375])
    method.prune(run, 0.375)
    alive = alive_channels(run.masks, model_units(run.model, "filter", run.masks))
    assert {n: int(a.sum()) for n, a in alive.items()} == {"conv1": 48, "conv2": 32}


# DropNet's own networks


def test_the_residual_network_has_20_layers_of_4800_filters():
    with torch.device("meta"):
        model = DropNetResNet(in_channels=3, num_classes=10, image_size=32)
    sizes = [u.size for u in model.units()]
    assert {width: sizes.count(width) for width in sizes} == {64: 5, 128: 5, 256: 5, 512: 5}
    assert sum(sizes) == 4800


def test_a_stage_of_the_vgg_is_scored_behind_its_batchnorm_and_its_zeros_are_counted_before():
    model, seen = DropNetVGG(in_channels=1, num_classes=2, image_size=32, widths={"fc1": 8}), {}
    run = run_of(model, data_of(4, 32, Split))
    with torch.no_grad():
        model.norm1.bias.normal_(generator=generator("bias"))
    means, shares = mean_activation(run, granularity="filter"), apoz(run, granularity="filter")
    for name in ("relu1_1", "relu1_2", "norm1"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, n=name: seen.__setitem__(n, o.detach()))
    model.eval()(run.data.x)
    wanted = {n: o.double().abs().mean((0, 2, 3)) for n, o in seen.items()}
    torch.testing.assert_close(means["conv1_1"], wanted["relu1_1"])
    torch.testing.assert_close(means["conv1_2"], wanted["norm1"])
    assert not torch.allclose(means["conv1_2"], wanted["relu1_2"])
    torch.testing.assert_close(shares["conv1_2"], (seen["relu1_2"] != 0).double().mean((0, 2, 3)))
