"""Trees of finished runs that nobody trained: copies of a real one with other seeds, options and numbers."""

import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEEDS = 5
TARGETS = (0.5, 0.8, 0.9, 0.95, 0.98)
CRITERIA = ("magnitude", "random", "snip", "synflow", "lamp")
LINKED = 10_000  # runs whose metrics.jsonl is one file
TEXTS = ("config.yaml", "overrides.json", "identity.json", "result.json")
OPTIONS = {  # line of config.yaml -> what stands there
    r"^seed: ()": "seed",
    r"^criterion:\n(?:  .*\n)*?  _target_: ()": "criterion",
    r"^optimizer:\n(?:  .*\n)*?  lr: ()": "lr",
    r"^sparsity:\n(?:  .*\n)*?  target: ()": "target",
}


class Which(NamedTuple):
    """What distinguishes a run of the tree from the others."""

    seed: int
    target: float
    criterion: str
    lr: float


def runs_of_tree() -> Iterator[Which]:
    """The runs of a tree: 125 for every learning rate, 5 criteria at 5 sparsities with 5 seeds."""
    for number in itertools.count(1):
        for criterion, target, seed in itertools.product(CRITERIA, TARGETS, range(SEEDS)):
            yield Which(seed, target, criterion, number / 1000)


def write_tree(root: Path, template: Path, runs: int) -> None:
    """Write so many run directories under `root`.

    Every file has the form and the size of the template's. metrics.jsonl is a copy, with the template's
    numbers, and takes the room of one for many runs.

    Args:
      root: made if missing.
      template: the directory of a finished run of several rounds with `sparsity.target`.
      runs: directories to write.
    """
    texts = {name: (template / name).read_text() for name in TEXTS}
    results = {target: _result(json.loads(texts["result.json"]), target) for target in TARGETS}
    noise = random.Random(0)
    for number, which in enumerate(itertools.islice(runs_of_tree(), runs)):
        name = f"{number:010x}"
        directory = root / f"imp-lenet300-{name}"
        directory.mkdir(parents=True)
        identity = json.loads(texts["identity.json"])
        identity |= {"id": name, "seed": which.seed, "criterion": which.criterion}
        identity["sparsity"] |= {"target": which.target}
        typed = [f"{key}={value}" for key, value in _typed(which).items()]
        result = results[which.target].replace("@id", name).replace("@criterion", which.criterion)
        result = result.replace('"@seed"', str(which.seed))
        result = re.sub(r'"@([\d.]+)"', lambda found: repr(float(found[1]) + noise.gauss(0, 0.004)), result)
        (directory / "config.yaml").write_text(_config(texts["config.yaml"], which))
        (directory / "overrides.json").write_text(
            json.dumps([*json.loads(texts["overrides.json"]), *typed], indent=1)
        )
        (directory / "identity.json").write_text(json.dumps(identity, indent=1))
        (directory / "result.json").write_text(result)
        if number % LINKED == 0:
            linked = shutil.copy(template / "metrics.jsonl", directory)
        else:
            os.link(linked, directory / "metrics.jsonl")


def _typed(which: Which) -> dict[str, object]:
    return {
        "criterion": which.criterion,
        "optimizer.lr": which.lr,
        "sparsity.target": which.target,
        "seed": which.seed,
    }


def _config(text: str, which: Which) -> str:
    for pattern, key in OPTIONS.items():
        found = re.search(pattern, text, re.MULTILINE)
        end = text.index("\n", found.end())
        text = f"{text[: found.end()]}{getattr(which, key)}{text[end:]}"
    return text


def _result(content: dict, target: float) -> str:
    """result.json of runs to this sparsity; what differs from run to run stands there as "@word"."""
    rounds = content["rounds"]
    pruned = max(1, len(rounds) - 1)
    for place, row in enumerate(rounds):
        sparsity = 1 - (1 - target) ** (place / pruned)
        row |= {"asked": sparsity, "sparsity": sparsity, "compression": 1 / (1 - sparsity)}
        row |= {"speedup": 1 / (1 - sparsity), "kept": round((1 - sparsity) * row["total"])}
        row["test"] |= {"top1": f"@{0.95 - 0.1 * sparsity**8:.4f}"}
    content |= {"dense": rounds[0]["test"], "final": rounds[-1]}
    content |= {"id": "@id", "seed": "@seed", "criterion": "@criterion"}
    content["sparsity"]["target"] = target
    return json.dumps(content, indent=1) + "\n"
