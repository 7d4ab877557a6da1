"""protocol.control_at=every: a control beside every round, and both as if they had been runs of their own."""

import json

import pytest
from hydra.errors import InstantiationException

from prunebench.report.read import load
from tests.conformance import kit
from tests.conformance.test_resume import assert_resumes_to_the_same_end
from tests.conformance.watch import Trace, Witness, clone

IMP = kit.Case("imp")
EVERY = "protocol.control_at=every"
RATE = ("sparsity.target=null", "sparsity.rate=0.4")


def trains_as_usual(case):
    """Whether the case goes by rounds of pruning and plain training."""
    protocol = kit.plain_of(kit.tiny(case, "lenet300"))["protocol"]["_target_"]
    return protocol.endswith(".iterative") and case.method != "movement"


CASES = [case for case in kit.cases() if trains_as_usual(case)]


def result_of(trace):
    return json.loads((trace.directory / "result.json").read_text())


@pytest.mark.parametrize("method", CASES, ids=str)
@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_the_rounds_are_those_of_a_run_without_controls(traced, method, network):
    plain = traced(method, network)
    other = traced(method, network, "protocol.control=reinit", EVERY)
    ours, theirs = plain.parts.run, other.parts.run
    assert kit.differences(ours.model.state_dict(), theirs.model.state_dict()) == []
    assert kit.differences(dict(ours.masks), dict(theirs.masks)) == []
    ours, theirs = result_of(plain), result_of(other)
    assert kit.without(ours["rounds"], "seconds") == kit.without(theirs["rounds"], "seconds")
    assert ours["cost"] == theirs["cost"] and ours["dense"] == theirs["dense"]
    rounds = len(ours["rounds"]) - 1
    assert len(theirs["controls"]) == rounds and "controls" not in ours
    assert theirs["cost_of_controls"]["steps"] == sum(row["steps"] for row in theirs["controls"])


@pytest.mark.parametrize("control", ["reinit", "random_layerwise", "random_global", "random_even"])
@pytest.mark.parametrize("network", ["wrn", "lenet300"])
def test_a_control_is_the_last_round_of_a_run_of_its_own(traced, control, network):
    options = (*RATE, f"protocol.control={control}")
    every = traced(IMP, network, *options, EVERY)
    rows = result_of(every)["controls"]
    for number, row in enumerate(rows, start=1):
        alone = traced(IMP, network, *options, f"sparsity.rounds={number}")
        last = result_of(alone)["final"]
        assert row["phase"] == f"round-{number:02d}-{control}"
        keys = ("seconds", "phase", "pruned")
        assert kit.without(row, *keys) == kit.without(last, *keys)
        assert kit.differences(every.seen.ends[row["phase"]], alone.seen.ends[last["phase"]]) == []


@pytest.mark.parametrize("mode", ["lite", "pro", "matched"])
def test_a_control_with_a_companion_is_one_too(traced, mode):
    ap = kit.Case("imp", "ap")
    options = (*RATE, "protocol.control=reinit", f"companion.ap.mode={mode}")
    row = result_of(traced(ap, "lenet300", *options, EVERY))["controls"][-1]
    last = result_of(traced(ap, "lenet300", *options))["final"]
    assert kit.without(row, "seconds", "phase", "pruned") == kit.without(last, "seconds", "phase", "pruned")


def test_a_control_beside_a_shrunk_round_is_one_too(traced):
    options = ("sparsity=neuron", "trainer.shrink=true", "protocol.control=reinit", *RATE)
    every, alone = traced(IMP, "lenet300", *options, EVERY), traced(IMP, "lenet300", *options)
    keys = ("seconds", "phase", "pruned")
    assert kit.without(result_of(every)["controls"][-1], *keys) == kit.without(
        result_of(alone)["final"], *keys
    )


@pytest.mark.parametrize("control", ["reinit", "random_layerwise"])
@pytest.mark.parametrize("options", [(), ("protocol.keep=best", "trainer.eval_every=2it")], ids=["", "best"])
def test_a_run_that_crashed_in_a_control_resumes_to_the_same_end(tmp_path, control, options):
    overrides = kit.tiny(IMP, "lenet300", f"protocol.control={control}", EVERY, *options)
    parts = kit.recorded(overrides, tmp_path, kind=Witness)
    fresh, crashes = clone(parts.method.state_dict()), [25, 29, 30, 31, 59]
    parts.recorder.crash_at = frozenset(crashes)
    parts.fit()
    made = [c for c in crashes if (tmp_path / f"crash-{c}").exists()]
    assert len(made) >= 3  # none is made at a phase's end
    assert_resumes_to_the_same_end(
        Trace(IMP, overrides, tmp_path, parts, parts.recorder, fresh, made),
    )


def test_reports_tell_the_controls_from_the_rounds(traced):
    plain, last, every = (
        traced(IMP, "lenet300", *RATE, *more)
        for more in ((), ("protocol.control=reinit",), ("protocol.control=reinit", EVERY))
    )
    for trace in (plain, last, every):
        write_configuration(trace)
    ours, controls = load([str(every.directory)]).runs
    (of_plain,), (of_last,) = (load([str(t.directory)]).runs for t in (plain, last))
    assert ours.configuration == of_plain.configuration and not ours.is_control
    assert controls.configuration == of_last.configuration and controls.is_control
    assert [r["test"] for r in ours.rounds] == [r["test"] for r in of_plain.rounds]
    assert [controls.rounds[p]["phase"] for p in controls.places] == [f"round-0{j}-reinit" for j in (1, 2, 3)]
    assert controls.rounds[-1]["test"] == of_last.rounds[-1]["test"]
    assert controls.dense == ours.dense == of_plain.dense


def write_configuration(trace):
    import yaml

    (trace.directory / "config.yaml").write_text(yaml.safe_dump(trace.parts.cfg))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "protocol.control_at=every: has no effect with protocol.control=none"),
        (
            ("method=movement", "protocol.control=reinit"),
            "protocol.control_at=every: Movement changes the training; use last",
        ),
    ],
)
def test_controls_that_cannot_stand_aside_are_refused(options, message):
    with pytest.raises((ValueError, InstantiationException), match=message):
        kit.assemble(kit.tiny(IMP, "lenet300", EVERY, *options))


def test_what_metrics_measured_last_is_in_the_result(tmp_path):
    options = ("metrics=[train_accuracy,latency,mask_overlap]", "metrics.train_accuracy.every=4it")
    options += ("metrics.latency.repeats=3", "protocol.control=reinit", EVERY)
    kit.recorded(kit.tiny(IMP, "lenet300", *options), tmp_path).fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = json.loads((tmp_path / "result.json").read_text())["measured"]
    assert set(measured) == {"train_accuracy", "latency", "mask_overlap"}
    for name, values in measured.items():
        own = [row for row in rows if row["kind"] == "metric" and row["metric"] == name]
        assert values["phase"] == "round-03" and not [row for row in own if "aside" in row]
        assert values.items() <= own[-1].items()
