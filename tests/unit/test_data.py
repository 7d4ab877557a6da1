import pytest
import torch

from prunebench.core.run import generator
from prunebench.data.draw import draw_epoch
from prunebench.data.loader import Data

torch.set_num_threads(1)

CPU = torch.device("cpu")
CIFAR_MEAN, CIFAR_STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def images(count, shape=(3, 6, 5), seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, *shape), generator=rng, dtype=torch.uint8)
    return pixels, torch.randint(10, (count,), generator=rng)


def make(train=50, valid=7, test=9, *, shape=(3, 6, 5), batch_size=8, pad=2, flip=True, mean=None, std=None):
    return Data(
        name="made",
        train=images(train, shape, 1),
        valid=images(valid, shape, 2),
        test=images(test, shape, 3),
        class_names=[str(label) for label in range(10)],
        mean=mean or [0.5, 0.4, 0.3][: shape[0]],
        std=std or [0.2, 0.25, 0.3][: shape[0]],
        batch_size=batch_size,
        device=CPU,
        pad=pad,
        flip=flip,
    )


def reference_batch(pixels, order, rows, columns, mirrored, *, pad, mean, std):
    """Crop, mirror and normalise image by image and pixel by pixel, as the docstrings say."""
    mean, std = torch.tensor([mean, std], dtype=torch.float64) * 255
    mean, scale = mean.float(), (1 / std).float()
    _, channels, height, width = pixels.shape
    out = torch.zeros(len(order), channels, height, width)
    for b, index in enumerate(order.tolist()):
        for y in range(height):
            for x in range(width):
                source_x = width - 1 - x if mirrored[b] else x
                at_y, at_x = int(rows[b]) + y - pad, int(columns[b]) + source_x - pad
                inside = 0 <= at_y < height and 0 <= at_x < width
                for c in range(channels):
                    value = pixels[index, c, at_y, at_x].float() if inside else torch.tensor(0.0)
                    out[b, c, y, x] = (value - mean[c]) * scale[c]
    return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True), (0, False)])
@pytest.mark.parametrize("channels", [1, 3])
def test_batch_equals_a_plain_loop_bit_for_bit(layout, pad, flip, channels):
    data = make(20, shape=(channels, 6, 5), batch_size=8, pad=pad, flip=flip)
    data.memory_format = layout
    pixels, labels = images(20, (channels, 6, 5), 1)
    order, rows, columns, mirrored = draw_epoch(3, 1, 20, pad=pad, flip=flip)[:, 8:16]
    x, y = data.batch(3, 3 + 1)
    mean, std = [0.5, 0.4, 0.3][:channels], [0.2, 0.25, 0.3][:channels]
    expected = reference_batch(pixels, order, rows, columns, mirrored, pad=pad, mean=mean, std=std)
    assert torch.equal(x, expected)
    assert torch.equal(y, labels[order])
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.is_contiguous(memory_format=layout)


def test_draw_covers_every_shift_and_mirrors_half():
    order, rows, columns, mirrored = draw_epoch(0, 0, 9000, pad=1, flip=True)
    assert torch.equal(order.sort().values, torch.arange(9000))
    counts = torch.bincount(rows * 3 + columns, minlength=9)
    assert len(counts) == 9 and counts.min() > 900 and counts.max() < 1100
    assert 4300 < mirrored.sum() < 4700


def test_mid_grey_cifar_pixel_normalises_to_the_worked_value():
    grey = (torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    data = Data(
        name="grey",
        train=grey,
        valid=grey,
        test=grey,
        class_names=["grey"],
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        batch_size=4,
        device=CPU,
    )
    (x, _) = data.batch(0, 0)
    assert round(float(x[0, 0, 0, 0]), 4) == 0.0428
    ((test, _),) = data.evaluation("test")
    assert torch.equal(x, test)


@pytest.mark.parametrize(("size", "steps"), [(50_000, 391), (60_000, 469)])
def test_steps_per_epoch_round_up(size, steps):
    assert make(size, shape=(1, 1, 1), batch_size=128, pad=0, flip=False).steps_per_epoch == steps


def test_an_epoch_visits_every_image_once_and_ends_with_a_smaller_batch():
    data = make(50, shape=(1, 1, 1), pad=0, flip=False, mean=[0.0], std=[1 / 255])
    batches = [data.batch(0, step) for step in range(7, 14)]
    assert [len(y) for _, y in batches] == [8] * 6 + [2]
    seen = torch.cat([x for x, _ in batches]).flatten().sort().values
    assert torch.equal(seen, images(50, (1, 1, 1), 1)[0].flatten().float().sort().values)


def test_batch_depends_on_seed_and_step_only():
    data, other = make(), make()
    straight = [data.batch(5, step) for step in range(20)]
    for step in (19, 3, 11, 4, 0):
        list(other.evaluation("valid"))
        other.batch(6, step)
        for mine, theirs in zip(straight[step], other.batch(5, step), strict=True):
            assert torch.equal(mine, theirs)


def test_epochs_and_seeds_differ():
    data = make()
    first = data.batch(0, 0)[0]
    assert not torch.equal(first, data.batch(0, data.steps_per_epoch)[0])
    assert not torch.equal(first, data.batch(1, 0)[0])


def test_batch_draws_nothing_from_the_global_generator():
    data = make()
    before = torch.get_rng_state()
    data.batch(0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [2, 3, 5])
def test_parts_of_all_ranks_are_the_batch(world):
    data = make()
    for step in (0, 6):  # the last batch has 2 images, fewer than 3 or 5 ranks
        x, y = data.batch(0, step)
        parts = [data.batch(0, step, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert torch.equal(torch.cat([part for _, part in parts]), y)
        assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("cached", [True, False])
def test_evaluation_does_not_depend_on_the_batch_size(split, cached, monkeypatch):
    monkeypatch.setattr("prunebench.data.loader.CACHE_BYTES", 10**6 if cached else 0)
    data = make()
    whole = [torch.cat(parts) for parts in zip(*data.evaluation(split), strict=True)]
    small = [torch.cat(parts) for parts in zip(*data.evaluation(split, batch_size=4), strict=True)]
    assert len(whole[0]) == data.sizes[split]
    assert torch.equal(whole[0], small[0]) and torch.equal(whole[1], small[1])


def test_evaluation_is_neither_shuffled_nor_augmented():
    data = make()
    pixels, labels = images(50, seed=1)
    still = torch.zeros(50, dtype=torch.int64)
    ((x, y),) = data.evaluation("train")
    expected = reference_batch(
        pixels, torch.arange(50), still, still, still, pad=0, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3]
    )
    assert torch.equal(x, expected) and torch.equal(y, labels)


def test_memory_format_changes_the_layout_and_no_value():
    data, other = make(), make()
    list(other.evaluation("test"))
    other.memory_format = torch.channels_last
    ((x, _),), ((z, _),) = data.evaluation("test"), other.evaluation("test")
    assert torch.equal(x, z) and z.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.batch(0, 9)[0], other.batch(0, 9)[0])


def test_an_empty_validation_split_yields_nothing():
    assert list(make(valid=0).evaluation("valid")) == []


def test_scoring_gives_distinct_images_without_augmentation():
    data = make()
    chosen = data.scoring(generator("criterion"), batches=6)
    assert [len(y) for _, y in chosen] == [8] * 6
    ((x, _),) = data.evaluation("train")
    known = {tuple(image.flatten().tolist()) for image in x}
    got = [tuple(image.flatten().tolist()) for batch, _ in chosen for image in batch]
    assert set(got) <= known and len(set(got)) == 48
    again = data.scoring(generator("criterion"), batches=6)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(chosen, again, strict=True))


def test_scoring_of_more_images_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"batches=7: 7 x 8 scoring images must lie in \[1, 50\]"):
        make().scoring(generator("criterion"), batches=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"pad": -1}, "dataset.pad=-1: must be 0"),
        ({"mean": [0.5]}, "dataset.mean=.*must have one value for each of 3 channels"),
        ({"std": [0.5, 0.0, 0.5]}, "dataset.std=.*must be positive"),
        ({"train": 0}, "has no training image left"),
    ],
)
def test_wrong_arguments_name_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_unknown_split_and_rank_are_errors():
    with pytest.raises(ValueError, match="split=val: must be one of train, valid, test"):
        next(make().evaluation("val"))
    with pytest.raises(ValueError, match="rank=2: must lie in"):
        make().batch(0, 0, rank=2, world=2)
