"""The Oracle among other runs: intervals, who is inside, what the search cost."""

import csv
import json

import pytest

from prunebench.report.group import labels
from prunebench.report.oracle_picture import oracle_png
from prunebench.report.read import load
from prunebench.report.search import comparison_lines, inside, searches, varies
from tests.unit.test_report import PNG, a_round, put, run

GRID = [0.05, 0.1, 0.2, 0.4]
SHARES = [1.0, 0.8, 0.64]
# validation top-1 of the grid in each cycle; near-best within 0.5 points
VALID = [[0.80, 0.90, 0.898, 0.7], [0.80, 0.85, 0.90, 0.896], [0.70, 0.75, 0.80, 0.90]]
NEAR = [[0.1, 0.2], [0.2, 0.4], [0.4]]
BEST = [0.1, 0.2, 0.4]


def rounds(peaks, shares=SHARES, top1=0.9):
    return [
        a_round(i, 1 - s, top1) | {"max_lr": peak}
        for i, (s, peak) in enumerate(zip(shares, peaks, strict=True))
    ]


def content():
    cycles = []
    for i, share in enumerate(SHARES):
        branches = [
            {"max_lr": peak, "valid": {"top1": v, "loss": 1.0}, "test": {"top1": v - 0.01}}
            for peak, v in zip(GRID, VALID[i])
        ]
        phase = f"round-{i:02}" if i else "dense"
        where = {"phase": phase, "asked": 1 - share, "sparsity": 1 - share}
        cycles.append({**where, "best": BEST[i], "near_best": NEAR[i], "branches": branches})
    cost = {"steps": 12, "samples": 12, "train_macs": 6000, "branches": 12}
    return {"version": 1, "grid": GRID, "tolerance": 0.005, "cycles": cycles, "cost": cost}


def an_oracle(root, name="oracle", *, seed=0, **options):
    who = {"method": "lth", "schedule": "warmup_step", "protocol": "oracle", "seed": seed, **options}
    search = {} if options.get("done") is False else {"search": content()["cost"], "peaks": BEST}
    directory = put(root, name, rounds(BEST), **who, **search)
    result = directory / "result.json"
    if result.exists():
        result.write_text(json.dumps(json.loads(result.read_text()) | {"cost": {"train_macs": 2000}}))
    (directory / "oracle.json").write_text(json.dumps(content()))
    return directory


def silo(root, peaks, *, name="silo", seed=0, schedule="silo", shares=SHARES, **options):
    who = {"method": "lth", "schedule": schedule, "seed": seed, **options}
    return put(root, f"{name}{seed}", rounds(peaks, shares), **who)


def found(root):
    runs = load([str(root)]).runs
    return searches(runs, labels(runs))[0]


def test_largest_learning_rates_are_averaged_over_seeds(tmp_path):
    an_oracle(tmp_path)
    silo(tmp_path, [0.1, 0.2, 0.3], seed=0)
    silo(tmp_path, [0.1, 0.2, 0.5], seed=1)
    (search,) = found(tmp_path)
    assert search.followers == {("lth silo",): pytest.approx([0.1, 0.2, 0.4])}
    assert search.title == "lth oracle warmup_step, seed 0: lenet300 on digits"


def test_only_schedules_that_differ_from_cycle_to_cycle_on_the_same_model_and_data_are_compared(tmp_path):
    an_oracle(tmp_path)
    an_oracle(tmp_path, "another", seed=1)
    silo(tmp_path, [0.1, 0.2, 0.2], name="flat", schedule="cosine")  # dense training may differ
    silo(tmp_path, [0.1, 0.2, 0.3], model="lenet5")
    silo(tmp_path, [0.1, 0.2, 0.3], name="mnist", dataset="mnist")
    assert [search.followers for search in found(tmp_path)] == [{}, {}]
    silo(tmp_path, [0.1, 0.2, 0.3], name="cyclic", schedule="s_cyc")
    assert [list(search.followers) for search in found(tmp_path)] == [[("lth s_cyc",)]] * 2


def test_schedules_with_the_same_peaks_stand_together(tmp_path):
    an_oracle(tmp_path)
    for schedule, last in (("silo", 0.3), ("s_cyc", 0.3), ("silo_cosine", 0.35)):
        silo(tmp_path, [0.1, 0.2, last], name=schedule, schedule=schedule)
    (search,) = found(tmp_path)
    assert list(search.followers) == [("lth s_cyc", "lth silo"), ("lth silo_cosine",)]


def test_rounds_are_compared_by_the_weights_that_remain(tmp_path):
    an_oracle(tmp_path)
    silo(tmp_path, [0.1, 0.3, 0.35, 0.2], shares=[1.0, 0.645, 0.5, 0.3])
    (search,) = found(tmp_path)
    assert search.followers["lth silo",] == [0.1, None, 0.3]


def test_partial_runs_count_as_far_as_they_came(tmp_path):
    an_oracle(tmp_path)
    silo(tmp_path, [0.1, 0.2, 0.3], done=False)
    assert next(iter(found(tmp_path)[0].followers.values())) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.2, True), (0.3, True), (0.4, True), (0.1985, True), (0.403, True), (0.19, False), (0.41, False)],
)
def test_inside_is_between_the_lowest_and_highest_near_best_within_1_percent(rate, expected):
    assert inside({"near_best": [0.2, 0.4]}, rate) == expected


def test_the_terminal_says_for_every_cycle_who_is_inside_and_counts(tmp_path, capsys):
    an_oracle(tmp_path)
    silo(tmp_path, [0.1, 0.2, 0.3])
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    lines = out.splitlines()
    start = lines.index("Oracle: lth oracle warmup_step, seed 0: lenet300 on digits")
    assert [line.split() for line in lines[start + 4 : start + 7]] == [
        ["dense", "100", "0.1", "0.1", "to", "0.2", "0.1", "in"],
        ["round-01", "80", "0.2", "0.2", "to", "0.4", "0.2", "in"],
        ["round-02", "64", "0.4", "0.4", "0.3", "out"],
    ]
    assert lines[start + 7] == "(1) lth silo: inside in 2 of 3 cycles"
    assert "validation top-1 at most 0.50 points below the best of 0.05, 0.1, 0.2, 0.4" in " ".join(
        out.split()
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    an_oracle(tmp_path)
    for i in range(9):
        silo(tmp_path, [0.1, 0.2, 0.3 + 0.01 * i], name=f"n{i}", schedule=f"a_long_schedule_name_{i}")
    assert max(map(len, comparison_lines(found(tmp_path), width=width))) <= width


def test_without_others_the_search_stands_alone(tmp_path, capsys):
    an_oracle(tmp_path)
    _, out, _ = run(capsys, tmp_path, "--no-plot")
    assert "no other run here has a learning rate that differs from cycle to cycle" in " ".join(out.split())


def test_csv_has_every_branch(tmp_path, capsys):
    an_oracle(tmp_path)
    run(capsys, tmp_path, "--no-plot")
    with (tmp_path / "oracle.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[1] == {
        **{"label": "lth", "model": "lenet300", "dataset": "digits", "seed": "0", "phase": "dense"},
        **{"remaining": "1.0", "max_lr": "0.1", "valid_top1": "0.9", "test_top1": "0.89"},
        **{"near_best": "True", "best": "True"},
    }
    assert [(row["near_best"], row["best"]) for row in rows[:4]] == [
        *(("False", "False"), ("True", "True"), ("True", "False"), ("False", "False"))
    ]


def test_the_cost_of_the_search_is_a_remark_and_not_in_the_tables(tmp_path, capsys):
    an_oracle(tmp_path)
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "all")
    told = (
        "lth: tables hold the run along the winners only; its search trained 12 branches, 6.00k MACs, 3 times"
    )
    assert told in " ".join(out.split())
    assert told in (tmp_path / "report.md").read_text()
    with (tmp_path / "report.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["run.cost.train_macs"], row["search.train_macs"]) == ("2000", "6000")


def test_the_picture_is_drawn_with_others_and_without(tmp_path, capsys):
    an_oracle(tmp_path)
    run(capsys, tmp_path)
    alone = (tmp_path / "oracle.png").read_bytes()
    silo(tmp_path, [0.1, 0.2, 0.3])
    for seed in (1, 2):
        an_oracle(tmp_path, f"seed{seed}", seed=seed)
    run(capsys, tmp_path)
    assert alone.startswith(PNG)
    assert (tmp_path / "oracle.png").read_bytes() != alone


def test_runs_without_a_search_have_no_such_part(tmp_path, capsys):
    silo(tmp_path, [0.1, 0.2, 0.3])
    _, out, _ = run(capsys, tmp_path)
    assert "racle" not in out
    assert not list(tmp_path.glob("oracle.*"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        (json.dumps(content() | {"version": 2}), "of another version"),
        (json.dumps({key: value for key, value in content().items() if key != "grid"}), "no 'grid'"),
        (json.dumps(content() | {"cycles": []}), "a cycle without branches"),
    ],
)
def test_a_damaged_search_is_named_and_left_out(tmp_path, capsys, text, reason):
    directory = an_oracle(tmp_path)
    (directory / "oracle.json").write_text(text)
    code, out, _ = run(capsys, tmp_path)
    assert code == 0
    assert f"left out of the Oracle's part: {directory}: oracle.json: {reason}" in " ".join(out.split())
    assert not list(tmp_path.glob("oracle.*"))


def test_an_unfinished_oracle_shows_what_its_search_found(tmp_path):
    an_oracle(tmp_path, done=False)
    assert len(found(tmp_path)) == 1


def test_schedules_of_one_pruned_round_or_without_records_do_not_vary(tmp_path):
    silo(tmp_path, [0.1, 0.4], shares=[1.0, 0.5])
    put(tmp_path, "old", [a_round(0, 0.0, 0.9), a_round(1, 0.2, 0.9), a_round(2, 0.36, 0.9)])
    assert [varies(run) for run in load([str(tmp_path)]).runs] == [False, False]


def test_a_picture_of_one_cycle_is_drawn(tmp_path):
    directory = an_oracle(tmp_path)
    one = content() | {"cycles": content()["cycles"][:1]}
    (directory / "oracle.json").write_text(json.dumps(one))
    oracle_png(found(tmp_path), ["lth"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
