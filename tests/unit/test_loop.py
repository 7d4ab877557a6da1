"""The loop: what happens on entering a phase, in a step, and at its end, with numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from prunebench.core.loop import Sink, _batch_length, enter, fit, set_learning_rate, shuffled, train_step
from prunebench.core.masks import Masks
from prunebench.core.method import Companion, Method, Reparameterized
from prunebench.core.phase import Phase, parse_length
from prunebench.core.run import Run, seeded
from prunebench.criteria.magnitude import magnitude
from prunebench.data.loader import Data
from prunebench.methods.pruner import Pruner
from prunebench.retrain import allr

torch.set_num_threads(1)


def images(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 2, 2), dtype=torch.uint8, generator=rng)
    return pixels, torch.randint(2, (count,), generator=rng)


def make_data(train=10, batch_size=4):
    return Data(
        name="d",
        train=images(train),
        valid=images(4, 1),
        test=images(4, 2),
        class_names=["a", "b"],
        mean=[0.5],
        std=[0.5],
        batch_size=batch_size,
        device=torch.device("cpu"),
    )


def make_run(seed=0, **keywords):
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))

    def fresh(*key):
        with seeded(seed, *key):
            return build().state_dict()

    with seeded(seed, "init"):
        model = build()
    return Run(
        model=model,
        data=make_data(),
        loss_fn=nn.CrossEntropyLoss(),
        prunable=["1.weight", "4.weight"],
        seed=seed,
        fresh_state=fresh,
        **keywords,
    )


def make_optimizer(run, method):
    groups = [{"params": list(run.model.parameters())}, *method.param_groups()]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=0.1, momentum=0.9)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def one(progress):
    return 1.0


def copy(run):
    return {k: v.clone() for k, v in run.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Script(Sink):
    """Observer that gives validation accuracies, one per step, and keeps the network at every step."""

    def __init__(self, top1=()):
        self.top1, self.networks, self.told, self.learning_rates = list(top1), [], [], []

    def pruned(self, run, method, phase):
        self.told.append(("pruned", phase.name, copy(run)))

    def entered(self, run, method, phase):
        self.told.append(("entered", phase.name, copy(run)))

    def after_step(self, run, method, phase, loss):
        self.networks.append(copy(run))
        self.learning_rates.append([g["lr"] for g in run.optimizer.param_groups])
        return self.top1.pop(0) if self.top1 else None

    def settled(self, run, method, phase):
        self.told.append(("settled", run.clock.step, run.clock.stop_phase))

    def phase_end(self, run, method, phase):
        self.told.append(("end", phase.name, run.clock.step))

    def between(self, run, method):
        self.told.append(("between", run.clock.phase, run.clock.step))

    def finish(self, run, method):
        self.told.append(("finish",))


# Lengths


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2ep", 20), ("2.5ep", 25), ("0.04ep", 0), ("0.06ep", 1), ("7it", 7), (" 3it ", 3), ("0it", 0)],
)
def test_lengths_are_epochs_or_steps(text, steps):
    assert parse_length(text, 10) == steps


@pytest.mark.parametrize("text", ["", "7", "ep", "-1ep", "1.5it", "1 ep", "1e2it", 5, None, "3epochs"])
def test_other_lengths_are_refused(text):
    with pytest.raises(ValueError, match="length="):
        parse_length(text, 10)


# Entering a phase


def toy():
    """One layer with the weights of imp.md 7.2: (1, -2, 3, -4)."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    return Run(model=model, data=make_data(), loss_fn=nn.CrossEntropyLoss(), prunable=["weight"], seed=0)


def test_pruning_half_of_the_card_s_weights_gives_its_norm_drop():
    run = toy()
    enter(Phase("r", "10it", one, sparsity=0.5), run, Pruner(magnitude), make_optimizer, Sink())
    assert run.model.weight.tolist() == [[0, 0, 3, -4]]
    assert run.clock.norm_drop == pytest.approx(0.408248, abs=1e-6)
    assert run.clock.pruned == 0.5
    assert run.clock.norm_drop / math.sqrt(run.clock.pruned) == pytest.approx(0.577350, abs=1e-6)
    assert (run.clock.cycle, run.clock.steps) == (1, 10)


@pytest.mark.parametrize(("retrain", "dense", "peak"), [("10it", "100it", 0.57735), ("80it", "100it", 0.8)])
def test_the_adaptive_restart_peaks_where_the_card_says(retrain, dense, peak):
    run = toy()
    enter(Phase("r", retrain, one, sparsity=0.5), run, Pruner(magnitude), make_optimizer, Sink())
    assert allr(run.progress(), of=one, dense=dense, warmup=0.0) == pytest.approx(peak, abs=1e-5)


def test_the_norm_is_over_biases_too_and_the_share_is_of_the_weights_still_alive():
    run = toy()
    run.model.bias = nn.Parameter(torch.tensor([2.0]))
    for sparsity in (0.5, 0.75):
        enter(Phase("r", "1it", one, sparsity=sparsity), run, Pruner(magnitude), make_optimizer, Sink())
    assert run.clock.norm_drop == pytest.approx(3 / math.sqrt(9 + 16 + 4))
    assert run.clock.pruned == 0.5
    assert run.clock.cycle == 2


def test_norm_drop_is_measured_before_weights_are_restored():
    run = make_run()
    enter(
        Phase("r", "1it", one, sparsity=0.5, weights="init"), run, Pruner(magnitude), make_optimizer, Sink()
    )
    assert 0 < run.clock.norm_drop < 1


def test_an_event_that_removes_nothing_drops_nothing():
    run = toy()
    enter(Phase("r", "1it", one, sparsity=0.0), run, Pruner(magnitude), make_optimizer, Sink())
    assert (run.clock.norm_drop, run.clock.pruned, run.clock.cycle) == (0.0, 0.0, 1)


def test_a_phase_without_sparsity_leaves_masks_and_cycle_alone():
    run = make_run()
    masks = run.masks
    enter(Phase("dense", "2ep", one), run, Pruner(magnitude), make_optimizer, Sink())
    assert run.masks is masks
    assert (run.clock.cycle, run.clock.steps) == (0, 6)


def test_every_phase_has_an_optimizer_without_momentum():
    run, method = make_run(), Pruner(magnitude)
    fit([Phase("dense", "3it", one)], run, method, make_optimizer, Sink())
    old = run.optimizer
    assert old.state
    enter(Phase("r", "1it", one, sparsity=0.5), run, method, make_optimizer, Sink())
    assert run.optimizer is not old
    assert not run.optimizer.state


def test_after_a_reset_weights_are_the_initial_ones_under_the_mask():
    """lth 7.4: theta == m * theta_0 bitwise, BatchNorm buffers included, and no optimizer state."""
    run, method, script = make_run(), Pruner(magnitude), Script()
    start = copy(run)
    fit(
        [Phase("dense", "5it", one), Phase("r", "0it", one, sparsity=0.5, weights="init")],
        run,
        method,
        make_optimizer,
        script,
    )
    masked = {k: v * run.masks[k] if k in run.masks else v for k, v in start.items()}
    assert same(copy(run), masked)
    assert run.masks.kept == round(0.5 * run.masks.total)
    trained = next(state for what, name, state in script.told if what == "pruned")
    assert not same(trained, masked)  # the observer saw the trained weights, pruned


def test_random_weights_keep_the_mask_and_change_every_weight():
    """lth 7.6, the reinit control."""
    run, method = make_run(), Pruner(magnitude)
    fit([Phase("dense", "3it", one)], run, method, make_optimizer, Sink())
    start = copy(run)
    enter(Phase("r", "1it", one, sparsity=0.5, weights="random"), run, method, make_optimizer, Sink())
    for name, mask in run.masks.items():
        new = copy(run)[name]
        assert bool((new[~mask] == 0).all())
        assert bool((new[mask] != start[name][mask]).all())


# Snapshots


def test_snapshots_are_taken_before_the_step_that_they_name():
    run, script = make_run(), Script()
    start = copy(run)
    plan = [Phase("dense", "4it", one, snapshot=(("zero", "0it"), ("two", "2it"), ("end", "4it")))]
    fit(plan, run, Method(), make_optimizer, script)
    assert same(run.snapshots["zero"], start)
    assert same(run.snapshots["two"], script.networks[1])
    assert same(run.snapshots["end"], script.networks[3])


def test_rewinding_goes_back_to_the_snapshot_with_its_statistics():
    run, method = make_run(), Pruner(magnitude)
    plan = [
        Phase("dense", "5it", one, snapshot=(("rewind", "1ep"),)),
        Phase("r", "0it", one, sparsity=0.5, weights="rewind"),
    ]
    script = Script()
    fit(plan, run, method, make_optimizer, script)
    at = script.networks[2]  # one epoch is three steps
    assert same(copy(run), {k: v * run.masks[k] if k in run.masks else v for k, v in at.items()})


# Best network and patience


def test_keep_best_ends_with_the_network_of_the_best_validation():
    run, script = make_run(), Script([0.1, 0.5, 0.5, 0.3])
    fit([Phase("dense", "4it", one, keep="best")], run, Method(), make_optimizer, script)
    assert same(copy(run), script.networks[1])
    assert "best" not in run.snapshots


def test_keep_last_ends_with_the_last_network():
    run, script = make_run(), Script([0.1, 0.5, 0.5, 0.3])
    fit([Phase("dense", "4it", one)], run, Method(), make_optimizer, script)
    assert same(copy(run), script.networks[3])


def test_keep_best_does_not_zero_the_weights_of_a_method_with_soft_masks():
    run, method = make_run(), Method()
    method.hard_masks = False
    run.masks = Masks({n: torch.zeros_like(m) for n, m in run.masks.items()})
    method.step = lambda run: run.optimizer.step()
    script = Script([0.1, 0.5, 0.3])
    fit([Phase("dense", "3it", one, keep="best")], run, method, make_optimizer, script)
    assert same(copy(run), script.networks[1])


def test_the_best_of_one_phase_is_forgotten_in_the_next():
    run, script = make_run(), Script([0.9, 0.1, 0.3, 0.2])
    fit(
        [Phase("a", "2it", one, keep="best"), Phase("b", "2it", one, keep="best")],
        run,
        Method(),
        make_optimizer,
        script,
    )
    assert same(copy(run), script.networks[2])


def test_patience_ends_a_phase_when_validation_has_not_risen_for_so_long():
    run, script = make_run(), Script([0.2, 0.3, 0.3, 0.1, 0.3, 0.9])
    fit([Phase("dense", "6it", one, patience="3it")], run, Method(), make_optimizer, script)
    assert ("end", "dense", 5) in script.told  # best at step 2, 3 steps without better
    assert ("settled", 5, True) in script.told


def test_the_lowest_loss_is_the_best_however_large():
    run, script = make_run(), Script([-9.0, -4.0, -5.0])  # minus the loss: higher = better
    fit([Phase("dense", "3it", one, keep="best", monitor="loss")], run, Method(), make_optimizer, script)
    assert same(copy(run), script.networks[1])


def test_without_measurements_patience_waits():
    run, script = make_run(), Script()
    fit([Phase("dense", "6it", one, patience="1it")], run, Method(), make_optimizer, script)
    assert ("end", "dense", 6) in script.told


# Steps


def test_the_order_of_what_the_observer_is_told():
    script = Script()
    plan = [Phase("dense", "1it", one), Phase("r", "1it", one, sparsity=0.5)]
    fit(plan, make_run(), Pruner(magnitude), make_optimizer, script)
    assert [t[:2] for t in script.told] == [
        *[("entered", "dense"), ("settled", 1), ("end", "dense"), ("between", 1)],
        *[("pruned", "r"), ("entered", "r"), ("settled", 1), ("end", "r"), ("between", 2), ("finish",)],
    ]


def test_a_phase_without_steps_prunes_and_trains_nothing():
    run, script = make_run(), Script()
    fit([Phase("r", "0it", one, sparsity=0.5)], run, Pruner(magnitude), make_optimizer, script)
    assert run.clock.total == 0
    assert run.masks.sparsity == 0.5


class Extra(Method):
    """A trainable number of its own."""

    def attach(self, run):
        self.number = nn.Parameter(torch.ones(1))

    def loss(self, run, logits, targets):
        return super().loss(run, logits, targets) + self.number.square().sum()

    def param_groups(self):
        return [{"params": [self.number], "lr_scale": 0.25}]


def test_every_group_follows_the_schedule_at_its_own_scale():
    run, method, script = make_run(), Extra(), Script()
    method.attach(run)
    fit([Phase("dense", "3it", lambda p: 1 / (p.step + 1))], run, method, make_optimizer, script)
    assert script.learning_rates == [[0.1 * f, 0.1 * f * 0.25] for f in (1, 1 / 2, 1 / 3)]
    assert method.number.item() < 1


def test_a_learning_rate_that_is_a_tensor_is_filled_in_place():
    run = make_run()
    run.optimizer = make_optimizer(run, Method())
    lr = run.optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    assert set_learning_rate(Phase("p", "1it", lambda p: 0.5), run) == 0.5
    assert run.optimizer.param_groups[0]["lr"] is lr
    assert lr == pytest.approx(0.05)


def test_a_schedule_sees_where_the_run_stands():
    run, seen = make_run(), []

    def schedule(progress):
        seen.append(progress)
        return 1.0

    plan = [Phase("dense", "2it", schedule), Phase("r", "2it", schedule, sparsity=0.5)]
    fit(plan, run, Pruner(magnitude), make_optimizer, Sink())
    assert [(p.step, p.steps, p.steps_per_epoch, p.cycle, p.density) for p in seen] == [
        *[(0, 2, 3, 0, 1.0), (1, 2, 3, 0, 1.0), (0, 2, 3, 1, 0.5), (1, 2, 3, 1, 0.5)]
    ]


def test_the_batch_length_counts_the_smaller_last_batch_of_every_epoch():
    run, lengths = make_run(), []
    for run.clock.place in range(7):
        lengths.append(_batch_length(run))
    assert lengths == [4, 4, 2, 4, 4, 2, 4]


def test_scaled_losses_of_unequal_parts_average_to_the_whole_batch_s_loss(monkeypatch):
    """The mean over three processes is the gradient of the whole batch, though their parts are unequal."""
    monkeypatch.setattr("prunebench.core.parallel.average_gradients_", lambda params, world: None)
    gradients = []
    for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3)):
        run = make_run(rank=rank, world=world)
        run.model.eval()
        run.model.train = lambda mode=True, run=run: run.model  # BatchNorm couples the images of a part
        run.clock.place, run.clock.steps = 1, 3  # a batch of 4 images in parts of 1, 1 and 2
        run.optimizer = make_optimizer(run, Method())
        method = Method()
        method.step = lambda run: None
        train_step(Phase("p", "3it", one), run, method)
        gradients.append(run.model[4].weight.grad)
    torch.testing.assert_close(sum(gradients[1:]) / 3, gradients[0], rtol=1e-6, atol=1e-7)


# Controls


def masks_of(run, shares=(0.25, 0.75)):
    rng = torch.Generator().manual_seed(0)
    return Masks({n: torch.rand(m.shape, generator=rng) < s for (n, m), s in zip(run.masks.items(), shares)})


@pytest.mark.parametrize("how", ["layerwise", "global", "even"])
def test_shuffled_masks_keep_their_counts_and_go_elsewhere(how):
    run = make_run()
    masks = masks_of(run)
    other = shuffled(masks, how, run)
    assert other.kept == masks.kept
    assert all(not torch.equal(other[n], m) for n, m in masks.items())
    if how == "layerwise":
        assert other.kept_per_layer == masks.kept_per_layer
    else:
        assert other.kept_per_layer != masks.kept_per_layer
    if how == "even":
        assert all(
            abs(k - masks.kept / masks.total * masks[n].numel()) < 1 for n, k in other.kept_per_layer.items()
        )


@pytest.mark.parametrize("how", ["layerwise", "global", "even"])
def test_shuffles_differ_by_seed_and_repeat_with_it(how):
    first, again, other = (
        shuffled(masks_of(run), how, run) for run in (make_run(0), make_run(0), make_run(1))
    )
    assert same(dict(first), dict(again))
    assert not same(dict(first), dict(other))


# Methods around methods, and reparameterised ones


class Halved(Reparameterized):
    """Forward sees half of each weight, and 0 where it is small."""

    def weights(self, run):
        params = dict(run.model.named_parameters())
        return {n: torch.where(params[n].abs() > 0.2, params[n] / 2, 0.0) for n in run.masks}


def test_a_reparameterised_method_ends_in_plain_weights_and_masks():
    run, method = make_run(), Halved()
    fit([Phase("dense", "2it", one)], run, method, make_optimizer, script := Script())
    last = script.networks[-1]
    for name, mask in run.masks.items():
        assert torch.equal(mask, last[name].abs() > 0.2)
        assert torch.equal(copy(run)[name], last[name] * mask / 2)
    x, _ = run.data.batch(0, 0)
    run.model.eval()
    half = {k: v.clone() for k, v in copy(run).items()}
    assert bool(torch.isfinite(run.model(x)).all())
    assert same(half, copy(run))


def test_a_companion_passes_every_verb_to_its_base():
    calls = []

    class Base(Method):
        hard_masks, revives = False, True

    for verb in ("check", "attach", "prune", "forward", "loss", "step", "finish", "param_groups", "compact"):
        setattr(Base, verb, lambda self, *arguments, verb=verb: calls.append(verb))
    companion, run = Companion(Companion(Base())), make_run()
    for verb, count in {
        "check": 2,
        "attach": 1,
        "prune": 2,
        "forward": 2,
        "loss": 3,
        "step": 1,
        "finish": 1,
    }.items():
        getattr(companion, verb)(*[run] * count)
    companion.param_groups(), companion.compact(run)
    assert calls == [
        "check",
        "attach",
        "prune",
        "forward",
        "loss",
        "step",
        "finish",
        "param_groups",
        "compact",
    ]
    assert (companion.hard_masks, companion.revives) == (False, True)


def test_a_plan_that_prunes_is_refused_by_a_method_that_cannot():
    with pytest.raises(ValueError, match="no pruning event"):
        Method().check(make_run(), [0.5])
    Method().check(make_run(), [])
