"""What runs are called: one name for one configuration, whatever the seed; another for another."""

import json
import shutil

import pytest
import yaml

from prunebench import config
from prunebench.report import configuration
from prunebench.report.configuration import canonical, matters, read_configuration
from prunebench.report.group import labels, repeated, summarise
from prunebench.report.read import load
from prunebench.report.table import Column, table
from tests.unit.test_report import put, rounds_to, run


def a_run(root, name, *, seed=0, typed=(), options=None, target=0.9, **who):
    """A finished run with the config.yaml that the nested `options` describe, if any."""
    typed = [*typed, f"seed={seed}"]
    directory = put(root, name, rounds_to(target, 0.88), seed=seed, overrides=typed, **who)
    if options is not None:
        (directory / "config.yaml").write_text(yaml.safe_dump({**options, "seed": seed, "out": str(root)}))
    return directory


def named(root):
    """Directory name -> label."""
    runs = load([str(root)]).runs
    return {run.directory.name: name for run, name in zip(runs, labels(runs))}


def options(lr=0.1, *, dense="4ep", **more):
    tree = {"optimizer": {"lr": lr}, "sparsity": {"target": 0.9, "min_kept": 1}, "protocol": {"dense": dense}}
    return tree | {"recipe": {"lr": 0.1}, "trainer": {"batch_size": 64, "device": "auto"}} | more


def test_a_sweep_over_schedules_is_named_by_the_schedule_alone(tmp_path):
    for schedule in ("silo", "cosine"):
        for seed in (0, 1):
            a_run(tmp_path, f"{schedule}{seed}", seed=seed, method="lth", schedule=schedule)
    assert set(named(tmp_path).values()) == {"lth silo", "lth cosine"}


def test_a_sweep_over_criteria_is_named_by_the_criterion_and_none_says_of_what(tmp_path):
    for criterion in ("snip", "none"):
        a_run(tmp_path, criterion, criterion=criterion)
    assert named(tmp_path) == {"snip": "imp snip", "none": "imp criterion=none"}


def test_companion_modes_are_named_and_what_is_constant_is_not(tmp_path):
    for seed, mode in enumerate(("pro", "lite")):  # they share no seed
        typed = ["method=lth", "companion=[ap]", f"companion.ap.mode={mode}", "optimizer.lr=0.05"]
        a_run(tmp_path, mode, seed=seed, typed=typed, method="lth", companion=["ap"])
    assert named(tmp_path) == {"pro": "lth+ap mode=pro", "lite": "lth+ap mode=lite"}


def test_runs_with_a_companion_say_the_schedule_in_which_runs_without_it_differ(tmp_path):
    a_run(tmp_path, "silo", method="lth", schedule="silo")
    a_run(tmp_path, "cosine", method="lth", schedule="cosine")
    a_run(tmp_path, "ap", method="lth", schedule="silo", companion=["ap"])
    assert named(tmp_path)["ap"] == "lth+ap silo"


def test_the_iterative_protocol_goes_without_saying(tmp_path):
    a_run(tmp_path, "plain", method="lth", schedule="silo")
    a_run(tmp_path, "search", method="lth", schedule="step", protocol="oracle")
    assert named(tmp_path) == {"plain": "lth silo", "search": "lth oracle step"}


def test_values_that_share_no_seed_are_never_averaged_together(tmp_path):
    for seed, lr in enumerate((0.1, 0.1, 0.2)):
        a_run(tmp_path, f"{seed}", seed=seed, typed=[f"optimizer.lr={lr}"])
    runs = load([str(tmp_path)]).runs
    rows = summarise(runs, labels(runs), "top1")
    assert [(row["method"], row["n"]) for row in rows] == [("imp lr=0.1", 2), ("imp lr=0.2", 1)]


def test_the_same_command_line_with_other_seeds_has_one_label(tmp_path):
    for seed in range(3):
        for lr in (0.1, 0.2):
            typed = [f"optimizer.lr={lr}", "protocol.dense=4ep", "trainer.quiet=True", f"out=/tmp/{seed}"]
            a_run(tmp_path, f"{lr}-{seed}", seed=seed, typed=typed, options=options(lr))
    assert {name.partition("-")[0]: label for name, label in named(tmp_path).items()} == {
        "0.1": "imp lr=0.1",
        "0.2": "imp lr=0.2",
    }
    assert len(set(named(tmp_path).values())) == 2


@pytest.mark.parametrize(
    "typed",
    ["trainer.device=cpu", "trainer.threads=1", "trainer.share=none", "metrics=[spread]", "dataset.root=/a"],
)
def test_what_cannot_change_a_result_is_no_difference(tmp_path, typed):
    data = {"dataset": {"root": "data", "download": False}}
    a_run(tmp_path, "a", seed=0, typed=[typed], options=options(**data))
    a_run(tmp_path, "b", seed=1, options=options(**data))
    assert set(named(tmp_path).values()) == {"imp"}


def test_the_folder_of_an_image_folder_is_a_difference(tmp_path):
    for name in ("cats", "dogs"):
        a_run(tmp_path, name, typed=[f"dataset.root=/{name}"], options=options(dataset={"root": f"/{name}"}))
    assert named(tmp_path) == {"cats": "imp root=/cats", "dogs": "imp root=/dogs"}


def test_what_one_run_typed_and_the_other_has_by_default_is_no_difference(tmp_path):
    a_run(tmp_path, "typed", seed=0, typed=["optimizer.lr=1e-1"], options=options(0.1))
    a_run(tmp_path, "default", seed=1, options=options(0.1))
    assert set(named(tmp_path).values()) == {"imp"}


def test_without_config_yaml_what_only_others_typed_is_called_default(tmp_path):
    a_run(tmp_path, "typed", seed=0, typed=["optimizer.lr=0.1"])
    a_run(tmp_path, "default", seed=1)
    assert named(tmp_path) == {"typed": "imp lr=0.1", "default": "imp lr=default"}


def test_a_difference_that_nobody_typed_is_found_in_config_yaml(tmp_path):
    a_run(tmp_path, "old", seed=0, options=options(0.1))
    a_run(tmp_path, "new", seed=1, options=options(0.2))
    assert named(tmp_path) == {"old": "imp lr=0.1", "new": "imp lr=0.2"}


def test_as_few_untyped_options_as_tell_the_runs_apart_are_named(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        mirror = {"schedule": {"base": lr}, "method": {"lr": lr}}
        a_run(tmp_path, name, seed=0, options=options(lr, **mirror))
    assert set(named(tmp_path).values()) == {"imp lr=0.1", "imp lr=0.2"}


def test_an_experiment_explains_all_that_it_sets(tmp_path):
    a_run(tmp_path, "a", typed=["experiment=one"], options=options(0.1, dense="4ep"))
    a_run(tmp_path, "b", typed=["experiment=two"], options=options(0.2, dense="8ep"))
    assert named(tmp_path) == {"a": "imp experiment=one", "b": "imp experiment=two"}


def test_an_experiment_spelled_out_by_hand_is_no_difference(tmp_path):
    a_run(tmp_path, "a", seed=0, typed=["experiment=one"], options=options(0.2))
    a_run(tmp_path, "b", seed=1, typed=["optimizer.lr=0.2"], options=options(0.2))
    assert set(named(tmp_path).values()) == {"imp"}


def test_an_option_of_a_later_version_is_no_difference(tmp_path):
    a_run(tmp_path, "old", seed=0, options=options())
    a_run(tmp_path, "new", seed=1, options=options(method={"iterations": 1}))
    assert set(named(tmp_path).values()) == {"imp"}


@pytest.mark.parametrize("typed", [True, False])
def test_options_that_hold_other_keys_are_a_difference(tmp_path, typed):
    for seed, rates in enumerate(({"conv*": 0.1}, {"fc*": 0.1}, {"conv*": 0.1})):
        overrides = [f"sparsity.layer_rates={json.dumps(rates)}"] if typed else []
        tree = options() | {"sparsity": {"layer_rates": rates}}
        a_run(tmp_path, f"{seed}", seed=seed, typed=overrides, options=tree)
    by_run = named(tmp_path)
    assert by_run == {
        "0": "imp layer_rates={conv*:0.1}",
        "1": "imp layer_rates={fc*:0.1}",
        "2": "imp layer_rates={conv*:0.1}",
    }


def test_an_option_that_follows_the_seed_is_no_difference_but_one_of_its_own_is(tmp_path):
    for seed in (0, 1):
        tree = options(dataset={"noise_seed": seed})
        a_run(tmp_path, f"{seed}", seed=seed, typed=["dataset.noise_seed=${seed}"], options=tree)
    assert set(named(tmp_path).values()) == {"imp"}
    a_run(tmp_path, "other", seed=1, options=options(dataset={"noise_seed": 0}))
    assert named(tmp_path)["other"] == named(tmp_path)["0"] == "imp noise_seed=0"
    assert named(tmp_path)["1"] == "imp noise_seed=1"


def test_sweeps_over_the_sparsity_asked_have_a_column_and_no_word(tmp_path):
    for target in (0.5, 0.9):
        tree = options() | {"sparsity": {"target": target}, "protocol": {"target": target}}
        a_run(tmp_path, f"{target}", typed=[f"sparsity.target={target}"], options=tree, target=target)
    assert set(named(tmp_path).values()) == {"imp"}


def test_what_differs_on_one_model_is_named_on_all_and_what_differs_between_models_is_not(tmp_path):
    for model, lr, dense in (("m", 0.1, "4ep"), ("m", 0.2, "4ep"), ("n", 0.1, "9ep")):
        typed = [f"optimizer.lr={lr}", f"protocol.dense={dense}"]
        a_run(tmp_path, f"{model}{lr}", typed=typed, options=options(lr, dense=dense), model=model)
    assert named(tmp_path) == {"m0.1": "imp lr=0.1", "m0.2": "imp lr=0.2", "n0.1": "imp lr=0.1"}


def test_settings_that_differ_only_between_data_sets_are_not_named(tmp_path):
    for dataset, schedule in (("digits", "cosine"), ("cifar10", "step")):
        a_run(tmp_path, dataset, dataset=dataset, schedule=schedule)
    assert set(named(tmp_path).values()) == {"imp"}
    a_run(tmp_path, "other", dataset="digits", schedule="step")
    assert named(tmp_path) == {"digits": "imp cosine", "cifar10": "imp step", "other": "imp step"}


def test_words_that_two_options_share_or_a_setting_has_are_told_apart(tmp_path):
    for a, b, c in ((1, 2, "5ep"), (2, 1, "9ep")):
        typed = [f"sparsity.min_kept={a}", f"companion.ap.min_kept={b}", f"recipe.retrain={c}"]
        a_run(tmp_path, f"{a}", typed=typed, companion=["ap"])
    assert named(tmp_path)["1"] == "imp+ap sparsity.min_kept=1 ap.min_kept=2 recipe.retrain=5ep"


def test_a_long_value_is_left_out_where_a_short_one_tells_as_much(tmp_path):
    for lr, grid in ((0.1, "[0.1,0.2,0.3,0.4]"), (0.2, "[0.5,0.6,0.7,0.8]")):
        a_run(tmp_path, f"{lr}", typed=[f"protocol.grid={grid}", f"optimizer.lr={lr}"])
    assert named(tmp_path) == {"0.1": "imp lr=0.1", "0.2": "imp lr=0.2"}
    a_run(tmp_path, "third", typed=["protocol.grid=[0.9,0.91,0.92]", "optimizer.lr=0.1"])
    assert named(tmp_path)["third"] == "imp grid=[0.9,0.91,0.92] lr=0.1"


def test_copies_of_a_run_are_counted(tmp_path, capsys):
    directory = a_run(tmp_path, "a", options=options())
    shutil.copytree(directory, tmp_path / "copy")
    runs = load([str(tmp_path)]).runs
    assert repeated(runs, labels(runs)) == 1
    assert "1 run repeats a seed of their row: copies" in run(capsys, tmp_path, "--no-plot")[1]


def test_the_options_that_cannot_matter_are_those_that_ids_leave_out():
    assert set(configuration.IRRELEVANT) == set(config.NOT_IN_ID) - {"recipe"} | {"seed"}
    assert set(configuration.IRRELEVANT_OF_TRAINER) == set(config.NOT_IN_ID_OF_TRAINER)
    assert not matters("trainer.device")
    assert matters("optimizer.device")
    assert matters("trainer.batch_size")


def test_a_configuration_is_read_as_a_yaml_library_reads_it(tmp_path):
    content = options(dataset={"name": "x", "mean": [0.5, 1e-4], "flip": True, "size": None, "pad": {}})
    content |= {"out": "a folder with spaces " * 9, "seed": 3, "method": {"rule": {"deep": "a: b"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    read = read_configuration(tmp_path)
    assert read["dataset.mean"] == "[0.5,0.0001]"
    assert (read["dataset.flip"], read["dataset.size"], read["dataset.pad"]) == ("true", "null", "{}")
    assert read["method.rule.deep"] == "a: b"
    assert not {"seed", "out", "trainer.device"} & set(read)


def test_a_missing_or_damaged_configuration_is_unknown(tmp_path):
    assert read_configuration(tmp_path) is None
    (tmp_path / "config.yaml").write_text("a: [1\nb: }")
    assert read_configuration(tmp_path) is None


def test_one_value_has_one_text():
    assert {canonical(v) for v in (0.1, "0.1", "1e-1", ".1", "+0.10")} == {"0.1"}
    assert {canonical(v) for v in (2, 2.0, "2", "2.0")} == {"2"}
    assert canonical("None") != canonical(None) == canonical("null") == "null"
    assert canonical("'40ep'") == canonical("40ep") == "40ep"


def test_labels_that_would_look_the_same_go_on_in_lines_of_their_own():
    columns = [Column("name", "name", text=True), Column("n", "n")]
    rows = [{"name": f"lth with many options share={share} and more of them", "n": 3} for share in (1, 2)]
    lines = table(columns, rows, width=34)
    assert max(map(len, lines)) <= 34
    told = " ".join(" ".join(line.removesuffix(" 3").split()) for line in lines[2:])
    for row in rows:
        assert f"share{row['name'].split('share')[1]}" in told
    assert ".." not in told
