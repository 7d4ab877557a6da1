"""Which images a run uses: subsets, the validation split and label noise, chosen by seeds of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.core.run import generator
from prunebench.data.labels import NoiseKind, add_label_noise, check_label_noise


@dataclass(frozen=True)
class Chosen:
    """Indices into the data set's own train (and valid) and test images, with the training labels to use.

    `true_labels` are those of the training images without noise.
    """

    train: Tensor
    train_labels: Tensor
    true_labels: Tensor
    valid: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options of a data set that choose images and labels, applied in this order.

    1. `subset` training images are taken, as many of each class, and likewise `test_subset` test images.
    2. Of those training images a plain random share `validation` is held out, as in BIMP's code
       (arXiv 2111.00843), which holds out 10 % with seed 42.
    3. `label_noise` changes labels of what is left for training, once, before everything else: they are the
       same in all phases of a run, and for all seeds of runs. Validation and test labels stay clean.

    Args:
      dataset: name of the data set.
      validation: share of the training images held out, in [0, 1).
      split_seed: decides which images are in the subsets and which are held out, for all runs alike.
      subset, test_subset: number of images, a multiple of the number of classes; None for all.
      label_noise: share of wrong (noise_kind=random: drawn again) training labels, in [0, 1).
      noise_kind: see `add_label_noise`.
      noise_seed: decides which labels are wrong, for all runs alike.

    Raises:
      ValueError: if a value is out of range.
    """

    dataset: str
    validation: float
    split_seed: int
    subset: int | None
    test_subset: int | None
    label_noise: float
    noise_kind: NoiseKind
    noise_seed: int

    def __post_init__(self):
        if not 0 <= self.validation < 1:
            raise ValueError(
                f"dataset.validation={self.validation}: must lie in [0, 1), the share of the training images "
                f"held out (0 for none)"
            )
        for key, count in (("subset", self.subset), ("test_subset", self.test_subset)):
            if count is not None and count < 1:
                raise ValueError(
                    f"dataset.{key}={count}: must be a positive number of images, or null for all"
                )
        check_label_noise(self.label_noise, self.noise_kind, self.dataset)

    def choose(
        self, train_labels: Tensor, test_labels: Tensor, num_classes: int, *, hold_out: bool = True
    ) -> Chosen:
        """Applies the options to the labels of a whole data set.

        Args:
          train_labels, test_labels: int64 [N] and [M], in [0, num_classes).
          num_classes: number of classes.
          hold_out: False where the data set brings a validation split of its own.

        Raises:
          ValueError: if a subset exceeds the data or cannot be balanced, or nothing is left to train on.
        """
        train = torch.arange(len(train_labels))
        test = torch.arange(len(test_labels))
        if self.subset is not None:
            train = self._balanced(train_labels, self.subset, num_classes, key="subset")
        if self.test_subset is not None:
            test = self._balanced(test_labels, self.test_subset, num_classes, key="test_subset")
        held = round(self.validation * len(train)) if hold_out else 0
        if held == len(train):
            raise ValueError(
                f"dataset.validation={self.validation}: must leave one of {held} training images"
            )
        order = torch.randperm(len(train), generator=generator("validation", self.split_seed))
        valid, train = train[order[:held].sort().values], train[order[held:].sort().values]
        noisy = add_label_noise(
            train_labels[train],
            share=self.label_noise,
            kind=self.noise_kind,
            seed=self.noise_seed,
            num_classes=num_classes,
            dataset=self.dataset,
        )
        return Chosen(train, train_labels=noisy, true_labels=train_labels[train], valid=valid, test=test)

    def _balanced(self, labels: Tensor, count: int, num_classes: int, *, key: str) -> Tensor:
        """Sorted int64 [count]: count / num_classes random images of every class."""
        if count % num_classes:
            below = count - count % num_classes
            near = f"{below} or {below + num_classes}" if below else str(num_classes)
            raise ValueError(
                f"dataset.{key}={count}: must be a multiple of the {num_classes} classes, such as {near}"
            )
        each = count // num_classes
        smallest = int(torch.bincount(labels, minlength=num_classes).min())
        if each > smallest:
            raise ValueError(
                f"dataset.{key}={count}: must not exceed {smallest * num_classes}, as the smallest class of "
                f"{self.dataset} has {smallest} images; use null for all"
            )
        return balanced(labels, each, num_classes, generator(key, self.split_seed))


def balanced(labels: Tensor, each: int, num_classes: int, rng: torch.Generator) -> Tensor:
    """Sorted indices int64 [each * num_classes] of `each` random entries of every label."""
    chosen = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label).flatten()
        chosen.append(members[torch.randperm(len(members), generator=rng)[:each]])
    return torch.cat(chosen).sort().values
