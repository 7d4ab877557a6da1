"""Rows of kind "metric": as numbers, over rounds, and per layer; auxiliary phases stay out."""

import csv
import json
import statistics

import pytest

from prunebench.report import diagnostics
from prunebench.report.diagnostics import constant, lines, read_metrics, readings
from prunebench.report.group import labels
from prunebench.report.layers import LayerMap, layer_maps
from prunebench.report.metric_pictures import diagnostics_png, layers_png
from prunebench.report.read import load
from tests.unit.test_report import PNG, a_round, put, refused, rounds_to, run


def metric_row(cycle, sparsity, metric="distance", *, when="end", step=84, **values):
    phase = f"round-{cycle:02}" if cycle else "dense"
    place = {"phase": phase, "cycle": cycle, "step": step, "total": 84 * cycle + step, "epoch": step / 21}
    return {"kind": "metric", **place, "sparsity": sparsity, "metric": metric, "when": when, **values}


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def measured(root, name, values, *, extra=(), tail="", metrics=("distance",), **options):
    """A run to 75 % in two rounds in which `distance.far` had these values."""
    sparsities = [0.0, 0.5, 0.75]
    rows = [metric_row(i, s, far=v, layers=[]) for i, (s, v) in enumerate(zip(sparsities, values))]
    rounds = [a_round(i, s, 0.9) for i, s in enumerate(sparsities)][: len(values)]
    return put(root, name, rounds, tail=text([*rows, *extra]) + tail, metrics=list(metrics), **options)


def read(root):
    runs = load([str(root)]).runs
    rows, broken = read_metrics(runs)
    return runs, labels(runs), rows, broken


def drawn(root):
    runs, names, rows, _ = read(root)
    return lines(readings(runs, names, rows))


def test_points_are_means_and_standard_deviations_over_seeds_at_phase_ends(tmp_path):
    for seed, values in enumerate(([1.0, 2.0, 4.0], [3.0, 2.0, 5.0])):
        extra = [metric_row(1, 0.5, when="epoch", step=21, far=99.0)]
        measured(tmp_path, f"{seed}", values, seed=seed, extra=extra)
    found = drawn(tmp_path)
    assert list(found) == [("distance", "far")]
    (points,) = found["distance", "far"].values()
    assert [point.remaining for point in points] == [1.0, 0.5, 0.25]
    assert [point.mean for point in points] == [2.0, 2.0, 4.5]
    assert [point.std for point in points] == pytest.approx([statistics.stdev([1, 3]), 0.0, 0.5**0.5])


def test_one_run_has_no_standard_deviation(tmp_path):
    measured(tmp_path, "a", [1.0, 2.0, 3.0])
    (points,) = drawn(tmp_path)["distance", "far"].values()
    assert [point.std for point in points] == [None] * 3


def test_a_label_has_a_line_for_every_sparsity_asked(tmp_path):
    measured(tmp_path, "a", [1.0, 2.0, 3.0], seed=0)
    measured(tmp_path, "b", [1.0, 2.0], seed=1)
    assert [who[2:] for who in drawn(tmp_path)["distance", "far"]] == [("imp", 0.75), ("imp", 0.5)]


def test_only_numbers_at_the_top_are_read(tmp_path):
    row = metric_row(
        2, 0.75, "other", share=0.5, text="x", nothing=None, deep={"a": 1}, layers=[{"name": "l"}]
    )
    measured(tmp_path, "a", [1.0, 2.0, 3.0], extra=[row])
    assert list(drawn(tmp_path)) == [("distance", "far"), ("other", "share")]


def test_partial_runs_count_in_the_phases_that_they_finished(tmp_path):
    measured(tmp_path, "a", [1.0, 2.0, 3.0], seed=0)
    measured(
        tmp_path, "killed", [3.0, 4.0], seed=1, done=False, tail='{"kind": "metric", "pha', **asked(0.75)
    )
    points = list(drawn(tmp_path)["distance", "far"].values())
    assert [point.mean for line in points for point in line] == [2.0, 3.0, 3.0]


def asked(target):
    return {"sparsity": {"target": target}}


def test_of_a_row_written_twice_the_later_counts(tmp_path):
    measured(tmp_path, "a", [1.0, 2.0, 3.0], extra=[metric_row(2, 0.75, far=7.0)])
    (points,) = drawn(tmp_path)["distance", "far"].values()
    assert points[-1].mean == 7.0


def test_runs_that_measured_nothing_are_not_looked_through(tmp_path):
    directory = measured(tmp_path, "a", [1.0, 2.0, 3.0], metrics=())
    (directory / "metrics.jsonl").write_text("damaged\n" * 3)
    _, _, rows, broken = read(tmp_path)
    assert (rows, broken) == ([[]], [])


def test_csv_has_every_number_of_every_run(tmp_path, capsys):
    extra = [metric_row(1, 0.5, when="epoch", step=21, far=99.0)]
    directory = measured(tmp_path, "a", [1.0, 2.0, 3.5], seed=4, extra=extra)
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    assert str(tmp_path / "diagnostics.csv") in out
    with (tmp_path / "diagnostics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["1.0", "2.0", "3.5", "99.0"]
    assert rows[2] == {
        **{
            "directory": str(directory),
            "label": "imp",
            "model": "lenet300",
            "dataset": "digits",
            "seed": "4",
        },
        **{"target": "0.75", "phase": "round-02", "cycle": "2", "remaining": "0.25", "when": "end"},
        **{"epoch": "4.0", "metric": "distance", "name": "far", "value": "3.5"},
    }
    assert (rows[3]["when"], rows[3]["epoch"]) == ("epoch", "1.0")


def test_where_nothing_was_measured_nothing_is_written(tmp_path, capsys):
    put(tmp_path, "a", rounds_to(0.9, 0.8))
    run(capsys, tmp_path)
    assert not list(tmp_path.glob("diagnostics.*"))


def test_numbers_that_change_are_drawn_and_the_others_named(tmp_path, capsys):
    extra = [metric_row(i, s, "count", neurons=400) for i, s in enumerate((0.0, 0.5, 0.75))]
    measured(tmp_path, "a", [1.0, 2.0, 3.0], extra=extra)
    _, out, _ = run(capsys, tmp_path)
    assert (tmp_path / "diagnostics.png").read_bytes().startswith(PNG)
    assert "not in diagnostics.png, the same after every round: count.neurons" in out


def test_a_number_is_constant_if_it_changes_on_no_model(tmp_path):
    measured(tmp_path, "a", [1.0, 1.0, 1.00001])
    assert constant(drawn(tmp_path)["distance", "far"])
    measured(tmp_path, "b", [2.0, 2.0, 2.0], model="lenet5")
    assert constant(drawn(tmp_path)["distance", "far"])
    measured(tmp_path, "c", [2.0, 2.0, 2.1], model="lenet5", seed=1)
    assert not constant(drawn(tmp_path)["distance", "far"])


def test_a_damaged_file_is_named_and_left_out(tmp_path, capsys):
    bad = measured(tmp_path, "bad", [1.0, 2.0, 3.0], seed=0)
    lines_ = (bad / "metrics.jsonl").read_text().splitlines()
    (bad / "metrics.jsonl").write_text("\n".join(['{"metric" torn', *lines_]))
    measured(tmp_path, "good", [1.0, 2.0, 3.0], seed=1)
    code, out, _ = run(capsys, tmp_path, "--no-plot")
    assert code == 0
    assert f"left out of diagnostics: {bad}: metrics.jsonl: line 1" in " ".join(out.split())
    assert "good" in (tmp_path / "diagnostics.csv").read_text()


# Layers


def layered(root, name, scale, **options):
    """A run in which two layers had a `norm` of scale and 10 scale, plus the cycle; at the end not both."""
    rows = []
    for cycle, sparsity in enumerate((0.0, 0.5, 0.75)):
        layers = [{"name": n, "norm": f * scale + cycle, "size": 3} for n, f in (("conv", 1), ("fc", 10))]
        layers[1]["norm"] = None if cycle == 2 else layers[1]["norm"]
        rows.append(metric_row(cycle, sparsity, layers=layers))
    return measured(root, name, [1.0, 2.0, 3.0], extra=rows, **options)


def maps(root, asked):
    runs, names, rows, _ = read(root)
    return layer_maps(runs, names, rows, asked)


def test_maps_are_means_over_seeds_of_every_layer_after_every_round(tmp_path):
    layered(tmp_path, "a", 1.0, seed=0)
    layered(tmp_path, "b", 3.0, seed=1)
    (one,) = maps(tmp_path, "distance.norm")
    assert (one.title, one.layers, one.remaining) == ("imp", ["conv", "fc"], [1.0, 0.5, 0.25])
    assert one.values == [[2.0, 3.0, 4.0], [20.0, 21.0, None]]


def test_labels_sparsities_and_models_have_maps_of_their_own(tmp_path):
    layered(tmp_path, "a", 1.0)
    layered(tmp_path, "b", 1.0, method="lth", model="lenet5")
    measured(
        tmp_path, "c", [1.0, 2.0], seed=1, extra=[metric_row(1, 0.5, layers=[{"name": "x", "norm": 1.0}])]
    )
    titles = [one.title for one in maps(tmp_path, "distance.norm")]
    assert titles == [
        "imp target=0.5\nlenet300 on digits",
        "imp target=0.75\nlenet300 on digits",
        "lth\nlenet5 on digits",
    ]


def test_layers_are_printed_and_drawn_on_request(tmp_path, capsys):
    layered(tmp_path, "a", 1.0)
    _, out, _ = run(capsys, tmp_path, "--layers", "distance.norm")
    assert ["fc", "10", "11", "-"] in [line.split() for line in out.splitlines()]
    assert str(tmp_path / "layers.png") in out
    assert (tmp_path / "layers.png").read_bytes().startswith(PNG)


def test_a_layer_number_that_does_not_exist_is_refused_with_the_close_ones(tmp_path, capsys):
    put(tmp_path, "none", rounds_to(0.9, 0.8), seed=5)
    assert "no run here measured anything for every layer" in refused(capsys, tmp_path, "--layers", "a.b")
    layered(tmp_path, "a", 1.0)
    message = refused(capsys, tmp_path, "--layers", "distance.norms")
    assert "did you mean distance.norm" in message
    assert "(there are: distance.norm, distance.size)" in message
    assert "no run measured it" in refused(capsys, tmp_path, "--layers", "distance.far")
    assert not list(tmp_path.glob("*.png"))


def test_pictures_bear_one_point_many_labels_and_unknown_cells(tmp_path):
    point = diagnostics.Point(1.0, 0.5, None)
    deep = [diagnostics.Point(share, 2.0, 0.5) for share in (1.0, 0.1, 1e-4, 0.0)]  # 0: all weights are gone
    numbers = {("m", f"n{i}"): {("a", "b", f"label{i}", 0.9): [point] if i else deep} for i in range(5)}
    names = [f"label{i}" for i in range(25)]
    diagnostics_png(numbers, names, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    empty = LayerMap("t", [f"layer{i}" * 6 for i in range(90)], [1.0], [[None]] * 90)
    layers_png([empty], "m.n", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(PNG)


# Auxiliary phases


def with_auxiliary(cycle, sparsity, top1):
    """Rows of one round of AP in mode pro: its first training is "auxiliary" and no round."""
    first = a_round(cycle - 1, 0.0, 0.1) | {"phase": f"round-{cycle:02}a"}
    return [
        {"kind": "train", "phase": first["phase"], "loss": 1.0},
        {"kind": "auxiliary", "phase": first["phase"], "cycle": cycle - 1, "round": first},
        {
            "kind": "phase",
            "phase": f"round-{cycle:02}",
            "cycle": cycle,
            "round": a_round(cycle, sparsity, top1),
        },
    ]


@pytest.mark.parametrize("killed_in", ["round-03a", "round-03"])
def test_auxiliary_phases_are_no_rounds_of_a_partial_run(tmp_path, killed_in):
    rows = [*with_auxiliary(1, 0.2, 0.8), *with_auxiliary(2, 0.36, 0.7)]
    rows += with_auxiliary(3, 0.488, 0.6)[: 1 if killed_in == "round-03a" else 2]
    who = {"sparsity": {"target": None, "rate": 0.2, "rounds": 6}, "companion": ["ap"]}
    put(tmp_path, "pro", [a_round(0, 0.0, 0.9)], done=False, tail=text(rows), **who)
    (pro,) = load([str(tmp_path)]).runs
    assert [row["phase"] for row in pro.rounds] == ["dense", "round-01", "round-02"]
    assert [row["test"]["top1"] for row in pro.rounds] == [0.9, 0.8, 0.7]
    assert pro.dense["top1"] == 0.9


def test_a_partial_run_knows_the_sparsity_that_its_rate_leads_to(tmp_path):
    who = {"sparsity": {"target": None, "rate": 0.2, "rounds": 6}}
    put(tmp_path, "killed", [a_round(0, 0.0, 0.9), a_round(1, 0.2, 0.8)], done=False, **who)
    (killed,) = load([str(tmp_path)]).runs
    assert killed.target == pytest.approx(1 - 0.8**6)
