"""Published numbers beside ours, only where a run's settings are those of the paper.

`published.json` holds what the method cards give with a source that can be looked up; numbers from memory and
numbers that are not known are not in it. A number is shown under a label only if every run of the label has
every setting that stands in `where`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunebench.report.configuration import canonical
from prunebench.report.read import Run
from prunebench.report.remaining import TOLERANCE, Panel, Share
from prunebench.report.table import percent

NAMED = 4  # settings that are named where a paper's differ


@dataclass(frozen=True)
class Entry:
    """Numbers of one table or data file under one set of settings.

    Attributes:
      paper, arxiv, source, what: whose numbers, where they stand, and what they are ("median of 3 runs").
      where: setting -> the texts it may have. Words without a dot are those of identity.json ("model",
        "retrain"), others are options of config.yaml; "companion" is "none" or one that must be there.
      values: share of weights remaining -> test top-1, fractions.
    """

    paper: str
    arxiv: str
    source: str
    what: str
    where: Mapping[str, tuple[str, ...]]
    values: Mapping[float, float]

    @property
    def footnote(self) -> str:
        """Whose number it is, in one line."""
        return f"{self.paper} (arXiv {self.arxiv}), {self.source}: {self.what}"

    def differing(self, run: Run) -> list[str]:
        """The settings that the run does not share, as "key=value"."""
        return [f"{key}={texts[0]}" for key, texts in self.where.items() if not _has(run, key, texts)]


Published = Mapping[tuple[str, str, str], Sequence[Entry]]
"""(model, data set, label) -> entries whose settings the runs have."""


@cache
def entries() -> tuple[Entry, ...]:
    """Every published number that we know of."""
    out = []
    for paper in _content()["papers"]:
        facts = {key: paper[key] for key in ("paper", "arxiv", "source")}
        for entry in paper["entries"]:
            where = dict(paper["where"])
            for name in entry["of"]:
                where |= paper["sets"][name]
            where = {key: _texts(value) for key, value in where.items()}
            values = {float(share) / 100: top1 / 100 for share, top1 in entry["top1"].items()}
            out.append(Entry(**facts, what=entry["what"], where=where, values=values))
    return tuple(out)


def published(panels: Sequence[Panel]) -> Published:
    """The entries with a number for a column of their table whose settings all runs of a row have."""
    out = {}
    for panel in panels:
        candidates = [
            e
            for e in _of(panel.model, panel.dataset)
            if any(nearest([e], share) is not None for share in panel.shares)
        ]
        for row in panel.rows:
            met = [e for e in candidates if not any(e.differing(run) for run in row.runs)]
            if met:
                out[panel.model, panel.dataset, row.label] = met
    return out


def beside(
    rows: Sequence[Mapping], runs: Sequence[Run], names: Sequence[str]
) -> tuple[list[dict], list[str]]:
    """Rows of `group.summarise` with "published" and "minus_published" where there is one, and footnotes.

    The number is that nearest in weights remaining to what the row reached; "published_shown" has its mark.
    """
    members: dict[tuple, list[Run]] = {}
    for run, name in zip(runs, names):
        if run.status == "done":
            members.setdefault((run.identity["model"], run.identity["dataset"], name), []).append(run)
    out, footnotes = [dict(row) for row in rows], {}
    for row in out:
        place = (row["model"], row["dataset"])
        left = 1 - row["sparsity"]
        share = Share(left, left * (1 - TOLERANCE), left * (1 + TOLERANCE))
        near = [e for e in _of(*place) if nearest([e], share) is not None] if not row["partial"] else []
        met = [e for e in near if not any(e.differing(run) for run in members[*place, row["method"]])]
        value = nearest(met, share)
        if value is not None and row["value"] is not None:
            whose = next(e for e in met if nearest([e], share) == value).footnote
            mark = footnotes.setdefault(whose, f"[{len(footnotes) + 1}]")
            row |= {"published": value, "minus_published": row["value"] - value, "published_by": whose}
            row["published_shown"] = f"{percent(value)} {mark}"
    return out, [f"{mark} published: {whose}" for whose, mark in footnotes.items()]


def nearest(entries: Sequence[Entry], share: Share) -> float | None:
    """The value of the entries that is nearest to a column in weights remaining, if one is near enough."""
    there = {
        r: e.values[r] for e in entries for r in e.values if abs(r - share.asked) <= TOLERANCE * share.asked
    }
    return there[min(there, key=lambda r: abs(r - share.asked))] if there else None


def remarks(panels: Sequence[Panel], shown: Published) -> list[str]:
    """Footnotes of what is shown, and a line about what is not: of other settings, or known to nobody."""
    out = [f"{mark} published: {footnote}" for footnote, mark in marks(shown).items()]
    for panel in panels:
        candidates = _of(panel.model, panel.dataset)
        if candidates and not any(key[:2] == (panel.model, panel.dataset) for key in shown):
            pairs = [(e.differing(row.runs[0]), row.label, e) for row in panel.rows for e in candidates]
            missing, label, entry = min(pairs, key=lambda pair: len(pair[0]))
            if missing:
                more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
                out.append(
                    f"{panel.model} on {panel.dataset}: {entry.paper} published numbers; to compare with "
                    f"them, {label} would need {', '.join(missing[:NAMED])}{more}"
                )
    runs = [run for panel in panels for row in panel.rows for run in row.runs]
    unknown = [
        entry["name"]
        for entry in _content()["unknown"]
        if any(all(_has(run, key, _texts(value)) for key, value in entry["where"].items()) for run in runs)
    ]
    if unknown:
        out.append(f"no published number is known for {', '.join(unknown)}: their tables were not at hand")
    return out


def marks(shown: Published) -> dict[str, str]:
    """Footnote -> its mark, "[1]", "[2]", ..."""
    footnotes = dict.fromkeys(entry.footnote for met in shown.values() for entry in met)
    return {footnote: f"[{i}]" for i, footnote in enumerate(footnotes, start=1)}


@cache
def _of(model: str, dataset: str) -> tuple[Entry, ...]:
    """Entries of a model and data set."""
    return tuple(e for e in entries() if model in e.where["model"] and dataset in e.where["dataset"])


def _has(run: Run, key: str, texts: Iterable[str]) -> bool:
    """Whether a run's setting has one of the texts; what is not known has none."""
    if key == "companion":
        companions = (run.identity.get("companion") or "none").split("+")
        return any(text in companions for text in texts)
    if "." in key:
        return run.configuration is not None and run.configuration.get(key) in texts
    return key in run.identity and canonical(run.identity[key]) in texts


def _texts(value: Any) -> tuple[str, ...]:
    """A setting of published.json as canonical texts; a list holds alternatives."""
    return tuple(map(canonical, value)) if isinstance(value, list) else (canonical(value),)


@cache
def _content() -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
