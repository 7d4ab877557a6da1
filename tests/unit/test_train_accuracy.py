"""Accuracy on the labels as trained and on the true ones, worked out by hand."""

import math

import pytest
import torch
from torch import nn

from prunebench.core.method import Method
from prunebench.metrics.train_accuracy import TrainAccuracy
from tests.unit.fixed import run_of

torch.set_num_threads(1)


def run_that_answers(answers: list[int], trained: list[int], true: list[int]):
    """A linear network over one-hot images, with logit 1 for the answer and 0 for the other classes."""
    count = len(answers)
    net = nn.Sequential(nn.Flatten(), nn.Linear(count, 3, bias=False))
    run = run_of(net, torch.eye(count).view(count, 1, 1, count), torch.tensor(trained))
    with torch.no_grad():
        run.model[1].weight.zero_()
        run.model[1].weight[answers, torch.arange(count)] = 1.0
    run.data.true_labels = torch.tensor(true)
    run.data.flipped = sum(a != b for a, b in zip(trained, true)) / count
    return run


def test_the_four_numbers_of_five_images():
    run = run_that_answers([0, 1, 2, 0, 2], trained=[0, 1, 2, 1, 2], true=[0, 1, 1, 0, 1])
    right, wrong = math.log(math.e + 2) - 1, math.log(math.e + 2)
    assert TrainAccuracy().measure(run, Method()) == {
        "top1": 0.8,
        "true_top1": 0.6,
        "wrong_top1": pytest.approx(2 / 3),  # of the last three images
        "loss": pytest.approx((4 * right + wrong) / 5),
    }


def test_without_noise_no_label_is_wrong():
    row = TrainAccuracy().measure(run_that_answers([0, 1], trained=[0, 2], true=[0, 2]), Method())
    assert (row["top1"], row["true_top1"], row["wrong_top1"]) == (0.5, 0.5, None)
