"""Data sets by name: each function is the target of a file in conf/dataset.

Options that every function shares, and their order of effect, are described in `Selection` (subset,
test_subset, validation, split_seed, label_noise, noise_kind, noise_seed) and `Data` (pad, flip, mean, std,
batch_size, device). `size` resamples the images by area to size x size pixels; null keeps their size.
"""

from pathlib import Path
from typing import Literal

import torch

from prunebench.data.labels import NoiseKind
from prunebench.data.loader import Data
from prunebench.data.prepare import check_size, make_data
from prunebench.data.small import make_images, read_digits
from prunebench.data.splits import Selection
from prunebench.data.standard import read_standard


def standard(
    *,
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"],
    root: str,
    download: bool,
    validation: float,
    split_seed: int,
    subset: int | None,
    test_subset: int | None,
    size: int | None,
    label_noise: float,
    noise_kind: NoiseKind,
    noise_seed: int,
    pad: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    batch_size: int,
    device: torch.device,
) -> Data:
    """MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 or SVHN, in the files of their authors.

    Args:
      name: which one.
      root: folder with the files, as torchvision lays them out; the idx files of (Fashion-)MNIST may also
        lie in it directly, gzip-compressed or not. Fashion-MNIST is also found where Debian's package
        dataset-fashion-mnist puts it.
      download: fetch missing files to `root` through torchvision.
      validation ... device: see the module.

    Raises:
      ValueError: if the files are missing or damaged, or an option is out of range.
    """
    selection = Selection(
        dataset=name,
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    check_size(size)
    train, test, class_names = read_standard(name, Path(root).expanduser(), download=download)
    return make_data(
        selection,
        train,
        test,
        class_names,
        size=size,
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )


def digits(
    *,
    validation: float,
    split_seed: int,
    subset: int | None,
    test_subset: int | None,
    size: int | None,
    label_noise: float,
    noise_kind: NoiseKind,
    noise_seed: int,
    pad: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    batch_size: int,
    device: torch.device,
) -> Data:
    """The 1,797 images of scikit-learn's digits (see `read_digits`); options as in the module."""
    selection = Selection(
        dataset="digits",
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    check_size(size)
    train, test = read_digits()
    return make_data(
        selection,
        train,
        test,
        [str(digit) for digit in range(10)],
        size=size,
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )


def synthetic(
    *,
    train_images: int,
    test_images: int,
    num_classes: int,
    channels: int,
    size: int,
    noise: float,
    data_seed: int,
    validation: float,
    split_seed: int,
    subset: int | None,
    test_subset: int | None,
    label_noise: float,
    noise_kind: NoiseKind,
    noise_seed: int,
    pad: int,
    flip: bool,
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    device: torch.device,
) -> Data:
    """Images made from a seed, for tests; `make_images` has the first options, the module the others.

    Args:
      mean, std: null takes those of the training images.

    Raises:
      ValueError: if an option is out of range.
    """
    counts = {"train_images": train_images, "test_images": test_images, "num_classes": num_classes}
    for key, value in (counts | {"channels": channels, "size": size}).items():
        if value < 1:
            raise ValueError(f"dataset.{key}={value}: must be at least 1")
    if noise < 0:
        raise ValueError(f"dataset.noise={noise}: must be a standard deviation of at least 0")
    selection = Selection(
        dataset="synthetic",
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    train, test = make_images(**counts, channels=channels, size=size, noise=noise, seed=data_seed)
    return make_data(
        selection,
        train,
        test,
        [str(label) for label in range(num_classes)],
        size=None,
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )
