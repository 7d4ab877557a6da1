import json

import pytest


def phases_trained(directory):
    """Names of the phases that this run itself trained."""
    content = json.loads((directory / "result.json").read_text())
    taken = {shared["phase"] for shared in content["shared"]}
    return [r["phase"] for r in content["rounds"] if r["phase"] not in taken]


def test_a_sweep_trains_one_dense_network_per_seed(prune, tiny, runs, result):
    outcome = prune("-m", "sparsity.target=0.8,0.9", "seed=0,1")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line for line in outcome.out.splitlines() if line.startswith("[")] == [
        f"[{n}] " + " ".join([*tiny, f"sparsity.target={target}", f"seed={seed}"])
        for n, (target, seed) in enumerate([("0.8", 0), ("0.8", 1), ("0.9", 0), ("0.9", 1)])
    ]
    results = [result(d)[0] for d in runs()]
    assert sorted((r["sparsity"]["target"], r["seed"]) for r in results) == [
        *((0.8, 0), (0.8, 1), (0.9, 0), (0.9, 1)),
    ]
    trained = {(r["seed"], "dense" in phases_trained(d)) for r, d in zip(results, runs())}
    assert trained == {(0, True), (0, False), (1, True), (1, False)}
    assert sum("dense" in phases_trained(d) for d in runs()) == 2


def test_runs_of_a_sweep_equal_those_typed_alone_without_the_store(prune, runs, result):
    prune("-m", "sparsity.target=0.8,0.9")
    for target in ("0.8", "0.9"):
        alone = prune(f"sparsity.target={target}", "out=alone", "trainer.share=none")
        assert (alone.code, alone.err) == (0, "")
    assert [d.name for d in runs()] == [d.name for d in runs("alone")], "the same configuration has one name"
    for swept, alone in zip(runs(), runs("alone")):
        (content, rows), (content_alone, rows_alone) = result(swept), result(alone)
        assert content | {"shared": [], "stored": {}} == content_alone
        assert rows == rows_alone
        for name in ("final.safetensors", "masks.safetensors"):
            assert (swept / name).read_bytes() == (alone / name).read_bytes()


def test_options_of_a_swept_choice_are_those_of_the_job(prune, runs, result):
    small = ("dataset=synthetic", "protocol.dense=6it", "trainer.threads=1", "trainer.quiet=true")
    options = (*small, "method.interval=2", "protocol.multiplier=1.5")
    outcome = prune("-m", "method=set,rigl", *options, tiny=False)
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(result(d)[0]["method"] for d in runs()) == ["rigl", "set"]
    alone = prune("method=rigl", *options, tiny=False)
    assert "already done" in alone.out, "the same configuration has one directory"


def test_a_failed_job_is_named_and_does_not_stop_the_others(prune, tiny, runs):
    outcome = prune("-m", "sparsity.target=0.8,1.5,0.9")
    assert outcome.code == 2
    assert "job 1 failed: sparsity.target=1.5: must lie in [0, 1)" in outcome.err
    assert "1 job of the sweep failed:" in outcome.err
    last = outcome.err.splitlines()[-2:]
    assert last[0].strip() == " ".join([*tiny, "sparsity.target=1.5"])
    assert last[1].strip() == "sparsity.target=1.5: must lie in [0, 1)"
    assert "Traceback" not in outcome.err
    assert len(runs()) == 2 and all((d / "result.json").exists() for d in runs())


def test_a_sweep_with_a_job_that_fails_in_training_exits_with_1(prune, runs):
    outcome = prune("-m", "optimizer.lr=1e30,0.1")
    assert outcome.code == 1
    assert "job 0 failed: training diverged" in outcome.err
    assert sorted((d / "result.json").exists() for d in runs()) == [False, True]


def test_typing_a_sweep_again_runs_only_what_is_missing(prune, runs):
    sweep = ("-m", "sparsity.target=0.8,0.9", "trainer.quiet=false")
    prune(*sweep)
    kept, missing = runs()
    (missing / "result.json").unlink()
    (missing / "checkpoint.pt").unlink()
    before = (kept / "result.json").stat().st_mtime_ns
    again = prune(*sweep)
    assert again.code == 0
    assert again.out.count("already done") == 1
    assert again.out.count("dense: taken from the shared store") == 1
    assert (kept / "result.json").stat().st_mtime_ns == before
    assert (missing / "result.json").exists()
    third = prune(*sweep)
    assert (third.code, third.out.count("already done")) == (0, 2)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("model=lenet300,lenet30", "model=lenet30: no such model; did you mean 'lenet300'?"),
        ("seed=0,one", "seed=one: must be a whole number"),
    ],
)
def test_a_mistake_in_a_sweep_is_told_before_its_first_job(wrong, said, prune, runs):
    outcome = prune("-m", wrong)
    assert (outcome.code, outcome.line) == (2, f"prune-run: {said}")
    assert not runs()


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_results(prune, prune_process, runs, result):
    sweep = ("-m", "sparsity.target=0.8,1.5,0.9", "seed=0,1")
    beside = prune_process(*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "out=beside")
    assert beside.code == 2
    assert "2 jobs of the sweep failed:" in beside.err and "Traceback" not in beside.err
    prune(*sweep)
    assert [d.name for d in runs("beside")] == [d.name for d in runs()]
    assert len(runs()) == 4
    for one, other in zip(runs("beside"), runs()):
        (content, rows), (content_other, rows_other) = result(one), result(other)
        assert content | {"shared": []} == content_other | {"shared": []}
        assert rows == rows_other
    assert sum("dense" in phases_trained(d) for d in runs("beside")) == 2


@pytest.mark.slow
def test_a_signal_stops_a_sweep_and_the_same_command_goes_on(prune, started, runs, result, until):
    sweep = ("-m", "protocol.dense=200it", "seed=0,1")
    process = started(*sweep, "trainer.checkpoint_every=1it")
    until(lambda: process.poll() is not None or (runs() and (runs()[0] / "checkpoint.pt").exists()))
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped, with a checkpoint; type the same command to go on" in err and "Traceback" not in err
    assert len(runs()) == 1, "the next job is not begun"
    assert prune(*sweep).code == 0
    assert prune(*sweep, "out=whole").code == 0
    assert [result(d) for d in runs()] == [result(d) for d in runs("whole")]
