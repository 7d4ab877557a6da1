"""Protocols: the plan as data, and every error message."""

from dataclasses import replace

import pytest

from prunebench import protocols
from prunebench.core.phase import Phase
from prunebench.schedules import cosine, linear

SCHEDULES = {"schedule": cosine, "retrain_schedule": linear}


def dense(**options):
    return protocols.dense(**SCHEDULES, **{"dense": "40ep", **options})


def one_shot(**options):
    return protocols.one_shot(**SCHEDULES, **{"target": 0.9, "dense": "40ep", "retrain": "20ep", **options})


def iterative(**options):
    usual = {"target": 0.9, "rounds": 3, "dense": "40ep", "retrain": "20ep"}
    return protocols.iterative(**SCHEDULES, **{**usual, **options})


def lengths(plan):
    return [phase.length for phase in plan]


def test_dense_is_one_phase():
    assert dense(keep="best", patience="5ep") == [Phase("dense", "40ep", cosine, keep="best", patience="5ep")]


def test_one_shot_is_one_pruning_event():
    assert one_shot() == [Phase("dense", "40ep", cosine), Phase("round-01", "20ep", linear, sparsity=0.9)]


def test_one_shot_is_iterative_with_one_round():
    options = {
        "weights": "rewind",
        "rewind_to": "3ep",
        "keep": "best",
        "patience": "5ep",
        "monitor": "loss",
        "control": "random_even",
    }
    assert one_shot(**options) == iterative(rounds=1, **options)


def test_iterative_prunes_in_every_round():
    plan = iterative()
    assert [phase.name for phase in plan] == ["dense", "round-01", "round-02", "round-03"]
    assert [phase.sparsity for phase in plan][:1] == [None]
    assert [phase.sparsity for phase in plan][1:] == pytest.approx(
        [1 - 0.1 ** (j / 3) for j in (1, 2, 3)], rel=1e-12
    )
    assert [phase.schedule for phase in plan] == [cosine, linear, linear, linear]
    assert all(phase.weights == "keep" and phase.shuffle is None and phase.snapshot == () for phase in plan)


@pytest.mark.parametrize(
    ("target", "rounds", "rate"), [(0.9, 2, 0.683772), (0.9, 3, 0.535841), (0.98, 3, 0.728558)]
)
def test_rate_of_the_first_round(target, rounds, rate):
    assert iterative(target=target, rounds=rounds)[1].sparsity == pytest.approx(rate, abs=5e-7)


@pytest.mark.parametrize("spacing", ["geometric", "linear"])
@pytest.mark.parametrize("target", [0.0, 0.3, 0.7, 0.9, 0.98, 0.999])
@pytest.mark.parametrize("rounds", [1, 3, 7, 10])
def test_last_round_asks_exactly_for_the_target(spacing, target, rounds):
    assert iterative(spacing=spacing, target=target, rounds=rounds)[-1].sparsity == target


def test_linear_spacing_removes_equal_counts():
    plan = iterative(spacing="linear", target=0.6)
    assert [phase.sparsity for phase in plan[1:]] == pytest.approx([0.2, 0.4, 0.6], rel=1e-12)


def test_rate_removes_a_share_of_the_rest():
    plan = iterative(target=None, rate=0.2, rounds=15)
    density = [100 * (1 - phase.sparsity) for phase in plan[1:]]
    assert density[:5] == pytest.approx([80, 64, 51.2, 40.96, 32.768], rel=1e-9)
    assert density[-1] == pytest.approx(3.518, abs=5e-4)


def test_retrain_total_gives_the_last_round_the_remainder():
    assert lengths(iterative(retrain=None, retrain_total="100ep")) == ["40ep", "33ep", "33ep", "34ep"]
    assert lengths(iterative(retrain=None, retrain_total="7.5ep")) == ["40ep", "2ep", "2ep", "3.5ep"]
    assert lengths(iterative(retrain=None, retrain_total="1000it")) == ["40ep", "333it", "333it", "334it"]


def test_budget_covers_dense_training_and_all_rounds():
    assert lengths(iterative(retrain=None, budget="100ep")) == ["40ep", "20ep", "20ep", "20ep"]
    assert lengths(iterative(retrain=None, budget="1000000it", dense="1it")) == ["1it", *["333333it"] * 3]


@pytest.mark.parametrize("option", [{"retrain": "0ep"}, {"retrain_total": "0ep"}, {"budget": "40ep"}])
def test_rounds_may_only_prune(option):
    assert lengths(iterative(**{"retrain": None, **option}))[1:] == ["0ep"] * 3


@pytest.mark.parametrize("weights", ["init", "random"])
def test_rounds_that_start_again_last_as_long_as_dense_training(weights):
    plan = iterative(retrain=None, weights=weights)
    assert lengths(plan) == ["40ep"] * 4
    assert [phase.weights for phase in plan] == ["keep", weights, weights, weights]
    assert plan[0].snapshot == ()


def test_rewinding_takes_a_snapshot_and_trains_the_rest():
    plan = iterative(retrain=None, weights="rewind", rewind_to="2.5ep")
    assert plan[0].snapshot == (("rewind", "2.5ep"),)
    assert lengths(plan) == ["40ep", "37.5ep", "37.5ep", "37.5ep"]
    assert [phase.weights for phase in plan] == ["keep", "rewind", "rewind", "rewind"]
    assert lengths(iterative(retrain=None, weights="rewind", rewind_to="0it"))[1:] == ["40ep"] * 3


def test_rewinding_point_may_have_another_unit_when_rounds_have_a_length():
    plan = iterative(weights="rewind", rewind_to="500it")
    assert plan[0].snapshot == (("rewind", "500it"),)
    assert lengths(plan) == ["40ep", "20ep", "20ep", "20ep"]


def test_differences_of_lengths_have_no_rounding_noise():
    assert lengths(iterative(retrain=None, weights="rewind", dense="2.3ep", rewind_to="0.1ep"))[1] == "2.2ep"


@pytest.mark.parametrize(
    ("control", "shuffle"),
    [
        ("reinit", None),
        ("random_layerwise", "layerwise"),
        ("random_global", "global"),
        ("random_even", "even"),
    ],
)
def test_control_changes_the_last_round_only(control, shuffle):
    plan, controlled = iterative(weights="init"), iterative(weights="init", control=control)
    assert controlled[:-1] == plan[:-1]
    assert controlled[-1] == replace(plan[-1], weights="random", uncontrolled="init", shuffle=shuffle)


def test_keep_patience_and_monitor_hold_for_every_phase():
    plan = iterative(keep="best", patience="5ep", monitor="loss")
    assert {(phase.keep, phase.patience, phase.monitor) for phase in plan} == {("best", "5ep", "loss")}


FORM = "must be a number with its unit, such as 160ep (epochs) or 2000it (steps)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "sparsity.target=1.0: must lie in [0, 1)"),
        ({"target": -0.1}, "sparsity.target=-0.1: must lie in [0, 1)"),
        ({"target": None, "rate": 0.0}, "sparsity.rate=0.0: must lie in (0, 1)"),
        ({"target": None, "rate": 1.0}, "sparsity.rate=1.0: must lie in (0, 1)"),
        (
            {"rate": 0.2},
            "sparsity.target=0.9 sparsity.rate=0.2: exactly one must be given; set the other to null",
        ),
        (
            {"target": None},
            "sparsity.target=null sparsity.rate=null: exactly one must be given; set the other to null",
        ),
        (
            {"target": None, "rate": 0.2, "spacing": "linear"},
            "sparsity.spacing=linear: must be geometric with sparsity.rate",
        ),
        ({"spacing": "cubic"}, "sparsity.spacing=cubic: must be one of geometric, linear"),
        ({"keep": "first"}, "protocol.keep=first: must be one of last, best"),
        ({"weights": "late"}, "protocol.weights=late: must be one of keep, init, rewind, random"),
        (
            {"control": "shuffle"},
            (
                "protocol.control=shuffle: must be one of none, reinit, random_layerwise, random_global, "
                "random_even"
            ),
        ),
        ({"rounds": 0}, "sparsity.rounds=0: must be at least 1; or choose protocol=dense"),
        (
            {"retrain": None},
            (
                "protocol.retrain=null: exactly one of protocol.retrain, protocol.retrain_total and "
                "protocol.budget must be given with protocol.weights=keep"
            ),
        ),
        (
            {"budget": "100ep"},
            "protocol.retrain=20ep protocol.budget=100ep: at most one must be given; set the others to null",
        ),
        (
            {"retrain": None, "budget": "30ep"},
            "protocol.budget=30ep: must be at least as long as protocol.dense=40ep",
        ),
        (
            {"retrain": None, "budget": "9000it"},
            "protocol.budget=9000it: must have the unit of protocol.dense=40ep, since one is subtracted",
        ),
        (
            {"retrain": None, "budget": "42ep"},
            (
                "protocol.budget=42ep: must leave at least 1ep for each of the 3 rounds, but 2ep is left for "
                "all of them; lengthen it, lower sparsity.rounds, or give all lengths in steps (it)"
            ),
        ),
        (
            {"retrain": None, "weights": "rewind", "rewind_to": "500it"},
            "protocol.dense=40ep: must have the unit of protocol.rewind_to=500it, since one is subtracted",
        ),
        (
            {"weights": "rewind", "rewind_to": "40ep"},
            (
                "protocol.rewind_to=40ep: must be shorter than protocol.dense=40ep; "
                "to go on from its end choose protocol.weights=keep"
            ),
        ),
        (
            {"weights": "rewind", "dense": "0ep"},
            (
                "protocol.rewind_to=0it: must be shorter than protocol.dense=0ep; "
                "to go on from its end choose protocol.weights=keep"
            ),
        ),
        ({"rewind_to": "3ep"}, "protocol.rewind_to=3ep: must be 0it unless protocol.weights=rewind"),
        (
            {"weights": "random", "control": "reinit"},
            "protocol.control=reinit: must be none with protocol.weights=random, which reinits",
        ),
        ({"dense": "forty"}, f"protocol.dense=forty: {FORM}"),
        ({"retrain": "20"}, f"protocol.retrain=20: {FORM}"),
        ({"retrain": None, "retrain_total": "60e"}, f"protocol.retrain_total=60e: {FORM}"),
        ({"retrain": None, "budget": "-1ep"}, f"protocol.budget=-1ep: {FORM}"),
        ({"rewind_to": "2.5it"}, "protocol.rewind_to=2.5it: a number of steps must be whole"),
        ({"patience": "soon"}, f"protocol.patience=soon: {FORM}"),
        (
            {"monitor": "loss"},
            "protocol.monitor=loss: has no effect without protocol.patience or protocol.keep=best; set one",
        ),
        ({"monitor": "error"}, "protocol.monitor=error: must be one of top1, loss"),
        ({"patience": "0ep"}, "protocol.patience=0ep: must be longer than 0; null for no early end"),
    ],
)
def test_wrong_options_are_reported(options, message):
    with pytest.raises(ValueError) as error:
        iterative(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (dense, {"dense": "40"}, f"protocol.dense=40: {FORM}"),
        (dense, {"patience": "0it"}, "protocol.patience=0it: must be longer than 0; null for no early end"),
        (dense, {"keep": "first"}, "protocol.keep=first: must be one of last, best"),
        (one_shot, {"target": 1.0}, "sparsity.target=1.0: must lie in [0, 1)"),
        (
            one_shot,
            {"rewind_to": "3ep"},
            "protocol.rewind_to=3ep: must be 0it unless protocol.weights=rewind",
        ),
    ],
)
def test_wrong_options_of_the_short_protocols_are_reported(protocol, options, message):
    with pytest.raises(ValueError) as error:
        protocol(**options)
    assert str(error.value) == message


# Peaks, pruning at initialisation, the Oracle's path


def test_peaks_belong_to_the_phases_in_order():
    assert [p.peak for p in iterative(peaks=[0.1, 0.2, 0.3, 0.4])] == [0.1, 0.2, 0.3, 0.4]
    assert [p.peak for p in iterative()] == [None] * 4
    assert [p.peak for p in one_shot(peaks=[0.1, 0.2])] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("peaks", "message"),
    [([0.1, 0.2], "must be 4 learning rates, .* there are 2"), ([0.1, 0.1, 0.0, 0.1], "above 0")],
)
def test_wrong_peaks_are_refused(peaks, message):
    with pytest.raises(ValueError, match=message):
        iterative(peaks=peaks)


def at_init(**options):
    return protocols.at_init(**SCHEDULES, **{"target": 0.9, "dense": "40ep", **options})


def test_at_init_prunes_before_its_only_training_under_the_training_schedule():
    assert at_init() == [Phase("train", "40ep", cosine, sparsity=0.9)]
    reinit = Phase("train", "40ep", cosine, sparsity=0.9, weights="random", uncontrolled="keep")
    assert at_init(control="reinit") == [reinit]
    assert at_init(control="random_layerwise")[0].shuffle == "layerwise"


@pytest.mark.parametrize("target", [-0.1, 1.0])
def test_at_init_refuses_a_sparsity_out_of_range(target):
    with pytest.raises(ValueError, match=r"sparsity\.target"):
        at_init(target=target)


def test_the_oracles_path_is_the_iterative_plan():
    path = protocols.oracle(
        **SCHEDULES, grid=[0.1, 0.2], tolerance=0.0, target=0.9, rounds=3, dense="40ep", retrain="20ep"
    )
    assert [replace(p, peak=None) for p in path] == iterative()
