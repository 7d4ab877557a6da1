import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from prunebench.core.run import generator
from prunebench.data import folders
from prunebench.data.loader import Data
from prunebench.data.stream import StreamData

torch.set_num_threads(1)

CONF = Path(__file__).parents[2] / "conf" / "dataset"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for name in ("n01", "n02"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 24 + index % 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def imagenet(tree, **options):
    defaults = {
        "root": str(tree),
        "workers": 0,
        "validation": 0.2,
        "split_seed": 42,
        "subset": None,
        "test_subset": None,
        "size": 8,
        "resize": 10,
        "label_noise": 0.0,
        "noise_kind": "symmetric",
        "noise_seed": 0,
        "flip": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "batch_size": 5,
        "device": torch.device("cpu"),
    }
    return folders.imagenet(**defaults | options)


def equal(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_stream_has_the_interface_of_data(tree):
    data = imagenet(tree)
    public = {name for name in dir(Data) if not name.startswith("_")} - {"memory_format"}
    assert public <= set(dir(StreamData))
    assert data.shape == (3, 8, 8) and data.num_classes == 2 and data.class_names == ("n01", "n02")
    assert data.sizes == {"train": 16, "valid": 4, "test": 6} and data.steps_per_epoch == 4
    x, y = data.batch(0, 3)
    assert x.shape == (1, 3, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64


def test_batches_do_not_depend_on_the_number_of_workers(tree):
    alone, two = imagenet(tree), imagenet(tree, workers=2)
    for step in range(6):
        assert equal(alone.batch(0, step), two.batch(0, step))
    for one, other in zip(alone.evaluation("test"), two.evaluation("test"), strict=True):
        assert equal(one, other)


def test_a_jump_gives_the_batch_of_that_step(tree):
    data, other = imagenet(tree), imagenet(tree, workers=2)
    straight = [data.batch(1, step) for step in range(9)]
    for step in (5, 6, 2, 8):
        assert equal(straight[step], other.batch(1, step))


def test_a_jump_reads_no_earlier_image(tree, monkeypatch):
    data = imagenet(tree)
    read = []
    original = data._images["train"].reader.read
    monkeypatch.setattr(
        data._images["train"].reader, "read", lambda name: read.append(name) or original(name)
    )
    data.batch(0, 1_000_002)
    assert len(read) == 5


def test_epochs_and_seeds_differ(tree):
    data = imagenet(tree)
    first = data.batch(0, 0)[0]
    assert not torch.equal(first, data.batch(0, data.steps_per_epoch)[0])
    assert not torch.equal(first, data.batch(1, 0)[0])


def test_parts_of_all_ranks_are_the_batch(tree):
    data = imagenet(tree)
    x, y = data.batch(0, 2)
    parts = [data.batch(0, 2, rank=rank, world=3) for rank in range(3)]
    assert equal((torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])), (x, y))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_draws_from_the_global_generator(tree, workers):
    data = imagenet(tree, workers=workers)
    before = torch.get_rng_state()
    data.batch(0, 0)
    list(data.evaluation("test"))
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_is_centre_cropped_and_does_not_depend_on_the_batch_size(tree):
    data = imagenet(tree, size=20, resize=20)
    x, y = (torch.cat(parts) for parts in zip(*data.evaluation("test", batch_size=4), strict=True))
    ((whole, _),) = data.evaluation("test")
    assert torch.equal(x, whole) and y.tolist() == [0, 0, 0, 1, 1, 1]
    image = torch.from_numpy(np.array(Image.open(tree / "val/n01/0.png"))[:, 2:22]).permute(
        2, 0, 1
    )  # 20 of 24
    back = x[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    back = (back + torch.tensor([0.485, 0.456, 0.406])[:, None, None]) * 255
    assert torch.equal(back.round().byte(), image)


def test_scoring_gives_distinct_images(tree):
    data = imagenet(tree)
    chosen = data.scoring(generator("criterion"), batches=3)
    rows = {tuple(image.flatten().tolist()) for x, _ in chosen for image in x}
    assert [len(y) for _, y in chosen] == [5, 5, 5] and len(rows) == 15
    with pytest.raises(ValueError, match="batches=4: 4 x 5 scoring images must lie in"):
        data.scoring(generator("criterion"), batches=4)


def test_channels_last_changes_the_layout_and_no_value(tree):
    data, other = imagenet(tree), imagenet(tree)
    other.memory_format = torch.channels_last
    x, z = data.batch(0, 0)[0], other.batch(0, 0)[0]
    assert torch.equal(x, z) and z.is_contiguous(memory_format=torch.channels_last)


def test_a_zip_streams_the_same_batches(tree, tmp_path):
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as file:
        for path in sorted(tree.rglob("*"), reverse=True):
            file.write(path, path.relative_to(tree))
    loose, packed = imagenet(tree), imagenet(tmp_path / "tree.zip", workers=2)
    assert all(equal(loose.batch(0, step), packed.batch(0, step)) for step in range(3))


def test_subset_and_noise_reach_the_stream(tree):
    clean = imagenet(tree, subset=10, test_subset=4, validation=0.0)
    noisy = imagenet(tree, subset=10, test_subset=4, validation=0.0, label_noise=0.3)
    assert clean.sizes == {"train": 10, "valid": 0, "test": 4}
    wrong = sum(int((clean.batch(0, step)[1] != noisy.batch(0, step)[1]).sum()) for step in range(2))
    assert wrong == 3


def test_image_folder_streams_what_is_too_large(tree, tmp_path):
    conf = yaml.safe_load((CONF / "image_folder.yaml").read_text())
    conf.pop("_target_")
    conf |= {"root": str(tree), "cache": str(tmp_path), "batch_size": 4, "device": torch.device("cpu")}
    data = folders.image_folder(**conf | {"max_bytes": 1000, "workers": 0, "size": 16})
    assert isinstance(data, StreamData) and data.shape == (3, 16, 16)
    assert data.batch(0, 0)[0].shape == (4, 3, 16, 16)
    assert isinstance(folders.image_folder(**conf | {"size": 16}), Data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_without_a_traceback(tree, tmp_path, workers):
    folder = tmp_path / "tree"
    for split in ("train", "val"):
        (folder / split / "n01").mkdir(parents=True)
        for index in range(4):
            (folder / split / "n01" / f"{index}.png").write_bytes((tree / "val/n01/0.png").read_bytes())
    data = imagenet(folder, workers=workers, validation=0.0)
    (folder / "train/n01/2.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"train/n01/2.png: cannot be decoded") as error:
        data.batch(0, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "dataset.size=0: must be at least 1"),
        ({"workers": -1}, "dataset.workers=-1: must be at least 0"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"resize": 4}, "dataset.resize=4: must be at least dataset.size=8"),
        ({"mean": [0.5]}, "must have one value"),
    ],
)
def test_wrong_arguments_name_the_key(tree, change, message):
    with pytest.raises(ValueError, match=message):
        imagenet(tree, **change)


def test_a_tar_cannot_be_streamed(tmp_path):
    (tmp_path / "imagenet.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must be a folder or \.zip"):
        imagenet(tmp_path / "imagenet.tar")
