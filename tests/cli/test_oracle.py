"""The Oracle: a search over ordinary runs that can be interrupted and enlarged."""

import json
import signal
from pathlib import Path

import pytest

ORACLE = ("protocol=oracle", "schedule=warmup_step", "protocol.grid=[0.05,0.2]")


@pytest.fixture
def search(runs):
    """The content of a run's oracle.json without times and places."""

    def read(out="runs"):
        content = json.loads((runs(out)[0] / "oracle.json").read_text())
        for cycle in content["cycles"]:
            for branch in cycle["branches"]:
                del branch["seconds"], branch["directory"]
        return content

    return read


def branches():
    return sorted(Path("runs/.oracle").glob("*/result.json"))


def test_the_run_along_the_winners_equals_an_ordinary_run_with_these_peaks(prune, runs, result, search):
    assert prune(*ORACLE).code == 0
    peaks = [cycle["best"] for cycle in search()["cycles"]]
    ordinary = (f"protocol.peaks={peaks}".replace(" ", ""), "schedule=warmup_step", "trainer.share=none")
    assert prune(*ordinary, "out=alone").code == 0
    (content, rows), (content_alone, rows_alone) = result(runs()[0]), result(runs("alone")[0])
    assert content["rounds"] == content_alone["rounds"]
    assert rows == rows_alone
    assert [row["max_lr"] for row in content["rounds"]] == pytest.approx(peaks)
    for name in ("final.safetensors", "masks.safetensors"):
        assert (runs()[0] / name).read_bytes() == (runs("alone")[0] / name).read_bytes()
    assert "protocols.oracle" in (runs()[0] / "config.yaml").read_text()


def test_every_branch_is_kept_and_the_best_by_validation_wins(prune, search):
    prune(*ORACLE)
    content = search()
    assert [cycle["phase"] for cycle in content["cycles"]] == ["dense", "round-01", "round-02"]
    for cycle in content["cycles"]:
        assert [b["max_lr"] for b in cycle["branches"]] == [0.05, 0.2]
        tops = {b["max_lr"]: b["valid"]["top1"] for b in cycle["branches"]}
        assert tops[cycle["best"]] == max(tops.values())
        assert cycle["near_best"] == [p for p, top in tops.items() if top >= max(tops.values()) - 0.005]
    assert content["cost"]["branches"] == 6
    assert content["cost"]["steps"] == 2 * (6 + 3 + 3)


def test_a_larger_grid_trains_only_what_is_new(prune, search, runs):
    prune(*ORACLE)
    small, before = search(), {p: p.stat().st_mtime_ns for p in branches()}
    assert prune(*ORACLE[:2], "protocol.grid=[0.05,0.2,0.8]", "out=runs").code == 0
    large = json.loads(max(runs(), key=lambda p: p.stat().st_mtime_ns).joinpath("oracle.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [b["valid"] for b in large["cycles"][0]["branches"][:2]] == [
        b["valid"] for b in small["cycles"][0]["branches"]
    ]
    new = {p for p in branches() if p not in before}
    assert len([p for p in new if len(json.loads(p.read_text())["rounds"]) == 1]) == 1, "one new dense branch"


def test_a_killed_search_goes_on_and_ends_the_same(started, prune, runs, until, search):
    longer = ("protocol.dense=60it", "protocol.retrain=60it")
    process = started(*ORACLE, *longer)
    until(lambda: len(branches()) >= 3 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in branches()}
    assert 3 <= len(done) < 6
    assert prune(*ORACLE, *longer).code == 0
    assert {p: p.stat().st_mtime_ns for p in done} == done, "a finished branch was trained again"
    assert prune(*ORACLE, *longer, "out=whole").code == 0
    assert search() == search("whole")


def test_weights_of_branches_that_lost_are_not_kept(prune, runs):
    prune(*ORACLE)
    content = json.loads((runs()[0] / "oracle.json").read_text())
    for cycle in content["cycles"]:
        for branch in cycle["branches"]:
            kept = (Path(branch["directory"]) / "final.safetensors").exists()
            assert kept == (branch["max_lr"] == cycle["best"])
    stored = [p.parent.name for p in Path("runs/.shared").glob("*/checkpoint.pt")]
    assert len(stored) == len(content["cycles"])


def test_a_peak_that_diverges_is_out_and_the_search_goes_on(prune, search):
    outcome = prune("protocol=oracle", "schedule=constant", "protocol.grid=[0.1,1e30]", "trainer.quiet=false")
    assert (outcome.code, outcome.err) == (0, "")
    assert "peak 1e+30: out of the search, training diverged" in outcome.out
    assert "try a lower peak of this phase (now 1e+30)" in outcome.out
    assert [cycle["diverged"] for cycle in search()["cycles"]] == [[1e30]] * 3
    assert [cycle["best"] for cycle in search()["cycles"]] == [0.1] * 3


def test_a_grid_that_diverges_as_a_whole_ends_the_run(prune):
    outcome = prune("protocol=oracle", "schedule=constant", "protocol.grid=[1e30,2e30]")
    assert outcome.code == 1
    assert outcome.line.startswith("prune-run: training diverged")


def test_states_of_both_trainings_of_branches_that_lost_are_dropped(prune, runs):
    assert prune(*ORACLE, "companion=[ap]", "companion.ap.mode=pro").code == 0
    stored = [p.parent.name for p in Path("runs/.shared").glob("*/checkpoint.pt")]
    assert len(stored) == 5, "dense, and two trainings of each of two rounds"


def test_a_branch_that_another_search_is_training_is_waited_for(prune, started, until, search):
    longer = ("protocol.dense=300it", "protocol.retrain=3it")
    other = started(*ORACLE, *longer, "protocol.tolerance=0.1")
    until(lambda: list(Path("runs/.oracle").glob("*/metrics.jsonl")) or other.poll() is not None)
    assert prune(*ORACLE, *longer).code == 0
    assert other.wait(timeout=60) == 0


def test_quiet_is_quiet(prune):
    assert prune(*ORACLE, "trainer.quiet=true").out == ""


def test_typed_again_it_says_that_it_is_done(prune):
    prune(*ORACLE)
    again = prune(*ORACLE, "trainer.quiet=false")
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("already done")


def test_the_plan_tells_how_often_phases_are_trained(prune):
    shown = prune(*ORACLE, "plan=true", "trainer.quiet=false").out
    assert "each of 2 peaks, 2 times this cost" in shown
    assert not branches()


def test_several_processes_are_refused(prune, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = prune(*ORACLE)
    assert outcome.code == 2
    assert outcome.line.startswith("prune-run: protocol=oracle: searches in one process")
