"""Phases that runs share are trained once, and nobody can tell from the result."""

import json

import pytest
import torch

from prunebench import store
from prunebench.core.method import Companion, Method, leaves_training_alone
from tests.conformance import kit, watch


def other_sparsity(overrides):
    """The same run to another sparsity; the same run again if its protocol prunes nothing."""
    return (
        (*overrides, "sparsity.target=0.6")
        if kit.plain_of(overrides)["protocol"].get("target")
        else overrides
    )


def shared_phases(parts):
    return [phase for index, phase in enumerate(parts.plan) if index in parts.recorder.store.keys]


def test_a_run_that_takes_shared_phases_from_the_store_equals_one_that_trains_them(traced, case, tmp_path):
    whole = traced(case, "lenet300")
    sharing = (*whole.overrides, "trainer.share=dense")
    first = kit.recorded(
        other_sparsity(sharing), tmp_path / "1", store=tmp_path / "store", kind=watch.Witness
    ).fit()
    second = kit.recorded(sharing, tmp_path / "2", store=tmp_path / "store", kind=watch.Witness).fit()
    steps = sum(p.steps(second.run) for p in shared_phases(second))  # of a method of its own: with its state
    assert second.recorder.steps == whole.seen.steps - steps
    assert first.recorder.steps == first.run.clock.total
    assert kit.differences(kit.on_disk(whole.directory), kit.on_disk(tmp_path / "2")) == []
    if second.recorder.steps:  # else no optimizer was built
        assert kit.differences(kit.state_of(whole.parts), kit.state_of(second)) == []
    result = json.loads((tmp_path / "2" / "result.json").read_text())
    assert bool(result["shared"]) == bool(steps)
    assert json.loads((whole.directory / "result.json").read_text())["shared"] == []


@pytest.mark.parametrize("mode", ["lite", "pro", "solo", "matched"])
def test_every_mode_of_ap_equals_itself_without_the_store(mode, tmp_path):
    options = (f"companion.ap.mode={mode}", "sparsity.target=0.4", "trainer.share=all")
    overrides = kit.tiny(kit.Case("imp", "ap"), "lenet300", *options)
    alone = kit.recorded(overrides, tmp_path / "alone").fit()
    kit.recorded((*overrides, "sparsity.target=0.3"), tmp_path / "1", store=tmp_path / "store").fit()
    for name in ("2", "3"):  # the second takes everything from the first
        shared = kit.recorded(overrides, tmp_path / name, store=tmp_path / "store").fit()
        assert kit.differences(kit.on_disk(tmp_path / "alone"), kit.on_disk(tmp_path / name)) == []
    assert kit.differences(kit.state_of(alone)["run"]["model"], kit.state_of(shared)["run"]["model"]) == []


def test_a_state_that_does_not_match_its_address_is_not_given_to_others(tmp_path):
    """Resumed with a metric that the interrupted run did not have: rows of the phase miss its values."""
    plain = kit.tiny(kit.Case("imp"), "lenet300", "trainer.share=dense", "trainer.checkpoint_every=4it")
    metric = (*plain, "metrics=[learning_distance]", "metrics.learning_distance.every=2it")
    killed = kit.recorded(plain, tmp_path / "1", store=tmp_path / "store")
    settled = killed.recorder.settled

    def stop(run, method, phase):
        settled(run, method, phase)
        if run.clock.total == 9:
            raise KeyboardInterrupt

    killed.recorder.settled = stop
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    kit.recorded(metric, tmp_path / "1", store=tmp_path / "store").fit()
    assert not list((tmp_path / "store").glob("*/checkpoint.pt"))
    whole = kit.recorded(metric, tmp_path / "2", store=tmp_path / "store", kind=watch.Witness).fit()
    assert whole.recorder.steps == whole.run.clock.total


@pytest.mark.parametrize("change", ["retrain=constant", "companion.ap.mode=solo"])
def test_addresses_of_later_phases_name_what_trains_and_prunes_them(change):
    def keys(*more):
        case = kit.tiny(
            kit.Case("lth", "ap"), "lenet300", "trainer.share=all", "companion.ap.mode=pro", *more
        )
        parts = kit.assemble(case)
        return store.prefix_keys(parts.cfg, parts.plan, parts.run, parts.method, 1)

    before, after = keys(), keys(change)
    assert before[0] == after[0]
    assert all(before[i] != after[i] for i in after if i)


def test_a_run_killed_after_taking_a_shared_phase_resumes_to_the_same_end(traced, tmp_path):
    case = kit.Case("imp")
    whole = traced(case, "wrn")
    sharing = (*whole.overrides, "trainer.share=dense")
    kit.recorded(other_sparsity(sharing), tmp_path / "1", store=tmp_path / "store").fit()
    killed = kit.recorded(sharing, tmp_path / "2", store=tmp_path / "store")

    def stop(*arguments):
        raise KeyboardInterrupt

    killed.recorder.pruned = stop
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    kit.recorded(sharing, tmp_path / "2", store=tmp_path / "store").fit()
    assert kit.differences(kit.on_disk(whole.directory), kit.on_disk(tmp_path / "2")) == []


def test_share_all_trains_the_pruning_rounds_of_a_common_beginning_once(tmp_path):
    rounds = ("sparsity.target=null", "sparsity.rate=0.4", "trainer.share=all")
    two, three = (kit.tiny(kit.Case("imp"), "lenet300", *rounds, f"sparsity.rounds={n}") for n in (2, 3))
    alone = kit.recorded(three, tmp_path / "alone", kind=watch.Witness).fit()
    first = kit.recorded(two, tmp_path / "1", store=tmp_path / "store", kind=watch.Witness).fit()
    second = kit.recorded(three, tmp_path / "2", store=tmp_path / "store", kind=watch.Witness).fit()
    assert (alone.recorder.steps, first.recorder.steps, second.recorder.steps) == (38, 30, 8)
    assert kit.differences(kit.on_disk(tmp_path / "alone"), kit.on_disk(tmp_path / "2")) == []
    assert kit.differences(kit.state_of(alone), kit.state_of(second)) == []


class Damped(Method):
    """Touches training: the loss is halved."""

    def loss(self, run, logits, targets):
        return super().loss(run, logits, targets) / 2


@pytest.mark.parametrize("verb", ["attach", "forward", "loss", "step", "param_groups"])
def test_a_method_that_overrides_a_training_verb_does_not_share(verb):
    method = type("Other", (Method,), {verb: lambda self, *arguments: None})()
    assert leaves_training_alone(Method())
    assert not leaves_training_alone(method)
    assert not leaves_training_alone(Companion(method))
    assert not leaves_training_alone(type("Around", (Companion,), {verb: lambda self, *a: None})(Method()))


def test_two_methods_that_touch_training_have_addresses_of_their_own():
    parts = kit.assemble(kit.tiny(kit.Case("dense"), "lenet300", "trainer.share=dense"))
    other = parts.cfg | {"method": parts.cfg["method"] | {"_target_": "prunebench.methods.other.Other"}}

    def keys(cfg, method):
        return store.prefix_keys(cfg, parts.plan, parts.run, method, 1)

    assert keys(parts.cfg, Method()) == keys(other, Method())
    assert len({keys(parts.cfg, Method())[0], keys(parts.cfg, Damped())[0], keys(other, Damped())[0]}) == 3


CHANGES = (
    *("seed=1", "optimizer.lr=0.01", "model.widths={fc1:20}", "dataset.pad=0", "trainer.batch_size=10"),
    *("trainer.label_smoothing=0.1", "trainer.decay=weights", "trainer.eval_every=2ep", "schedule=linear"),
    *("protocol.dense=13it", "protocol.keep=best", "protocol.patience=2ep", "sparsity.exclude=[head]"),
    *(
        "trainer.channels_last=false",
        "trainer.deterministic=false",
        "protocol.weights=rewind protocol.rewind_to=2it",
    ),
)
SAME = (
    *(
        "sparsity.target=0.5",
        "sparsity.rounds=2",
        "retrain=llr",
        "protocol.retrain=3it",
        "sparsity.allocation=erk",
    ),
    *(
        "criterion=random",
        "trainer.checkpoint_every=3it",
        "protocol.control=reinit",
        "sparsity.granularity=neuron",
    ),
)


@pytest.mark.parametrize("change", [*CHANGES, *SAME])
def test_the_address_of_the_dense_phase_names_all_that_can_influence_it_and_no_more(change):
    def key(*more):
        parts = kit.assemble((*kit.tiny(kit.Case("imp"), "lenet300"), "trainer.share=dense", *more))
        return store.prefix_keys(parts.cfg, parts.plan, parts.run, parts.method, 1)[0]

    assert (key() == key(*change.split())) == (change in SAME)


def test_the_number_of_threads_is_part_of_the_address():
    parts = kit.assemble(kit.tiny(kit.Case("imp"), "lenet300", "trainer.share=dense"))
    one, two = (store.prefix_keys(parts.cfg, parts.plan, parts.run, parts.method, n) for n in (1, 2))
    assert one[0] != two[0]


def test_fit_counts_no_step_twice_when_everything_is_in_the_store(tmp_path):
    overrides = kit.tiny(kit.Case("dense"), "lenet300", "trainer.share=dense")
    for name in ("1", "2"):
        parts = kit.recorded(overrides, tmp_path / name, store=tmp_path / "store", kind=watch.Witness).fit()
    assert parts.recorder.steps == 0
    assert kit.differences(kit.on_disk(tmp_path / "1"), kit.on_disk(tmp_path / "2")) == []
    assert torch.get_num_threads() == 1
