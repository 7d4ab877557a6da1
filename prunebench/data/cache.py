"""Decoded images kept on disk as uint8 .npy files, so that a data set is decoded once."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from prunebench.data.archives import names, unreadable

VERSION = 1  # of the decoded form: raise it when the same source would decode differently

Decoded = tuple[Sequence[str], dict[str, tuple[Sequence[np.ndarray], np.ndarray]]]
Stored = tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]


def cached(folder: Path, source: Path, options: dict, decode: Callable[[], Decoded]) -> Stored:
    """Decoded images of `source`, from the cache if it has them, else decoded now and put there.

    An entry is a folder named by the source and a hash of its path, size and modification time (of a
    folder: of all its files) and of the options. It appears complete, by a rename. Jobs that start side
    by side wait for each other, so that one decodes and the others read.

    Args:
      folder: the cache, made if it is missing.
      source: folder or archive that `decode` reads.
      options: what else the result depends on; JSON values.
      decode: returns class names and, for each split, images uint8 [C, H, W] and labels int64 [N].

    Returns:
      class names and, for each split, images uint8 [N, C, H, W], mapped from disk, and labels int64 [N].

    Raises:
      ValueError: if the source or the entry cannot be read, or the cache cannot be written.
    """
    from filelock import FileLock

    entry = folder / f"{source.name.split('.')[0]}-{_fingerprint(source, options)}"
    if not entry.is_dir():
        lock = FileLock(f"{entry}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise _not_writable(folder, error) from None
        try:
            if not entry.is_dir():
                _write(entry, *decode())
        finally:
            lock.release()
    return _read(entry)


def _fingerprint(source: Path, options: dict) -> str:
    try:
        files = [source]
        if source.is_dir():
            files = [source / name for name in names(source) if not name.endswith("/")]
        stamps = [(str(file.relative_to(source)), file.stat()) for file in files]
    except OSError as error:
        raise unreadable(source, error) from None
    key = [
        VERSION,
        str(source.resolve()),
        options,
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stamps],
    ]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _write(
    entry: Path, class_names: Sequence[str], splits: dict[str, tuple[Sequence[np.ndarray], np.ndarray]]
) -> None:
    partial = entry.with_name(f"{entry.name}.partial")  # ours alone, as the lock is held
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for split, (images, labels) in splits.items():
            np.save(partial / f"{split}-labels.npy", labels)
            with open(partial / f"{split}-images.npy", "wb") as file:
                # By writes, not through a memory map, where a full disk is a crash and not an error.
                shape = (len(images), *splits["train"][0][0].shape)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for image in images:
                    file.write(image.tobytes())
        (partial / "classes.json").write_text(json.dumps(list(class_names)))
        os.replace(partial, entry)
    except OSError as error:
        raise _not_writable(entry.parent, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(entry: Path) -> Stored:
    try:
        class_names = json.loads((entry / "classes.json").read_text())
        splits = {}
        for split in ("train", "valid", "test"):
            labels = np.load(entry / f"{split}-labels.npy")
            splits[split] = (
                np.load(entry / f"{split}-images.npy", mmap_mode="r" if len(labels) else None),
                labels,
            )
        return tuple(class_names), splits
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{entry}: damaged cache entry ({error}); delete this folder to decode again"
        ) from None


def _not_writable(folder: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or str(error)
    return ValueError(
        f"dataset.cache={folder}: cannot be written ({reason}); set it to a folder with free space"
    )
