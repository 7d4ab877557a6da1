"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998), as used in the pruning literature."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from prunebench.core.units import PrunableModel, Unit
from prunebench.models.layers import init_glorot_, layer_entries, resolve_widths

LENET5_CHANNELS = {
    "caffe": {"conv1": 20, "conv2": 50, "fc1": 500},
    "lecun": {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84},
}


class LeNet300(PrunableModel):
    """LeNet-300-100: a fully connected net with 300 and 100 hidden neurons on the flattened image.

    266,610 parameters at 28x28x1. Any image size and number of channels will do. Glorot normal weights and
    zero biases, as in the lottery ticket paper (arXiv 1803.03635, figure 2).

    Args:
      widths: neurons of the hidden layers `fc1` and `fc2`, by name; those left out keep 300 and 100.
      in_channels, num_classes, image_size: of the data; images are square.

    Raises:
      ValueError: if `widths` names no hidden layer or holds a width below 1.
    """

    head = "fc3"

    def __init__(
        self, widths: dict[str, int] | None = None, *, in_channels: int, num_classes: int, image_size: int
    ):
        super().__init__()
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.widths = w = resolve_widths({"fc1": 300, "fc2": 100}, widths)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_channels * image_size**2, w["fc1"])
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(w["fc1"], w["fc2"])
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(w["fc2"], num_classes)
        init_glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        x = self.relu1(self.fc1(self.flatten(x)))
        return self.fc3(self.relu2(self.fc2(x)))

    def units(self) -> list[Unit]:
        """The hidden neurons, one unit per layer."""
        return [
            Unit("fc1", self.widths["fc1"], layer_entries("fc1"), (("fc2.weight", 1),)),
            Unit("fc2", self.widths["fc2"], layer_entries("fc2"), (("fc3.weight", 1),)),
        ]

    def with_widths(self, widths: Mapping[str, int]) -> "LeNet300":
        """Fresh network with other widths; units left out keep theirs."""
        return LeNet300(
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )


class LeNet5(PrunableModel):
    """LeNet-5 with ReLU and max-pooling, in the two versions that papers call by this name.

    `caffe` (20-50-500, no padding) has 431,080 parameters at 28x28x1, `lecun` (6-16-120-84, first convolution
    padded by 2) has 61,706. All kernels are 5x5. Glorot normal weights and zero biases.

    Args:
      variant: which version.
      widths: unit name -> channels or neurons; those left out keep the version's own.
      in_channels, num_classes, image_size: of the data; images are square, at least 28x28.

    Raises:
      ValueError: if the images are smaller than 28x28, `variant` is unknown or `widths` does not fit.
    """

    def __init__(
        self,
        variant: Literal["caffe", "lecun"] = "caffe",
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if variant not in LENET5_CHANNELS:
            raise ValueError(f"variant={variant}: must be one of {', '.join(LENET5_CHANNELS)}")
        if image_size < 28:
            raise ValueError(
                f"model=lenet5: needs images of at least 28x28, got {image_size}x{image_size}; "
                "choose dataset.size=28 or model=lenet300"
            )
        self.variant = variant
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.widths = w = resolve_widths(LENET5_CHANNELS[variant], widths)
        padding = 2 if variant == "lecun" else 0
        side = ((image_size + 2 * padding - 4) // 2 - 4) // 2  # after two 5x5 convolutions and two poolings

        self.conv1 = nn.Conv2d(in_channels, w["conv1"], 5, padding=padding)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(w["conv1"], w["conv2"], 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(w["conv2"] * side**2, w["fc1"])
        self.relu3 = nn.ReLU()
        if variant == "lecun":
            self.fc2 = nn.Linear(w["fc1"], w["fc2"])
            self.relu4 = nn.ReLU()
            self.fc3 = nn.Linear(w["fc2"], num_classes)
        else:
            self.fc2 = nn.Linear(w["fc1"], num_classes)
        self.head = "fc3" if variant == "lecun" else "fc2"
        init_glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.fc2(self.relu3(self.fc1(self.flatten(x))))
        return self.fc3(self.relu4(x)) if self.variant == "lecun" else x

    def units(self) -> list[Unit]:
        """Filters and hidden neurons by layer; a filter of `conv2` feeds side^2 columns of `fc1`."""
        names = [*self.widths, self.head]
        return [
            Unit(name, self.widths[name], layer_entries(name), ((f"{reader}.weight", 1),))
            for name, reader in pairwise(names)
        ]

    def with_widths(self, widths: Mapping[str, int]) -> "LeNet5":
        """Fresh network with other widths; units left out keep theirs."""
        return LeNet5(
            self.variant,
            self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
