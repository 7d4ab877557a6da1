"""The learning rate over the epochs of all phases."""

import json

import pytest

from prunebench.report.group import labels
from prunebench.report.rates import learning_rates, lr_png, together
from prunebench.report.read import load
from tests.unit.test_report import PNG, a_round, put, refused, rounds_to, run


def trained(root, name, phases, **options):
    """A run with two epochs of 10 steps per phase; phases: (name, sparsity, learning rates)."""
    rows, total = [], 0
    for phase, sparsity, rates in phases:
        for epoch, lr in enumerate(rates, start=1):
            place = {"phase": phase, "step": 10 * epoch, "total": total + 10 * epoch, "epoch": float(epoch)}
            rows.append({"kind": "train", **place, "sparsity": sparsity, "loss": 1.0, "lr": lr})
        total += 10 * len(rates)
    tail = "".join(json.dumps(row) + "\n" for row in rows)
    directory = put(root, name, rounds_to(0.9, 0.8), **options)
    (directory / "metrics.jsonl").write_text(tail)
    return directory


PRO = [("dense", 0.0, [0.1, 0.2]), ("round-01a", 0.0, [0.3, 0.4]), ("round-01", 0.5, [0.5, 0.6])]


def found(root):
    runs = load([str(root)]).runs
    return learning_rates(runs, labels(runs))


def test_epochs_count_over_all_phases_auxiliary_ones_too(tmp_path):
    trained(tmp_path, "a", PRO)
    (rates,) = found(tmp_path)
    assert rates.epochs == [1, 2, 3, 4, 5, 6]
    assert rates.rates == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert rates.starts == [(0, 1), (2, 1), (4, 0.5)]
    assert rates.title == "imp, seed 0"


def test_of_a_label_one_run_is_drawn_finished_and_of_the_lowest_seed(tmp_path):
    trained(tmp_path, "a", PRO, seed=2)
    trained(tmp_path, "b", PRO, seed=1)
    trained(tmp_path, "c", PRO, seed=0, done=False)
    trained(tmp_path, "d", PRO, seed=5, method="lth")
    assert [rates.title for rates in found(tmp_path)] == ["imp, seed 1", "lth, seed 5"]


def test_models_and_data_sets_are_named_where_there_are_several(tmp_path):
    trained(tmp_path, "a", PRO)
    trained(tmp_path, "b", PRO, model="lenet5")
    assert [rates.title for rates in found(tmp_path)] == [
        *("imp, seed 0: lenet300 on digits", "imp, seed 0: lenet5 on digits")
    ]


def test_rows_that_a_resumed_run_wrote_twice_count_once(tmp_path):
    directory = trained(tmp_path, "a", PRO)
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1].replace("0.6", "0.7") + "\n")
    (rates,) = found(tmp_path)
    assert rates.rates == [0.1, 0.2, 0.3, 0.4, 0.5, 0.7]


def test_it_is_drawn_on_request_only(tmp_path, capsys):
    trained(tmp_path, "a", PRO)
    run(capsys, tmp_path)
    assert not (tmp_path / "lr.png").exists()
    _, out, _ = run(capsys, tmp_path, "--lr")
    assert str(tmp_path / "lr.png") in out
    assert (tmp_path / "lr.png").read_bytes().startswith(PNG)


def test_a_learning_rate_of_0_is_drawn_too(tmp_path):
    trained(tmp_path, "a", [("dense", 0.0, [0.0])])
    lr_png(found(tmp_path), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_runs_without_rows_are_refused(tmp_path, capsys):
    put(tmp_path, "a", [a_round(0, 0.0, 0.9)])
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert "no run here has rows of learning rates" in refused(capsys, tmp_path, "--lr")
    assert "no effect with --no-plot" in refused(capsys, tmp_path, "--lr", "--no-plot")


@pytest.mark.parametrize("damage", ['{"kind": "train", torn\n', "[1, \n"])
def test_a_damaged_line_is_refused_where_it_matters(tmp_path, capsys, damage):
    directory = trained(tmp_path, "a", PRO)
    path = directory / "metrics.jsonl"
    path.write_text(damage + path.read_text())
    if "train" in damage:
        assert f"--lr: {directory}: metrics.jsonl: line 1" in refused(capsys, tmp_path, "--lr")
    else:
        assert run(capsys, tmp_path, "--lr")[0] == 0


def test_sparsity_jumps_where_a_phase_prunes_and_slopes_where_masks_change_in_training(tmp_path):
    directory = trained(tmp_path, "a", PRO)
    event = {"kind": "prune", "phase": "round-01", "sparsity": 0.3, "total": 40}
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    (rates,) = found(tmp_path)
    assert rates.sparsity[-4:] == [(4, 0.0), (4, 0.3), (5, 0.5), (6, 0.5)]
    assert rates.starts[-1] == (4, 0.7)
    corners = [x for x, _ in rates.sparsity]
    assert corners == sorted(corners)


def test_what_is_alike_is_drawn_once_under_all_names(tmp_path):
    trained(tmp_path, "a", PRO)
    trained(tmp_path, "b", PRO, method="lth")
    trained(tmp_path, "c", [*PRO[:2], ("round-01", 0.5, [0.5, 0.5])], method="other")
    titles = [rates.title for rates in together(found(tmp_path))]
    assert titles == ["imp, seed 0; lth, seed 0", "other, seed 0"]
