"""Interrupted equals uninterrupted, bit for bit, for every method at every step."""

import json
import shutil

import pytest

from prunebench.core import checkpoint
from tests.conformance import kit

NETWORKS = ("wrn", "lenet300")


def assert_resumes_to_the_same_end(whole):
    """Go on from every crash in fresh objects, and compare all that is in memory and on disk at the end."""
    expected, files = kit.state_of(whole.parts), kit.on_disk(whole.directory)
    for total in whole.crashes:
        directory = whole.directory / f"resumed-{total}"
        shutil.copytree(whole.directory / f"crash-{total}", directory)
        resumed = kit.recorded(whole.overrides, directory).fit()
        assert kit.differences(expected, kit.state_of(resumed)) == [], f"crash after step {total}"
        assert kit.differences(files, kit.on_disk(directory)) == [], f"crash after step {total}"


@pytest.mark.parametrize("network", NETWORKS)
def test_a_crashed_run_that_is_resumed_equals_an_uninterrupted_one(traced, case, network):
    assert_resumes_to_the_same_end(traced(case, network))


# What the loop keeps for options that no method has by default
OPTIONS = {
    "rewind": ("protocol.weights=rewind", "protocol.rewind_to=2it"),
    "best": ("protocol.keep=best", "protocol.patience=4it", "trainer.eval_every=2it"),
    "allr": ("retrain=allr",),
    "neuron": ("sparsity=filter", "sparsity.granularity=neuron"),
    "control": ("protocol.control=random_even",),
    "two trainings in a round": ("companion=[ap]", "companion.ap.mode=pro", "protocol.weights=random"),
    "peaks that grow": ("schedule=silo", "retrain=same"),
    "peaks of the plan": ("protocol.peaks=[0.1,0.2,0.05,0.3]",),
    "snapshots for a criterion": ("criterion=weight_change", "protocol.weights=init"),
    "no decay of biases": ("trainer.decay=weights", "trainer.label_smoothing=0.1"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_runs_with_options_of_the_loop_resume_as_well(traced, options):
    assert_resumes_to_the_same_end(traced(kit.Case("imp"), "lenet300", *options))


@pytest.mark.parametrize("network", NETWORKS)
def test_crashes_lie_at_and_between_checkpoints_and_leave_rows_beyond_them(traced, case, network):
    whole, behind, at, rows_beyond = traced(case, network), 0, 0, 0
    for total in whole.crashes:
        crashed = whole.directory / f"crash-{total}"
        content = checkpoint.load(crashed / "checkpoint.pt")
        saved = content["run"]["clock"]["total"]
        behind, at = behind + (saved < total), at + (saved == total)
        rows = (crashed / "metrics.jsonl").read_bytes()[content["extra"]["rows"] :]
        rows_beyond += len(rows.splitlines()) > 1  # more than the torn one
    assert at and behind and rows_beyond


@pytest.mark.parametrize("network", NETWORKS)
def test_the_saved_state_of_a_method_is_not_that_of_a_fresh_one(traced, case, network):
    whole = traced(case, network)

    def unchanged(fresh, later):
        below = unchanged(fresh["base"], [s["base"] for s in later]) if "base" in fresh else []
        own = [n for n in fresh if n != "base" and not any(kit.differences(fresh[n], s[n]) for s in later)]
        return below + own

    assert unchanged(whole.fresh, list(whole.seen.states.values())) == []


def test_rows_are_complete_json_and_in_the_order_of_steps(traced, case):
    whole = traced(case, "lenet300")
    rows = [json.loads(line) for line in (whole.directory / "metrics.jsonl").read_text().splitlines()]
    assert [r["total"] for r in rows] == sorted(r["total"] for r in rows)
    assert {"train", "eval", "phase"} <= {r["kind"] for r in rows}
