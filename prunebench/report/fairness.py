"""Whether a comparison is fair: in what else the rows of a table differ than in what they are compared by.

What has to be equal follows the reporting rules of ShrinkBench (arXiv 2003.03033, section 6): dense control,
data, augmentation, optimizer and schedule, choice of the final network, cost of training, and seeds. An
option that stands in the labels is what rows are compared by; any other difference is a finding, and so is a
difference in cost or dense control, whatever it comes from, and so are rows that hold more than the seeds of
one configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunebench.report import unequal
from prunebench.report.choose import Chosen, mates, mixed
from prunebench.report.label import Label, labelled, method, short, value_of
from prunebench.report.read import Run
from prunebench.report.unequal import ASPECTS, Finding, Rows, Told, folded

POINTS = 5  # operating points that ShrinkBench asks for
PANELS = 3  # models and data sets whose findings are given one by one


@dataclass(frozen=True)
class Verdict:
    """What is to be said of the comparison on one model and data set.

    Attributes:
      where: "model on data set".
      rows: labels that are compared; 1 only for a row that the reader has put together.
      by: what their labels differ in, "method", "schedule", "lr", ...
      findings: empty for a fair comparison.
      unrecorded: runs without a config.yaml, whose options are not known.
      runs: how many there are.
    """

    where: str
    rows: int
    by: Sequence[str]
    findings: Sequence[Finding]
    unrecorded: int
    runs: int

    @property
    def lines(self) -> list[str]:
        """The verdict for a reader: a line in all, and one for each finding."""
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        by = f", compared by {', '.join(self.by) or 'sparsity'}" if self.rows > 1 else ""
        head = f"fair? {self.where}: {rows}{by}{self.unknown}"
        if self.findings:
            return [head, *(f"not equal: {one.aspect}: {one.text}" for one in self.findings)]
        return [f"{head}; {self.equal}"]

    @property
    def equal(self) -> str:
        """What has been found equal; nothing is said of options that are not known."""
        known = [] if self.unrecorded == self.runs else ASPECTS
        where = "equal" if self.unrecorded in (0, self.runs) else "equal where recorded"
        return f"{where}: {', '.join([*known, 'dense control', 'training cost', 'seeds'])}"

    @property
    def unknown(self) -> str:
        """What is not known of the runs, to be put behind a line."""
        if not self.unrecorded:
            return ""
        known = "run has" if self.unrecorded == 1 else "runs have"
        return f"; {self.unrecorded} {known} no config.yaml, options not recorded"


def verdicts(
    runs: Sequence[Run],
    names: Sequence[str],
    chosen: Chosen | None = None,
    *,
    labels: Sequence[Label] | None = None,
) -> list[Verdict]:
    """A verdict for every model and data set with two or more labels among the finished runs.

    Args:
      runs: finished and partial runs.
      names: the label of each run, see `group.labels`, or of `chosen`.
      chosen: if the reader has put the runs into rows. These may hold several configurations, which is a
        finding, and there is a verdict on a single row that does.
      labels: of the runs, if they are known and the reader has not chosen.
    """
    labels = [] if chosen is not None else labels or labelled(runs)
    told: Told = {label.text: label.keys for label in labels} if chosen is None else chosen.told
    along = dict.fromkeys(key for label in labels for key in label.along)
    panels: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run, name in zip(runs, names):
        if run.status == "done":
            place = (run.identity["model"], run.identity["dataset"])
            panels.setdefault(place, {}).setdefault(name, []).append(run)
    out = []
    for (model, dataset), rows in sorted(panels.items()):
        findings = _findings(rows, told, chosen)
        if len(rows) > 1 or findings:
            unrecorded = sum(run.configuration is None for members in rows.values() for run in members)
            by = _by(rows, told, along, methods=chosen is None or "method" in chosen.keys)
            count = sum(map(len, rows.values()))
            out.append(Verdict(f"{model} on {dataset}", len(rows), by, findings, unrecorded, count))
    return out


def _findings(rows: Rows, told: Told, chosen: Chosen | None) -> list[Finding]:
    """Of each row by itself, then of all of them."""
    if chosen is None:
        out = [*unequal.within(rows)]
    else:
        mixtures = {name: mixed(members, chosen.keys) for name, members in rows.items()}
        out = [*_mixed(mixtures), *_unbalanced(rows, mixtures, chosen.keys)]
    if len(rows) > 1:
        rows, told = _shortened(rows, told)
        out += [*unequal.options(rows, told), *unequal.controls(rows), *unequal.costs(rows)]
        out += unequal.seeds(rows) if chosen is None or "seed" not in chosen.keys else []
    return out


def lines(judged: Sequence[Verdict]) -> list[str]:
    """The verdicts for a reader, few lines for many: fair comparisons in one, further unfair ones in one."""
    unfair = [one for one in judged if one.findings]
    fair = [one for one in judged if not one.findings]
    out = [line for one in unfair[:PANELS] for line in one.lines]
    if more := unfair[PANELS:]:
        aspects = dict.fromkeys(found.aspect for one in more for found in one.findings)
        out.append(f"fair? on {len(more)} more models and data sets not equal: {', '.join(aspects)}")
    if len(fair) < 3:
        return out + [line for one in fair for line in one.lines]
    places = f"{', '.join(one.where for one in fair[:PANELS])}" + (
        f" and {len(fair) - PANELS} more" if len(fair) > PANELS else ""
    )
    together = Verdict("", 0, [], [], sum(one.unrecorded for one in fair), sum(one.runs for one in fair))
    return [*out, f"fair? {places}{together.unknown}; {together.equal}"]


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
    few: dict[str, list[str]] = {}
    for name, there in points.items():
        if len(there) < POINTS:
            few.setdefault(f"{len(there)}", []).append(name)
    if few:
        out.append(f"fewer than {POINTS} operating points: {folded(few)}")
    last = [run.rounds[-1] for run, _ in finished]
    for what, known in (("top-5", [row["test"].get("top5") for row in last]), ("speed-up", _speeds(last))):
        if lost := sum(value is None for value in known):
            out.append(f"no {what} in {lost} of {len(last)} runs")
    if not any(_is_random(run) for run, _ in finished):
        out.append("no random control (criterion=random)")
    return [f"ShrinkBench (2003.03033) asks for more: {'; '.join(out)}"] if out else []


def _speeds(rows: Sequence[Mapping]) -> list[float | None]:
    return [row.get("speedup") for row in rows]


def _is_random(run: Run) -> bool:
    control = (run.configuration or run.overrides).get("protocol.control", "none")
    chosen = run.identity.get("criterion")
    return chosen in ("random", "random_channels") or control.startswith("random")


def _mixed(within: Mapping[str, Mapping[str, Sequence[str]]]) -> list[Finding]:
    """Rows that are no seeds of one configuration; the first of findings: their mean is of no one thing."""
    texts: dict[str, list[str]] = {}
    for name, values in within.items():
        if values:
            texts.setdefault(", ".join(values), []).append(name)
    return [Finding("within a row", f"not one configuration: {folded(texts)}")] if texts else []


def _unbalanced(
    rows: Rows, within: Mapping[str, Mapping[str, Sequence[str]]], by: Sequence[str]
) -> list[Finding]:
    """What rows are averaged over that is not the same in each: a difference of means may come from it."""
    keys = dict.fromkeys(key for values in within.values() for key in values)
    texts = []
    for key, values in mates(rows, [*keys], by).items():
        if unequal.unlike(values):
            texts.append(f"{key} {folded(unequal.rows_by_value(rows, values))}")
    return [Finding("averaged over", "; ".join(texts))] if texts else []


def _shortened(rows: Rows, told: Told) -> tuple[Rows, Told]:
    """Rows under their labels less the words that all labels have, where something is left of all."""
    common = set.intersection(*(set(name.split()) for name in rows))
    less = {name: " ".join(word for word in name.split() if word not in common) or name for name in rows}
    if len(set(less.values())) < len(rows):
        return rows, told
    return {less[n]: members for n, members in rows.items()}, {less[n]: told.get(n, ()) for n in rows}


def _by(rows: Rows, told: Told, along: Sequence[str], *, methods: bool) -> list[str]:
    """What the labels of the rows differ in, with the options that go along.

    Args:
      rows: the rows.
      told: what their labels hold beside the method.
      along: options that go along with others.
      methods: whether the labels hold the method.
    """
    runs = [members[0] for members in rows.values()]
    said = dict.fromkeys(key for name in rows for key in told.get(name, ()) if key != "method")
    keys = [key for key in said if len({str(run.identity.get(key, value_of(run, key))) for run in runs}) > 1]
    out = ["method"] if methods and len(set(map(method, runs))) > 1 else []
    out += [key if "." not in key else word for key, word in zip(keys, short(keys))]
    beside = [key for key in along if key not in keys and _differ(runs, key)]
    if out and beside:
        out[-1] += f" (with it {', '.join(beside)})"
    return out


def _differ(runs: Sequence[Run], key: str) -> bool:
    return len({value_of(run, key) for run in runs}) > 1
