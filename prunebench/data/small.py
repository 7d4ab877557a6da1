"""Data sets that need no files of their own: scikit-learn's digits, and images made from a seed."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunebench.core.run import generator
from prunebench.data.splits import balanced

TEST_EACH = 36  # test images per digit: 360 of 1,797

Split = tuple[Tensor, Tensor]


def read_digits() -> tuple[Split, Split]:
    """Training (1,437) and test (360) images uint8 [N, 1, 8, 8] with labels, of scikit-learn's digits.

    Source: the test part of the UCI "Optical Recognition of Handwritten Digits" data, 1,797 images of
    grey values 0..16, scaled here to 0..255. Of every digit 36 images, chosen once and for all, are the test
    set. The file is read without importing scikit-learn, which would take longer than a short run.

    Raises:
      ValueError: if scikit-learn is not installed or its file is damaged.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise ValueError(
            "dataset=digits: needs scikit-learn, which brings the images; run `pip install scikit-learn`"
        )
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); reinstall scikit-learn") from None
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    test = balanced(labels, TEST_EACH, 10, generator("digits", "test"))
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    return (images[train], labels[train]), (images[test], labels[test])


def make_images(
    *,
    train_images: int,
    test_images: int,
    num_classes: int,
    channels: int,
    size: int,
    noise: float,
    seed: int,
) -> tuple[Split, Split]:
    """Training and test images uint8 [N, C, size, size] that a small net can learn.

    Every class has one smooth random pattern of mean 1/2 (4 x 4 values, resampled bilinearly); an image
    is its class's pattern plus Gaussian noise at every pixel. Image i belongs to class i modulo C.

    Args:
      train_images, test_images: number of images.
      num_classes, channels, size: of the images, all at least 1.
      noise: standard deviation of the noise, of pixels in [0, 1].
      seed: decides patterns and noise.
    """
    rng = generator("synthetic", seed)
    coarse = torch.rand(num_classes, channels, 4, 4, generator=rng)
    patterns = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    splits = []
    for count in (train_images, test_images):
        labels = torch.arange(count) % num_classes
        pixels = patterns[labels] + noise * torch.randn(count, channels, size, size, generator=rng)
        splits.append((pixels.mul_(255).round_().clamp_(0, 255).byte(), labels))
    return splits[0], splits[1]
