"""Learning distance and mask overlap, with the numbers of the method cards."""

import math

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.metrics.geometry import LearningDistance, MaskOverlap, compare_masks
from tests.unit.fixed import run_of

torch.set_num_threads(1)


def masks_of(*bits: str) -> Masks:
    return Masks(
        {str(i): torch.tensor([b == "1" for b in row], dtype=torch.bool) for i, row in enumerate(bits)}
    )


def run_from(start, end, mask, *, norm: bool = False):
    """A run of one linear layer 4 -> 1 (and a BatchNorm) that went from one weight to another."""
    layers = [nn.Flatten(), nn.Linear(4, 1, bias=False)] + ([nn.BatchNorm1d(1)] if norm else [])
    run = run_of(nn.Sequential(*layers), torch.zeros(1, 1, 2, 2))
    first = {n: t.clone() for n, t in run.model.state_dict().items()} | {"1.weight": torch.tensor([start])}
    run._fresh_state = lambda *key: first
    run.model.load_state_dict(first | {"1.weight": torch.tensor([end])})
    run.set_masks(Masks({"1.weight": torch.tensor([mask], dtype=torch.bool)}))
    return run


def test_learning_distance_is_between_sparse_networks():
    """sparse-double-descent.md, check 6."""
    start, end = [0.5, -0.1, 0.3, -0.7], [0.9, 0.0, 0.1, -0.2]
    row = LearningDistance().measure(run_from(start, end, [1, 0, 1, 1]), Method())
    assert row["distance"] == pytest.approx(0.670820, abs=1e-6)
    assert row["prunable"] == row["distance"]
    assert row["relative"] == pytest.approx(0.670820 / math.sqrt(0.25 + 0.09 + 0.49), abs=1e-6)
    dense = LearningDistance().measure(run_from(start, end, [1, 1, 1, 1]), Method())
    assert dense["distance"] == pytest.approx(0.678233, abs=1e-6)


def test_learning_distance_holds_norms_and_no_buffers_and_prunable_does_not():
    run = run_from([1.0, 0, 0, 0], [1.0, 0, 0, 0], [1, 1, 1, 1], norm=True)
    with torch.no_grad():
        run.model[2].weight.add_(3.0)
        run.model[2].bias.sub_(4.0)
        run.model[2].running_mean.add_(100.0)
    row = LearningDistance().measure(run, Method())
    assert (row["distance"], row["prunable"]) == (5.0, 0.0)
    assert row["layers"] == [{"name": "1.weight", "distance": 0.0}]


def test_the_distance_in_a_phase_is_from_where_it_started():
    """sparse-double-descent.md, check 6."""
    run = run_from([9.0, 9.0, 9.0, 9.0], [0.5, -0.1, 0.3, -0.7], [1, 0, 1, 1], norm=True)
    metric, resumed = LearningDistance(), LearningDistance()
    metric.begin(run)
    resumed.load_state_dict(metric.state_dict())
    with torch.no_grad():
        run.model[1].weight.copy_(torch.tensor([[0.9, 0.0, 0.1, -0.2]]))
        run.model[2].bias.add_(3.0)
    row = resumed.measure(run, Method())
    assert row["phase_prunable"] == pytest.approx(0.670820, abs=1e-6)
    assert row["phase_distance"] == pytest.approx(math.hypot(0.670820, 3.0), abs=1e-6)
    assert row["layers"][0]["phase_distance"] == row["phase_prunable"]
    assert row["prunable"] == pytest.approx(math.sqrt(8.1**2 + 8.9**2 + 9.2**2), abs=1e-5)


def test_a_phase_that_an_earlier_version_began_has_no_distance_of_its_own():
    metric = LearningDistance()
    metric.load_state_dict({})
    row = metric.measure(run_from([1.0, 0, 0, 0], [0.0, 0, 0, 0], [1, 1, 1, 1]), Method())
    assert (row["distance"], row["phase_distance"], row["phase_prunable"]) == (1.0, None, None)


def test_entries_tied_to_dead_channels_have_not_moved():
    run = run_from([1.0, 0, 0, 0], [0.0, 0, 0, 0], [0, 0, 0, 0], norm=True)
    run.set_masks(Masks(dict(run.masks), {"2.weight": torch.zeros(1, dtype=torch.bool)}))
    row = LearningDistance().measure(run, Method())
    assert (row["distance"], row["relative"]) == (0.0, None)


def test_overlap_of_the_worked_masks():
    """metrics.md, check 1; half of the weights in another layer change nothing."""
    for a, b in ((("11100100",), ("10110101",)), (("1110", "0100"), ("1011", "0101"))):
        row = compare_masks(masks_of(*a), masks_of(*b))
        assert (row["jaccard"], row["hamming"], row["coefficient"]) == (0.5, 0.375, 0.75)


@pytest.mark.parametrize(("density", "chance"), [(0.5, 0.3333), (0.2, 0.1111), (0.1, 0.0526), (0.05, 0.0256)])
def test_chance_level_is_that_of_independent_masks(density, chance):
    """metrics.md, section 6."""
    kept = round(200 * density)
    mask = masks_of("1" * kept + "0" * (200 - kept))
    assert compare_masks(mask, mask)["chance"] == pytest.approx(chance, abs=5e-5)
    assert compare_masks(mask, mask)["jaccard"] == 1.0


def test_masks_that_keep_nothing_are_alike():
    row = compare_masks(masks_of("000"), masks_of("000"))
    assert row == {"jaccard": 1.0, "hamming": 0.0, "coefficient": None, "chance": 1.0}


def test_mask_overlap_is_with_the_last_measurement_and_survives_a_checkpoint():
    run, metric = run_from([1.0] * 4, [1.0] * 4, [1, 1, 1, 1]), MaskOverlap()
    assert set(metric.measure(run, Method()).values()) == {None}
    run.set_masks(Masks({"1.weight": torch.tensor([[True, True, True, False]])}))
    resumed = MaskOverlap()
    resumed.load_state_dict(metric.state_dict())
    for one in (metric, resumed):
        assert one.measure(run, Method())["jaccard"] == 0.75
        assert one.measure(run, Method())["jaccard"] == 1.0
