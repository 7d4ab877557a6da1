"""What accuracy is drawn over, error bars, and the Pareto front."""

import csv
import json
import math

import pytest

from prunebench.report.axes import AXES, priced
from prunebench.report.group import labels, summarise
from prunebench.report.pareto import front, operating_points
from prunebench.report.read import load
from prunebench.report.style import style
from tests.unit.test_report import PNG, a_round, put, refused, rounds_to, run, three_seeds
from tests.unit.test_report_diagnostics import metric_row, text


def row(value, compression, **more):
    return {"value": value, "compression": compression, **more}


def chosen(rows, metric="top1", over="compression"):
    return [(row["value"], row["compression"]) for row in front(rows, metric, AXES[over])]


def timed(root, name, milliseconds, **options):
    """A run to 75 % in two rounds of these latencies."""
    sparsities = [0.0, 0.5, 0.75]
    rows = [
        metric_row(i, s, "latency", milliseconds=ms, batch=1)
        for i, (s, ms) in enumerate(zip(sparsities, milliseconds))
    ]
    rows.append(metric_row(2, 0.75, "latency", when="epoch", step=21, milliseconds=99.0))
    rounds = [a_round(i, s, 0.9 - 0.1 * i) for i, s in enumerate(sparsities)]
    return put(root, name, rounds, tail=text(rows), metrics=["latency"], **options)


# The front, by hand


def test_a_point_is_on_the_front_unless_another_is_no_worse_in_both_and_better_in_one():
    rows = [row(0.9, 2), row(0.8, 2), row(0.9, 4), row(0.7, 8), row(0.65, 4), row(0.7, 6)]
    assert chosen(rows) == [(0.7, 8), (0.9, 4)]  # the cheapest first; (0.9, 2) costs more for the same


def test_equal_points_stay_together_and_the_order_of_rows_does_not_matter():
    rows = [row(0.9, 4), row(0.7, 8), row(0.9, 4), row(0.7, 8)]
    assert chosen(rows) == chosen(rows[::-1]) == [(0.7, 8), (0.7, 8), (0.9, 4), (0.9, 4)]


def test_a_loss_is_better_when_it_is_smaller():
    assert chosen([row(0.9, 4), row(0.5, 2), row(0.6, 1)], "loss") == [(0.9, 4), (0.5, 2)]


def test_the_front_is_that_of_a_slow_reference():
    def beats(a, b):
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    rows = [row(i * 37 % 11 / 11, i * 23 % 13 + 1) for i in range(60)]
    points = [(r["value"], r["compression"]) for r in rows]
    slow = [p for p in points if not any(beats(other, p) for other in points)]
    assert sorted(chosen(rows)) == sorted(slow)
    assert len(slow) > 2


def test_points_without_a_price_or_a_finite_value_are_not_compared():
    rows = [row(0.9, None), row(math.nan, 9), row(0.5, 2), row(math.inf, 3)]
    assert chosen(rows) == [(0.5, 2)]


@pytest.mark.parametrize(
    ("over", "cheap", "dear"),
    [
        ("compression", {"compression": 8}, {"compression": 2}),
        ("sparsity", {"sparsity": 0.9}, {"sparsity": 0.5}),
        ("speedup", {"speedup": 8}, {"speedup": 2}),
        ("macs", {"macs": 1, "macs_dense": 8}, {"macs": 4, "macs_dense": 8}),
        ("latency", {"latency": 1}, {"latency": 3}),
        ("train_macs", {"train_macs": 1}, {"train_macs": 3}),
    ],
)
def test_every_price_knows_which_of_two_networks_is_cheaper(over, cheap, dear):
    assert AXES[over].cost(cheap) < AXES[over].cost(dear)
    assert set(AXES) == {"compression", "sparsity", "speedup", "macs", "latency", "train_macs"}


# What the front is taken of


def points(root):
    runs = load([str(root)]).runs
    names = labels(runs)
    ends, rounds = (summarise(runs, names, "top1", rounds=flag) for flag in (False, True))
    return [(row["method"], row["asked"]) for row in operating_points(ends, rounds)]


def test_runs_of_one_sparsity_offer_their_rounds_and_runs_of_several_their_ends(tmp_path):
    put(tmp_path, "a", rounds_to(0.9, 0.8, rounds=2))
    put(tmp_path, "b", rounds_to(0.5, 0.8, rounds=2), method="lth")
    put(tmp_path, "c", rounds_to(0.9, 0.8, rounds=2), method="lth", seed=1)
    assert points(tmp_path) == [
        ("imp", pytest.approx(1 - 0.1**0.5)),
        ("imp", 0.9),
        ("lth", 0.5),
        ("lth", 0.9),
    ]


def test_the_front_is_listed_over_all_methods_with_its_definition(tmp_path, capsys, monkeypatch):
    put(tmp_path, "a", rounds_to(0.5, 0.85))
    put(tmp_path, "b", rounds_to(0.9, 0.80), method="lth")
    put(tmp_path, "c", rounds_to(0.9, 0.75), method="worse")
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, tmp_path, "--pareto", "--over", "macs", "--no-plot")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Pareto front of lenet300 on digits"))
    assert "top-1 against MACs of one image, share left" in lines[at]
    assert [line.split() for line in lines[at + 4 : at + 6]] == [
        ["lth", "90.00", "10.00", "80.00", "-", "-", "1"],
        ["imp", "50.00", "50.00", "85.00", "-", "-", "1"],
    ]
    assert "than which no other is better in one and no worse in the other" in " ".join(out.split())
    with (tmp_path / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], float(r["price"]), float(r["value"])) for r in rows] == [
        ("lth", pytest.approx(0.1), 0.8),
        ("imp", 0.5, 0.85),
    ]
    assert "| lth | 90.00 | 10.00 | 80.00 |" in (tmp_path / "pareto.md").read_text()


# Prices from elsewhere on disk


def test_latency_is_that_of_the_metric_at_the_ends_of_rounds(tmp_path, capsys):
    timed(tmp_path, "a", [4.0, 3.0, 2.0], seed=0)
    timed(tmp_path, "b", [6.0, 3.0, 1.0], seed=1)
    runs = priced(load([str(tmp_path)]).runs, "latency")
    rows = summarise(runs, labels(runs), "top1", rounds=True)
    assert [AXES["latency"].at(row) for row in rows] == [5.0, 3.0, 1.5]
    run(capsys, tmp_path, "--over", "latency")
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def sized(root, name, numbers, **options):
    """A run to 50 % in one round whose metric had these numbers at the ends of both phases."""
    rows = [metric_row(i, s, "latency", threads=1, **numbers) for i, s in enumerate((0.0, 0.5))]
    return put(root, name, rounds_to(0.5, 0.8), tail=text(rows), metrics=["latency"], **options)


def test_latency_by_batch_size_is_of_the_smaller_network_and_the_smallest_common_batch(tmp_path, capsys):
    masked = {f"masked_milliseconds_{size}": 10.0 * size for size in (1, 8, 64)}
    spread = {"masked_milliseconds_iqr_1": 0.1, "measured_speedup_8": 2.0}
    sized(tmp_path, "a", masked | spread)
    sized(tmp_path, "b", {"masked_milliseconds_8": 80.0, "shrunk_milliseconds_8": 7.0}, method="lth")
    runs = priced(load([str(tmp_path)]).runs, "latency")
    assert [run.rounds[-1]["latency"] for run in runs] == [80.0, 7.0]
    _, out, _ = run(capsys, tmp_path, "--over", "latency", "--pareto", "--no-plot")
    assert "with the smallest batch that all runs measured" in " ".join(out.split())
    sized(tmp_path, "c", {"masked_milliseconds_64": 640.0}, method="other")
    assert "no batch size was measured by all runs" in refused(capsys, tmp_path, "--over", "latency")


def test_a_latency_that_nobody_measured_is_refused_in_one_line(tmp_path, capsys):
    three_seeds(tmp_path)
    message = refused(capsys, tmp_path, "--over", "latency")
    assert message == "prune-report: --over latency: no run here has it; metrics=[latency] measures it\n"


def test_rows_without_the_price_are_counted(tmp_path, capsys):
    timed(tmp_path, "a", [4.0, 3.0, 2.0])
    put(tmp_path, "b", rounds_to(0.9, 0.8), method="lth")
    _, out, _ = run(capsys, tmp_path, "--over", "latency")
    assert "1 row is not in report.png, latency is not known of them" in out


def test_training_macs_are_those_of_the_rounds_or_at_the_end_those_of_the_run(tmp_path):
    rounds = [row | {"train_macs": 10.0 * i} for i, row in enumerate(rounds_to(0.9, 0.8, rounds=2), start=1)]
    put(tmp_path, "new", rounds)
    old = put(tmp_path, "old", rounds_to(0.9, 0.8, rounds=2), method="old")
    result = json.loads((old / "result.json").read_text())
    (old / "result.json").write_text(json.dumps(result | {"cost": {"train_macs": 77}}))
    new, old = priced(load([str(tmp_path)]).runs, "train_macs")
    assert [row.get("train_macs") for row in new.rounds] == [10.0, 20.0, 30.0]
    assert [row.get("train_macs") for row in old.rounds] == [None, None, 77]


# Pictures


@pytest.mark.parametrize("over", [*AXES])
def test_every_axis_is_drawn_with_front_and_bars(tmp_path, capsys, over):
    for seed in (0, 1):
        timed(tmp_path, f"a{seed}", [4.0, 3.0, 2.0], seed=seed)
    for target in (0.5, 0.9):
        directory = put(tmp_path, f"one-{target}", rounds_to(target, 0.7), method="one_shot")
        result = json.loads((directory / "result.json").read_text())
        (directory / "result.json").write_text(json.dumps(result | {"cost": {"train_macs": 10**9}}))
    code, _, err = run(
        capsys, tmp_path, "--over", over, "--bars", "interval", "--pareto", "--format", "table"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("option", [["--over", "macs"], ["--bars", "interval"]])
def test_options_of_the_picture_are_refused_without_one(tmp_path, capsys, option):
    three_seeds(tmp_path)
    assert f"{option[0]}: has no effect with --no-plot" in refused(capsys, tmp_path, "--no-plot", *option)


def test_lines_differ_without_colour():
    kinds = {(style(i)["marker"], style(i)["linestyle"]) for i in range(28)}
    assert len(kinds) == 28


def test_the_legend_is_no_wider_than_the_picture(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from prunebench.report.style import legend_below

    figure = Figure(figsize=(6.0, 4.0), layout="constrained", dpi=100)
    axis = figure.subplots()
    for i in range(16):
        axis.plot([0, 1], [i, i], label=f"lth+ap magnitude mode=matched {'and more ' * i}")
    legend_below(figure, 3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= 600
