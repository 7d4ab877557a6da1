"""Conv-2, Conv-4 and Conv-6: small VGG-like nets of the lottery ticket paper."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from prunebench.models.layers import Chain, init_glorot_, resolve_widths

CHANNELS = (64, 64, 128, 128, 256, 256)


class Conv(Chain):
    """Conv-N: pairs of 3x3 convolutions (64, 128, 256 filters), each pair pooled, then 256-256 neurons.

    Frankle & Carbin 2019 (arXiv 1803.03635, figure 2 and appendix H.1). No BatchNorm, Glorot normal weights,
    zero biases. Figure 2 prints 1.7M weights for Conv-6; the net that appendix H.1 describes, and this one,
    has 2.26M. A pooling that would go below 1x1 (images under 8x8 in Conv-6) is left out.

    Args:
      depth: number of convolutions: 2, 4 or 6.
      widths: unit name (`conv1`, ..., `fc1`, `fc2`) -> filters or neurons; those left out keep the paper's.
      in_channels, num_classes, image_size: of the data; images are square.

    Raises:
      ValueError: if `depth` is another number or `widths` does not fit.
    """

    head = "fc3"

    def __init__(
        self,
        depth: Literal[2, 4, 6],
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if depth not in (2, 4, 6):
            raise ValueError(f"depth={depth}: must be 2, 4 or 6")
        self.depth = depth
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        default = {f"conv{i + 1}": c for i, c in enumerate(CHANNELS[:depth])} | {"fc1": 256, "fc2": 256}
        self.widths = w = resolve_widths(default, widths)

        channels, side = in_channels, image_size
        for i in range(1, depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, w[f"conv{i}"], 3, padding=1))
            self.add_module(f"relu{i}", nn.ReLU())
            channels = w[f"conv{i}"]
            if i % 2 == 0 and side > 1:
                self.add_module(f"pool{i // 2}", nn.MaxPool2d(2))
                side //= 2
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(channels * side**2, w["fc1"])
        self.relu_fc1 = nn.ReLU()
        self.fc2 = nn.Linear(w["fc1"], w["fc2"])
        self.relu_fc2 = nn.ReLU()
        self.fc3 = nn.Linear(w["fc2"], num_classes)
        init_glorot_(self)

    def with_widths(self, widths: Mapping[str, int]) -> "Conv":
        """Fresh network with other widths; units left out keep theirs."""
        return Conv(
            self.depth,
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
