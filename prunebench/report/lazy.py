"""Rounds of finished runs that are read again when they are asked for, so that memory stays bounded.

A report of a thousand runs holds all their rounds. Of a hundred thousand it holds the last ones, which most
tables are made of, and reads the others when a file or a picture wants them, run by run.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any

HELD = 40_000  # rounds that are held in memory in all, of about 2.5 kB each
_KEYS: dict[tuple, tuple[str, ...]] = {}  # forms of the rounds of a run -> their keys, for all runs
NEAR = 64  # runs whose rounds stay for a while after they were read again


class RoundsOnDisk(Sequence[dict]):
    """The rounds of a result.json; the last is here, the others are read again.

    Attributes:
      directory: of the run, where result.json is.
      aside: these are the controls beside the rounds.
      keys: names of all numbers of the rounds, with dots, in the order in which they come.
      seconds: of all rounds together.
    """

    __slots__ = ("_count", "_last", "aside", "directory", "keys", "seconds")

    def __init__(self, directory: Path, rounds: Sequence[dict], *, aside: bool = False):
        self.directory, self.aside, self._count = directory, aside, len(rounds)
        self._last = slim(rounds[-1])
        self.keys = keys_of(rounds)
        self.seconds = sum(row.get("seconds", 0) for row in rounds)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if index in (-1, self._count - 1):
            return self._last
        rounds = _rounds(self.directory, self.aside)
        if len(rounds) != self._count:
            raise ValueError(f"{self.directory}: has changed since prune-report began; start it again")
        return rounds[index]


def seconds_until(rounds: Sequence[Mapping], place: int) -> float:
    """Seconds of the rounds up to this one, itself included."""
    if isinstance(rounds, RoundsOnDisk) and place == len(rounds) - 1:
        return rounds.seconds
    return sum(row.get("seconds", 0) for row in rounds[: place + 1])


def flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Scalars of nested mappings under dotted keys; lists of scalars joined by "+", other lists left out."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        kind = type(value)
        if kind is float or kind is int or kind is str:  # nearly all; the tests below are slow
            out[prefix + key] = value
        elif isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            out[prefix + key] = value
        elif not any(isinstance(entry, (list, Mapping)) for entry in value):
            out[prefix + key] = "+".join(map(str, value))
    return out


def known(row: Mapping) -> dict[str, Any]:
    """The numbers of a round that it has, under dotted keys."""
    return flat({key: value for key, value in row.items() if value is not None})


def keys_of(rounds: Sequence[Mapping]) -> tuple[str, ...]:
    """The keys of `known` over all rounds, each once, in the order in which they come.

    Rounds whose own keys and those one level below are the same are taken to have the same keys.
    """
    if isinstance(rounds, RoundsOnDisk):
        return rounds.keys
    forms = {_form(row): row for row in reversed(rounds)}
    same = tuple(reversed(forms))
    if same not in _KEYS:
        rows = [known(forms[form]) for form in same]
        _KEYS[same] = tuple(dict.fromkeys(intern(key) for row in rows for key in row))
    return _KEYS[same]


def slim(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose keys and words are those of all other copies; each file that is read brings its own."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            value = slim(value)
        out[intern(key)] = intern(value) if type(value) is str else value
    return out


@lru_cache(maxsize=NEAR)
def _rounds(directory: Path, aside: bool) -> list[dict]:
    try:
        return json.loads((directory / "result.json").read_bytes())["controls" if aside else "rounds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory}: cannot be read again: {error}") from error


def _form(row: Mapping) -> tuple:
    """What nearly always decides about the keys of a round: its own, those below, and what it lacks."""
    return tuple(row), tuple([tuple(v) if type(v) is dict else v is None for v in row.values()])
