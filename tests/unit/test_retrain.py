"""Retraining schedules: the worked numbers of Zimmer et al. (arXiv 2111.00843), as multiples of the peak."""

import math
from functools import partial

import pytest

from prunebench.core.run import Progress
from prunebench.retrain import allr, clr, ft, llr, lrw, same, slr
from prunebench.schedules import cosine, one_cycle, step

TRAINING = partial(step, milestones=[0.5, 0.75])  # 1 x 20, .1 x 10, .01 x 10 over 40 steps
DENSE = "40it"


def curve(schedule, steps, **progress):
    return [schedule(Progress(step=t, steps=steps, steps_per_epoch=4, **progress)) for t in range(steps)]


def of(schedule, training=TRAINING, dense=DENSE, **options):
    return partial(schedule, of=training, dense=dense, **options)


def test_ft_is_constant_at_the_smallest_training_rate():
    assert curve(of(ft), 3) == pytest.approx([0.01] * 3, rel=1e-12)


def test_smallest_training_rate_ignores_the_warmup():
    warm = partial(step, milestones=[0.75], gamma=0.5, warmup=0.5)  # starts at .05, ends at .5
    assert curve(of(ft, warm), 2) == [0.5, 0.5]


def test_lrw_replays_the_end_of_training():
    assert curve(of(lrw), 20) == pytest.approx([0.1] * 10 + [0.01] * 10, rel=1e-12)


def test_lrw_over_the_whole_training_is_the_training_schedule():
    assert curve(of(lrw), 40) == curve(TRAINING, 40)


def test_slr_compresses_the_training_schedule():
    rates = curve(of(slr), 20)
    assert rates[:2] == pytest.approx([0.0, 0.5], abs=1e-12)
    assert rates[2:] == pytest.approx([1.0] * 9 + [0.1] * 5 + [0.01] * 4, rel=1e-12)


def test_slr_replaces_the_training_warmup_by_the_peak():
    warm = partial(cosine, warmup=0.5)
    rates = curve(of(slr, warm, warmup=0.0), 20)
    assert rates[:10] == [1.0] * 10
    assert rates[10:] == curve(warm, 40)[20::2]


def test_slr_takes_the_rise_of_one_cycle_as_warmup():
    rates = curve(of(slr, one_cycle, warmup=0.0), 40)
    assert rates == sorted(rates, reverse=True)
    assert rates[:11] == [1.0] * 11


def test_clr_is_half_a_cosine_from_largest_to_smallest():
    rates = curve(of(clr), 20)
    assert rates[2] == 1.0
    assert rates[2 + 9] == pytest.approx(0.505, rel=1e-12)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert min(rates[2:]) > 0.01


def test_llr_falls_linearly_to_0():
    rates = curve(of(llr), 20)
    assert [rates[2 + k] for k in (0, 1, 17)] == pytest.approx([1.0, 0.94444, 0.05556], abs=5e-6)


@pytest.mark.parametrize("schedule", [slr, clr, llr])
def test_warmup_is_half_a_cosine_from_0(schedule):
    rates = curve(of(schedule), 50)
    assert rates[:6] == pytest.approx([0, 0.0955, 0.3455, 0.6545, 0.9045, 1], abs=5e-5)


def test_warmup_takes_the_whole_part_of_its_share():
    assert curve(of(llr), 9)[0] == 1.0
    assert curve(of(llr), 19)[:2] == [0.0, 1.0]


def test_allr_starts_lower_the_less_was_removed():
    # W = (1, -2, 3, -4), half pruned: ||W - W^p|| / ||W|| = sqrt(5 / 30), d1 = .57735; 10 of 100 epochs
    event = {"norm_drop": math.sqrt(5 / 30), "pruned": 0.5}
    rates = curve(of(allr, dense="100ep"), 40, **event)
    assert event["norm_drop"] == pytest.approx(0.408248, abs=5e-7)
    assert rates[4] == pytest.approx(0.57735, abs=5e-6)
    assert rates[4 + 18] == pytest.approx(0.57735 / 2, abs=5e-6)


def test_allr_starts_higher_the_longer_it_may_recover():
    rates = curve(of(allr, dense="100ep", warmup=0.0), 320, norm_drop=math.sqrt(5 / 30), pruned=0.5)
    assert rates[0] == pytest.approx(0.8, rel=1e-12)


def test_allr_is_llr_where_the_network_changed_by_more_than_expected():
    assert curve(of(allr), 20, norm_drop=0.9, pruned=0.5) == curve(of(llr), 20)


def test_allr_is_llr_where_retraining_is_longer_than_training():
    assert curve(of(allr), 60, norm_drop=0.0, pruned=0.5) == curve(of(llr), 60)


def test_allr_after_an_event_that_removed_nothing_depends_on_the_time_only():
    assert curve(of(allr, warmup=0.0), 20)[0] == 0.5


def test_same_is_the_training_schedule_over_the_phase_in_this_cycle():
    def by_cycle(p):
        return p.step + 100.0 * p.cycle

    assert curve(partial(same, of=by_cycle), 3, cycle=2) == [200.0, 201.0, 202.0]
    assert curve(partial(same, of=TRAINING), 20) == curve(TRAINING, 20)


def test_training_schedule_is_evaluated_once_in_a_cycle_and_as_it_is_in_that_cycle():
    seen = []

    def training(p):
        seen.append(p)
        return 1.0 - p.step / p.steps

    place = {"cycle": 3, "cycles": 5, "density": 0.2, "peak": 0.3}
    curve(of(slr, training), 20, **place, norm_drop=0.5, pruned=0.5)
    assert seen == [Progress(step=t, steps=40, steps_per_epoch=4, **place) for t in range(40)]


@pytest.mark.parametrize("schedule", [ft, lrw, slr, clr, llr, allr])
def test_dense_may_be_given_in_epochs(schedule):
    assert curve(of(schedule, dense="10ep"), 20, pruned=0.5) == curve(of(schedule), 20, pruned=0.5)


@pytest.mark.parametrize("schedule", [ft, lrw, slr, clr, llr, allr])
def test_training_of_no_steps_is_an_error(schedule):
    with pytest.raises(ValueError) as error:
        curve(of(schedule, dense="0ep"), 20)
    assert (
        str(error.value) == "protocol.dense=0ep: must be longer than 0 steps; choose retrain=same otherwise"
    )


@pytest.mark.parametrize("schedule", [slr, clr, llr, allr])
@pytest.mark.parametrize("warmup", [1.0, -0.1])
def test_warmup_out_of_range_is_an_error(schedule, warmup):
    with pytest.raises(ValueError) as error:
        curve(of(schedule, warmup=warmup), 20)
    assert str(error.value) == f"retrain.warmup={warmup}: must be a share of the retraining phase in [0, 1)"


def test_lrw_longer_than_training_names_the_way_out():
    with pytest.raises(ValueError) as error:
        curve(of(lrw), 41)
    assert str(error.value) == (
        "protocol.dense=40it: must be at least as long as retraining with retrain=lrw (41 steps "
        "of retraining, 40 of training); shorten the retraining or choose retrain=slr"
    )
