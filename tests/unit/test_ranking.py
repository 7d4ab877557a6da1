"""Rankings of methods that take masks anew while they train: exact, as on CUDA, and as in PLATON's code."""

import pytest
import torch

from prunebench.core.ranking import _sorted, ranked
from prunebench.core.selection import select
from prunebench.methods.platon import not_below

torch.set_num_threads(1)

SCORES = [0.4, 0.1, 0.3, 0.2, 0.5, 0.1, 0.0, 0.9, 0.8, 0.7]


def test_the_mask_rule_of_the_code_zeroes_one_fewer_than_the_exact_one():
    scores = {"a": torch.tensor(SCORES[:4]), "b": torch.tensor(SCORES[4:])}
    strict, exact = not_below(scores, 0.5), ranked(scores, 0.5)
    assert torch.cat(list(strict.values())).tolist() == [s >= 0.3 for s in SCORES]
    assert torch.cat(list(exact.values())).tolist() == [s > 0.3 for s in SCORES]
    assert (strict.kept, exact.kept) == (6, 5)


def test_nothing_is_zeroed_by_the_rule_of_the_code_where_half_the_scores_are_0():
    assert not_below({"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}, 0.5).kept == 4
    layers = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0]), "b": torch.tensor([5.0, 6.0, 7.0, 8.0])}
    apart = not_below(layers, 0.5, allocation="uniform")
    assert [m.tolist() for m in apart.values()] == [[False, True, True, True]] * 2


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_ranking_by_sorting_as_on_cuda_gives_the_masks_of_select(allocation):
    rng = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.randn(6, 4, 3, 3, generator=rng).contiguous(memory_format=torch.channels_last),
        "b": torch.randn(9, 5, generator=rng).mul(3).round(),
        "c": torch.zeros(7),
    }
    for sparsity in (0.0, 0.3, 0.5, 0.9, 0.99):
        here, there = (f(scores, sparsity, allocation=allocation) for f in (select, _sorted))
        assert all(torch.equal(here[n], there[n]) for n in scores)
        assert here.kept == there.kept == sum(int(m.sum()) for m in there.values())
        assert there.kept_per_layer == here.kept_per_layer
