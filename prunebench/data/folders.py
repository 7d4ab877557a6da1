"""Data sets that are trees of image files: ImageNet, and any folder or archive.

Shared options are described in `datasets`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from prunebench.data.cache import cached
from prunebench.data.images import Layout, Tree, class_folders, decode_all, tree_to_stream
from prunebench.data.labels import NoiseKind
from prunebench.data.loader import Data
from prunebench.data.prepare import check_size, make_data
from prunebench.data.splits import Selection
from prunebench.data.stream import StreamData

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(
    *,
    root: str,
    cache: str,
    max_bytes: int,
    workers: int,
    channels: int | None,
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
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    device: torch.device,
) -> Data | StreamData:
    """Images in `root/{train,val|valid|test}/<class>/`, in a folder, a .zip or a .tar(.gz, .xz, .bz2).

    Decoded once and kept in `cache`. With both a validation and a test folder, the first is the validation
    split and `validation` has no effect; with one of them, it is the test split.

    Args:
      root: folder or archive.
      cache: folder for the decoded images.
      max_bytes: if the images would take more than this when decoded, they are read from disk all along
        (folders and .zip only), with random crops of size (224 where null) in place of `pad`.
      workers: processes that read images then.
      channels: 1 or 3; null takes 1 if all images are grey (3 where they are read from disk all along).
      size: null keeps the images, which must then be of one size; else the central square is resampled.
      mean, std: null takes those of the training images (of ImageNet where read from disk all along).

    Raises:
      ValueError: if the source or an image cannot be read, the tree has no images to train or test on, the
        cache cannot be written, or an option is out of range.
    """
    selection = Selection(
        dataset="image_folder",
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    check_size(size)
    if channels not in (None, 1, 3):
        raise ValueError(f"dataset.channels={channels}: must be 1, 3 or null")
    if max_bytes < 1:
        raise ValueError(f"dataset.max_bytes={max_bytes}: must be at least 1")
    source = Path(root).expanduser()
    options = {"size": size, "channels": channels, "max_bytes": max_bytes}
    if tree := tree_to_stream(source, class_folders, **options):
        return _stream(
            selection,
            tree,
            size=size or 224,
            resize=round((size or 224) * 256 / 224),
            flip=flip,
            mean=mean or IMAGENET_MEAN[: channels or 3],
            std=std or IMAGENET_STD[: channels or 3],
            workers=workers,
            batch_size=batch_size,
            device=device,
        )
    return decoded(
        selection,
        source,
        cache,
        class_folders,
        options,
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )


def imagenet(
    *,
    root: str,
    workers: int,
    validation: float,
    split_seed: int,
    subset: int | None,
    test_subset: int | None,
    size: int,
    resize: int,
    label_noise: float,
    noise_kind: NoiseKind,
    noise_seed: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    batch_size: int,
    device: torch.device,
) -> StreamData:
    """ImageNet in `root/{train,val}/<wnid>/`, read from disk all along; its val images are the test split.

    Args:
      root: folder or .zip.
      workers: processes that read images.
      size, resize, flip: see `StreamData`.

    Raises:
      ValueError: if the tree is missing or incomplete, or an option is out of range.
    """
    selection = Selection(
        dataset="imagenet",
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    tree = tree_to_stream(Path(root).expanduser(), class_folders, size=None, channels=3, max_bytes=0)
    if tree is None:
        raise ValueError(
            f"dataset.root={root}: must be a folder or .zip, as a .tar cannot be read in random order"
        )
    return _stream(
        selection,
        tree,
        size=size,
        resize=resize,
        flip=flip,
        mean=mean,
        std=std,
        workers=workers,
        batch_size=batch_size,
        device=device,
    )


def decoded(
    selection: Selection,
    source: Path,
    cache: str,
    layout: Layout,
    options: dict[str, int | None],
    *,
    pad: int,
    flip: bool,
    mean: list[float] | None,
    std: list[float] | None,
    batch_size: int,
    device: torch.device,
) -> Data:
    """`Data` of a tree, decoded unless cached; `options`: size, channels, max_bytes of `decode_all`."""
    kept = {key: options[key] for key in ("size", "channels")}
    class_names, arrays = cached(
        Path(cache).expanduser(), source, kept, lambda: decode_all(source, layout, **options)
    )
    splits = {split: (images, torch.from_numpy(labels)) for split, (images, labels) in arrays.items()}
    return make_data(
        selection,
        splits["train"],
        splits["test"],
        class_names,
        valid=splits["valid"] if len(splits["valid"][1]) else None,
        size=None,
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )


def _stream(
    selection: Selection,
    tree: Tree,
    *,
    size: int,
    resize: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    workers: int,
    batch_size: int,
    device: torch.device,
) -> StreamData:
    names = {split: [name for name, _ in files] for split, files in tree.files.items()}
    labels = {
        split: torch.tensor([label for _, label in files]).long() for split, files in tree.files.items()
    }
    chosen = selection.choose(
        labels["train"], labels["test"], len(tree.class_names), hold_out=not names["valid"]
    )
    valid = (names["valid"], labels["valid"])
    if not names["valid"]:
        valid = ([names["train"][index] for index in chosen.valid.tolist()], labels["train"][chosen.valid])
    return StreamData(
        name=selection.dataset,
        source=tree.source,
        train=([names["train"][index] for index in chosen.train.tolist()], chosen.train_labels),
        true_labels=chosen.true_labels,
        valid=valid,
        test=([names["test"][index] for index in chosen.test.tolist()], labels["test"][chosen.test]),
        class_names=tree.class_names,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
        size=size,
        resize=resize,
        flip=flip,
        workers=workers,
    )
