"""MACs, sizes, theoretical speed-up and accuracy counts."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.units import prunable_names
from prunebench.metrics.accuracy import topk_correct
from prunebench.metrics.cost import ATTENTION, cost, count_macs
from prunebench.models.conv import Conv
from prunebench.models.lenet import LeNet5, LeNet300
from prunebench.models.resnet import resnet, resnet_cifar
from prunebench.models.vgg import VGG
from prunebench.models.vit import ViT
from prunebench.models.wrn import WRN

torch.set_num_threads(1)

# builder, options, (channels, side, classes), MACs: exact where given in full, else in millions as printed
# (hand counts of the literature)
MNIST, CIFAR, CIFAR100 = (1, 28, 10), (3, 32, 10), (3, 32, 100)
TINY, IMAGENET = (3, 64, 200), (3, 224, 1000)
MACS = [
    (LeNet300, {}, MNIST, 266_200),
    (LeNet5, {}, MNIST, 2_293_000),
    (LeNet5, {"variant": "lecun"}, MNIST, 0.4165),
    (Conv, {"depth": 2}, CIFAR, 43.78),
    (Conv, {"depth": 4}, CIFAR, 98.31),
    (Conv, {"depth": 6}, CIFAR, 153.88),
    (resnet_cifar, {"depth": 20}, CIFAR, 40_551_040),
    (resnet_cifar, {"depth": 32}, CIFAR, 68.86),
    (resnet_cifar, {"depth": 56}, CIFAR, 125_485_696),
    (resnet_cifar, {"depth": 110}, CIFAR, 252.89),
    (resnet_cifar, {"depth": 20, "option": "B"}, CIFAR, 40.81),
    (resnet_cifar, {"depth": 32, "option": "B"}, CIFAR, 69.13),
    (resnet_cifar, {"depth": 56, "option": "B"}, CIFAR, 125.75),
    (resnet_cifar, {"depth": 32, "width": 2}, CIFAR100, 274.58),
    (resnet, {"depth": 18}, CIFAR, 555.42),
    (resnet, {"depth": 18}, CIFAR100, 555.47),
    (resnet, {"depth": 18}, TINY, 2221.77),
    (resnet, {"depth": 18, "stem": "imagenet"}, TINY, 148.15),
    (resnet, {"depth": 34}, CIFAR, 1159.40),
    (resnet, {"depth": 50}, CIFAR, 1297.83),
    (resnet, {"depth": 18}, IMAGENET, 1814.1),
    (resnet, {"depth": 34}, IMAGENET, 3663.8),
    (resnet, {"depth": 50}, IMAGENET, 4089.2),
    (VGG, {"depth": 16}, CIFAR, 313.20),
    (VGG, {"depth": 16, "head_layers": 2, "head_norm": True}, CIFAR, 313_463_808),
    (VGG, {"depth": 16, "head_layers": 3}, CIFAR, 313.73),
    (VGG, {"depth": 16, "head_layers": 3, "head_width": 4096}, CIFAR100, 332.48),
    (VGG, {"depth": 19}, CIFAR, 398.14),
    (WRN, {"depth": 28, "width": 10}, CIFAR, 5243.3),
    (WRN, {"depth": 16, "width": 4}, CIFAR, 392.6),
    (WRN, {"depth": 22, "width": 2}, CIFAR, 157.7),
    (WRN, {"depth": 28, "width": 2}, CIFAR, 214.4),
    (WRN, {"depth": 28, "width": 8}, CIFAR, 3360.1),
    (WRN, {"depth": 22, "width": 8}, CIFAR, 2454.1),
    (ViT, {}, CIFAR, 345.6),
    (ViT, {"depth": 9, "heads": 12, "mlp_ratio": 2.0}, CIFAR, 173.1),
    (ViT, {"patch": 16}, IMAGENET, 1074.9),
]


@pytest.mark.parametrize(("build", "options", "data", "expected"), MACS)
def test_macs_are_those_of_the_literature(build, options, data, expected):
    channels, side, classes = data
    with torch.device("meta"):
        model = build(**options, in_channels=channels, num_classes=classes, image_size=side)
    macs = count_macs(model, (channels, side, side))
    macs.pop(ATTENTION)
    assert list(macs) == prunable_names(model)
    if isinstance(expected, int):
        assert sum(macs.values()) == expected
    else:
        assert sum(macs.values()) == pytest.approx(expected * 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "tokens"), [({}, 65), ({"depth": 9, "heads": 12}, 65), ({"patch": 2}, 257)]
)
def test_attention_macs_are_two_times_tokens_squared_times_dim_per_layer(options, tokens):
    with torch.device("meta"):
        model = ViT(**options, in_channels=3, num_classes=10, image_size=32)
    assert count_macs(model, (3, 32, 32))[ATTENTION] == 2 * model.depth * tokens**2 * 192


class Odd(nn.Module):
    """Groups, uneven padding, layers used twice, never and without a call, attention by matmul."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, (3, 1), stride=(2, 1), padding=(0, 2), groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Linear(8, 8)
        self.never = nn.Linear(2, 2)
        self.direct = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)  # [N, tokens, 8]
        x = self.twice(self.twice(self.drop(x)))
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return F.linear(x, self.direct.weight).mean(1)


def test_macs_follow_groups_strides_padding_and_use():
    macs = count_macs(Odd(), (4, 7, 6))
    positions = 3 * 10  # (7 - 3) // 2 + 1 rows, 6 + 2 * 2 columns
    assert macs == {
        "conv.weight": 8 * (4 // 2) * 3 * 1 * positions,
        "twice.weight": 2 * 8 * 8 * positions,
        "never.weight": 0,
        "direct.weight": 8 * 3 * positions,
        ATTENTION: 2 * 8 * positions**2,
    }


def test_counting_leaves_mode_buffers_hooks_and_randomness_as_found():
    model = Odd()
    model.drop.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    seed = torch.get_rng_state()
    first = count_macs(model, (4, 7, 6))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed)
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert count_macs(model, (4, 7, 6)) == first


def test_counting_restores_the_model_when_forward_fails():
    model = Odd()
    with pytest.raises(RuntimeError):
        count_macs(model, (3, 7, 6))
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_a_dense_network_costs_its_dense_cost():
    model = resnet_cifar(depth=20, in_channels=3, num_classes=10, image_size=32)
    result = cost(model, {}, count_macs(model, (3, 32, 32)))
    assert result["params"] == result["params_total"] == 269_722
    assert result["macs"] == result["macs_dense"] == 40_551_040
    assert result["compression"] == result["speedup"] == 1.0
    assert [x["name"] for x in result["layers"]] == prunable_names(model)


def test_compression_is_of_the_whole_model_and_macs_follow_layer_density():
    model = LeNet300(widths={"fc1": 4, "fc2": 3}, in_channels=1, num_classes=2, image_size=2)
    macs = count_macs(model, (1, 2, 2))
    masks = {
        "fc1.weight": torch.zeros(4, 4, dtype=torch.bool),
        "fc2.weight": torch.ones(3, 4, dtype=torch.bool),
    }
    masks["fc1.weight"][0, :3] = True
    masks["fc2.weight"][2] = False
    result = cost(model, masks, macs, tied={"fc2.bias": torch.tensor([True, True, False])})
    # weights 16 + 12 + 6, biases 4 + 3 + 2; kept 3 + 8 + 6 and 4 + 2 + 2
    assert result == {
        "params": 25,
        "params_total": 43,
        "compression": 43 / 25,
        "macs": 17,
        "macs_dense": 34,
        "speedup": 2.0,
        "macs_attention": 0,
        "layers": [
            {"name": "fc1.weight", "shape": [4, 4], "total": 16, "kept": 3, "macs_dense": 16, "macs": 3},
            {"name": "fc2.weight", "shape": [3, 4], "total": 12, "kept": 8, "macs_dense": 12, "macs": 8},
            {"name": "fc3.weight", "shape": [2, 3], "total": 6, "kept": 6, "macs_dense": 6, "macs": 6},
        ],
    }
    assert json.loads(json.dumps(result)) == result


def test_global_sparsity_gives_more_compression_than_speedup_when_it_falls_on_the_late_layers():
    # the magnitudes of a fresh Kaiming net fall with fan_out: shrinkbench.md, 7.4
    torch.manual_seed(0)
    model = resnet_cifar(depth=20, in_channels=3, num_classes=10, image_size=32)
    macs, params = count_macs(model, (3, 32, 32)), dict(model.named_parameters())
    names = prunable_names(model)
    flat = torch.cat([params[n].detach().abs().flatten() for n in names])
    threshold = flat.kthvalue(int(0.88 * flat.numel())).values
    everywhere = cost(model, {n: params[n].abs() > threshold for n in names}, macs)
    layerwise = {
        n: params[n].abs() > params[n].abs().flatten().kthvalue(int(0.88 * params[n].numel()))[0]
        for n in names
    }
    evenly = cost(model, layerwise, macs)
    assert everywhere["compression"] == pytest.approx(evenly["compression"], rel=0.01)
    assert evenly["speedup"] > 7.5 > 5.5 > everywhere["speedup"]


def test_a_network_without_any_weight_left_has_no_speedup():
    model = LeNet300(in_channels=1, num_classes=2, image_size=2)
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.ndim == 2}
    result = cost(model, masks, count_macs(model, (1, 2, 2)))
    assert result["macs"] == 0 and result["speedup"] is None
    assert result["params"] == 300 + 100 + 2


def test_masks_that_do_not_belong_to_the_model_are_refused():
    model = LeNet300(in_channels=1, num_classes=2, image_size=2)
    macs = count_macs(model, (1, 2, 2))
    with pytest.raises(ValueError, match="must name a parameter"):
        cost(model, {"fc9.weight": torch.ones(1, dtype=torch.bool)}, macs)
    with pytest.raises(ValueError, match=r"must have shape \[2, 100\], got \[2\]"):
        cost(model, {"fc3.weight": torch.ones(2, dtype=torch.bool)}, macs)


def test_topk_counts_against_a_sort():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (200, 7), generator=generator).float()  # many ties
    targets = torch.randint(0, 7, (200,), generator=generator)
    order = logits.argsort(dim=1, descending=True, stable=True)
    for k in (1, 3, 5, 7):
        top1, topk = topk_correct(logits, targets, k)
        assert int(top1) == int((order[:, 0] == targets).sum())
        assert int(topk) == int((order[:, :k] == targets[:, None]).any(1).sum())
        assert top1.shape == topk.shape == () and topk.dtype == torch.int64


def test_topk_is_cut_to_the_number_of_classes():
    top1, top5 = topk_correct(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1]))
    assert (int(top1), int(top5)) == (1, 2)


def test_an_image_with_a_nan_logit_counts_as_wrong():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, float("nan")], [0.0, 1.0]])
    top1, top5 = topk_correct(logits, torch.tensor([0, 0, 1]))
    assert (int(top1), int(top5)) == (1, 1)


def test_topk_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="k=0: must be at least 1"):
        topk_correct(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), k=0)
    with pytest.raises(ValueError, match=r"must be \[N, classes\] and \[N\]"):
        topk_correct(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
