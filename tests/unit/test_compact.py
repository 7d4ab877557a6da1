"""Multiples of channels, the way from the small network back to the whole one, and what trains it."""

import pytest
import torch

from prunebench.core.compact import Shrunk, round_up
from prunebench.core.units import Unit, alive_channels, spread_over_weights, unit_masks, unit_scores
from prunebench.methods.pruner import Pruner
from prunebench.models.resnet import resnet_cifar


def flags(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def test_counts_are_rounded_up_to_the_multiple_by_the_next_best_scores():
    scores = {"a": torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0, 0.0])}
    for chosen, kept in (("010000", "010100"), ("010100", "010100"), ("010110", "011110")):
        assert round_up({"a": flags(chosen)}, scores, multiple=2)["a"].tolist() == flags(kept).tolist()


def test_dead_channels_do_not_return_for_a_multiple():
    scores = {"a": torch.tensor([9.0, 5.0, 2.0, 4.0])}
    before = {"a": flags("0111")}
    assert (
        round_up({"a": flags("0100")}, scores, multiple=2, before=before)["a"].tolist()
        == flags("0101").tolist()
    )
    all_left = round_up({"a": flags("0100")}, scores, multiple=4, before=before)["a"]
    assert all_left.tolist() == flags("0111").tolist()


@pytest.mark.parametrize("options", [{"round_to": 1, "granularity": "filter"}, {"round_to": 8}])
def test_multiples_without_effect_are_refused(options):
    with pytest.raises(ValueError, match=r"sparsity\.round_to=\d: must be 2 or more, with"):
        Pruner(lambda run: {}, **options)


def test_what_the_small_network_learns_goes_to_its_places_and_back():
    torch.manual_seed(0)
    data = {"in_channels": 1, "num_classes": 3, "image_size": 8}
    model = resnet_cifar(depth=8, option="B", **data)
    alive = {u.name: torch.arange(u.size) % 3 != 1 for u in model.units()}
    unit_masks(model, alive, []).zero_weights_(model)
    shrunk, before = Shrunk(model, alive), {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        for p in shrunk.network.parameters():
            p.add_(1)
    shrunk.give_(model)
    masks = unit_masks(model, alive, [n for n, _ in model.named_parameters()])
    for name, p in model.named_parameters():
        expected = before[name] + masks[name].float()  # what is dead stays 0
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=0)
    learned = {n: t.clone() for n, t in shrunk.network.state_dict().items()}
    model.load_state_dict(before)
    shrunk.take_(model)
    assert any(not torch.equal(t, learned[n]) for n, t in shrunk.network.state_dict().items())
    shrunk.give_(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# Two heads whose rows alternate in "qkv" (size 6: q0 q1 k0 k1 v0 v1) beside two rows that are nobody's
LAYOUT = {("qkv", 0): (0, 1, 0, 1, 0, 1, -1, -1)}
HEADS = Unit("heads", 2, (("qkv", 0),), (("proj", 1),), LAYOUT)


def test_scores_masks_and_shares_follow_the_layout():
    scores = {"qkv": torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0], [64.0], [128.0]])}
    assert unit_scores(scores, [HEADS])["heads"].tolist() == [1 + 4 + 16, 2 + 8 + 32]
    mask = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1], dtype=torch.bool)[:, None]
    assert alive_channels({"qkv": mask}, [HEADS])["heads"].tolist() == [False, True]
    shares = spread_over_weights({"heads": torch.tensor([3.0, 6.0])}, scores, [HEADS])["qkv"]
    assert shares.flatten().tolist() == [1, 2, 1, 2, 1, 2, 0, 0]


def test_masks_of_a_unit_leave_positions_of_others_alone():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Parameter(torch.ones(8, 1))
            self.proj = torch.nn.Parameter(torch.ones(3, 4))

        def units(self):
            return [HEADS]

    masks = unit_masks(Two(), {"heads": torch.tensor([True, False])}, ["qkv", "proj"])
    assert masks["qkv"].flatten().tolist() == [c == "1" for c in "10101011"]
    assert masks["proj"][0].tolist() == [True, True, False, False]
