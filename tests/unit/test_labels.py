import pytest
import torch

from prunebench.core.run import generator
from prunebench.data.labels import SIMILAR, add_label_noise
from prunebench.data.splits import Selection


def noise(labels, share, kind, *, seed=0, num_classes=10, dataset="cifar10"):
    return add_label_noise(
        labels, share=share, kind=kind, seed=seed, num_classes=num_classes, dataset=dataset
    )


def balanced_labels(each=100, num_classes=10):
    return torch.arange(num_classes).repeat(each)


def selection(**change):
    options = {
        "dataset": "made",
        "validation": 0.1,
        "split_seed": 42,
        "subset": None,
        "test_subset": None,
        "label_noise": 0.0,
        "noise_kind": "symmetric",
        "noise_seed": 0,
    }
    return Selection(**(options | change))


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 200), (0.3337, 334), (0.8, 800)])
def test_exactly_the_share_of_labels_is_wrong(kind, share, count):
    labels = balanced_labels()
    assert int((noise(labels, share, kind) != labels).sum()) == count


def test_symmetric_noise_is_uniform_over_the_other_classes():
    labels = torch.zeros(20_000, dtype=torch.int64) + 3
    noisy = noise(labels, 0.9, "symmetric")
    counts = torch.bincount(noisy, minlength=10)
    assert counts[3] == 2000
    others = torch.cat([counts[:3], counts[4:]])
    assert others.min() > 1800 and others.max() < 2200  # 2000 each, standard deviation 42


@pytest.mark.parametrize(("share", "drawn"), [(0.2, 200), (0.3337, 334), (0.0001, 1), (0.07, 70)])
def test_random_noise_draws_the_share_rounded_up_again(share, drawn):
    labels = torch.zeros(1000, dtype=torch.int64)
    noisy = noise(labels, share, "random", num_classes=10**9)  # of so many classes the old one is not drawn
    assert int((noisy != labels).sum()) == drawn


def test_random_noise_is_uniform_over_all_classes():
    labels = torch.zeros(20_000, dtype=torch.int64) + 3
    counts = torch.bincount(noise(labels, 0.9, "random"), minlength=10)
    assert 3600 < counts[3] < 4000  # 2000 kept and 1800 drawn, standard deviation 40
    others = torch.cat([counts[:3], counts[4:]])
    assert others.min() > 1600 and others.max() < 2000  # 1800 each


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.8])
def test_random_noise_makes_nearly_share_times_c_minus_1_over_c_wrong(share, classes):
    """sparse-double-descent.md, check 5: .18070/.36028/.72072 and .19814/.39642/.79258 with NumPy's draws.

    The generator is another one, so the counts are its own: within four standard deviations of the mean.
    """
    labels = torch.arange(classes).repeat(50_000 // classes)
    wrong = float((noise(labels, share, "random", num_classes=classes) != labels).double().mean())
    deviation = (share / classes * (1 - 1 / classes) / 50_000) ** 0.5
    assert abs(wrong - share * (classes - 1) / classes) < 4 * deviation


def test_pairflip_gives_the_next_class():
    labels = balanced_labels()
    noisy = noise(labels, 0.5, "pairflip")
    wrong = noisy != labels
    assert torch.equal(noisy[wrong], (labels[wrong] + 1) % 10)


@pytest.mark.parametrize(
    ("dataset", "pairs"),
    [
        ("mnist", {2: 7, 3: 8, 5: 6, 6: 5}),
        ("cifar10", {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
    ],
)
def test_asymmetric_noise_maps_the_share_of_each_source_class(dataset, pairs):
    labels = balanced_labels()
    noisy = noise(labels, 0.25, "asymmetric", dataset=dataset)
    for source in range(10):
        of_source = noisy[labels == source]
        assert int((of_source != source).sum()) == (25 if source in pairs else 0)
        assert set(of_source.tolist()) <= {source, pairs.get(source, source)}


def test_asymmetric_noise_of_cifar100_stays_in_groups_of_five():
    assert all(source // 5 == target // 5 for source, target in SIMILAR["cifar100"].items())
    assert [SIMILAR["cifar100"][label] for label in (0, 3, 4, 98, 99)] == [1, 4, 0, 99, 95]


def test_asymmetric_noise_without_a_mapping_is_an_error():
    with pytest.raises(ValueError, match="noise_kind=asymmetric: has no class mapping for digits"):
        noise(balanced_labels(), 0.2, "asymmetric", dataset="digits")


def test_noise_is_a_function_of_its_seed():
    labels = balanced_labels()
    assert torch.equal(noise(labels, 0.4, "symmetric"), noise(labels, 0.4, "symmetric"))
    assert not torch.equal(noise(labels, 0.4, "symmetric"), noise(labels, 0.4, "symmetric", seed=1))


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_share_out_of_range_is_an_error(share):
    with pytest.raises(ValueError, match=rf"dataset.label_noise={share}: must lie in \[0, 1\)"):
        noise(balanced_labels(), share, "symmetric")


def test_unknown_kind_is_an_error():
    with pytest.raises(
        ValueError, match=r"dataset\.noise_kind=odd: must be symmetric, asymmetric, pairflip or random"
    ):
        selection(noise_kind="odd")


def test_noise_is_put_on_what_is_left_for_training():
    labels = balanced_labels()
    clean = selection().choose(labels, labels, 10)
    noisy = selection(label_noise=0.2).choose(labels, labels, 10)
    assert torch.equal(clean.train, noisy.train) and torch.equal(clean.valid, noisy.valid)
    assert int((noisy.train_labels != labels[noisy.train]).sum()) == round(0.2 * 900)
    assert torch.equal(noisy.true_labels, labels[noisy.train])


def test_validation_and_training_are_disjoint_and_complete():
    chosen = selection(validation=0.25).choose(balanced_labels(), balanced_labels(5), 10)
    assert len(chosen.valid) == 250 and len(chosen.test) == 50
    assert torch.equal(torch.cat([chosen.train, chosen.valid]).sort().values, torch.arange(1000))
    other = selection(validation=0.25, split_seed=1).choose(balanced_labels(), balanced_labels(5), 10)
    assert not torch.equal(chosen.valid, other.valid)


def test_subset_is_balanced_and_taken_before_validation():
    labels = torch.randint(10, (2000,), generator=generator("test"))
    chosen = selection(subset=300, test_subset=50).choose(labels, labels, 10)
    used = torch.cat([chosen.train, chosen.valid])
    assert torch.equal(torch.bincount(labels[used]), torch.full((10,), 30))
    assert len(chosen.valid) == 30
    assert torch.equal(torch.bincount(labels[chosen.test]), torch.full((10,), 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": 1.0}, r"dataset.validation=1.0: must lie in \[0, 1\)"),
        ({"validation": -0.1}, r"dataset.validation=-0.1: must lie in \[0, 1\)"),
        ({"validation": 0.9999}, "dataset.validation=0.9999: must leave one"),
        ({"subset": 0}, "dataset.subset=0: must be a positive number"),
        ({"subset": 105}, "dataset.subset=105: must be a multiple of the 10 classes, such as 100 or 110"),
        ({"subset": 2000}, "dataset.subset=2000: must not exceed 1000"),
        ({"test_subset": 3}, "dataset.test_subset=3: must be a multiple of the 10 classes, such as 10"),
    ],
)
def test_options_out_of_range_name_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        selection(**change).choose(balanced_labels(), balanced_labels(), 10)
