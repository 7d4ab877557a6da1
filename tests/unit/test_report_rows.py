"""What rows are compared by, rows that the reader puts together, and how little is said of many."""

import json

import pandas
import pytest
import yaml
from scipy import stats

from prunebench.report.choose import chosen
from prunebench.report.cli import main
from prunebench.report.fairness import contract, lines, verdicts
from prunebench.report.group import labels, summarise
from prunebench.report.read import load
from tests.unit.test_report import put, rounds_to

COST = {"steps": 100, "samples": 1000, "train_macs": 10**6, "train_macs_dense": 2 * 10**6}
EQUAL = "augmentation, data, network, optimizer, schedule, selection, dense control, training cost, seeds"
OPTIONS = {
    "model": {"depth": 20},
    "dataset": {"name": "digits", "noise_kind": "symmetric", "validation": 0.1},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "schedule": {"_target_": "prunebench.schedules.step", "milestones": [0.5, 0.75]},
    "retrain": {"_target_": "prunebench.retrain.same"},
    "protocol": {"dense": "4ep", "keep": "last", "patience": None, "weights": "keep"},
    "trainer": {"batch_size": 128, "device": "cpu"},
}


def a_run(root, seed, *, top1=0.8, dense=0.9, target=0.9, images=1000, changed=(), **who):
    """A finished run; `changed`: dotted key -> value, of config.yaml and typed."""
    changed = dict(changed)
    name = "-".join(map(str, [*who.values(), *changed.values(), target, seed])).replace("/", "")
    typed = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    identity = {"sparsity": {"target": target, "allocation": "global", "granularity": "weight"}}
    put(root, name, rounds_to(target, top1, dense, rounds=5), seed=seed, overrides=typed, **identity, **who)
    content = json.loads((root / name / "result.json").read_text())
    (root / name / "result.json").write_text(json.dumps(content | {"cost": COST | {"samples": images}}))
    tree = json.loads(json.dumps(OPTIONS))
    for key, value in changed.items():
        group, _, option = key.partition(".")
        tree[group][option] = value
    (root / name / "config.yaml").write_text(yaml.safe_dump({**tree, "seed": seed}))


def judged(root, by=None):
    runs = load([str(root)]).runs
    rows = chosen(runs, by) if by else None
    return verdicts(runs, rows.names if rows else labels(runs), rows)


def told(root, by=None):
    """The findings on the only model and data set."""
    (one,) = judged(root, by)
    return {found.aspect: found.text for found in one.findings}


def test_a_word_of_a_label_that_is_another_options_value_excuses_nothing(tmp_path):
    for word in ("random", "magnitude"):
        a_run(tmp_path, 0, criterion=word, changed={"dataset.noise_kind": word})
    assert told(tmp_path)["data"] == "dataset.noise_kind magnitude (magnitude), random (random)"


def test_a_row_at_one_rate_of_a_sweep_of_another_is_on_equal_terms(tmp_path):
    for lr in (0.1, 0.05):
        a_run(tmp_path, 0, method="lth", changed={"optimizer.lr": lr})
    a_run(tmp_path, 0, method="imp")
    (one,) = judged(tmp_path)
    assert (one.by, one.findings) == (["method", "lr"], [])
    a_run(tmp_path, 0, method="snip", changed={"optimizer.lr": 0.3})
    assert told(tmp_path) == {
        "optimizer": "optimizer.lr 0.1 (imp, lth lr=0.1), 0.05 (lth lr=0.05), 0.3 (snip)"
    }


def test_the_schedule_of_retraining_counts_where_it_is_read(tmp_path):
    other = {"retrain._target_": "prunebench.retrain.slr"}
    a_run(tmp_path / "a", 0, method="lth", retrain="same")
    a_run(tmp_path / "a", 0, method="imp", retrain="slr", changed=other)
    assert told(tmp_path / "a") == {"schedule": "retrain slr (imp), same (lth)"}
    a_run(tmp_path / "b", 0, method="lth", retrain="same")
    a_run(tmp_path / "b", 0, method="snip", retrain="slr", protocol="at_init", changed=other)
    assert told(tmp_path / "b") == {}


def test_seeds_of_a_row_that_saw_more_images_are_named_even_of_a_single_row(tmp_path):
    for seed, images in enumerate((1000, 1000, 1500)):
        a_run(tmp_path / "a", seed, images=images)
        a_run(tmp_path / "b", seed, images=images, changed={"protocol.patience": "2ep"})
    assert told(tmp_path / "a") == {
        "within a row": "imp: training images 1.00k to 1.50k, 1.50x, at 90.00 % sparsity"
    }
    assert judged(tmp_path / "b") == []  # patience lets seeds stop where they like


def test_ends_of_the_cost_name_all_rows_that_are_there(tmp_path):
    for method, images in (("a", 1000), ("b", 1005), ("c", 1002), ("d", 2000)):
        a_run(tmp_path, 0, method=method, images=images)
    assert told(tmp_path)["training cost"] == (
        "images 1.00k (3 rows) to 2.00k (d), 2.00x, at 90.00 % sparsity"
    )


def test_dense_controls_that_differ_in_many_rows_are_given_by_their_ends(tmp_path):
    for place, method in enumerate("abcdef"):
        a_run(tmp_path, 0, method=method, dense=0.9 + 0.01 * place)
    assert told(tmp_path)["dense control"] == "90.00 % (a) to 95.00 % (f), 6 different ones in 6 rows"


def by_rate(root):
    """Runs of two rates, two criteria and three seeds, and their numbers as a table."""
    rows = []
    for lr in (0.1, 0.05):
        for seed in range(3):
            for criterion in ("magnitude", "snip"):
                top1 = 0.8 + 0.01 * seed + (0.03 if criterion == "snip" else 0) - 0.1 * lr
                a_run(root, seed, criterion=criterion, top1=top1, changed={"optimizer.lr": lr})
                rows.append({"lr": lr, "seed": seed, "top1": top1})
    return pandas.DataFrame(rows)


def test_rows_by_a_key_have_the_mean_of_runs_and_the_interval_of_seeds(tmp_path):
    table = by_rate(tmp_path)
    runs = load([str(tmp_path)]).runs
    rows = {row["method"]: row for row in summarise(runs, chosen(runs, "optimizer.lr").names, "top1")}
    for lr, members in table.groupby("lr"):
        row, seeds = rows[f"lr={lr:g}"], members.groupby("seed").top1.mean()
        assert row["n"] == 6
        assert row["value"] == pytest.approx(members.top1.mean(), abs=1e-12)
        assert row["std"] == pytest.approx(members.top1.std(), abs=1e-12)
        low, high = stats.t.interval(0.95, len(seeds) - 1, seeds.mean(), stats.sem(seeds))
        assert row["reach"] == pytest.approx((high - low) / 2, rel=1e-9)


def test_rows_that_hold_more_than_seeds_are_a_finding_and_strict_fails(tmp_path, capsys):
    by_rate(tmp_path)
    assert told(tmp_path, "optimizer.lr") == {
        "within a row": "not one configuration: criterion (lr=0.05, lr=0.1)"
    }
    assert (
        told(tmp_path, "criterion")["within a row"] == "not one configuration: optimizer.lr (magnitude, snip)"
    )
    assert main([str(tmp_path), "--no-plot", "--strict", "--by", "optimizer.lr"]) == 1
    shown = capsys.readouterr()
    assert "averaged over criterion (magnitude, snip), and seeds" in " ".join(shown.out.split())
    assert shown.err.startswith("prune-report: --strict: not equal: lenet300 on digits: within a row")
    assert main([str(tmp_path), "--no-plot", "--strict", "--by", "optimizer.lr,criterion"]) == 0


def test_means_over_different_things_are_a_finding(tmp_path):
    for seed in range(2):
        a_run(tmp_path, seed, criterion="magnitude", method="lth")
        a_run(tmp_path, seed, criterion="snip", method="lth")
        a_run(tmp_path, seed, criterion="magnitude", method="imp")
    found = told(tmp_path, "method")
    assert found["averaged over"] == "criterion magnitude (imp), magnitude and snip (lth)"


def test_what_all_rows_are_averaged_over_alike_is_no_difference_between_them(tmp_path):
    by_rate(tmp_path)
    assert set(told(tmp_path, "criterion")) == {"within a row"}
    assert set(told(tmp_path, "seed")) == {"within a row"}


def test_many_models_take_few_lines(tmp_path):
    for model in map(str, range(9)):
        for method in ("imp", "lth"):
            unlike = {"optimizer.lr": 0.05} if method == "lth" and int(model) < 5 else {}
            a_run(tmp_path, 0, method=method, model=model, changed=unlike)
    out = lines(judged(tmp_path))
    assert len(out) == 3 * 2 + 1 + 1
    assert out[-2] == "fair? on 2 more models and data sets not equal: optimizer"
    assert out[-1].startswith("fair? 5 on digits, 6 on digits, 7 on digits and 1 more; equal: augmentation")


def test_runs_without_top5_are_counted(tmp_path):
    for method in ("imp", "lth"):
        a_run(tmp_path, 0, method=method)
    runs = load([str(tmp_path)]).runs
    runs[0].rounds[-1]["test"]["top5"] = None
    (line,) = contract(runs, labels(runs))
    assert "no top-5 in 1 of 2 runs" in line


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("schedule.milestones=[0.5,0.75]", 3),
        ("schedule.milestones=[0.50,0.75],[0.3]", 4),
        ("optimizer.lr=0.1,0.2", 4),
        ("trainer.device=cpu", 4),
        ("sparsity=0.9", 3),
        ("sparsity=0.8322", 1),
    ],
)
def test_where_takes_lists_any_option_and_the_sparsity(tmp_path, capsys, condition, count):
    for seed in range(3):
        a_run(tmp_path, seed)
    a_run(tmp_path, 3, target=1 - 0.8**8, changed={"schedule.milestones": [0.3]})
    assert main([str(tmp_path), "--no-plot", "--format", "table", "--where", condition]) == 0
    assert f"{count} run" in capsys.readouterr().out.splitlines()[-1]


def test_keys_that_no_run_has_are_refused_in_one_line_with_close_names(tmp_path, capsys):
    a_run(tmp_path, 0)
    for option in (["--by", "trainer.devise"], ["--where", "trainer.devise=cpu"]):
        assert main([str(tmp_path), "--no-plot", *option]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "did you mean trainer.device" in err


def test_a_heading_pools_no_dense_controls_that_differ(tmp_path, capsys):
    for method, dense in (("imp", 0.9), ("lth", 0.95)):
        a_run(tmp_path, 0, method=method, dense=dense)
    assert main([str(tmp_path), "--no-plot"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "lenet300 on digits (dense top-1: 90.00 to 95.00, not one control)"
    text = (tmp_path / "report.md").read_text()
    assert "\n- not equal: dense control: 90.00 % (imp), 95.00 % (lth)\n" in text


def test_options_that_are_not_recorded_are_not_taken_for_equal(tmp_path, capsys):
    for method in ("imp", "lth"):
        a_run(tmp_path, 0, method=method)
    assert main([str(tmp_path), "--no-plot", "--strict"]) == 0
    next(tmp_path.glob("imp*/config.yaml")).unlink()
    assert judged(tmp_path)[0].lines[0].endswith("; equal where recorded: " + EQUAL)
    next(tmp_path.glob("lth*/config.yaml")).unlink()
    assert judged(tmp_path)[0].lines[0].endswith("; equal: dense control, training cost, seeds")
    capsys.readouterr()
    assert main([str(tmp_path), "--no-plot", "--strict"]) == 1
    assert capsys.readouterr().err.endswith("lenet300 on digits: options not recorded\n")


def test_a_dense_row_is_a_control_and_costs_what_it_costs(tmp_path):
    a_run(tmp_path, 0, method="imp", images=5000)
    a_run(tmp_path, 0, method="dense", protocol="dense", target=0.0, top1=0.9)
    assert told(tmp_path) == {}
