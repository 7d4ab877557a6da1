"""Models A, B and C of DropNet: small plain networks without BatchNorm."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from prunebench.models.layers import Chain, resolve_widths

WIDTHS = {
    "A": {"fc1": 40, "fc2": 40},
    "B": {"conv1": 64, "conv2": 64},
    "C": {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 128, "fc1": 256},
}


class DropNetModel(Chain):
    """Models A (two hidden layers), B (two convolutions) and C (four convolutions, one hidden layer).

    Chong Min & Motani 2020 (arXiv 2207.06646, sec. 3.2; tanchongmin/DropNet). Convolutions are 3x3 with
    padding 1, each followed by ReLU and 2x2 max-pooling. Glorot uniform weights and zero biases, as Keras
    draws them. A has 33,450 and B 68,938 parameters at 28x28x1, C 394,058 at 32x32x3. The paper's other
    widths are `widths`: A 20-40, 40-20, 20-20; B 32-64, 64-32, 20-20; C 128-128-256-256, four times 128,
    128-128-64-64. A pooling that would go below 1x1 (images under 16x16 in C) is left out.

    Args:
      variant: which model.
      widths: unit name (`conv1`, ..., `fc1`, `fc2`) -> filters or neurons; those left out keep the paper's.
      in_channels, num_classes, image_size: of the data; images are square.

    Raises:
      ValueError: if `variant` is unknown or `widths` does not fit.
    """

    def __init__(
        self,
        variant: Literal["A", "B", "C"],
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if variant not in WIDTHS:
            raise ValueError(f"variant={variant}: must be A, B or C")
        self.variant = variant
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.widths = w = resolve_widths(WIDTHS[variant], widths)
        convs = [name for name in w if name.startswith("conv")]
        hidden = [name for name in w if name not in convs]
        self.head = f"fc{len(hidden) + 1}"

        channels, side = in_channels, image_size
        for i, name in enumerate(convs, start=1):
            self.add_module(name, nn.Conv2d(channels, w[name], 3, padding=1))
            self.add_module(f"relu{i}", nn.ReLU())
            if side > 1:
                self.add_module(f"pool{i}", nn.MaxPool2d(2))
                side //= 2
            channels = w[name]
        self.flatten = nn.Flatten()
        features = channels * side**2
        for name in hidden:
            self.add_module(name, nn.Linear(features, w[name]))
            self.add_module(f"relu_{name}", nn.ReLU())
            features = w[name]
        self.add_module(self.head, nn.Linear(features, num_classes))
        init_glorot_uniform_(self)

    def with_widths(self, widths: Mapping[str, int]) -> "DropNetModel":
        """Fresh network with other widths; units left out keep theirs."""
        return DropNetModel(
            self.variant,
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )


@torch.no_grad()
def init_glorot_uniform_(model: nn.Module) -> None:
    """Glorot uniform weights and zero biases in every convolution and linear layer, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
