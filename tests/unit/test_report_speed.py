"""What makes prune-report quick and small: no answer depends on it."""

import csv
import json

import pytest

from prunebench.report import all_rounds, configuration, lazy, read
from prunebench.report.configuration import read_configuration
from prunebench.report.lazy import RoundsOnDisk, flat, keys_of, known, seconds_until
from prunebench.report.read import load
from tests.unit.test_report import a_round, put, refused, rounds_to, run, three_seeds

OPTIONS = [[], ["--rounds"], ["--remaining", "all"], ["--pareto"], ["--metric", "valid/top1"]]


def written(root, capsys, out, *options):
    """Everything that the command says and writes, without pictures."""
    code, said, err = run(capsys, root, "--out", out, "--format", "table,csv,md", "--no-plot", *options)
    assert code == 0, err
    files = {path.name: path.read_text() for path in sorted(out.iterdir())}
    return said, files


@pytest.mark.parametrize("options", OPTIONS)
def test_a_report_is_the_same_whether_or_not_rounds_are_held(tmp_path, capsys, monkeypatch, options):
    root = tmp_path / "runs"
    three_seeds(root)
    for target in (0.5, 0.9):
        rounds = [row | {"valid": row["test"]} for row in rounds_to(target, 0.7, rounds=3)]
        put(root, f"lth-{target}", rounds, method="lth")
    put(root, "partial", rounds_to(0.9, 0.8, rounds=3)[:2], done=False, seed=7)
    held = written(root, capsys, tmp_path / "out", *options)
    for limit in (0, 9):
        monkeypatch.setattr(read, "HELD", limit)
        assert any(isinstance(run.rounds, RoundsOnDisk) for run in load([str(root)]).runs)
        assert written(root, capsys, tmp_path / "out", *options) == held


def test_rounds_on_disk_are_those_in_memory(tmp_path):
    rounds = [*rounds_to(0.9, 0.8, rounds=4)]
    lazily = RoundsOnDisk(put(tmp_path, "a", rounds), rounds)
    assert len(lazily) == 5
    assert list(lazily) == rounds
    assert lazily[1:3] == rounds[1:3]
    assert [lazily[-1], lazily[4], lazily[-2], lazily[0]] == [rounds[i] for i in (4, 4, 3, 0)]
    assert keys_of(lazily) == keys_of(rounds)
    assert [seconds_until(lazily, i) for i in range(5)] == [seconds_until(rounds, i) for i in range(5)]
    with pytest.raises(IndexError):
        lazily[5]


def test_the_last_round_needs_no_file(tmp_path):
    directory = put(tmp_path, "a", rounds_to(0.9, 0.8))
    lazily = RoundsOnDisk(directory, rounds_to(0.9, 0.8))
    (directory / "result.json").unlink()
    assert lazily[-1]["asked"] == 0.9
    with pytest.raises(ValueError, match="cannot be read again"):
        lazily[0]


def test_a_run_that_changes_under_the_report_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(read, "HELD", 0)
    directory = put(tmp_path, "a", rounds_to(0.9, 0.8, rounds=3))
    load_ = read.load

    def then_change(directories):
        found = load_(directories)
        put(tmp_path / "again", "a", rounds_to(0.9, 0.8))
        (tmp_path / "again" / "a" / "result.json").replace(directory / "result.json")
        return found

    monkeypatch.setattr("prunebench.report.cli.load", then_change)
    lazy._rounds.cache_clear()
    message = refused(capsys, tmp_path, "--no-plot", "--rounds")
    assert message.endswith("/a: has changed since prune-report began; start it again\n")


# report.csv


def test_the_keys_of_rounds_come_once_in_their_order():
    rounds = [
        {"a": 1, "b": None, "c": {"x": 1}},
        {"a": 1, "b": {"y": 2, "z": None}, "c": {"x": 1}, "d": [1, 2]},
    ]
    assert keys_of(rounds) == ("a", "c.x", "b.y", "b.z", "d")
    assert [known(row) for row in rounds] == [
        {"a": 1, "c.x": 1},
        {"a": 1, "b.y": 2, "b.z": None, "c.x": 1, "d": "1+2"},
    ]


def test_a_key_that_hides_deep_in_a_round_has_its_column_too(tmp_path):
    rounds = [row | {"more": {"deep": {f"key{i}": i}}} for i, row in enumerate(rounds_to(0.9, 0.8, rounds=3))]
    put(tmp_path, "a", rounds)
    runs = load([str(tmp_path)]).runs
    all_rounds.write_csv(tmp_path / "all.csv", runs, ["a"])
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[row[f"more.deep.key{i}"] for i in range(4)] for row in rows] == [
        [str(i) if i == place else "" for i in range(4)] for place in range(4)
    ]
    assert {row["asked"] for row in rows} == {str(row["asked"]) for row in rounds}


def test_flat_takes_scalars_and_lists_of_them():
    tree = {"a": 1, "b": {"c": 2.5, "d": {"e": None}}, "f": [1, "x"], "g": [{"h": 1}], "i": True, "j": []}
    assert flat(tree) == {"a": 1, "b.c": 2.5, "b.d.e": None, "f": "1+x", "i": True, "j": ""}


# config.yaml


WHOLE = """\
model: {widths: null, _target_: a}
optimizer:
  lr: 5e-4
  betas:
  - 0.9
  - 0.999
sparsity:
  exclude: []
  note: "one
    two"
top: [1, 2]
list:
- a
- b
"""


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        "# a remark\n" + WHOLE,
        WHOLE + "again: &mark {x: 1}\nother: *mark\n",
        "---\n" + WHOLE,
        WHOLE + "# a remark\nlast: 1\n",
        WHOLE + 'odd: "begins\nand: ends"\n',
        WHOLE + "top: 3\n",
        WHOLE + "'quoted key': 1\nlast: 2\n",
    ],
)
def test_a_configuration_in_sections_is_that_in_one_piece(tmp_path, text):
    import yaml

    (tmp_path / "config.yaml").write_text(text)
    whole = {
        key: value for key, value in configuration._flat(yaml.safe_load(text)) if configuration.matters(key)
    }
    assert read_configuration(tmp_path) == whole


@pytest.mark.parametrize("text", ["", "a: [1\nb: 2\n", "just words", "- a\n- b\n", "a: 1\n\tb: 2\n"])
def test_a_damaged_configuration_is_none(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert read_configuration(tmp_path) is None


def test_runs_of_one_configuration_hold_it_once(tmp_path):
    for seed in (0, 1):
        directory = tmp_path / str(seed)
        directory.mkdir()
        (directory / "config.yaml").write_text(f"{WHOLE}seed: {seed}\n")
    assert read_configuration(tmp_path / "0") is read_configuration(tmp_path / "1")


# Finding runs


def test_a_run_that_is_reached_through_a_link_is_read_once(tmp_path):
    put(tmp_path / "real", "a", [a_round(0, 0.0, 0.9)])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = load([str(tmp_path / "link"), str(tmp_path / "real"), str(tmp_path / "real" / "a")])
    assert [run.directory for run in found.runs] == [tmp_path / "link" / "a"]


def test_words_of_many_runs_are_held_once(tmp_path):
    for seed in (0, 1):
        put(tmp_path, str(seed), rounds_to(0.9, 0.8), seed=seed, model="a_model_of_its_own")
    one, two = load([str(tmp_path)]).runs
    assert one.identity["model"] is two.identity["model"]
    assert all(a is b for a, b in zip(one.identity, two.identity))
    assert json.loads(json.dumps(one.identity)) == one.identity
