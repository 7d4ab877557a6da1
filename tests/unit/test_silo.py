"""SILO and cyclical schedules: the values of the card, limits, and equality with their special cases."""

import math
from functools import partial

import pytest
import yaml

from prunebench import config, retrain
from prunebench.core.run import Progress
from prunebench.schedules import cosine, cyclical, silo, step

CONF = config.conf_directory() / "schedule"
CYCLES = 26
DENSITY = 0.8  # per cycle


def flat(p):
    return 1.0


def place(cycle, *, steps=1000, at=0, density=None, cycles=CYCLES, peak=None):
    density = DENSITY**cycle if density is None else density
    return Progress(at, steps, 10, cycle=cycle, cycles=cycles, density=density, peak=peak)


def peaks(cycles, **options):
    return [silo(place(m), within=flat, base=1.0, **options) for m in cycles]


def test_peaks_of_the_two_author_scripts_equal_the_card():
    resnet20 = [0.03, 0.03, 0.030039, 0.032132, 0.047611, 0.064461, 0.068929, 0.069775, 0.069947]
    vgg19 = [0.04, 0.04, 0.040059, 0.043199, 0.066416, 0.091692, 0.098394, 0.099662, 0.099921]
    assert peaks(range(9), eps=0.03, delta=0.04) == pytest.approx(resnet20, abs=1e-6)
    assert peaks(range(9), eps=0.04, delta=0.06) == pytest.approx(vgg19, abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "values"),
    [
        (5, [0.001, 0.053, 0.440, 0.862, 0.973, 0.994, 0.999]),
        (1, [0.200, 0.360, 0.488, 0.590, 0.672, 0.738, 0.790]),
        (8, [0.000, 0.010, 0.405, 0.949, 0.997, 1.0, 1.0]),
    ],
)
def test_s_values_of_the_card(beta, values):
    found = [p - 1.0 for p in peaks(range(2, 9), eps=1.0, delta=1.0, beta=beta)]
    assert found == pytest.approx(values, abs=5e-4)


def test_beta_1_grows_with_the_share_of_weights_pruned():
    assert peaks([5], eps=1.0, delta=1.0, beta=1.0) == pytest.approx([1 + 1 - 0.8**4], rel=1e-12)


def test_the_formula_of_the_script_is_the_same_function():
    gamma = 1 - 0.8**3
    expected = 0.03 + 0.04 / (1 + (gamma / (1 - gamma)) ** -5)
    assert expected == pytest.approx(0.047611, abs=1e-6)
    assert peaks([4], eps=0.03, delta=0.04) == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize("beta", [1.0, 5.0, 8.0])
def test_half_of_the_growth_is_reached_where_half_of_the_weights_are_gone(beta):
    cycle = 1 + math.log(0.5) / math.log(0.8)
    assert cycle == pytest.approx(4.106, abs=1e-3)
    p = place(cycle, density=0.8**cycle)
    assert silo(p, within=flat, base=1.0, eps=1.0, delta=1.0, beta=beta) == pytest.approx(1.5, rel=1e-12)


def test_peaks_never_fall_and_stay_between_eps_and_eps_plus_delta_up_to_cycle_60():
    found = [
        silo(place(m, cycles=62), within=flat, base=1.0, eps=0.03, delta=0.04, beta=5.0) for m in range(61)
    ]
    assert found == sorted(found)
    assert found[0] == found[1] == 0.03
    assert all(0.03 <= value <= 0.07 for value in found)


@pytest.mark.parametrize("density", [1.0, 1.0 - 1e-16, 1e-300, 0.0])
def test_limits_of_the_density_are_finite(density):
    value = silo(place(5, density=density), within=flat, base=1.0, eps=0.03, delta=0.04, beta=8.0)
    assert 0.03 <= value <= 0.07


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_peak_is_eps_up_to_the_delay_and_more_after_it(delay):
    found = peaks(range(delay + 3), eps=0.1, delta=0.1, delay=delay)
    assert found[: delay + 1] == [0.1] * (delay + 1)
    assert found[delay + 1] > 0.1


def test_delta_0_is_the_warm_up_schedule_bit_for_bit():
    within = partial(step, milestones=[0.5, 0.64], warmup=0.5)
    for cycle in (0, 1, 7):
        for at in range(0, 1000, 13):
            p = place(cycle, at=at)
            assert silo(p, within=within, base=0.03, eps=0.03, delta=0.0) == within(p)


def test_the_growth_is_four_thirds_of_eps_by_default():
    assert peaks([7], eps=0.03) == pytest.approx(peaks([7], eps=0.03, delta=0.04), rel=1e-12)


def test_the_result_is_a_multiple_of_the_base_learning_rate():
    one = silo(place(7), within=flat, base=0.1, eps=0.03, delta=0.04)
    assert 0.1 * one == pytest.approx(0.069775, abs=1e-6)


def preset(name):
    """The schedule of an author preset, with the recommended fixes."""
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    shape = {k: v for k, v in node["within"].items() if not k.startswith("_")}
    options = {k: node[k] for k in ("eps", "delta", "beta", "delay")}
    return partial(silo, within=partial(step, **shape), base=1.0, **options)


@pytest.mark.parametrize(
    ("name", "epochs", "drops"), [("silo_resnet20", 50, (25, 32)), ("silo_vgg19", 160, (80, 120))]
)
def test_presets_reach_the_peak_once_and_drop_where_the_scripts_do(name, epochs, drops):
    schedule, steps = preset(name), epochs * 782
    peak = peaks([5], eps=schedule.keywords["eps"], delta=schedule.keywords["delta"])[0]
    curve = [schedule(place(5, steps=steps, at=t)) for t in range(steps)]
    assert max(curve) == peak
    assert curve[0] < 1e-3 * peak
    first, second = (epoch * 782 for epoch in drops)
    assert curve[first - 1] == peak
    assert curve[first] == pytest.approx(peak / 10, rel=1e-12)
    assert curve[second - 1] == pytest.approx(peak / 10, rel=1e-12)
    assert curve[second] == pytest.approx(peak / 100, rel=1e-12)
    assert curve[-1] == pytest.approx(peak / 100, rel=1e-12)


def test_retraining_schedules_take_the_peak_of_their_own_cycle():
    training = partial(silo, within=partial(cosine, warmup=0.1), base=0.1, eps=0.1, delta=0.1)
    slr = partial(retrain.slr, of=training, dense="1000it")
    tops = [max(slr(place(m, steps=200, at=t)) for t in range(200)) for m in (1, 4, 12)]
    assert tops == pytest.approx(peaks([1, 4, 12], eps=1.0, delta=1.0), rel=1e-6)


# Cyclical


def test_triangles_rise_to_1_and_fall_to_low():
    curve = [cyclical(Progress(t, 20, 10), period=0.4) for t in range(20)]
    triangle = [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]
    assert curve == [*triangle, *triangle, *triangle[:4]]


def test_a_period_may_be_a_length_and_odd_ones_still_reach_the_peak():
    assert max(cyclical(Progress(t, 100, 10), period="7it") for t in range(100)) == 1.0
    assert [cyclical(Progress(t, 100, 10), period="1ep", low=0.5) for t in (0, 5, 10)] == [0.5, 1.0, 0.5]


def test_s_cyc_is_a_triangle_under_the_s_curve():
    within = partial(cyclical, period=0.5)
    p = place(6, at=250)
    assert silo(p, within=within, base=1.0, eps=0.03, delta=0.04) == peaks([6], eps=0.03, delta=0.04)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps=0.0: must be a finite number above 0"),
        ({"delta": -1.0}, "delta=-1.0: must be a finite number of at least 0"),
        ({"beta": 0.0}, "beta=0.0: must be"),
        ({"delay": -1}, "delay=-1: must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        silo(place(3), within=flat, base=1.0, **({"eps": 0.03} | options))


@pytest.mark.parametrize(("cycles", "delay"), [(1, 0), (1, 1), (2, 1), (4, 3)])
def test_a_plan_in_which_the_peak_cannot_grow_is_refused(cycles, delay):
    with pytest.raises(ValueError, match=f"^delay={delay}: .* this plan has {cycles - 1} pruning event"):
        silo(place(0, cycles=cycles), within=flat, base=1.0, eps=0.03, delay=delay)
    silo(place(0, cycles=delay + 2), within=flat, base=1.0, eps=0.03, delay=delay)


def test_a_plan_with_peaks_of_its_own_is_refused():
    with pytest.raises(ValueError, match="SILO sets the peak of every cycle"):
        silo(place(3, peak=0.1), within=flat, base=1.0, eps=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"period": 0.0}, "period=0.0"), ({"period": "1it"}, "period=1it"), ({"low": 2.0}, "low=2.0")],
)
def test_cyclical_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        cyclical(Progress(0, 20, 10), **options)
