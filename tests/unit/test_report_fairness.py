"""Whether rows of a report may be compared: what differs is named, `--strict` makes it an error."""

import json
import statistics

import pytest

from prunebench.report.cli import main
from prunebench.report.fairness import contract, verdicts
from prunebench.report.group import labels
from prunebench.report.read import load
from tests.unit.test_report import put, rounds_to

CONFIG = """seed: {seed}
model: {{_target_: net, depth: 20}}
dataset: {{name: digits, pad: {pad}, flip: true, validation: {validation}, noise_seed: {seed}}}
optimizer: {{_target_: torch.optim.SGD, lr: {lr}}}
schedule: {{_target_: cosine, warmup: 0}}
protocol: {{dense: 4ep, keep: {keep}}}
criterion: {{_target_: magnitude}}
trainer: {{batch_size: 128}}
"""
COST = {"steps": 100, "samples": 1000, "train_macs": 10**6, "train_macs_dense": 2 * 10**6}


def a_run(root, method, seed, *, target=0.9, top1=0.8, dense=0.9, cost=COST, **options):
    """A finished run with a config.yaml."""
    values = {"pad": 4, "validation": 0.1, "lr": 0.1, "keep": "last"} | options
    identity = {"sparsity": {"target": target, "allocation": "global", "granularity": "weight"}}
    identity |= {"criterion": options.get("criterion", "magnitude")}
    name = f"{method}-{seed}-{target}-{'-'.join(map(str, values.values()))}"
    put(root, name, rounds_to(target, top1, dense, rounds=5), method=method, seed=seed, **identity)
    content = json.loads((root / name / "result.json").read_text())
    (root / name / "result.json").write_text(json.dumps(content | {"cost": cost}))
    (root / name / "config.yaml").write_text(CONFIG.format(seed=seed, **values))


def judged(root):
    runs = load([str(root)]).runs
    return verdicts(runs, labels(runs))


def two_rows(root, **of_second):
    for seed in (0, 1):
        a_run(root, "imp", seed)
        a_run(root, "lth", seed, **of_second)


def test_rows_that_differ_in_the_method_only_are_fair(tmp_path):
    two_rows(tmp_path, top1=0.7)
    (one,) = judged(tmp_path)
    assert one.findings == [] and one.by == ["method"] and one.rows == 2
    assert one.lines[0].startswith("fair? lenet300 on digits: 2 rows, compared by method; equal: ")


def test_a_single_row_is_no_comparison(tmp_path):
    a_run(tmp_path, "imp", 0)
    assert judged(tmp_path) == []


@pytest.mark.parametrize(
    "difference, aspect, text",
    [
        ({"pad": 2}, "augmentation", "dataset.pad 4 (imp), 2 (lth)"),
        ({"validation": 0.2}, "data", "dataset.validation 0.1 (imp), 0.2 (lth)"),
        ({"lr": 0.05}, "optimizer", "optimizer.lr 0.1 (imp), 0.05 (lth)"),
        ({"keep": "best"}, "selection", "protocol.keep last (imp), best (lth)"),
        ({"dense": 0.91}, "dense control", "90.00 % (imp), 91.00 % (lth)"),
    ],
)
def test_every_aspect_is_named_with_its_values(tmp_path, difference, aspect, text):
    two_rows(tmp_path, **difference)
    (one,) = judged(tmp_path)
    assert [(found.aspect, found.text) for found in one.findings] == [(aspect, text)]


def test_costs_within_a_percent_are_equal_and_more_is_named_with_its_ratio(tmp_path):
    two_rows(tmp_path / "near", cost=COST | {"samples": 1009})
    assert judged(tmp_path / "near")[0].findings == []
    two_rows(tmp_path / "far", cost=COST | {"samples": 1500, "train_macs": 2 * 10**6})
    (found,) = judged(tmp_path / "far")[0].findings
    assert found.aspect == "training cost"
    assert "images 1.00k (imp) to 1.50k (lth), 1.50x" in found.text
    assert "MACs 1.00M (imp) to 2.00M (lth), 2.00x, at 90.00 % sparsity" in found.text


def test_costs_that_were_not_recorded_are_not_taken_for_equal(tmp_path):
    two_rows(tmp_path, cost={"steps": 100})
    (found,) = judged(tmp_path)[0].findings
    assert found.text == "images not recorded in every run; MACs not recorded in every run"


def test_rows_that_end_elsewhere_have_no_cost_to_compare(tmp_path):
    two_rows(tmp_path, target=0.95)
    (found,) = judged(tmp_path)[0].findings
    assert found.text == "cannot be compared, no two rows end at the same sparsity"


def test_seeds_that_not_every_row_has_are_named(tmp_path):
    two_rows(tmp_path)
    a_run(tmp_path, "imp", 2)
    (found,) = judged(tmp_path)[0].findings
    assert (found.aspect, found.text) == ("seeds", "0,1,2 (imp), 0,1 (lth)")


def test_an_option_in_the_labels_is_what_rows_are_compared_by(tmp_path):
    for seed in (0, 1):
        a_run(tmp_path, "imp", seed)
        a_run(tmp_path, "imp", seed, lr=0.05)
    (one,) = judged(tmp_path)
    assert one.findings == [] and one.by == ["lr"]


def test_runs_without_their_configuration_are_counted(tmp_path):
    two_rows(tmp_path)
    next(tmp_path.glob("lth-1*/config.yaml")).unlink()
    (one,) = judged(tmp_path)
    assert one.unrecorded == 1 and "1 run has no config.yaml, options not recorded" in one.lines[0]


def test_strict_prints_everything_and_exits_with_1(tmp_path, capsys):
    two_rows(tmp_path, lr=0.05)
    assert main([str(tmp_path), "--no-plot", "--strict", "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "\nnot equal: optimizer: optimizer.lr 0.1 (imp), 0.05 (lth)\n" in shown.out
    assert shown.err == "prune-report: --strict: not equal: lenet300 on digits: optimizer\n"
    assert "optimizer.lr 0.1 (imp)" in (tmp_path / "out" / "report.md").read_text()
    assert main([str(tmp_path), "--no-plot", "--out", str(tmp_path / "out")]) == 0


def test_strict_is_content_with_a_fair_comparison(tmp_path):
    two_rows(tmp_path)
    assert main([str(tmp_path), "--no-plot", "--strict"]) == 0


def test_what_shrinkbench_asks_for_is_named_where_it_is_missing(tmp_path):
    two_rows(tmp_path / "few")
    a_run(tmp_path / "few", "snip", 0, target=0.5)
    runs = load([str(tmp_path / "few")]).runs
    runs = [run for run in runs if run.identity["method"] != "lth"]
    for run in runs:
        if run.identity["method"] == "snip":
            del run.rounds[1:-1]
    (line,) = contract(runs, labels(runs))
    assert "fewer than 5 operating points: 1 (snip)" in line and "no random control" in line
    a_run(tmp_path / "random", "imp", 0, criterion="random")
    a_run(tmp_path / "random", "imp", 0, lr=0.05)
    runs = load([str(tmp_path / "random")]).runs
    assert contract(runs, labels(runs)) == []


def test_rows_by_a_key_are_averaged_over_everything_else(tmp_path, capsys):
    numbers = {("imp", 0.1): 0.80, ("imp", 0.05): 0.82, ("lth", 0.1): 0.70, ("lth", 0.05): 0.74}
    for (method, lr), top1 in numbers.items():
        a_run(tmp_path, method, 0, lr=lr, top1=top1)
    assert main([str(tmp_path), "--no-plot", "--by", "optimizer.lr"]) == 0
    out = capsys.readouterr().out
    for lr in (0.1, 0.05):
        mean = statistics.fmean(top1 for (_, other), top1 in numbers.items() if other == lr)
        assert any(f"lr={lr} " in line and f"{100 * mean:.2f}" in line for line in out.splitlines())
    assert "averaged over method (imp, lth), and seeds" in out
    assert "repeat" not in out


def test_where_and_by_know_every_option_and_name_the_close_ones(tmp_path, capsys):
    two_rows(tmp_path, lr=0.05)
    assert main([str(tmp_path), "--no-plot", "--where", "optimizer.lr=5e-2"]) == 0
    assert "2 runs: 2 done, 0 partial, 2 not selected" in capsys.readouterr().out
    for option in (["--by", "optimizer.lrr"], ["--where", "optimizer.lrr=1"]):
        assert main([str(tmp_path), "--no-plot", *option]) == 2
        assert "did you mean optimizer.lr" in capsys.readouterr().err
