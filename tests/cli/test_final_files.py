import json
import subprocess
import sys

import pytest
import torch


@pytest.mark.parametrize(
    "arguments",
    [
        ("model=lenet300",),
        ("model=resnet20", "dataset.train_images=64", "protocol.dense=1it", "protocol.retrain=1it"),
        ("model=lenet300", "sparsity.granularity=neuron", "sparsity.target=0.5"),
    ],
    ids=["lenet300", "resnet20", "neurons"],
)
def test_final_files_give_the_network_and_its_accuracy(arguments, prune, runs):
    from hydra.utils import instantiate

    from prunebench.data.datasets import synthetic

    assert prune(*arguments).code == 0
    (directory,) = runs()

    from safetensors.torch import load_file

    about = json.loads((directory / "final.json").read_text())
    weights, masks = load_file(directory / "final.safetensors"), load_file(directory / "masks.safetensors")

    sizes = {k: about[k] for k in ("in_channels", "image_size", "num_classes")}
    model = instantiate(about["model"], **sizes)
    model.load_state_dict(weights)
    model.eval()
    result = json.loads((directory / "result.json").read_text())
    assert all(bool((weights[n][~m] == 0).all()) for n, m in masks.items())
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert (kept, total) == (result["final"]["kept"], result["final"]["total"])
    assert about["sparsity"] == result["final"]["sparsity"] == 1 - kept / total

    import yaml

    cfg = yaml.safe_load((directory / "config.yaml").read_text())
    options = {k: v for k, v in cfg["dataset"].items() if k != "_target_"}
    data = synthetic(**options, batch_size=128, device=torch.device("cpu"))
    with torch.no_grad():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.evaluation("test"))
    assert correct / data.sizes["test"] == result["final"]["test"]["top1"]


def test_final_files_load_without_prunebench_and_without_pickles(prune, runs):
    assert prune().code == 0
    lines = (
        "import json, sys; from safetensors.numpy import load_file",
        "about = json.load(open(sys.argv[1] + '/final.json'))",
        "print(len(load_file(sys.argv[1] + '/final.safetensors')), about['model']['_target_'])",
        "assert not {'torch', 'prunebench'} & set(sys.modules)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(runs()[0])], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("6 prunebench.models.lenet.LeNet300\n", "")


def test_a_run_directory_says_everything(prune, runs):
    typed = ("trainer.decay=weights", "seed=3")
    assert prune(*typed).code == 0
    names = {p.name for p in runs()[0].iterdir()}
    assert names >= {
        *("config.yaml", "overrides.json", "environment.json", "metrics.jsonl", "result.json"),
        *("checkpoint.pt", "final.safetensors", "masks.safetensors", "final.json", "curve.png"),
    }
    assert json.loads((runs()[0] / "overrides.json").read_text())[-2:] == list(typed)
    environment = json.loads((runs()[0] / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and environment["device"] == "cpu"
    rows = [json.loads(line) for line in (runs()[0] / "metrics.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in rows} == {"train", "eval", "prune", "phase"}
    assert [r["phase"] for r in rows if r["kind"] == "phase"] == ["dense", "round-01", "round-02"]
    assert sum(r["kind"] == "eval" and r["split"] == "test" for r in rows) == 3, "once per phase end"
