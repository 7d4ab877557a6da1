"""Scores to masks: exact counts, ties, priors, floors."""

import numpy as np
import pytest
import torch

from prunebench.core.masks import Masks
from prunebench.core.selection import _order_statistic, layer_counts, select, topk_mask

torch.set_num_threads(1)


def reference_masks(scores, keep, alive=None):
    """Exactly `keep` alive entries: highest score first, equal ones in the order of layers and indices."""
    entries = [
        (-float(value), layer, index)
        for layer, name in enumerate(scores)
        for index, value in enumerate(scores[name].contiguous().flatten().tolist())
        if alive is None or bool(alive[name].flatten()[index])
    ]
    masks = {n: torch.zeros(s.shape, dtype=torch.bool) for n, s in scores.items()}
    names = list(scores)
    for _, layer, index in sorted(entries)[:keep]:
        masks[names[layer]].view(-1)[index] = True
    return masks


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in b)


@pytest.mark.parametrize("seed", range(20))
def test_selection_equals_a_stable_sort_in_400_random_cases_with_ties(seed):
    rng = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    for _ in range(20):
        shapes = [
            (number(1, 7), number(1, 6), *([3, 3] if number(0, 2) else [])) for _ in range(number(1, 5))
        ]
        values = number(1, 12)  # few values, so many ties
        scores = {
            f"l{i}": torch.randint(values, s, generator=rng)
            .double()
            .to([torch.float32, torch.float64][number(0, 2)])
            for i, s in enumerate(shapes)
        }
        if number(0, 2):
            scores = {
                n: s.contiguous(memory_format=torch.channels_last) if s.ndim == 4 else s
                for n, s in scores.items()
            }
        alive = (
            {n: torch.rand(s.shape, generator=rng) < 0.7 for n, s in scores.items()} if number(0, 2) else None
        )
        total = sum(s.numel() for s in scores.values())
        available = total if alive is None else sum(int(a.sum()) for a in alive.values())
        if not available:
            continue
        keep = number(1, available + 1)
        masks = select(scores, 1 - keep / total, previous=None if alive is None else Masks(alive))
        assert same(masks, reference_masks(scores, keep, alive))
        assert masks.kept == keep


def test_topk_mask_keeps_the_highest_and_of_equal_ones_the_first():
    assert topk_mask(torch.tensor([2.0, 1.0, 2.0, 2.0, 3.0]), 3).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("keep", [0, 6])
def test_topk_mask_keeps_none_or_all(keep):
    assert int(topk_mask(torch.ones(2, 3), keep).sum()) == keep


def test_topk_mask_prefers_every_score_to_minus_infinity():
    scores = torch.tensor([-torch.inf, 0.0, -5.0, -torch.inf])
    assert topk_mask(scores, 2).tolist() == [False, True, True, False]
    assert topk_mask(scores, 3).tolist() == [True, True, True, False]


@pytest.mark.parametrize("keep", [-1, 4])
def test_topk_mask_refuses_a_count_out_of_range(keep):
    with pytest.raises(ValueError, match=f"keep={keep}"):
        topk_mask(torch.ones(3), keep)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_nan_scores_are_refused(keep):
    with pytest.raises(ValueError, match="NaN"):
        topk_mask(torch.tensor([1.0, torch.nan, 2.0]), keep)


def test_a_nan_score_of_a_pruned_weight_is_no_matter():
    previous = Masks({"a": torch.tensor([True, False, True])})
    masks = select({"a": torch.tensor([1.0, torch.nan, 2.0])}, 2 / 3, previous=previous)
    assert masks["a"].tolist() == [False, False, True]


def test_channels_last_and_contiguous_scores_give_equal_masks():
    rng = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.randint(3, (4, 3, 3, 3), generator=rng).float(),
        "b": torch.randint(3, (5, 4), generator=rng).float(),
    }
    last = scores | {"a": scores["a"].contiguous(memory_format=torch.channels_last)}
    previous = select(scores, 0.3)
    for keywords in (
        {},
        {"previous": previous},
        {"allocation": "uniform"},
        {"granularity": "kernel"},
        {"allocation": "lamp"},
    ):
        assert same(select(last, 0.6, **keywords), select(scores, 0.6, **keywords))


def test_a_contiguous_mask_goes_with_channels_last_scores():
    rng = torch.Generator().manual_seed(1)
    scores = {"a": torch.rand(4, 3, 2, 2, generator=rng)}
    first = select(scores, 0.5)
    last = {"a": scores["a"].contiguous(memory_format=torch.channels_last)}
    assert same(select(last, 0.75, previous=first), reference_masks(scores, 12, first))


def test_pruned_weights_never_return_whatever_their_score():
    previous = Masks({"a": torch.tensor([False, True, True, True])})
    assert select({"a": torch.tensor([9.0, 1.0, 3.0, 2.0])}, 0.5, previous=previous)["a"].tolist() == [
        *(False, False, True, True)
    ]


def test_without_a_previous_mask_they_may():
    assert select({"a": torch.tensor([9.0, 1.0, 3.0, 2.0])}, 0.5)["a"].tolist() == [True, False, True, False]


def test_more_weights_than_are_alive_cannot_be_kept():
    previous = Masks({"a": torch.tensor([True, False, False, False])})
    with pytest.raises(ValueError, match="alive"):
        select({"a": torch.ones(4)}, 0.5, previous=previous)


def test_a_weight_that_is_0_but_kept_stays_in_the_ranking():
    """Masks cannot be told from zeros: the kept 0 counts as a survivor, the pruned 0 does not."""
    previous = Masks({"a": torch.tensor([True, False, True, True])})
    masks = select({"a": torch.tensor([0.0, 0.0, 2.0, 1.0])}, 0.25, previous=previous)
    assert masks["a"].tolist() == [True, False, True, True]


def test_half_precision_scores_are_ranked():
    scores = torch.tensor([1.0, 3.0, 2.0, 4.0])
    for dtype in (torch.float16, torch.bfloat16):
        assert select({"a": scores.to(dtype)}, 0.5)["a"].tolist() == [False, True, False, True]


def test_layers_of_different_precision_share_one_ranking():
    scores = {"a": torch.tensor([0.1, 0.3]), "b": torch.tensor([0.1, 0.3], dtype=torch.float64)}
    # float32(0.1) and float32(0.3) are a little above the doubles 0.1 and 0.3
    assert {n: m.tolist() for n, m in select(scores, 0.75).items()} == {
        "a": [False, True],
        "b": [False, False],
    }


# Kernels


def test_kernels_live_and_die_as_wholes_by_the_sum_of_their_scores():
    scores = torch.zeros(2, 2, 2, 2)
    scores[0, 0], scores[0, 1], scores[1, 0], scores[1, 1] = 1.0, 2.0, 3.0, 0.0
    scores[1, 1, 0, 0] = 5.0  # sum 5, more than 4 and less than 8
    masks = select({"a": scores}, 0.5, granularity="kernel")
    assert masks["a"].flatten(2).all(2).tolist() == [[False, True], [True, False]]
    assert masks["a"].flatten(2).any(2).tolist() == [[False, True], [True, False]]


def test_a_linear_weight_is_a_kernel_of_its_own():
    masks = select(
        {"conv": torch.ones(2, 2, 3, 3), "fc": torch.full((2, 2), 10.0)}, 0.5, granularity="kernel"
    )
    assert masks["fc"].sum() == 4
    assert masks["conv"].sum() == 0


def test_pruned_kernels_never_return():
    first = select(
        {"a": torch.rand(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))}, 0.5, granularity="kernel"
    )
    second = select({"a": (~first["a"]).float()}, 0.75, granularity="kernel", previous=first)
    assert int((second["a"] & ~first["a"]).sum()) == 0
    assert second.kept == 4 * 9


def test_another_granularity_is_refused_here():
    with pytest.raises(ValueError, match=r"sparsity\.granularity=filter"):
        select({"a": torch.ones(2, 2)}, 0.5, granularity="filter")


# Floors


def test_a_global_ranking_leaves_min_kept_weights_in_every_layer():
    scores = {"low": torch.tensor([0.1, 0.3, 0.2]), "high": torch.arange(1.0, 8.0)}
    masks = select(scores, 0.5, min_kept=2)
    assert masks["low"].tolist() == [False, True, True]
    assert masks["high"].tolist() == [False] * 4 + [True] * 3
    assert select(scores, 0.5)["low"].sum() == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_floor_costs_only_the_lowest_scores_of_the_other_layers(seed):
    rng = torch.Generator().manual_seed(seed)
    scores = {f"l{i}": torch.randint(6, (n,), generator=rng) + 3.0 * i for i, n in enumerate((9, 4, 12, 2))}
    floor, keep = 2, 11
    best = {n: reference_masks({n: s}, floor)[n] for n, s in scores.items()}
    masks = select(scores, 1 - keep / 27, min_kept=floor)
    # the same with the floor's entries above all others, layer by layer until none is short
    wanted = reference_masks(scores, keep)
    raised = dict(scores)
    while short := [n for n in scores if wanted[n].sum() < floor]:
        raised |= {n: torch.where(best[n], torch.inf, scores[n]) for n in short}
        wanted = reference_masks(raised, keep)
    assert same(masks, wanted)
    assert masks.kept == keep


def test_a_floor_that_takes_everything_is_reached_exactly():
    masks = select({"a": torch.ones(3), "b": torch.ones(3)}, 1 - 4 / 6, min_kept=2)
    assert masks.kept_per_layer == {"a": 2, "b": 2}


def test_a_floor_above_what_may_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"sparsity\.min_kept=2"):
        select({"a": torch.ones(3), "b": torch.ones(3)}, 0.5, min_kept=2)


def test_no_layer_loses_more_than_the_largest_share_in_a_global_ranking():
    scores = {"low": torch.arange(8.0) / 100, "high": torch.arange(1.0, 9.0)}
    assert select(scores, 0.5).kept_per_layer == {"low": 0, "high": 8}
    masks = select(scores, 0.5, max_ratio=0.75)
    assert masks.kept_per_layer == {"low": 2, "high": 6}
    assert masks["low"].tolist() == [False] * 6 + [True] * 2
    assert select(scores, 0.5, max_ratio=0.75, min_kept=3).kept_per_layer == {"low": 3, "high": 5}
    again = select(scores, 0.75, max_ratio=0.75, previous=masks)
    assert again.kept_per_layer == {"low": 2, "high": 2}
    assert not bool((again["low"] & ~masks["low"]).any())


def test_a_largest_share_that_keeps_too_much_is_refused():
    scores = {"a": torch.ones(8), "b": torch.ones(8)}
    with pytest.raises(ValueError, match=r"sparsity\.max_ratio=0\.5: needs 8 entries .* or raise max_ratio"):
        select(scores, 0.75, max_ratio=0.5)


def test_scores_over_their_mean_or_largest_rank_layers_of_other_scales_alike():
    """The worked ranking: of [1 2 3 6] and [10 20 30 60] as of [1 2 3 6] and [1 2 3 6]."""
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 6.0]), "b": torch.tensor([10.0, 20.0, 30.0, 60.0])}
    assert select(scores, 0.5).kept_per_layer == {"a": 0, "b": 4}
    for how in ("mean", "max"):
        masks = select(scores, 0.5, normalizer=how)
        assert masks["a"].tolist() == masks["b"].tolist() == [False, False, True, True]


def test_pruned_entries_take_no_part_in_the_mean():
    scores = {"a": torch.tensor([0.0, 0.0, 1.0, 3.0]), "b": torch.tensor([1.0, 1.0, 1.0, 1.2])}
    before = Masks({"a": torch.tensor([False, False, True, True]), "b": torch.ones(4, dtype=torch.bool)})
    # of the alive ones a has [.5, 1.5] and b [.95 .95 .95 1.14]; with the dead ones a would have [1, 3]
    masks = select(scores, 0.375, normalizer="mean", previous=before)
    assert masks["a"].tolist() == [False, False, False, True] and masks["b"].all()
    zeros = select({"a": torch.zeros(3), "b": torch.ones(3)}, 0.5, normalizer="mean")
    assert zeros.kept_per_layer == {"a": 0, "b": 3}


def test_an_allocation_below_the_floor_is_refused_by_the_name_of_the_layer():
    with pytest.raises(ValueError, match="layer small"):
        select({"small": torch.ones(4), "big": torch.ones(100)}, 0.9, allocation="uniform", min_kept=1)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        select({"a": torch.ones(4)}, sparsity)


# Counts


def test_twenty_percent_of_ten_weights_leave_8_and_then_6():
    """baselines-scoring 7.9: shares are of the original weights; open_lth's strict > would leave 7."""
    scores = {"a": torch.arange(1.0, 11.0)}
    first = select(scores, 0.2)
    second = select(scores, 0.4, previous=first)
    assert (first.kept, second.kept) == (8, 6)


@pytest.mark.parametrize("allocation", ["global", "lamp", "uniform", "uniform_plus", "er", "erk"])
def test_every_allocation_reaches_the_total_to_one_weight_and_masks_nest(allocation):
    rng = torch.Generator().manual_seed(2)
    scores = {
        n: torch.rand(s, generator=rng)
        for n, s in (("a", (8, 3, 3, 3)), ("b", (16, 8, 3, 3)), ("c", (10, 16)))
    }
    previous = None
    for sparsity in (0.1, 0.333, 0.5, 0.7, 0.8):
        masks = select(scores, sparsity, allocation=allocation, previous=previous)
        assert masks.kept == round((1 - sparsity) * 1528)
        if previous is not None:
            assert not any(bool((m & ~previous[n]).any()) for n, m in masks.items())
        previous = masks


def test_layer_sparsities_given_by_name_are_rounded_layer_by_layer():
    counts = layer_counts({}, {"a": 10, "b": 7}, 0.0, {"a": 0.25, "b": 0.5})
    assert counts == {"a": 8, "b": 4}


def test_a_layer_without_a_given_sparsity_is_named():
    with pytest.raises(ValueError, match="no sparsity for layer b"):
        layer_counts({}, {"a": 10, "b": 7}, 0.0, {"a": 0.25})


def test_an_unknown_allocation_lists_the_known_ones():
    with pytest.raises(ValueError, match="must be one of global, lamp, uniform, uniform_plus, er, erk"):
        select({"a": torch.ones(4)}, 0.5, allocation="ekr")


# The order statistic


@pytest.mark.parametrize("seed", range(4))
def test_order_statistic_equals_sorting_where_most_values_are_equal(seed):
    rng = np.random.default_rng(seed)
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        values = rng.integers(-5, 1000, 20_000).astype(np.float32)
        values[rng.random(20_000) < share] = 0.0
        values[rng.random(20_000) < share / 2] = -np.inf
        ordered = np.sort(values)
        for index in (0, 1, 4999, 9999, 10_000, 19_998, 19_999, *rng.integers(0, 20_000, 5)):
            value = ordered[index]
            above, equal = int((values > value).sum()), int((values == value).sum())
            assert _order_statistic(values.copy(), int(index)) == (value, above, equal)
