"""The command line of `prune-report`."""

import argparse
from typing import NoReturn

from prunebench.report.axes import AXES
from prunebench.report.compare import TESTS
from prunebench.report.group import check_metric, close_ones
from prunebench.report.tradeoff import BARS

FORMATS = ("table", "csv", "md", "latex", "html")
USUAL = ("table", "csv", "md")
FIGURES = ("png", "pdf", "svg")

EXAMPLES = """examples:
  prune-report runs
  prune-report runs --baseline imp                # differences on common seeds, intervals, p-values
  prune-report runs --where model=resnet20 method=imp,lth --metric top5
  prune-report runs more-runs --out results/cifar10 --format md,csv,latex,html
  prune-report runs --rounds --no-plot
  prune-report runs --by criterion --strict
  prune-report runs --metric valid/top1
  prune-report runs --remaining 100,32.8,26.2,13.4 --baseline "lth cosine"
  prune-report runs --over macs --pareto --bars interval
  prune-report runs --layers sparsity --lr --figure pdf      # every layer after every round; learning rate
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
        help="only runs with these values, of result.json or of any option in config.yaml",
    )
    out.add_argument(
        "--by",
        metavar="KEY[,KEY]",
        help="rows by these keys, such as method or optimizer.lr, averaged over what else differs "
        "(always apart: model, data set, sparsity)",
    )
    out.add_argument(
        "--metric",
        default="top1",
        metavar="[SPLIT/]NAME",
        help="top1, top5 or loss; of the split test, valid, or pruned (test, right after pruning); default: "
        "test/top1",
    )
    out.add_argument(
        "--format",
        default=",".join(USUAL),
        metavar=",".join(FORMATS),
        help=f"what to make (default: {','.join(USUAL)})",
    )
    out.add_argument("--html", action="store_true", help="also make report.html: one page with everything")
    out.add_argument("--rounds", action="store_true", help="show every round of iterative runs in the table")
    out.add_argument(
        "--remaining",
        metavar="SHARES",
        help="instead show a column per share of weights remaining, in percent: 100,32.8,13.4, or all",
    )
    out.add_argument(
        "--channels", action="store_true", help="with --remaining: shares of filters and neurons, not weights"
    )
    out.add_argument(
        "--baseline", metavar="LABEL", help="also show the differences to this row, paired by seed"
    )
    out.add_argument(
        "--test",
        choices=list(TESTS),
        default="t",
        help="p-values of the differences, Holm-corrected: paired t (default) or Wilcoxon",
    )
    out.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1, after everything is written, if rows differ in more than they are compared by",
    )
    out.add_argument(
        "--layers",
        metavar="sparsity|METRIC.NAME",
        help="also show every layer after every round: sparsity, or a number that was measured",
    )
    out.add_argument(
        "--numbers",
        metavar="METRIC[.NAME],...",
        help="what diagnostics.png shows (default: every number that changes)",
    )
    out.add_argument("--lr", action="store_true", help="draw lr.png: learning rate, sparsity over the epochs")
    out.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw pictures")
    out.add_argument(
        "--figure", default="png", metavar=",".join(FIGURES), help="formats of the pictures (default: png)"
    )
    out.add_argument(
        "--over",
        default="compression",
        choices=list(AXES),
        help="what report.png shows the metric over (default: compression)",
    )
    out.add_argument(
        "--bars",
        default="std",
        choices=list(BARS),
        help="error bars of report.png: sample std over seeds (default), or 95 %% t-intervals of the mean",
    )
    out.add_argument(
        "--pareto",
        action="store_true",
        help="list the Pareto front over all rows, the metric against --over, and draw it in report.png",
    )
    return out


def check_options(options: argparse.Namespace) -> None:
    """Raises ValueError if a format or metric does not exist, or an option would have no effect."""
    formats, figures = options.format.split(","), options.figure.split(",")
    for option, given, known in (("--format", formats, FORMATS), ("--figure", figures, FIGURES)):
        for name in given:
            if name not in known:
                raise ValueError(f"{option} {name}: no such format{close_ones(name, known)}")
    check_metric(options.metric)
    if options.test != "t" and options.baseline is None:
        raise ValueError(f"--test {options.test}: has no effect without --baseline")
    if options.channels and options.remaining is None:
        raise ValueError("--channels: has no effect without --remaining")
    drawn = {"--numbers": options.numbers is not None, "--lr": options.lr}
    drawn |= {"--figure": options.figure != "png", "--bars": options.bars != "std"}
    drawn["--over"] = options.over != "compression" and not options.pareto
    for name, asked in drawn.items():
        if asked and not options.plot:
            raise ValueError(f"{name}: has no effect with --no-plot")
