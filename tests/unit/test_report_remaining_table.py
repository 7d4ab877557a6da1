"""The papers' tables as text: terminal, Markdown, CSV, and questions without an answer."""

import csv

import pytest
from scipy import stats

from prunebench.report.cli import main
from prunebench.report.table import Column, continued
from tests.unit.test_report import a_round, put, refused, run
from tests.unit.test_report_remaining import rounds, two_schedules


def columns_of(line):
    return line.split()


def test_the_table_in_the_terminal(tmp_path, capsys, monkeypatch):
    two_schedules(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "100,80,51.2", "--baseline", "lth cosine")
    lines = out.splitlines()
    assert lines[0] == "lenet300 on digits: test top-1 (%) by weights remaining, n = 3 seeds"
    assert columns_of(lines[2]) == ["100", "80", "51.2"]
    assert lines[4] == "lth cosine  90.00 +-0.00  79.00 +-0.00  59.00 +-0.00"
    assert lines[5] == "lth silo    90.00 +-0.00  81.00 +-1.00  61.00 +-1.00"
    head = "lenet300 on digits: test top-1 minus that of lth cosine (points) by weights remaining"
    assert lines[7] == f"{head}, n = 3 common seeds"
    assert lines[11] == "lth silo  +0.00 [+0.00, +0.00]  +2.00 [-0.48, +4.48] .148  +2.00 [-0.48, +4.48] .148"
    assert "at the end of the last epoch of each round; mean +- sample standard deviation" in out
    assert "std: sample" not in out  # the other table is in the files only


def test_numbers_of_seeds_are_stated_where_they_differ(tmp_path, capsys):
    two_schedules(tmp_path)
    put(tmp_path, "short", rounds([0.8]), seed=7, method="lth", schedule="cosine")
    put(tmp_path, "one", rounds([0.5]), seed=0, method="lth", schedule="step")
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80")
    assert [columns_of(line)[:3] for line in out.splitlines() if line.startswith("lth")][-2:] == [
        ["lth", "silo", "3"],
        ["lth", "step", "1"],
    ]
    row = next(line for line in out.splitlines() if line.startswith("lth step"))
    assert row.split() == ["lth", "step", "1", "50.00", "*"]
    assert "*: one seed, no spread" in out


def test_a_cell_says_its_number_of_seeds_where_it_is_not_that_of_the_row(tmp_path, capsys):
    for seed in range(3):
        for target in (0.3, 0.5, 0.9):
            if (seed, target) != (2, 0.9):
                put(tmp_path, f"{target}{seed}", [a_round(0, 0.0, 0.9), a_round(1, target, 0.5)], seed=seed)
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "70,50,10")
    row = next(line for line in out.splitlines() if line.startswith("imp "))
    assert row == "imp  3  50.00 +-0.00  50.00 +-0.00  50.00 +-0.00 (2)"
    assert "in brackets: the seeds of a cell" in out
    assert "imp: runs to several sparsities, in each column those that pass it" in out


@pytest.mark.parametrize("width", [80, 120])
def test_columns_that_do_not_fit_go_on_below(tmp_path, capsys, monkeypatch, width):
    for seed in range(2):
        values = [0.9 - 0.01 * i for i in range(13)]
        for schedule in ("silo", "a_schedule_with_a_long_name"):
            name = f"{schedule}{seed}"
            put(tmp_path, name, rounds(values), seed=seed, method="lth", schedule=schedule)
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "all", "--baseline", "lth silo")
    shown = [line for line in out.splitlines() if not line.startswith("written:")]
    assert max(map(len, shown)) <= width
    heads = [line.split() for line in shown if line and set(line) <= set(" .0123456789")]
    shares = [
        "100",
        "80",
        "64",
        "51.2",
        "41",
        "32.8",
        "26.2",
        "21",
        "16.8",
        "13.4",
        "10.7",
        "8.59",
        "6.87",
        "5.5",
    ]
    assert [share for head in heads for share in head] == shares * 2


def test_blocks_of_a_table_are_about_equally_wide_and_nothing_is_lost():
    columns = [Column(f"c{i}", f"head{i}") for i in range(7)]
    rows = [{"name": "a"} | {f"c{i}": f"value{i}" for i in range(7)}]
    lines = continued([Column("name", "", text=True)], columns, rows, width=40)
    blocks = [block.split() for block in "\n".join(lines).split("\n\n")]
    assert [sum(word.startswith("head") for word in block) for block in blocks] == [4, 3]
    assert sorted(word for block in blocks for word in block if word.startswith("value")) == [
        f"value{i}" for i in range(7)
    ]


def test_markdown_and_csv_have_the_same_numbers(tmp_path, capsys):
    two_schedules(tmp_path)
    run(capsys, tmp_path, "--no-plot", "--remaining", "100,51.2", "--baseline", "lth cosine")
    text = (tmp_path / "remaining.md").read_text()
    assert "| lth silo | 90.00 +-0.00 | 61.00 +-1.00 |" in text
    assert "| lth silo | +0.00 [+0.00, +0.00] | +2.00 [-0.48, +4.48] .074 |" in text
    assert "made by `prune-report" in text
    with (tmp_path / "remaining.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    last = rows[-1]
    assert [last[k] for k in ("label", "model", "dataset", "metric")] == [
        *("lth silo", "lenet300", "digits", "top1")
    ]
    assert (float(last["remaining_asked"]), float(last["remaining"])) == pytest.approx((0.512, 0.512))
    assert (last["n"], last["seed"], float(last["value"])) == ("3", "2", pytest.approx(0.62))
    assert (float(last["mean"]), float(last["std"])) == pytest.approx((0.61, 0.01))
    expected = stats.ttest_1samp([0.01, 0.02, 0.03], 0).confidence_interval(0.95)
    found = [float(last[f"difference{what}"]) for what in ("", "_low", "_high")]
    assert found == pytest.approx([0.02, expected.low, expected.high])
    assert (last["baseline"], last["difference_n"]) == ("lth cosine", "3")
    assert {rows[0][k] for k in ("baseline", "difference_n", "difference")} == {""}
    assert (tmp_path / "report.csv").exists()
    assert (tmp_path / "report.md").exists()


def test_other_metrics_have_their_own_units(tmp_path, capsys):
    for seed, top1 in enumerate((0.5, 0.25)):
        put(tmp_path, f"{seed}", rounds([top1]), seed=seed)
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80", "--metric", "loss")
    assert out.startswith("lenet300 on digits: test loss by weights remaining, n = 2 seeds\n")
    assert next(line.split() for line in out.splitlines() if line[:3] == "imp") == [
        "imp",
        "0.625",
        "+-0.1768",
    ]


def test_a_table_in_which_the_baseline_has_no_run_says_so(tmp_path, capsys):
    two_schedules(tmp_path)
    put(tmp_path, "other", rounds([0.8]), model="lenet5")
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80", "--baseline", "lth silo")
    assert "lenet5 on digits: no run of the baseline" in out
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80", "--baseline", "imp")
    assert "lenet5 on digits: no other row than the baseline" in out


def test_rows_without_a_seed_in_common_with_the_baseline_say_so(tmp_path, capsys):
    put(tmp_path, "a", rounds([0.8]), seed=0)
    put(tmp_path, "b", rounds([0.8]), seed=1, method="lth")
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80", "--baseline", "imp")
    assert "lenet300 on digits: no seed in common with imp: lth" in out


def test_what_is_best_by_validation_is_not_called_the_last_epoch(tmp_path, capsys):
    put(tmp_path, "a", rounds([0.8]), overrides=["protocol.keep=best"])
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "80")
    assert "(of imp: of the epoch best in validation top-1)" in " ".join(out.split())


def test_questions_without_an_answer_are_refused_in_one_line(tmp_path, capsys):
    put(tmp_path, "killed", rounds([0.8]), done=False)
    assert "no run is finished" in refused(capsys, tmp_path, "--remaining", "80")
    two_schedules(tmp_path)
    message = refused(capsys, tmp_path, "--remaining", "80,7")
    assert "no finished run has a round within 3 %, relative, of 7 (there are: 100, 80, 64, 51.2)" in message
    for wrong in ("0", "101", "ten", "80,", "nan", "-5"):
        assert "must be all, or shares of weights remaining in percent" in refused(
            capsys, tmp_path, f"--remaining={wrong}"
        )
    message = refused(capsys, tmp_path, "--remaining", "80", "--baseline", "lth sillo")
    assert "--baseline lth sillo: no such row; did you mean lth silo" in message
    assert "no such row" in refused(capsys, tmp_path, "--baseline", "lth sillo")
    assert not list(tmp_path.glob("*.csv"))


def test_it_is_not_made_unless_it_is_asked_for(tmp_path, capsys):
    two_schedules(tmp_path)
    assert main([str(tmp_path), "--no-plot"]) == 0
    assert "remaining" not in capsys.readouterr().out
    assert not list(tmp_path.glob("remaining.*"))
