"""Which number of a round a report is about: "top1", "test/top1", "valid/loss", "pruned/top5"."""

from collections.abc import Mapping

NAMES = ("top1", "top5", "loss")
SPLITS = {
    "test": "test",
    "valid": "validation",
    "pruned": "test, right after pruning",
}  # in front of the slash -> in words; "pruned" is measured on the test set too
TITLES = {"top1": "top-1", "top5": "top-5", "loss": "loss"}
KNOWN = (*NAMES, *(f"{split}/{name}" for split in SPLITS for name in NAMES))


def parts(metric: str) -> tuple[str, str]:
    """Split and name of a metric.

    >>> parts("top1"), parts("valid/loss")
    (('test', 'top1'), ('valid', 'loss'))
    """
    split, slash, name = metric.rpartition("/")
    return (split if slash else "test"), name


def is_loss(metric: str) -> bool:
    """Whether smaller is better, and the number is no percentage."""
    return parts(metric)[1] == "loss"


def title(metric: str) -> str:
    """The name in words, without the split: "top-1"."""
    return TITLES[parts(metric)[1]]


def place(metric: str) -> str:
    """The split in words: "test", "validation"."""
    return SPLITS[parts(metric)[0]]


def reading(row: Mapping, metric: str) -> float | None:
    """The number in a round of result.json; None where it was not measured."""
    split, name = parts(metric)
    return (row.get(split) or {}).get(name)


def words(metric: str) -> str:
    """Split and name in words: "test top-1"."""
    return f"{place(metric)} {title(metric)}"
