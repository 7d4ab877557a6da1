"""`--layers sparsity`: kept weights of every layer, from the rows that a run writes to table and picture."""

import csv
import json

import pytest
import torch

from prunebench.report.group import labels
from prunebench.report.layers import LayerMap, layer_maps, sparsity_rows
from prunebench.report.metric_pictures import layers_png
from prunebench.report.read import load, rows_of
from prunebench.result import kept_weights
from tests.conformance import kit
from tests.unit.test_report import PNG, put, refused, rounds_to, run

SIZES = {"conv.weight": 100, "fc.weight": 400}


def layered(root, name, kept, *, sizes=SIZES, done=True, **options):
    """A run whose layers kept these weights at the ends of its phases, the first of them dense."""
    rounds = rounds_to(0.9, 0.8, rounds=len(kept) - 1)
    directory = put(root, name, rounds, done=done, **options)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for row, of_round, of_layers in zip(rows[1:], rounds, kept):
        row |= {"sparsity": of_round["sparsity"], "kept_per_layer": of_layers}
    if sizes is not None:
        rows[1]["layer_sizes"] = sizes
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def maps(root):
    runs = load([str(root)]).runs
    return layer_maps(runs, labels(runs), sparsity_rows(runs)[0], "sparsity")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    directory = tmp_path_factory.mktemp("real")
    overrides = kit.tiny(kit.Case("imp", "ap"), "lenet300", "companion.ap.mode=pro")
    return kit.recorded(overrides, directory).fit()


def test_a_run_writes_the_kept_weights_of_its_layers_and_their_names_once(real):
    rows = [*rows_of(real.recorder.directory / "metrics.jsonl", "phase", mark="phase")]
    counts = {name: int(torch.count_nonzero(mask)) for name, mask in real.run.masks.items()}
    assert rows[-1]["kept_per_layer"] == list(counts.values())
    assert rows[0]["layer_sizes"] == {name: mask.numel() for name, mask in real.run.masks.items()}
    assert all(sum(row["kept_per_layer"]) == row["round"]["kept"] for row in rows)
    assert (real.recorder.directory / "metrics.jsonl").read_text().count("layer_sizes") == 1


def test_the_report_reads_what_a_run_writes(real):
    (run_,) = load([str(real.recorder.directory)]).runs
    (found,), broken = sparsity_rows([run_])
    assert broken == []
    assert [row["phase"] for row in found] == [row["phase"] for row in run_.rounds]
    last = {layer["name"]: layer["sparsity"] for layer in found[-1]["layers"]}
    masks = real.run.masks
    assert last == {n: 1 - kept / masks[n].numel() for n, kept in masks.kept_per_layer.items()}


def test_names_come_with_the_first_phase_only(real):
    assert list(kept_weights(real.run)) == ["kept_per_layer"]


def test_every_round_says_what_training_has_cost_so_far(real):
    costs = [row["train_macs"] for row in real.recorder.rounds]
    assert costs == sorted(set(costs))
    assert costs[-1] == real.recorder.ledger.cost(0)["train_macs"]


def test_sparsities_of_layers_are_means_over_seeds(tmp_path):
    layered(tmp_path, "a", [[100, 400], [60, 200], [20, 30]], seed=0)
    layered(tmp_path, "b", [[100, 400], [80, 200], [40, 10]], seed=1)
    (one,) = maps(tmp_path)
    assert one.layers == ["conv.weight", "fc.weight"]
    assert one.values[0] == pytest.approx([0.0, 0.3, 0.7])
    assert one.values[1] == pytest.approx([0.0, 0.5, 0.95])


def test_a_partial_run_counts_in_the_phases_that_it_finished(tmp_path):
    layered(tmp_path, "a", [[100, 400], [60, 200]], done=False)
    (one,) = maps(tmp_path)
    assert one.values == [[0.0, pytest.approx(0.4)], [0.0, 0.5]]


def test_of_a_control_only_the_control_is_shown(tmp_path):
    typed = ["protocol.control=reinit"]
    layered(tmp_path, "a", [[100, 400], [60, 200], [20, 30]], overrides=typed)
    (one,) = maps(tmp_path)
    assert one.values == [[pytest.approx(0.8)], [pytest.approx(0.925)]]


def test_the_table_is_printed_and_written_with_and_without_a_picture(tmp_path, capsys):
    layered(tmp_path, "a", [[100, 400], [60, 200], [20, 30]])
    code, out, _ = run(capsys, tmp_path, "--layers", "sparsity", "--no-plot")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["conv.weight", "0.00", "40.00", "80.00"] in lines
    assert ["fc.weight", "0.00", "50.00", "92.50"] in lines
    assert "| fc.weight | 0.00 | 50.00 | 92.50 |" in (tmp_path / "layers.md").read_text()
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["group"] == "imp"
    assert (rows[2]["layer"], float(rows[2]["value"])) == ("conv.weight", pytest.approx(0.8))
    assert not (tmp_path / "layers.png").exists()
    run(capsys, tmp_path, "--layers", "sparsity")
    assert (tmp_path / "layers.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("width", [60, 120])
def test_a_table_of_many_rounds_goes_on_below(tmp_path, capsys, monkeypatch, width):
    kept = [[100 - i, 400 - 20 * i] for i in range(19)]
    layered(tmp_path, "a", kept)
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(capsys, tmp_path, "--layers", "sparsity", "--no-plot", "--format", "table")
    table = [line for line in out.splitlines() if line.startswith(("conv", "fc"))]
    assert len(table) % 2 == 0
    assert max(map(len, table)) <= width
    values = [word for line in table if line.startswith("fc") for word in line.split()[1:]]
    assert values == [f"{5 * i:.2f}" for i in range(19)]


def test_runs_without_kept_weights_are_refused_or_counted(tmp_path, capsys):
    put(tmp_path, "old", rounds_to(0.9, 0.8), seed=1)
    message = refused(capsys, tmp_path, "--layers", "sparsity")
    assert "no run here wrote the kept weights of its layers" in message
    layered(tmp_path, "new", [[100, 400], [60, 200]], seed=2)
    _, out, _ = run(capsys, tmp_path, "--layers", "sparsity", "--no-plot")
    assert "left out of layers: 1 run has no kept weights of layers" in " ".join(out.split())


def test_kept_weights_without_names_or_of_other_layers_are_named_and_left_out(tmp_path, capsys):
    layered(tmp_path, "good", [[100, 400], [60, 200]], seed=0)
    nameless = layered(tmp_path, "nameless", [[100, 400], [60, 200]], seed=1, sizes=None)
    other = layered(tmp_path, "other", [[100, 400], [60, 200]], seed=2, sizes={"a": 1, "b": 1, "c": 1})
    (one,) = maps(tmp_path)
    assert one.values == [[0.0, pytest.approx(0.4)], [0.0, 0.5]]
    _, out, _ = run(capsys, tmp_path, "--layers", "sparsity", "--no-plot")
    assert f"left out of layers: {nameless}: metrics.jsonl: kept weights without" in " ".join(out.split())
    assert [path for path, _ in sparsity_rows(load([str(tmp_path)]).runs)[1]] == [nameless, other]


def test_the_picture_bears_empty_layers_and_unknown_cells(tmp_path):
    layers = [f"stage{i}.conv.weight" for i in range(110)]
    deep = LayerMap("deep", layers, [1.0, 0.01], [[0.0, 1.0], [0.0, 0.9999], *[[0.0, None]] * 108])
    dense = LayerMap("dense\nm on d", layers[:2], [1.0], [[0.0], [0.0]])
    layers_png([deep, dense], "sparsity", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_numbers_choose_what_is_drawn(tmp_path, capsys, monkeypatch):
    from tests.unit.test_report_diagnostics import measured, metric_row

    drawn = []
    picture = "prunebench.report.parts.diagnostics_png"
    monkeypatch.setattr(picture, lambda numbers, names, path: drawn.append(list(numbers)))
    rows = [metric_row(i, s, "other", a=i, b=-i, c=1) for i, s in enumerate((0.0, 0.5, 0.75))]
    measured(tmp_path, "a", [1.0, 2.0, 3.0], extra=rows)
    run(capsys, tmp_path)
    run(capsys, tmp_path, "--numbers", "other.b,distance")
    _, out, _ = run(capsys, tmp_path, "--numbers", "other")
    far, a, b = ("distance", "far"), ("other", "a"), ("other", "b")
    assert drawn == [[far, a, b], [b, far], [a, b]]
    assert "not in diagnostics.png, the same after every round: other.c" in out
    assert "did you mean other.a" in refused(capsys, tmp_path, "--numbers", "other.aa")
    assert "--numbers: has no effect with --no-plot" in refused(
        capsys, tmp_path, "--numbers", "other", "--no-plot"
    )
