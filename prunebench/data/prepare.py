"""From the images of a whole data set to the `Data` that a run uses."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunebench.data.loader import Data
from prunebench.data.splits import Selection

CHUNK = 1000  # images resampled at a time

Split = tuple[Tensor | np.ndarray, Tensor]  # images uint8 [N, C, H, W], labels int64 [N]


def make_data(
    selection: Selection,
    train: Split,
    test: Split,
    class_names: Sequence[str],
    *,
    size: int | None,
    pad: int,
    flip: bool,
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    device: torch.device,
    valid: Split | None = None,
) -> Data:
    """`Data` of the images that `selection` takes from a whole data set.

    Args:
      selection: the options that choose images and labels.
      train, test: the data set's own splits.
      class_names: one name per label.
      size: side to resample to, or None.
      mean, std: None takes those of the training images in use.
      valid: the data set's own validation split; None holds one out of `train`.
      pad, flip, batch_size, device: see `Data`.

    Raises:
      ValueError: if an option is out of range.
    """
    chosen = selection.choose(train[1], test[1], len(class_names), hold_out=valid is None)
    images = resize(take(train[0], chosen.train), size)
    if valid is None:
        valid_images, valid_labels = take(train[0], chosen.valid), train[1][chosen.valid]
    else:
        valid_images, valid_labels = take(valid[0], torch.arange(len(valid[1]))), valid[1]
    measured = statistics(images) if mean is None or std is None else ([], [])
    return Data(
        name=selection.dataset,
        train=(images, chosen.train_labels),
        true_labels=chosen.true_labels,
        valid=(resize(valid_images, size), valid_labels),
        test=(resize(take(test[0], chosen.test), size), test[1][chosen.test]),
        class_names=class_names,
        mean=measured[0] if mean is None else mean,
        std=measured[1] if std is None else std,
        batch_size=batch_size,
        device=device,
        pad=pad,
        flip=flip,
    )


def take(images: Tensor | np.ndarray, indices: Tensor) -> Tensor:
    """Copy of the images at `indices`, int64 [B], as a tensor; of an array on disk only those are read."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images[indices.numpy()])
    return images[indices]


def check_size(size: int | None) -> None:
    """ValueError unless `size` is None or a positive number of pixels."""
    if size is not None and size < 1:
        raise ValueError(f"dataset.size={size}: must be at least 1 pixel, or null to keep the images' size")


def resize(images: Tensor, size: int | None) -> Tensor:
    """Images uint8 [N, C, H, W] resampled by area to size x size, rounded; unchanged if `size` is None."""
    if size is None or images.shape[2:] == (size, size) or not len(images):
        return images if size is None or len(images) else images.new_empty(0, images.shape[1], size, size)
    chunks = [
        functional.interpolate(chunk.float(), (size, size), mode="area") for chunk in images.split(CHUNK)
    ]
    return torch.cat([chunk.round_().byte() for chunk in chunks])


def statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel of uint8 [N, C, H, W], of pixels scaled to [0, 1].

    Computed from counts of the 256 values, so exact and the same for every order of the images. A channel
    of one value only gets standard deviation 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float((share * values).sum())
        means.append(mean)
        stds.append(float((share * (values - mean) ** 2).sum().sqrt()) or 1.0)
    return means, stds
