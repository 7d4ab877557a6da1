"""protocol.optimizer_state=keep: a round goes on with the momentum of the weights that are left."""

import re

import pytest
import torch
from hydra.errors import InstantiationException

from prunebench.core import handover
from tests.conformance import kit
from tests.conformance.test_resume import assert_resumes_to_the_same_end
from tests.conformance.test_shrink import NETWORKS, SHRINK, weights_of

IMP = kit.Case("imp")
KEEP = "protocol.optimizer_state=keep"
OPTIMIZERS = ["sgd", "adamw"]
PLAIN = ("schedule=constant", "retrain=same", "optimizer.lr=0.01", "sparsity.rounds=1")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_round_that_prunes_nothing_is_a_longer_training(traced, optimizer):
    options = (*PLAIN, f"optimizer={optimizer}", "protocol.dense=4it", "protocol.retrain=4it")
    kept, whole, reset = (
        traced(IMP, "lenet300", *options, *more)
        for more in (
            ("sparsity.target=0.0", KEEP),
            ("sparsity.target=0.0", "protocol.dense=8it", "protocol.retrain=0it"),
            ("sparsity.target=0.0",),
        )
    )
    for name, weight in weights_of(whole).items():
        assert torch.equal(weights_of(kept)[name], weight), name
    assert any(not torch.equal(weights_of(reset)[n], w) for n, w in weights_of(whole).items())


@pytest.mark.parametrize("shrink", [False, True])
def test_what_a_round_begins_with(traced, monkeypatch, shrink):
    """The momentum of surviving weights is that of the end of dense training, all else is 0."""
    from prunebench.core import loop

    taken, given, kept, places = {}, {}, {}, {}

    def take(run):
        take_state(run)
        if not taken:  # of the first of three rounds
            taken.update({k: v.clone() for k, v in run.snapshots[handover.NAME].items()})

    def give(run):
        give_state(run)
        if taken and not given:
            for name, p in run.trained.named_parameters():
                given[name] = run.optimizer.state[p]["momentum_buffer"].clone()
            kept.update(run.masks)
            places.update(run.shrunk.kept if run.shrunk else {})

    take_state, give_state = handover.take_state, handover.give_state
    monkeypatch.setattr(loop, "take_state", take)
    monkeypatch.setattr(loop, "give_state", give)
    traced(IMP, "lenet300", *NETWORKS["lenet300"], KEEP, "optimizer=sgd", *([SHRINK] if shrink else []))
    assert len(given) == 6 and any(bool(t.any()) for t in given.values())
    for name, mask in kept.items():
        expected = taken[f"{name}/momentum_buffer"] * mask
        for dim, positions in places.get(name, ()):
            expected = expected.index_select(dim, positions)
        assert torch.equal(given[name], expected), name


@pytest.mark.parametrize(("network", "more"), [("wrn", ()), ("lenet300", ("optimizer=adamw",))])
def test_the_shrunk_network_goes_on_as_the_masked_one(traced, network, more):
    options = (*NETWORKS[network], KEEP, *more, "optimizer.lr=1e-3")
    masked, shrunk = traced(IMP, network, *options), traced(IMP, network, *options, SHRINK)
    for name, weight in weights_of(masked).items():
        torch.testing.assert_close(weights_of(shrunk)[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("more", [(), (SHRINK,)], ids=["masked", "shrunk"])
def test_a_crashed_run_resumes_to_the_same_end(traced, more):
    assert_resumes_to_the_same_end(traced(IMP, "lenet300", *NETWORKS["lenet300"], KEEP, *more))


@pytest.mark.parametrize(
    "wrong", ["protocol.weights=init", "protocol.control=reinit", "protocol.keep=best", "companion=[ap]"]
)
def test_state_of_other_weights_is_refused(wrong):
    with pytest.raises(
        (ValueError, InstantiationException), match=re.escape("protocol.optimizer_state=keep: ")
    ):
        kit.assemble(kit.tiny(IMP, "lenet300", KEEP, wrong))
