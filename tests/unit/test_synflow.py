"""SynFlow: the worked numbers of the method card (baselines-scoring 7.4), conservation, and a reference."""

from copy import deepcopy

import torch
from torch import nn

from prunebench.core.selection import select
from prunebench.criteria.synflow import synflow
from prunebench.methods.pruner import Pruner
from tests.unit.toy_nets import Images, close, flat, run_of, small_run, toy_run

torch.set_num_threads(1)


def test_synflow_of_the_toy_net_is_that_of_the_card_and_conserved():
    scores = synflow(toy_run())
    assert flat(scores) == [0.65, 1.3, 1.95, 0.325, 1.05, 2.8, 1.5, 0.875, 0.55, 0.45, 1.4, 3.3]
    assert [round(float(s.sum()), 12) for s in scores.values()] == [8.075, 8.075]


def test_two_iterations_of_synflow_give_the_masks_of_the_card():
    run = toy_run()
    first = select(synflow(run), 1 - 9 / 12)
    run.set_masks(first)
    second = select(synflow(run), 0.5, previous=first)
    assert [m.int().tolist() for m in first.values()] == [[[1, 1], [1, 0], [1, 1]], [[1, 1, 0], [0, 1, 1]]]
    assert [m.int().tolist() for m in second.values()] == [[[0, 1], [1, 0], [0, 1]], [[1, 0, 0], [0, 1, 1]]]


def test_the_pruner_repeats_synflow_to_the_final_masks_of_the_card():
    run = toy_run()  # its first iteration keeps round(12 * .7071) = 8, the card's 9, the end is the same
    Pruner(synflow, iterations=2).prune(run, 0.5)
    assert [m.int().tolist() for m in run.masks.values()] == [
        [[0, 1], [1, 0], [0, 1]],
        [[1, 0, 0], [0, 1, 1]],
    ]


def reference_synflow(run):
    """As the authors' code goes: every tensor of the network itself made absolute, then backward."""
    model = deepcopy(run.model).double().eval()
    model.load_state_dict({n: t.abs() for n, t in model.state_dict().items()})
    model(torch.ones(1, *run.data.shape, dtype=torch.float64)).sum().backward()
    return {n: (p * p.grad).abs().detach() for n, p in model.named_parameters() if n in run.masks}


def test_synflow_takes_absolute_values_of_batchnorm_and_biases_too():
    run = small_run()
    assert bool((run.model.bn.running_mean < 0).any() and (run.model.bn.weight < 0).any())
    close(synflow(run), reference_synflow(run))


def chain_run():
    """Two convolutions and two linear layers without biases, 441 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = [nn.Conv2d(2, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False), nn.ReLU()]
        fcs = [nn.Linear(16, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)]
        model = nn.Sequential(*convs, nn.MaxPool2d(2), nn.Flatten(), *fcs)
    return run_of(model, Images(torch.zeros(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64), 4))


def test_synflow_conserves_the_flow_through_every_layer_of_a_deep_net_without_biases():
    sums = torch.stack([s.sum() for s in synflow(chain_run()).values()])
    torch.testing.assert_close(sums, sums[:1].expand(4), rtol=1e-12, atol=0)  # rounding of float64


def test_a_hundred_iterations_of_synflow_empty_no_layer_where_one_empties_three():
    once, often = chain_run(), chain_run()
    Pruner(synflow, iterations=1, min_kept=0).prune(once, 0.985)
    Pruner(synflow, iterations=100, min_kept=0).prune(often, 0.985)
    assert list(once.masks.kept_per_layer.values()) == [0, 0, 0, 7]
    assert list(often.masks.kept_per_layer.values()) == [2, 2, 2, 1]
    flow = sum(s.sum() for s in synflow(often).values())
    assert flow > 0  # the seven weights form paths from the image to the logits
