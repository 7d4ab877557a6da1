"""Pixels to network inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """Turns uint8 pixels into float32 inputs (x / 255 - mean) / std, channel by channel.

    Args:
      mean, std: one value per channel, of pixels scaled to [0, 1]; std > 0.
      shape: (C, H, W) of the images.
      device: where the pixels are.

    Raises:
      ValueError: if the number of values is not C or a std is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        shape: tuple[int, int, int],
        device: torch.device,
    ):
        channels, _, width = shape
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(
                    f"dataset.{key}={list(values)}: must have one value for each of {channels} channels"
                )
        if min(std) <= 0:
            raise ValueError(f"dataset.std={list(std)}: must be positive in every channel")
        mean, std = torch.tensor([list(mean), list(std)], dtype=torch.float64).mul_(255)
        # (mean, 1 / std) in units of pixel values, as columns [C, 1, 1] and as pixel rows [W * C]
        self._columns = [value.float().to(device)[:, None, None] for value in (mean, 1 / std)]
        self._rows = [value.flatten().repeat(width) for value in self._columns]

    def __call__(self, pixels: Tensor, memory_format: torch.memory_format) -> Tensor:
        """Normalised float32 copy of `pixels`, uint8 [B, C, H, W], laid out in `memory_format`."""
        images = pixels.to(torch.float32, memory_format=memory_format)
        # In place: 2.2 times as fast as three temporaries. Whole rows: 14 times as fast as broadcasting
        # over the innermost channels.
        if memory_format is torch.channels_last and images.shape[1] > 1:
            images.permute(0, 2, 3, 1).view(*images.shape[::2], -1).sub_(self._rows[0]).mul_(self._rows[1])
            return images
        return images.sub_(self._columns[0]).mul_(self._columns[1])
