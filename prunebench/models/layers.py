"""Layers, entries and checks that several model families share."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.core.units import Junction, PrunableModel, Unit

# oneDNN's blocked layouts are 8 channels wide on AVX2; below that its strided 1x1 kernels write out of
# bounds.
SAFE_CHANNELS = 8


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution without padding whose strided form is safe on a CPU in channels_last format.

    A strided 1x1 convolution with fewer than 8 input channels corrupts memory there (oneDNN issue 6035).
    Slicing the input first and convolving with stride 1 gives the same values. Structured pruning makes such
    layers.

    Args:
      in_channels, out_channels: as in `nn.Conv2d`.
      stride: step in both directions; kept as the attribute `stride` whichever form is computed.
      bias: add a bias per output channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        step = self.stride[0]
        if step > 1 and self.in_channels < SAFE_CHANNELS:
            return F.conv2d(x[:, :, ::step, ::step], self.weight, self.bias)
        return super().forward(x)


class Chain(PrunableModel):
    """A network whose modules are called one after the other, in the order of construction.

    A family sets `widths` (unit name, which is that of its layer, -> channels, in order) and `head`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        for layer in self.children():
            x = layer(x)
        return x

    def units(self) -> list[Unit]:
        """Filters and hidden neurons, one unit per layer; a filter may feed side^2 columns of the next."""
        return [
            Unit(name, self.widths[name], self.made_by(name), ((f"{reader}.weight", 1),))
            for name, reader in pairwise([*self.widths, self.head])
        ]

    def made_by(self, name: str) -> tuple[tuple[str, int], ...]:
        """`Unit.made_by` entries of a layer: its weight's rows and its bias."""
        return layer_entries(name)


def has_unsafe_strided_1x1(model: nn.Module) -> bool:
    """Whether a strided 1x1 convolution reads fewer than 8 channels.

    Such a model must stay out of channels_last on a CPU, see `PointwiseConv2d`.

    Own families use `PointwiseConv2d` and never answer True. Ask again after every structural change.
    """
    return any(
        isinstance(module, nn.Conv2d)
        and not isinstance(module, PointwiseConv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < SAFE_CHANNELS
        for module in model.modules()
    )


def layer_entries(name: str) -> tuple[tuple[str, int], ...]:
    """`Unit.made_by` entries of a convolution or linear layer with bias: its weight's rows and its bias."""
    return (f"{name}.weight", 0), (f"{name}.bias", 0)


def norm_entries(name: str) -> tuple[tuple[str, int], ...]:
    """`Unit.made_by` entries of a BatchNorm: scale, shift and both running statistics."""
    return tuple((f"{name}.{entry}", 0) for entry in ("weight", "bias", "running_mean", "running_var"))


def residual_junctions(
    stem: str, blocks: Iterable[tuple[Sequence[str], str | None, tuple[int, int]]], head: str
) -> list[Junction]:
    """`PrunableModel.junctions` of a stem, residual blocks and a classifier, named by their weights.

    Args:
      stem: first convolution.
      blocks: the convolutions of the block in order; its projection shortcut, or None for an identity; and
        first channel and end of those that an identity shortcut writes ((0, 0) for a projection).
      head: classifier.
    """
    found, made_by, shortcut_in = [], (stem,), (0, 0)
    for convs, projection, writes in blocks:
        beside = () if projection is None else (projection,)
        found.append(Junction(made_by, (convs[0], *beside), shortcut_in, shortcut_out=projection is None))
        found += [Junction((maker,), (reader,)) for maker, reader in pairwise(convs)]
        made_by, shortcut_in = (convs[-1], *beside), writes
    return [*found, Junction(made_by, (head,), shortcut_in)]


def resolve_widths(default: dict[str, int], widths: Mapping[str, int] | None) -> dict[str, int]:
    """The family's own unit widths, with those given in `widths` in their place.

    Raises:
      ValueError: if a name is no unit of the model or a width is below 1.
    """
    widths = dict(widths or {})
    for name, width in widths.items():
        if name not in default:
            raise ValueError(
                f"widths={{{name!r}: {width}}}: must name units of the model: {', '.join(default)}"
            )
        if width < 1:
            raise ValueError(f"widths={{{name!r}: {width}}}: must be at least 1; a unit cannot vanish")
    return default | widths


@torch.no_grad()
def init_glorot_(model: nn.Module) -> None:
    """Glorot normal weights and zero biases in every convolution and linear layer, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def init_kaiming_(model: nn.Module) -> None:
    """Kaiming normal (fan_out, ReLU) weights and zero biases in every convolution, in place.

    BatchNorm keeps scale 1 and shift 0, linear layers PyTorch's own initialisation.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
