"""Tiny-ImageNet, whose validation labels are in a text file. Shared options are described in `datasets`."""

import urllib.request
from pathlib import Path

import torch

from prunebench.data.archives import is_archive, members
from prunebench.data.folders import decoded
from prunebench.data.images import Layout, Place, class_folders
from prunebench.data.labels import NoiseKind
from prunebench.data.loader import Data
from prunebench.data.prepare import check_size
from prunebench.data.splits import Selection
from prunebench.data.standard import missing

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
STEM = "tiny-imagenet-200"
MAX_BYTES = 4 * 10**9  # more than all its images decoded


def tiny_imagenet(
    *,
    root: str,
    download: bool,
    cache: str,
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
    """Tiny-ImageNet: 100,000 training images of 200 classes, 64x64; its validation images are the test split.

    Args:
      root: the folder tiny-imagenet-200, tiny-imagenet-200.zip, or the folder that has one of them. Both
        the original val/images with val_annotations.txt and val/<class>/ are understood.
      download: fetch the .zip (237 MB) into `root` if there is neither.
      cache: folder for the decoded images.

    Raises:
      ValueError: if the files are missing or damaged, or an option is out of range.
    """
    selection = Selection(
        dataset="tiny_imagenet",
        validation=validation,
        split_seed=split_seed,
        subset=subset,
        test_subset=test_subset,
        label_noise=label_noise,
        noise_kind=noise_kind,
        noise_seed=noise_seed,
    )
    check_size(size)
    source = find_tiny(Path(root).expanduser(), download=download)
    return decoded(
        selection,
        source,
        cache,
        tiny_layout(source),
        {"size": size, "channels": 3, "max_bytes": MAX_BYTES},
        pad=pad,
        flip=flip,
        mean=mean,
        std=std,
        batch_size=batch_size,
        device=device,
    )


def find_tiny(root: Path, *, download: bool) -> Path:
    """Folder or archive with the images, at `root` or in it, fetched if need be; ValueError if none."""
    if (root.is_file() and is_archive(root)) or (root / "train").is_dir():
        return root
    zipped = root / f"{STEM}.zip"
    for candidate in (root / STEM, zipped):
        if candidate.exists():
            return candidate
    if not download:
        raise missing("tiny_imagenet", root, f"neither {STEM}/ nor {STEM}.zip")
    partial = root / f"{STEM}.zip.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(URL, partial)
        return partial.replace(zipped)
    except OSError as error:
        raise missing("tiny_imagenet", root, f"download failed: {error}") from None


def tiny_layout(source: Path) -> Layout:
    """`class_folders`, but val/images/* have classes from val_annotations.txt; without unlabelled test/."""
    classes: dict[str, str] = {}
    for _, text in members(source, lambda name: name.endswith("val/val_annotations.txt")):
        rows = (line.split("\t") for line in text.decode(errors="replace").splitlines())
        classes |= {row[0]: row[1] for row in rows if len(row) > 1}

    def layout(name: str) -> Place | None:
        place = class_folders(name)
        if place is None or place[0] == "test":
            return None
        if place[0] == "valid" and place[1] == "images":
            return ("valid", classes[place[2]], place[2]) if place[2] in classes else None
        return place

    return layout
