"""Tiny runs of every method and companion in conf/, made as `prune-run` makes them.

Lengths and counts are cut down by what keys the composed configuration has, never by a method's name:
lengths in epochs become a few steps, and the whole numbers named in CAPS are lowered. A method whose options
keep the names of the style guide (`interval` counts steps, `rounds`, `batches`, lengths with a unit) needs
nothing here.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from prunebench import assembly, config, describe, experiment
from prunebench import store as shared_store
from prunebench.core.loop import fit
from prunebench.core.phase import Phase
from prunebench.core.run import Run
from prunebench.launch import instantiate
from prunebench.metrics.cost import count_macs
from prunebench.record import Recorder

torch.set_num_threads(1)

CONF = config.conf_directory()
# BatchNorm, a residual stream, dropout, channels_last, and a parameter group without momentum at first
NETWORKS = {
    "wrn": ("model=wrn", "model.depth=10", "model.width=1", "model.dropout=0.2", "optimizer.nesterov=true"),
    "lenet300": ("model=lenet300", "optimizer=adam"),
}
RESNET8 = ("model=resnet20", "model.depth=8", "optimizer=adam")  # in lenet300's place for slimming
TINY = (
    *("dataset=synthetic", "dataset.train_images=64", "dataset.test_images=32", "dataset.validation=0.25"),
    *("dataset.pad=1", "dataset.flip=true", "trainer.batch_size=20"),  # 48 images: 20, 20 and 8
    *("recipe.dense=14it", "recipe.retrain=8it", "recipe.rounds=3", "recipe.target=0.8"),
    *("recipe.lr=0.1", "recipe.momentum=0.9", "recipe.weight_decay=1e-3", "recipe.warmup=0.1"),
    *("trainer.device=cpu", "trainer.precision=fp32", "trainer.threads=1", "trainer.share=none"),
    *("trainer.checkpoint_every=5it", "trainer.checkpoint_seconds=1e9", "trainer.quiet=true"),
)
LENGTHS = {"dense": "14it", "retrain": "8it", "retrain_total": "24it", "budget": "38it", "rewind_to": "3it"}
CAPS = {"interval": 4, "rounds": 3, "iterations": 3, "batches": 2, "per_class": 2, "probes": 3}


@dataclass(frozen=True)
class Case:
    """A method's YAML, and a companion's around it if any."""

    method: str
    companion: str | None = None

    def __str__(self) -> str:
        return self.method if self.companion is None else f"{self.method}+{self.companion}"

    @property
    def overrides(self) -> tuple[str, ...]:
        around = () if self.companion is None else (f"companion=[{self.companion}]",)
        return (f"method={self.method}", *around)


def cases() -> list[Case]:
    """Every YAML in conf/method, and imp under every YAML in conf/companion."""
    methods = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
    companions = sorted(p.stem for p in (CONF / "companion").glob("*.yaml"))
    return [*map(Case, methods), *(Case("imp", c) for c in companions)]


# Composing


@cache
def composed(overrides: tuple[str, ...]) -> Any:
    """The configuration of a command line, with Hydra's own part."""
    config.register()
    with hydra.initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = "."
    HydraConfig.instance().set_config(cfg)
    return cfg


@cache
def plain_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    return config.plain(composed(overrides))


def choices_of(cfg: Any) -> dict[str, Any]:
    return OmegaConf.to_container(cfg.hydra.runtime.choices, resolve=True)


def tiny(case: Case, network: str, *more: str) -> tuple[str, ...]:
    """Overrides of a run of some 40 steps; `more` has the last word."""
    first = (*case.overrides, *TINY, *NETWORKS[network], *more)
    if network == "lenet300" and _reads_batchnorm(first):
        first = (*case.overrides, *TINY, *RESNET8, *more)
    raw, plain = OmegaConf.to_container(composed(first), resolve=False), plain_of(first)
    protocol, shorter = plain["protocol"], {}
    for key, value in protocol.items():
        if _in_epochs(value):
            shorter[f"protocol.{key}"] = LENGTHS.get(key, "8it")
    if protocol.get("budget"):
        shorter |= {"protocol.budget": "38it", "protocol.dense": "14it"}
    if not {"rounds", "retrain", "retrain_total", "budget"} & set(protocol):
        shorter |= {f"protocol.{k}": "38it" for k, v in protocol.items() if k != "patience" and _is_length(v)}
    for group in ("protocol", "criterion", "method", "companion"):
        for key, value in _leaves(plain[group], group):
            last = key.split(".")[-1]
            if last in CAPS and isinstance(value, int) and value > CAPS[last]:
                shorter[_written_at(raw, key)] = CAPS[last]
            elif group != "protocol" and _in_epochs(value):
                shorter[_written_at(raw, key)] = "6it"
    return (*first, *(f"{k}={v}" for k, v in shorter.items() if not any(m.startswith(f"{k}=") for m in more)))


def _reads_batchnorm(overrides: tuple[str, ...]) -> bool:
    """Whether channels are scored by their BatchNorm, which lenet300 does not have."""
    return plain_of(overrides)["criterion"]["_target_"].endswith(".bn_scale")


def _written_at(raw: Any, key: str) -> str:
    """The key to override for a new value at `key`, whose last part or a part before may be a reference."""
    parts, node = key.split("."), raw
    for i, part in enumerate(parts, start=1):
        node = node.get(part) if isinstance(node, dict) else None
        if reference := re.fullmatch(r"\$\{([\w.]+)\}", str(node)):
            return ".".join([reference[1], *parts[i:]])
    return key


def _is_length(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\d.]+(ep|it)", value) is not None


def _in_epochs(value: Any) -> bool:
    return _is_length(value) and value.endswith("ep")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from _leaves(value, f"{path}.{key}") if isinstance(value, dict) else [(f"{path}.{key}", value)]


# Assembling and running


class Silent:
    """Display that shows nothing."""

    quiet = True

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **keywords: None


@dataclass
class Parts:
    """One run, ready to go."""

    cfg: dict[str, Any]
    run: Run
    method: Any
    plan: list[Phase]
    make_optimizer: Callable
    recorder: Any = None

    def fit(self) -> "Parts":
        """Resume or start, train to the end, and close the files."""
        try:
            self.recorder.begin(self.run, self.method, self.make_optimizer)
            fit(self.plan, self.run, self.method, self.make_optimizer, self.recorder)
        finally:
            self.recorder.close()
        return self


def assemble(overrides: tuple[str, ...], *, device: str = "cpu", optimizer: Callable | None = None) -> Parts:
    """The parts of the run; `optimizer` takes the place of the configured one."""
    cfg = deepcopy(plain_of(overrides))

    def build(node: Any, **runtime: Any) -> Any:
        return (
            optimizer if optimizer is not None and node is cfg["optimizer"] else instantiate(node, **runtime)
        )

    return Parts(cfg, *assembly.assemble(cfg, device=torch.device(device), instantiate=build))


def recorded(
    overrides: tuple[str, ...], directory: Path, *, store: Path | None = None, kind: type = Recorder
) -> Parts:
    """The parts of the run with the recorder that `prune-run` gives it, writing into `directory`."""
    if store is not None:
        overrides = (*overrides, f"trainer.store={store}")
    parts = assemble(overrides)
    directory.mkdir(parents=True, exist_ok=True)
    choices, trainer = choices_of(composed(overrides)), parts.cfg["trainer"]
    shared = None
    if store is not None:
        shared = shared_store.open_store(
            parts.cfg, parts.plan, parts.run, parts.method, 1, Silent(), lambda: 0
        )
    parts.recorder = kind(
        directory,
        plan=parts.plan,
        identity=describe.identify(parts.cfg, choices, config.run_id(parts.cfg)),
        macs=count_macs(parts.run.model, parts.run.data.shape),
        display=Silent(),
        store=shared,
        metrics={name: instantiate(node) for name, node in parts.cfg["metrics"].items()},
        export=partial(experiment._export, directory=directory, cfg=parts.cfg),
        eval_every=trainer["eval_every"],
        checkpoint_every=trainer["checkpoint_every"],
        checkpoint_seconds=trainer["checkpoint_seconds"],
        asked_to_stop=lambda: 0,
    )
    return parts


# Comparing


def clone(tree: Any) -> Any:
    """Copy of nested containers with their tensors."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {k: clone(v) for k, v in tree.items()}
    return type(tree)(map(clone, tree)) if isinstance(tree, list | tuple) else tree


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested containers differ; tensors are compared bit for bit (0 and -0 are the same weight)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        return [d for k in a for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if type(a) is type(b) and a == b else [path]


def without(tree: Any, *names: str) -> Any:
    """JSON content less the keys of these names, at every depth."""
    if isinstance(tree, dict):
        return {k: without(v, *names) for k, v in tree.items() if k not in names}
    return [without(v, *names) for v in tree] if isinstance(tree, list) else tree


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the measured times of a metric, which no two runs have in common."""
    return {k: v for k, v in row.items() if "milliseconds" not in k and not k.startswith("measured_speedup")}


def on_disk(directory: Path) -> dict[str, Any]:
    """What a finished run leaves, less what time and sharing may change."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((directory / "result.json").read_text())
    result["measured"] = {name: untimed(values) for name, values in result.get("measured", {}).items()}
    return {
        "rows": without([untimed(row) for row in rows], "seconds"),
        "result": without(result, "seconds", "time", "shared", "stored"),
        "weights": (directory / "final.safetensors").read_bytes(),
        "masks": (directory / "masks.safetensors").read_bytes(),
    }


def state_of(parts: Parts) -> dict[str, Any]:
    return {"run": parts.run.state_dict(), "method": parts.method.state_dict()}
