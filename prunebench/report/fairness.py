"""Whether a comparison is fair: in what else the rows of a table differ than in what they are compared by.

What has to be equal follows the reporting rules of ShrinkBench (arXiv 2003.03033, section 6): dense control,
data, augmentation, optimizer and schedule, choice of the final network, cost of training, and seeds. An
option that stands in the labels of all rows is what they are compared by; any other difference is a finding,
and so is a difference in cost or dense control, whatever it comes from.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.report.label import SETTINGS, differs, value_of
from prunebench.report.read import Run
from prunebench.report.table import count, percent, ratio

ASPECTS: Mapping[str, tuple[str, ...]] = {
    "augmentation": ("dataset.pad", "dataset.flip"),
    "data": ("dataset.",),
    "network": ("model.",),
    "optimizer": ("optimizer.", "trainer.batch_size", "trainer.decay", "trainer.label_smoothing"),
    "schedule": ("schedule.",),
    "selection": ("protocol.keep", "protocol.patience"),
}
"""What options decide -> the options, or how their keys begin; the first aspect that has a key counts."""

EQUAL_COST = 0.01  # relative: costs of training as near as this count as equal
POINTS = 5  # operating points that ShrinkBench asks for
NAMED = 2  # rows that are named one by one,
LONG = 40  # if their names together have no more characters


@dataclass(frozen=True)
class Finding:
    """Something in which the rows of a table differ although they are not compared by it."""

    aspect: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What is to be said of the comparison on one model and data set.

    Attributes:
      where: "model on data set".
      rows: labels that are compared, at least 2.
      by: the words of their labels that differ, "method", "schedule", "lr", ...
      findings: empty for a fair comparison.
      unrecorded: runs without a config.yaml, whose options are not known.
    """

    where: str
    rows: int
    by: Sequence[str]
    findings: Sequence[Finding]
    unrecorded: int

    @property
    def lines(self) -> list[str]:
        """The verdict for a reader: a line in all, and one for each finding."""
        head = f"fair? {self.where}: {self.rows} rows, compared by {', '.join(self.by) or 'sparsity'}"
        if self.unrecorded:
            known = "run has" if self.unrecorded == 1 else "runs have"
            head += f"; {self.unrecorded} {known} no config.yaml, options not recorded"
        if self.findings:
            return [head, *(f"not equal: {one.aspect}: {one.text}" for one in self.findings)]
        equal = [*ASPECTS, "dense control", "training cost", "seeds"]
        return [f"{head}; equal: {', '.join(equal)}"]


def verdicts(runs: Sequence[Run], names: Sequence[str]) -> list[Verdict]:
    """A verdict for every model and data set with two or more labels among the finished runs."""
    panels: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run, name in zip(runs, names):
        if run.status == "done":
            place = (run.identity["model"], run.identity["dataset"])
            panels.setdefault(place, {}).setdefault(name, []).append(run)
    out = []
    for (model, dataset), rows in sorted(panels.items()):
        if len(rows) > 1:
            findings = [*_options(rows), *_controls(rows), *_costs(rows), *_seeds(rows)]
            unrecorded = sum(run.configuration is None for members in rows.values() for run in members)
            out.append(Verdict(f"{model} on {dataset}", len(rows), _words(rows), findings, unrecorded))
    return out


def contract(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What ShrinkBench asks of a comparison and these runs do not have; nothing for a single label."""
    finished = [(run, name) for run, name in zip(runs, names) if run.status == "done"]
    points: dict[str, set[float]] = {}
    for run, name in finished:
        if run.identity["method"] != "dense":
            there = {round(run.rounds[i]["sparsity"], 4) for i in run.places}
            points.setdefault(name, set()).update(there - {0.0})
    if len(points) < 2:
        return []
    out = []
    few = {f"{len(there)}": [] for there in points.values() if len(there) < POINTS}
    for name, there in points.items():
        if len(there) < POINTS:
            few[f"{len(there)}"].append(name)
    if few:
        out.append(f"fewer than {POINTS} operating points: {_folded(few)}")
    if not any(_is_random(run) for run, _ in finished):
        out.append("no random control (criterion=random, or protocol.control=random_layerwise)")
    return [f"ShrinkBench (arXiv 2003.03033) asks for more: {'; '.join(out)}"] if out else []


def _is_random(run: Run) -> bool:
    control = (run.configuration or run.overrides).get("protocol.control", "none")
    return run.identity.get("criterion") == "random" or control.startswith("random")


def _options(rows: Mapping[str, Sequence[Run]]) -> Iterable[Finding]:
    """Options that differ between rows and are not in the labels."""
    runs = [run for members in rows.values() for run in members if run.configuration is not None]
    distinct = {id(run.configuration): run for run in runs}
    keys = dict.fromkeys(key for run in distinct.values() for key in run.configuration)
    chosen = {group for group in ("optimizer", "schedule") if _several(rows, f"{group}._target_", distinct)}
    for group in sorted(chosen):
        if not _in_labels(rows, group):
            yield Finding(group, _folded(_by_value(rows, lambda run, group=group: run.identity.get(group))))
    for key in keys:
        aspect = next((a for a, starts in ASPECTS.items() if key.startswith(starts)), None)
        if aspect is None or key.partition(".")[0] in chosen or not _several(rows, key, distinct):
            continue
        by_value = _by_value(rows, lambda run, key=key: _told(run, key))
        if len(by_value) > 1 and differs(runs, key) and not _in_labels(rows, key):
            yield Finding(aspect, f"{key} {_folded(by_value)}")


def _told(run: Run, key: str) -> str:
    """The value of an option; of the place of the data the last part: every machine has its own place."""
    value = value_of(run, key)
    return value.rstrip("/").rpartition("/")[2] if key == "dataset.root" else value


def _several(rows: Mapping[str, Sequence[Run]], key: str, distinct: Mapping[int, Run]) -> bool:
    return len({value_of(run, key) for run in distinct.values()}) > 1


def _controls(rows: Mapping[str, Sequence[Run]]) -> Iterable[Finding]:
    """Dense controls that are not the same for one seed, or that are missing."""
    found = {name: _dense(members) for name, members in rows.items()}
    known = {name: dense for name, dense in found.items() if dense}
    seeds = {seed: {dense[seed] for dense in known.values() if seed in dense} for seed in _all_seeds(rows)}
    if len(known) == len(found) and all(len(values) < 2 for values in seeds.values()):
        return
    texts = {}
    for name, dense in found.items():
        # rows with the same networks have the same text, and so has a row on fewer seeds
        same = next((n for n in known if dense and dense.items() <= known[n].items()), name)
        mean = statistics.fmean(known[same].values()) if same in known else None
        texts.setdefault("none" if mean is None else f"{percent(mean)} %", []).append(name)
    yield Finding("dense control", _folded(texts))


def _dense(members: Iterable[Run]) -> dict[Any, float]:
    """Seed -> mean test top-1 of the dense controls."""
    values: dict[Any, list[float]] = {}
    for run in members:
        own = run.rounds[-1]["test"] if run.identity["method"] == "dense" else run.dense
        if own and own.get("top1") is not None:
            values.setdefault(run.identity["seed"], []).append(own["top1"])
    return {seed: statistics.fmean(there) for seed, there in values.items()}


def _costs(rows: Mapping[str, Sequence[Run]]) -> Iterable[Finding]:
    """Training images or multiply-adds that differ between rows of the same sparsity."""
    at: dict[float, dict[str, list[Run]]] = {}
    for name, members in rows.items():
        for run in members:
            if run.end is not None:
                at.setdefault(run.end, {}).setdefault(name, []).append(run)
    shared = {target: there for target, there in at.items() if len(there) > 1}
    if not shared:
        yield Finding("training cost", "cannot be compared, no two rows end at the same sparsity")
        return
    texts = []
    for what, key in (("images", "cost.samples"), ("MACs", "cost.train_macs")):
        worst, places = None, 0
        for target, there in sorted(shared.items()):
            means = {name: _mean(run.totals.get(key) for run in members) for name, members in there.items()}
            if None in means.values():
                worst, places = f"{what} not recorded in every run", 0
                break
            low, high = min(means, key=means.get), max(means, key=means.get)
            factor = means[high] / max(means[low], 1)
            if factor <= 1 + EQUAL_COST:
                continue
            places += 1
            if worst is None or factor > worst[0]:
                between = f"{count(means[low])} ({low}) to {count(means[high])} ({high})"
                worst = factor, f"{what} {between}, {ratio(factor)}, at {percent(target)} % sparsity"
        if worst is not None:
            more = f" and less at {places - 1} more" if places > 1 else ""
            texts.append(worst if isinstance(worst, str) else worst[1] + more)
    if texts:
        yield Finding("training cost", "; ".join(texts))


def _seeds(rows: Mapping[str, Sequence[Run]]) -> Iterable[Finding]:
    """Seeds that are not the same in every row and at every sparsity."""
    by: dict[tuple[str, float | None], set] = {}
    for name, members in rows.items():
        for run in members:
            by.setdefault((name, run.end), set()).add(run.identity["seed"])
    sets: dict[str, list[str]] = {}
    for (name, _), seeds in by.items():
        sets.setdefault(",".join(map(str, sorted(seeds, key=str))), []).append(name)
    if len(sets) > 1:
        yield Finding("seeds", _folded({text: list(dict.fromkeys(names)) for text, names in sets.items()}))


def _all_seeds(rows: Mapping[str, Sequence[Run]]) -> set:
    return {run.identity["seed"] for members in rows.values() for run in members}


def _by_value(rows: Mapping[str, Sequence[Run]], read: Callable[[Run], Any]) -> dict[str, list[str]]:
    """Values as text -> the rows that have them; of a row with several, all of them."""
    out: dict[str, list[str]] = {}
    for name, members in rows.items():
        values = dict.fromkeys(str(read(run)) for run in members)
        out.setdefault(" and ".join(values), []).append(name)
    return out


def _in_labels(rows: Mapping[str, Sequence[Run]], key: str) -> bool:
    """Whether every row says its value of an option in its label."""
    word = key.rpartition(".")[2]
    for name, members in rows.items():
        told = name.split()
        for run in members:
            value = str(run.identity.get(key)) if key in SETTINGS else value_of(run, key)
            if value not in told and not any(part.endswith(f"{word}={value}") for part in told):
                return False
    return True


def _words(rows: Mapping[str, Sequence[Run]]) -> list[str]:
    """What the labels differ in."""
    firsts = {name.split()[0] for name in rows}
    out = ["method"] if len(firsts) > 1 else []
    for key in ("criterion", "protocol", "schedule"):
        told = [{str(run.identity.get(key)) for run in rows[name]} & set(name.split()) for name in rows]
        out += [key] if len(set().union(*told)) > 1 else []
    pairs = [part.partition("=") for name in rows for part in name.split()[1:] if "=" in part]
    values: dict[str, set[str]] = {}
    for word, _, value in pairs:
        values.setdefault(word, set()).add(value)
    having = {word: sum(f" {word}=" in name for name in rows) for word in values}
    return [*out, *(word for word in values if len(values[word]) > 1 or having[word] < len(rows))]


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else statistics.fmean(known)


def _folded(by_value: Mapping[str, Sequence[str]]) -> str:
    """Values with the rows that have them: "0.1 (imp), 0.03 (4 rows)"."""
    parts = []
    for value, names in by_value.items():
        who = ", ".join(names)
        if len(names) > NAMED or (len(names) > 1 and len(who) > LONG):
            who = f"{len(names)} rows"
        parts.append(f"{value} ({who})")
    return ", ".join(parts)
