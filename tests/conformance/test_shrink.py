"""Training goes on from the shrunk network: the same training as the masked one, and as exactly resumed."""

import json
import re

import pytest
import torch

from tests.conformance import kit
from tests.conformance.test_resume import assert_resumes_to_the_same_end

IMP = kit.Case("imp")
NEURONS = ("sparsity=filter", "sparsity.granularity=neuron", "sparsity.target=0.6")
NETWORKS = {"wrn": (*NEURONS, "model.dropout=0"), "lenet300": NEURONS}
SHRINK = "trainer.shrink=true"


def weights_of(trace):
    return {n: p.detach() for n, p in trace.parts.run.model.named_parameters()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weights", ["keep", "init"])
def test_the_shrunk_network_learns_what_the_masked_one_does(traced, network, weights):
    """Sums without the zeros come in another order: 1e-6 at a step, which 24 steps may amplify."""
    options = (*NETWORKS[network], f"protocol.weights={weights}")
    masked, shrunk = traced(IMP, network, *options), traced(IMP, network, *options, SHRINK)
    for a, b in zip(masked.seen.events, shrunk.seen.events):
        assert a.kept == b.kept and kit.differences(a.masks, b.masks) == []
    before, after = weights_of(masked), weights_of(shrunk)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-3, atol=1e-4)
    rows = [json.loads((t.directory / "result.json").read_text())["rounds"] for t in (masked, shrunk)]
    same = ("phase", "sparsity", "kept", "total", "params", "macs", "channels", "max_lr", "steps")
    assert [[r.get(k) for k in same] for r in rows[0]] == [[r.get(k) for k in same] for r in rows[1]]
    for a, b in zip(*rows):
        assert b["test"]["loss"] == pytest.approx(a["test"]["loss"], rel=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_optimizer_owns_the_small_network_only_after_pruning(traced, network, monkeypatch):
    seen = {}
    from prunebench.core import loop

    step = loop.train_step

    def watched(phase, run, method):
        seen[phase.name] = sum(p.numel() for g in run.optimizer.param_groups for p in g["params"])
        return step(phase, run, method)

    monkeypatch.setattr(loop, "train_step", watched)
    trace = traced(IMP, network, *NETWORKS[network], SHRINK, "seed=1")
    whole = sum(p.numel() for p in trace.parts.run.model.parameters())
    sizes = [seen[p.name] for p in trace.parts.plan]
    assert sizes[0] == whole and sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    left = trace.parts.method.compact(trace.parts.run)
    assert sizes[-1] == sum(p.numel() for p in left.parameters())


@pytest.mark.parametrize(
    ("network", "more"),
    [
        ("wrn", ("protocol.weights=rewind", "protocol.rewind_to=2it", "metrics=[learning_distance,spread]")),
        ("lenet300", ("protocol.keep=best", "trainer.eval_every=2it", "sparsity.round_to=8")),
    ],
    ids=["wrn", "lenet300"],
)
def test_a_crashed_run_of_the_shrunk_network_resumes_to_the_same_end(traced, network, more):
    assert_resumes_to_the_same_end(traced(IMP, network, *NEURONS, SHRINK, *more))


def test_metrics_and_evaluation_see_the_weights_of_this_step(traced):
    """The model that is measured lags behind the network that is trained, unless it is updated."""
    metric = ("metrics=[learning_distance]", "metrics.learning_distance.every=1it")
    rows = []
    for more in ((), (SHRINK,)):
        trace = traced(IMP, "lenet300", *NETWORKS["lenet300"], *metric, *more)
        lines = map(json.loads, (trace.directory / "metrics.jsonl").read_text().splitlines())
        rows.append([r for r in lines if r["kind"] == "metric"])
    for a, b in zip(*rows, strict=True):
        numbers = {k: v for k, v in a.items() if isinstance(v, float)}
        assert {k: b[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "needs whole channels to cut out, sparsity.granularity is weight; use filter"),
        (("sparsity=filter", "method=dense"), "needs whole channels"),
        ((*NEURONS, "method=movement"), "Movement changes the training of the original network"),
        ((*NEURONS, "trainer.compile=true"), "goes neither with several processes nor with trainer.compile"),
    ],
    ids=["weights", "dense", "movement", "compile"],
)
def test_a_training_that_cannot_be_that_of_the_small_network_is_refused(overrides, message):
    case = next((kit.Case(o.split("=")[1]) for o in overrides if o.startswith("method=")), IMP)
    rest = [o for o in overrides if not o.startswith("method=")]
    with pytest.raises(ValueError, match=re.escape("trainer.shrink=true: ") + ".*" + re.escape(message)):
        kit.assemble(kit.tiny(case, "lenet300", *rest, SHRINK))
