"""Configuration and constructors agree, everything composes, and run ids do not change by accident."""

import inspect
import re
from itertools import zip_longest

import pytest
import yaml
from hydra.utils import get_object

from prunebench import config, overview
from tests.conformance import kit

CONF = config.conf_directory()
FILES = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("*/*.yaml"))
GROUPS = sorted({f.split("/")[0] for f in FILES})


def targets(node, path=""):
    """(path, node) of everything that has a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from targets(child, f"{path}.{key}".strip("."))


CALLED = [(f, p, n) for f in FILES for p, n in targets(yaml.safe_load((CONF / f"{f}.yaml").read_text()))]


@pytest.mark.parametrize(("file", "path", "node"), CALLED, ids=[f"{f}:{p}" for f, p, _ in CALLED])
def test_every_option_of_a_constructor_is_in_the_yaml_and_vice_versa(file, path, node):
    """Of torch's optimizers the YAML names what changes the result; fused and the like are the code's."""
    options = set(inspect.signature(get_object(node["_target_"])).parameters)
    given = {key for key in node if not key.startswith("_")}
    assert given <= options
    if node["_target_"].startswith("prunebench."):
        assert options - given <= config.GIVEN_BY_CODE


@pytest.mark.parametrize("file", FILES)
def test_every_yaml_has_a_description_that_prune_run_list_prints(file):
    group, name = file.split("/")
    line = overview.options(group)[name]
    assert 10 <= len(line) <= 120
    assert not line.endswith(".")


def test_every_group_with_files_is_known_and_every_known_group_is_a_folder():
    assert set(GROUPS) - {"recipe"} <= set(config.GROUPS)
    assert all((CONF / group).is_dir() or group in ("companion", "experiment") for group in config.GROUPS)


def commands() -> list[tuple[str, ...]]:
    """Command lines that together choose every file; groups that know nothing of each other share one."""
    apart = ("model", "dataset", "optimizer", "schedule", "retrain", "criterion", "trainer", "sparsity")
    columns = [[f"{group}={name}" for name in overview.options(group)] for group in apart]
    lines = [tuple(filter(None, row)) for row in zip_longest(*columns)]
    for file in FILES:
        group, name = file.split("/")
        if group == "recipe":
            dataset = next(d for d in overview.options("dataset") if name.startswith(f"{d}_"))
            lines.append((f"dataset={dataset}", f"model={name[len(dataset) + 1 :]}"))
        elif group in ("companion", "metrics", "tracker"):
            lines.append((f"{group}=[{name}]",))
        elif group not in apart:
            lines.append((f"{group}={name}",))
    return [(*line, *(["dataset.root=/data"] if "dataset=image_folder" in line else [])) for line in lines]


@pytest.mark.parametrize("overrides", commands(), ids=" ".join)
def test_every_yaml_composes_and_passes_the_check(overrides):
    cfg = kit.composed(overrides)
    assert config.problems(cfg, (), kit.choices_of(cfg)) == []
    recipe = CONF / "recipe" / f"{cfg.hydra.runtime.choices['recipe']}.yaml"
    if recipe.exists():
        chosen = yaml.safe_load(recipe.read_text())
        assert {k: kit.plain_of(overrides)["recipe"][k] for k in chosen} == chosen


def test_every_recipe_is_of_a_dataset_and_a_model():
    pairs = {f"{d}_{m}" for d in overview.options("dataset") for m in overview.options("model")}
    assert set(overview.options("recipe")) <= pairs


def test_the_groups_of_a_configuration_are_all_in_the_root():
    groups = set(kit.plain_of(())) - {"seed", "out", "plan", "recipe"}
    assert groups == set(config.GROUPS) - {"experiment"}


# Somebody's results lie in directories with these ids. If this test falls because an option came in, give it
# a default that means "as before" and enter that in `config.LATER`: then the old ids stay. Only if a default
# was changed on purpose, so that the same command computes something else, pin anew: paste the id that the
# failure message shows.
PINNED = {
    (): "d06f841a04",
    ("method=lth", "seed=1", "sparsity.rounds=7"): "b440180751",
    ("method=one_shot", "dataset=cifar10", "model=resnet20", "optimizer=adamw", "retrain=llr"): "e69ca944f1",
}


@pytest.mark.parametrize("overrides", PINNED, ids=["default", "lth", "one_shot"])
def test_run_ids_are_those_of_earlier_versions(overrides):
    assert config.run_id(kit.plain_of(overrides)) == PINNED[overrides]


@pytest.mark.parametrize(
    "same",
    [
        "out=elsewhere",
        "plan=true",
        "trainer.device=cpu",
        "trainer.threads=2",
        "trainer.share=none",
        "trainer.quiet=true",
        "tracker=[tensorboard,wandb,mlflow]",
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_run_id(same):
    assert config.run_id(kit.plain_of((same,))) == config.run_id(kit.plain_of(()))


@pytest.mark.parametrize(
    "other", ["seed=1", "sparsity.target=0.5", "optimizer.lr=0.3", "trainer.batch_size=10"]
)
def test_what_can_change_a_result_changes_the_run_id(other):
    assert config.run_id(kit.plain_of((other,))) != config.run_id(kit.plain_of(()))


def test_an_option_that_came_later_leaves_old_ids_as_they_were(monkeypatch):
    old = kit.plain_of(())
    new = old | {"sparsity": old["sparsity"] | {"jitter": 0.0}}
    assert config.run_id(new) != config.run_id(old)
    monkeypatch.setitem(config.LATER, "sparsity.jitter", 0.0)
    assert config.run_id(new) == config.run_id(old)
    used = old | {"sparsity": old["sparsity"] | {"jitter": 0.1}}
    assert config.run_id(used) != config.run_id(old)


def test_run_ids_are_ten_hex_digits():
    assert re.fullmatch("[0-9a-f]{10}", config.run_id(kit.plain_of(())))
