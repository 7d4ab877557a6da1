"""sparsity.compression from the command line: with every protocol that has a target, and at compression 1."""

import json

import pytest

NET = ("model=lenet300", "dataset=synthetic", "trainer.threads=1", "trainer.quiet=true", "protocol.dense=6it")
WAYS = {
    "one_shot": ("method=one_shot", "protocol.retrain=3it"),
    "iterative": ("method=imp", "protocol.retrain=3it", "sparsity.rounds=2"),
    "at_init": ("method=snip",),
    "oracle": ("protocol=oracle", "protocol.grid=[0.1,0.2]", "protocol.retrain=3it", "sparsity.rounds=2"),
    "no_target": ("method=one_shot", "protocol.retrain=3it", "sparsity.target=null"),
}


def only(runs):
    (directory,) = runs()
    return directory, json.loads((directory / "result.json").read_text())


@pytest.mark.parametrize("way", WAYS)
def test_every_protocol_with_a_target_reaches_it_to_the_parameter(way, prune, runs):
    outcome = prune(*NET, *WAYS[way], "sparsity.compression=8", "sparsity.exclude=[head]", tiny=False)
    assert outcome.code == 0, outcome.err
    directory, result = only(runs)
    final = result["final"]
    assert final["params"] == round(final["params_total"] / 8)
    assert final["compression"] == final["params_total"] / final["params"]
    assert result["sparsity"]["compression"] == 8
    assert result["sparsity"]["target"] == final["asked"] == final["sparsity"]
    identity = json.loads((directory / "identity.json").read_text())
    assert identity["sparsity"] == result["sparsity"]


def test_the_sparsity_behind_it_gives_the_same_run(prune, runs, result):
    common = (*NET, *WAYS["iterative"])
    prune(*common, "sparsity.compression=8", "out=a", tiny=False)
    (a,) = runs("a")
    target = json.loads((a / "identity.json").read_text())["sparsity"]["target"]
    prune(*common, f"sparsity.target={target!r}", "out=b", tiny=False)
    (b,) = runs("b")
    assert result(a)[0]["rounds"] == result(b)[0]["rounds"]
    assert a.name != b.name


def test_compression_1_is_the_dense_control_and_its_fine_tuning(prune, runs):
    prune(*NET, *WAYS["one_shot"], "sparsity.compression=1", "out=a", tiny=False)
    prune(*NET, "method=dense", "out=b", tiny=False)
    (a,), (b,) = runs("a"), runs("b")
    one, dense = (json.loads((d / "result.json").read_text()) for d in (a, b))
    assert one["dense"] == dense["final"]["test"]
    before, after = one["rounds"]
    assert after["pruned"] == before["test"]  # nothing was removed
    assert after["params"] == after["params_total"] and after["compression"] == after["speedup"] == 1.0
    assert after["steps"] == 3 and after["test"] != before["test"]


def test_the_plan_shows_the_compression_and_the_sparsity(prune, tmp_path):
    typed = ("model=lenet300", "dataset=synthetic", "method=one_shot", "sparsity.compression=4", "plan=true")
    outcome = prune(*typed, tiny=False)
    assert outcome.code == 0
    assert "4 asked, of the whole model: 12,652 of 50,610 parameters stay, 410 of them not" in outcome.out
    assert "75.61" in outcome.out  # 1 - (12,652 - 410) / 50,200
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_compressions_trains_the_dense_network_once(prune, runs):
    outcome = prune("-m", *NET, *WAYS["one_shot"], "sparsity.compression=1,4", tiny=False)
    assert outcome.code == 0, outcome.err
    shared = [json.loads((d / "result.json").read_text())["shared"] for d in runs()]
    assert sorted(map(len, shared)) == [0, 1]


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "random"])
def test_layerwise_baselines_of_shrinkbench_prune_every_layer_alike_but_the_classifier(
    criterion, prune, runs
):
    net = ("model=resnet20", "model.depth=8", "dataset=synthetic", "trainer.threads=1", "trainer.quiet=true")
    lengths = ("protocol.dense=2it", "protocol.retrain=2it")
    chosen = (f"criterion={criterion}", "sparsity.allocation=uniform")
    outcome = prune("experiment=shrinkbench", *net, *lengths, *chosen, tiny=False)
    assert outcome.code == 0, outcome.err
    _, result = only(runs)
    *layers, head = result["layers"]
    assert head["kept"] == head["total"] == 640
    density = 1 - result["final"]["sparsity"]
    assert all(abs(layer["kept"] - density * layer["total"]) < 1 for layer in layers)
    assert result["final"]["params"] == round(result["final"]["params_total"] / 4)
    assert [row["max_lr"] for row in result["rounds"]] == pytest.approx([1e-3, 3e-4])


def test_global_baselines_of_shrinkbench_have_no_floor_under_a_layer(prune, runs):
    net = ("model=lenet300", "dataset=synthetic", "trainer.threads=1", "trainer.quiet=true")
    lengths = ("protocol.dense=2it", "protocol.retrain=2it")
    # 50,610 / 123 is 411: one weight beside the 410 biases
    chosen = ("sparsity.exclude=[]", "sparsity.compression=123")
    outcome = prune("experiment=shrinkbench", *net, *lengths, *chosen, tiny=False)
    assert outcome.code == 0, outcome.err
    _, result = only(runs)
    assert result["final"]["kept"] == 1
    assert sorted(layer["kept"] for layer in result["layers"]) == [0, 0, 1]
