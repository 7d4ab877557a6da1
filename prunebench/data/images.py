"""Labelled image trees `{train,val,test}/<class>/*`: found, checked, decoded, and kept decoded in a cache."""

import io
import posixpath
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunebench.data.archives import Reader, is_tar, members, names

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

Place = tuple[str, str, str]  # split, class, rest of the name
Layout = Callable[[str], Place | None]
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images uint8 [N, C, H, W], labels int64 [N]


def class_folders(name: str) -> Place | None:
    """Layout `[folder/]{train,val,valid,test}/<class>/...`: the place of a file, None for other files."""
    parts = name.split("/")
    for depth in (0, 1):
        if len(parts) > depth + 2 and parts[depth] in SPLITS:
            return SPLITS[parts[depth]], parts[depth + 1], "/".join(parts[depth + 2 :])
    return None


@dataclass(frozen=True)
class Tree:
    """The images of a data set, sorted by class and name, and so the same from a folder and any archive.

    Attributes:
      source: folder or archive.
      class_names: sorted; a label is an index into them.
      files: for "train", "valid" and "test", (name in the source, label) of every image; may be empty.
    """

    source: Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]


def arrange(source: Path, found: Iterable[str], layout: Layout) -> Tree:
    """Sorts the names of files and folders of `source` into splits and classes.

    Where there is a validation split but no test split, it is the test split.

    Raises:
      ValueError: if there are no images, no training or no test images, an empty class folder, or a test
        class that training lacks.
    """
    placed: dict[Place, str] = {}
    folders: set[tuple[str, str]] = set()
    for name in found:
        is_folder = name.endswith("/")
        place = layout(name + "x") if is_folder else layout(name)
        if is_folder and place:
            folders.add(place[:2])
        elif place and is_image(name):
            placed[place] = name
    full = {place[:2] for place in placed}
    if not placed:
        raise ValueError(
            f"{source}: has no images in {{train,val,test}}/<class>/; set dataset.root to such a tree"
        )
    if empty := sorted(folders - full):
        raise ValueError(f"{source}: class folder {'/'.join(empty[0])} has no images; remove or fill it")
    class_names = tuple(sorted({name for split, name in full if split == "train"}))
    if not class_names:
        raise ValueError(f"{source}: has no training images; put them in train/<class>/")
    if len({split for split, _ in full}) == 1:
        raise ValueError(f"{source}: has train but no test images; put them in test/<class>/ or val/<class>/")
    if unknown := sorted({name for _, name in full} - set(class_names)):
        raise ValueError(
            f"{source}: class {unknown[0]} has test but no training images; put some in train/{unknown[0]}/"
        )
    label = {name: index for index, name in enumerate(class_names)}
    files: dict[str, list[tuple[str, int]]] = {"train": [], "valid": [], "test": []}
    for place in sorted(placed):
        files[place[0]].append((placed[place], label[place[1]]))
    if not files["test"]:
        files["test"], files["valid"] = files["valid"], []
    return Tree(source=source, class_names=class_names, files=files)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image and not of an archiver's or the system's own file."""
    base = posixpath.basename(name)
    return base.lower().endswith(IMAGE_ENDINGS) and not base.startswith(".") and "__MACOSX" not in name


def open_image(data: bytes, name: str):
    """Decoded PIL image in mode L (grey) or RGB; ValueError naming the file if it is damaged or not 8 bit."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode in DEEP_MODES:
            raise ValueError(f"mode {image.mode} has more than 8 bits, convert it first")
        return (
            image
            if image.mode in ("L", "RGB")
            else image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        )
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image file" if unknown else " ".join(str(error).split())
        raise ValueError(f"{name}: cannot be decoded ({reason}); repair or remove this image") from None


def decode(data: bytes, name: str, size: int | None) -> np.ndarray:
    """uint8 [C, H, W] with C = 1 or 3; with `size`, the central square resampled by area to size x size.

    Raises:
      ValueError: naming the file, if it is not a readable 8-bit image.
    """
    image = open_image(data, name)
    if size is not None and image.size != (size, size):
        from PIL import Image

        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_all(
    source: Path, layout: Layout, *, size: int | None, channels: int | None, max_bytes: int
) -> tuple[tuple[str, ...], dict[str, tuple[list[np.ndarray], np.ndarray]]]:
    """Every image of a tree, decoded in one pass over the source.

    Args:
      source: folder or archive.
      layout: place of a file.
      size: side in pixels, or None to keep the images, which must then be of one size.
      channels: 1 or 3; None takes 1 if all images are grey, else 3.
      max_bytes: give up beyond this many decoded bytes.

    Returns:
      class names, and for each split the images, each uint8 [C, H, W], with their labels int64 [N].

    Raises:
      ValueError: if the source or an image is damaged, images differ in size, or `max_bytes` is exceeded.
    """
    decoded: dict[str, np.ndarray] = {}
    found: list[str] = []
    total, first = 0, None

    def wanted(name: str) -> bool:
        return layout(name + "x" * name.endswith("/")) is not None and (name.endswith("/") or is_image(name))

    for name, data in members(source, wanted):
        found.append(name)
        if name.endswith("/"):
            continue
        pixels = decode(data, f"{source}: {name}", size)
        if channels == 1 and len(pixels) == 3:
            raise ValueError(f"dataset.channels=1: must be 3 or null, as {source}: {name} is a colour image")
        first = first or (name, pixels.shape[1:])
        if pixels.shape[1:] != first[1]:
            raise ValueError(
                f"dataset.size=null: must be a number of pixels, as {source} has images of different sizes "
                f"({first[0]} {first[1][1]}x{first[1][0]}, {name} {pixels.shape[2]}x{pixels.shape[1]})"
            )
        decoded[name] = pixels
        total += pixels.nbytes
        if total > max_bytes:
            raise ValueError(
                f"dataset.max_bytes={max_bytes}: must be raised, as {source} is larger decoded; or set a "
                f"smaller dataset.size, or unpack it to a folder, which can be streamed"
            )
    tree = arrange(source, found, layout)
    channels = channels or max(len(pixels) for pixels in decoded.values())
    shape = (channels, *first[1])
    return tree.class_names, {
        split: (
            [np.broadcast_to(decoded[name], shape) for name, _ in files],
            np.array([label for _, label in files], dtype=np.int64),
        )
        for split, files in tree.files.items()
    }


def tree_to_stream(
    source: Path, layout: Layout, *, size: int | None, channels: int | None, max_bytes: int
) -> Tree | None:
    """The tree of a source that would be larger than `max_bytes` decoded, None if it fits.

    The first training image stands for all. A tar says how large it is only when it is read: None.
    """
    if is_tar(source):
        return None
    tree = arrange(source, names(source), layout)
    name = tree.files["train"][0][0]
    pixels = decode(Reader(source).read(name), f"{source}: {name}", size)
    images = sum(len(files) for files in tree.files.values())
    return tree if images * pixels[0].size * (channels or len(pixels)) > max_bytes else None
