"""What `prune-run --help`, `list` and `--version` print: read from conf/, in milliseconds, without torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from prunebench import __version__

EXAMPLES = """\
  prune-run                                             lenet300 on digits, ten rounds, seconds
  prune-run method=imp model=resnet18                   one network, pruned and retrained in rounds
  prune-run method=one_shot sparsity.target=0.95        one pruning event to 95 % sparsity
  prune-run -m method=imp,lth seed=0,1,2                a sweep; hydra/launcher=joblib runs jobs side by side
  prune-run method=lth plan=true                        print the phases and stop
"""
LISTED = (
    *("method", "companion", "model", "dataset", "criterion", "schedule", "retrain", "protocol"),
    *("sparsity", "optimizer", "trainer", "experiment"),
)
PLURALS = {
    "methods": "method",
    "companions": "companion",
    "models": "model",
    "datasets": "dataset",
    "data": "dataset",
    "criteria": "criterion",
    "schedules": "schedule",
    "protocols": "protocol",
    "optimizers": "optimizer",
    "experiments": "experiment",
}


def answer(arguments: Sequence[str]) -> tuple[str, int] | None:
    """Text and exit code for arguments that ask for information; None for those that ask for a run."""
    if not arguments:
        return None
    if arguments[0] == "list":
        return listing(arguments[1:])
    if "--version" in arguments:
        return f"prunebench {__version__}", 0
    if "--help" in arguments or "-h" in arguments:
        return help_text(), 0
    return None


def conf() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def options(group: str) -> dict[str, str]:
    """Option -> its one line, from the first comment of its file, in natural order."""
    found = {}
    for path in sorted((conf() / group).glob("*.yaml"), key=lambda p: _natural(p.stem)):
        comments = [
            c for c in path.read_text().split("\n", 2)[:2] if c.startswith("#") and "@package" not in c
        ]
        found[path.stem] = comments[0].lstrip("# ") if comments else ""
    return found


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def help_text() -> str:
    """Usage, groups with their options, examples."""
    lines = [
        "prune-run: train, prune and retrain a network; every run leaves a result directory, and typing the same",
        "command again resumes it or says that it is done.",
        "",
        "usage: prune-run [GROUP=OPTION ...] [KEY=VALUE ...]      one run",
        "       prune-run -m KEY=VALUE,VALUE ...                  a sweep over all combinations",
        "       prune-run list [GROUP]                            options with a line on each",
        "       prune-run ... --cfg job --resolve                 the whole configuration, without running",
        "       prune-report DIRECTORY                            table and picture of many runs",
        "",
        "groups:",
    ]
    width = max(map(len, LISTED))
    for group in LISTED:
        names = list(options(group))
        if names:
            lines += _wrapped(f"  {group.ljust(width)}  ", names)
    lines += [
        "",
        "keys that most runs set:",
        "  seed=0                     all randomness is a function of it",
        "  sparsity.target=0.9        share of the prunable weights removed; sparsity.rounds=5 pruning events",
        "  protocol.dense=40ep        dense training; protocol.retrain=10ep after each event (ep: epochs, it: steps)",
        "  optimizer.lr=0.1           trainer.batch_size=128, trainer.device=cpu, trainer.threads=1",
        "  dataset.subset=5000        fewer training images; dataset.size=16 smaller ones",
        "  out=runs                   where result directories go",
        "",
        "examples:",
        EXAMPLES.rstrip(),
        "",
        'shell completion: eval "$(prune-run -sc install=bash)"   (also fish, zsh through bashcompinit)',
    ]
    return "\n".join(lines)


def _wrapped(head: str, names: Sequence[str], width: int = 100) -> list[str]:
    lines, line = [], head
    for name in names:
        if len(line) + len(name) + 1 > width:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += f"{name} "
    return [*lines, line.rstrip()]


def listing(groups: Sequence[str]) -> tuple[str, int]:
    """Options of the groups (all if none is named), one line each."""
    chosen = [PLURALS.get(g, g) for g in groups] or [g for g in LISTED if options(g)]
    for group in chosen:
        if group not in LISTED:
            close = difflib.get_close_matches(group, [*LISTED, *PLURALS], 1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(LISTED)}"
            return f"prune-run list {group}: no such group; {hint}", 2
    blocks = []
    for group in chosen:
        lines = options(group)
        width = max(map(len, lines), default=0)
        blocks.append(
            "\n".join([f"{group}:", *(f"  {n.ljust(width)}  {t}".rstrip() for n, t in lines.items())])
        )
    return "\n\n".join(blocks), 0
