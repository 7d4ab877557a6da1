"""The graphed step's bookkeeping, with a capture that needs no CUDA: it must change no number."""

from functools import partial

import pytest
import torch
from torch import nn

from prunebench.assembly import keep_optimizer
from prunebench.core.graph import GraphedStep
from prunebench.core.loop import Sink, fit
from prunebench.core.method import Method
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.core.units import prunable_names
from prunebench.criteria.magnitude import magnitude
from prunebench.methods.gmp import GMP
from prunebench.methods.pruner import Pruner
from prunebench.methods.rigl import RigL
from prunebench.methods.set import SET
from prunebench.methods.snfs import SNFS
from prunebench.models.lenet import LeNet300


class Batches:
    """Twelve random images, the last batch smaller."""

    steps_per_epoch, batch_size, sizes = 3, 5, {"train": 12}

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(12, 1, 6, 6, generator=rng), torch.arange(12) % 3

    def batch(self, seed, step, *, rank=0, world=1):
        start = step % 3 * 5
        return self.x[start : start + 5], self.y[start : start + 5]


def train(graphed, method=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
    )
    run = Run(
        model=model, data=Batches(), loss_fn=nn.CrossEntropyLoss(), prunable=["0.weight", "5.weight"], seed=0
    )
    make = partial(_sgd)
    if graphed:
        run.graphed_step = GraphedStep(capture=lambda work: work)
        make = keep_optimizer(make)
    plan = [
        Phase(f"phase-{i}", "7it", lambda p: 1 - p.step / p.steps, sparsity=s)
        for i, s in enumerate((None, 0.5, 0.7, 0.8))
    ]
    if method is not None:  # masks change within one phase
        plan = method.plan([Phase("train", "28it", lambda p: 1.0, within=True, reach=0.6)])
    fit(plan, run, method or Pruner(magnitude), make, Sink())
    return run


def _sgd(run, method):
    optimizer = torch.optim.SGD(
        run.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True, fused=True
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def test_graphed_training_equals_ordinary_training_bit_for_bit():
    ordinary, graphed = train(False), train(True)
    assert_equal(ordinary, graphed)


def assert_equal(ordinary, graphed):
    for name, value in ordinary.model.state_dict().items():
        assert torch.equal(value, graphed.model.state_dict()[name]), name
    assert all(torch.equal(m, graphed.masks[n]) for n, m in ordinary.masks.items())


@pytest.mark.parametrize(
    "make",
    [
        partial(RigL, interval=4, anneal="constant", update_replaces_step=True),
        partial(RigL, interval=4, anneal="constant", update_replaces_step=False, batches=2),
        partial(SET, interval=4, anneal="constant", update_replaces_step=False),
        partial(GMP, interval=4, allocation="uniform"),
    ],
    ids=["RigL", "RigL, two batches", "SET", "GMP"],
)
def test_steps_between_updates_are_replayed_and_updates_are_not(make):
    """The graph reads masks that change in place; one more capture where a layer gets its first zeros."""
    ordinary, graphed = train(False, make()), train(True, make())
    assert_equal(ordinary, graphed)
    assert graphed.graphed_step.captures == (2 if make.func is GMP else 1)
    assert graphed.clock.total == 28


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_smaller_network_is_captured_and_trains_as_without_a_graph(momentum):
    """Dense training, then two phases of a network of their own each; the optimizer's state begins at 0."""
    ordinary, graphed = shrinking(False, momentum), shrinking(True, momentum)
    assert_equal(ordinary, graphed)
    assert graphed.graphed_step.captures == 3
    assert 0 < graphed.masks.sparsity < 1


def shrinking(graphed, momentum):
    torch.manual_seed(0)
    model = LeNet300({"fc1": 8, "fc2": 6}, in_channels=1, num_classes=3, image_size=6)
    prunable = prunable_names(model)
    run = Run(model=model, data=Batches(), loss_fn=nn.CrossEntropyLoss(), prunable=prunable, seed=0)
    run.shrinks = True

    def make(run, method):
        optimizer = torch.optim.SGD(run.trained.parameters(), lr=0.1, momentum=momentum)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    if graphed:
        run.graphed_step = GraphedStep(capture=lambda work: work)
        make = keep_optimizer(make)
    plan = [
        Phase(f"phase-{i}", "7it", lambda p: 1 - p.step / p.steps, sparsity=s)
        for i, s in enumerate((None, 0.25, 0.5))
    ]
    fit(plan, run, Pruner(magnitude, granularity="neuron", allocation="uniform"), make, Sink())
    return run


def test_methods_whose_every_step_is_their_own_are_refused_a_graph():
    assert SNFS.changes_step is Method.changes_step
    assert all(m.changes_step is not Method.changes_step for m in (RigL, SET, GMP))


def test_masks_of_later_rounds_need_no_new_capture():
    assert train(True).graphed_step.captures == 2  # dense, first pruning event
