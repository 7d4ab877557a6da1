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
from typing import NoReturn

from prunebench.report.group import METRICS, check_metric, labels, where
from prunebench.report.parts import Part, ends, measured, oracle, rates, shares
from prunebench.report.read import Found, Run, load
from prunebench.report.render import counts

FORMATS = ("table", "csv", "md")
NAMED = 5  # broken runs that are named
WRAP = partial(textwrap.wrap, subsequent_indent="  ", break_on_hyphens=False)

EXAMPLES = """examples:
  prune-report runs
  prune-report runs --where model=resnet20 method=imp,lth --metric top5
  prune-report runs more-runs --out results/cifar10 --format md,csv
  prune-report runs --rounds --no-plot
  prune-report runs --remaining 100,32.8,26.2,13.4 --baseline "lth cosine"
  prune-report runs --layers dead_neurons.dynamic --lr
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The command line of `prune-report`."""
    out = Parser(
        prog="prune-report",
        description="Mean and standard deviation over seeds per method, model, data set and sparsity, from\n"
        "the result files under the directories. Unfinished runs are shown as partial. What runs\n"
        "measured beside accuracy and what the Oracle's search found is written and drawn too.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument(
        "directories", nargs="+", metavar="DIR", help="searched at every depth, hidden folders are not"
    )
    out.add_argument(
        "--out",
        metavar="DIR",
        help="where report.csv, .md, .png and others go (default: the first directory)",
    )
    out.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with these values",
    )
    out.add_argument(
        "--metric", default="top1", metavar="|".join(METRICS), help="on the test set (default: top1)"
    )
    out.add_argument(
        "--format", default=",".join(FORMATS), metavar=",".join(FORMATS), help="what to make (default: all)"
    )
    out.add_argument("--rounds", action="store_true", help="show every round of iterative runs in the table")
    out.add_argument(
        "--remaining",
        metavar="SHARES",
        help="instead show a column per share of weights remaining, in percent: 100,32.8,13.4, or all",
    )
    out.add_argument(
        "--baseline", metavar="LABEL", help="with --remaining: also the paired differences to this row"
    )
    out.add_argument(
        "--layers",
        metavar="METRIC.NAME",
        help="draw layers.png: a measured number of every layer after every round",
    )
    out.add_argument("--lr", action="store_true", help="draw lr.png: the learning rate over the epochs")
    out.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw pictures")
    return out


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
    formats = options.format.split(",")
    check_options(options, formats)
    found = load(options.directories)
    if not found.runs:
        raise ValueError(f"{' '.join(options.directories)}: no runs{_left_out(found)}")
    runs = where(found.runs, options.where)
    width = shutil.get_terminal_size((120, 24)).columns
    made = parts(runs, options, width=width)
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
    if written:
        print("written:", *written)
    return 0


def check_options(options: argparse.Namespace, formats: Sequence[str]) -> None:
    """Raises ValueError if a format or metric does not exist, or an option would have no effect."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--format {name}: must be some of {','.join(FORMATS)}")
    check_metric(options.metric)
    if options.baseline is not None and options.remaining is None:
        raise ValueError(f"--baseline {options.baseline}: has no effect without --remaining")
    for name, asked in (("--layers", options.layers is not None), ("--lr", options.lr)):
        if asked and not options.plot:
            raise ValueError(f"{name}: has no effect with --no-plot")


def parts(runs: Sequence[Run], options: argparse.Namespace, *, width: int) -> list[Part]:
    """The parts of the report that the options ask for, and those for which the runs have something."""
    names, metric = labels(runs), options.metric
    out = [ends(runs, names, metric, rounds=options.rounds, width=width)]
    if options.remaining is not None:
        asked = {"asked": options.remaining, "baseline": options.baseline}
        out.append(shares(runs, names, metric, **asked, width=width))
    out += measured(runs, names, layers=options.layers)
    out += oracle(runs, names, width=width)
    return [*out, rates(runs, names)] if options.lr else out


def write(part: Part, out: Path, options: argparse.Namespace, ending: Sequence[str]) -> list[Path]:
    """Write the files of a part in the formats that are asked for; `ending` goes below Markdown."""
    formats, made = options.format.split(","), []
    if "csv" in formats and part.csv is not None:
        made.append(out / f"{part.name}.csv")
        part.csv(made[-1])
    if "md" in formats and part.markdown is not None:
        made.append(out / f"{part.name}.md")
        lines = [*part.markdown, *(f"- {line}" for line in (*part.notes, *ending))]
        made[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.plot and part.png is not None:
        made.append(out / f"{part.name}.png")
        part.png(made[-1])
    return made


def _left_out(found: Found) -> str:
    parts = [f"{len(found.other_version)} of another version"] if found.other_version else []
    if found.broken:
        path, reason = found.broken[0]
        parts.append(f"{len(found.broken)} broken, first {path}: {reason}")
    return f" ({'; '.join(parts)})" if parts else ""


if __name__ == "__main__":
    sys.exit(main())
