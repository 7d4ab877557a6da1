"""Published numbers: shown beside runs with the paper's settings, and beside no others."""

import json
from pathlib import Path

import pytest
import yaml

from prunebench.report import published as module
from prunebench.report.published import entries
from tests.unit.test_report import a_round, put, run

# Renda et al., learning-rate rewinding by the whole of training, as a user would configure it.
SETTINGS = {
    "dataset": {"validation": 0.0, "subset": None, "test_subset": None, "size": None, "pad": 4, "flip": True},
    "optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
    "schedule": {"milestones": [0.5, 0.75], "gamma": 0.1, "warmup": 0.0},
    "trainer": {"batch_size": 128, "decay": "weights", "label_smoothing": 0.0},
    "sparsity": {"rate": 0.2, "allocation": "global", "granularity": "weight", "exclude": []},
    "protocol": {"dense": "182ep", "retrain": "182ep", "weights": "keep", "keep": "last", "patience": None},
}
SETTINGS["dataset"] |= {"label_noise": 0.0}
SETTINGS["protocol"] |= {"control": "none", "peaks": None, "rewind_to": "0it"}
WHO = {"model": "resnet20", "dataset": "cifar10", "method": "lth", "optimizer": "sgd", "schedule": "step"}
WHO |= {"retrain": "lrw", "sparsity": {"target": None, "rate": 0.2, "rounds": 10}}
ROUNDS = [a_round(i, 1 - 0.8**i, 0.9, 0.92) for i in range(11)]


def a_run(root, name="a", *, seed=0, changed=(), config=True, **who):
    """A run with the paper's settings, except for the options in `changed`: dotted key -> value."""
    directory = put(root, name, ROUNDS, seed=seed, **(WHO | who))
    content = json.loads(json.dumps(SETTINGS))
    for key, value in dict(changed).items():
        group, _, option = key.partition(".")
        content[group][option] = value
    if config:
        (directory / "config.yaml").write_text(yaml.safe_dump({**content, "seed": seed}))
    return directory


def shown(capsys, root, *arguments):
    """The rows of published numbers, and all that was printed."""
    _, out, _ = run(capsys, root, "--no-plot", "--remaining", "100,32.8,10.7", *arguments)
    return [line.split() for line in out.splitlines() if line.startswith("  published")], " ".join(
        out.split()
    )


def test_a_number_stands_under_a_label_with_its_settings(tmp_path, capsys):
    for seed in (0, 1):
        a_run(tmp_path, f"{seed}", seed=seed)
    rows, out = shown(capsys, tmp_path)
    assert rows == [["published", "[1]", "91.71", "-", "-"], ["published", "[2]", "-", "-", "91.01"]]
    assert "[1] published: Renda, Frankle, Carbin 2020 (arXiv 2003.02389), result files of" in out
    assert "dense, mean (std 0.23)" in out
    assert "median of 3" in out
    assert "| published [2] | - | - | 91.01 |" in (tmp_path / "remaining.md").read_text()


def test_the_difference_to_a_published_number_stands_below_it(tmp_path, capsys):
    for seed in (0, 1):
        a_run(tmp_path, f"{seed}", seed=seed)
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "100,32.8,10.7")
    lines = [line.split() for line in out.splitlines()]
    ours = next(line for line in lines if line[:1] == ["lth"])
    minus = [line for line in lines if line[:2] == ["minus", "published"]]
    dense = float(ours[1]) - 91.71
    assert minus[0] == ["minus", "published", "[1]", f"{dense:+.2f}", "-", "-"]
    assert len(minus) == 2 and minus[1][3:5] == ["-", "-"]


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({"retrain": "ft"}, "89.32"),
        ({"retrain": "ft", "changed": {"protocol.retrain": "10ep"}}, "88.52"),
        ({"retrain": "same", "changed": {"protocol.weights": "init", "protocol.retrain": None}}, "86.68"),
        (
            {
                "changed": {
                    "protocol.weights": "rewind",
                    "protocol.rewind_to": "4701it",
                    "protocol.retrain": None,
                }
            },
            "91.00",
        ),
        ({"protocol": "one_shot", "method": "one_shot"}, "89.02"),
    ],
)
def test_each_way_to_retrain_has_its_own_number(tmp_path, capsys, changed, value):
    a_run(tmp_path, **changed)
    rows, _ = shown(capsys, tmp_path)
    assert rows[1][-1] == value


@pytest.mark.parametrize(
    "changed",
    [
        {"protocol.dense": "160ep"},
        {"optimizer.lr": 0.05},
        {"optimizer.weight_decay": 1e-4},
        {"trainer.batch_size": 64},
        {"dataset.subset": 10000},
        {"dataset.validation": 0.1},
        {"dataset.label_noise": 0.2},
        {"sparsity.granularity": "filter"},
        {"protocol.keep": "best"},
    ],
)
def test_one_setting_that_differs_hides_the_number_and_is_named(tmp_path, capsys, changed):
    a_run(tmp_path, changed=changed)
    rows, out = shown(capsys, tmp_path)
    assert rows == []
    assert "[1]" not in out
    assert "resnet20 on cifar10: Renda, Frankle, Carbin 2020 published numbers; to compare with them" in out
    assert f"imp would need {next(iter(changed))}=".replace("imp", "lth") in out


@pytest.mark.parametrize("who", [{"model": "resnet56"}, {"dataset": "cifar100"}, {"companion": ["ap"]}])
def test_another_network_data_set_or_companion_has_no_number_of_it(tmp_path, capsys, who):
    a_run(tmp_path, **who)
    rows, _ = shown(capsys, tmp_path)
    assert not any({"91.71", "91.01"} & set(row) for row in rows)


def test_one_run_of_a_label_that_differs_hides_the_number(tmp_path, capsys):
    a_run(tmp_path, "a", seed=0)
    a_run(tmp_path, "b", seed=1, config=False)
    assert shown(capsys, tmp_path)[0] == []


def test_without_config_yaml_there_is_no_number(tmp_path, capsys):
    a_run(tmp_path, config=False)
    assert shown(capsys, tmp_path)[0] == []


def test_a_number_needs_a_column_with_its_share_of_weights(tmp_path, capsys):
    a_run(tmp_path)
    _, out, _ = run(capsys, tmp_path, "--no-plot", "--remaining", "32.8,13.4")
    assert "published [" not in out


def test_other_metrics_than_top1_have_no_published_number(tmp_path, capsys):
    a_run(tmp_path)
    rows, out = shown(capsys, tmp_path, "--metric", "loss")
    assert rows == []
    assert "published:" not in out


def test_silo_and_ap_have_no_known_number_which_is_said_in_one_line(tmp_path, capsys):
    a_run(tmp_path, "silo", schedule="silo")
    a_run(tmp_path, "ap", companion=["ap"])
    _, out = shown(capsys, tmp_path)
    assert "no published number is known for SILO (arXiv 2212.06144), AP (arXiv 2212.06145)" in out
    assert out.count("no published number") == 1


def test_other_methods_say_nothing_of_it(tmp_path, capsys):
    a_run(tmp_path, dataset="digits")
    assert "published" not in shown(capsys, tmp_path)[1]


def test_every_entry_says_whose_it_is_what_it_is_and_when_it_is_comparable():
    assert len(entries()) > 20
    for entry in entries():
        assert {"model", "dataset", "companion", "protocol"} <= set(entry.where)
        assert all(0 < share <= 1 and 0 < top1 < 1 for share, top1 in entry.values.items())
        assert entry.paper
        assert entry.source
        assert entry.what
        assert entry.arxiv.replace(".", "").isdigit()


def test_the_file_is_where_the_package_is():
    path = Path(module.__file__).with_name("published.json")
    assert json.loads(path.read_text())["papers"]
    assert max(map(len, path.read_text().splitlines())) <= 110


def test_no_two_entries_of_one_footnote_claim_the_same_cell():
    seen = set()
    for entry in entries():
        for share in entry.values:
            key = (entry.footnote, share, json.dumps({k: list(v) for k, v in sorted(entry.where.items())}))
            assert key not in seen
            seen.add(key)


@pytest.mark.parametrize("group", ["dataset", "optimizer", "schedule", "trainer", "sparsity", "protocol"])
def test_every_option_that_is_asked_for_exists(group):
    """A setting that no configuration has would hide its number for ever."""
    conf = Path(module.__file__).parents[2] / "conf"
    known = set()
    for path in (conf / group).glob("*.yaml"):
        known |= set(yaml.safe_load(path.read_text()) or {})
    asked = {
        key.partition(".")[2] for entry in entries() for key in entry.where if key.startswith(f"{group}.")
    }
    assert asked
    assert asked <= known
