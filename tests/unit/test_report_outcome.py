"""prune-report with runs whose sparsity is an outcome: nothing was asked for."""

import json

from prunebench.report.cli import main
from prunebench.report.read import load
from tests.unit.test_report import a_round, put
from tests.unit.test_report_remaining import panels


def outcome(root, name, sparsity, top1, seed):
    row = a_round(1, sparsity, top1) | {"phase": "train", "asked": None, "delta": None, "pruned": None}
    put(root, name, [row], method="str", seed=seed, sparsity={"target": 0.9})


def test_runs_that_ask_for_nothing_are_seeds_of_one_row(tmp_path):
    outcome(tmp_path, "a", 0.5, 0.9, 0)
    outcome(tmp_path, "b", 0.501, 0.8, 1)
    assert [(run.target, run.end) for run in load([str(tmp_path)]).runs] == [(None, None)] * 2
    (panel,) = panels(tmp_path, "50")
    (row,) = panel.rows
    assert list(row.cells[0].values.values()) == [0.9, 0.8]


def test_every_table_and_picture_is_written_for_them(tmp_path, capsys):
    outcome(tmp_path, "a", 0.5, 0.9, 0)
    put(tmp_path, "b", [a_round(0, 0.0, 0.9), a_round(1, 0.5, 0.85)], sparsity={"target": 0.5})
    for directory in ("a", "b"):
        with open(tmp_path / directory / "metrics.jsonl", "a") as rows:
            values = {"metric": "hessian", "when": "end", "epoch": 4.0, "trace": 1.0}
            last = {"phase": "train" if directory == "a" else "round-01", "cycle": 1, "sparsity": 0.5}
            rows.write(json.dumps({"kind": "metric", "step": 1, "total": 1, **last, **values}) + "\n")
    assert main([str(tmp_path), "--remaining", "50", "--html"]) == 0
    shown = capsys.readouterr().out
    assert "str" in shown and "imp" in shown
