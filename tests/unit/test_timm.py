"""timm networks under the contract of our own."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.units import PrunableModel, prunable_names
from prunebench.metrics.cost import ATTENTION, cost, count_macs
from prunebench.models.timm import TimmModel, timm_model

torch.set_num_threads(1)

DIGITS = {"in_channels": 1, "num_classes": 10, "image_size": 8}
SMALL = DIGITS | {"image_size": 32}
TINY_VIT = {"depth": 2, "embed_dim": 48}

# name, options, data
FAMILIES = [
    ("vit_tiny_patch16_224", {"patch_size": 2, "depth": 2}, DIGITS),
    ("vit_tiny_patch16_224", {"depth": 2}, SMALL),
    ("resnet18", {}, DIGITS),
    ("mobilenetv3_small_050", {}, DIGITS),
    ("efficientnet_b0", {}, DIGITS),
    ("regnetx_002", {}, DIGITS),
    ("convnext_atto", {}, SMALL),
    ("mixer_s32_224", {}, SMALL),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 24}, SMALL),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, SMALL),
    ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}, SMALL),
]


@pytest.mark.parametrize(("name", "kwargs", "data"), FAMILIES)
def test_families_build_train_and_are_counted_on_small_grey_images(name, kwargs, data):
    torch.manual_seed(0)
    model = timm_model(name, kwargs=kwargs, **data)
    size = data["image_size"]
    loss = F.cross_entropy(model(torch.randn(4, 1, size, size)), torch.arange(4))
    loss.backward()
    assert loss.isfinite()

    weights = dict(model.named_parameters())
    expected = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert prunable_names(model) == expected
    assert isinstance(model, PrunableModel) and isinstance(model.get_submodule(model.head), nn.Linear)
    assert f"{model.head}.weight" not in prunable_names(model, exclude=["head"])

    macs = count_macs(model, (1, size, size))
    unused = [n for n in expected if macs[n] == 0]
    assert unused == [], "every layer takes part"
    assert all(macs[n] % weights[n].numel() == 0 for n in expected)
    assert (macs[ATTENTION] > 0) == any(word in name for word in ("vit", "swin", "deit", "beit"))
    masks = {n: torch.zeros_like(weights[n], dtype=torch.bool) for n in expected[1:]}
    assert cost(model, masks, macs)["macs"] == macs[expected[0]]


def test_resnet18_has_the_known_size_and_cost():
    with torch.device("meta"):
        model = timm_model("resnet18", in_channels=3, num_classes=1000, image_size=224)
    macs = count_macs(model, (3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    assert sum(macs.values()) == pytest.approx(1814.1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "params", "millions", "attention"),
    [
        ("deit_tiny_patch16_224", 5_717_416, 1074.9, 178.8),
        ("deit_small_patch16_224", 22_050_664, 4241.2, 357.7),
        ("deit_base_patch16_224", 86_567_656, 16_848.5, 715.3),
    ],
)
def test_deit_has_the_known_size_and_cost(name, params, millions, attention):
    with torch.device("meta"):
        model = timm_model(name, in_channels=3, num_classes=1000, image_size=224)
    macs = count_macs(model, (3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == params
    assert macs[ATTENTION] == pytest.approx(attention * 1e6, rel=1e-3)
    assert sum(macs.values()) - macs[ATTENTION] == pytest.approx(millions * 1e6, rel=1e-3)


def test_attention_without_the_fused_kernel_is_counted_alike():
    model = timm_model("vit_tiny_patch16_224", kwargs=TINY_VIT, **SMALL)
    fused = count_macs(model, (1, 32, 32))
    for block in model.net.blocks:
        block.attn.fused_attn = False
    assert count_macs(model, (1, 32, 32)) == fused


def test_image_size_and_channels_reach_the_network():
    model = timm_model("vit_tiny_patch16_224", kwargs=TINY_VIT | {"patch_size": 4}, **SMALL)
    assert model.net.pos_embed.shape == (1, 1 + 8 * 8, 48)
    assert model.net.patch_embed.proj.weight.shape == (48, 1, 4, 4)
    assert model.training


def test_fresh_networks_have_the_same_shapes():
    model = timm_model("vit_tiny_patch16_224", kwargs=TINY_VIT, **SMALL)
    again = model.with_widths({})
    assert isinstance(again, TimmModel)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_of_the_same_network_load_exactly(tmp_path, suffix):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm_model("vit_tiny_patch16_224", kwargs=TINY_VIT, **SMALL)
    path = str(tmp_path / f"weights{suffix}")
    if suffix == ".pth":
        torch.save(model.net.state_dict(), path)  # as timm saves it
    else:
        save_file(model.state_dict(), path)  # as prunebench does
    loaded = timm_model("vit_tiny_patch16_224", checkpoint=path, kwargs=TINY_VIT, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))


def test_checkpoints_for_other_classes_channels_and_sizes_are_adapted(tmp_path):
    import timm

    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, **TINY_VIT)
    path = str(tmp_path / "source.pth")
    torch.save(source.state_dict(), path)
    model = timm_model("vit_tiny_patch16_224", checkpoint=path, kwargs=TINY_VIT, **SMALL)
    assert torch.equal(model.net.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    grey = source.patch_embed.proj.weight.detach().sum(1, keepdim=True)
    torch.testing.assert_close(model.net.patch_embed.proj.weight.detach(), grey)
    assert model.net.pos_embed.shape == (1, 5, 48)
    assert model.net.head.weight.shape == (10, 48)


def test_checkpoints_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save(timm_model("mobilenetv3_small_050", **SMALL).net.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"must hold all weights of model[.]name=vit_tiny_patch16_224; it lacks"
    ):
        timm_model("vit_tiny_patch16_224", checkpoint=path, kwargs=TINY_VIT, **SMALL)
    with pytest.raises(ValueError, match="must be a file; there is none"):
        timm_model("vit_tiny_patch16_224", checkpoint=str(tmp_path / "none.pth"), kwargs=TINY_VIT, **SMALL)


def test_pretrained_weights_without_network_name_three_ways_out(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"model\.pretrained=true: no weights for model\.name=resnet18"
    ) as caught:
        timm_model("resnet18", pretrained=True, **SMALL)
    for way_out in (
        "model.pretrained=false",
        "model.checkpoint=<file>",
        "run once with a network connection",
    ):
        assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "has no such model; did you mean resnet"),
        ("resnet18.nosuchtag", {}, "timm has no weights 'nosuchtag' for it; choose from a1_in1k"),
        (
            "convnext_atto",
            {},
            "model.name=convnext_atto: cannot be used with dataset.size=8 (Calculated padded input",
        ),
        ("vit_tiny_patch16_224", {}, "cannot be used with dataset.size=8"),
        (
            "resnet18",
            {"kwargs": {"patchsize": 2}},
            "and model.kwargs={'patchsize': 2} (ResNet.__init__() got an",
        ),
        (
            "resnet18",
            {"kwargs": {"in_chans": 2}},
            "model.kwargs.in_chans: must not be given here; it comes from dataset",
        ),
        (
            "resnet18",
            {"pretrained": True, "checkpoint": "x"},
            "has no effect with model.pretrained=true; choose one",
        ),
    ],
)
def test_what_timm_cannot_do_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        timm_model(name, **options, **DIGITS)
