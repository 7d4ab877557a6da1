"""Readers of the data sets that torchvision can fetch: (Fashion-)MNIST, CIFAR-10, CIFAR-100, SVHN."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunebench.data.idx import find_idx, read_split

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
DIGITS = tuple(str(digit) for digit in range(10))

Split = tuple[np.ndarray, Tensor]


def read_standard(name: str, root: Path, *, download: bool) -> tuple[Split, Split, tuple[str, ...]]:
    """Training and test images uint8 [N, C, H, W] with labels int64 [N], and the class names.

    The idx files of (Fashion-)MNIST are read by ourselves, so torchvision is imported only to fetch them.

    Args:
      name: a key of `TORCHVISION`.
      root: folder with the files.
      download: fetch what is missing.

    Raises:
      ValueError: if files are missing, damaged or cannot be fetched, or there is no such data set.
    """
    if name not in TORCHVISION:
        raise ValueError(f"dataset.name={name}: must be one of {', '.join(TORCHVISION)}")
    if name in ("mnist", "fashion_mnist"):
        return _read_idx_set(name, root, download=download)
    return _read_with_torchvision(name, root, download=download)


def missing(name: str, root: Path, reason: str) -> ValueError:
    """The one-line ValueError for absent data, with all ways to get it."""
    debian = ", run `apt-get install dataset-fashion-mnist`" if name == "fashion_mnist" else ""
    return ValueError(
        f"dataset.root={root}: {name} is not there ({reason}); set dataset.download=true with a network, "
        f"put the files there{debian}, or use dataset=digits, which needs none"
    )


def _read_idx_set(name: str, root: Path, *, download: bool) -> tuple[Split, Split, tuple[str, ...]]:
    raw = root / TORCHVISION[name] / "raw"
    folders = [root, raw, root / name, root / name.replace("_", "-")]
    if name == "fashion_mnist":
        folders.append(DEBIAN_FASHION_MNIST)
    found = find_idx(folders)
    if found is None and download:
        _torchvision(name, root, download=True, train=True)
        found = find_idx([raw])
    if found is None:
        raise missing(name, root, "no idx files")
    splits = [(images, torch.from_numpy(labels)) for images, labels in map(read_split, found.values())]
    return splits[0], splits[1], FASHION_CLASSES if name == "fashion_mnist" else DIGITS


def _read_with_torchvision(name: str, root: Path, *, download: bool) -> tuple[Split, Split, tuple[str, ...]]:
    splits, class_names = [], DIGITS
    for split in ("train", "test"):
        which = {"split": split} if name == "svhn" else {"train": split == "train"}
        data = _torchvision(name, root, download=download, **which)
        if name == "svhn":
            images, labels = data.data, data.labels
        else:
            images, labels, class_names = data.data.transpose(0, 3, 1, 2), data.targets, tuple(data.classes)
        splits.append((images, torch.as_tensor(labels, dtype=torch.int64)))
    return splits[0], splits[1], class_names


def _torchvision(name: str, root: Path, *, download: bool, **which: object):
    """The torchvision data set, fetched if need be; files with a wrong checksum count as missing."""
    from torchvision import datasets

    try:
        return getattr(datasets, TORCHVISION[name])(root, download=download, **which)
    except (OSError, RuntimeError) as error:
        reason = "download failed" if download else "no files with the right checksum"
        raise missing(
            name, root, f"{reason}: {' '.join(str(error).split())}" if download else reason
        ) from None
