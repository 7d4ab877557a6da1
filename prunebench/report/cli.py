"""The command `prune-report`: one table, one CSV and one picture out of many runs."""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prunebench.report.group import METRICS, check_metric, labels, repeated, summarise, where
from prunebench.report.read import Found, load
from prunebench.report.render import counts, markdown_lines, notes, text_lines, write_csv

FORMATS = ("table", "csv", "md")
NAMED = 5  # broken runs that are named

EXAMPLES = """examples:
  prune-report runs
  prune-report runs --where model=resnet20 method=imp,lth --metric top5
  prune-report runs more-runs --out results/cifar10 --format md,csv
  prune-report runs --rounds --no-plot
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
        "the result files under the directories. Unfinished runs are shown as partial.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument(
        "directories", nargs="+", metavar="DIR", help="searched at every depth, hidden folders are not"
    )
    out.add_argument(
        "--out", metavar="DIR", help="where report.csv, .md and .png go (default: the first directory)"
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
    out.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw report.png")
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
      ValueError: if a directory, metric, format or condition does not exist, or there is no run.
      OSError: if an output cannot be written.
    """
    formats = options.format.split(",")
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--format {name}: must be some of {','.join(FORMATS)}")
    check_metric(options.metric)
    found = load(options.directories)
    if not found.runs:
        raise ValueError(f"{' '.join(options.directories)}: no runs{_left_out(found)}")
    runs = where(found.runs, options.where)
    names = labels(runs)
    rows = summarise(runs, names, options.metric, rounds=options.rounds)
    remarks = [*notes(rows, options.metric, repeated(runs, names)), counts(found, runs)]
    if "table" in formats:
        width = shutil.get_terminal_size((120, 24)).columns
        wrapped = [
            line for remark in remarks for line in textwrap.wrap(remark, width, subsequent_indent="  ")
        ]
        print(*text_lines(rows, runs, options.metric, width=width), *wrapped, sep="\n")
        for path, reason in found.broken[:NAMED]:
            print(f"broken: {path}: {reason}")
        sys.stdout.flush()
    out = Path(options.out or options.directories[0])
    out.mkdir(parents=True, exist_ok=True)
    made = []
    if "csv" in formats:
        made.append(out / "report.csv")
        write_csv(made[-1], runs, names)
    if "md" in formats:
        made.append(out / "report.md")
        lines = markdown_lines(rows, runs, options.metric)
        lines += [f"- {line}" for line in (*remarks, f"made by `{command}`")]
        made[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.plot and rows:
        from prunebench.report.curve import report_png

        made.append(out / "report.png")
        report_png(runs, names, options.metric, made[-1])
    if made:
        print("written:", *made)
    return 0


def _left_out(found: Found) -> str:
    parts = [f"{len(found.other_version)} of another version"] if found.other_version else []
    if found.broken:
        path, reason = found.broken[0]
        parts.append(f"{len(found.broken)} broken, first {path}: {reason}")
    return f" ({'; '.join(parts)})" if parts else ""


if __name__ == "__main__":
    sys.exit(main())
