"""PLATON: the worked numbers of its scores, schedule and mask rule, and a slow loop written from the text."""

import pytest
import torch

from prunebench.core.loop import Sink, fit
from prunebench.core.ranking import _sorted, ranked
from prunebench.core.selection import select
from prunebench.methods.platon import PLATON, not_below
from tests.conformance import kit
from tests.unit.within import NAMES, Plain, fitted, phase, small_run

torch.set_num_threads(1)


def gathered(values, **options):
    """The method after sensitivities of one weight at steps 1, 2, ..."""
    method = PLATON(**options)
    names = ("window_mean", "importance", "deviation")
    for name in names:
        setattr(method, name, {"w": torch.zeros(1, dtype=torch.float64)})
    for time, value in enumerate(values, start=1):
        method.gather_([torch.tensor([value], dtype=torch.float64)], time)
    return method


def numbers(method):
    return [float(t["w"]) for t in (method.importance, method.deviation, method.scores())]


def test_a_trace_of_eight_steps_in_windows_of_two():
    wanted = {
        2: (0.075, 0.02125, 0.00159375),
        4: (0.43875, 0.12325, 0.05407594),
        6: (1.1229375, 0.31094063, 0.34916689),
        8: (1.17949688, 0.31141875, 0.36731744),
    }
    for steps, values in wanted.items():
        method = gathered([1, 3, 2, 4, 6, 2, 1, 5][:steps], window=2)
        assert numbers(method) == pytest.approx(values, abs=1e-8)
    means = [float(gathered([1, 3, 2, 4, 6, 2, 1, 5][:t], window=2).window_mean["w"]) for t in (1, 3, 5, 7)]
    assert means == [0.5, 2.5, 5.0, 1.5]


@pytest.mark.parametrize(("steps", "mean"), [(9, 0.9), (19, 1.0)])
def test_the_first_window_has_a_0_in_its_mean(steps, mean):
    assert float(gathered([1.0] * steps).window_mean["w"]) == pytest.approx(mean, abs=1e-12)


def windows(values, **options):
    """The method after whole windows of these means: with windows of one step the first one is 0."""
    return gathered([*values, 0.0], window=1, **options)


def test_one_window_of_value_v():
    assert numbers(windows([2.0])) == pytest.approx((0.15 * 2, 0.0425 * 2, 0.006375 * 4))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.5] * 20, (0.48062, 0.067942, 0.032654)),
        ([0.0, 1.0] * 10, (0.519589, 0.290669, 0.151029)),
        ([0.4, 0.6] * 10, (0.488414, 0.088448, 0.043199)),
    ],
)
def test_of_equal_means_the_noisy_one_scores_higher(values, wanted):
    assert numbers(windows(values)) == pytest.approx(wanted, abs=6e-6)


def test_without_uncertainty_the_score_is_the_importance():
    assert float(windows([2.0], uncertainty="none").scores()["w"]) == pytest.approx(0.3)


def test_the_variance_is_the_mean_of_squared_deviations_over_the_windows():
    method = windows([1.0, 3.0], uncertainty="var")  # and the empty one before
    first, second = 0.15, 0.15 + 0.15 * (3 - 0.15)
    variance = ((1 - first) ** 2 + (3 - second) ** 2) / 3
    assert numbers(method) == pytest.approx((second, variance, second * variance**0.5))


def placed(steps, target=0.9, **options):
    run, method = small_run(), PLATON(**options)
    run.goal, run.clock.steps = target, steps
    return run, method


def test_the_remaining_share_falls_on_a_cubic_between_the_stages():
    run, method = placed(1000, t_initial=0.1, t_final="200it")
    wanted = {
        100: 1,
        101: 0.996148,
        325: 0.381209,
        550: 0.140999,
        775: 0.100041,
        800: 0.1,
        801: 0.1,
        999: 0.1,
    }
    for time, remaining in wanted.items():
        assert 1 - method.sparsity_at(run, time) == pytest.approx(remaining, abs=5e-7)


def test_the_stages_of_the_papers_mnli_setting():
    run, method = placed(392_702 // 32 * 8 + 8, t_initial="5400it", t_final="27000it")
    assert run.clock.steps == 98_176
    first, middle = method._span(run)
    assert (first, middle, run.clock.steps - first - middle) == (5400, 65_776, 27_000)


def test_weights_are_zeroed_at_ends_of_windows_and_in_the_last_stage_at_every_step():
    run, method = placed(40, t_initial=0.25, t_final=0.2)
    assert [t for t in range(1, 41) if method.zeroes(run, t)] == [20, 30, *range(33, 41)]


SCORES = [0.4, 0.1, 0.3, 0.2, 0.5, 0.1, 0.0, 0.9, 0.8, 0.7]


def test_the_mask_rule_of_the_code_zeroes_one_fewer_than_the_exact_one():
    scores = {"a": torch.tensor(SCORES[:4]), "b": torch.tensor(SCORES[4:])}
    strict, exact = not_below(scores, 0.5), ranked(scores, 0.5)
    assert torch.cat(list(strict.values())).tolist() == [s >= 0.3 for s in SCORES]
    assert torch.cat(list(exact.values())).tolist() == [s > 0.3 for s in SCORES]
    assert (strict.kept, exact.kept) == (6, 5)


def test_nothing_is_zeroed_by_the_rule_of_the_code_where_half_the_scores_are_0():
    assert not_below({"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}, 0.5).kept == 4
    layers = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0]), "b": torch.tensor([5.0, 6.0, 7.0, 8.0])}
    apart = not_below(layers, 0.5, allocation="uniform")
    assert [m.tolist() for m in apart.values()] == [[False, True, True, True]] * 2


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_ranking_by_sorting_as_on_cuda_gives_the_masks_of_select(allocation):
    rng = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.randn(6, 4, 3, 3, generator=rng).contiguous(memory_format=torch.channels_last),
        "b": torch.randn(9, 5, generator=rng).mul(3).round(),
        "c": torch.zeros(7),
    }
    for sparsity in (0.0, 0.3, 0.5, 0.9, 0.99):
        here, there = (f(scores, sparsity, allocation=allocation) for f in (select, _sorted))
        assert all(torch.equal(here[n], there[n]) for n in scores)
        assert here.kept == there.kept == sum(int(m.sum()) for m in there.values())
        assert there.kept_per_layer == here.kept_per_layer


def test_a_multiple_of_the_loss_changes_scores_and_no_mask():
    rng = torch.Generator().manual_seed(2)
    trace = [torch.rand(50, generator=rng, dtype=torch.float64) for _ in range(24)]

    def scores(factor, **options):
        method = PLATON(window=4, **options)
        for name in ("window_mean", "importance", "deviation"):
            setattr(method, name, {"w": torch.zeros(50, dtype=torch.float64)})
        for time, s in enumerate(trace, start=1):
            method.gather_([factor * s], time)
        return method.scores()

    for options, power in (({}, 2), ({"uncertainty": "none"}, 1), ({"uncertainty": "var"}, 2)):
        one, many = scores(1.0, **options), scores(4.0, **options)
        assert torch.equal(one["w"] * 4**power, many["w"])  # powers of two: no rounding
        assert torch.equal(ranked(one, 0.8)["w"], ranked(many, 0.8)["w"])


def reference_platon(steps, target, first, last, window, *, pre=False, uncertain=True, clip=0.5):
    """The algorithm step by step in dictionaries, one tensor after the other: (weights, masks) per step."""
    plain = Plain(steps)
    params, total = plain.parameters, sum(plain.parameters[n].numel() for n in NAMES)
    ipt, bar, unc = ({n: torch.zeros_like(params[n]) for n in NAMES} for _ in range(3))
    kept, seen = None, []
    for t in range(1, steps + 1):
        g = plain.gradients(t - 1)
        norm = sum((v**2).sum() for v in g.values()) ** 0.5
        g = {n: v * min(1.0, clip / (float(norm) + 1e-6)) for n, v in g.items()}
        before = {n: params[n].detach().clone() for n in NAMES}
        with torch.no_grad():
            plain.momentum_step(t - 1, params, g)
            for n in NAMES:
                s, j = ((before if pre else params)[n] * g[n]).abs(), t % window
                if j:
                    ipt[n] = (ipt[n] * j + s) / (j + 1)
                else:
                    bar[n] = 0.85 * bar[n] + 0.15 * ipt[n]
                    unc[n] = 0.95 * unc[n] + 0.05 * (ipt[n] - bar[n]).abs()
                    ipt[n] = s
            if t > first and (t % window == 0 or t > steps - last):
                share = 1.0 if t > steps - last else (t - first) / (steps - first - last)
                remaining = (1 - target) + target * (1 - share) ** 3
                scores = torch.cat([(bar[n] * (unc[n] if uncertain else 1)).flatten() for n in NAMES])
                order = scores.argsort(descending=True, stable=True)
                flat = torch.zeros(total, dtype=torch.bool)
                flat[order[: round(remaining * total)]] = True
                parts = flat.split([params[n].numel() for n in NAMES])
                kept = {n: part.view(params[n].shape) for n, part in zip(NAMES, parts)}
                for n in NAMES:
                    params[n][~kept[n]] = 0.0
        seen.append(({n: params[n].detach().clone() for n in NAMES}, kept))
    return seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, {}),
        ({"score_point": "pre_step"}, {"pre": True}),
        ({"uncertainty": "none"}, {"uncertain": False}),
    ],
    ids=["post_step", "pre_step", "importance alone"],
)
def test_a_whole_run_is_that_of_a_slow_loop(options, words):
    _, look = fitted(PLATON(window=5, t_initial=0.1, t_final=0.25, grad_clip=0.5, **options))
    expected = reference_platon(60, 0.75, 6, 15, 5, **words)
    for t, (weights, kept) in enumerate(expected):
        for n in NAMES:
            torch.testing.assert_close(look.weights[t][n], weights[n], rtol=1e-9, atol=1e-12)
            assert kept is None or torch.equal(look.masks[t][n], kept[n])


def test_clipping_and_the_place_of_the_score_make_a_difference():
    ends = [
        fitted(PLATON(window=5, **o))[1].weights[-1] for o in ({}, {"grad_clip": 0.1}, {"grad_clip": None})
    ]
    other = fitted(PLATON(window=5, score_point="pre_step"))[1]
    assert not torch.equal(ends[0]["fc1.weight"], ends[1]["fc1.weight"])
    assert not torch.equal(ends[1]["fc1.weight"], ends[2]["fc1.weight"])
    assert not torch.equal(ends[0]["fc1.weight"], other.weights[-1]["fc1.weight"])


def alive(weights):
    return torch.cat([(weights[n] != 0).flatten() for n in NAMES])


def test_weights_are_dense_in_the_first_stage_and_0_after_every_step_of_the_last():
    _, look = fitted(PLATON(window=5, t_initial=0.1, t_final=0.25))
    now = [alive(w) for w in look.weights]
    assert all(a.all() for a in now[:9])
    assert [int((~a).sum()) for a in now[45:]] == [30] * 15  # 75 % of 40
    assert all(a.all() for a in now[10:14])  # between two zeroings all are updated
    assert look.hold == [t <= 6 or t % 5 == 0 or t > 45 for t in range(1, 61)]


def test_weights_revive_in_the_middle_stage_and_hardly_any_at_the_end():
    """WRN-10-1, 200 steps: weights zeroed at one end of a window and alive at the next."""
    parts = kit.assemble(kit.tiny(kit.Case("platon"), "wrn", "protocol.dense=200it"))
    params, revived, last = dict(parts.run.model.named_parameters()), {}, []

    class Watch(Sink):
        def after_step(self, run, method, phase, loss):
            if run.clock.step % 10 == 0:
                now = torch.cat([(params[n] != 0).flatten() for n in run.masks])
                revived[run.clock.step] = int((now & ~last.pop()).sum()) if last else 0
                last.append(now)

    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, Watch())
    assert sum(revived[t] for t in range(20, 141, 10)) > 0
    assert max(revived[t] for t in (180, 190, 200)) < max(revived.values()) / 4
    assert not last[0].all() and int(last[0].sum()) == parts.run.masks.kept


def test_momentum_of_zeroed_weights_goes_on():
    run, _ = fitted(PLATON(window=5))
    states = [run.optimizer.state[p]["momentum_buffer"] for p in (run.model.fc1.weight, run.model.fc2.weight)]
    gone = [~run.masks[n] for n in NAMES]
    assert all(bool((s[g] != 0).any()) for s, g in zip(states, gone))


def test_the_strict_rule_holds_in_the_middle_stage_and_the_end_is_exact():
    _, look = fitted(PLATON(window=5, t_initial=0.1, t_final=0.25, exact_k=False))
    exact = fitted(PLATON(window=5, t_initial=0.1, t_final=0.25))[1]
    kept = [sum(int(m.sum()) for m in masks.values()) for masks in look.masks]
    wanted = [sum(int(m.sum()) for m in masks.values()) for masks in exact.masks]
    assert kept[45:] == wanted[45:] == [10] * 15
    assert all(a > b for a, b in zip(kept[9:45], wanted[9:45]))


def test_uniform_gives_every_layer_the_same_sparsity():
    run, _ = fitted(PLATON(window=5, allocation="uniform"))
    assert run.masks.kept_per_layer == {"fc1.weight": 6, "fc2.weight": 4}


def test_training_is_counted_dense_but_after_a_zeroing():
    run, method = placed(40, t_initial=0.25, t_final=0.2)
    counted = [method.train_macs(run, step, 10, 100) for step in range(40)]
    assert [s for s, macs in enumerate(counted) if macs == 120] == [20, 30, *range(33, 40)]
    assert set(counted) == {120, 300}
    run.goal = None
    assert method.train_macs(run, 5, 10, 100) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta1": 1.0}, r"beta1=1.0: must lie in \[0, 1\)"),
        ({"beta2": -0.1}, "beta2=-0.1"),
        ({"window": 0}, "window=0: must be at least 1 step"),
        ({"start": 1.0}, "start=1.0"),
        ({"allocation": "erk"}, "sparsity.allocation=erk: must be one of global, uniform"),
        ({"uncertainty": "max"}, "uncertainty=max: must be one of abs, var, none"),
        ({"score_point": "mid"}, "score_point=mid"),
        ({"grad_clip": 0.0}, "grad_clip=0.0: must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PLATON(**options)


@pytest.mark.parametrize(
    ("options", "plan", "message"),
    [
        ({"t_initial": 0.5, "t_final": 0.4}, phase(), "leave 6 of 60 steps .* at least method.window=10"),
        ({"t_final": 0.0}, phase(), "1 in the last"),
        ({"t_initial": 1.5}, phase(), r"method.t_initial=1.5: must lie in \[0, 1\)"),
        ({"t_final": "20"}, phase(), "method.t_final=20: must be a number with its unit"),
        ({"start": 0.8}, phase(), "method.start=0.8: must be below sparsity.target=0.75"),
        ({}, phase(reach=None), "sparsity.target=null"),
        ({}, phase(reach=0.999), "sparsity.target=0.999: keeps no weight of 40"),
    ],
)
def test_stages_and_targets_that_do_not_fit_are_refused_before_training(options, plan, message):
    with pytest.raises(ValueError, match=message):
        fitted(PLATON(**options), plan)
