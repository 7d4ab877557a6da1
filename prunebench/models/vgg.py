"""VGG with BatchNorm for small images."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from prunebench.core.units import PrunableModel, Unit
from prunebench.models.layers import init_kaiming_, layer_entries, norm_entries, resolve_widths

STAGE_CHANNELS = (64, 128, 256, 512, 512)
STAGE_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(PrunableModel):
    """VGG-11/13/16/19 with BatchNorm (Simonyan & Zisserman, arXiv 1409.1556) with a head for small images.

    Five stages of 3x3 convolutions, each closed by 2x2 max-pooling, a global average pool (it does nothing at
    32x32) and 1 to 3 linear layers. A pooling that would go below 1x1 (images under 32x32) is replaced by
    `nn.Identity`, so that names do not depend on the image size. The papers' nets: `head_layers=1` is the
    usual CIFAR one (VGG16: 14,728,266 parameters), `head_layers=2 head_norm=true` is ShrinkBench's CIFAR-VGG
    without its dropout between convolutions (14,991,946), `head_layers=3 head_width=4096` is weiaicunzai's.
    Convolutions start from Kaiming normal (fan_out) with zero bias, linear layers from N(0, 0.01^2) with zero
    bias as in torchvision, BatchNorm from scale 1.

    Args:
      depth: number of weight layers in the original net: 11, 13, 16 or 19.
      bias: give convolutions a bias although BatchNorm follows.
      head_layers: number of linear layers, 1 to 3.
      head_width: neurons of the hidden linear layers.
      head_norm: BatchNorm after each hidden linear layer.
      dropout: probability in [0, 1) of dropping a hidden neuron of the head.
      widths: unit name (`features.0`, ..., `classifier.fc1`) -> channels; those left out keep the family's
        own.
      in_channels, num_classes, image_size: of the data; images are square.

    Raises:
      ValueError: if an option is out of range, or a head option is set although there is no hidden layer.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19],
        bias: bool = True,
        head_layers: Literal[1, 2, 3] = 1,
        head_width: int = 512,
        head_norm: bool = False,
        dropout: float = 0.0,
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if depth not in STAGE_CONVS:
            raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, STAGE_CONVS))}")
        if head_layers not in (1, 2, 3):
            raise ValueError(f"head_layers={head_layers}: must be 1, 2 or 3 linear layers")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
        if head_layers == 1 and (head_norm or dropout or head_width != 512):
            raise ValueError(
                "head_layers=1: head_width, head_norm and dropout need a hidden layer; "
                "set head_layers to 2 or 3"
            )
        self.depth, self.bias, self.dropout = depth, bias, dropout
        self.head_layers, self.head_width, self.head_norm = head_layers, head_width, head_norm
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.head = f"classifier.fc{head_layers}"

        convs = _conv_places(depth)
        hidden = [f"classifier.fc{i}" for i in range(1, head_layers)]
        self.widths = w = resolve_widths(convs | dict.fromkeys(hidden, head_width), widths)
        self.features = self._features(list(convs))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        layers, neurons = OrderedDict(), w[list(convs)[-1]]
        for i, name in enumerate(hidden, start=1):
            layers[f"fc{i}"] = nn.Linear(neurons, w[name])
            layers[f"norm{i}"] = nn.BatchNorm1d(w[name]) if head_norm else nn.Identity()
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"drop{i}"] = nn.Dropout(dropout)
            neurons = w[name]
        layers[f"fc{head_layers}"] = nn.Linear(neurons, num_classes)
        self.classifier = nn.Sequential(layers)

        init_kaiming_(self)
        for module in self.classifier.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def _features(self, names: list[str]) -> nn.Sequential:
        """Convolutions, BatchNorms, ReLUs and poolings, numbered as in torchvision."""
        layers: list[nn.Module] = []
        channels, side, names = self.in_channels, self.image_size, iter(names)
        for convs in STAGE_CONVS[self.depth]:
            for _ in range(convs):
                width = self.widths[next(names)]
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=self.bias),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2) if side > 1 else nn.Identity())
            side = max(side // 2, 1)
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        return self.classifier(self.flatten(self.pool(self.features(x))))

    def units(self) -> list[Unit]:
        """Filters of every convolution and neurons of the head's hidden layers, one unit per layer."""
        names, units = [*self.widths, self.head], []
        for name, reader in pairwise(names):
            stem, _, last = name.rpartition(".")
            if stem == "features":
                rows = layer_entries(name) if self.bias else ((f"{name}.weight", 0),)
                made_by = rows + norm_entries(f"features.{int(last) + 1}")
            else:
                made_by = layer_entries(name) + (
                    norm_entries(name.replace(".fc", ".norm")) if self.head_norm else ()
                )
            units.append(Unit(name, self.widths[name], made_by, ((f"{reader}.weight", 1),)))
        return units

    def with_widths(self, widths: Mapping[str, int]) -> "VGG":
        """Fresh network with other widths; units left out keep theirs."""
        return VGG(
            depth=self.depth,
            bias=self.bias,
            head_layers=self.head_layers,
            head_width=self.head_width,
            head_norm=self.head_norm,
            dropout=self.dropout,
            widths=self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )


def _conv_places(depth: int) -> dict[str, int]:
    """Module name of every convolution -> its filters."""
    places, index = {}, 0
    for channels, convs in zip(STAGE_CHANNELS, STAGE_CONVS[depth]):
        for _ in range(convs):
            places[f"features.{index}"] = channels
            index += 3  # convolution, BatchNorm, ReLU
        index += 1  # pooling
    return places
