"""Interrupted equals uninterrupted, bit for bit, for every method at every step."""

import json

import pytest

NETWORKS = ("wrn", "lenet300")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_crashed_run_that_is_resumed_equals_an_uninterrupted_one(kit, traced, case, network):
    whole = traced(case, network)
    expected, files = kit.state_of(whole.parts), kit.on_disk(whole.directory)
    for total in whole.crashes:
        crashed = whole.directory / f"crash-{total}"
        directory = whole.directory / f"resumed-{total}"
        directory.mkdir()
        for file in crashed.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        resumed = kit.recorded(whole.overrides, directory).fit()
        assert kit.differences(expected, kit.state_of(resumed)) == [], f"crash after step {total}"
        assert kit.differences(files, kit.on_disk(directory)) == [], f"crash after step {total}"


@pytest.mark.parametrize("network", NETWORKS)
def test_crashes_lie_at_and_between_checkpoints_and_leave_rows_beyond_them(kit, traced, case, network):
    whole, behind, at, rows_beyond = traced(case, network), 0, 0, 0
    for total in whole.crashes:
        crashed = whole.directory / f"crash-{total}"
        content = kit.checkpoint.load(crashed / "checkpoint.pt")
        saved = content["run"]["clock"]["total"]
        behind, at = behind + (saved < total), at + (saved == total)
        rows = (crashed / "metrics.jsonl").read_bytes()[content["extra"]["rows"] :]
        rows_beyond += len(rows.splitlines()) > 1  # more than the torn one
    assert at and behind and rows_beyond


@pytest.mark.parametrize("network", NETWORKS)
def test_the_saved_state_of_a_method_is_not_that_of_a_fresh_one(kit, traced, case, network):
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
