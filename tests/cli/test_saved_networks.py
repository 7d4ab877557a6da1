"""The shrunk network of a structured run on disk: what is left, and that others can load and export it."""

import json

import pytest
import torch

from prunebench import export
from prunebench.saved import load_network

FILTERS = ("model=resnet20", "model.depth=8", "sparsity=filter", "dataset.train_images=64")


@pytest.fixture
def structured(prune, runs):
    assert prune(*FILTERS, "trainer.shrink=true", "metrics=[latency]", "metrics.latency.repeats=2").code == 0
    (directory,) = runs()
    return directory


def test_a_structured_run_leaves_a_smaller_network_that_computes_the_same(structured):
    small, masked = load_network(structured), load_network(structured, shrunk=False)
    result = json.loads((structured / "result.json").read_text())
    shrunk, final = result["shrunk"], result["final"]
    x = torch.randn(7, small.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-5, atol=1e-5)  # sums in another order
    assert sum(p.numel() for p in small.parameters()) == shrunk["params"] == final["params"]
    assert shrunk["macs"] == final["macs"] < final["macs_dense"]
    assert shrunk["bytes"] == (structured / "shrunk.safetensors").stat().st_size < shrunk["bytes_masked"]
    assert shrunk["difference"] <= 1e-5 * max(1, shrunk["logits"])
    (row,) = (
        row
        for row in map(json.loads, (structured / "metrics.jsonl").read_text().splitlines())
        if row.get("metric") == "latency"
    )
    assert row["shrunk_macs"] == shrunk["macs"] and row["measured_speedup_64"] > 0


def test_networks_of_timm_are_trained_saved_and_loaded_smaller(prune, runs):
    timm = ("model=timm", "model.name=test_resnet", "dataset.size=32", "dataset.train_images=64")
    assert prune(*timm, "sparsity=filter", "trainer.shrink=true").code == 0
    (directory,) = runs()
    small, masked = load_network(directory), load_network(directory, shrunk=False)
    final = json.loads((directory / "result.json").read_text())["final"]
    assert sum(p.numel() for p in small.parameters()) == final["params"] < final["params_total"]
    x = torch.randn(3, small.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)  # sums in another order


def test_timm_networks_that_cannot_be_cut_are_refused_before_training(prune, runs):
    refused = prune("model=timm", "model.name=test_nfnet", "dataset.size=64", "sparsity=filter")
    assert refused.code == 2 and "model.name=test_nfnet: filters and neurons cannot be pruned" in refused.line
    assert runs() == []


def test_a_run_of_single_weights_leaves_none(prune, runs):
    assert prune().code == 0
    (directory,) = runs()
    assert "shrunk" not in json.loads((directory / "result.json").read_text())
    assert not (directory / "shrunk.safetensors").exists()
    assert not load_network(directory).training
    with pytest.raises(ValueError, match="removed no filters or neurons; load it with shrunk=False"):
        load_network(directory, shrunk=True)
    with pytest.raises(ValueError, match="is no result directory of a finished run"):
        load_network("nowhere")


def exported(capsys, *arguments):
    code = 0
    try:
        export.main([str(a) for a in arguments])
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr()


def test_a_missing_package_is_named_with_the_way_out(capsys, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", ("json", "no_such_package"))
    code, said = exported(capsys, "nowhere", "--onnx")
    assert code == 2 and len(said.err.splitlines()) == 1
    assert "needs no_such_package, not installed; pip install 'prunebench[onnx]'" in said.err


@pytest.mark.slow
def test_the_exported_file_is_run_and_compared(structured, capsys, monkeypatch):
    for name in export.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed")
    code, said = exported(capsys, structured, "--onnx")
    assert code == 0 and f"{structured / 'shrunk.onnx'}: " in said.out and "logits equal to" in said.out
    assert (structured / "shrunk.onnx").stat().st_size > 1000
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    code, said = exported(capsys, structured, "--onnx", "other.onnx", "--masked")
    assert code == 1 and "its logits differ from the network's by" in said.err
    assert not (structured / "other.onnx").exists()


def test_directories_without_such_a_network_are_refused(prune, runs, capsys, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", ())
    code, said = exported(capsys, "nowhere", "--onnx")
    assert code == 2 and "holds no final.json" in said.err
    assert prune().code == 0
    code, said = exported(capsys, runs()[0], "--onnx", "--masked")
    assert code == 2 and "--masked: has no effect" in said.err
