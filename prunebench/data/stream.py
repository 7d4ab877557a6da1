"""Data sets too large for memory: images read from disk by worker processes, one batch ahead of training.

Batches are pure functions of (seed, step) as in `Data`: a sample's crop and flip depend on (seed, epoch,
image) alone, never on the worker that makes it or on what was read before.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunebench.core.run import generator, seeded
from prunebench.data.archives import Reader
from prunebench.data.draw import choose, choose_balanced
from prunebench.data.images import open_image
from prunebench.data.loader import flipped, part
from prunebench.data.normalize import Normalize

Files = tuple[Sequence[str], Tensor]  # names in the source, labels int64 [N]
Sample = tuple[Tensor, int]


class Images(Dataset):
    """Decoded, cropped uint8 images [C, size, size] with labels.

    A key is (seed, epoch, index) for a random crop (`RandomResizedCrop`: 8 % to 100 % of the area, aspect
    3/4 to 4/3; then a flip with probability 1/2 if `flip`), or (None, 0, index) for the centre crop.
    An unreadable image is returned as its ValueError: raised in a worker, it would come with a traceback.
    """

    def __init__(self, source: Path, files: Files, *, size: int, resize: int, channels: int, flip: bool):
        from torchvision.transforms import v2

        self.reader, self.names, self.labels = Reader(source), list(files[0]), files[1].tolist()
        self.mode = "RGB" if channels == 3 else "L"
        flips = [v2.RandomHorizontalFlip()] if flip else []
        self.augment = v2.Compose([v2.RandomResizedCrop(size), *flips, v2.PILToTensor()])
        self.center = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int | None, int, int]) -> Sample | ValueError:
        seed, epoch, index = key
        name = self.names[index]
        try:
            image = open_image(self.reader.read(name), f"{self.reader.source}: {name}").convert(self.mode)
        except ValueError as error:
            return error
        if seed is None:
            return self.center(image), self.labels[index]
        with seeded(seed, "data", epoch, index):
            return self.augment(image), self.labels[index]


def collate(samples: list[Sample | ValueError]) -> tuple[Tensor, Tensor] | ValueError:
    """Images uint8 [B, C, H, W] and labels int64 [B], or the first error among the samples."""
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def endless_keys(
    seed: int, step: int, *, images: int, batch_size: int, rank: int, world: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Keys (seed, epoch, index) of one rank's part of every training batch from `step` on, without end."""
    steps_per_epoch = math.ceil(images / batch_size)
    order, drawn = torch.empty(0), None
    for current in itertools.count(step):
        epoch, position = divmod(current, steps_per_epoch)
        if epoch != drawn:
            order = torch.randperm(images, generator=generator(seed, "data", epoch))
            drawn = epoch
        start = position * batch_size
        start, stop = part(start, min(start + batch_size, images), rank, world)
        yield [(seed, epoch, index) for index in order[start:stop].tolist()]


class StreamData:
    """Labelled images on disk, with the interface of `Data`.

    Args:
      name: name of the data set.
      source: folder or .zip that holds the files.
      train, valid, test: names of the files in it, with labels int64 [N]; valid and test may be empty.
      class_names: one name per label.
      mean, std: per channel (1 or 3), of pixels scaled to [0, 1].
      batch_size: training images in a batch, all devices together; at least 1.
      device: where batches go.
      size: side of the crops in pixels.
      resize: shorter side of an image before the centre crop of evaluation, in pixels.
      flip: mirror a training image left to right with probability 1/2.
      workers: processes that read images; 0 reads them in the training process. Changes no batch.
      true_labels: int64 [N] of the training images, where noise has changed the labels to train on; None if
        they are those.

    Attributes:
      shape, sizes, steps_per_epoch, memory_format, true_labels, flipped: as in `Data`.

    Raises:
      ValueError: if an argument is out of range or there is no training image.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Path,
        train: Files,
        valid: Files,
        test: Files,
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device,
        size: int = 224,
        resize: int = 256,
        flip: bool = True,
        workers: int = 4,
        true_labels: Tensor | None = None,
    ):
        for key, value, least in (
            ("dataset.size", size, 1),
            ("dataset.workers", workers, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"{key}={value}: must be at least {least}")
        if resize < size:
            raise ValueError(
                f"dataset.resize={resize}: must be at least dataset.size={size}, which is cut out of it"
            )
        splits = {"train": train, "valid": valid, "test": test}
        self.name, self.class_names, self.num_classes = name, tuple(class_names), len(class_names)
        self.batch_size, self.device, self.workers = batch_size, device, workers
        self.memory_format = torch.contiguous_format
        self.shape = (len(mean), size, size)
        self.sizes = {split: len(files) for split, (files, _) in splits.items()}
        if not self.sizes["train"]:
            raise ValueError(f"dataset={name}: has no training image left; lower dataset.validation")
        self.steps_per_epoch = math.ceil(self.sizes["train"] / batch_size)
        self._normalize = Normalize(mean, std, shape=self.shape, device=device)
        self._images = {
            split: Images(source, files, size=size, resize=resize, channels=len(mean), flip=flip)
            for split, files in splits.items()
        }
        self._labels = train[1]
        true_labels = train[1] if true_labels is None else true_labels
        self.true_labels, self.flipped = true_labels.to(device), flipped(train[1], true_labels)
        self._running: Iterator | None = None
        self._expected: tuple[int, int, int, int] | None = None  # seed, rank, world, step of its next batch

    def batch(self, seed: int, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Training batch of optimizer step `step`, as `Data.batch`.

        Consecutive steps come from running workers; any other step stops them and starts new ones there,
        without reading the batches before it.

        Raises:
          ValueError: if an image cannot be read (naming it), or `rank` does not lie in [0, world).
        """
        if self._expected != (seed, rank, world, step):
            self._running = None  # ends the old workers before new ones start
            keys = endless_keys(
                seed, step, images=self.sizes["train"], batch_size=self.batch_size, rank=rank, world=world
            )
            self._running = iter(self._loader("train", keys))
        read, self._expected = next(self._running), (seed, rank, world, step + 1)
        if isinstance(read, ValueError):
            self._running = self._expected = None
        return self._finish(read)

    def evaluation(self, split: str, *, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a split in a fixed order, resized and centre-cropped, as `Data.evaluation`."""
        if split not in self.sizes:
            raise ValueError(f"split={split}: must be one of {', '.join(self.sizes)}")
        size = self.sizes[split]
        batches = (range(start, min(start + batch_size, size)) for start in range(0, size, batch_size))
        yield from self._plain(split, batches)

    def scoring(
        self,
        generator: torch.Generator,
        *,
        batches: int = 1,
        batch_size: int | None = None,
        per_class: int | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Distinct random training images, resized and centre-cropped, as `Data.scoring`."""
        size = batch_size or self.batch_size
        if per_class is None:
            chosen = choose(generator, batches=batches, batch_size=size, images=self.sizes["train"])
        else:
            chosen = choose_balanced(
                generator, self._labels, per_class=per_class, class_names=self.class_names
            )
        return list(self._plain("train", [ids.tolist() for ids in chosen.flatten().split(size)]))

    def class_counts(self) -> list[int]:
        """Training images of each class."""
        return torch.bincount(self._labels, minlength=self.num_classes).tolist()

    def _plain(self, split: str, batches: Iterator[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        keys = ([(None, 0, index) for index in batch] for batch in batches)
        for batch in self._loader(split, keys):
            yield self._finish(batch)

    def _loader(self, split: str, keys: Iterator[list[tuple[int | None, int, int]]]) -> DataLoader:
        return DataLoader(
            self._images[split],
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else starting workers would draw from the global generator
        )

    def _finish(self, batch: tuple[Tensor, Tensor] | ValueError) -> tuple[Tensor, Tensor]:
        if isinstance(batch, ValueError):
            raise batch
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        return self._normalize(images, self.memory_format), labels
