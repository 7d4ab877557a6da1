"""Dropping and growing within a layer, against slow sorts written from the text."""

import pytest
import torch

from prunebench.core.growth import _by_sorting, drop_smallest, grow_largest

torch.set_num_threads(1)


def reference_drop(values, mask, count):
    """The kept entries by size, of equal ones the later first; the first `count` go."""
    sizes, kept = values.abs().flatten().tolist(), mask.flatten().nonzero()[:, 0].tolist()
    gone = sorted(kept, key=lambda i: (sizes[i], -i))[:count]
    new = mask.flatten().clone()
    new[gone] = False
    return new.view(mask.shape)


def reference_grow(scores, mask, count):
    """The other entries by size, the largest first, of equal ones the earlier; the first `count` come."""
    sizes, free = scores.abs().flatten().tolist(), (~mask).flatten().nonzero()[:, 0].tolist()
    come = sorted(free, key=lambda i: (-sizes[i], i))[:count]
    new = mask.flatten().clone()
    new[come] = True
    return new.view(mask.shape)


def cases():
    rng = torch.Generator().manual_seed(0)
    for shape in ((7,), (5, 4), (6, 4, 3, 3), (40, 30), (30, 20, 3, 3)):
        for ties in (False, True):
            for density in (0.0, 0.1, 0.5, 1.0):
                values = torch.randn(shape, generator=rng)
                values = (values * 3).round() / 3 if ties else values
                yield values, torch.rand(shape, generator=rng) < density


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_entries_and_ties_are_those_of_a_slow_sort(last):
    for values, mask in cases():
        if last and mask.ndim == 4:
            values, mask = (t.contiguous(memory_format=torch.channels_last) for t in (values, mask))
        kept, free = int(mask.sum()), int((~mask).sum())
        for share in (0.0, 0.1, 0.3, 1.0):
            dropped, grown = int(share * kept), int(share * free)
            wanted = reference_drop(values, mask, dropped)
            assert torch.equal(drop_smallest(values, mask, dropped), wanted)
            assert torch.equal(mask & ~_by_sorting(values, mask, dropped, largest=False), wanted)
            wanted = reference_grow(values, mask, grown)
            assert torch.equal(grow_largest(values, mask, grown), wanted)
            assert torch.equal(mask | _by_sorting(values, ~mask, grown, largest=True), wanted)


def test_the_mask_given_stays_and_the_new_one_has_its_memory_format():
    mask = torch.ones(4, 3, 2, 2, dtype=torch.bool).contiguous(memory_format=torch.channels_last)
    new = drop_smallest(torch.randn(4, 3, 2, 2), mask, 5)
    assert mask.all() and int((~new).sum()) == 5
    assert new.stride() == mask.stride()
    assert grow_largest(torch.randn(4, 3, 2, 2), new, 5).stride() == mask.stride()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_counts_are_exact_with_numbers_that_are_not_finite(bad):
    values = torch.tensor([0.5, bad, 0.1, bad, 0.2, bad, 0.0, 0.3])
    mask = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    assert drop_smallest(values, mask, 3).nonzero()[:, 0].tolist() == [1]
    assert grow_largest(values, mask, 2).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 5, 7]
    assert (mask & ~_by_sorting(values, mask, 3, largest=False)).nonzero()[:, 0].tolist() == [1]
    assert (mask | _by_sorting(values, ~mask, 2, largest=True)).nonzero()[:, 0].tolist() == [
        *(0, 1, 2, 3, 5, 7)
    ]
