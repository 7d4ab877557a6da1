"""What the reader chooses: runs (`--where`), and in which rows they are put (`--by`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunebench.report.configuration import canonical
from prunebench.report.group import close_ones
from prunebench.report.label import BARE, SETTINGS, differing, short
from prunebench.report.read import Run

ALWAYS = ("model", "dataset", "sparsity")  # these have tables and columns of their own
NAMED = 5  # values that are named one by one


def known_keys(runs: Sequence[Run]) -> list[str]:
    """What can be asked of the runs: what identity.json says, and every option of config.yaml."""
    distinct = {id(run.configuration): run.configuration or {} for run in runs}
    options = {key for configuration in distinct.values() for key in configuration}
    return sorted({key for run in runs for key in run.identity} | {"status"} | options)


def value(run: Run, key: str) -> Any:
    """The value of a key of `known_keys`; None where the run has none."""
    if key == "status":
        return run.status
    if key in run.identity:
        return run.identity[key]
    return (run.configuration or {}).get(key)


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
        known = known_keys(runs)
        if key not in known:
            raise ValueError(f"--where {condition}: no run has {key!r}{close_ones(key, known)}")
        wanted = values.split(",")
        met = [run for run in left if any(_equal(value(run, key), text) for text in wanted)]
        if left and not met:
            there = sorted({str(value(run, key)) for run in left})
            raise ValueError(f"--where {condition}: no run has this value{close_ones(values, there)}")
        left = met
    return left


def chosen(runs: Sequence[Run], by: str) -> tuple[list[str], list[str]]:
    """For every run the name of its row when rows are made by these keys, and what is averaged over.

    Args:
      by: keys of `known_keys`, separated by commas. "method" is the method with its companions. Tables are by
        model and data set and rows by sparsity in any case.

    Returns:
      the names, and notes for the reader.

    Raises:
      ValueError: if no run has a key, naming the close ones.
    """
    keys, known = [key.strip() for key in by.split(",")], known_keys(runs)
    for key in keys:
        if key not in known and key not in ALWAYS:
            raise ValueError(f"--by {by}: no run has {key!r}{close_ones(key, known)}")
    keys = [key for key in dict.fromkeys(keys) if key not in ALWAYS]
    words = dict(zip(keys, short(keys)))
    names = [" ".join(_part(run, key, words[key]) for key in keys) or "all runs" for run in runs]
    return names, _averaged(runs, names, keys)


def _part(run: Run, key: str, word: str) -> str:
    if key == "method":
        return "+".join(filter(None, (run.identity["method"], run.identity.get("companion"))))
    found = value(run, key)
    text = "unknown" if found is None else canonical(found)
    return text if key in BARE else f"{word}={text}"


def _averaged(runs: Sequence[Run], names: Sequence[str], by: Sequence[str]) -> list[str]:
    """Notes on what differs within the rows besides the seed."""
    rows: dict[tuple, list[Run]] = {}
    for run, name in zip(runs, names):
        target = run.end if run.rounds else None
        rows.setdefault((run.identity["model"], run.identity["dataset"], name, target), []).append(run)
    values: dict[str, dict[str, None]] = {}
    for members in rows.values():
        for key, read in _within(members).items():
            if key not in by:
                values.setdefault(key, {}).update(dict.fromkeys(read))
    out = [
        "rows by " + (", ".join([*by, "sparsity"])) + "; n counts runs, and std and intervals are over runs"
    ]
    if values:
        texts = [f"{key} ({_few(list(there))})" for key, there in values.items()]
        out.append(f"averaged over {', '.join(texts)}, and seeds")
    return out


def _within(members: Sequence[Run]) -> Mapping[str, list[str]]:
    """Keys in which runs differ, other than with their seeds -> the values."""
    out = {}
    for key in ("method", "companion", *SETTINGS):
        there = list(dict.fromkeys(str(run.identity.get(key) or "none") for run in members))
        if len(there) > 1:
            out[key] = there
    kinds: dict[tuple, list[Run]] = {}
    for run in members:
        kinds.setdefault(tuple(str(run.identity.get(key)) for key in ("method", "companion")), []).append(run)
    for kind in kinds.values():
        for key in differing(kind):
            there = out.setdefault(key, [])
            there += [text for run in kind if (text := str(value(run, key))) not in there]
    return out


def _few(values: Sequence[str]) -> str:
    more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(values[:NAMED]) + more


def _equal(value: Any, text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return canonical(value) == canonical(text) or str(value).lower() == text.lower()
