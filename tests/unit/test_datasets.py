import gzip
import importlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from prunebench.data import archives, cache, folders, small, standard
from prunebench.data.prepare import resize, statistics

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


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def idx_files(folder, *, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        write_idx(
            folder / f"{stem}-images-idx3-ubyte{ending}",
            rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        )
        write_idx(folder / f"{stem}-labels-idx1-ubyte{ending}", (np.arange(count) % 10).astype(np.uint8))
    return folder


# digits and synthetic


def test_digits_have_36_test_images_of_every_class():
    data = build("digits")
    labels = torch.cat([y for _, y in data.evaluation("test")])
    assert torch.equal(torch.bincount(labels), torch.full((10,), 36))
    assert data.sizes == {"train": 1293, "valid": 144, "test": 360}
    assert data.shape == (1, 8, 8) and data.class_names == tuple("0123456789")


def test_digits_equal_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    (train, train_labels), (test, test_labels) = small.read_digits()
    ours = torch.cat([train, test]).flatten(1).long() * 100 + torch.cat([train_labels, test_labels])[:, None]
    bunch = load_digits()
    theirs = np.rint(bunch.data * 255 / 16).astype(np.int64) * 100 + bunch.target[:, None]
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_digits_do_not_import_scikit_learn_or_torchvision():
    code = (
        "import sys; from prunebench.data.small import read_digits; import prunebench.data.datasets; "
        "import prunebench.data.folders; read_digits(); print({'sklearn', 'torchvision', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_normalisation_of_digits_is_that_of_their_pixels():
    (train, _), (test, _) = small.read_digits()
    mean, std = statistics(torch.cat([train, test]))
    config = yaml.safe_load((CONF / "digits.yaml").read_text())
    assert config["mean"] == [round(mean[0], 4)] and config["std"] == [round(std[0], 4)]


def test_synthetic_images_are_made_from_their_seed():
    options = {"train_images": 60, "test_images": 20, "num_classes": 4, "channels": 3, "size": 5}
    one, again, other = (build("synthetic", data_seed=seed, **options) for seed in (0, 0, 1))
    assert same(one, again) and not same(one, other)
    assert one.shape == (3, 5, 5) and one.num_classes == 4
    assert one.sizes == {"train": 54, "valid": 6, "test": 20}


def test_synthetic_classes_can_be_told_apart():
    data = build("synthetic")
    (x, y), (z, t) = (next(data.evaluation(split)) for split in ("train", "test"))
    centers = torch.stack([x[y == label].mean(0) for label in range(10)]).flatten(1)
    nearest = torch.cdist(z.flatten(1), centers).argmin(1)
    assert (nearest == t).float().mean() > 0.95


def test_null_statistics_are_those_of_the_training_images():
    ((x, _),) = build("synthetic", channels=3).evaluation("train")
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)  # float32 sums of 30,000 values
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_file_says_what_it_is_and_lists_every_option(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "class" in text.splitlines()[0]
    config = yaml.safe_load(text)
    module, function = config.pop("_target_").rsplit(".", 1)
    target = getattr(importlib.import_module(module), function)
    assert set(config) == set(target.__annotations__) - {"batch_size", "device", "return"}


# resampling


def test_resize_by_area_averages_blocks():
    image = torch.tensor([[[[0, 2, 10, 10], [4, 6, 10, 13], [1, 1, 255, 255], [1, 1, 255, 255]]]])
    assert resize(image.byte(), 2).tolist() == [[[[3, 11], [1, 255]]]]


def test_size_option_changes_the_shape():
    assert build("digits", size=4).shape == (1, 4, 4)
    with pytest.raises(ValueError, match="dataset.size=0: must be at least 1"):
        build("digits", size=0)


# idx files


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("where", ["", "MNIST/raw", "mnist"])
def test_mnist_is_read_plain_or_compressed_where_it_may_lie(tmp_path, ending, where):
    idx_files(tmp_path / where, ending=ending)
    data = build("mnist", root=str(tmp_path), validation=0.0)
    assert data.sizes == {"train": 40, "valid": 0, "test": 20} and data.shape == (1, 28, 28)
    assert torch.equal(torch.cat([y for _, y in data.evaluation("test")]), torch.arange(20) % 10)


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    monkeypatch.setattr(standard, "DEBIAN_FASHION_MNIST", idx_files(tmp_path / "debian", ending=".gz"))
    data = build("fashion_mnist", root=str(tmp_path / "none"))
    assert data.sizes["train"] == 36 and data.class_names[9] == "boot"


def test_missing_data_name_all_ways_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(standard, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"fashion_mnist is not there.*download=true.*apt-get.*dataset=digits"
    ):
        build("fashion_mnist", root=str(tmp_path))
    for name in ("cifar10", "cifar100", "svhn", "tiny_imagenet"):
        with pytest.raises(ValueError, match=rf"{name} is not there.*download=true.*dataset=digits"):
            build(name, root=str(tmp_path))


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlretrieve", offline)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    for name in ("tiny_imagenet", "cifar10"):
        with pytest.raises(ValueError, match=r"download failed: no route to host\); set") as error:
            build(name, root=str(tmp_path), download=True)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], "has 15675 bytes of data, not 15680"),
        (lambda data: b"PK\3\4" + data[4:], "is not an idx file"),
        (lambda data: b"", "is not an idx file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    path = idx_files(tmp_path) / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"t10k-images-idx3-ubyte: {message}"):
        build("mnist", root=str(tmp_path))


def test_truncated_gzip_is_named(tmp_path):
    path = idx_files(tmp_path, ending=".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        build("mnist", root=str(tmp_path))


# trees of images


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
    with pytest.raises(ValueError, match="cannot be read|must be a folder"):
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
    with pytest.raises(ValueError, match="damaged cache entry .*delete this folder"):
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
