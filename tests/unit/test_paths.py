"""Which operations of a network have a meaning on paths, and which are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunebench.core.method import Method
from prunebench.metrics.effective import EffectiveSparsity
from prunebench.models.timm import timm_model
from prunebench.models.vit import ViT
from tests.unit.fixed import at, prune, run_of

torch.set_num_threads(1)


def measured(run) -> dict:
    EffectiveSparsity().check(run, [])
    return EffectiveSparsity().measure(run, Method())


class Mixed(nn.Module):
    """Groups, uneven padding, dilation, slices, concatenation, a weight used twice, additions in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, (3, 1), padding="same"), nn.BatchNorm2d(4), nn.GELU())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.act, self.pool, self.drop = nn.ReLU6(), nn.MaxPool2d(3, 2, padding=1), nn.Dropout(0.5)
        self.twice = nn.Conv2d(4, 4, 1)
        self.circular = nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular")
        self.mean, self.fc, self.silu = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3), nn.SiLU()

    def forward(self, x):
        x = self.drop(self.pool(self.act(self.depthwise(self.stem(x)))))
        y = F.hardswish(self.twice(x), inplace=True)
        y += x
        x = torch.cat([self.twice(y)[:, :2], F.pad(x, (1, 0, 0, 1, 1, 1))[:, :, 1:, 1:]], 1)
        return self.fc(self.silu(self.mean(self.circular(x)).flatten(1))).mean(1, keepdim=True)


def test_all_known_operations_are_followed():
    run = run_of(Mixed(), torch.zeros(1, 1, 5, 5))
    row = measured(run)
    assert row["dead_out"] == row["dead_in"] == 0
    # the sixth and first of the six channels behind the slice are padding, which carries nothing
    unread = at(row["layers"], "circular.weight")
    assert (unread["weights"], unread["effective"]) == (8 * 4 * 9, 6 * 4 * 9)
    assert row["ineffective"] == 2 * 4 * 9
    cut = torch.ones(4, 1, 3, 3, dtype=torch.bool)
    cut[3] = False
    prune(run, depthwise=cut)
    row = measured(run)
    assert at(row["layers"], "stem.0.weight")["effective"] == 9, "nobody reads the fourth filter now"
    assert at(row["layers"], "stem.0.weight")["dead_out"] == 1


def test_a_timm_network_of_known_operations_is_followed():
    model = timm_model("test_resnet", in_channels=1, num_classes=3, image_size=32)
    assert measured(run_of(model, torch.zeros(1, 1, 32, 32)))["effective_sparsity"] == 0.0


class Odd(nn.Module):
    """A convolution, and one operation that is not known."""

    def __init__(self, operation, **parts):
        super().__init__()
        self.conv, self.operation = nn.Conv2d(1, 2, 1), operation
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.operation(self, self.conv(x)).flatten(1)


VECTOR, FIXED = nn.Parameter(torch.ones(2, 1, 1)), torch.ones(2, 2, 1, 1)
REFUSED = {
    "norm (LayerNorm) computes torch.nn.functional.layer_norm": Odd(
        lambda m, x: m.norm(x), norm=nn.LayerNorm([2, 2, 2])
    ),
    "gate (Sigmoid) computes torch.sigmoid": Odd(lambda m, x: m.gate(x), gate=nn.Sigmoid()),
    "Odd computes torch.Tensor.mul": Odd(lambda m, x: x * x),
    "Odd computes torch.Tensor.add": Odd(lambda m, x: x + 1),
    "Odd uses scale outside the layers": Odd(lambda m, x: x + m.scale.exp(), scale=VECTOR),
    "Odd uses shift outside the layers": Odd(lambda m, x: x + m.shift, shift=VECTOR),
    "Odd uses token outside the layers": Odd(lambda m, x: torch.cat([x, m.token], 1), token=VECTOR),
    "Odd uses conv.weight outside the layers": Odd(lambda m, x: F.conv2d(x, 2 * m.conv.weight)),
    "Odd uses a weight that is no parameter": Odd(lambda m, x: F.conv2d(x, FIXED)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_operations_of_unknown_meaning_are_refused_with_the_name_of_the_module(message):
    run = run_of(REFUSED[message], torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError) as error:
        EffectiveSparsity().check(run, [])
    assert str(error.value).startswith(f"metrics.effective_sparsity: {message}")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())


def test_attention_is_refused():
    model = ViT(dim=6, depth=1, heads=2, patch=2, in_channels=1, num_classes=3, image_size=4)
    with pytest.raises(ValueError, match=r"^metrics\.effective_sparsity: ViT uses cls_token"):
        EffectiveSparsity().check(run_of(model, torch.zeros(1, 1, 4, 4)), [])
    attention = nn.Sequential(nn.Flatten(2), model.blocks[0].attn)
    with pytest.raises(ValueError, match=r"1 \(Attention\) computes torch\.Tensor\.unflatten"):
        EffectiveSparsity().check(run_of(attention, torch.zeros(1, 2, 2, 3)), [])
