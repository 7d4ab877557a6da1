"""The change of the last epoch as a score: its numbers, and the snapshot that it asks for, end to end."""

from functools import partial

import pytest
import torch

from prunebench.core.loop import Sink, fit
from prunebench.core.phase import Phase
from prunebench.criteria.training import weight_change
from prunebench.methods.pruner import Pruner
from tests.conformance import kit
from tests.unit.toy_nets import flat, toy_run

torch.set_num_threads(1)


def one(progress):
    return 1.0


def toy_run_that_moved():
    """All weights of the first layer have grown by 0.25, the others by a tenth of themselves."""
    run = toy_run()
    run.snapshot("epoch_before")
    with torch.no_grad():
        run.model.fc1.weight.add_(0.25)
        run.model.fc2.weight.mul_(1.1)
    return run


def test_the_score_is_the_change_since_an_epoch_before_the_end():
    assert flat(weight_change(toy_run_that_moved())) == [*[0.25] * 6, 0.1, 0.05, 0.02, 0.03, 0.08, 0.12]


def test_the_other_form_multiplies_it_by_the_weight_at_the_end():
    assert flat(weight_change(toy_run_that_moved(), form="change_times_weight")) == [
        *(0.1875, 0.1875, 0.4375, 0.125, 0.125, 0.5625),
        *(0.11, 0.0275, 0.0044, 0.0099, 0.0704, 0.1584),
    ]


def test_without_the_snapshot_or_without_training_it_is_refused():
    run = toy_run()
    with pytest.raises(ValueError, match=r"criterion=weight_change: .*use method=imp, lth or one_shot"):
        weight_change(run)
    run.snapshot("epoch_before")
    with pytest.raises(ValueError, match="no weight has changed"):
        weight_change(run)
    with pytest.raises(ValueError, match=r"criterion\.form=sum: must be change or change_times_weight"):
        weight_change(run, form="sum")


@pytest.mark.parametrize("criterion", [weight_change, partial(weight_change, form="change_times_weight")])
def test_the_phases_before_pruning_events_take_the_snapshot(criterion):
    plan = [
        Phase("dense", "9it", one, snapshot=(("rewind", "2it"),)),
        Phase("round-01", "4it", one, sparsity=0.5),
        Phase("round-02", "0it", one, sparsity=0.8),
    ]
    assert [p.snapshot for p in Pruner(criterion).plan(plan)] == [
        (("rewind", "2it"), ("epoch_before", "-1ep")),
        (("epoch_before", "-1ep"),),
        (),
    ]


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ([Phase("train", "9it", one, sparsity=0.5)], "this plan prunes before any"),
        (
            [Phase("dense", "9it", one), *(Phase(n, "0ep", one, sparsity=0.5) for n in ("a", "b"))],
            "phase a trains nothing",
        ),
    ],
)
@pytest.mark.parametrize("criterion", [weight_change, partial(weight_change, form="change")])
def test_a_plan_without_training_to_look_back_on_is_refused(criterion, plan, text):
    with pytest.raises(ValueError, match=f"criterion: weight_change looks back on training, {text}"):
        Pruner(criterion).plan(plan)


class Weights(Sink):
    """Keeps the weights after every step, and at every pruning event the scores that chose the masks."""

    def __init__(self, run):
        self.run, self.steps, self.ends = run, [], []

    def after_step(self, run, method, phase, loss):
        self.steps.append({n: p.detach().clone() for n, p in run.model.named_parameters() if n in run.masks})

    def phase_end(self, run, method, phase):
        self.ends.append(len(self.steps))


@pytest.mark.parametrize("form", ["change", "change_times_weight"])
def test_in_a_run_from_the_command_line_the_scores_are_of_the_last_epoch_of_every_phase(form):
    overrides = ("criterion=weight_change", f"criterion.form={form}", "protocol.weights=init")
    parts = kit.assemble(kit.tiny(kit.Case("lth"), "lenet300", *overrides))
    seen, scored, criterion = Weights(parts.run), [], parts.method.criterion
    assert criterion.func is weight_change  # bound by Hydra

    def watched(run):
        scored.append(criterion(run))
        return scored[-1]

    parts.method.criterion = watched
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, seen)
    epoch, ends = parts.run.data.steps_per_epoch, seen.ends[:-1]
    assert (epoch, len(scored)) == (3, len(ends))
    for end, scores in zip(ends, scored):
        after, before = seen.steps[end - 1], seen.steps[end - 1 - epoch]
        for n, s in scores.items():
            change = (after[n] - before[n]).abs()
            assert torch.equal(s, change if form == "change" else change * after[n].abs())
