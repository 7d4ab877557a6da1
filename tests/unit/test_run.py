"""Run: randomness is a function of (seed, purpose, steps done), and a restored state is the saved one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunebench.core.masks import Masks
from prunebench.core.run import Clock, Run, generator, seed_of, seeded

torch.set_num_threads(1)


def make_run(seed=0):
    def fresh(*key):
        with seeded(seed, *key):
            return build().state_dict()

    def build():
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    with seeded(seed, "init"):
        model = build()
    return Run(
        model=model,
        data=SimpleNamespace(steps_per_epoch=5),
        loss_fn=nn.CrossEntropyLoss(),
        prunable=["0.weight", "2.weight"],
        seed=seed,
        fresh_state=fresh,
    )


def draw(run, purpose):
    return torch.rand(3, generator=run.rng(purpose)).tolist()


def test_rng_depends_on_seed_purpose_and_steps_done_only():
    run, other = make_run(), make_run()
    first = draw(run, "x")
    torch.rand(10), draw(run, "y")
    run.clock.phase, run.clock.step, run.clock.cycle = 3, 7, 2
    run.masks = Masks.ones(run.model, ["0.weight"])
    assert draw(run, "x") == first == draw(other, "x")


@pytest.mark.parametrize("change", ["seed", "purpose", "place"])
def test_rng_changes_with(change):
    run = make_run(seed=1 if change == "seed" else 0)
    run.clock.place = 1 if change == "place" else 0
    assert draw(run, "y" if change == "purpose" else "x") != draw(make_run(), "x")


def test_a_seed_has_63_bits_and_does_not_confuse_keys():
    assert all(0 <= seed_of(0, "data", epoch) < 2**63 for epoch in range(100))
    assert len({seed_of(1, 11), seed_of(11, 1), seed_of("1/11", 1), seed_of(1, 1, 1)}) == 4


def test_generators_of_a_key_draw_the_same_on_every_machine():
    assert torch.randint(1000, (4,), generator=generator(0, "data", 0)).tolist() == [285, 608, 483, 792]


def test_seeded_restores_the_global_generator_also_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded("a"):
        first = torch.rand(2)
    with pytest.raises(KeyError), seeded("b"):
        torch.rand(2)
        raise KeyError
    assert torch.equal(torch.rand(2), expected)
    with seeded("a"):
        assert torch.equal(torch.rand(2), first)


def test_seed_step_makes_dropout_a_function_of_the_step():
    run = make_run()

    def masks():
        run.seed_step()
        return nn.functional.dropout(torch.ones(50), 0.5)

    first = masks()
    torch.rand(7)
    assert torch.equal(masks(), first)
    run.clock.place += 1
    assert not torch.equal(masks(), first)
    run.clock.place, run.rank = 0, 1
    assert not torch.equal(masks(), first)


def test_set_masks_zeroes_weights_and_optimizer_state():
    run = make_run()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
    run.model(torch.randn(6, 4)).sum().backward()
    run.optimizer.step()
    mask = torch.tensor([[True, False, True, False]] * 3)
    run.set_masks(Masks({"0.weight": mask, "2.weight": torch.ones(2, 3, dtype=torch.bool)}))
    weight = run.model[0].weight
    assert bool(
        (weight[~mask] == 0).all() and (run.optimizer.state[weight]["momentum_buffer"][~mask] == 0).all()
    )
    assert bool((weight[mask] != 0).all())
    assert run.progress().density == pytest.approx(12 / 18)


def test_init_is_what_the_run_started_from_also_without_a_snapshot():
    run = make_run()
    start = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.model.train()(torch.randn(6, 4))
    with torch.no_grad():
        run.model[0].weight.add_(1.0)
    run.restore("init")
    assert all(torch.equal(v, start[k]) for k, v in run.model.state_dict().items())


def test_random_weights_are_new_at_every_event_and_the_same_when_repeated():
    run = make_run()
    start = run.model[0].weight.detach().clone()
    seen = []
    for place in (0, 10, 10):
        run.clock.place = place
        run.restore("random")
        seen.append(run.model[0].weight.detach().clone())
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], start)


def test_a_snapshot_is_a_copy_with_batchnorm_statistics():
    run = make_run()
    run.snapshot("rewind")
    kept = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.model.train()(torch.randn(6, 4))
    with torch.no_grad():
        run.model[2].weight.mul_(2.0)
    run.restore("rewind")
    assert all(torch.equal(v, kept[k]) for k, v in run.model.state_dict().items())


def test_restoring_loads_in_place_so_that_the_optimizer_keeps_its_parameters():
    run = make_run()
    weight = run.model[0].weight
    run.snapshot("a")
    run.restore("a")
    assert run.model[0].weight is weight


def test_an_unknown_snapshot_is_an_error():
    with pytest.raises(KeyError):
        make_run().restore("rewind")


def test_a_new_phase_starts_at_step_0_and_forgets_the_best():
    clock = Clock(
        phase=1,
        step=5,
        steps=9,
        total=20,
        place=15,
        began=10,
        cycle=2,
        norm_drop=0.1,
        pruned=0.2,
        stop_phase=True,
        best=0.9,
        best_step=4,
    )
    clock.tick()
    clock.next_phase()
    assert clock == Clock(phase=2, total=21, place=16, began=10, cycle=2, norm_drop=0.1, pruned=0.2)


def test_a_state_loaded_into_another_run_is_the_saved_one():
    run, other = make_run(), make_run(seed=1)
    run.set_masks(Masks({"0.weight": torch.rand(3, 4) > 0.5, "2.weight": torch.rand(2, 3) > 0.5}))
    run.snapshot("best")
    run.clock = Clock(1, 2, 3, 9, 4, 1, 4, 5, 0.6, 0.7, True, 0.8, 2)
    for r in (run, other):
        r.optimizer = torch.optim.Adam(r.model.parameters(), lr=0.1)
    run.model(torch.randn(6, 4)).sum().backward()
    run.optimizer.step()
    other.load_state_dict(run.state_dict())
    assert other.clock == run.clock
    assert all(torch.equal(other.masks[n], m) for n, m in run.masks.items())
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in run.model.state_dict().items())
    assert all(torch.equal(v, other.snapshots["best"][k]) for k, v in run.snapshots["best"].items())
    assert torch.equal(
        run.optimizer.state[run.model[0].weight]["exp_avg"],
        other.optimizer.state[other.model[0].weight]["exp_avg"],
    )
