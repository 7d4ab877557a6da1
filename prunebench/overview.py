"""What `prune-run --help`, `list` and `--version` print: read from conf/, in milliseconds, without torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from prunebench import __version__

EXAMPLES = """\
  prune-run                                      lenet300 on digits, in seconds
  prune-run method=imp model=resnet18            prune and retrain in rounds
  prune-run method=one_shot sparsity.target=0.95 one pruning event, to 95 %
  prune-run -m method=imp,lth seed=0,1,2         a sweep of six runs
  prune-run method=lth plan=true                 print the phases and stop
"""
LISTED = (
    *("method", "companion", "model", "dataset", "criterion", "schedule", "retrain", "protocol"),
    *("sparsity", "metrics", "tracker", "optimizer", "trainer", "experiment"),
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
    "trackers": "tracker",
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
        "prune-run: train, prune and retrain a network. Every run leaves a result",
        "directory; the same command again resumes it, or says that it is done.",
        "",
        "usage: prune-run [GROUP=OPTION ...] [KEY=VALUE ...]  one run",
        "       prune-run -m KEY=VALUE,VALUE ...              all combinations: a sweep",
        "       prune-run list [GROUP]                        options, a line on each",
        "       prune-run ... --cfg job --resolve             print the configuration",
        "       prune-report DIRECTORY                        table and picture of runs",
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
        "  sparsity.target=0.9        share of the prunable weights removed",
        "  sparsity.compression=8     instead: all parameters / kept parameters",
        "  sparsity.rounds=5          pruning events on the way there",
        "  protocol.dense=40ep        dense training, in epochs (ep) or steps (it)",
        "  protocol.retrain=10ep      training after each pruning event",
        "  optimizer.lr=0.1           also trainer.batch_size=128, trainer.device=cpu",
        "  dataset.subset=5000        fewer images; dataset.size=16: smaller ones",
        "  hydra/launcher=joblib      with -m: jobs side by side",
        "  out=runs                   where result directories go",
        "",
        "examples:",
        EXAMPLES.rstrip(),
        "",
        'shell completion: eval "$(prune-run -sc install=bash)"',
        "(or install=fish; zsh: first autoload -Uz bashcompinit && bashcompinit)",
    ]
    return "\n".join(lines)


def _wrapped(head: str, names: Sequence[str], width: int = 80) -> list[str]:
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
