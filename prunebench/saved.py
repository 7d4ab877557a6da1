"""Networks of finished runs, built again from the files in the result directory."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


def load_network(directory: str | Path, *, shrunk: bool | None = None) -> nn.Module:
    """The final network of a finished run, on the CPU and in eval mode.

    Args:
      directory: the run's result directory.
      shrunk: True for the physically smaller network of a structured run, False for the masked one of the
        original size, None for the smaller one where there is one.

    Raises:
      ValueError: if the directory holds no such network.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    if shrunk is None:
        shrunk = (directory / "shrunk.json").exists()
    about = describe_network(directory, shrunk=shrunk)
    network = build_network(about)
    network.load_state_dict(load_file(directory / f"{_name(shrunk)}.safetensors"))
    return network.eval()


def describe_network(directory: Path, *, shrunk: bool) -> dict[str, Any]:
    """The JSON beside the weights: model and its options, sizes of the data, class names, widths.

    Raises:
      ValueError: if it is not there.
    """
    name = _name(shrunk)
    try:
        return json.loads((directory / f"{name}.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        why = "is no result directory of a finished run"
        if shrunk and (directory / "final.json").exists():
            why = "the run removed no filters or neurons; load it with shrunk=False"
        raise ValueError(f"{directory}: holds no {name}.json ({why})") from None


def _name(shrunk: bool) -> str:
    return "shrunk" if shrunk else "final"


def build_network(about: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network of the description's model, options and widths.

    Raises:
      ValueError: if the model is none of prunebench's.
    """
    options = dict(about["model"])
    module, _, name = options.pop("_target_").rpartition(".")
    if not module.startswith("prunebench."):
        raise ValueError(f"model._target_={module}.{name}: must be a model of prunebench")
    untrained = {"pretrained": False, "checkpoint": None}  # the weights come from the run
    options |= {key: value for key, value in untrained.items() if key in options}
    sizes = {key: about[key] for key in ("in_channels", "num_classes", "image_size")}
    network = getattr(importlib.import_module(module), name)(**options, **sizes)
    return network.with_widths(about["widths"]) if about.get("widths") else network
