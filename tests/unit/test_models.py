"""Counts, shapes, units and checks of the model families."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from prunebench.core.compact import compact
from prunebench.core.units import PrunableModel, prunable_names
from prunebench.models.conv import Conv
from prunebench.models.dropnet import DropNetModel
from prunebench.models.dropnet_large import DropNetResNet, DropNetVGG
from prunebench.models.layers import PointwiseConv2d, has_unsafe_strided_1x1
from prunebench.models.lenet import LeNet5, LeNet300
from prunebench.models.resnet import PadShortcut, ResNet, resnet, resnet_cifar
from prunebench.models.vgg import VGG
from prunebench.models.vit import ViT
from prunebench.models.wrn import WRN

torch.set_num_threads(1)

CONF = Path(__file__).parents[2] / "conf" / "model"
RUNTIME = {"in_channels", "num_classes", "image_size"}
MNIST = {"in_channels": 1, "num_classes": 10, "image_size": 28}
CIFAR = {"in_channels": 3, "num_classes": 10, "image_size": 32}
CIFAR100 = CIFAR | {"num_classes": 100}
TINY = {"in_channels": 3, "num_classes": 200, "image_size": 64}
IMAGENET = {"in_channels": 3, "num_classes": 1000, "image_size": 224}

# builder, options, parameters, prunable weights (None: no count in the literature)
COUNTS = [
    (LeNet300, MNIST, 266_610, 266_200),
    (LeNet5, MNIST, 431_080, 430_500),
    (LeNet5, {"variant": "lecun"} | MNIST, 61_706, 61_470),
    (Conv, {"depth": 2} | CIFAR, 4_301_642, 4_300_992),
    (Conv, {"depth": 4} | CIFAR, 2_425_930, 2_425_024),
    (Conv, {"depth": 6} | CIFAR, 2_262_602, 2_261_184),
    (DropNetModel, {"variant": "A"} | MNIST, 33_450, 33_360),
    (DropNetModel, {"variant": "B"} | MNIST, 68_938, 68_800),
    (DropNetModel, {"variant": "C"} | CIFAR, 394_058, 393_408),
    (resnet_cifar, {"depth": 20} | CIFAR, 269_722, 268_336),
    (resnet_cifar, {"depth": 32} | CIFAR, 464_154, 461_872),
    (resnet_cifar, {"depth": 56} | CIFAR, 853_018, 848_944),
    (resnet_cifar, {"depth": 110} | CIFAR, 1_727_962, 1_719_856),
    (resnet_cifar, {"depth": 20} | CIFAR100, 275_572, 274_096),
    (resnet_cifar, {"depth": 32} | CIFAR100, 470_004, 467_632),
    (resnet_cifar, {"depth": 56} | CIFAR100, 858_868, 854_704),
    (resnet_cifar, {"depth": 110} | CIFAR100, 1_733_812, 1_725_616),
    (resnet_cifar, {"depth": 20, "option": "B"} | CIFAR, 272_474, 270_896),
    (resnet_cifar, {"depth": 32, "option": "B"} | CIFAR, 466_906, 464_432),
    (resnet_cifar, {"depth": 56, "option": "B"} | CIFAR, 855_770, 851_504),
    (resnet_cifar, {"depth": 32, "width": 2} | CIFAR100, 1_861_508, 1_856_864),
    (resnet, {"depth": 18} | CIFAR, 11_173_962, 11_164_352),
    (resnet, {"depth": 18} | CIFAR100, 11_220_132, 11_210_432),
    (resnet, {"depth": 18} | TINY, 11_271_432, 11_261_632),
    (resnet, {"depth": 18, "stem": "imagenet"} | TINY, 11_279_112, 11_269_312),
    (resnet, {"depth": 34} | CIFAR, 21_282_122, 21_265_088),
    (resnet, {"depth": 50} | CIFAR, 23_520_842, 23_467_712),
    (resnet, {"depth": 18} | IMAGENET, 11_689_512, 11_678_912),
    (resnet, {"depth": 34} | IMAGENET, 21_797_672, 21_779_648),
    (resnet, {"depth": 50} | IMAGENET, 25_557_032, 25_502_912),
    (VGG, {"depth": 16} | CIFAR, 14_728_266, 14_715_584),
    (VGG, {"depth": 16} | CIFAR100, 14_774_436, 14_761_664),
    (VGG, {"depth": 16, "head_layers": 2, "head_norm": True} | CIFAR, 14_991_946, 14_977_728),
    (VGG, {"depth": 16, "head_layers": 3} | CIFAR, 15_253_578, 15_239_872),
    (VGG, {"depth": 16, "head_layers": 3, "head_width": 4096} | CIFAR100, 34_015_396, None),
    (VGG, {"depth": 19} | CIFAR, 20_040_522, 20_024_000),
    (VGG, {"depth": 19, "bias": False} | CIFAR, 20_035_018, 20_024_000),
    (VGG, {"depth": 19} | CIFAR100, 20_086_692, 20_070_080),
    (WRN, {"depth": 28, "width": 10} | CIFAR, 36_479_194, 36_461_232),
    (WRN, {"depth": 28, "width": 10} | CIFAR100, 36_536_884, 36_518_832),
    (WRN, {"depth": 16, "width": 4} | CIFAR, 2_748_890, 2_745_264),
    (WRN, {"depth": 22, "width": 2} | CIFAR, 1_079_642, 1_076_912),
    (WRN, {"depth": 28, "width": 2} | CIFAR, 1_467_610, 1_463_984),
    (WRN, {"depth": 28, "width": 8} | CIFAR, 23_354_842, 23_340_464),
    (WRN, {"depth": 22, "width": 8} | CIFAR, 17_158_106, 17_147_312),
    (DropNetResNet, CIFAR, 12_545_418, 12_540_608),
    (DropNetVGG, CIFAR, 20_161_226, 20_152_512),
    (ViT, CIFAR, 5_362_762, 5_319_552),
    (ViT, {"depth": 9, "heads": 12, "mlp_ratio": 2.0} | CIFAR, 2_697_610, 2_665_344),
    (ViT, {"patch": 16} | IMAGENET, 5_717_416, 5_647_872),
]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("build", "options", "params", "prunable"), COUNTS)
def test_parameter_counts_are_those_of_the_literature(build, options, params, prunable):
    with torch.device("meta"):
        model = build(**options)
    weights = dict(model.named_parameters())
    assert count(model) == params
    if prunable is not None:
        assert sum(weights[n].numel() for n in prunable_names(model)) == prunable


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_file_builds_and_its_first_line_says_the_parameters(path):
    text = path.read_text()
    config = yaml.safe_load(text)
    module, _, name = config.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), name)
    with torch.device("meta"):
        model = target(**config, **CIFAR)
    stated = re.search(r"([\d.]+)M parameters at 32x32x3", text.splitlines()[0])
    assert f"{count(model) / 1e6:.2f}" == stated[1]
    options = set(inspect.signature(target).parameters) - RUNTIME
    assert set(config) == options, "every constructor option is in the file and vice versa"


SMALL = {
    "lenet300": (LeNet300, {}),
    "lenet5": (LeNet5, {}),
    "lenet5_lecun": (LeNet5, {"variant": "lecun"}),
    "conv4": (Conv, {"depth": 4}),
    "conv6": (Conv, {"depth": 6}),
    "dropnet_a": (DropNetModel, {"variant": "A"}),
    "dropnet_b": (DropNetModel, {"variant": "B"}),
    "dropnet_c": (DropNetModel, {"variant": "C"}),
    "dropnet_resnet18": (DropNetResNet, {}),
    "dropnet_vgg19": (DropNetVGG, {}),
    "resnet20": (resnet_cifar, {"depth": 20}),
    "resnet20_b": (resnet_cifar, {"depth": 20, "option": "B"}),
    "resnet18": (resnet, {"depth": 18, "widths": {f"layer{i}": 6 + i for i in (1, 2, 3, 4)}}),
    "resnet18_imagenet": (resnet, {"depth": 18, "stem": "imagenet"}),
    "vgg11": (VGG, {"depth": 11}),
    "vgg16_bias_head": (VGG, {"depth": 16, "head_layers": 3, "head_norm": True, "dropout": 0.5}),
    "vgg11_no_bias": (VGG, {"depth": 11, "bias": False, "head_layers": 2}),
    "wrn": (WRN, {"depth": 16, "width": 2, "dropout": 0.3}),
    "wrn_width_1": (WRN, {"depth": 10, "width": 1}),
    "vit": (ViT, {"dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 1.5, "patch": 2}),
}


def build(name: str, **data: int) -> PrunableModel:
    make, options = SMALL[name]
    return make(**options, **data)


def bottleneck_net(**data: int) -> ResNet:
    return ResNet(
        block="bottleneck", planes=(4, 6), blocks=(2, 2), stem="cifar", option="B", widths=None,
        in_channels=data["in_channels"], num_classes=data["num_classes"],
    )  # fmt: skip


FITTING = [
    (name, channels, size)
    for name in SMALL
    for channels, size in [(1, 8), (1, 28), (3, 32), (3, 64)]
    if size >= 28 or not name.startswith("lenet5")
]


@pytest.mark.parametrize(("name", "channels", "size"), FITTING)
def test_forward_gives_one_logit_per_class(name, channels, size):
    with torch.device("meta"):
        model = build(name, in_channels=channels, num_classes=7, image_size=size)
        assert model(torch.zeros(3, channels, size, size)).shape == (3, 7)


@pytest.mark.parametrize("name", ["conv6", "resnet20", "vgg16_bias_head", "wrn", "vit"])
def test_one_training_step_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = build(name, in_channels=1, num_classes=10, image_size=8)
    loss = F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.arange(4))
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def randomise_(model: nn.Module) -> None:
    """Random biases and norm statistics, so that nothing is 0 or 1 by chance of initialisation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
        if getattr(module, "bias", None) is not None and not isinstance(module.bias, bool):
            module.bias.normal_()


@torch.no_grad()
def silence_(model: PrunableModel, alive: dict[str, torch.Tensor]) -> None:
    """Zero what makes the dead channels, and nothing else: those that read them keep their weights."""
    params = dict(model.named_parameters())
    for unit in model.units():
        for name, dim in unit.made_by:
            if name in params:
                keep = alive[unit.name].repeat_interleave(params[name].shape[dim] // unit.size)
                params[name].mul_(keep.view([-1 if d == dim else 1 for d in range(params[name].ndim)]))


@pytest.mark.parametrize("name", [*SMALL, "bottleneck"])
def test_the_smaller_network_computes_what_the_silenced_one_does(name):
    torch.manual_seed(0)
    size = 28 if name.startswith("lenet5") else 8
    data = {"in_channels": 2, "num_classes": 5, "image_size": size}
    model = bottleneck_net(**data) if name == "bottleneck" else build(name, **data)
    randomise_(model)
    model.eval()
    x = torch.randn(4, 2, size, size)
    alive = {u.name: torch.rand(u.size) > 0.4 for u in model.units()}
    for keep in alive.values():
        keep[0], keep[-1] = True, False
    with torch.no_grad():
        dense = model(x)
        silence_(model, alive)
        expected = model(x)
        small = compact(model, alive)
        got = small(x)
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= 1e-5 * scale  # float32 sums in another order
    assert float((dense - expected).abs().max()) > 1e-3 * scale, "the channels mattered"
    assert small.widths == {n: int(k.sum()) for n, k in alive.items()}
    assert count(small) < count(model)


@pytest.mark.parametrize("name", [*SMALL, "bottleneck"])
def test_units_cover_existing_entries_of_their_size(name):
    data = {"in_channels": 2, "num_classes": 5, "image_size": 32}
    with torch.device("meta"):
        model = bottleneck_net(**data) if name == "bottleneck" else build(name, **data)
    state, units = model.state_dict(), model.units()
    assert {u.name: u.size for u in units} == model.widths
    for unit in units:
        assert unit.used_by and unit.made_by
        for entry, dim in unit.made_by + unit.used_by:
            assert state[entry].shape[dim] % unit.size == 0, entry
    made = [e for u in units for e in u.made_by]
    assert len(made) == len(set(made)), "no entry belongs to two units"
    assert isinstance(model.get_submodule(model.head), nn.Linear)
    assert (f"{model.head}.weight", 0) not in made, "the logits are in no unit"


def test_option_b_streams_and_option_a_inner_channels_are_units():
    option_b = resnet_cifar(depth=20, option="B", **CIFAR)
    option_a = resnet_cifar(depth=20, option="A", **CIFAR)
    inner = {f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)}
    assert set(option_a.widths) == inner
    assert set(option_b.widths) == inner | {"layer1", "layer2", "layer3"}


def test_half_of_every_channel_leaves_the_known_resnet18():
    with torch.device("meta"):
        model = resnet(depth=18, **CIFAR)
        small = model.with_widths({n: w // 2 for n, w in model.widths.items()})
    assert len(model.units()) == 12  # 4 residual streams and 8 inner convolutions
    assert count(small) == 2_797_610


def test_widths_left_out_stay_and_the_model_itself_is_untouched():
    model = LeNet300(**MNIST)
    small = model.with_widths({"fc1": 7}).with_widths({"fc2": 5})
    assert small.widths == {"fc1": 7, "fc2": 5}
    assert [p.shape[0] for p in small.parameters() if p.ndim == 2] == [7, 5, 10]
    assert model.widths == {"fc1": 300, "fc2": 100}


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_equals_torchvision_with_its_weights(depth):
    import torchvision

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=3).eval()
    ours = resnet(depth=depth, in_channels=3, num_classes=3, image_size=65).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_vgg_features_equal_torchvision_with_its_weights():
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True).eval()
    ours = VGG(11, **CIFAR).features.eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_vit_equals_timm_with_its_weights():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", patch_size=4, img_size=16, num_classes=5, depth=2, embed_dim=32, num_heads=4
    ).eval()
    ours = ViT(dim=32, depth=2, heads=4, in_channels=3, num_classes=5, image_size=16).eval()
    randomise_(theirs)
    state = {}
    for name, value in theirs.state_dict().items():
        if ".qkv." in name:
            state |= {name.replace("qkv", c): part for c, part in zip("qkv", value.chunk(3))}
        else:
            state[name.replace("patch_embed.proj", "patch_embed").replace("head.", "classifier.")] = value
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(x), theirs(x), rtol=1e-5, atol=1e-5
        )  # one matrix product against three


def test_vit_is_exported_with_a_free_batch_size():
    net = ViT(dim=8, depth=1, heads=2, patch=4, in_channels=3, num_classes=4, image_size=8).eval()
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=batch).module()
    for x in (torch.randn(n, 3, 8, 8) for n in (1, 5)):
        torch.testing.assert_close(program(x), net(x))


def test_dropnet_models_start_from_glorot_uniform():
    torch.manual_seed(0)
    model = DropNetModel("C", **CIFAR)
    limit = (6 / (64 * 9 + 128 * 9)) ** 0.5
    assert 0.99 * limit < float(model.conv3.weight.detach().abs().max()) <= limit
    assert int(torch.count_nonzero(model.conv3.bias)) == 0


def test_option_a_pads_both_sides_of_the_channels():
    x = torch.randn(2, 4, 5, 5)
    y = PadShortcut((2, 2), stride=2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert int(torch.count_nonzero(y[:, :2])) == int(torch.count_nonzero(y[:, 6:])) == 0
    assert y.shape == (2, 8, 3, 3)


def test_cifar_initialisation_is_kaiming_fan_out_with_scale_one():
    torch.manual_seed(0)
    model = resnet_cifar(depth=20, **CIFAR)
    conv = model.layer3[1].conv1
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert all(bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_lottery_ticket_nets_start_from_glorot_normal():
    torch.manual_seed(0)
    layer = LeNet300(**MNIST).fc1
    assert float(layer.weight.detach().std()) == pytest.approx((2 / (784 + 300)) ** 0.5, rel=0.02)
    assert int(torch.count_nonzero(layer.bias)) == 0


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "wrn", "vit"])
def test_initial_loss_is_near_that_of_guessing(name):
    torch.manual_seed(0)
    model = build(name, in_channels=3, num_classes=10, image_size=16)
    loss = F.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.arange(16) % 10)
    assert float(loss.detach()) == pytest.approx(2.303, rel=0.3)  # ln 10, one draw


@pytest.mark.parametrize("name", SMALL)
def test_every_nonlinearity_and_shortcut_is_a_module_used_once(name):
    with torch.device("meta"):
        model = build(name, in_channels=3, num_classes=10, image_size=32)
        calls = {m: 0 for m in model.modules() if not list(m.children())}
        for module in calls:
            module.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls[m] + 1))
        model(torch.zeros(2, 3, 32, 32))
    assert set(calls.values()) == {1}


def test_narrow_strided_pointwise_convolution_has_the_same_values_and_trains_in_channels_last():
    torch.manual_seed(0)
    safe = PointwiseConv2d(4, 6, stride=2)
    plain = nn.Conv2d(4, 6, 1, stride=2, bias=False)
    plain.load_state_dict(safe.state_dict())
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(safe(x), plain(x), rtol=1e-6, atol=1e-6)  # kernels sum in another order
    assert safe.stride == (2, 2)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    safe.to(memory_format=torch.channels_last)(x).sum().backward()
    used = x.grad[:, :, ::2, ::2]
    torch.testing.assert_close(used, safe.weight.detach().sum(0)[None].expand_as(used))
    assert float(x.grad.sum()) == pytest.approx(float(used.sum()), abs=1e-3)


def test_foreign_narrow_strided_pointwise_convolutions_are_found():
    assert has_unsafe_strided_1x1(nn.Sequential(nn.Conv2d(7, 9, 1, stride=2)))
    assert has_unsafe_strided_1x1(nn.Sequential(nn.Conv2d(16, 16, 1, stride=2, groups=4)))
    assert not has_unsafe_strided_1x1(nn.Sequential(nn.Conv2d(8, 9, 1, stride=2), nn.Conv2d(3, 9, 1)))
    assert not has_unsafe_strided_1x1(nn.Sequential(nn.Conv2d(3, 9, 3, stride=2)))
    narrow = resnet_cifar(depth=20, option="B", widths={"layer1": 3}, **CIFAR)
    assert not has_unsafe_strided_1x1(narrow)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            LeNet5,
            {"image_size": 8},
            "model=lenet5: needs images of at least 28x28, got 8x8; choose dataset.size=28",
        ),
        (LeNet5, {"variant": "tf"}, "variant=tf: must be one of caffe, lecun"),
        (Conv, {"depth": 3}, "depth=3: must be 2, 4 or 6"),
        (resnet_cifar, {"depth": 21}, "depth=21: must be 6n+2"),
        (resnet_cifar, {"option": "C"}, "option=C: must be A (zero padding) or B (projection)"),
        (resnet_cifar, {"width": 0}, "width=0: must be at least 1"),
        (resnet, {"depth": 101}, "depth=101: must be one of 18, 34, 50"),
        (resnet, {"stem": "tiny"}, "stem=tiny: must be auto, cifar or imagenet"),
        (VGG, {"depth": 12}, "depth=12: must be one of 11, 13, 16, 19"),
        (VGG, {"depth": 11, "head_layers": 4}, "head_layers=4: must be 1, 2 or 3"),
        (
            VGG,
            {"depth": 11, "head_norm": True},
            "head_layers=1: head_width, head_norm and dropout need a hidden layer",
        ),
        (VGG, {"depth": 11, "dropout": 1.0}, "dropout=1.0: must lie in [0, 1)"),
        (WRN, {"depth": 20}, "depth=20: must be 6n+4"),
        (WRN, {"dropout": -0.1}, "dropout=-0.1: must lie in [0, 1)"),
        (ViT, {"heads": 5}, "heads=5: must divide dim=192"),
        (
            ViT,
            {"patch": 4, "image_size": 30},
            "patch=4: must divide the image side 30; choose model.patch from 1, 2, 3",
        ),
        (LeNet300, {"widths": {"fc3": 4}}, "widths={'fc3': 4}: must name units of the model: fc1, fc2"),
        (LeNet300, {"widths": {"fc1": 0}}, "widths={'fc1': 0}: must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=re.escape(message)), torch.device("meta"):
        make(**(CIFAR | options))
