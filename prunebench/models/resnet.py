"""Residual networks: the thin ones for CIFAR (depth 6n+2) and ResNet-18/34/50."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.core.units import Junction, PrunableModel, Unit
from prunebench.models.layers import (
    PointwiseConv2d,
    init_kaiming_,
    norm_entries,
    residual_junctions,
    resolve_widths,
)

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True)
class Place:
    """One residual block and the streams it connects; `reads == writes` means an identity shortcut."""

    name: str  # "layer2.0"
    planes: int  # filters of the inner convolutions
    stride: int
    reads: str
    writes: str


class PadShortcut(nn.Module):
    """Option A of He et al. 2016 (arXiv 1512.03385, section 4.2): subsample, pad the new channels with zeros.

    Args:
      padding: new channels in front and behind.
      stride: subsampling step in both directions.
    """

    def __init__(self, padding: tuple[int, int], stride: int):
        super().__init__()
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + sum(padding), ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU around a shortcut.

    Args:
      channels: input, inner and output channels.
      stride: of the first convolution.
      downsample: the shortcut.
    """

    CONVS = 2
    EXPANSION = 1

    def __init__(self, channels: tuple[int, int, int], stride: int, downsample: nn.Module):
        super().__init__()
        c_in, c1, c_out = channels
        self.conv1 = nn.Conv2d(c_in, c1, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.relu1 = nn.ReLU(inplace=True)  # nothing else reads what it overwrites
        self.conv2 = nn.Conv2d(c1, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = downsample
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] -> [N, c_out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the stride is in the 3x3 one, as in torchvision.

    Args:
      channels: input, two inner and output channels.
      stride: of the 3x3 convolution.
      downsample: the shortcut.
    """

    CONVS = 3
    EXPANSION = 4

    def __init__(self, channels: tuple[int, int, int, int], stride: int, downsample: nn.Module):
        super().__init__()
        c_in, c1, c2, c_out = channels
        self.conv1 = nn.Conv2d(c_in, c1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(c2, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = downsample
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] -> [N, c_out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(PrunableModel):
    """ResNet of He et al. 2016 (arXiv 1512.03385); `resnet_cifar` and `resnet` build the usual ones.

    Parameter names are torchvision's. Convolutions start from Kaiming normal (fan_out), BatchNorm from scale
    1, the classifier from PyTorch's default.

    Units are the inner channels of every block (`layer1.0.conv1`, ...) and, with projection shortcuts (option
    B), the residual streams (`layer1`, ...; `conv1` where the stem's output is a stream of its own). With
    zero-padded shortcuts (option A) a channel has another index in every stage, so the streams are not units
    and stay whole.

    Args:
      block: "basic" or "bottleneck".
      planes: filters of the inner convolutions, one number per stage.
      blocks: number of blocks, one number per stage.
      stem: "cifar" (3x3 convolution) or "imagenet" (7x7 with stride 2, then 3x3 max-pooling with stride 2).
      option: shortcut where the shape changes: "A" zero padding, "B" 1x1 convolution and BatchNorm.
      widths: unit name -> channels; those left out keep the family's own.
      in_channels, num_classes: of the data.

    Raises:
      ValueError: if `widths` names no unit or holds a width below 1.
    """

    head = "fc"

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"],
        planes: tuple[int, ...],
        blocks: tuple[int, ...],
        stem: Literal["cifar", "imagenet"],
        option: Literal["A", "B"],
        widths: Mapping[str, int] | None,
        in_channels: int,
        num_classes: int,
    ):
        super().__init__()
        self.block, self.planes, self.blocks, self.stem, self.option = block, planes, blocks, stem, option
        self.in_channels, self.num_classes = in_channels, num_classes
        kind = BLOCKS[block]
        self._inner = [f"conv{i + 1}" for i in range(kind.CONVS - 1)]
        self._places = _places(planes, blocks, kind.EXPANSION)
        streams = {self._places[0].reads: planes[0]} | {
            p.writes: p.planes * kind.EXPANSION for p in self._places
        }
        inner = {f"{p.name}.{conv}": p.planes for p in self._places for conv in self._inner}
        self.widths = resolve_widths(inner if option == "A" else streams | inner, widths)
        channels = streams | self.widths

        first = channels[self._places[0].reads]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, first, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        stages: dict[str, list[nn.Module]] = {}
        for place in self._places:
            c_in, c_out = channels[place.reads], channels[place.writes]
            hidden = [channels[f"{place.name}.{conv}"] for conv in self._inner]
            built = kind((c_in, *hidden, c_out), place.stride, self._shortcut(place, c_in, c_out))
            stages.setdefault(place.name.split(".")[0], []).append(built)
        for name, built in stages.items():
            self.add_module(name, nn.Sequential(*built))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels[self._places[-1].writes], num_classes)
        init_kaiming_(self)

    def _shortcut(self, place: Place, c_in: int, c_out: int) -> nn.Module:
        if place.reads == place.writes:
            return nn.Identity()
        if self.option == "A":
            front = (c_out - c_in) // 2
            return PadShortcut((front, c_out - c_in - front), place.stride)
        return nn.Sequential(PointwiseConv2d(c_in, c_out, stride=place.stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(len(self.planes)):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(self.flatten(self.avgpool(x)))

    def units(self) -> list[Unit]:
        """Inner channels of the blocks and, with option B, the residual streams."""
        made: dict[str, list[tuple[str, int]]] = {}
        used: dict[str, list[tuple[str, int]]] = {}
        last = f"conv{len(self._inner) + 1}"
        made[self._places[0].reads] = [("conv1.weight", 0), *norm_entries("bn1")]
        for p in self._places:
            for i, conv in enumerate(self._inner, start=1):
                made[f"{p.name}.{conv}"] = [(f"{p.name}.{conv}.weight", 0), *norm_entries(f"{p.name}.bn{i}")]
                used[f"{p.name}.{conv}"] = [(f"{p.name}.conv{i + 1}.weight", 1)]
            used.setdefault(p.reads, []).append((f"{p.name}.conv1.weight", 1))
            end = [(f"{p.name}.{last}.weight", 0), *norm_entries(f"{p.name}.bn{last[-1]}")]
            made.setdefault(p.writes, []).extend(end)
            if p.reads != p.writes:
                used[p.reads].append((f"{p.name}.downsample.0.weight", 1))
                made[p.writes] += [
                    (f"{p.name}.downsample.0.weight", 0),
                    *norm_entries(f"{p.name}.downsample.1"),
                ]
        used.setdefault(self._places[-1].writes, []).append(("fc.weight", 1))
        return [
            Unit(name, width, tuple(made[name]), tuple(used[name])) for name, width in self.widths.items()
        ]

    def junctions(self) -> list[Junction]:
        """Before every convolution but the stem, and before the classifier.

        With option A the shortcut writes the channels that it does not pad, and reads all.
        """
        blocks = []
        for p in self._places:
            convs = [f"{p.name}.{conv}.weight" for conv in (*self._inner, f"conv{len(self._inner) + 1}")]
            projected = p.reads != p.writes and self.option == "B"
            shortcut = self.get_submodule(f"{p.name}.downsample")
            front, behind = shortcut.padding if isinstance(shortcut, PadShortcut) else (0, 0)
            writes = (0, 0) if projected else (front, len(self.get_parameter(convs[-1])) - behind)
            blocks.append((convs, f"{p.name}.downsample.0.weight" if projected else None, writes))
        return residual_junctions("conv1.weight", blocks, "fc.weight")

    def with_widths(self, widths: Mapping[str, int]) -> "ResNet":
        """Fresh network with other widths; units left out keep theirs."""
        return ResNet(
            block=self.block,
            planes=self.planes,
            blocks=self.blocks,
            stem=self.stem,
            option=self.option,
            widths=self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
        )

    def scaled(self, factor: float) -> "ResNet":
        """Fresh network with `factor` times the channels; with option A the streams are scaled, too."""
        if self.option == "B":
            return super().scaled(factor)
        narrow = ResNet(
            block=self.block,
            planes=tuple(max(1, round(factor * p)) for p in self.planes),
            blocks=self.blocks,
            stem=self.stem,
            option=self.option,
            widths={n: max(1, round(factor * w)) for n, w in self.widths.items()},
            in_channels=self.in_channels,
            num_classes=self.num_classes,
        )
        return narrow


def _places(planes: tuple[int, ...], blocks: tuple[int, ...], expansion: int) -> list[Place]:
    """The blocks in order. The stem shares the first stage's stream where the shapes agree."""
    places, stream = [], "layer1" if expansion == 1 else "conv1"
    for stage, (width, count) in enumerate(zip(planes, blocks), start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            places.append(Place(f"layer{stage}.{i}", width, stride, stream, f"layer{stage}"))
            stream = f"layer{stage}"
    return places


def resnet_cifar(
    depth: int = 20,
    option: Literal["A", "B"] = "A",
    width: int = 1,
    widths: dict[str, int] | None = None,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
) -> ResNet:
    """Thin ResNet for CIFAR with 16, 32 and 64 channels, He et al. 2016 (arXiv 1512.03385, section 4.2).

    269,722 parameters at depth 20 with option A and 10 classes. What the lottery ticket paper calls
    "Resnet-18" is depth 20 with option B. Any image size will do.

    Args:
      depth: 6n+2: 20, 32, 44, 56, 110, ...
      option: shortcut where the shape changes: "A" zero padding (no parameters; the paper's choice), "B"
        projection.
      width: multiple of the paper's 16, 32 and 64 channels, at least 1.
      widths: unit name -> channels; those left out keep the family's own. See `ResNet` for the units.
      in_channels: of the images.
      num_classes: logits.
      image_size: side of the square images in pixels.

    Raises:
      ValueError: if an option is out of range.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: must be 6n+2 (20, 32, 44, 56, 110, ...)")
    if option not in ("A", "B"):
        raise ValueError(f"option={option}: must be A (zero padding) or B (projection)")
    if width < 1:
        raise ValueError(f"width={width}: must be at least 1")
    return ResNet(
        block="basic",
        planes=(16 * width, 32 * width, 64 * width),
        blocks=(depth // 6,) * 3,
        stem="cifar",
        option=option,
        widths=widths,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def resnet(
    depth: Literal[18, 34, 50] = 18,
    stem: Literal["auto", "cifar", "imagenet"] = "auto",
    widths: dict[str, int] | None = None,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
) -> ResNet:
    """ResNet-18/34/50 with projection shortcuts, He et al. 2016 (arXiv 1512.03385, table 1).

    Args:
      depth: 18, 34 (basic blocks) or 50 (bottlenecks).
      stem: "cifar" is a 3x3 convolution without pooling, "imagenet" the original 7x7 one with max-pooling,
        "auto" takes the first up to 64x64 and the second above.
      widths: unit name -> channels; those left out keep the family's own. See `ResNet` for the units.
      in_channels: of the images.
      num_classes: logits.
      image_size: side of the square images in pixels.

    Raises:
      ValueError: if an option is out of range.
    """
    if depth not in STAGE_BLOCKS:
        raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, STAGE_BLOCKS))}")
    if stem not in ("auto", "cifar", "imagenet"):
        raise ValueError(f"stem={stem}: must be auto, cifar or imagenet")
    if stem == "auto":
        stem = "cifar" if image_size <= 64 else "imagenet"
    return ResNet(
        block="bottleneck" if depth == 50 else "basic",
        planes=(64, 128, 256, 512),
        blocks=STAGE_BLOCKS[depth],
        stem=stem,
        option="B",
        widths=widths,
        in_channels=in_channels,
        num_classes=num_classes,
    )
