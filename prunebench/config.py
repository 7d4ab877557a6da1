"""The configuration: its schema, its identity, and nets that catch mistakes before anything is built."""

import difflib
import hashlib
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prunebench.compression import provisional, unless
from prunebench.hints import fits, name_of
from prunebench.lengths import share_of_length

GIVEN_BY_CODE = {
    *("base", "p", "run", "params", "device", "batch_size", "schedule", "retrain_schedule"),
    *("in_channels", "num_classes", "image_size"),
}
NOT_IN_ID = ("hydra", "out", "plan", "recipe", "metrics", "tracker")
NOT_IN_ID_OF_TRAINER = (
    *("device", "threads", "checkpoint_every", "checkpoint_seconds"),
    *("share", "store", "quiet"),
)
# Options that came later, with the value that means "as before": ids of older runs stay as they were.
LATER: dict[str, Any] = {
    **{"protocol.peaks": None, "protocol.before": None, "protocol.peak": None, "protocol.monitor": "top1"},
    **{"sparsity.compression": None, "sparsity.round_to": None, "method.round_to": None},
    **{"method.iterations": 1, "trainer.shrink": False, "protocol.optimizer_state": "reset"},
    **{"sparsity.max_ratio": None, "method.max_ratio": None, "protocol.control_at": "last"},
    **{"sparsity.normalizer": "none", "method.normalizer": "none"},
}
GROUPS = (
    *("model", "dataset", "optimizer", "schedule", "retrain", "criterion", "sparsity", "protocol", "method"),
    *("companion", "metrics", "tracker", "trainer", "experiment"),
)
TRUSTED = ("prunebench.", "torch.")


@dataclass
class Sparsity:
    """Types of the group `sparsity`; conf/sparsity says what the options mean."""

    target: Optional[float] = None  # noqa: UP045 (OmegaConf reads Optional)
    rate: Optional[float] = None  # noqa: UP045
    compression: Optional[float] = None  # noqa: UP045
    rounds: int = 1
    spacing: str = "geometric"
    allocation: Any = "global"
    granularity: str = "weight"
    layer_rates: Any = None
    min_kept: int = 1
    round_to: Optional[int] = None  # noqa: UP045
    max_ratio: Optional[float] = None  # noqa: UP045
    normalizer: str = "none"
    exclude: list[str] = field(default_factory=list)


@dataclass
class Trainer:
    """Types of the group `trainer`; conf/trainer says what the options mean."""

    device: str = "auto"
    threads: Optional[int] = None  # noqa: UP045
    batch_size: int = 128
    precision: str = "auto"
    channels_last: Any = "auto"
    compile: bool = False
    cuda_graph: bool = False
    deterministic: bool = True
    sync_bn: bool = False
    shrink: bool = False
    label_smoothing: float = 0.0
    decay: str = "all"
    eval_every: str = "1ep"
    checkpoint_every: str = "500it"
    checkpoint_seconds: float = 60.0
    share: str = "dense"
    store: str = "runs/.shared"
    quiet: bool = False


@dataclass
class Config:
    """Types of the root; a group without a dataclass is checked against its constructor."""

    model: Any = MISSING
    dataset: Any = MISSING
    recipe: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    retrain: Any = MISSING
    criterion: Any = MISSING
    sparsity: Sparsity = field(default_factory=Sparsity)
    protocol: Any = MISSING
    method: Any = MISSING
    companion: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    tracker: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer = field(default_factory=Trainer)
    seed: int = 0
    out: str = "runs"
    plan: bool = False


def register() -> None:
    """Make the schema and the resolvers known to Hydra."""
    ConfigStore.instance().store(name="base_config", node=Config)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("share", share_of_length, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)


def conf_directory() -> Path:
    """The folder of YAML files, in a checkout (editable install) or in the installed package."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def run_id(cfg: Mapping[str, Any]) -> str:
    """10 hex digits of the resolved configuration, less what cannot change a result."""
    content = {k: v for k, v in cfg.items() if k not in NOT_IN_ID}
    content["trainer"] = {k: v for k, v in content["trainer"].items() if k not in NOT_IN_ID_OF_TRAINER}
    content = _without_later(content, "")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _without_later(node: Any, path: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    kept = {}
    for key, value in node.items():
        full = f"{path}.{key}".strip(".")
        if not (full in LATER and LATER[full] == value):
            kept[key] = _without_later(value, full)
    return kept


def _run_name(method: str, model: str, *, _root_: DictConfig) -> str:
    """Name of the result directory: method and companions, model, id."""
    companions = "".join(f"+{name}" for name in _root_.companion)
    return f"{method}{companions}-{model}-{_run_id_of_root(_root_)}"


def _run_id_of_root(_root_: DictConfig) -> str:
    content = {}
    for key in _root_:
        if key in NOT_IN_ID:
            continue
        node = _root_._get_node(key)
        content[key] = (
            OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else _root_[key]
        )
    return run_id(content)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as dicts and lists, interpolations resolved, without Hydra's own part."""
    names = [k for k in cfg if k != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(cfg, names), resolve=True)


def problems(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a composed configuration, one line each; empty if nothing is.

    Args:
      cfg: the composed configuration.
      overrides: what the user typed ("sparsity.target=0.9").
      choices: group -> chosen option.
    """
    try:
        resolved = plain(cfg)
    except OmegaConfBaseException as error:
        return [f"{error.full_key}: {str(error).splitlines()[0]}"]
    if missing := [f.name for f in fields(Config) if f.name not in resolved]:
        return [f"~{name}: a run needs it; leave it in" for name in missing]
    resolved["protocol"] = provisional(resolved)
    raw = OmegaConf.to_container(cfg, resolve=False)
    found = [p for key in resolved for p in _walk(resolved[key], raw[key], key)]
    return list(dict.fromkeys(found)) or list(_unread(cfg, overrides))


def _walk(node: Any, raw: Any, path: str) -> Iterator[str]:
    if not isinstance(node, dict) or not isinstance(raw, dict):
        return
    if "_target_" in node:
        yield from _check_call(node, raw, path)
    for key, child in node.items():
        yield from _walk(child, raw[key], f"{path}.{key}")


def _check_call(node: dict[str, Any], raw: dict[str, Any], path: str) -> Iterator[str]:
    """Bind a node's keys to the signature of its target."""
    name = node["_target_"]
    if not str(name).startswith(TRUSTED):
        yield f"{path}._target_={name}: must be of prunebench or torch"
        return
    try:
        target = get_object(name)
    except Exception as error:  # importing runs foreign code
        yield f"{path}._target_={name}: cannot be imported ({type(error).__name__}: {error})"
        return
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    given = {k: v for k, v in node.items() if not k.startswith("_")}
    for key, value in given.items():
        if key not in signature.parameters:
            options = sorted(set(signature.parameters) - GIVEN_BY_CODE - {"self"})
            yield f"{path}.{key}: no such option of {name.rsplit('.', 1)[-1]}{_suggest(path, key, options)}"
        elif key in hints and not fits(value, hints[key]):
            source = re.fullmatch(r"\$\{([a-z_][\w.]*)\}", str(raw[key]))
            number = isinstance(value, int | float) and fits("", hints[key])
            hint = f"; a length has its unit: {value}ep (epochs) or {value}it (steps)" if number else ""
            subject = source[1] if source else f"{path}.{key}"
            yield f"{subject}={_shown(value)}: must be {name_of(hints[key])}{hint}"
    for key, parameter in signature.parameters.items():
        wanted = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if wanted and key not in given and key not in GIVEN_BY_CODE and not node.get("_partial_"):
            yield f"{path}.{key}: must be given, {name.rsplit('.', 1)[-1]} has no default for it"


def _suggest(path: str, key: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, options, 1)
    if close:
        return f"; did you mean '{path}.{close[0]}'?"
    return f"; it has {', '.join(options)}" if options else "; it has none"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


REFERENCE = re.compile(r"\$\{(?:share:\$\{)?([a-z_][\w.]*)")


def _unread(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Overrides that nothing reads, such as `sparsity.rounds=5` with a method that prunes once.

    Only the groups that others read by interpolation can be left unread; what is called is checked by its
    signature. Values of `recipe` are recommendations that a method may leave aside, so that one sweep can
    hold many methods.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    protocol = raw["protocol"]["_target_"].rsplit(".", 1)[-1]
    one_schedule = protocol in ("dense", "at_init", "during_training")
    called = {"schedule"} if one_schedule else {"schedule", "retrain"}
    passive = {"sparsity", "criterion", "retrain", "hydra"} - called
    reads = {"sparsity.exclude"} | called
    pending = [repr({k: v for k, v in raw.items() if k not in passive | {"recipe"}})]
    while pending:
        for key in REFERENCE.findall(pending.pop()):
            if key not in reads:
                reads.add(key)
                pending.append(repr(_raw_at(raw, key)))
    if "sparsity.target" in reads:
        reads.add("sparsity.compression")  # it stands for the target
    given_by_plan = protocol == "oracle" or raw["protocol"].get("peaks") is not None
    for text in overrides:
        key = re.split(r"[=@]", text.lstrip("+~"))[0].replace("/", ".")
        read = any(r == key or key.startswith(f"{r}.") or r.startswith(f"{key}.") for r in reads)
        if key == "optimizer.lr" and given_by_plan:
            option = "protocol.grid" if protocol == "oracle" else "protocol.peaks"
            yield f"{text}: has no effect, {option} gives the learning rate of every phase"
        if (key.split(".")[0] in passive - {"hydra"} and not read) or _is_foreign(key):
            yield f"{text}: nothing in this run reads '{key}'"


def _is_foreign(key: str) -> bool:
    """Whether a key was added with `+` where only the schema's keys are read."""
    known, (group, *rest) = {f.name for f in fields(Config)}, key.split(".")
    typed = {"sparsity": Sparsity, "trainer": Trainer}.get(group)
    if typed is None or not rest:
        return group not in (*known, *GROUPS, "hydra")
    return rest[0] not in {f.name for f in fields(typed)}


def _raw_at(raw: Any, key: str) -> Any:
    """Value at a dotted key of plain containers, or None."""
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return None
        raw = raw[part]
    return raw
