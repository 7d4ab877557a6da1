"""AP: worked numbers of its card, exact counts, what each mode does to the plan."""

import pytest
import torch
from torch import nn

from prunebench.companions.ap import AP
from prunebench.core.loop import Sink, fit
from prunebench.core.masks import Masks
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.criteria.magnitude import magnitude
from prunebench.methods.pruner import Pruner

torch.set_num_threads(1)

# the card's example: w* after training, w_0 at its start
END = [0.9, -0.8, 0.05, -0.6, 0.02, -0.3, 0.7, -0.1, 0.4, -0.5]
START = [0.2, -0.7, 0.30, -0.1, 0.10, -0.28, 0.1, 0.25, 0.35, -0.9]


class Net(nn.Module):
    """Layers of weights without a use; forward is never called here."""

    def __init__(self, *layers):
        super().__init__()
        for i, weights in enumerate(layers):
            self.register_parameter(f"w{i}", nn.Parameter(torch.tensor(weights)))


def a_run(end, start, alive=None):
    """A run at the end of a training from `start` to `end`, lists of weights per layer."""
    start_state = Net(*start).state_dict()
    model = Net(*end)
    names = list(start_state)
    run = Run(
        model=model, data=None, loss_fn=None, prunable=names, seed=0, fresh_state=lambda *key: start_state
    )
    if alive is not None:
        run.set_masks(Masks({n: torch.tensor(a) for n, a in zip(names, alive)}))
        run.clock.cycle = 1
    return run


def pruner(**options):
    return Pruner(magnitude, min_kept=0, **options)


def ap(**options):
    return AP(pruner(), **options)


def bits(run):
    return [m.int().tolist() for m in run.masks.values()]


def test_the_cards_example():
    run = a_run([END], [START])
    ap(share=0.5).prune(run, 0.2)
    assert bits(run) == [[1, 1, 1, 1, 0, 0, 1, 1, 1, 1]]


def test_share_0_is_the_base_method_and_share_1_is_solo():
    for share, mode, other in ((0, "lite", pruner()), (1, "lite", ap(mode="solo"))):
        one, two = a_run([END], [START]), a_run([END], [START])
        ap(share=share, mode=mode).prune(one, 0.3)
        other.prune(two, 0.3)
        assert bits(one) == bits(two)
    assert bits(one) == [[1, 0, 1, 1, 1, 0, 1, 0, 1, 1]]  # -0.1 moved by 0.35, less than -0.5 and -0.6


def test_before_its_start_cycle_the_base_method_prunes_alone():
    one, two = a_run([END], [START]), a_run([END], [START])
    ap(share=0.5, start_cycle=2).prune(one, 0.2)
    pruner().prune(two, 0.2)
    assert bits(one) == bits(two)


def test_the_movement_counts_from_the_snapshot_of_the_last_trainings_start():
    alive = [True] * 9 + [False]
    run = a_run([END], [START], [alive])
    run.snapshots["cycle"] = Net([0.0, -0.8, *START[2:]]).state_dict()
    ap(share=0.5).prune(run, 0.3)
    assert bits(run) == [[1, 0, 1, 1, 0, 1, 1, 1, 1, 0]]  # -0.8 did not move since then


def random_run(seed, layers=(40, 25, 60), density=0.6):
    rng = torch.Generator().manual_seed(seed)
    draw = [torch.randn(n, generator=rng) for n in layers]
    start = [torch.randn(n, generator=rng) for n in layers]
    alive = [(torch.rand(n, generator=rng) < density).tolist() for n in layers]
    return a_run([d.tolist() for d in draw], [s.tolist() for s in start], alive)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("seed", range(6))
def test_counts_are_exact_and_what_ap_removes_was_alive_and_negative(seed, allocation, scope):
    run, alone = random_run(seed), random_run(seed)
    before = {n: m.clone() for n, m in run.masks.items()}
    weights = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    keep = round(0.3 * run.masks.total)
    AP(Pruner(magnitude, allocation=allocation), share=0.25, scope=scope).prune(run, 0.7)
    assert run.masks.kept == keep
    assert all(bool((m <= before[n]).all()) for n, m in run.masks.items())
    mine = round(0.25 * (sum(int(m.sum()) for m in before.values()) - keep))
    Pruner(magnitude, allocation=allocation).prune(alone, 1 - (keep + mine) / run.masks.total)
    by_ap = {n: alone.masks[n] & ~m for n, m in run.masks.items()}
    assert sum(int(m.sum()) for m in by_ap.values()) == mine
    assert all(bool((weights[n][m] < 0).all()) for n, m in by_ap.items())


def test_ap_takes_the_candidates_that_moved_least_over_all_layers():
    run = random_run(1)
    weights = torch.cat([p.detach() for p in run.model.parameters()])
    start = torch.cat(list(run.initial_state().values()))
    before = torch.cat(list(run.masks.values()))
    ap(mode="solo").prune(run, 0.6)
    gone = before & ~torch.cat(list(run.masks.values()))
    stayed = torch.cat(list(run.masks.values())) & (weights < 0)
    moved = (weights - start).abs()
    assert moved[gone].max() <= moved[stayed].min()


def test_layer_scope_takes_from_each_layer_in_proportion_to_what_is_alive():
    run = random_run(2, layers=(100, 200, 300), density=1.0)
    ap(mode="solo", scope="layer").prune(run, 0.2)
    assert list(run.masks.kept_per_layer.values()) == [80, 160, 240]


def test_where_candidates_are_short_the_base_method_removes_the_rest():
    run = a_run([[0.1, 0.2, -0.3, 0.4, 0.5]], [[0.0] * 5])
    ap(share=1.0).prune(run, 0.6)
    assert bits(run) == [[0, 0, 0, 1, 1]]


def test_solo_refuses_where_negative_weights_are_short():
    run = a_run([[0.1, 0.2, -0.3, 0.4, 0.5]], [[0.0] * 5])
    with pytest.raises(ValueError, match="event 1 is to remove 3 weights, only 1 are negative"):
        ap(mode="solo", min_kept=0).prune(run, 0.6)


def test_the_first_layer_may_be_skipped():
    run = a_run([[-0.1, -0.2], [-0.3, -0.4]], [[-0.1, -0.2], [0.0, 0.0]])
    ap(mode="solo", skip_first_layer=True, min_kept=0).prune(run, 0.25)
    assert bits(run) == [[1, 1], [0, 1]]


def test_min_kept_weights_stay_in_a_layer_without_positive_ones():
    run = a_run([[-0.1, -0.2], [0.3, -0.4, -0.5]], [[-0.1, 0.2], [0.0, 0.0, 0.0]])
    ap(mode="solo", min_kept=1).prune(run, 0.4)
    assert bits(run) == [[0, 1], [1, 0, 1]]


# Plans


def schedule(p):
    return 1.0


def rounds(**options):
    later = [Phase(f"round-0{j}", "3it", schedule, sparsity=0.3 * j, **options) for j in (1, 2)]
    return [Phase("dense", "4it", schedule), *later]


def test_lite_keeps_the_phases_and_remembers_where_trainings_start():
    plan = ap().plan(rounds())
    assert [(p.name, p.length, p.snapshot) for p in plan] == [
        ("dense", "4it", ()),  # its start is the initial network
        ("round-01", "3it", (("cycle", "0it"),)),
        ("round-02", "3it", ()),
    ]


def test_pro_trains_every_round_twice_from_the_same_start():
    plan = ap(mode="pro").plan(rounds(weights="random"))
    assert [(p.name, p.sparsity, p.weights, p.auxiliary) for p in plan] == [
        ("dense", None, "keep", False),
        ("round-01a", None, "random", True),
        ("round-01", 0.3, "cycle", False),
        ("round-02a", None, "random", True),
        ("round-02", 0.6, "cycle", False),
    ]
    assert [p.snapshot for p in plan if p.auxiliary] == [(("cycle", "0it"),)] * 2


def test_matched_gives_the_base_method_the_steps_of_pro():
    matched, pro = ap(mode="matched").plan(rounds()), ap(mode="pro").plan(rounds())
    steps = [sum(int(p.length[:-2]) for p in plan) for plan in (matched, pro)]
    assert steps == [16, 16]
    assert [p.length for p in matched] == ["4it", "6it", "6it"]


@pytest.mark.parametrize("weights", ["keep", "init", "random"])
def test_pro_puts_survivors_back_to_the_rounds_start_bit_for_bit(weights):
    from tests.unit.test_loop import make_optimizer, make_run

    run = make_run()
    method = AP(Pruner(magnitude), mode="pro")
    seen = {}

    class Watch(Sink):
        def entered(self, run, method, phase):
            seen[phase.name] = {n: p.detach().clone() for n, p in run.model.named_parameters()}
            if phase.sparsity:
                mask = dict(run.masks)
                first = seen[f"{phase.name}a"]
                for name, weight in seen[phase.name].items():
                    assert torch.equal(weight, first[name] * mask[name] if name in mask else first[name])

    run.clock.phase = 0
    fit(method.plan(rounds(weights=weights)), run, method, make_optimizer, Watch())
    assert set(seen) == {"dense", "round-01a", "round-01", "round-02a", "round-02"}
    assert not torch.equal(seen["round-01"]["1.weight"], seen["round-01a"]["1.weight"])


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ([Phase("dense", "4it", schedule)], "needs pruning events"),
        ([Phase("train", "4it", schedule, sparsity=0.5)], "prunes before any"),
    ],
)
def test_a_plan_that_ap_cannot_work_in_is_refused(plan, problem):
    with pytest.raises(ValueError, match=rf"companion=\[ap\]: .*{problem}"):
        ap().plan(plan)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"start_cycle": 0}, "start_cycle=0"),
        ({"mode": "solo", "share": 0.1}, "share=0.1: has no effect"),
        ({"mode": "matched", "share": 0.1}, "share=0.1: has no effect"),
        ({"min_kept": -1}, "min_kept=-1"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(options, key):
    with pytest.raises(ValueError, match=rf"companion\.ap\.{key}"):
        ap(**options)


def test_a_start_cycle_beyond_the_plan_is_refused():
    with pytest.raises(ValueError, match=r"companion\.ap\.start_cycle=3: must be at most 2"):
        ap(start_cycle=3).plan(rounds())


def test_a_base_method_that_prunes_filters_is_refused():
    with pytest.raises(ValueError, match=r"sparsity\.granularity=filter"):
        AP(Pruner(magnitude, granularity="filter")).check(a_run([END], [START]), [0.5])
