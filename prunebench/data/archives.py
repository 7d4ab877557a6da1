"""Files of a folder, .zip or .tar(.gz, .xz, .bz2), read in place without unpacking to disk."""

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

OPENERS = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
}
DAMAGED = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    NotImplementedError,
)


def is_archive(path: Path) -> bool:
    """Whether the name ends like an archive that `members` reads."""
    return path.name.endswith((".zip", *OPENERS))


def is_tar(path: Path) -> bool:
    """Whether `path` is read as a tar: from front to back only, so that it cannot be streamed at random."""
    return path.is_file() and path.name.endswith(tuple(OPENERS))


def members(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the wanted files, in the order in which they are stored.

    Args:
      source: folder or archive.
      wanted: chooses by name, relative to the source, with "/" between its parts. A folder's name ends
        in "/"; if wanted, it comes with no bytes.

    Raises:
      ValueError: if the source is missing, of an unknown kind, truncated or damaged.
    """
    try:
        if source.is_dir():
            for name in _walk(source):
                if wanted(name):
                    yield name, b"" if name.endswith("/") else (source / name).read_bytes()
        elif source.name.endswith(".zip"):
            with zipfile.ZipFile(source) as archive:
                for info in archive.infolist():
                    if wanted(_tidy(info.filename)):
                        yield _tidy(info.filename), archive.read(info)
        else:
            yield from _tar_members(source, wanted)
    except DAMAGED as error:
        raise unreadable(source, error) from None


def names(source: Path) -> list[str]:
    """Names of all files and folders (those end in "/") of a folder or .zip; ValueError as `members`."""
    try:
        if source.is_dir():
            return list(_walk(source))
        with zipfile.ZipFile(source) as archive:
            return [_tidy(info.filename) for info in archive.infolist()]
    except DAMAGED as error:
        raise unreadable(source, error) from None


class Reader:
    """Contents of single files of a folder or .zip, in any order, from any process.

    The archive is opened at the first use in each process: a file position must not be shared.
    """

    def __init__(self, source: Path):
        self.source = source
        self._archive: tuple[int, zipfile.ZipFile, dict[str, str]] | None = None

    def __getstate__(self) -> dict:
        return {"source": self.source, "_archive": None}

    def read(self, name: str) -> bytes:
        """The bytes of a file that `names` lists; ValueError if it cannot be read."""
        try:
            if self.source.is_dir():
                return (self.source / name).read_bytes()
            if self._archive is None or self._archive[0] != os.getpid():
                archive = zipfile.ZipFile(self.source)
                stored = {_tidy(info.filename): info.filename for info in archive.infolist()}
                self._archive = (os.getpid(), archive, stored)
            return self._archive[1].read(self._archive[2][name])
        except DAMAGED as error:
            raise unreadable(self.source / name, error) from None


def unreadable(path: Path, error: Exception) -> ValueError:
    """The one-line ValueError for a file or archive that is missing, cut off or damaged."""
    if isinstance(error, FileNotFoundError):
        return ValueError(
            f"{path}: no such file or folder; put the data there, set dataset.root to where it is, or use "
            f"dataset=digits, which needs no files"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path}: cannot be read ({reason}), truncated or damaged; fetch or repair it")


def _walk(root: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        folders.sort()
        prefix = Path(folder).relative_to(root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        if prefix:
            yield prefix
        yield from (prefix + file for file in sorted(files))


def _tidy(name: str) -> str:
    return posixpath.normpath(name) + ("/" if name.endswith("/") else "")


def _tar_members(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    kind = next(
        (ending for ending in sorted(OPENERS, key=len, reverse=True) if source.name.endswith(ending)), None
    )
    if kind is None:
        raise ValueError(f"{source}: must be a folder, .zip or .tar(.gz, .xz, .bz2); set dataset.root to one")
    with OPENERS[kind](source, "rb") as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                name = _tidy(info.name + "/" * info.isdir())
                if info.isdir() and wanted(name):
                    yield name, b""
                elif info.isfile() and wanted(name):
                    yield name, archive.extractfile(info).read()
            end = archive.offset
        while stream.read(2**20):  # to the end: checks the compression's own checksum
            pass
        # tarfile takes a file cut off between two members for a complete one; that goes on with zeros.
        if stream.tell() <= end:
            raise EOFError("the archive stops before its end mark")
