"""The frame for methods that prune or regrow within a phase: plan, loop, ledger and store."""

import json
import re

import pytest
import torch
from hydra.errors import InstantiationException

from prunebench import store
from prunebench.core.loop import Sink, fit
from prunebench.core.masks import Masks
from prunebench.core.method import Method
from prunebench.core.phase import Phase, cycles
from prunebench.during_training import during_training
from prunebench.ledger import Ledger
from tests.conformance import kit

torch.set_num_threads(1)


def constant(progress):
    return 1.0


def plan(**options):
    asked = {"target": 0.8, "dense": "10ep"} | options
    return during_training(schedule=constant, retrain_schedule=constant, **asked)


class Halving(Method):
    """Drops the last weights of the network: at step `first` half of what is to go, at `second` all."""

    during_training = True
    first, second = 4, 9

    def step(self, run):
        super().step(run)
        if run.goal is not None and run.clock.step in (self.first, self.second):
            share = run.goal / 2 if run.clock.step == self.first else run.goal
            keep = round((1 - share) * run.masks.total)
            flat = torch.arange(run.masks.total) < keep
            parts = flat.split([m.numel() for m in run.masks.values()])
            run.set_masks(Masks({n: part.view(m.shape) for (n, m), part in zip(run.masks.items(), parts)}))


def tiny(*more):
    return kit.tiny(kit.Case("dense"), "lenet300", "protocol=during_training", "recipe.target=0.8", *more)


@pytest.fixture
def halved(tmp_path, monkeypatch):
    """The recorded run of `Halving` in the folder `name`, with options."""

    def of(name, *more):
        monkeypatch.setattr(Method, "during_training", True)  # the dense method that the kit builds
        parts = kit.recorded(tiny(*more), tmp_path / name)
        parts.method = Halving()
        return parts

    return of


def test_the_plan_is_one_phase_that_ends_with_the_target():
    (train,) = plan(keep="best", patience="2ep")
    assert (train.name, train.length, train.within, train.reach, train.sparsity) == (
        "train",
        "10ep",
        True,
        0.8,
        None,
    )
    assert train.asked == 0.8
    assert (train.keep, train.patience) == ("best", "2ep")
    assert cycles([train]) == 2


@pytest.mark.parametrize(
    ("dense", "multiplier", "length"),
    [("10ep", 5.0, "50ep"), ("10ep", 0.25, "2.5ep"), ("7it", 1.5, "10it"), ("7it", 1.0, "7it")],
)
def test_the_multiplier_stretches_the_phase(dense, multiplier, length):
    assert plan(dense=dense, multiplier=multiplier)[0].length == length


@pytest.mark.parametrize(("control", "weights"), [("reinit", "random"), ("init", "init")])
def test_a_control_trains_the_masks_found_from_other_weights(control, weights):
    train, again = plan(control=control)
    assert (again.name, again.length, again.weights, again.within) == ("control", "10ep", weights, False)
    assert train.within


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, r"sparsity.target=0.0: must lie in \(0, 1\); for 0 choose method=dense"),
        ({"target": 1.0}, "sparsity.target=1.0"),
        ({"multiplier": 0.0}, "protocol.multiplier=0.0: must be a finite number above 0"),
        ({"control": "random_even"}, "protocol.control=random_even: must be one of none, reinit, init"),
        ({"dense": "10"}, "protocol.dense=10"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_a_method_that_does_not_prune_while_training_is_refused_and_vice_versa():
    with pytest.raises(ValueError, match="Pruner does not prune while it trains; choose another protocol"):
        kit.assemble(kit.tiny(kit.Case("imp"), "lenet300", "protocol=during_training"))
    with pytest.raises(ValueError, match="does not prune while it trains"):
        kit.assemble(tiny())


def test_every_step_is_counted_with_the_masks_that_it_began_with(halved):
    """Halving with 48 images in batches of 20, 20, 8: masks change in the steps 5 and 10 (counted from 1)."""
    parts = halved("run").fit()
    result = json.loads((parts.recorder.directory / "result.json").read_text())
    macs = parts.recorder.macs
    sizes = {n: m.numel() for n, m in parts.run.masks.items()}

    def of_an_image(share):  # a fully connected layer's MACs are its weights
        left, total = round((1 - share) * sum(sizes.values())), 0
        for size in sizes.values():
            total += min(size, left)
            left = max(left - size, 0)
        return total

    assert sum(sizes.values()) == sum(m for n, m in macs.items() if n in sizes)
    images = [(20, 20, 8)[s % 3] for s in range(38)]
    now = [of_an_image(0.0 if s <= 4 else 0.4 if s <= 9 else 0.8) for s in range(38)]
    assert result["cost"]["train_macs"] == sum(3 * i * m for i, m in zip(images, now))
    assert result["cost"]["train_macs_dense"] == sum(3 * i * of_an_image(0.0) for i in images)
    assert result["cost"]["samples"] == sum(images)


def test_rows_say_how_often_masks_changed_since_the_last_and_what_is_kept(halved):
    parts = halved("run").fit()
    rows = [
        json.loads(line) for line in (parts.recorder.directory / "metrics.jsonl").read_text().splitlines()
    ]
    train = [r for r in rows if r["kind"] == "train"]
    assert {r["step"]: r["mask_updates"] for r in train if "mask_updates" in r} == {6: 1, 12: 1}
    (total,) = {parts.run.masks.total}
    for row in train:
        share = 0.0 if row["step"] <= 4 else 0.4 if row["step"] <= 9 else 0.8
        kept = round((1 - share) * total)
        assert row["sparsity"] == 1 - kept / total
        assert sum(layer["kept"] for layer in row.get("layers", [])) in (0, kept)


def test_the_result_has_no_dense_control_and_says_what_was_asked(halved):
    parts = halved("run").fit()
    result = json.loads((parts.recorder.directory / "result.json").read_text())
    (row,) = result["rounds"]
    assert (row["asked"], row["cycle"], row["delta"], result["dense"]) == (0.8, 1, None, None)
    assert row["kept"] == round(0.2 * row["total"])


def test_a_method_that_misses_the_target_is_not_believed(halved):
    parts = halved("run")
    parts.method.second = 99
    with pytest.raises(AssertionError, match="asked for"):
        parts.fit()


def test_the_best_network_is_chosen_once_the_target_is_reached_and_keeps_its_masks(halved):
    """Validation falls all the time; the best with 80 % sparsity is the first, its masks those of then."""
    parts = halved("run", "protocol.keep=best", "trainer.eval_every=2it")
    seen, values = {}, iter(range(100, 0, -1))

    class Watch(Sink):
        def after_step(self, run, method, phase, loss):
            if run.clock.step == 15:  # a method may go on changing masks of the same size
                run.set_masks(Masks({n: m.flip(0) for n, m in run.masks.items()}))
            seen[run.clock.step] = {n: m.clone() for n, m in run.masks.items()}
            seen[-run.clock.step] = kit.clone(run.model.state_dict())
            return next(values) / 100 if run.clock.step % 2 == 0 else None

    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, Watch())
    assert kit.differences(dict(parts.run.masks), seen[10]) == []
    assert kit.differences(parts.run.model.state_dict(), seen[-10]) == []
    assert kit.differences(seen[10], seen[38])
    assert parts.run.snapshots == {}


def test_a_network_whose_zeros_do_not_hold_is_not_the_best(halved):
    """Between two zeroings weights that the masks call pruned have values: such a network is denser."""
    parts = halved("run", "protocol.keep=best", "trainer.eval_every=2it")
    seen, values = {}, iter(range(100, 0, -1))

    class Watch(Sink):
        def after_step(self, run, method, phase, loss):
            run.zeros_hold = run.clock.step >= 18
            seen[run.clock.step] = kit.clone(run.model.state_dict())
            return next(values) / 100 if run.clock.step % 2 == 0 else None

    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, Watch())
    assert kit.differences(parts.run.model.state_dict(), seen[18]) == []


def test_patience_counts_from_where_the_target_is_reached(halved):
    parts = halved("run", "protocol.patience=6it", "trainer.eval_every=2it")

    class Falling(Sink):
        def after_step(self, run, method, phase, loss):
            self.steps = run.clock.step
            return 1 - run.clock.step / 100 if run.clock.step % 2 == 0 else None

    watch = Falling()
    fit(parts.plan, parts.run, parts.method, parts.make_optimizer, watch)
    assert watch.steps == 10 + 6


def test_a_checkpoint_of_an_earlier_version_is_counted_as_it_was():
    ledger = Ledger({"w": 10})
    run = kit.assemble(kit.tiny(kit.Case("dense"), "lenet300")).run
    ledger.load([{"phase": "dense", "auxiliary": False, "macs": 7, "macs_dense": 10, "samples": 4}], run)
    assert ledger.cost(3)["train_macs"] == 3 * 4 * 7
    ledger.step(run, Method())
    assert ledger.changes(run) == {}


def test_a_phase_that_prunes_while_it_trains_is_no_dense_phase_to_share(halved):
    parts = halved("run", "trainer.share=dense")
    parts.cfg["trainer"]["share"] = "dense"
    keys = store.prefix_keys(parts.cfg, parts.plan, parts.run, parts.method, 1)
    assert keys == {}
    parts.cfg["trainer"]["share"] = "all"
    other = [Phase(**(vars(parts.plan[0]) | {"reach": 0.7}))]
    one, two = (store.prefix_keys(parts.cfg, p, parts.run, parts.method, 1) for p in (parts.plan, other))
    assert one[0] != two[0]


WRONG = {
    "method=rigl sparsity=neuron": ("sparsity.granularity=neuron: RigL prunes every weight", "sparsity=unst"),
    "method=rigl protocol.multiplier=inf": ("protocol.multiplier=inf", "finite"),
    "method=rigl protocol.multiplier=1e-5": ("protocol.multiplier", "phase train", "has no step"),
    "method=set method.interval=0.001ep": ("method.interval=0.001ep: must be at least one step",),
    "method=set method.interval=often": ("method.interval=often: must be a number with its unit",),
    "method=set method.interval=700": ("method.interval=700: the only update of", "very first step"),
    "method=dpf method.interval=100000": ("method.interval=100000", "training has"),
    "method=str method.interval=100000": ("method.interval=100000", "training has"),
    "method=str method.s_initial=20": ("method.s_initial=20", "above every weight", "lower it"),
    "method=small_dense protocol.before=1ep": ("protocol.before", "set it to null"),
    "method=small_dense sparsity.compression=8": ("sparsity.target=null", "takes no sparsity.compression"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_a_mistake_is_refused_before_training(typed):
    options = ("dataset=digits", "model=lenet300", "trainer.device=cpu", *typed.split())
    with pytest.raises((ValueError, InstantiationException), match=".*".join(map(re.escape, WRONG[typed]))):
        kit.assemble(options)
