"""Select runs, name what distinguishes them, and average over seeds."""

import difflib
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from prunebench.report.label import labelled
from prunebench.report.lazy import seconds_until
from prunebench.report.metric import KNOWN, parts, reading
from prunebench.report.read import Run, is_dense
from prunebench.report.student import interval

# Means that are taken of a row's rounds beside the metric.
FIELDS = ("sparsity", "compression", "speedup", "params", "macs", "macs_dense", "train_macs", "latency")


def check_metric(metric: str) -> None:
    """Raises ValueError, naming the close ones, unless `metric` is one of `metric.KNOWN`."""
    if metric not in KNOWN:
        raise ValueError(f"--metric {metric}: no such metric{close_ones(metric, KNOWN)}")


def labels(runs: Sequence[Run]) -> list[str]:
    """For every run its method with companions, and the settings and options in which runs of it differ.

    The same configuration with another seed has the same label. Another configuration has another one, except
    for the sparsity asked, for which tables have a column.
    """
    return labelled(runs)


def repeated(runs: Sequence[Run], names: Sequence[str]) -> int:
    """Runs that share name, model, data set, target, status and seed with an earlier one."""
    return len(_repeated_seeds(runs, names))


def summarise(runs: Sequence[Run], names: Sequence[str], metric: str, *, rounds: bool = False) -> list[dict]:
    """One row per method, model, data set and final sparsity asked; with `rounds` one per round as well.

    Finished runs are averaged with finished ones. Partial runs have rows of their own, at the last round they
    finished, because they have not reached the sparsity asked; with `rounds`, their rounds count like any
    other.

    Returns:
      rows with "method", "model", "dataset", "target", "asked" (fractions), "phase", "n" and the means
      "sparsity", "value" (the metric after retraining), "pruned" (the metric right after pruning), "change"
      (to the run's own dense control), "top5" (beside top1), "params", "compression", "macs", "speedup",
      "train_macs" (multiply-adds of all training so far), "seconds" (of all phases so far); "std" and
      "change_std" are sample standard deviations and "reach" half the 95 % t-interval, None for n = 1;
      "values" is seed -> value; "partial" counts partial runs.
    """
    groups: dict[tuple, list[tuple[Run, int]]] = defaultdict(list)
    for run, name in zip(runs, names):
        places = run.places if rounds else run.places[-1:]
        for place in places:
            row = run.rounds[place]
            identity, kind = run.identity, (row.get("cycle", 0), "") if rounds else (0, run.status)
            key = (identity["model"], identity["dataset"], name, _near(run.target), *kind)
            groups[*key, _near(row["asked"])].append((run, place))
    ordered = sorted(groups.items(), key=lambda item: tuple(map(_sortable, item[0])))
    return [_row(key, members, metric) for key, members in ordered]


def mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (divisor n - 1) of the known values; None where undefined."""
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values; None where there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def control(runs: Iterable[Run], metric: str) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation and number of the dense controls, one per seed.

    Runs of one seed share their dense control or differ in its training; they enter as their mean, so that
    five sparsities over one dense network do not count as five networks.
    """
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for run in runs:
        value = dense(run, metric)
        if value is not None:
            by_seed[run.identity["seed"]].append(value)
    means = [statistics.fmean(values) for values in by_seed.values()]
    return *mean_std(means), len(means)


def change(run: Run, place: int, metric: str) -> float | None:
    """Metric after retraining minus that of the run's own dense control."""
    row = run.rounds[place]
    value, control = reading(row, metric), dense(run, metric)
    if value is not None and control is not None:
        return value - control
    return row.get("delta") if parts(metric) == ("test", "top1") else None


def dense(run: Run, metric: str) -> float | None:
    """The metric of the run's dense control; None where it has none."""
    split, name = parts(metric)
    if split != "valid":
        return (run.dense or {}).get(name)
    unpruned = [row for row in run.rounds if is_dense(row)]
    return reading(unpruned[-1], metric) if unpruned else None


def _row(key: tuple, members: list[tuple[Run, int]], metric: str) -> dict:
    model, dataset, name, target, *_, asked = key
    rows = [run.rounds[place] for run, place in members]
    values = [reading(row, metric) for row in rows]
    value, std = mean_std(values)
    between = interval([known for known in values if known is not None])
    delta, delta_std = mean_std(change(run, place, metric) for run, place in members)
    out = {
        "method": name,
        "model": model,
        "dataset": dataset,
        "target": target,
        "asked": asked,
        "n": len(rows),
    }
    out |= {"value": value, "std": std, "change": delta, "change_std": delta_std}
    out["reach"] = (between[1] - between[0]) / 2 if between else None
    out["values"] = _by_seed((run.identity["seed"], known) for (run, _), known in zip(members, values))
    split, name_of = parts(metric)
    out["top5"] = _mean(reading(row, f"{split}/top5") for row in rows) if name_of == "top1" else None
    out["pruned"] = _mean(reading(row, f"pruned/{parts(metric)[1]}") for row in rows)
    for field in FIELDS:
        out[field] = _mean(row.get(field) for row in rows)
    out["seconds"] = _mean(seconds_until(run.rounds, i) for run, i in members)
    out["partial"] = sum(run.status == "partial" for run, _ in members) or None
    return out


def _by_seed(pairs: Iterable[tuple[Any, float | None]]) -> dict[Any, float]:
    """Seed -> mean of its known values."""
    known: dict[Any, list[float]] = defaultdict(list)
    for seed, value in pairs:
        if value is not None:
            known[seed].append(value)
    return {seed: statistics.fmean(values) for seed, values in known.items()}


def _repeated_seeds(runs: Sequence[Run], names: Sequence[str]) -> list[int]:
    seen, out = set(), []
    for i, (run, name) in enumerate(zip(runs, names)):
        if run.rounds:
            identity = run.identity
            key = (
                name,
                identity["model"],
                identity["dataset"],
                _near(run.target),
                identity["seed"],
                run.status,
            )
            out += [i] if key in seen else []
            seen.add(key)
    return out


def _near(share: float | None) -> float | None:
    """A sparsity as a key: equal to about 1e-9."""
    return None if share is None else round(share, 9)


def _sortable(value: Any) -> tuple:
    return (value is not None, value if value is not None else 0)


def close_ones(name: str, known: Sequence[str]) -> str:
    """What a message about an unknown name ends with: the close ones, and what there is."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    shown = known if len(known) <= 12 else [*known[:12], "..."]
    return f"{hint} (there are: {', '.join(shown)})"
