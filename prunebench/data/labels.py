"""Label noise: wrong training labels, made once from a seed."""

from typing import Literal

import torch
from torch import Tensor

from prunebench.core.run import generator

NoiseKind = Literal["symmetric", "asymmetric", "pairflip"]

SIMILAR = {
    "mnist": {2: 7, 3: 8, 5: 6, 6: 5},
    "cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},
    "cifar100": {label: label + 1 if label % 5 < 4 else label - 4 for label in range(100)},
}


def add_label_noise(
    labels: Tensor, *, share: float, kind: NoiseKind, seed: int, num_classes: int, dataset: str
) -> Tensor:
    """Copy of `labels` in which a share is wrong.

    The kinds are those of "Sparse Double Descent" (arXiv 2206.08684, and its code):
      symmetric: round(share * N) labels become any *other* class, each with equal probability.
      pairflip: round(share * N) labels become the next class, i -> i + 1 modulo the number of classes.
      asymmetric: of each source class with n images, round(share * n) labels become the class that it
        is easily taken for. Classes that are no source keep their labels.
          MNIST: 2 -> 7, 3 -> 8, 5 <-> 6.
          CIFAR-10: truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse.
          CIFAR-100: the next class within groups of five consecutive labels, the last to the first.
    Different from that code: counts are exact and rounded to the nearest (to even at a half), where its
    pairflip and symmetric kinds draw every label with probability `share`. The paper's commands use yet
    another kind, ceil(share * N) labels drawn from *all* C classes; its wrong share is that of
    `symmetric` with share * (C - 1) / C, that is 0.18 for 20 % on ten classes.

    Args:
      labels: int64 [N], in [0, num_classes).
      share: share of labels to make wrong, in [0, 1).
      kind: see above.
      seed: decides which labels change and how; independent of the run's seed.
      num_classes: number of classes, at least 2 where share > 0.
      dataset: name of the data set, for `asymmetric`.

    Returns:
      int64 [N]; every changed label differs from the true one.

    Raises:
      ValueError: if an argument is out of range, or `asymmetric` is asked for a data set without a mapping.
    """
    check_label_noise(share, kind, dataset)
    if share == 0:
        return labels.clone()
    if num_classes < 2:
        raise ValueError(f"dataset.label_noise={share}: must be 0 for a data set of a single class")
    noisy = labels.clone()
    rng = generator("label_noise", kind, seed)
    if kind == "asymmetric":
        for source, target in SIMILAR[dataset].items():
            noisy[_sample(torch.nonzero(labels == source).flatten(), share, rng)] = target
        return noisy
    chosen = _sample(torch.arange(len(labels)), share, rng)
    offsets = torch.ones(len(chosen), dtype=torch.int64)
    if kind == "symmetric":
        offsets = torch.randint(1, num_classes, (len(chosen),), generator=rng)
    noisy[chosen] = (labels[chosen] + offsets) % num_classes
    return noisy


def check_label_noise(share: float, kind: str, dataset: str) -> None:
    """Raises the ValueError of `add_label_noise` that can be known before the data is read."""
    if not 0 <= share < 1:
        raise ValueError(f"dataset.label_noise={share}: must lie in [0, 1)")
    if kind not in ("symmetric", "asymmetric", "pairflip"):
        raise ValueError(f"dataset.noise_kind={kind}: must be symmetric, asymmetric or pairflip")
    if share and kind == "asymmetric" and dataset not in SIMILAR:
        raise ValueError(
            f"dataset.noise_kind=asymmetric: has no class mapping for {dataset}, only for "
            f"{', '.join(SIMILAR)}; use symmetric or pairflip"
        )


def _sample(candidates: Tensor, share: float, rng: torch.Generator) -> Tensor:
    order = torch.randperm(len(candidates), generator=rng)
    return candidates[order[: round(share * len(candidates))]]
