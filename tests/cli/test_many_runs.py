"""prune-report of a tree of runs such as the benchmark's."""

import csv
from pathlib import Path

import pytest

from benchmarks.trees import CRITERIA, SEEDS, TARGETS, write_tree
from prunebench.report import read
from prunebench.report.cli import main
from prunebench.report.lazy import RoundsOnDisk

RUNS = len(CRITERIA) * len(TARGETS) * SEEDS


@pytest.fixture
def tree(prune, runs):
    """A run for every criterion, sparsity and seed, and the real run that they are copies of."""
    assert prune("sparsity.target=0.5").code == 0
    (template,) = runs()
    write_tree(Path("tree"), template, RUNS)
    return template


def test_the_runs_of_a_tree_are_told_apart_and_averaged_over_seeds(tree, capsys):
    assert main(["tree", "--format", "table,csv", "--no-plot"]) == 0
    with open("tree/report_summary.csv") as file:
        rows = list(csv.DictReader(file))
    expected = {(f"imp {criterion}", str(target)) for criterion in CRITERIA for target in TARGETS}
    assert {(row["method"], row["target"]) for row in rows} == expected
    assert [row["n"] for row in rows] == [str(SEEDS)] * len(expected)
    assert f"{RUNS} runs: {RUNS} done" in capsys.readouterr().out


def test_a_run_of_a_tree_has_the_files_and_the_keys_of_a_real_one(tree):
    copy = read.load(["tree"]).runs[0]
    (real,) = read.read_runs(tree)
    assert {path.name for path in copy.directory.iterdir()} <= {path.name for path in tree.iterdir()}
    assert copy.identity.keys() == real.identity.keys()
    assert copy.configuration.keys() == real.configuration.keys()
    assert [row.keys() for row in copy.rounds] == [row.keys() for row in real.rounds]


def test_a_report_holds_no_more_rounds_than_its_limit(tree, monkeypatch, capsys):
    main(["tree", "--format", "table,csv", "--no-plot"])
    files = [Path("tree", name).read_bytes() for name in ("report.csv", "report_summary.csv")]
    monkeypatch.setattr(read, "HELD", 30)
    held = [run for run in read.load(["tree"]).runs if not isinstance(run.rounds, RoundsOnDisk)]
    assert len(held) == 10  # of three rounds each
    main(["tree", "--format", "table,csv", "--no-plot"])
    assert [Path("tree", name).read_bytes() for name in ("report.csv", "report_summary.csv")] == files
