"""Reports of runs whose target is a compression, and of those that remove nothing (compression 1)."""

import pytest

from prunebench.report.group import control, labels, summarise
from prunebench.report.read import load
from tests.unit.test_report import a_round, put
from tests.unit.test_report_labels import a_run, named, options
from tests.unit.test_report_remaining import panels


def test_a_sweep_over_compressions_has_a_column_and_no_word_but_rounds_are_named(tmp_path):
    for place, (compression, rounds) in enumerate(((2, 1), (4, 1), (2, 5))):
        tree = options() | {"sparsity": {"target": None, "compression": compression, "rounds": rounds}}
        typed = [f"sparsity.compression={compression}", f"sparsity.rounds={rounds}"]
        a_run(tmp_path, str(place), typed=typed, options=tree, target=1 - 1 / compression)
    assert named(tmp_path) == {"0": "imp rounds=1", "1": "imp rounds=1", "2": "imp rounds=5"}


def test_the_target_of_an_unfinished_run_is_the_sparsity_behind_the_compression(tmp_path):
    sparsity = {"target": 0.8784, "rate": None, "rounds": 10, "compression": 8.0}
    put(tmp_path, "partial", [a_round(0, 0.0, 0.9)], done=False, sparsity=sparsity)
    (run,) = load([str(tmp_path)]).runs
    assert run.target == 0.8784


def removing_nothing(root):
    """Dense 90 % (validation 80 %), pruned by nothing, retrained to 95 % (85 %); finished, and not."""
    rounds = [a_round(0, 0.0, 0.9), a_round(1, 0.0, 0.95)]
    for row, top1 in zip(rounds, (0.8, 0.85)):
        row["valid"] = {"top1": top1, "top5": 1.0, "loss": 0.1}
    put(root, "done", rounds)
    put(root, "partial", rounds, done=False, seed=1)


@pytest.mark.parametrize(("metric", "dense"), [("top1", 0.9), ("valid/top1", 0.8)])
def test_retraining_after_nothing_was_removed_is_no_dense_control(metric, dense, tmp_path):
    removing_nothing(tmp_path)
    runs = load([str(tmp_path)]).runs
    assert [control([run], metric)[0] for run in runs] == [dense, dense]
    assert [row["change"] for row in summarise(runs, labels(runs), metric)] == pytest.approx([0.05, 0.05])


def test_among_all_weights_remaining_the_dense_network_counts(tmp_path):
    removing_nothing(tmp_path)
    (panel,) = panels(tmp_path)
    assert [cell.values for cell in panel.rows[0].cells] == [{0: 0.9}]
