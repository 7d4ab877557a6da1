"""Which training images come next, and which score weights: choices that depend on the seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunebench.core.run import generator


def draw_epoch(seed: int, epoch: int, images: int, *, pad: int, flip: bool) -> Tensor:
    """Random choices of one epoch, in the order in which its images are visited.

    Args:
      seed: the run's seed.
      epoch: 0-based epoch.
      images: number of training images N.
      pad: margin in pixels, so that shifts lie in [0, 2 * pad].
      flip: whether half of the images are mirrored.

    Returns:
      int64 [4, N] on the CPU: image index (a permutation), first row and first column of the crop in
      the padded image, and 1 where the image is mirrored left to right.
    """
    rng = generator(seed, "data", epoch)
    order = torch.randperm(images, generator=rng)
    rows = torch.randint(2 * pad + 1, (images,), generator=rng)
    columns = torch.randint(2 * pad + 1, (images,), generator=rng)
    mirrored = torch.randint(2 if flip else 1, (images,), generator=rng)
    return torch.stack([order, rows, columns, mirrored])


def choose(generator: torch.Generator, *, batches: int, batch_size: int, images: int) -> Tensor:
    """int64 [batches, batch_size], distinct, out of `images` training images; ValueError if too few."""
    if not 1 <= batches * batch_size <= images:
        raise ValueError(
            f"batches={batches}: {batches} x {batch_size} scoring images must lie in [1, {images}], the size "
            f"of the training split; lower the criterion's batches or the batch size"
        )
    order = torch.randperm(images, generator=generator, device=generator.device)
    return order[: batches * batch_size].view(batches, batch_size)


def choose_balanced(
    generator: torch.Generator, labels: Tensor, *, per_class: int, class_names: Sequence[str]
) -> Tensor:
    """int64 [classes * per_class] of distinct training images, in random order; ValueError if too few."""
    order = torch.randperm(len(labels), generator=generator, device=generator.device)
    chosen = []
    for label, name in enumerate(class_names):
        members = order[labels[order] == label]
        if not 1 <= per_class <= len(members):
            raise ValueError(
                f"per_class={per_class}: must lie in [1, {len(members)}], the training images of class {name}"
            )
        chosen.append(members[:per_class])
    return order[torch.isin(order, torch.cat(chosen))]
