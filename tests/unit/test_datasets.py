import gzip
import importlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from prunebench.data import small, standard
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
        "import prunebench.data.folders; read_digits(); "
        "print({'sklearn', 'torchvision', 'PIL'} & set(sys.modules))"
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
    with pytest.raises(ValueError, match=r"dataset\.size=0: must be at least 1"):
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


# torchvision's readers


class FakeCIFAR:
    def __init__(self, root, *, train, download):
        count = 40 if train else 20
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        self.data, self.targets = pixels.transpose(0, 2, 3, 1), [index % 10 for index in range(count)]
        self.classes = [f"class-{index}" for index in range(10)]


class FakeSVHN:
    def __init__(self, root, *, split, download):
        cifar = FakeCIFAR(root, train=split == "train", download=download)
        self.data, self.labels = cifar.data.transpose(0, 3, 1, 2), np.array(cifar.targets)


def test_cifar_and_svhn_are_taken_from_torchvision(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCIFAR)
    monkeypatch.setattr("torchvision.datasets.SVHN", FakeSVHN)
    plain = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "validation": 0.0}
    cifar, svhn = build("cifar10", **plain), build("svhn", **plain)
    expected = torch.from_numpy(FakeCIFAR("", train=False, download=False).data).permute(0, 3, 1, 2)
    ((x, y),) = cifar.evaluation("test")
    assert torch.equal(x.round().byte(), expected) and torch.equal(y, torch.arange(20) % 10)
    assert same(cifar, svhn) and cifar.class_names[3] == "class-3" and svhn.class_names[3] == "3"
