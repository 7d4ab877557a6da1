"""Load runs from what is on disk; files only, no torch.

A finished run has `result.json`. An unfinished one is rebuilt from `identity.json` (who it is) and the rows
of kind "phase" in `metrics.jsonl` (what it finished), and is marked partial.
"""

import gc
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prunebench.report.configuration import CONTROL, one_side, read_configuration
from prunebench.report.lazy import HELD, RoundsOnDisk, flat, slim

VERSION = 1
FILES = ("result.json", "identity.json", "metrics.jsonl")  # any of them makes a directory a run
REQUIRED = ("method", "model", "dataset", "seed")
REQUIRED_IN_ROUND = ("asked", "sparsity", "test", "compression", "speedup")


@dataclass(frozen=True)
class Run:
    """One run as reports see it.

    Attributes:
      directory: where it was found.
      status: "partial" if it has not finished its plan.
      identity: flat scalars that say which run it is: "method", "companion" (joined by +), "model",
        "dataset", "seed", "criterion", "sparsity.target", ... Missing keys are unknown.
      dense: metrics of the dense control (fractions), or None when the run has none.
      rounds: rows of result.json, in order; at least one if done.
      overrides: what the user typed, as key -> value.
      totals: flat numbers of the whole run, "cost.steps", "time.seconds", ...
      aside: the rounds are the controls that were trained beside those of the run.
    """

    directory: Path
    status: Literal["done", "partial"]
    identity: dict[str, Any]
    dense: dict[str, float] | None
    rounds: Sequence[dict]
    overrides: dict[str, str]
    totals: dict[str, Any]
    aside: bool = False

    @property
    def is_control(self) -> bool:
        """Whether the last round is a control; the rounds before it are those of the run without it."""
        return (self.configuration or self.overrides).get(CONTROL, "none") != "none"

    @property
    def places(self) -> range:
        """Places in `rounds` of what the run itself stands for: all, or of a control the last."""
        every = range(len(self.rounds))
        return every[-1:] if self.is_control and not self.aside else every

    @property
    def target(self) -> float | None:
        """Sparsity asked at the end of the plan, a fraction; None where it is the method's outcome."""
        if self.status == "partial":
            target, rate, rounds = (
                self.identity.get(f"sparsity.{key}") for key in ("target", "rate", "rounds")
            )
            if target is not None:
                return target
            if rate is not None and rounds is not None:
                return 1 - (1 - rate) ** rounds
        return self.rounds[-1]["asked"]

    @property
    def end(self) -> float | None:
        """The target as a key: equal to about 1e-9."""
        return None if self.target is None else round(self.target, 9)

    @cached_property
    def configuration(self) -> Mapping[str, str] | None:
        """The options that can influence the numbers, see `configuration.read_configuration`."""
        return read_configuration(self.directory, aside=self.aside)


@dataclass
class Found:
    """What lies under the directories: usable runs, and those left out with the reason."""

    runs: list[Run] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    other_version: list[Path] = field(default_factory=list)


def load(directories: Sequence[str]) -> Found:
    """All runs under the directories, each once, in order of their paths.

    Raises:
      ValueError: if a directory does not exist.
    """
    gc.disable()  # nothing here is freed, and looking through all of it again and again takes a tenth longer
    try:
        return _load(directories)
    finally:
        gc.enable()


def _load(directories: Sequence[str]) -> Found:
    found, seen = Found(), set()
    held = 0
    for directory in directories:
        if not os.path.isdir(directory):
            what = "is not a directory" if os.path.exists(directory) else "no such directory"
            raise ValueError(f"{directory}: {what}")
        real = Path(directory).resolve()
        for path in run_directories(directory):
            # The walk follows no links, so that only the beginning of a path may be one.
            if (place := os.path.normpath(real / path.relative_to(directory))) in seen:
                continue
            seen.add(place)
            try:
                both = read_runs(path)
            except (ValueError, KeyError, TypeError, OSError) as error:
                found.broken.append((path, _reason(error)))
                continue
            if not both:
                found.other_version.append(path)
            for run in both:
                held += len(run.rounds)
                if held > HELD and run.status == "done":
                    run = replace(run, rounds=RoundsOnDisk(path, run.rounds, aside=run.aside))
                found.runs.append(run)
    return found


def run_directories(directory: str) -> Iterator[Path]:
    """Directories with a run's files, at any depth, not inside a run or a hidden folder (such as .shared)."""
    for path, folders, files in os.walk(directory):
        if any(name in files for name in FILES):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_runs(directory: Path) -> list[Run]:
    """The run in a directory, and as another the controls that it trained beside its rounds, if any.

    None if another version of the format wrote it.

    Raises:
      ValueError, KeyError, TypeError, OSError: if its files are incomplete or damaged.
    """
    done = (directory / "result.json").exists()
    source = "result.json" if done else "identity.json"
    if not (directory / source).exists():
        raise ValueError("neither result.json nor identity.json")
    content = _json(directory / source)
    if content.get("version", VERSION) != VERSION:
        return []
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise ValueError(f"{source}: no {', '.join(missing)}")
    rounds = content["rounds"] if done else _finished_rounds(directory / "metrics.jsonl", "phase")
    controls = (
        content.get("controls", []) if done else _finished_rounds(directory / "metrics.jsonl", "control")
    )
    if done and not rounds:
        raise ValueError(f"{source}: no rounds")
    for row in [*rounds, *controls]:
        missing = [key for key in REQUIRED_IN_ROUND if key not in row]
        if missing:
            raise ValueError(f"a round without {', '.join(missing)}")
    dense = content.get("dense") if done else _dense_of(rounds)
    typed = _overrides(directory / "overrides.json")
    run = Run(
        directory=directory,
        status="done" if done else "partial",
        identity=slim(_identity(content)),
        dense=slim(dense) if dense else None,
        rounds=rounds,
        overrides=slim(one_side(dict(typed), aside=False)),
        totals=slim(flat({key: content[key] for key in ("cost", "time") if key in content})),
    )
    if not controls:
        return [run]
    beside = {"rounds": controls, "overrides": slim(one_side(typed, aside=True)), "aside": True}
    return [run, replace(run, **beside, totals=_totals_of_controls(run, controls[-1]))]


def _totals_of_controls(run: Run, last: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run whose last round this control is, as far as they are known."""
    totals = {key: value for key, value in run.totals.items() if key != "time.seconds"}
    if last.get("steps") != run.rounds[-1].get("steps"):
        totals = {key: value for key, value in totals.items() if key not in ("cost.steps", "cost.samples")}
    return totals | ({"cost.train_macs": last["train_macs"]} if totals else {})


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise TypeError(f"{path.name}: must hold an object")
    return content


def _identity(content: Mapping) -> dict[str, Any]:
    left_out = (
        "version",
        "dense",
        "rounds",
        "final",
        "layers",
        "cost",
        "controls",
        "cost_of_controls",
        "shared",
        "stored",
        "time",
        "metric_options",
        "measured",
    )
    return flat({key: value for key, value in content.items() if key not in left_out})


def rows_of(path: Path, kind: str, *, mark: str) -> Iterator[dict]:
    """The rows of one kind in a metrics.jsonl, none if there is no such file.

    Args:
      path: the file.
      kind: "train", "eval", "prune", "metric", "auxiliary", "phase" or "control" (a phase aside). All other
        rows of phases aside are left out.
      mark: what every line with such a row contains; spares the parsing of the others.

    Raises:
      ValueError: if a line is damaged, other than the last, in whose writing the run was killed.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        if mark not in line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if place == len(lines) - 1:
                return
            raise ValueError(f"{path.name}: line {place + 1}: {error}") from error
        if isinstance(row, dict) and row.get("kind") == kind and (kind == "control" or "aside" not in row):
            yield row


def _finished_rounds(path: Path, kind: str) -> list[dict]:
    """Rounds from the rows of a kind; of a phase written twice (a resumed run) the later row counts.

    Phases that only serve the next pruning event are rows of kind "auxiliary" and no rounds.
    """
    return list({row["phase"]: row["round"] for row in rows_of(path, kind, mark='"round"')}.values())


def is_dense(row: Mapping) -> bool:
    """Whether a round lies before the first pruning event; also one that removes nothing is an event."""
    return row["sparsity"] == 0 and not row.get("cycle")


def _dense_of(rounds: Iterable[Mapping]) -> dict[str, float] | None:
    """Test metrics of the last round before anything was pruned."""
    before = [row["test"] for row in rounds if is_dense(row)]
    return before[-1] if before else None


def _overrides(path: Path) -> dict[str, str]:
    """Typed overrides as key -> value; empty where the file is missing or of another form."""
    if not path.exists():
        return {}
    typed = json.loads(path.read_text(encoding="utf-8"))
    pairs = (entry.lstrip("+~").partition("=") for entry in typed if isinstance(entry, str))
    return {key: value for key, _, value in pairs}


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
