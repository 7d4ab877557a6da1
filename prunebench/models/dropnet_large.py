"""The large networks of DropNet's experiments: its ResNet-18 and VGG-19, which are not the usual ones.

Chong Min & Motani 2020 (arXiv 2207.06646, supplement; tanchongmin/DropNet). As Keras builds them there:
biases in every layer, 3x3 convolutions that keep the size, Glorot uniform weights and zero biases. A pooling
that would go below 1x1 is left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunebench.core.units import Junction, Unit
from prunebench.models.dropnet import init_glorot_uniform_
from prunebench.models.layers import Chain, layer_entries, norm_entries, residual_junctions, resolve_widths

STAGES = (64, 128, 256, 512)  # channels of the residual network
VGG_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class DropNetVGG(Chain):
    """DropNet's VGG-19: 16 convolutions with ReLU, one hidden layer of 256; 20,161,226 parameters at 32x32x3.

    BatchNorm stands only before every pooling, behind the ReLU of the stage's last convolution, with Keras's
    momentum and epsilon. The activation of those channels is what the BatchNorm gives (`activation_of`),
    which may be negative.

    Args:
      hidden: neurons of the hidden layer (256; 1024 for Tiny-ImageNet).
      widths: unit name -> channels; those left out keep the family's own.
      in_channels, num_classes, image_size: of the data; images are square.
    """

    head = "fc2"

    def __init__(
        self,
        hidden: int = 256,
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        self.hidden = hidden
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        places = {
            f"conv{s}_{i}": channels
            for s, (channels, convs) in enumerate(VGG_STAGES, start=1)
            for i in range(1, convs + 1)
        }
        self.widths = w = resolve_widths(places | {"fc1": hidden}, widths)
        self.activation_of: dict[str, str] = {}

        channels, side = in_channels, image_size
        for s, (_, convs) in enumerate(VGG_STAGES, start=1):
            for i in range(1, convs + 1):
                name = f"conv{s}_{i}"
                self.add_module(name, nn.Conv2d(channels, w[name], 3, padding=1))
                self.add_module(f"relu{s}_{i}", nn.ReLU())
                channels = w[name]
            self.add_module(f"norm{s}", nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01))
            self.activation_of[f"relu{s}_{convs}"] = f"norm{s}"
            if side > 1:
                self.add_module(f"pool{s}", nn.MaxPool2d(2))
                side //= 2
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(channels * side**2, w["fc1"])
        self.relu_fc1 = nn.ReLU()
        self.fc2 = nn.Linear(w["fc1"], num_classes)
        init_glorot_uniform_(self)

    def made_by(self, name: str) -> tuple[tuple[str, int], ...]:
        """A layer's rows and bias; of a stage's last filters the BatchNorm behind them, too."""
        norm = self.activation_of.get(name.replace("conv", "relu"))
        return super().made_by(name) + (norm_entries(norm) if norm else ())

    def with_widths(self, widths: Mapping[str, int]) -> "DropNetVGG":
        """Fresh network with other widths; units left out keep theirs."""
        return DropNetVGG(
            self.hidden,
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )


class Placed(nn.Module):
    """Convolution with ReLU whose filters write some channels of a stream.

    Args:
      in_channels: of the input.
      filters: number of filters.
      width: channels of the stream; filter i writes channel `place[i]`, i itself in a whole network.
    """

    def __init__(self, in_channels: int, filters: int, width: int):
        super().__init__()
        self.conv, self.relu, self.width = nn.Conv2d(in_channels, filters, 3, padding=1), nn.ReLU(), width
        self.register_buffer("place", torch.arange(filters))

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """[N, in_channels, H, W] -> [N, width, H, W], added to `stream` where there is one."""
        y = self.relu(self.conv(x))
        if self.conv.out_channels == self.width:
            return y if stream is None else stream + y
        if stream is None:
            stream = y.new_zeros(len(y), self.width, *y.shape[2:])
        return stream.index_add(1, self.place, y)

    @staticmethod
    def entries(name: str) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
        """`Unit.made_by` and `Unit.used_by` of the filters of the module of this name."""
        return layer_entries(f"{name}.conv"), ((f"{name}.place", 0),)


class DropNetBlock(nn.Module):
    """Two 3x3 convolutions with ReLU, added to the input or to its 3x3 projection, no ReLU behind the sum."""

    def __init__(self, channels: tuple[int, int, int, int], width: int, projected: bool):
        super().__init__()
        c_in, c1, c2, c_skip = channels
        self.conv1, self.relu1 = nn.Conv2d(c_in, c1, 3, padding=1), nn.ReLU()
        self.conv2 = Placed(c1, c2, width)
        self.skip = Placed(c_in, c_skip, width) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] -> [N, width, H, W]."""
        return self.conv2(self.relu1(self.conv1(x)), self.skip(x))


class DropNetResNet(Chain):
    """DropNet's ResNet-18: no BatchNorm, 20 layers of 4,800 filters in all; 12,545,418 parameters at 32x32x3.

    Stem of 64 filters and pooling; four stages of two blocks (64, 128, 256, 512), pooled in between; global
    average pool. Projections are 3x3 convolutions with ReLU. The filters of every convolution, the stem's and
    the projections' included, are units of their own, as in the paper: a dropped one adds nothing to its
    channel of the stream, which the others go on writing. Streams are never narrowed; in a smaller network a
    layer knows which channels its filters write (`Placed.place`).

    Args:
      widths: unit name (`stem`, `layer2.0.conv1`, `layer2.0.skip`, ...) -> filters; those left out keep
      theirs. in_channels, num_classes, image_size: of the data.
    """

    head = "fc"

    def __init__(
        self, widths: dict[str, int] | None = None, *, in_channels: int, num_classes: int, image_size: int
    ):
        super().__init__()
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        own, self._blocks, before = {"stem": STAGES[0]}, [], STAGES[0]
        for s, width in enumerate(STAGES, start=1):
            for i in range(2):
                name, projected = f"layer{s}.{i}", width != before
                own |= {f"{name}.{layer}": width for layer in ("conv1", "conv2", *(["skip"] * projected))}
                self._blocks.append((name, before, width, projected))
                before = width
        self.widths = w = resolve_widths(own, widths)
        self.stem, side = Placed(in_channels, w["stem"], STAGES[0]), image_size
        stages: dict[str, list[nn.Module]] = {}
        for name, c_in, width, projected in self._blocks:
            channels = (c_in, w[f"{name}.conv1"], w[f"{name}.conv2"], w.get(f"{name}.skip", 0))
            stages.setdefault(name.split(".")[0], []).append(DropNetBlock(channels, width, projected))
        for s, (name, blocks) in enumerate(stages.items()):
            self.add_module(f"pool{s}", nn.MaxPool2d(2) if side > 1 else nn.Identity())
            self.add_module(name, nn.Sequential(*blocks))
            side = max(side // 2, 1)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(STAGES[-1], num_classes)
        init_glorot_uniform_(self)

    def units(self) -> list[Unit]:
        """Filters of every convolution."""
        units = []
        for name, width in self.widths.items():
            if name.endswith("conv1"):
                read = f"{name.removesuffix('conv1')}conv2.conv.weight"
                made_by, used_by = layer_entries(name), ((read, 1),)
            else:
                made_by, used_by = Placed.entries(name)
            units.append(Unit(name, width, made_by, used_by))
        return units

    def junctions(self) -> list[Junction]:
        """Before every convolution but the stem, and before the classifier."""
        blocks = []
        for name, _, width, projected in self._blocks:
            convs = [f"{name}.conv1.weight", f"{name}.conv2.conv.weight"]
            skip = f"{name}.skip.conv.weight" if projected else None
            blocks.append((convs, skip, (0, 0) if projected else (0, width)))
        return residual_junctions("stem.conv.weight", blocks, "fc.weight")

    def with_widths(self, widths: Mapping[str, int]) -> "DropNetResNet":
        """Fresh network with other widths; units left out keep theirs."""
        return DropNetResNet(
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
