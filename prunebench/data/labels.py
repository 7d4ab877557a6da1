"""Label noise: wrong training labels, made once from a seed."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from prunebench.core.run import generator

NoiseKind = Literal["symmetric", "asymmetric", "pairflip", "random"]

SIMILAR = {
    "mnist": {2: 7, 3: 8, 5: 6, 6: 5},
    "cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7},
    "cifar100": {label: label + 1 if label % 5 < 4 else label - 4 for label in range(100)},
}


def add_label_noise(
    labels: Tensor, *, share: float, kind: NoiseKind, seed: int, num_classes: int, dataset: str
) -> Tensor:
    """Copy of `labels` with noise.

    The kinds are those of "Sparse Double Descent" (arXiv 2206.08684, and its code):
      random: ceil(share * N) labels are drawn again, uniformly from *all* C classes. A share of about
        share * (C - 1) / C is wrong, 0.18 for 20 % on ten classes. The paper's commands use this kind.
      symmetric: round(share * N) labels become any *other* class, each with equal probability.
      pairflip: round(share * N) labels become the next class, i -> i + 1 modulo the number of classes.
      asymmetric: of each source class with n images, round(share * n) labels become the class that it
        is easily taken for. Classes that are no source keep their labels.
          MNIST: 2 -> 7, 3 -> 8, 5 <-> 6.
          CIFAR-10: truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse.
          CIFAR-100: the next class within groups of five consecutive labels, the last to the first.
    Different from that code: the other counts are exact and rounded to the nearest (to even at a half),
    where its pairflip and symmetric kinds draw every label with probability `share`; and all draws come from
    torch's generator, so that other labels are wrong than with NumPy's and the same seed.

    Args:
      labels: int64 [N], in [0, num_classes).
      share: share of labels to make wrong, or with `random` to draw again, in [0, 1).
      kind: see above.
      seed: decides which labels change and how; independent of the run's seed.
      num_classes: number of classes, at least 2 where share > 0.
      dataset: name of the data set, for `asymmetric`.

    Returns:
      int64 [N]. But for `random`, exactly the share differs from the true labels.

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
    if kind == "random":
        # ceil of the decimal number that was asked for: 0.07 * 100 is 7.000000000000001
        chosen = torch.randperm(len(labels), generator=rng)[: math.ceil(round(share * len(labels), 6))]
        noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=rng)
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
    if kind not in get_args(NoiseKind):
        raise ValueError(f"dataset.noise_kind={kind}: must be symmetric, asymmetric, pairflip or random")
    if share and kind == "asymmetric" and dataset not in SIMILAR:
        raise ValueError(
            f"dataset.noise_kind=asymmetric: has no class mapping for {dataset}, only for "
            f"{', '.join(SIMILAR)}; use symmetric, pairflip or random"
        )


def _sample(candidates: Tensor, share: float, rng: torch.Generator) -> Tensor:
    order = torch.randperm(len(candidates), generator=rng)
    return candidates[order[: round(share * len(candidates))]]
