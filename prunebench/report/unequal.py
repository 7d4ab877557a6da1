"""In what rows of a table differ: options, dense control, cost of training, seeds; and the runs of a row."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.report.label import differs, value_of
from prunebench.report.read import Run
from prunebench.report.table import count, percent, ratio

ASPECTS: Mapping[str, tuple[str, ...]] = {
    "augmentation": ("dataset.pad", "dataset.flip"),
    "data": ("dataset.",),
    "network": ("model.",),
    "optimizer": (
        "optimizer.",
        "trainer.batch_size",
        "trainer.decay",
        "trainer.label_smoothing",
        "trainer.precision",
    ),
    "schedule": ("schedule.", "retrain.", "protocol.peaks"),
    "selection": ("protocol.keep", "protocol.patience"),
}
"""What options decide -> the options, or how their keys begin; the first aspect that has a key counts."""

CHOICES = {"optimizer": "optimizer", "schedule": "schedule", "retrain": "schedule"}
"""Of these another choice has other options -> the aspect."""

RETRAINS = ("iterative", "one_shot", "oracle")  # protocols that read `retrain`
EQUAL_COST = 0.01  # relative: costs of training as near as this count as equal
NAMED = 2  # rows that are named one by one,
LONG = 40  # if their names together have no more characters
VALUES = 4  # values of an option that are named one by one
OPTIONS = 3  # options of an aspect that are named

Rows = Mapping[str, Sequence[Run]]
"""Label -> finished runs."""

Told = Mapping[str, Sequence[str]]
"""Label -> settings and options that it holds, see `label.Label`."""


@dataclass(frozen=True)
class Finding:
    """Something in which the rows of a table differ although they are not compared by it."""

    aspect: str
    text: str


def options(rows: Rows, told: Told) -> Iterable[Finding]:
    """Options that differ between rows and are not what the labels compare."""
    texts: dict[str, list[str]] = {}
    chosen = set()
    for group, aspect in CHOICES.items():
        part = _that_retrain(rows) if group == "retrain" else rows
        if _several(_runs(part), f"{group}._target_"):
            chosen.add(group)
            values = {name: {str(run.identity.get(group)) for run in part[name]} for name in part}
            if unlike(values) and not _compared_by(group, values, told):
                word = "retrain " if group == "retrain" else ""
                texts.setdefault(aspect, []).append(word + folded(rows_by_value(part, values)))
    known = _runs(rows)
    distinct = {id(run.configuration): run.configuration for run in known}.values()
    for key in [key for key in next(iter(distinct), ()) if all(key in content for content in distinct)]:
        aspect = next((a for a, starts in ASPECTS.items() if key.startswith(starts)), None)
        # retrain.of is the training schedule once more
        if aspect is None or key.partition(".")[0] in chosen or key.startswith("retrain.of."):
            continue
        part = _that_retrain(rows) if key.startswith("retrain.") else rows
        if not _several(_runs(part), key) or not differs(_runs(part), key):
            continue
        values = {name: {_known(run, key) for run in part[name]} for name in part}
        if unlike(values) and not _compared_by(key, values, told):
            texts.setdefault(aspect, []).append(f"{key} {folded(rows_by_value(part, values))}")
    for aspect, parts in texts.items():
        more = f"; and {len(parts) - OPTIONS} more" if len(parts) > OPTIONS else ""
        yield Finding(aspect, "; ".join(parts[:OPTIONS]) + more)


def controls(rows: Rows) -> Iterable[Finding]:
    """Dense controls that are not the same for one seed, or that are missing."""
    found = {name: _dense(members) for name, members in rows.items()}
    known = {name: dense for name, dense in found.items() if dense}
    seeds = {run.identity["seed"] for members in rows.values() for run in members}
    values = {seed: {dense[seed] for dense in known.values() if seed in dense} for seed in seeds}
    if len(known) == len(found) and all(len(there) < 2 for there in values.values()):
        return
    texts: dict[str, list[str]] = {}
    means = {}
    for name, dense in found.items():
        # rows with the same networks have the same text, and so has a row on fewer seeds
        same = next((n for n in known if dense and dense.items() <= known[n].items()), name)
        means[name] = statistics.fmean(known[same].values()) if same in known else -1.0
        texts.setdefault(f"{percent(means[name])} %" if same in known else "none", []).append(name)
    ordered = dict(sorted(texts.items(), key=lambda item: means[item[1][0]]))
    if len(ordered) > VALUES:
        ends = [next(iter(ordered)), next(reversed(ordered))]
        low, high = (folded({text: ordered[text]}) for text in ends)
        yield Finding("dense control", f"{low} to {high}, {len(ordered)} different ones in {len(rows)} rows")
    else:
        yield Finding("dense control", folded(texts))


def costs(rows: Rows) -> Iterable[Finding]:
    """Training images or multiply-adds that differ between rows of the same sparsity, dense ones left out."""
    at: dict[float, dict[str, list[Run]]] = {}
    pruned = {name: [r for r in members if r.identity["method"] != "dense"] for name, members in rows.items()}
    if sum(map(bool, pruned.values())) < 2:
        return
    for name, members in pruned.items():
        for run in members:
            if run.end is not None:
                at.setdefault(run.end, {}).setdefault(name, []).append(run)
    shared = {target: there for target, there in at.items() if len(there) > 1}
    if not shared:
        yield Finding("training cost", "cannot be compared, no two rows end at the same sparsity")
        return
    texts, where = [], ""
    for what, key in (("images", "cost.samples"), ("MACs", "cost.train_macs")):
        worst, places = None, 0
        for target, there in sorted(shared.items()):
            means = {name: _mean(run.totals.get(key) for run in members) for name, members in there.items()}
            if None in means.values():
                worst, places = f"{what} not recorded in every run", 0
                break
            low, high = min(means.values()), max(means.values())
            factor = high / max(low, 1)
            if factor <= 1 + EQUAL_COST:
                continue
            places += 1
            if worst is None or factor > worst[0]:
                between = " to ".join(folded({count(end): _at(means, end)}) for end in (low, high))
                worst = factor, f"{what} {between}, {ratio(factor)}", f", at {percent(target)} % sparsity"
        if worst is not None:
            more = f" and less at {places - 1} more" if places > 1 else ""
            text, here = (worst, "") if isinstance(worst, str) else (worst[1], worst[2] + more)
            if texts and here != where:
                texts[-1] += where
            texts.append(text)
            where = here
    if texts:
        yield Finding("training cost", "; ".join(texts) + where)
    yield from _scores(shared)


def _scores(shared: Mapping[float, Mapping[str, Sequence[Run]]]) -> Iterable[Finding]:
    """Multiply-adds of scores, where the difference is more than what counts in training; 0 if unrecorded."""
    worst = None
    for target, there in sorted(shared.items()):
        means = {
            name: _mean(run.totals.get("cost.score_macs", 0) for run in members) or 0
            for name, members in there.items()
        }
        trained = [run.totals.get("cost.train_macs") or 0 for members in there.values() for run in members]
        low, high = min(means.values()), max(means.values())
        if high - low > EQUAL_COST * max(trained) and (worst is None or high - low > worst[0]):
            between = " to ".join(folded({count(end): _at(means, end)}) for end in (low, high))
            worst = high - low, f"MACs {between}, beside training, at {percent(target)} % sparsity"
    if worst is not None:
        yield Finding("cost of scores", worst[1])


def seeds(rows: Rows) -> Iterable[Finding]:
    """Seeds that are not the same in every row and at every sparsity."""
    by: dict[tuple[str, float | None], set] = {}
    for name, members in rows.items():
        for run in members:
            by.setdefault((name, run.end), set()).add(run.identity["seed"])
    sets: dict[str, list[str]] = {}
    for (name, _), there in by.items():
        sets.setdefault(",".join(map(str, sorted(there, key=str))), []).append(name)
    if len(sets) > 1:
        yield Finding("seeds", folded({text: list(dict.fromkeys(names)) for text, names in sets.items()}))


def within(rows: Rows) -> Iterable[Finding]:
    """Training images that differ between seeds of a row at one sparsity, unless they stop by patience."""
    texts = []
    for name, members in rows.items():
        by: dict[float, list[float]] = {}
        for run in members:
            if value_of(run, "protocol.patience") in ("null", "default") and run.end is not None:
                by.setdefault(run.end, []).append(run.totals.get("cost.samples") or 0)
        for target, images in sorted(by.items()):
            low, high = min(images), max(images)
            if low and high / low > 1 + EQUAL_COST:
                between = f"{count(low)} to {count(high)}, {ratio(high / low)}"
                texts.append(f"{name}: training images {between}, at {percent(target)} % sparsity")
                break
    if texts:
        more = f" and {len(texts) - NAMED} more rows" if len(texts) > NAMED else ""
        yield Finding("within a row", "; ".join(texts[:NAMED]) + more)


def _known(run: Run, key: str) -> str:
    """The value of an option; of the place of the data the last part: every machine has its own place."""
    value = value_of(run, key)
    return value.rstrip("/").rpartition("/")[2] if key == "dataset.root" else value


def unlike(values: Mapping[str, set[str]]) -> bool:
    """Whether not every row has the same values."""
    return len(set(map(frozenset, values.values()))) > 1


def _compared_by(key: str, values: Mapping[str, set[str]], told: Told) -> bool:
    """Whether the labels say the option where rows differ in it.

    Rows that do not say it have to have one value, which a row that says it has too: in a sweep over learning
    rates the row of another method at one of them is on equal terms.
    """
    saying = {name for name in values if any(_covers(axis, key) for axis in told.get(name, ()))}
    said = {value for name in saying for value in values[name]}
    silent = {value for name in values if name not in saying for value in values[name]}
    return bool(saying) and (not silent or (len(silent) == 1 and silent <= said))


def _covers(axis: str, key: str) -> bool:
    """Whether a key in a label is an option, decides it, or is what the option follows."""
    if axis.startswith("recipe."):  # served to the option of the same name
        return key.rpartition(".")[2] == axis.rpartition(".")[2]
    return key == axis or key.startswith(f"{axis}.")


def _at(means: Mapping[str, float], end: float) -> list[str]:
    """The rows at one end of the costs."""
    return [name for name, mean in means.items() if abs(mean - end) <= EQUAL_COST * end]


def _that_retrain(rows: Rows) -> Rows:
    """The runs whose protocol reads `retrain`; others have it without effect."""
    kept = {
        name: [run for run in members if run.identity.get("protocol", RETRAINS[0]) in RETRAINS]
        for name, members in rows.items()
    }
    return {name: members for name, members in kept.items() if members}


def _runs(rows: Rows) -> list[Run]:
    """The runs whose options are known."""
    return [run for members in rows.values() for run in members if run.configuration is not None]


def _several(runs: Iterable[Run], key: str) -> bool:
    return len({value_of(run, key) for run in {id(run.configuration): run for run in runs}.values()}) > 1


def _dense(members: Iterable[Run]) -> dict[Any, float]:
    """Seed -> mean test top-1 of the dense controls."""
    values: dict[Any, list[float]] = {}
    for run in members:
        own = run.rounds[-1]["test"] if run.identity["method"] == "dense" else run.dense
        if own and own.get("top1") is not None:
            values.setdefault(run.identity["seed"], []).append(own["top1"])
    return {seed: statistics.fmean(there) for seed, there in values.items()}


def rows_by_value(rows: Rows, values: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Values as text -> the rows that have them; of a row with several, all of them."""
    out: dict[str, list[str]] = {}
    for name in rows:
        out.setdefault(" and ".join(sorted(values[name], key=_size)), []).append(name)
    return out


def _size(text: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else statistics.fmean(known)


def folded(by_value: Mapping[str, Sequence[str]]) -> str:
    """Values with the rows that have them: "0.1 (imp), 0.03 (4 rows)"."""
    parts = []
    for value, names in by_value.items():
        who = ", ".join(names)
        if len(names) > NAMED or (len(names) > 1 and len(who) > LONG):
            who = f"{len(names)} rows"
        parts.append(f"{value} ({who})")
    more = f" and {len(parts) - VALUES} more" if len(parts) > VALUES + 1 else ""
    return ", ".join(parts[: VALUES if more else None]) + more
