"""report.csv: everything that is known of every round of every run."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prunebench.report.lazy import flat, keys_of, known
from prunebench.report.read import Run


def write_csv(path: Path, runs: Sequence[Run], names: Sequence[str]) -> None:
    """One row per run and round, unrounded, fractions as fractions; run by run, so that none is held."""
    columns = _columns(runs)
    missing = _write(path, runs, names, columns)
    if missing:  # deep in rounds that seemed alike
        _write(path, runs, names, columns | missing)


def _write(
    path: Path, runs: Sequence[Run], names: Sequence[str], columns: dict[str, None]
) -> dict[str, None]:
    """Write the columns; the keys that have none."""
    missing: dict[str, None] = {}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for run, name in zip(runs, names):
            for row in _rows(run, name):
                writer.writerow(list(map(row.get, columns)))
                if not row.keys() <= columns.keys():
                    missing |= dict.fromkeys(key for key in row if key not in columns)
    return missing


def _rows(run: Run, name: str) -> Iterator[dict]:
    before = {"directory": str(run.directory), "status": run.status, "label": name, **run.identity}
    after, last = _after(run), len(run.rounds) - 1
    for place, row in enumerate(run.rounds):
        yield {**before, "last": place == last, **known(row), **after}


def _columns(runs: Iterable[Run]) -> dict[str, None]:
    """The keys of all rows, run by run in the order in which they come."""
    out: dict[str, None] = {}
    seen = set()
    for run in runs:
        own = (*run.identity, "last", *keys_of(run.rounds), *_after(run)) if run.rounds else ()
        if own and own not in seen:
            seen.add(own)
            out |= dict.fromkeys(("directory", "status", "label", *own))
    return out


def _after(run: Run) -> dict:
    return flat({"dense": run.dense or {}}) | {f"run.{key}": value for key, value in run.totals.items()}
