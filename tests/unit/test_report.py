import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from prunebench.report.cli import main
from prunebench.report.curve import curve_png
from prunebench.report.group import control, labels, mean_std, summarise
from prunebench.report.read import load

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG"


def a_round(cycle, sparsity, top1, dense=0.9, pruned=0.5):
    return {
        "phase": f"round-{cycle:02}" if cycle else "dense",
        "cycle": cycle,
        "asked": sparsity,
        "sparsity": sparsity,
        "kept": round(1000 * (1 - sparsity)),
        "total": 1000,
        "params": round(1000 * (1 - sparsity)) + 10,
        "params_total": 1010,
        "compression": 1010 / (round(1000 * (1 - sparsity)) + 10),
        "macs": 1000 * (1 - sparsity),
        "macs_dense": 1000,
        "speedup": 1 / (1 - sparsity),
        "pruned": {"top1": pruned, "top5": 0.8, "loss": 1.0} if cycle else None,
        "test": {"top1": top1, "top5": 0.99, "loss": 1 - top1},
        "valid": None,
        "delta": top1 - dense,
        "epochs": 4.0,
        "steps": 100,
        "seconds": 2.0,
    }


def rounds_to(target, top1, dense=0.9, rounds=1):
    ends = [1 - (1 - target) ** (i / rounds) for i in range(1, rounds)] + [target]
    drops = [dense + (top1 - dense) * i / rounds for i in range(1, rounds)] + [top1]
    return [
        a_round(0, 0.0, dense),
        *(a_round(i, s, t, dense) for i, (s, t) in enumerate(zip(ends, drops), start=1)),
    ]


def put(root, name, rounds, *, done=True, tail="", overrides=(), **identity):
    """Write a run directory as the runner does; an unfinished one has its finished phases only."""
    directory = root / name
    directory.mkdir(parents=True)
    who = {
        "version": 1,
        "id": name,
        "method": "imp",
        "companion": [],
        "model": "lenet300",
        "dataset": "digits",
    }
    who |= {
        "schedule": "cosine",
        "retrain": "slr",
        "criterion": "magnitude",
        "protocol": "iterative",
        "seed": 0,
    }
    who |= {"sparsity": {"target": 0.9, "allocation": "global", "granularity": "weight"}, **identity}
    (directory / "identity.json").write_text(json.dumps(who))
    (directory / "overrides.json").write_text(json.dumps(list(overrides)))
    rows = [{"kind": "train", "phase": "dense", "loss": 1.0}]
    rows += [{"kind": "phase", "phase": row["phase"], "cycle": row["cycle"], "round": row} for row in rounds]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if done:
        result = {
            "dense": rounds[0]["test"],
            "rounds": rounds,
            "final": rounds[-1],
            "layers": [],
            "shared": [],
        }
        result |= {"cost": {"steps": 200}, "time": {"seconds": 4.0}}
        (directory / "result.json").write_text(json.dumps(who | result))
    return directory


def three_seeds(root, **options):
    """Dense 90, 91, 92 %; pruned 88, 90, 89 %."""
    for seed, (dense, top1) in enumerate([(0.90, 0.88), (0.91, 0.90), (0.92, 0.89)]):
        put(root, f"imp-{seed}", rounds_to(0.9, top1, dense, rounds=3), seed=seed, **options)


def summary(root, metric="top1", **options):
    runs = load([str(root)]).runs
    return summarise(runs, labels(runs), metric, **options)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    """The one line with which the command refuses."""
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def test_mean_and_std_over_seeds_equal_those_of_statistics_and_numpy(tmp_path):
    three_seeds(tmp_path)
    (row,) = summary(tmp_path)
    top1, changes = [0.88, 0.90, 0.89], [-0.02, -0.01, -0.03]
    assert row["n"] == 3
    assert row["value"] == pytest.approx(statistics.mean(top1), abs=1e-12)
    assert row["std"] == pytest.approx(numpy.std(top1, ddof=1), abs=1e-12)
    assert row["change"] == pytest.approx(numpy.mean(changes), abs=1e-12)
    assert row["change_std"] == pytest.approx(
        statistics.stdev(changes), abs=1e-12
    )  # paired: 0.01, not 0.0141
    assert (row["asked"], row["sparsity"]) == (0.9, 0.9)
    assert row["compression"] == pytest.approx(1010 / 110)
    assert row["speedup"] == pytest.approx(10)
    assert row["seconds"] == 8.0


def test_mean_and_std_agree_with_numpy_on_many_values():
    values = numpy.random.default_rng(0).normal(0.9, 0.01, size=50).tolist()
    mean, std = mean_std(values)
    assert mean == pytest.approx(numpy.mean(values), rel=1e-12)
    assert std == pytest.approx(numpy.std(values, ddof=1), rel=1e-9)
    assert mean_std([0.5, None]) == (0.5, None)
    assert mean_std([None]) == (None, None)


@pytest.mark.parametrize(("metric", "mean", "change"), [("loss", 0.11, 0.02), ("top5", 0.99, 0.0)])
def test_other_metrics_are_averaged_and_compared_too(tmp_path, metric, mean, change):
    three_seeds(tmp_path)
    (row,) = summary(tmp_path, metric)
    assert row["value"] == pytest.approx(mean)
    assert row["change"] == pytest.approx(change)


def test_one_run_has_no_std_and_this_is_said(tmp_path, capsys):
    put(tmp_path, "imp", rounds_to(0.9, 0.88))
    (row,) = summary(tmp_path)
    assert (row["n"], row["std"], row["change_std"]) == (1, None, None)
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    assert "std -: one run only" in out


def test_groups_are_apart_by_model_data_method_and_target(tmp_path):
    for i, who in enumerate([{}, {"model": "lenet5"}, {"dataset": "mnist"}, {"method": "lth"}]):
        put(tmp_path, str(i), rounds_to(0.9, 0.88), **who)
    put(tmp_path, "deep", rounds_to(0.95, 0.88))
    assert [row["n"] for row in summary(tmp_path)] == [1] * 5


def test_settings_are_named_only_where_they_differ(tmp_path):
    put(tmp_path, "a", rounds_to(0.9, 0.88), retrain="slr")
    put(tmp_path, "b", rounds_to(0.9, 0.88), retrain="ft")
    put(tmp_path, "c", rounds_to(0.9, 0.88), method="lth", companion=["ap"], retrain="ft")
    assert [row["method"] for row in summary(tmp_path)] == ["imp retrain=ft", "imp retrain=slr", "lth+ap"]


def test_runs_that_share_a_seed_are_told_apart_by_their_overrides(tmp_path):
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            typed = [f"optimizer.lr={lr}", f"seed={seed}"]
            put(tmp_path, f"{lr}-{seed}", rounds_to(0.9, 0.88), seed=seed, overrides=typed)
    rows = summary(tmp_path)
    assert [(row["method"], row["n"]) for row in rows] == [("imp lr=0.1", 2), ("imp lr=0.2", 2)]


def test_repeated_seeds_that_nothing_explains_are_reported(tmp_path, capsys):
    put(tmp_path, "a", rounds_to(0.9, 0.88))
    put(tmp_path, "b", rounds_to(0.9, 0.87))
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    assert "1 run repeats a seed" in out


def test_the_dense_control_counts_once_per_seed(tmp_path):
    for target in (0.5, 0.9):
        for seed, dense in enumerate((0.90, 0.92)):
            put(tmp_path, f"{target}-{seed}", rounds_to(target, 0.88, dense), seed=seed)
    mean, std, n = control(load([str(tmp_path)]).runs, "top1")
    assert (mean, n) == (pytest.approx(0.91), 2)
    assert std == pytest.approx(numpy.std([0.90, 0.92], ddof=1))


def test_rounds_have_rows_of_their_own_on_request(tmp_path):
    three_seeds(tmp_path)
    rows = summary(tmp_path, rounds=True)
    assert [row["n"] for row in rows] == [3, 3, 3, 3]
    assert [row["asked"] for row in rows] == pytest.approx([0, 1 - 0.1 ** (1 / 3), 1 - 0.1 ** (2 / 3), 0.9])


def test_a_partial_run_keeps_out_of_the_mean_of_finished_ones(tmp_path, capsys):
    three_seeds(tmp_path)
    put(
        tmp_path,
        "killed",
        rounds_to(0.9, 0.5, rounds=3)[:3],
        done=False,
        seed=3,
        tail='{"kind": "phase", "round": {',
    )
    put(tmp_path, "begun", [], done=False, seed=4)
    finished, partial = summary(tmp_path)
    assert (finished["n"], finished["partial"], finished["value"]) == (3, None, pytest.approx(0.89))
    assert (partial["n"], partial["partial"], partial["target"]) == (1, 1, 0.9)
    assert partial["asked"] == pytest.approx(1 - 0.1 ** (2 / 3))
    assert partial["change"] == pytest.approx((0.5 - 0.9) * 2 / 3)
    code, out, _ = run(capsys, tmp_path, "--no-plot")
    assert code == 0
    assert "5 runs: 3 done, 2 partial, 1 of them without a finished phase" in out


def test_of_a_phase_written_twice_the_later_row_counts(tmp_path):
    again = json.dumps({"kind": "phase", "phase": "dense", "round": a_round(0, 0.0, 0.7)})
    put(tmp_path, "resumed", [a_round(0, 0.0, 0.6)], done=False, tail=again + "\n")
    assert [row["value"] for row in summary(tmp_path)] == [0.7]


def test_only_partial_runs_make_a_report_too(tmp_path, capsys):
    put(tmp_path, "begun", [], done=False)
    assert run(capsys, tmp_path)[0] == 0
    put(tmp_path, "killed", rounds_to(0.9, 0.8, rounds=3)[:2], done=False)
    assert run(capsys, tmp_path)[0] == 0
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_broken_and_foreign_runs_are_counted_and_left_out(tmp_path, capsys):
    three_seeds(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "result.json").write_text('{"version": 1, "meth')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "result.json").write_text("{}")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "metrics.jsonl").write_text("")
    put(tmp_path, "newer", rounds_to(0.9, 0.1), version=2)
    code, out, _ = run(capsys, tmp_path, "--no-plot")
    assert code == 0
    assert "3 runs: 3 done, 0 partial, 3 broken (left out), 1 of another version (left out)" in out
    assert f"broken: {tmp_path / 'empty'}: result.json: no method, model, dataset, seed" in out
    assert f"broken: {tmp_path / 'lost'}: neither result.json nor identity.json" in out


def test_a_damaged_line_inside_metrics_makes_a_run_broken(tmp_path):
    put(tmp_path, "bad", [a_round(0, 0.0, 0.9)], done=False, tail='{"round": torn\n{"kind": "train"}\n')
    assert [path.name for path, _ in load([str(tmp_path)]).broken] == ["bad"]


def test_hidden_folders_are_skipped_and_no_run_is_read_twice(tmp_path):
    put(tmp_path, "sweep/1/imp", rounds_to(0.9, 0.88))
    put(tmp_path, ".shared/ab12", rounds_to(0.9, 0.1))
    put(tmp_path, "sweep/1/imp/inner", rounds_to(0.9, 0.1))
    found = load([str(tmp_path), str(tmp_path / "sweep"), str(tmp_path / "sweep/1/imp")])
    assert [r.directory for r in found.runs] == [tmp_path / "sweep/1/imp"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("options", [[], ["--rounds"], ["--metric", "loss"]])
def test_no_table_is_wider_than_the_terminal(tmp_path, capsys, monkeypatch, width, options):
    three_seeds(tmp_path, model="vit_tiny_patch16_224", dataset="fashion_mnist")
    put(
        tmp_path,
        "x",
        rounds_to(0.95, 0.8)[:1],
        done=False,
        method="a-method-with-a-name-that-is-much-too-long",
    )
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(capsys, tmp_path, "--no-plot", *options)
    tables = [line for line in out.splitlines() if not line.startswith("written:")]
    assert max(map(len, tables)) <= width


def test_the_table_shows_percent_and_signed_points(tmp_path, capsys, monkeypatch):
    three_seeds(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    assert out.startswith("lenet300 on digits (dense top-1: 91.00, std 1.00, n=3)\n")
    row = next(line for line in out.splitlines() if line.startswith("imp")).split()
    assert row[:9] == ["imp", "90.00", "90.00", "3", "50.00", "89.00", "1.00", "2.48", "99.00"]


def test_csv_holds_every_round_of_every_run_unrounded(tmp_path, capsys):
    three_seeds(tmp_path)
    run(capsys, tmp_path, "--format", "csv", "--no-plot")
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    last = next(row for row in rows if row["seed"] == "1" and row["last"] == "True")
    assert float(last["test.top1"]) == 0.90
    assert float(last["compression"]) == 1010 / 110
    assert float(last["pruned.top1"]) == 0.5
    assert (last["sparsity.target"], last["sparsity"], last["run.cost.steps"]) == ("0.9", "0.9", "200")
    assert {path.name for path in tmp_path.glob("report.*")} == {"report.csv"}


def test_markdown_has_the_numbers_and_the_command(tmp_path, capsys):
    three_seeds(tmp_path)
    out = tmp_path / "out"
    code, shown, _ = run(capsys, tmp_path, "--out", out, "--format", "md", "--no-plot")
    text = (out / "report.md").read_text()
    assert code == 0
    assert shown == f"written: {out / 'report.md'}\n"
    assert "| imp | 90.00 | 90.00 | 3 | 50.00 | 89.00 | 1.00 | 2.48 |" in text
    assert f"`prune-report {tmp_path} --out {out} --format md --no-plot`" in text


def test_where_selects_by_value_list_and_number(tmp_path, capsys):
    three_seeds(tmp_path)
    put(tmp_path, "lth", rounds_to(0.95, 0.8), method="lth", sparsity={"target": 0.95})
    for conditions, runs in [
        (["seed=0,1", "method=imp"], 2),
        (["sparsity.target=0.950"], 1),
        (["status=done"], 4),
    ]:
        _, out, _ = run(capsys, tmp_path, "--no-plot", "--where", *conditions)
        assert f"{runs} run" in out.splitlines()[-2]


def test_questions_without_an_answer_are_refused_in_one_line(tmp_path, capsys):
    assert "no such directory" in refused(capsys, tmp_path / "absent")
    assert "no runs" in refused(capsys, tmp_path)
    three_seeds(tmp_path)
    assert "is not a directory" in refused(capsys, tmp_path / "imp-0" / "result.json")
    assert "did you mean top1" in refused(capsys, tmp_path, "--metric", "top-1")
    assert "did you mean method" in refused(capsys, tmp_path, "--where", "metod=imp")
    assert "did you mean lenet300" in refused(capsys, tmp_path, "--where", "model=lenet30")
    assert "must be key=value" in refused(capsys, tmp_path, "--where", "imp")
    assert "--format tex" in refused(capsys, tmp_path, "--format", "tex")
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), "--metrics-all"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("report.*"))


def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_1(tmp_path, capsys):
    three_seeds(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, tmp_path, "--out", tmp_path / "file", "--no-plot")
    assert (code, err.count("\n")) == (1, 1)


def test_many_runs_make_one_picture(tmp_path, capsys):
    three_seeds(tmp_path)
    for target in (0.5, 0.9):
        put(tmp_path, f"one-{target}", rounds_to(target, 0.7), method="one_shot", model="lenet5")
    code, out, _ = run(capsys, tmp_path)
    assert (code, str(tmp_path / "report.png") in out) == (0, True)
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "rounds", [rounds_to(0.9, 0.88, rounds=4), rounds_to(0.2, 0.9), [a_round(0, 0.0, 0.9)]]
)
@pytest.mark.parametrize("dense", [{"top1": 0.9}, None])
def test_the_curve_of_a_run_is_drawn_with_and_without_a_control(tmp_path, rounds, dense):
    result = {"method": "imp", "model": "m", "dataset": "d", "seed": 0, "dense": dense, "rounds": rounds}
    curve_png(result, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_the_command_imports_neither_torch_nor_a_plotting_library(tmp_path):
    three_seeds(tmp_path)
    code = (
        "import sys\n"
        "from prunebench.report.cli import main\n"
        f"main([{str(tmp_path)!r}, '--no-plot'])\n"
        "print(sorted({'torch', 'matplotlib', 'pandas', 'numpy', 'hydra', 'rich'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    for seed in range(3):
        put(tmp_path, f"imp-{seed}", rounds_to(0.9, 0.8, rounds=900), seed=seed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "prunebench.report.cli", str(tmp_path), "--no-plot", "--rounds"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()
