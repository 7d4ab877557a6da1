"""Paired comparisons against scipy and pandas, and the documents that show them."""

import csv
import math
import re

import numpy
import pandas
import pytest
from scipy import stats

from prunebench.report.cli import main
from prunebench.report.compare import Comparison, compared, corrected, holm, p_text, p_value
from prunebench.report.sheets import escaped
from tests.unit.test_report import a_round, put


def test_the_p_value_of_the_t_test_is_that_of_scipy():
    draw = numpy.random.default_rng(2)
    for n in (2, 3, 5, 12, 40):
        a, b = draw.normal(size=(2, n))
        assert p_value((a - b).tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)


def test_the_p_value_of_wilcoxons_test_is_that_of_scipy():
    draw = numpy.random.default_rng(3)
    a, b = draw.normal(size=(2, 7))
    expected = stats.wilcoxon(a, b).pvalue
    assert p_value((a - b).tolist(), "wilcoxon") == pytest.approx(expected)


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_where_nothing_can_be_tested_there_is_no_p_value(test):
    assert p_value([0.0, 0.0, 0.0], test) is None
    assert p_value([0.1], test) is None


def test_equal_differences_other_than_0_leave_no_doubt():
    assert p_value([0.25, 0.25]) == 0.0


def test_holm_steps_down_never_falls_and_leaves_out_what_has_no_p_value():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_comparisons_are_over_common_seeds_and_corrected_together():
    one = compared({0: 0.5, 1: 0.75, 2: 0.1}, {0: 0.25, 1: 0.25, 9: 0.1})
    assert (one.n, one.mean) == (2, 0.375)
    assert compared({0: 0.5}, {1: 0.5}) is None
    single = compared({0: 0.5}, {0: 0.25})
    assert single == Comparison(1, 0.25, None, None, None)
    first, nothing, second, third = corrected([one, None, single, one])
    assert nothing is None and second.adjusted is None
    assert first.adjusted == third.adjusted == pytest.approx(min(1, 2 * one.p))


def test_p_values_are_short():
    assert [p_text(p) for p in (0.0004, 0.001, 0.0321, 0.5, 0.9994, 1.0)] == [
        "<.001",
        ".001",
        ".032",
        ".500",
        ".999",
        "1",
    ]


@pytest.fixture
def two_methods(tmp_path):
    """imp and lth at two sparsities, three seeds; what pandas needs to know of them."""
    draw, known = numpy.random.default_rng(5), []
    for method in ("imp", "lth"):
        for target in (0.5, 0.75):
            for seed in range(3):
                top1 = round(0.8 + 0.02 * float(draw.normal()), 4)
                settings = {"target": target, "allocation": "global", "granularity": "weight"}
                rounds = [a_round(0, 0.0, 0.9), a_round(1, target, top1)]
                put(tmp_path, f"{method}{target}{seed}", rounds, method=method, seed=seed, sparsity=settings)
                known.append({"method": method, "target": target, "seed": seed, "top1": top1})
    return tmp_path, pandas.DataFrame(known)


def test_the_table_agrees_with_pandas_and_scipy(two_methods, capsys):
    directory, known = two_methods
    assert main([str(directory), "--baseline", "imp", "--no-plot", "--format", "table,csv"]) == 0
    shown = capsys.readouterr().out
    assert "paired t test, Holm-corrected over the table (2 comparisons in all)" in " ".join(shown.split())
    with (directory / "report_summary.csv").open() as file:
        rows = {(r["method"], float(r["target"])): r for r in csv.DictReader(file)}
    p = {}
    for (method, target), group in known.groupby(["method", "target"]):
        row, values = rows[method, target], group.sort_values("seed")["top1"]
        assert float(row["value"]) == pytest.approx(values.mean())
        assert float(row["std"]) == pytest.approx(values.std())
        between = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        assert float(row["reach"]) == pytest.approx((between[1] - between[0]) / 2)
        if method == "lth":
            base = known[(known.method == "imp") & (known.target == target)].sort_values("seed")["top1"]
            test = stats.ttest_rel(values, base)
            p[target] = test.pvalue
            expected = test.confidence_interval(0.95)
            assert float(row["difference"]) == pytest.approx(values.mean() - base.mean())
            assert float(row["difference_low"]) == pytest.approx(expected.low)
            assert float(row["difference_high"]) == pytest.approx(expected.high)
            assert float(row["p"]) == pytest.approx(test.pvalue)
        else:
            assert row["difference"] == row["p"] == ""
    adjusted = dict(zip(p, holm(list(p.values()))))
    for target, value in adjusted.items():
        assert float(rows["lth", target]["p_holm"]) == pytest.approx(value)


def test_an_unknown_baseline_is_one_line_that_names_the_close_ones(two_methods, capsys):
    assert main([str(two_methods[0]), "--baseline", "inp"]) == 2
    assert "did you mean imp?" in capsys.readouterr().err


def test_wilcoxon_says_what_it_cannot_give_and_needs_a_baseline(two_methods, capsys):
    directory = str(two_methods[0])
    arguments = [directory, "--baseline", "imp", "--test", "wilcoxon", "--no-plot"]
    assert main(arguments) == 0
    assert "cannot give a p below 0.25 for 3 pairs" in " ".join(capsys.readouterr().out.split())
    assert main([directory, "--test", "wilcoxon"]) == 2
    assert "--test wilcoxon: has no effect without --baseline" in capsys.readouterr().err


def test_other_splits_are_metrics_too(two_methods, capsys):
    directory = str(two_methods[0])
    assert main([directory, "--metric", "pruned/top1", "--no-plot", "--format", "table"]) == 0
    assert "test, right after pruning" in capsys.readouterr().out
    assert main([directory, "--metric", "test/top1", "--no-plot", "--format", "table"]) == 0
    assert main([directory, "--metric", "tset/top1"]) == 2
    assert "did you mean test/top1" in capsys.readouterr().err


def test_latex_has_a_line_for_every_row_and_as_many_cells_as_columns(two_methods):
    directory, _ = two_methods
    assert main([str(directory), "--baseline", "imp", "--no-plot", "--format", "latex"]) == 0
    text = (directory / "report.tex").read_text()
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", text).group(1))
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == 4
    assert {line.count(" & ") + 1 for line in body} == {columns}


def test_text_for_latex_is_escaped():
    assert escaped("a_b 5 % +-1") == r"a\_b 5 \% $\pm$1"


def test_the_page_holds_tables_and_pictures_and_needs_no_network(two_methods):
    directory, _ = two_methods
    assert main([str(directory), "--html", "--remaining", "all"]) == 0
    text = (directory / "report.html").read_text()
    assert text.count("<table>") == 2
    assert 'src="data:image/png;base64,' in text
    assert not re.search(r"https?://|src=\"(?!data:)|<link", text)
    numbers = re.findall(r'data-value="([^"]*)">80\.', text)
    assert all(math.isfinite(float(number)) for number in numbers)


@pytest.mark.parametrize("suffix, start", [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_come_in_other_formats(two_methods, suffix, start):
    directory, _ = two_methods
    assert main([str(directory), "--figure", suffix, "--over", "speedup", "--format", "csv"]) == 0
    assert (directory / f"report.{suffix}").read_bytes().startswith(start)
    assert not (directory / "report.png").exists()


def test_what_would_have_no_effect_is_refused(two_methods, capsys):
    for arguments in (["--figure", "pdf"], ["--over", "speedup"]):
        assert main([str(two_methods[0]), "--no-plot", *arguments]) == 2
        assert "has no effect with --no-plot" in capsys.readouterr().err
