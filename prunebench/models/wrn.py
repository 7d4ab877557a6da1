"""Wide residual networks."""

from collections.abc import Mapping

from torch import Tensor, nn

from prunebench.core.units import Junction, PrunableModel, Unit
from prunebench.models.layers import (
    PointwiseConv2d,
    init_kaiming_,
    norm_entries,
    residual_junctions,
    resolve_widths,
)


class WideBlock(nn.Module):
    """Pre-activation block: BatchNorm, ReLU, 3x3 convolution, twice, with dropout between.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, otherwise the input
    itself.

    Args:
      channels: input, inner and output channels.
      stride: of the first convolution and the projection.
      dropout: probability of dropping a value between the convolutions.
      projected: whether the shortcut is a convolution.
    """

    def __init__(self, channels: tuple[int, int, int], stride: int, dropout: float, projected: bool):
        super().__init__()
        c_in, c_mid, c_out = channels
        self.projected = projected
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(c_in, c_mid, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_mid)
        self.relu2 = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False)
        self.shortcut = PointwiseConv2d(c_in, c_out, stride=stride) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] -> [N, c_out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu1(self.bn1(x))
        shortcut = self.shortcut(y if self.projected else x)
        y = self.relu2(self.bn2(self.conv1(y)))
        return self.conv2(self.drop(y)) + shortcut


class WRN(PrunableModel):
    """WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv 1605.07146, table 1): pre-activation, three stages.

    WRN-28-10 has 36,479,194 parameters at 10 classes. Any image size will do. Convolutions start from Kaiming
    normal (fan_out), BatchNorm from scale 1, the classifier from PyTorch's default with zero bias.

    Units are the inner channels of every block (`layer1.0.conv1`, ...) and the residual streams (`layer1`,
    ...; `conv1` where the stem's output is a stream of its own). A BatchNorm that reads a stream belongs to
    its channels: its shift would leak from a dead one.

    Args:
      depth: 6n+4: 16, 22, 28, 40, ...
      width: multiple of 16, 32 and 64 channels, at least 1.
      dropout: probability in [0, 1) of dropping a value between the convolutions of a block.
      widths: unit name -> channels; those left out keep the family's own.
      in_channels, num_classes, image_size: of the data.

    Raises:
      ValueError: if an option is out of range or `widths` does not fit.
    """

    head = "fc"

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth}: must be 6n+4 (16, 22, 28, 40, ...)")
        if width < 1:
            raise ValueError(f"width={width}: must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
        self.depth, self.width, self.dropout = depth, width, dropout
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        stem = "layer1" if width == 1 else "conv1"  # at width 1 the first block keeps the stem's 16 channels
        self._blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range((depth - 4) // 6)]
        self._streams = [stem] + [
            block.split(".")[0] for block in self._blocks
        ]  # before each block, and at the end
        stages = {"layer1": 16 * width, "layer2": 32 * width, "layer3": 64 * width}
        inner = {f"{block}.conv1": stages[block.split(".")[0]] for block in self._blocks}
        self.widths = w = resolve_widths({stem: 16} | stages | inner, widths)

        self.conv1 = nn.Conv2d(in_channels, w[stem], 3, padding=1, bias=False)
        built: dict[str, list[nn.Module]] = {stage: [] for stage in stages}
        for block, reads, writes in zip(self._blocks, self._streams, self._streams[1:]):
            stride = 2 if reads != writes and writes != "layer1" else 1
            channels = (w[reads], w[f"{block}.conv1"], w[writes])
            built[writes].append(WideBlock(channels, stride, dropout, projected=reads != writes))
        for stage, blocks in built.items():
            self.add_module(stage, nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(w["layer3"])
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(w["layer3"], num_classes)
        init_kaiming_(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.flatten(self.avgpool(self.relu(self.bn(x)))))

    def units(self) -> list[Unit]:
        """Inner channels of the blocks and the residual streams."""
        made: dict[str, list[tuple[str, int]]] = {self._streams[0]: [("conv1.weight", 0)]}
        used: dict[str, list[tuple[str, int]]] = {}
        for block, reads, writes in zip(self._blocks, self._streams, self._streams[1:]):
            made[f"{block}.conv1"] = [(f"{block}.conv1.weight", 0), *norm_entries(f"{block}.bn2")]
            used[f"{block}.conv1"] = [(f"{block}.conv2.weight", 1)]
            made[reads] += norm_entries(f"{block}.bn1")
            used.setdefault(reads, []).append((f"{block}.conv1.weight", 1))
            made.setdefault(writes, []).append((f"{block}.conv2.weight", 0))
            if reads != writes:
                used[reads].append((f"{block}.shortcut.weight", 1))
                made[writes].append((f"{block}.shortcut.weight", 0))
        made["layer3"] += norm_entries("bn")
        used.setdefault("layer3", []).append(("fc.weight", 1))
        return [
            Unit(name, width, tuple(made[name]), tuple(used[name])) for name, width in self.widths.items()
        ]

    def junctions(self) -> list[Junction]:
        """Before every convolution but the stem, and before the classifier."""
        blocks = []
        for block, reads, writes in zip(self._blocks, self._streams, self._streams[1:]):
            convs = [f"{block}.conv1.weight", f"{block}.conv2.weight"]
            if reads != writes:
                blocks.append((convs, f"{block}.shortcut.weight", (0, 0)))
            else:
                blocks.append((convs, None, (0, self.widths[writes])))
        return residual_junctions("conv1.weight", blocks, "fc.weight")

    def with_widths(self, widths: Mapping[str, int]) -> "WRN":
        """Fresh network with other widths; units left out keep theirs."""
        return WRN(
            depth=self.depth,
            width=self.width,
            dropout=self.dropout,
            widths=self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
