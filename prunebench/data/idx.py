"""Files in the idx format of MNIST (https://yann.lecun.com/exdb/mnist): plain or gzip-compressed."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path) -> np.ndarray:
    """Array of unsigned bytes stored in an idx file, in its own shape.

    Raises:
      ValueError: if the file cannot be read, is no idx file of unsigned bytes, or is too short or long.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}), truncated or damaged; fetch it again") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path}: is not an idx file of unsigned bytes; fetch it again")
    start = 4 + 4 * data[3]
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", offset=4, count=data[3]))
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: has {len(data) - start} bytes of data, not {math.prod(shape)} as its header says; "
            f"fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_idx(folders: list[Path]) -> dict[str, tuple[Path, Path]] | None:
    """Image and label file of "train" and "test" in the first folder that has all four, None if none has."""
    for folder in folders:
        found = {split: tuple(_existing(folder / stem) for stem in stems) for split, stems in STEMS.items()}
        if all(path for paths in found.values() for path in paths):
            return found
    return None


def read_split(paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 1, H, W] and labels int64 [N] of one split; ValueError as `read_idx`."""
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{paths[0]}: has {len(images)} images, {paths[1].name} {len(labels)} labels; fetch both again"
        )
    return images[:, None], labels.astype(np.int64)


def _existing(path: Path) -> Path | None:
    # torchvision and the original site use one spelling, some mirrors the other: train-images.idx3-ubyte
    other = path.with_name(path.name.replace("-idx", ".idx"))
    candidates = (path, other, path.with_name(path.name + ".gz"), other.with_name(other.name + ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
