import importlib
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from prunebench.data import archives, cache, folders

torch.set_num_threads(1)

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def build(name, **options):
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | options
    module, function = config.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), function)(
        **{"batch_size": 16, "device": torch.device("cpu")} | config
    )


def everything(data):
    return [torch.cat(parts) for split in data.sizes for parts in zip(*data.evaluation(split), strict=True)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(everything(one), everything(other), strict=True))


def png(seed, *, size=(6, 6), mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def tree(folder, *, train=4, test=2, classes=("ant", "bee"), **kind):
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            for index in range(count):
                path = folder / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png([split == "train", classes.index(name), index], **kind))
    return folder


def pack(folder, archive):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*"), reverse=True):
                file.write(path, path.relative_to(folder))
    else:
        mode = {".xz": "w:xz", ".gz": "w:gz", ".tar": "w"}[archive.suffix]
        with tarfile.open(archive, mode) as file:
            for path in sorted(folder.rglob("*"), reverse=True):
                file.add(path, path.relative_to(folder), recursive=False)
    return archive


def image_folder(tmp_path, root, **options):
    return build("image_folder", **{"root": str(root), "cache": str(tmp_path / "cache"), "pad": 0} | options)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_archives_give_the_arrays_of_the_folder(tmp_path, ending):
    folder = tree(tmp_path / "tree")
    packed = image_folder(tmp_path, pack(folder, tmp_path / f"packed{ending}"))
    loose = image_folder(tmp_path, folder)
    assert same(packed, loose) and packed.class_names == loose.class_names == ("ant", "bee")


def test_image_folder_reads_pixels_exactly(tmp_path):
    folder = tree(tmp_path / "tree")
    data = image_folder(tmp_path, folder, validation=0.0, mean=[0.0] * 3, std=[1 / 255] * 3)
    ((x, y),) = data.evaluation("train")
    expected = [np.asarray(Image.open(path)) for path in sorted((folder / "train").rglob("*.png"))]
    assert torch.equal(x.round().byte(), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert y.tolist() == [0] * 4 + [1] * 4


def test_val_and_test_are_kept_apart_and_val_alone_is_the_test_split(tmp_path):
    folder = tree(tmp_path / "tree")
    (folder / "test").rename(folder / "val")
    assert image_folder(tmp_path, folder).sizes == {"train": 7, "valid": 1, "test": 2 * 2}
    tree(folder, test=3)
    assert image_folder(tmp_path, folder).sizes == {"train": 8, "valid": 4, "test": 6}


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    folder = tree(tmp_path / "tree", mode="L")
    assert image_folder(tmp_path, folder).shape == (1, 6, 6)
    assert image_folder(tmp_path, folder, channels=3).shape == (3, 6, 6)
    (folder / "train/ant/0.png").write_bytes(png(0))
    assert image_folder(tmp_path, folder).shape == (3, 6, 6)
    with pytest.raises(ValueError, match=r"channels=1: must be 3 or null.*train/ant/0.png is a colour"):
        image_folder(tmp_path, folder, channels=1)


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder = tree(tmp_path / "tree")
    (folder / "train/bee/0.png").write_bytes(png(0, size=(9, 6)))
    with pytest.raises(ValueError, match=r"dataset.size=null: must be.*train/bee/0.png 9x6"):
        image_folder(tmp_path, folder)
    assert image_folder(tmp_path, folder, size=3).shape == (3, 3, 3)


@pytest.mark.parametrize("ending", ["", ".zip", ".tar.xz"])
def test_a_corrupt_image_is_named(tmp_path, ending):
    folder = tree(tmp_path / "tree")
    path = folder / "train/bee/2.png"
    path.write_bytes(path.read_bytes()[:60])
    root = pack(folder, tmp_path / f"packed{ending}") if ending else folder
    with pytest.raises(ValueError, match=r"train/bee/2.png: cannot be decoded \(.*repair or remove") as error:
        image_folder(tmp_path, root)
    assert "\n" not in str(error.value)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"2.png: cannot be decoded \(not an image file\)"):
        image_folder(tmp_path, folder)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_truncated_archive_is_named(tmp_path, ending, kept):
    archive = pack(tree(tmp_path / "tree", train=40), tmp_path / f"packed{ending}")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"packed{ending}: cannot be read .*truncated or damaged"):
        image_folder(tmp_path, archive)


def test_a_tar_cut_between_two_members_is_no_complete_tar(tmp_path):
    archive = pack(tree(tmp_path / "tree"), tmp_path / "packed.tar")
    with tarfile.open(archive) as file:
        end = file.getmembers()[-4].offset
    archive.write_bytes(archive.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"packed.tar: cannot be read \(the archive stops before its end"):
        image_folder(tmp_path, archive)


def test_trees_without_images_to_train_or_test_on_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder; put the data there"):
        image_folder(tmp_path, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: has no images in"):
        image_folder(tmp_path, tmp_path / "empty")
    folder = tree(tmp_path / "tree")
    (folder / "train/cat").mkdir()
    with pytest.raises(ValueError, match="class folder train/cat has no images"):
        image_folder(tmp_path, folder)
    (folder / "train/cat").rmdir()
    (folder / "test").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="has train but no test images"):
        image_folder(tmp_path, folder)
    (folder / "train").rename(folder / "test")
    with pytest.raises(ValueError, match="has no training images"):
        image_folder(tmp_path, folder)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be a folder|cannot be read"):
        image_folder(tmp_path, tmp_path / "notes.txt")


def test_a_test_class_without_training_images_is_an_error(tmp_path):
    folder = tree(tmp_path / "tree")
    tree(folder, train=0, classes=("cat",))
    with pytest.raises(ValueError, match="class cat has test but no training images"):
        image_folder(tmp_path, folder)


# the cache


def test_the_source_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    folder = tree(tmp_path / "tree")
    calls = []
    decode_all = folders.decode_all
    monkeypatch.setattr(
        folders, "decode_all", lambda *args, **kw: calls.append(kw) or decode_all(*args, **kw)
    )
    first = image_folder(tmp_path, folder)
    assert same(first, image_folder(tmp_path, folder)) and len(calls) == 1
    image_folder(tmp_path, folder, size=3)
    assert len(calls) == 2
    os.utime(folder / "train/ant/0.png", (1, 1))
    image_folder(tmp_path, folder)
    assert len(calls) == 3


def test_parallel_jobs_decode_once(tmp_path, monkeypatch):
    folder = tree(tmp_path / "tree")
    calls = []
    decode_all = folders.decode_all
    monkeypatch.setattr(
        folders, "decode_all", lambda *args, **kw: calls.append(kw) or decode_all(*args, **kw)
    )
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(image_folder, tmp_path, folder) for _ in range(4)]
    assert all(same(jobs[0].result(), job.result()) for job in jobs) and len(calls) == 1


def test_an_unwritable_cache_is_named(tmp_path):
    folder = tree(tmp_path / "tree")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"dataset.cache=.*file/cache: cannot be written \(Not a directory\)"
    ):
        image_folder(tmp_path, folder, cache=str(tmp_path / "file" / "cache"))


def test_a_full_disk_leaves_no_entry(tmp_path, monkeypatch):
    folder = tree(tmp_path / "tree")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "save", full)
        with pytest.raises(ValueError, match=r"dataset.cache=.*\(No space left on device\); set it to"):
            image_folder(tmp_path, folder)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    image_folder(tmp_path, folder)


def test_a_damaged_cache_entry_is_named(tmp_path):
    folder = tree(tmp_path / "tree")
    image_folder(tmp_path, folder)
    (images,) = (tmp_path / "cache").rglob("train-images.npy")
    images.write_bytes(images.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"damaged cache entry .*delete this folder"):
        image_folder(tmp_path, folder)


# Tiny-ImageNet


@pytest.mark.parametrize("kind", ["folder", "zip", "annotated"])
def test_tiny_imagenet_layouts_agree(tmp_path, kind):
    folder = tmp_path / "tiny-imagenet-200"
    lines = []
    for label, wnid in enumerate(("n01", "n02")):
        for index in range(3):
            for split, name in (("train", f"{wnid}_{index}.JPEG"), ("val", f"val_{label}_{index}.JPEG")):
                annotated = split == "val" and kind != "folder"
                path = folder / split / ("" if annotated else wnid) / "images" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(label * 10 + index))
                lines.append(f"{name}\t{wnid}\t0\t0\t5\t5\n" * annotated)
    if kind != "folder":
        (folder / "val/val_annotations.txt").write_text("".join(lines))
        (folder / "test/images").mkdir(parents=True)
        (folder / "test/images/test_0.JPEG").write_bytes(png(99))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(tmp_path))
        folder.rename(tmp_path / "elsewhere")
    data = build("tiny_imagenet", root=str(tmp_path), cache=str(tmp_path / "cache"), validation=0.0)
    assert data.sizes == {"train": 6, "valid": 0, "test": 6} and data.class_names == ("n01", "n02")
    (x, y), (z, t) = (next(data.evaluation(split)) for split in ("train", "test"))
    assert torch.equal(y, t) and torch.equal(x, z)  # the same pixels were put in both


def test_names_in_archives_are_tidied(tmp_path):
    folder = tree(tmp_path / "tree")
    with tarfile.open(tmp_path / "dotted.tar", "w") as file:
        file.add(folder, ".")
    found = [name for name, _ in archives.members(tmp_path / "dotted.tar", lambda name: True)]
    assert "train/ant/0.png" in found and "train/ant/" in found
