"""Masks: counts, exact zeros under every optimizer, and storage that stays where it is."""

from functools import partial

import pytest
import torch
from torch import nn

from prunebench.core.masks import KEEPS_ZEROS, Masks

torch.set_num_threads(1)


def network(*, channels_last=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def random_masks(model, share=0.5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    params = dict(model.named_parameters())
    return Masks({n: torch.rand(params[n].shape, generator=rng) > share for n in ("0.weight", "2.weight")})


def train(model, masks, optimizer, steps=4):
    rng = torch.Generator().manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 2, 4, 4, generator=rng)).square().sum().backward()
        masks.step_(model, optimizer)
        yield


class Pushing(torch.optim.SGD):
    """A subclass of a known optimizer whose update is not 0 where the gradient is."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.01)
                self.state[p]["memory"] = torch.ones_like(p)


OPTIMIZERS = [
    partial(torch.optim.SGD, lr=0.1),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    partial(torch.optim.Adam, lr=0.1, amsgrad=True, foreach=True),
    partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
    partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, centered=True),
    partial(torch.optim.Adagrad, lr=0.1),
    partial(torch.optim.NAdam, lr=0.1),
    partial(torch.optim.Adadelta, lr=0.1),
    partial(Pushing, lr=0.1, momentum=0.9),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda m: f"{m.func.__name__}-{'-'.join(m.keywords)}")
def test_step_leaves_value_gradient_and_state_of_pruned_weights_0(make, channels_last):
    model = network(channels_last=channels_last)
    masks, optimizer = random_masks(model), make(model.parameters())
    masks.zero_weights_(model)
    before = model[0].weight.detach().clone()
    for _ in train(model, masks, optimizer):
        for name, p in model.named_parameters():
            if name in masks:
                tensors = [
                    p,
                    p.grad,
                    *(v for v in optimizer.state[p].values() if torch.is_tensor(v) and v.shape == p.shape),
                ]
                assert all(bool((t[~masks[name]] == 0).all()) for t in tensors)
    assert not torch.equal(before, model[0].weight)


def test_known_optimizers_are_those_whose_zeros_stay():
    assert {o.__name__ for o in KEEPS_ZEROS} == {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"}


def test_masks_given_to_an_optimizer_in_the_middle_of_training_clear_its_state():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    list(train(model, Masks.ones(model, ["0.weight", "2.weight"]), optimizer))
    masks = random_masks(model)
    assert bool((optimizer.state[model[2].weight]["momentum_buffer"][~masks["2.weight"]] != 0).all())
    masks.zero_optimizer_(model, optimizer)
    buffer = optimizer.state[model[2].weight]["momentum_buffer"]
    assert bool((buffer[~masks["2.weight"]] == 0).all())
    assert bool((buffer[masks["2.weight"]] != 0).all())


def test_zeroed_weights_are_plus_0():
    """-0 would not survive a packed checkpoint, and the final file of a resumed run would differ."""
    model = network()
    masks = random_masks(model)
    masks.zero_weights_(model)
    assert not bool(torch.signbit(model[0].weight[~masks["0.weight"]]).any())


def test_kept_weights_are_left_alone():
    model = network()
    masks, before = random_masks(model), [p.detach().clone() for p in model.parameters()]
    masks.zero_weights_(model)
    for (name, p), old in zip(model.named_parameters(), before):
        mask = masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.equal(p[mask], old[mask])


def test_parameters_without_a_gradient_are_passed_over():
    model = network()
    masks = random_masks(model)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    masks.zero_gradients_(model)
    assert model[0].weight.grad is None
    assert torch.equal(model[2].weight.grad, masks["2.weight"].float())


def test_masks_that_prune_nothing_cost_nothing():
    model = network()
    masks = Masks.ones(model, ["0.weight"])
    assert masks._bind(model) == ([], [])


def test_counts_are_of_weights_and_leave_tied_entries_out():
    masks = Masks({"a": torch.tensor([True, False, False, True])}, {"b": torch.tensor([False])})
    assert (masks.kept, masks.total, masks.sparsity, masks.kept_per_layer) == (2, 4, 0.5, {"a": 2})


def test_no_masks_have_sparsity_0():
    assert Masks({}).sparsity == 0.0


def test_tied_entries_are_zeroed_with_the_others():
    model = network()
    Masks({}, {"0.bias": torch.tensor([True, False, True, True])}).zero_weights_(model)
    assert model[0].bias[1] == 0
    assert bool((model[0].bias[[0, 2, 3]] != 0).all())


def test_only_bool_tensors_are_masks():
    with pytest.raises(TypeError, match="float32"):
        Masks({"a": torch.ones(2)})
    with pytest.raises(TypeError, match="int64"):
        Masks({}, {"a": torch.ones(2, dtype=torch.int64)})


def test_overlap_is_the_jaccard_index():
    a = Masks({"x": torch.tensor([True, True, False, False]), "y": torch.tensor([True])})
    b = Masks({"x": torch.tensor([True, False, True, False]), "y": torch.tensor([True])})
    nothing = Masks({"x": torch.zeros(4, dtype=torch.bool), "y": torch.tensor([False])})
    assert (a.overlap(b), a.overlap(a), a.overlap(nothing), nothing.overlap(nothing)) == (0.5, 1.0, 0.0, 1.0)


def test_new_masks_inherit_the_storage_of_the_old_ones():
    model = network()
    first, second = random_masks(model, 0.3), random_masks(model, 0.6, seed=1)
    first.zero_weights_(model)
    addresses = first.addresses(model)
    second.inherit_(first)
    assert second.addresses(model) == addresses
    model[0].weight.data.fill_(1.0)
    second.zero_weights_(model)
    assert torch.equal(model[0].weight != 0, second["0.weight"])


def test_inherited_storage_follows_a_layer_that_is_pruned_later_or_revives():
    model = network()
    ones = torch.ones(3, 16, dtype=torch.bool)
    first = Masks({"0.weight": random_masks(model)["0.weight"], "2.weight": ones})
    second = Masks(
        {"0.weight": torch.ones(4, 2, 3, 3, dtype=torch.bool), "2.weight": random_masks(model)["2.weight"]}
    )
    first.zero_weights_(model)
    second.inherit_(first)
    for p in model.parameters():
        p.data.fill_(1.0)
    second.zero_weights_(model)
    assert bool((model[0].weight == 1).all())
    assert torch.equal(model[2].weight != 0, second["2.weight"])
    for p in model.parameters():
        p.data.fill_(1.0)
    first.zero_weights_(model)  # the old masks still say what they said
    assert torch.equal(model[0].weight != 0, first["0.weight"])


def test_multipliers_have_the_memory_format_of_the_weights():
    model = network(channels_last=True)
    params, multipliers = random_masks(model)._bind(model)
    assert [m.stride() for m in multipliers] == [p.stride() for p in params]


def test_masks_serve_a_second_model():
    masks, a, b = random_masks(network()), network(), network()
    masks.zero_weights_(a)
    masks.zero_weights_(b)
    assert torch.equal(a[0].weight, b[0].weight)
    assert bool((b[0].weight[~masks["0.weight"]] == 0).all())


def test_state_dict_makes_equal_masks():
    masks = Masks({"a": torch.tensor([True, False])}, {"b": torch.tensor([False])})
    again = Masks(**masks.state_dict())
    assert torch.equal(again["a"], masks["a"])
    assert torch.equal(again.tied["b"], masks.tied["b"])
