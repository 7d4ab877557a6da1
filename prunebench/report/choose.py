"""What the reader chooses: runs (`--where`), and in which rows they are put (`--by`)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.report.configuration import canonical, every_option, matters
from prunebench.report.group import close_ones
from prunebench.report.label import BARE, SETTINGS, differing, method, short, value_of
from prunebench.report.read import Run

ALWAYS = ("model", "dataset", "sparsity")  # these have tables and columns of their own
UNJUDGED = ("criterion", "protocol", "sparsity.allocation", "sparsity.granularity")
JUDGED = ("optimizer", "schedule", "retrain", "dataset.", "model.", "trainer.")  # see `unequal.ASPECTS`
BETWEEN = re.compile(r",(?![^\[{]*[\]}])")  # commas that are not in a list
NEARLY = 5e-5  # sparsities are equal that a table shows alike
NAMED = 5  # values that are named one by one


def known_keys(runs: Sequence[Run]) -> list[str]:
    """What can be asked of the runs: what identity.json says, and every option of config.yaml."""
    distinct = {id(run.configuration): run.configuration or {} for run in runs}
    options = {key for configuration in distinct.values() for key in configuration}
    return sorted({key for run in runs for key in run.identity} | {"status", "sparsity"} | options)


def value(run: Run, key: str) -> Any:
    """The value of a key of `known_keys`, or of an option such as trainer.device; None without one."""
    if key == "status":
        return run.status
    if key == "sparsity":
        return run.target if run.rounds else None
    if key in run.identity:
        return run.identity[key]
    if not matters(key):
        return every_option(run.directory).get(key)
    return (run.configuration or {}).get(key)


def is_known(runs: Sequence[Run], key: str) -> bool:
    """Whether a run has a key; options that cannot influence numbers are looked up in the files."""
    if key in known_keys(runs):
        return True
    return "." in key and not matters(key) and any(value(run, key) is not None for run in runs)


def where(runs: Sequence[Run], conditions: Iterable[str]) -> list[Run]:
    """The runs that meet every condition "key=value" or "key=value,value", keys of `known_keys`.

    Raises:
      ValueError: if a condition has no "=", its key is in no run, or no run has its value.
    """
    left = list(runs)
    for condition in conditions:
        key, equals, values = condition.partition("=")
        if not equals:
            raise ValueError(f"--where {condition}: must be key=value (directories stand before --where)")
        if not is_known(runs, key):
            raise ValueError(f"--where {condition}: no run has {key!r}{_close(key, runs)}")
        wanted = BETWEEN.split(values)
        nearly = NEARLY if key == "sparsity" else 0.0
        met = [run for run in left if any(_equal(value(run, key), text, nearly) for text in wanted)]
        if left and not met:
            there = sorted({str(value(run, key)) for run in left})
            raise ValueError(f"--where {condition}: no run has this value{close_ones(values, there)}")
        left = met
    return left


def chosen(runs: Sequence[Run], by: str) -> "Chosen":
    """The rows that are made by keys.

    Args:
      runs: the runs.
      by: keys of `known_keys`, separated by commas. "method" is the method with its companions. Tables are by
        model and data set and rows by sparsity in any case.

    Raises:
      ValueError: if no run has a key, naming the close ones.
    """
    keys = [key.strip() for key in by.split(",")]
    for key in keys:
        if key not in ALWAYS and not is_known(runs, key):
            raise ValueError(f"--by {by}: no run has {key!r}{_close(key, runs)}")
    keys = [key for key in dict.fromkeys(keys) if key not in ALWAYS]
    words = dict(zip(keys, short(keys)))
    names = [" ".join(_part(run, key, words[key]) for key in keys) or "all runs" for run in runs]
    return Chosen(keys, names, _averaged(runs, names, keys))


@dataclass(frozen=True)
class Chosen:
    """Rows by keys.

    Attributes:
      keys: the keys, less those by which tables and rows are apart in any case.
      names: for every run the name of its row.
      notes: what a reader has to know: what is averaged over.
    """

    keys: list[str]
    names: list[str]
    notes: list[str]

    @property
    def told(self) -> dict[str, list[str]]:
        """Name of a row -> the keys that it holds."""
        return dict.fromkeys(self.names, self.keys)


def mixed(members: Sequence[Run], by: Sequence[str]) -> dict[str, list[str]]:
    """What differs between the runs of a row at one sparsity besides the seed: key -> values."""
    at: dict[float | None, list[Run]] = {}
    for run in members:
        at.setdefault(run.end if run.rounds else None, []).append(run)
    out: dict[str, list[str]] = {}
    for there in at.values():
        for key, values in _within(there).items():
            if key not in by:
                out[key] = list(dict.fromkeys([*out.get(key, ()), *values]))
    return out


def mates(
    rows: Mapping[str, Sequence[Run]], keys: Sequence[str], by: Sequence[str]
) -> dict[str, dict[str, set[str]]]:
    """What rows hold of settings that are not compared otherwise: key -> row -> values."""
    asked = [key for key in dict.fromkeys(("method", "companion", *UNJUDGED, *keys)) if key not in by]
    if "method" in by:
        asked = [key for key in asked if key != "companion"]
    asked = [key for key in asked if not key.startswith(JUDGED)]
    return {
        key: {name: {_text(run, key) for run in members} for name, members in rows.items()} for key in asked
    }


def _close(key: str, runs: Sequence[Run]) -> str:
    """What a message about an unknown key ends with."""
    more = every_option(runs[0].directory) if runs else {}
    return close_ones(key, sorted({*known_keys(runs), *more}))


def _part(run: Run, key: str, word: str) -> str:
    if key == "method":
        return method(run)
    found = value(run, key)
    absent = (
        "unknown" if run.configuration is None else "none"
    )  # such as the mode of a companion it is without
    text = absent if found is None else canonical(found)
    return text if key in BARE else f"{word}={text}"


def _averaged(runs: Sequence[Run], names: Sequence[str], by: Sequence[str]) -> list[str]:
    """Notes on what differs within the rows besides the seed."""
    rows: dict[tuple, list[Run]] = {}
    for run, name in zip(runs, names):
        rows.setdefault((run.identity["model"], run.identity["dataset"], name), []).append(run)
    values: dict[str, dict[str, None]] = {}
    for members in rows.values():
        for key, read in mixed(members, by).items():
            values.setdefault(key, {}).update(dict.fromkeys(read))
    out = [f"rows by {', '.join([*by, 'sparsity'])}; n counts runs, std is over runs"]
    if values:
        texts = [f"{key} ({_few(list(there))})" for key, there in values.items()]
        out[0] += ", +-95 % is over the means of seeds, as runs of one seed are no independent ones"
        out.append(f"averaged over {', '.join(texts)}, and seeds")
    return out


def _within(members: Sequence[Run]) -> Mapping[str, list[str]]:
    """Keys in which runs differ, other than with their seeds -> the values.

    Options in which only runs of different settings differ go with these and are not named.
    """
    settings = ("method", "companion", *SETTINGS)
    out = {}
    for key in settings:
        there = list(dict.fromkeys(_text(run, key) for run in members))
        if len(there) > 1:
            out[key] = there
    kinds: dict[tuple, list[Run]] = {}
    for run in members:
        kinds.setdefault(tuple(_text(run, key) for key in settings), []).append(run)
    for kind in kinds.values():
        for key in differing(kind):
            there = out.setdefault(key, [])
            there += [text for run in kind if (text := _text(run, key)) not in there]
    return out


def _text(run: Run, key: str) -> str:
    """A setting or an option as text."""
    if key in ("method", "companion", *SETTINGS):
        return str(run.identity.get(key) or "none")
    return value_of(run, key)


def _few(values: Sequence[str]) -> str:
    more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(values[:NAMED]) + more


def _equal(value: Any, text: str, nearly: float) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return abs(float(text) - value) <= nearly
        except ValueError:
            return False
    return canonical(value) == canonical(text) or str(value).lower() == text.lower()
