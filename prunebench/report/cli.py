"""The command `prune-report`: tables, CSV and pictures out of many runs."""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prunebench.report.axes import priced
from prunebench.report.choose import chosen, where
from prunebench.report.fairness import Verdict, contract, lines, verdicts
from prunebench.report.label import labelled
from prunebench.report.options import check_options, parser
from prunebench.report.parts import Part, ends, measured, oracle, pareto_front, rates, shares
from prunebench.report.read import Found, Run, load
from prunebench.report.render import counts
from prunebench.report.sheets import INLINE, latex_lines, markdown_lines, page

NAMED = 5  # broken runs that are named
WRAP = partial(textwrap.wrap, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: done, 1: an output could not be written, 2: the question was wrong."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    try:
        return report(options, shlex.join(["prune-report", *given]))
    except ValueError as error:
        print(f"prune-report: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"prune-report: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def report(options: argparse.Namespace, command: str) -> int:
    """Read, group and write what the options ask for.

    Raises:
      ValueError: if a directory, metric, format or condition does not exist, there is no run, or an option
        would have no effect.
      OSError: if an output cannot be written.
    """
    check_options(options)
    formats = [*options.format.split(","), *(["html"] if options.html else [])]
    found = load(options.directories)
    if not found.runs:
        raise ValueError(f"{' '.join(options.directories)}: no runs{_left_out(found)}")
    runs = where(found.runs, options.where)
    width = shutil.get_terminal_size((120, 24)).columns
    rows_by = None if options.by is None else chosen(runs, options.by)
    labels = labelled(runs) if rows_by is None else None
    names = [label.text for label in labels] if rows_by is None else rows_by.names
    made = parts(runs, names, options, width=width)
    judged = verdicts(runs, names, rows_by, labels=labels)
    remarks = [*(rows_by.notes if rows_by else ()), *lines(judged), *contract(runs, names)]
    first = "report" if options.remaining is None else "remaining"
    main = next(part for part in made if part.name == first)
    main.notes.extend(remarks)
    counted = counts(found, runs)
    if "table" in formats:
        shown = [part for part in made if part.name != "report" or options.remaining is None]
        remarks = [*(note for part in shown for note in part.notes), counted]
        wrapped = [line for remark in remarks for line in WRAP(remark, width)]
        print(*(line for part in shown for line in part.text), *wrapped, sep="\n")
        for path, reason in found.broken[:NAMED]:
            print(f"broken: {path}: {reason}")
        sys.stdout.flush()
    out = Path(options.out or options.directories[0])
    out.mkdir(parents=True, exist_ok=True)
    written = [path for part in made for path in write(part, out, options, [counted, f"made by `{command}`"])]
    if "html" in formats:
        written.append(out / "report.html")
        write_page(made, written, [counted, f"made by {command}"])
    if written:
        print("written:", *written)
    return strict(judged) if options.strict else 0


def strict(judged: Sequence[Verdict]) -> int:
    """Exit code of `--strict`: 1, with a line that says why, if a comparison is not known to be fair."""
    unfair = []
    for one in judged:
        aspects = [*dict.fromkeys(found.aspect for found in one.findings)]
        aspects += ["options not recorded"] if one.unrecorded else []
        unfair += [f"{one.where}: {', '.join(aspects)}"] if aspects else []
    if unfair:
        print(f"prune-report: --strict: not equal: {'; '.join(unfair)}", file=sys.stderr)
    return int(bool(unfair))


def parts(
    runs: Sequence[Run], names: Sequence[str], options: argparse.Namespace, *, width: int
) -> list[Part]:
    """The parts of the report that the options ask for, and those for which the runs have something."""
    metric, over = options.metric, options.over
    dear = priced(runs, over)
    merged = options.by is not None
    compared = {"baseline": options.baseline, "test": options.test, "width": width}
    drawn = {"rounds": options.rounds, "over": over, "bars": options.bars, "front": options.pareto}
    drawn["merged"] = merged
    if options.remaining is None:
        out = [ends(dear, names, metric, **drawn, **compared)]
    else:
        out = [ends(dear, names, metric, **drawn, width=width)]
        compared |= {"asked": options.remaining, "channels": options.channels}
        out.append(shares(runs, names, metric, merged=merged, **compared))
    out += [pareto_front(dear, names, metric, over=over, width=width)] if options.pareto else []
    out += measured(runs, names, asked=options.layers, numbers=options.numbers, width=width)
    out += oracle(runs, names, width=width)
    return [*out, rates(runs, names)] if options.lr else out


def write(part: Part, out: Path, options: argparse.Namespace, ending: Sequence[str]) -> list[Path]:
    """Write the files of a part in the formats that are asked for; `ending` goes below Markdown."""
    formats, made = options.format.split(","), []
    notes = [*part.notes, *ending]
    for rest, write_csv in part.csvs.items() if "csv" in formats else ():
        made.append(out / f"{part.name}{rest}")
        write_csv(made[-1])
    if "md" in formats and part.sheets is not None:
        made.append(out / f"{part.name}.md")
        lines = [*markdown_lines(part.sheets), *(f"- {line}" for line in notes)]
        made[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if "latex" in formats and part.sheets is not None:
        made.append(out / f"{part.name}.tex")
        made[-1].write_text("\n".join(latex_lines(part.sheets, notes)) + "\n", encoding="utf-8")
    for suffix in options.figure.split(",") if options.plot and part.picture is not None else ():
        made.append(out / f"{part.name}.{suffix}")
        part.picture(made[-1])
    return made


def write_page(parts: Sequence[Part], written: Sequence[Path], ending: Sequence[str]) -> None:
    """Write report.html, the last of the files, with the tables and their pictures among the others."""
    kind = next((kind for kind in INLINE if any(path.suffix == kind for path in written)), None)
    sections = [
        (part.sheets or (), [path for path in written if path.name == f"{part.name}{kind}"]) for part in parts
    ]
    notes = [*dict.fromkeys(note for part in parts for note in part.notes), *ending]
    written[-1].write_text(page("prune-report", sections, notes), encoding="utf-8")


def _left_out(found: Found) -> str:
    parts = [f"{len(found.other_version)} of another version"] if found.other_version else []
    if found.broken:
        path, reason = found.broken[0]
        parts.append(f"{len(found.broken)} broken, first {path}: {reason}")
    return f" ({'; '.join(parts)})" if parts else ""


if __name__ == "__main__":
    sys.exit(main())
