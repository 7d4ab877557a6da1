"""Learning-rate schedules: values at known steps, shape of the curves, error messages."""

from functools import partial

import pytest
import torch

from prunebench.core.run import Progress
from prunebench.schedules import constant, cosine, linear, one_cycle, step, warmup_steps


def curve(schedule, steps, steps_per_epoch=10):
    return [schedule(Progress(step=t, steps=steps, steps_per_epoch=steps_per_epoch)) for t in range(steps)]


def test_step_drops_at_the_milestone_epochs():
    rates = curve(partial(step, milestones=[0.5, 0.75]), 160 * 391, 391)
    at = [rates[epoch * 391] for epoch in (0, 79, 80, 119, 120, 159)]
    assert at == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)
    assert rates[80 * 391 - 1] == 1.0


def test_step_without_milestones_is_constant_after_the_warmup():
    assert curve(partial(step, milestones=[], warmup=0.4), 5) == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_step_reaches_the_peak_where_the_first_drop_ends_the_warmup():
    rates = curve(partial(step, milestones=[0.5, 0.75], warmup=0.5), 8)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)


def test_step_holds_the_peak_between_warmup_and_first_drop():
    rates = curve(partial(step, milestones=[0.5], gamma=0.2, warmup="2it"), 8)
    assert rates == [0.5, 1, 1, 1, 0.2, 0.2, 0.2, 0.2]


def test_cosine_is_half_at_epoch_100_of_200():
    rates = curve(cosine, 200 * 7, 7)
    assert rates[0] == 1.0
    assert rates[100 * 7] == pytest.approx(0.5, abs=1e-12)


def test_cosine_falls_from_one_to_final():
    rates = curve(partial(cosine, final=0.1), 1000)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert 0.1 < rates[-1] < 0.1001


def test_linear_falls_by_equal_steps():
    assert curve(linear, 4) == [1.0, 0.75, 0.5, 0.25]
    assert curve(partial(linear, final=0.5), 4) == [1.0, 0.875, 0.75, 0.625]


@pytest.mark.parametrize("schedule", [cosine, linear, partial(step, milestones=[0.9])])
def test_warmup_is_linear_and_the_rest_starts_at_the_peak(schedule):
    rates = curve(partial(schedule, warmup=0.2), 20)
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert max(rates) == 1.0


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0.0, 0), (0.25, 10), ("2ep", 20), ("1.5ep", 15), ("39it", 39)]
)
def test_warmup_is_a_share_or_a_length(warmup, steps):
    assert warmup_steps(Progress(step=0, steps=40, steps_per_epoch=10), warmup) == steps


def test_one_cycle_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=37, pct_start=0.2, div_factor=10.0, final_div_factor=100.0
    )
    expected = []
    for _ in range(37):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    rates = curve(partial(one_cycle, peak=0.2, div=10.0, final_div=100.0), 37)
    assert rates == pytest.approx(expected, rel=1e-9)


def test_one_cycle_starts_at_1_over_div_and_ends_at_1_over_both():
    rates = curve(partial(one_cycle, peak=0.5, div=4.0, final_div=8.0), 40)
    assert rates[0] == 0.25
    assert rates[19] == 1.0
    assert rates[-1] == pytest.approx(1 / 32, rel=1e-12)


@pytest.mark.parametrize(
    "schedule", [constant, cosine, linear, one_cycle, partial(step, milestones=[0.5, 0.75])]
)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_very_short_phases_stay_within_bounds(schedule, steps):
    assert all(0.0 < rate <= 1.0 for rate in curve(schedule, steps))


def test_constant_is_its_factor():
    assert curve(constant, 3) == [1.0, 1.0, 1.0]
    assert curve(partial(constant, factor=0.01), 2) == [0.01, 0.01]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (partial(constant, factor=0.0), "factor=0.0: must be a finite number above 0"),
        (partial(step, milestones=[0.5], gamma=0.0), "gamma=0.0: must lie in (0, 1]"),
        (partial(step, milestones=[0.5], gamma=1.5), "gamma=1.5: must lie in (0, 1]"),
        (
            partial(step, milestones=[0.7, 0.5]),
            "milestones=[0.7, 0.5]: must be increasing shares of the phase in (0, 1)",
        ),
        (
            partial(step, milestones=[100.0]),
            "milestones=[100.0]: must be increasing shares of the phase in (0, 1)",
        ),
        (
            partial(step, milestones=[0.3], warmup=0.5),
            (
                "milestones=[0.3]: must not lie before the end of the warm-up "
                "(drop at step 12, warmup=0.5 is 20 steps); shorten warmup"
            ),
        ),
        (partial(cosine, final=1.5), "final=1.5: must lie in [0, 1]"),
        (partial(linear, final=-0.1), "final=-0.1: must lie in [0, 1]"),
        (
            partial(cosine, warmup=1.0),
            "warmup=1.0: must be a share of the phase in [0, 1), or a length such as 5ep",
        ),
        (
            partial(linear, warmup="5"),
            "warmup='5': must be a share of the phase in [0, 1), or a length such as 5ep or 10000it",
        ),
        (
            partial(linear, warmup="4ep"),
            "warmup=4ep: must be shorter than the phase (40 of 40 steps); give it as a share such as 0.1",
        ),
        (partial(one_cycle, peak=0.0), "peak=0.0: must lie in (0, 1)"),
        (partial(one_cycle, div=0.5), "div=0.5: must be a finite number of at least 1"),
        (partial(one_cycle, final_div=0.0), "final_div=0.0: must be a finite number of at least 1"),
    ],
)
def test_wrong_options_are_reported_at_step_0(schedule, message):
    with pytest.raises(ValueError) as error:
        schedule(Progress(step=0, steps=40, steps_per_epoch=10))
    assert str(error.value) == message
