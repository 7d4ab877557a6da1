"""Data sets that fit in memory: uint8 images on the device, shuffled and augmented a batch at a time.

Nothing here keeps random state: the order, shifts and flips of an epoch are drawn on the CPU from
(seed, epoch), so a batch is the same on every device and can be asked for in any order.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.data.draw import choose, choose_balanced, draw_epoch
from prunebench.data.normalize import Normalize

CACHE_BYTES = 64 * 2**20  # normalised evaluation splits up to this size are kept


def part(start: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """Bounds of the `rank`-th of `world` consecutive parts of [start, stop), as even as they can be."""
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank}: must lie in [0, world={world})")
    length = stop - start
    return start + length * rank // world, start + length * (rank + 1) // world


def flipped(labels: Tensor, true_labels: Tensor) -> float:
    """Share of the labels, int64 [N] with N of 1 or more, that are not the true ones."""
    return int(torch.count_nonzero(labels != true_labels)) / len(labels)


class Data:
    """Labelled images on the device, with random shifts and flips of the training split.

    Args:
      name: name of the data set.
      train, valid, test: images uint8 [N, C, H, W] with labels int64 [N]; valid and test may be empty.
      class_names: one name per label.
      mean, std: per channel, of pixels scaled to [0, 1].
      batch_size: training images in a batch, all devices together; at least 1.
      device: where images, labels and batches live.
      pad: zero pixels put around a training image before a crop of the old size is cut out at random;
        0 for none. The padding is black (pixel value 0) before normalisation.
      flip: mirror a training image left to right with probability 1/2.
      true_labels: int64 [N] of the training images, where noise has changed the labels to train on; None if
        they are those.

    Attributes:
      shape: (C, H, W).
      true_labels: as given, in the order of `evaluation("train")`, on the device.
      flipped: share of the training labels that are not true.
      sizes: number of images in "train", "valid" and "test".
      steps_per_epoch: ceil(train / batch_size); the last batch of an epoch may be smaller.
      memory_format: layout of the batches and of the stored images, torch.contiguous_format at first; set
        it to torch.channels_last for nets that want that. The values of a batch do not depend on it.

    Raises:
      ValueError: if there is no training image, an argument is out of range, or shapes disagree.
    """

    def __init__(
        self,
        *,
        name: str,
        train: tuple[Tensor, Tensor],
        valid: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device,
        pad: int = 0,
        flip: bool = False,
        true_labels: Tensor | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if pad < 0:
            raise ValueError(f"dataset.pad={pad}: must be 0 (no shifts) or a number of pixels")
        self.name, self.class_names, self.num_classes = name, tuple(class_names), len(class_names)
        self.batch_size, self.device, self.pad, self.flip = batch_size, device, pad, flip
        splits = {"train": train, "valid": valid, "test": test}
        self.sizes = {split: len(labels) for split, (_, labels) in splits.items()}
        if not self.sizes["train"]:
            raise ValueError(f"dataset={name}: has no training image left; lower dataset.validation")
        self.shape = tuple(train[0].shape[1:])
        self.steps_per_epoch = math.ceil(self.sizes["train"] / batch_size)
        self._normalize = Normalize(mean, std, shape=self.shape, device=device)
        padded = functional.pad(train[0], (pad, pad, pad, pad))
        self._images = {"train": padded.to(device), "valid": valid[0].to(device), "test": test[0].to(device)}
        self._labels = {split: labels.to(device) for split, (_, labels) in splits.items()}
        true_labels = train[1] if true_labels is None else true_labels
        self.true_labels, self.flipped = true_labels.to(device), flipped(train[1], true_labels)
        self._positions = torch.arange(batch_size, device=device)
        self.memory_format = torch.contiguous_format

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the batches."""
        return self._memory_format

    @memory_format.setter
    def memory_format(self, value: torch.memory_format) -> None:
        self._memory_format = value
        self._images = {name: images.contiguous(memory_format=value) for name, images in self._images.items()}
        self._drawn: tuple[int, int] | None = None  # (seed, epoch) of the table
        self._table = torch.empty(0)
        self._evaluation: dict[str, Tensor] = {}
        channels, height, width = self.shape
        tall, wide = height + 2 * self.pad, width + 2 * self.pad
        rows = torch.arange(height, device=self.device)
        if value is torch.channels_last:
            self._stride = channels  # bytes from a pixel to its right neighbour
            self._row_offsets = rows * (wide * channels)  # of a crop at the top left, in bytes
        else:
            self._stride = 1
            planes = torch.arange(channels, device=self.device)[:, None]
            self._row_offsets = (planes * (tall * wide) + rows * wide).flatten()

    def batch(self, seed: int, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Training batch of optimizer step `step` (0-based, over all epochs), a function of its arguments.

        Args:
          seed: the run's seed.
          step: 0-based optimizer step; its epoch is step // steps_per_epoch.
          rank, world: return only the `rank`-th of `world` consecutive parts of the batch. Together they
            are the whole batch; a part is empty where the batch has fewer images than `world`.

        Returns:
          images float32 [B, C, H, W], normalised and augmented, and labels int64 [B].

        Raises:
          ValueError: if `rank` does not lie in [0, world).
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        start, stop = part(start, min(start + self.batch_size, self.sizes["train"]), rank, world)
        order, corner, mirrored = self._tables(seed, epoch)[:, start:stop]
        if start == stop:
            return self._plain("train", order), order
        if self.pad or self.flip:
            pixels = self._crop(order, corner, mirrored)
        else:
            pixels = self._images_of(self._rows_of(self._images["train"]).index_select(0, order))
        return self._normalize(pixels, self.memory_format), self._labels["train"].index_select(0, order)

    def evaluation(self, split: str, *, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split in a fixed order, normalised and not augmented.

        Args:
          split: "train", "valid" or "test"; an empty split yields nothing.
          batch_size: images per batch; changes nothing else. The batches of a small split are views of
            a tensor kept for the next call: do not write into them.

        Raises:
          ValueError: if there is no such split.
        """
        if split not in self.sizes:
            raise ValueError(f"split={split}: must be one of {', '.join(self.sizes)}")
        cached = self._cached(split)
        for start in range(0, self.sizes[split], batch_size):
            stop = min(start + batch_size, self.sizes[split])
            images = cached[start:stop] if cached is not None else self._plain(split, slice(start, stop))
            yield images, self._labels[split][start:stop]

    def scoring(
        self,
        generator: torch.Generator,
        *,
        batches: int = 1,
        batch_size: int | None = None,
        per_class: int | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Distinct random training images without augmentation, for criteria that need data.

        Args:
          generator: where the choice is drawn from.
          batches: number of batches.
          batch_size: images per batch; None takes the training batch size.
          per_class: so many images of every class instead of `batches` whole batches; the last batch may be
            smaller.

        Returns:
          pairs of images float32 [B, C, H, W] and labels int64 [B].

        Raises:
          ValueError: if the training split has too few images, in all or of a class.
        """
        size = batch_size or self.batch_size
        if per_class is None:
            chosen = choose(generator, batches=batches, batch_size=size, images=self.sizes["train"])
        else:
            labels = self._labels["train"].cpu()
            chosen = choose_balanced(generator, labels, per_class=per_class, class_names=self.class_names)
        return [
            (self._plain("train", ids), self._labels["train"][ids])
            for ids in chosen.flatten().to(self.device).split(size)
        ]

    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return torch.bincount(self._labels["train"].cpu(), minlength=self.num_classes).tolist()

    def _tables(self, seed: int, epoch: int) -> Tensor:
        """int64 [3, N] on the device: image, first byte of the crop in it, 1 where it is mirrored."""
        if self._drawn != (seed, epoch):
            order, rows, columns, mirrored = draw_epoch(
                seed, epoch, self.sizes["train"], pad=self.pad, flip=self.flip
            )
            row_bytes = (self.shape[2] + 2 * self.pad) * self._stride
            table = torch.stack([order, rows * row_bytes + columns * self._stride, mirrored])
            if self.device.type == "cuda":  # from pinned memory, the copy does not stop the host
                table = table.pin_memory()
            self._table, self._drawn = table.to(self.device, non_blocking=True), (seed, epoch)
        return self._table

    def _crop(self, order: Tensor, corner: Tensor, mirrored: Tensor) -> Tensor:
        """Shifted and mirrored uint8 [B, C, H, W].

        Of the padded images, whole pixel rows are copied from where each crop begins, by one index_select
        over windows that start at every byte: on a CPU 1.8 times as fast as a gather along x. To
        mirror, the batch is reversed whole and each image taken from one of the two, as reversing is
        vectorised and choosing by element is not.
        """
        padded = self._rows_of(self._images["train"]).index_select(0, order)
        count, image_bytes = padded.shape
        length = self.shape[2] * self._stride
        windows = padded.as_strided((padded.numel() - length + 1, length), (1, 1))
        begins = torch.add(corner, self._positions[:count], alpha=image_bytes)
        rows = windows.index_select(0, (begins[:, None] + self._row_offsets).flatten())
        pixels = self._images_of(rows.view(count, -1))
        if not self.flip:
            return pixels
        both = self._rows_of(torch.cat([pixels, pixels.flip(3)]))
        return self._images_of(
            both.index_select(0, torch.add(self._positions[:count], mirrored, alpha=count))
        )

    def _rows_of(self, images: Tensor) -> Tensor:
        """Stored images [B, C, H, W] as [B, bytes], in the order of `memory_format`; a view."""
        if self.memory_format is torch.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.flatten(1)

    def _images_of(self, rows: Tensor) -> Tensor:
        """uint8 [B, C, H, W] without padding, the inverse of `_rows_of`."""
        channels, height, width = self.shape
        if self.memory_format is torch.channels_last:
            return rows.view(len(rows), height, width, channels).permute(0, 3, 1, 2)
        return rows.view(len(rows), channels, height, width)

    def _plain(self, split: str, which: slice | Tensor) -> Tensor:
        margin = self.pad if split == "train" else 0
        height, width = self.shape[1:]
        pixels = self._images[split][which][:, :, margin : margin + height, margin : margin + width]
        return self._normalize(pixels, self.memory_format)

    def _cached(self, split: str) -> Tensor | None:
        small = 4 * self.sizes[split] * math.prod(self.shape) <= CACHE_BYTES
        if split == "train" or not small or not self.sizes[split]:
            return None
        if split not in self._evaluation:
            self._evaluation[split] = self._plain(split, slice(None))
        return self._evaluation[split]
