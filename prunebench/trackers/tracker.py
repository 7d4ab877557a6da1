"""What a tracker is told of a run, and the verbs that every tracker has."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Scalar = bool | int | float | str


@dataclass(frozen=True)
class About:
    """The run, in the words of a tracker.

    Attributes:
      directory: of the result; its name is the run's name.
      parameters: the resolved configuration, flat ("optimizer.lr" -> 0.1), with the chosen options of the
        groups ("model" -> "lenet300").
      tags: method, model, dataset and seed.
      group: what runs that differ in their seed have in common.
    """

    directory: Path
    parameters: Mapping[str, Scalar]
    tags: Mapping[str, str]
    group: str

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.directory.name


class Tracker(Protocol):
    """Takes down the numbers of one run. Any call but `check` may raise: `Session` then goes on without it.

    Calls come in the order check, start, any number of log and sync, finish if the run is done, close.
    """

    def check(self) -> None:
        """Import the package.

        Raises:
          ValueError: if it is missing or an option cannot work.
        """

    def start(self, about: About, step: int) -> Mapping[str, int]:
        """Open the tracker's run, or go on with it where the run of this directory was interrupted.

        Args:
          about: the run.
          step: optimizer steps of the run that are done. What the tracker holds beyond may be dropped.

        Returns:
          Name -> number of points that the tracker holds already.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of some curves, at an optimizer step of the whole run."""

    def sync(self) -> None:
        """Put on the disk what is still in memory."""

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Take down the final numbers and, where the service keeps files, those of the result."""

    def close(self, done: bool) -> None:
        """Let go of everything; `done` says whether the run got to its end."""


def need(package: str, tracker: str) -> Any:
    """The imported package.

    Args:
      package: dotted name of a module.
      tracker: the option that needs it, and the extra that installs it.

    Raises:
      ValueError: if it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f'tracker={tracker}: {why}; install it with pip install -e ".[{tracker}]" or leave it out'
        ) from None


def flat(node: Any, prefix: str = "") -> dict[str, Scalar]:
    """Nested containers as one level: "a.b" -> value; lists and null as text, keys with "_" left out."""
    if not isinstance(node, Mapping):
        return {prefix: node if isinstance(node, Scalar) else "null" if node is None else str(node)}
    found: dict[str, Scalar] = {}
    for key, value in node.items():
        if not str(key).startswith("_"):
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
