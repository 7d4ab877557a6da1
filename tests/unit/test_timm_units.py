"""timm networks lose filters, neurons and heads: the smaller network computes what the masked one does."""

import re
import sys

import pytest
import timm
import torch
from torch import nn

from prunebench.core.compact import compact
from prunebench.core.masks import Masks
from prunebench.core.units import alive_channels, model_units, prunable_names, select_units, unit_masks
from prunebench.models.layers import PointwiseConv2d, has_unsafe_strided_1x1
from prunebench.models.timm import TimmModel, timm_model

torch.set_num_threads(1)

SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 24}
# name, options, image size, heads or channels of some units
FAMILIES = [
    ("test_resnet", {}, 32, {"layer1.0.conv1": 32}),
    ("test_byobnet", {}, 32, {"stem.conv": 24}),
    ("test_convnext", {}, 64, {"stages.0.blocks.0.mlp.fc1": 96}),
    ("test_efficientnet", {}, 32, {"blocks.1.0.conv_exp": 64}),
    ("test_efficientnet_gn", {}, 32, {"blocks.3.0.se.conv_reduce": 8}),
    ("test_vit", {"depth": 2}, 160, {"blocks.0.attn": 2, "blocks.0.mlp.fc1": 192}),
    ("test_vit3", {"depth": 2}, 160, {"blocks.0.attn": 3}),
    ("test_vit_relpos", {"depth": 2}, 160, {"blocks.0.mlp.fc1": 192}),
    ("test_coatnet", {}, 128, {"stages.0.blocks.0.conv1_1x1": 128}),
    ("mobilenetv3_small_050", {}, 32, {"blocks.1.0.conv_pw": 40}),
    ("regnety_002", {}, 32, {"s1.b1.conv1.conv": 3}),
    ("swin_tiny_patch4_window7_224", SWIN, 32, {"layers.0.blocks.0.mlp.fc1": 96}),
]
HEAVY = [
    ("mixer_s32_224", {}, 64, {"blocks.0.mlp_tokens.fc1": 256}),
    ("resnet50", {}, 64, {"layer1": None}),
    ("resnext50_32x4d", {}, 64, {"layer1.0.conv1": 32}),
    ("densenet121", {}, 64, {"features.conv0": 64}),
    ("vgg11_bn", {}, 32, {}),
    ("dla34", {}, 64, {}),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, 64, {"blocks.1.attn": 3}),
    ("efficientnet_b0", {}, 64, {}),
    ("test_maxvit", {}, 128, {"stages.0.blocks.0.conv.se.fc1": 8}),
]


def build(name: str, kwargs: dict, size: int) -> TimmModel:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    model = timm_model(name, kwargs=kwargs, in_channels=3, num_classes=5, image_size=size)
    return randomised(model)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Random scales, shifts and statistics, so that nothing is hidden by a 0 of the initialisation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for p in model.parameters():
        if p.ndim == 1:
            p.normal_(mean=0.5, std=0.5)
        elif not bool(p.any()):
            p.normal_(std=0.1)
    return model.eval()


@torch.no_grad()
def assert_shrinks(name: str, kwargs: dict, size: int, known: dict) -> None:
    model = build(name, kwargs, size).double()
    prunable = prunable_names(model)
    units = model_units(model, "neuron", prunable)
    sizes = {u.name.removeprefix("net."): u.size for u in units}
    assert {n: sizes[n] for n in known if known[n]} == {n: s for n, s in known.items() if s}
    scores = {n: p.detach().abs() for n, p in model.named_parameters() if n in prunable}
    alive = select_units(scores, 0.5, units=units)
    masks, x = unit_masks(model, alive, prunable), torch.randn(2, 3, size, size).double()
    dense = model(x)
    masks.zero_weights_(model)
    again = alive_channels(masks, units)
    assert all(torch.equal(again[n], a) for n, a in alive.items()), "masks say which channels are left"
    small, masked = compact(model, alive), model(x)
    shrunk = small(x)
    # float64: sums without the zeros, in another order
    torch.testing.assert_close(shrunk, masked, rtol=0, atol=1e-9 * float(masked.abs().max()))
    assert not torch.allclose(dense, masked, rtol=1e-3), "the channels mattered"
    assert masks.kept == Masks.ones(small, prunable).total
    assert small.widths == {n: int(a.sum()) for n, a in alive.items()}
    assert {u.name: u.size for u in small.units()} == small.widths


@pytest.mark.parametrize(("name", "kwargs", "size", "known"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_the_smaller_network_computes_what_the_masked_one_does(name, kwargs, size, known):
    assert_shrinks(name, kwargs, size, known)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs", "size", "known"), HEAVY, ids=[f[0] for f in HEAVY])
def test_larger_networks_do_as_well(name, kwargs, size, known):
    assert_shrinks(name, kwargs, size, known)


@pytest.mark.parametrize("name", ["test_nfnet", "test_mambaout"])
def test_networks_that_are_read_wrongly_are_refused_by_numbers(name):
    """Weights standardised over their columns, and slices at sizes that are kept elsewhere."""
    model = timm_model(name, in_channels=3, num_classes=5, image_size=64)
    refusal = (
        rf"model\.name={name}: filters and neurons cannot be pruned, the network without the pruned channels "
        r"of net\.[\w.]+ does not compute what the masked one does; use sparsity"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=refusal):
            model.units()


def test_the_streams_of_a_resnet_are_units_with_all_that_writes_and_reads_them():
    model = timm_model("test_resnet", in_channels=3, num_classes=5, image_size=32)
    made = {n: [u.name for u in model.units() if (n, 0) in u.made_by] for n in model.state_dict()}
    assert {n for n, units in made.items() if len(units) != 1 and not n.endswith("num_batches_tracked")} == {
        "net.fc.weight",
        "net.fc.bias",
    }
    read = [n for u in model.units() for n, d in u.used_by if d == 1]
    assert sorted(read) == sorted(n for n in prunable_names(model) if n != "net.conv1.0.weight")


def test_heads_are_scored_by_their_rows_of_the_joint_projection():
    model = build("test_vit", {"depth": 1}, 160)
    (heads,) = (u for u in model.units() if u.name == "net.blocks.0.attn")
    dim = model.net.blocks[0].attn.head_dim
    rows = torch.arange(3 * 2 * dim).view(3, 2, dim)
    places = heads.places("net.blocks.0.attn.qkv.weight", 0, 6 * dim)
    assert places[rows[:, 0]].unique().tolist() == [0] and places[rows[:, 1]].unique().tolist() == [1]
    small = model.with_widths({"net.blocks.0.attn": 1})
    assert small.net.blocks[0].attn.qkv.weight.shape[0] == 3 * dim
    assert small.with_widths({"net.blocks.0.mlp.fc1": 7}).widths["net.blocks.0.attn"] == 1


def test_narrow_strided_1x1_convolutions_of_timm_are_made_safe():
    model = timm_model("resnet18", in_channels=3, num_classes=5, image_size=32)
    stream = next(u for u in model.units() if ("net.layer2.0.downsample.0.weight", 1) in u.used_by)
    small = model.with_widths({stream.name: 5})
    assert isinstance(small.net.layer2[0].downsample[0], PointwiseConv2d)
    assert not has_unsafe_strided_1x1(small)
    x = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    small.to(memory_format=torch.channels_last)(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in small.parameters())


def test_widths_that_do_not_fit_are_refused():
    model = timm_model("test_resnet", in_channels=3, num_classes=5, image_size=32)
    wrong = {"must name units": {"x": 1}, "must be at most 32": {"net.layer1.0.conv1": 33}}
    for message, widths in wrong.items():
        with pytest.raises(ValueError, match=message):
            model.with_widths(widths)


def test_without_torch_pruning_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model = timm_model("test_resnet", in_channels=3, num_classes=5, image_size=32)
    with pytest.raises(ValueError, match=re.escape("pip install 'torch-pruning")):
        model_units(model, "filter", prunable_names(model))
