import io
import re
import tarfile

import numpy as np
import pytest

SMALL = ("dataset=image_folder", "dataset.root=images", "dataset.cache=cache", "dataset.pad=0")


def write_images(root, *, size=8):
    """Two classes of six training and two test images each, as PNG files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_a_folder_of_images_is_trained_on(prune, runs, result, tmp_path):
    write_images(tmp_path / "images")
    outcome = prune(*SMALL, "dataset.validation=0", "trainer.batch_size=4")
    assert outcome.code == 0, outcome.err
    assert result(runs()[0])[0]["dataset"] == "image_folder"


def test_a_corrupt_image_is_named(prune, tmp_path):
    write_images(tmp_path / "images")
    broken = tmp_path / "images" / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    outcome = prune(*SMALL)
    assert outcome.code == 2
    assert "train/dog/3.png" in outcome.line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "ending, kept", [("tar", 0.5), ("tar.gz", 0.5), ("tar.gz", 0.99), ("zip", 0.5), ("zip", 0.99)]
)
def test_a_truncated_archive_is_named(ending, kept, prune, tmp_path):
    import shutil

    write_images(tmp_path / "images")
    kind = {"tar": "tar", "tar.gz": "gztar", "zip": "zip"}[ending]
    archive = tmp_path / f"images.{ending}"
    shutil.make_archive(str(tmp_path / "images"), kind, tmp_path / "images")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    outcome = prune(*SMALL, f"dataset.root=images.{ending}")
    assert outcome.code == 2
    assert re.search(rf"images\.{re.escape(ending)}: .*truncated", outcome.line)
    assert not (tmp_path / "runs").exists()


def test_an_archive_without_training_images_is_named(prune, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO(b""))
    outcome = prune(*SMALL, "dataset.root=images.tar")
    assert outcome.code == 2
    assert "images.tar" in outcome.line


def test_images_of_several_sizes_ask_for_one(prune, tmp_path):
    write_images(tmp_path / "images", size=8)
    write_images(tmp_path / "more", size=9)
    (tmp_path / "more" / "train" / "cat" / "0.png").replace(tmp_path / "images/train/cat/9.png")
    outcome = prune(*SMALL)
    assert outcome.code == 2
    assert "dataset.size" in outcome.line
