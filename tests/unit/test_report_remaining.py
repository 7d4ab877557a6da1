"""The papers' tables: which run counts in which cell, and differences to a baseline."""

import json
import statistics

import numpy
import pytest
from scipy import stats

from prunebench.report.group import labels
from prunebench.report.read import load
from prunebench.report.remaining import Share, baselines, by_channels, differences, every_share, remaining
from tests.unit.test_report import a_round, put

RATE = 0.2


def rounds(top1, *, rate=RATE, dense=0.9):
    """Dense training and a round for each value, every one keeping 1 - rate of the weights."""
    return [a_round(0, 0.0, dense)] + [
        a_round(i, 1 - (1 - rate) ** i, value, dense) for i, value in enumerate(top1, start=1)
    ]


def panels(root, asked="all", metric="top1"):
    runs = load([str(root)]).runs
    return remaining(runs, labels(runs), asked, metric)


def two_schedules(root, seeds=(0, 1, 2)):
    """SILO with 80, 81, 82 % by seed in the first round; cosine 1, 2 and 3 points less."""
    for seed in seeds:
        values = [0.80 + 0.01 * seed - 0.1 * i for i in range(3)]
        put(root, f"silo{seed}", rounds(values), seed=seed, method="lth", schedule="silo")
        less = [value - 0.01 * (seed + 1) for value in values]
        put(root, f"cosine{seed}", rounds(less), seed=seed, method="lth", schedule="cosine")


def test_cells_are_means_and_sample_standard_deviations_over_seeds(tmp_path):
    two_schedules(tmp_path)
    (panel,) = panels(tmp_path, "100,80,51.2")
    assert [row.label for row in panel.rows] == ["lth cosine", "lth silo"]
    cosine = panel.rows[0].cells
    expected = [0.79, 0.79, 0.79]
    assert cosine[1].mean_std == (pytest.approx(statistics.mean(expected)), pytest.approx(0, abs=1e-12))
    last = panel.rows[1].cells[2]
    assert last.values == pytest.approx({0: 0.60, 1: 0.61, 2: 0.62})
    assert last.mean_std == pytest.approx((0.61, numpy.std([0.60, 0.61, 0.62], ddof=1)))
    assert last.n == 3
    assert list(last.reached.values()) == pytest.approx([0.512] * 3)


@pytest.mark.parametrize(
    ("asked", "shares", "found"),
    [
        (0.5, [1, 0.515, 0.49], 0.49),  # the nearest of two within 3 %
        (0.5, [1, 0.5149, 0.4], 0.5149),
        (0.5, [1, 0.5151, 0.4849], None),
        (0.01, [1, 0.0103, 0.0096], 0.0103),
    ],
)
def test_a_round_counts_within_3_percent_of_a_column_and_the_nearest_wins(tmp_path, asked, shares, found):
    there = [a_round(i, 1 - share, 0.5) for i, share in enumerate(shares)]
    put(tmp_path, "a", there)
    (one,) = load([str(tmp_path)]).runs
    row = Share(asked, 0.97 * asked, 1.03 * asked).nearest(one)
    assert (row and 1 - row["sparsity"]) == (found and pytest.approx(found))


def test_of_two_rounds_with_the_same_weights_the_later_counts(tmp_path):
    again = [a_round(0, 0.0, 0.7), a_round(1, 0.5, 0.8), a_round(1, 0.5, 0.85) | {"phase": "final"}]
    put(tmp_path, "a", again)
    (panel,) = panels(tmp_path, "50")
    assert panel.rows[0].cells[0].values == {0: 0.85}


def test_partial_runs_are_left_out(tmp_path):
    put(tmp_path, "done", rounds([0.8, 0.7]), seed=0)
    put(tmp_path, "killed", rounds([0.1]), seed=1, done=False)
    (panel,) = panels(tmp_path, "80")
    assert panel.rows[0].cells[0].values == {0: 0.8}


def test_all_columns_hold_every_round_once(tmp_path):
    put(tmp_path, "a", rounds([0.8, 0.7, 0.6]))
    put(tmp_path, "b", rounds([0.8, 0.7], rate=0.5), method="lth")
    (panel,) = panels(tmp_path)
    assert [share.asked for share in panel.shares] == pytest.approx(
        [1, 0.8, 0.64, 0.5, 0.25]
    )  # 0.512 is near
    assert [cell is not None for cell in panel.rows[0].cells] == [True, True, True, True, False]
    assert [cell is not None for cell in panel.rows[1].cells] == [True, False, False, True, True]


def test_all_columns_keep_the_rounds_of_slow_pruning_apart(tmp_path):
    put(tmp_path, "slow", rounds([0.8] * 6, rate=0.01))
    shares = every_share(load([str(tmp_path)]).runs)
    assert [share.asked for share in shares] == pytest.approx([0.99**i for i in range(7)])


def test_seeds_that_reach_slightly_different_shares_are_in_one_column(tmp_path):
    for seed, reached in enumerate((0.5, 0.503, 0.497)):
        pruned = a_round(1, 1 - reached, 0.8) | {"asked": 0.5}
        put(tmp_path, f"{seed}", [a_round(0, 0.0, 0.9), pruned], seed=seed)
    (panel,) = panels(tmp_path)
    assert [cell.n for cell in panel.rows[0].cells] == [3, 3]
    assert list(panel.rows[0].cells[1].reached.values()) == pytest.approx([0.5, 0.503, 0.497])


def test_models_and_data_sets_have_tables_of_their_own(tmp_path):
    put(tmp_path, "a", rounds([0.8]))
    put(tmp_path, "b", rounds([0.8], rate=0.3), model="lenet5")
    assert [(p.model, [s.asked for s in p.shares]) for p in panels(tmp_path)] == [
        ("lenet300", pytest.approx([1, 0.8])),
        ("lenet5", pytest.approx([1, 0.7])),
    ]


def test_runs_to_several_sparsities_fill_one_row_where_they_have_no_column_in_common(tmp_path):
    for seed in (0, 1):
        for target in (0.5, 0.9):
            ends = [a_round(0, 0.0, 0.9 + 0.01 * seed), a_round(1, target, target + 0.01 * seed)]
            put(tmp_path, f"{target}{seed}", ends, seed=seed)
    (panel,) = panels(tmp_path)
    (row,) = panel.rows
    assert row.label == "imp"
    assert [cell.values for cell in row.cells] == [{0: 0.9, 1: 0.91}, {0: 0.5, 1: 0.51}, {0: 0.9, 1: 0.91}]


def test_runs_to_several_sparsities_stay_apart_where_they_meet_on_their_ways(tmp_path):
    put(tmp_path, "a", rounds([0.8, 0.7]), seed=0)
    put(tmp_path, "b", rounds([0.5, 0.4, 0.3]), seed=1)
    (panel,) = panels(tmp_path, "80")
    assert [(row.label, row.cells[0].values) for row in panel.rows] == [
        ("imp target=0.36", {0: 0.8}),
        ("imp target=0.488", {1: 0.5}),
    ]


def test_copies_of_a_run_count_as_one_seed(tmp_path):
    put(tmp_path, "a", rounds([0.8]))
    put(tmp_path, "b", rounds([0.6]))
    (panel,) = panels(tmp_path, "80")
    assert panel.rows[0].cells[0].values == {0: pytest.approx(0.7)}


def test_differences_are_paired_over_the_seeds_that_both_have(tmp_path):
    two_schedules(tmp_path)
    put(tmp_path, "silo9", rounds([0.1, 0.1, 0.1]), seed=9, method="lth", schedule="silo")
    (panel,) = panels(tmp_path, "80,64")
    (baseline,) = baselines([panel], "lth cosine")
    one = differences(panel, baseline)["lth silo"][0]
    test = stats.ttest_1samp([0.01, 0.02, 0.03], 0)
    expected = test.confidence_interval(0.95)
    assert (one.n, one.mean, one.low, one.high) == pytest.approx((3, 0.02, expected.low, expected.high))
    assert one.p == pytest.approx(test.pvalue)
    assert "lth cosine" not in differences(panel, baseline)


def test_a_value_that_is_missing_or_not_finite_leaves_its_cell_empty(tmp_path, capsys):
    bad = rounds([0.8, 0.7])
    bad[1]["test"] = {"top1": float("nan")}
    del bad[2]["test"]["top5"]
    directory = put(tmp_path, "a", rounds([0.8, 0.7]))
    content = json.loads((directory / "result.json").read_text()) | {"rounds": bad}
    (directory / "result.json").write_text(json.dumps(content))
    (panel,) = panels(tmp_path, "100,80,64")
    assert [cell and cell.values for cell in panel.rows[0].cells] == [{0: 0.9}, None, {0: 0.7}]
    (panel,) = panels(tmp_path, "100,80,64", "top5")
    assert [cell is None for cell in panel.rows[0].cells] == [False, True, True]


def test_a_control_stands_for_its_last_round_only_and_its_depths_share_a_row(tmp_path):
    settings = {"target": None, "rate": RATE, "allocation": "global", "granularity": "weight"}
    configuration = {"sparsity": {"target": None, "rate": RATE}, "protocol": {"control": "none"}}
    for seed in (0, 1):
        values = [0.85, 0.8, 0.75, 0.7]
        put(tmp_path, f"t{seed}", rounds(values), seed=seed, method="lth", sparsity=settings)
        write_configuration(tmp_path / f"t{seed}", configuration, rounds=4)
        for depth in (2, 4):
            name = f"c{seed}{depth}"
            put(
                tmp_path,
                name,
                rounds([*values[: depth - 1], 0.5]),
                seed=seed,
                method="lth",
                sparsity=settings,
            )
            control = configuration | {"protocol": {"control": "reinit"}}
            write_configuration(tmp_path / name, control, rounds=depth)
    (panel,) = panels(tmp_path)
    rows = {row.label: [cell and cell.mean_std[0] for cell in row.cells] for row in panel.rows}
    assert rows == {
        "lth control=none": pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7]),
        "lth control=reinit": [None, None, 0.5, None, 0.5],
    }


def write_configuration(directory, content, *, rounds):
    content = content | {"sparsity": content["sparsity"] | {"rounds": rounds}}
    (directory / "config.yaml").write_text(json.dumps(content))  # JSON is YAML


def test_shares_of_channels_take_the_place_of_those_of_weights(tmp_path):
    pruned = a_round(1, 0.75, 0.6) | {"channels": 40, "channels_total": 80}
    put(tmp_path, "a", [a_round(0, 0.0, 0.8), pruned])
    runs = by_channels(load([str(tmp_path)]).runs, ["a"])
    (panel,) = remaining(runs, ["a"], "all", "top1")
    assert [share.asked for share in panel.shares] == [1, 0.5]
    assert [cell.values for cell in panel.rows[0].cells] == [{0: 0.8}, {0: 0.6}]


def test_runs_without_channels_are_refused_by_name(tmp_path):
    put(tmp_path, "a", [a_round(0, 0.0, 0.8), a_round(1, 0.75, 0.6)])
    with pytest.raises(ValueError, match="--channels: imp prunes no channels; leave it out with --where"):
        by_channels(load([str(tmp_path)]).runs, ["imp"])
