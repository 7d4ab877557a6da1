"""Scores by the worked numbers of the method card (baselines-scoring, section 7), and by slow references."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.selection import select
from prunebench.criteria.curvature import obd, obd_fisher
from prunebench.criteria.gradient import gradient, gradients, network, prunable_weights, snip, taylor
from prunebench.criteria.grasp import grasp
from prunebench.criteria.lookahead import lookahead
from prunebench.criteria.magnitude import lamp, magnitude
from prunebench.criteria.synflow import synflow
from prunebench.methods.pruner import Pruner
from tests.unit.toy_nets import backward, close, flat, run_of, small_run, toy_run

torch.set_num_threads(1)

SENSITIVITY = [
    *(0.089013, 0.089013, 0.139559, 0.064746, 0.310290, 0.043898),
    *(0.136943, 0.028774, 0.038056, 0.041083, 0.046038, 0.228336),
]


# Gradients of first order


def test_loss_and_gradients_of_the_toy_net_are_those_of_the_card():
    run = toy_run()
    weights = prunable_weights(run)
    with network(run, "eval") as forward:
        loss = F.cross_entropy(forward(weights, run.data.x), run.data.y)
        grads = gradients(loss, weights)
    second = [0.136943, 0.057548, 0.190280]
    assert round(float(loss.detach()), 10) == 0.8264715995
    assert flat(grads) == [
        *(0.178025, -0.089013, -0.093039, 0.258985, -0.413720, -0.021949),
        *(*second, *(-g for g in second)),
    ]


@pytest.mark.parametrize("score", [snip, gradient])
def test_connection_sensitivity_of_the_toy_net_is_that_of_the_card(score):
    scores = score(toy_run())
    assert flat(scores) == SENSITIVITY
    total = sum(s.sum() for s in scores.values())
    assert flat({n: s / total for n, s in scores.items()}) == [
        *(0.070884, 0.070884, 0.111136, 0.051560, 0.247096, 0.034957),
        *(0.109053, 0.022914, 0.030305, 0.032716, 0.036662, 0.181833),
    ]


def test_gradient_takes_one_minibatch_in_train_mode():
    run = small_run()
    wanted = backward(run, (run.data.x[:5], run.data.y[:5]), "train")
    params = dict(run.model.named_parameters())
    close(gradient(run), {n: (params[n].detach() * g).abs() for n, g in wanted.items()})
    assert run.data.asked == [{"batches": 1, "per_class": None}]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_snip_takes_the_batch_in_the_mode_that_it_is_told(mode):
    run = small_run()
    wanted = backward(run, (run.data.x[:5], run.data.y[:5]), mode)
    params = dict(run.model.named_parameters())
    close(snip(run, bn_mode=mode), {n: (params[n].detach() * g).abs() for n, g in wanted.items()})


def test_snip_of_several_batches_is_that_of_their_mean_loss_over_images():
    run = small_run(images=40)
    images = run.data.scoring(None, per_class=6)  # 5, 5 and 2 images
    assert [len(y) for _, y in images] == [5, 5, 2]
    each = [backward(run, batch, "eval") for batch in images]
    params = dict(run.model.named_parameters())
    wanted = {n: (p * sum(len(b[1]) / 12 * g[n] for b, g in zip(images, each))).abs().detach()
              for n, p in params.items() if n in run.masks}  # fmt: skip
    close(snip(run, per_class=6, bn_mode="eval"), wanted)
    assert run.data.asked[-1] == {"batches": 1, "per_class": 6}
    snip(run, batches=3)
    assert run.data.asked[-1] == {"batches": 3, "per_class": None}


def test_label_smoothing_and_frozen_weights_change_no_score():
    run = small_run()
    wanted = snip(run)
    run.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.3)
    run.model.requires_grad_(False)
    close(snip(run), wanted)
    assert not any(p.requires_grad for p in run.model.parameters())


# LAMP


def test_lamp_of_two_layers_is_that_of_the_card():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
        model[1].weight.copy_(torch.tensor([[0.1], [0.2], [-0.3], [0.6]]))
    assert flat(lamp(run_of(model, toy_run().data))) == [
        *(0.033333, 0.137931, 0.36, 1.0),
        *(0.02, 0.081633, 0.2, 1.0),
    ]


def test_lamp_empties_no_layer_where_magnitude_does():
    run = small_run()
    with torch.no_grad():
        run.model.conv1.weight.mul_(1e-3)
    keep = 1 - len(run.masks) / run.masks.total
    assert select(magnitude(run), keep, allocation="global").kept_per_layer["conv1.weight"] == 0
    assert set(select(lamp(run), keep, allocation="global").kept_per_layer.values()) == {1}


# All of them

CRITERIA = {
    "gradient": gradient,
    "snip": snip,
    "grasp": partial(grasp, per_class=3),
    "synflow": synflow,
    "taylor": partial(taylor, batches=2),
    "obd": partial(obd, batches=2, probes=2),
    "obd_fisher": partial(obd_fisher, batches=2),
    "lamp": lamp,
    "lookahead": lookahead,
}


@pytest.mark.parametrize("score", CRITERIA.values(), ids=CRITERIA)
def test_pruned_weights_score_0_and_others_do_not(score):
    run = small_run()
    pruned = {n: torch.rand(m.shape, generator=run.rng(n)) < 0.3 for n, m in run.masks.items()}
    run.set_masks(Masks({n: ~p for n, p in pruned.items()}))
    scores = score(run)
    assert all(bool((scores[n][p] == 0).all()) for n, p in pruned.items())
    assert all(bool((scores[n][~p] != 0).any()) for n, p in pruned.items())


@pytest.mark.parametrize("score", CRITERIA.values(), ids=CRITERIA)
def test_two_rounds_keep_exactly_what_is_asked_and_pruned_weights_stay_away(score):
    run, method = small_run(), Pruner(score)
    method.prune(run, 0.4)
    first = run.masks
    method.prune(run, 0.8)
    assert first.kept == round(0.6 * first.total)
    assert run.masks.kept == round(0.2 * first.total)
    assert not any(bool((m & ~first[n]).any()) for n, m in run.masks.items())


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (partial(snip, batches=0), "criterion.batches=0: must be 1 or more"),
        (partial(snip, batches=4), "criterion.batches=4: 4 x 5 images are more than the 15"),
        (partial(snip, per_class=0), "criterion.per_class=0: must be 1 or more"),
        (
            partial(snip, batches=2, per_class=1),
            "criterion.batches=2: has no effect with criterion.per_class=1",
        ),
        (partial(snip, bn_mode="test"), "criterion.bn_mode=test: must be train or eval"),
        (partial(taylor, batches=9), "criterion.batches=9"),
        (partial(taylor, batches=1, form="sum"), "criterion.form=sum: must be weight or unit"),
        (partial(taylor, batches=1, form="unit", bn_mode="train"), "use criterion.bn_mode=eval"),
        (partial(grasp, temperature=0.0, per_class=1), "criterion.temperature=0.0: must be above 0"),
        (partial(grasp, per_class=0), "criterion.per_class=0"),
        (partial(obd, batches=1, probes=0), "criterion.probes=0: must be 1 or more"),
        (partial(obd_fisher, batches=9), "criterion.batches=9"),
    ],
)
def test_options_out_of_range_are_refused_by_their_key(score, text):
    with pytest.raises(ValueError, match=f"^{text}|{text}$"):
        score(small_run())


def test_too_few_images_of_a_class_are_told_before_training():
    run = small_run()
    fewest = min(run.data.class_counts())
    with pytest.raises(ValueError, match=rf"^criterion\.per_class=99: class [ab] has only {fewest} training"):
        snip.check(run, batches=1, per_class=99, bn_mode="train")
