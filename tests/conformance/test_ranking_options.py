"""sparsity.max_ratio and sparsity.normalizer, from the command line to the masks."""

import pytest
import torch
from hydra.errors import InstantiationException

from tests.conformance import kit

GLOBAL = ("sparsity=filter", "sparsity.granularity=neuron", "sparsity.allocation=global")
ONE = kit.Case("one_shot")


def scaled(*options, sparsity=0.5):
    """A network whose first layer has weights a hundred times smaller, pruned by a global ranking."""
    parts = kit.assemble(kit.tiny(ONE, "lenet300", *GLOBAL, *options))
    with torch.no_grad():
        parts.run.model.fc1.weight.mul_(0.01)
    parts.method.prune(parts.run, sparsity)
    left = {n: int(a.sum()) for n, a in parts.method.alive(parts.run).items()}
    return left, parts.method.remarks(parts.run)


def test_a_plain_global_ranking_takes_the_layer_of_small_weights_and_says_so():
    assert scaled() == ({"fc1": 100, "fc2": 100}, [])
    left, remarks = scaled("sparsity.min_kept=10", sparsity=0.7)
    assert left == {"fc1": 20, "fc2": 100} and not remarks
    left, remarks = scaled("sparsity.min_kept=30", sparsity=0.7)
    assert left == {"fc1": 30, "fc2": 90}
    assert remarks == [
        "1 of 2 layers are down to 30 neurons; sparsity.normalizer and sparsity.max_ratio spread the loss"
    ]


def test_the_largest_share_and_the_normalizer_reach_the_ranking():
    left, _ = scaled("sparsity.max_ratio=0.6")
    assert left["fc1"] >= 120 and sum(left.values()) == 200
    left, _ = scaled("sparsity.normalizer=mean")
    assert left["fc2"] < 100 < left["fc1"] and sum(left.values()) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sparsity.normalizer=median",), "sparsity.normalizer=median: must be one of none, mean, max"),
        (("sparsity.max_ratio=0",), r"sparsity.max_ratio=0.0: must lie in \(0, 1\]"),
        (("sparsity.max_ratio=0.3",), "sparsity.max_ratio=0.3: needs 280 entries in 2 layers, but round 1"),
        (
            ("sparsity.normalizer=mean", "sparsity.allocation=uniform"),
            "sparsity.normalizer=mean: goes with sparsity.allocation=global",
        ),
        (
            ("sparsity.max_ratio=0.9", "sparsity.allocation=uniform"),
            "sparsity.max_ratio=0.9: goes with sparsity.allocation=global or lamp",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises((ValueError, InstantiationException), match=message):
        kit.assemble(kit.tiny(ONE, "lenet300", *GLOBAL, "sparsity.target=0.5", *options))
