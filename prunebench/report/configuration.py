"""The options of a run as text that can be compared: from config.yaml and from what the user typed."""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

# What cannot change a result, as in prunebench.config, whose ids leave it out; a test compares the two.
IRRELEVANT = ("hydra", "out", "plan", "metrics", "tracker", "seed")
IRRELEVANT_OF_TRAINER = (
    "device",
    "threads",
    "checkpoint_every",
    "checkpoint_seconds",
    "share",
    "store",
    "quiet",
)
SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
# What may concern several sections: anchors and their uses, other documents, directives, comments above all.
WHOLE = re.compile(r"[&*]|^(?:---|\.\.\.|%)|\A[^A-Za-z_]", re.MULTILINE)
# Lines that differ between runs which are seeds of one another, with the lines on which long values go on.
VOLATILE = re.compile(r"^(?:seed|out):.*\n(?:[ ].*\n)*|^  store:.*\n(?:   .*\n)*", re.MULTILINE)


CONTROL, CONTROL_AT = "protocol.control", "protocol.control_at"


def read_configuration(directory: Path, *, aside: bool = False) -> Mapping[str, str] | None:
    """Options of a run's config.yaml that can influence its numbers: dotted key -> canonical text.

    Values that other options refer to (`recipe`) are there too. None if the file is missing or damaged.

    Args:
      directory: of the run.
      aside: of the controls beside its rounds; their options, and those of the rounds, are the options of
        runs that do only the one or the other.
    """
    try:
        text = (directory / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return _parsed(VOLATILE.sub("", text), aside)


def _parsed(text: str, aside: bool) -> Mapping[str, str] | None:
    """The content of a config.yaml.

    It is read section by section, a section being a key at the left edge with all that is indented below it:
    the configurations of a sweep differ in few, and a section is parsed once for all of them. The parser of
    YAML is what takes the time (a millisecond for a file).
    """
    sections = [text] if WHOLE.search(text) else SECTION.split(text)[1:]
    found = [_section(section) for section in sections]
    if None in found and len(sections) > 1:
        found = [_section(text)]
    return None if None in found or not found else _merged(tuple(found), aside)


@cache
def _section(text: str) -> tuple[tuple[str, str], ...] | None:
    """The options of a part of a config.yaml; None if it is damaged."""
    import yaml

    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
    if not isinstance(content, dict):
        return None
    download = isinstance(dataset := content.get("dataset"), dict) and is_download(dataset)
    return tuple(
        (key, text)
        for key, text in _flat(content)
        if matters(key) and not (download and key == "dataset.root")
    )


@cache
def _merged(sections: tuple[tuple[tuple[str, str], ...], ...], aside: bool) -> Mapping[str, str]:
    """One mapping of all sections; runs of one configuration have it in common."""
    return one_side({key: text for section in sections for key, text in section}, aside=aside)


def one_side(options: dict[str, str], *, aside: bool) -> dict[str, str]:
    """Options of a run of the rounds alone, or of the controls, where a run trains these beside the rounds.

    >>> both = {"protocol.control": "reinit", "protocol.control_at": "every"}
    >>> one_side(dict(both), aside=True), one_side(dict(both), aside=False)
    ({'protocol.control': 'reinit'}, {'protocol.control': 'none'})
    """
    if options.pop(CONTROL_AT, "last") == "every" and not aside:
        options[CONTROL] = "none"
    return options


@lru_cache(maxsize=1024)
def every_option(directory: Path) -> Mapping[str, str]:
    """All options of a run's config.yaml, also those that cannot influence its numbers; none if damaged."""
    import yaml

    try:
        content = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(_flat(content)) if isinstance(content, dict) else {}


def is_download(dataset: Mapping[str, Any]) -> bool:
    """Whether the data set is a known one, wherever its files lie; an image folder is what lies there."""
    return "download" in dataset


def matters(key: str) -> bool:
    """Whether the option at a dotted key can influence the numbers of a run."""
    group, _, rest = key.partition(".")
    if group in IRRELEVANT or key == "dataset.download":
        return False
    return not (group == "trainer" and rest.partition(".")[0] in IRRELEVANT_OF_TRAINER)


def canonical(value: Any) -> str:
    """One text for all ways to write a value.

    >>> canonical(5e-4), canonical("0.0005"), canonical("5e-04"), canonical(2.0), canonical("True")
    ('0.0005', '0.0005', '0.0005', '2', 'true')
    >>> canonical([0.5, 0.75]), canonical("[0.50, .75]"), canonical(None), canonical("40ep")
    ('[0.5,0.75]', '[0.5,0.75]', 'null', '40ep')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{canonical(entry)}' for key, entry in value.items())}}}"
    text = str(value).strip().strip("'\"")
    if text.lower() in ("true", "false", "null"):
        return text.lower()
    if text.startswith("[") and text.endswith("]") and not set(text[1:-1]) & set("[]{}"):
        return canonical([part for part in text[1:-1].split(",") if part.strip()])
    try:
        return canonical(int(text) if text.lstrip("+-").isdecimal() else float(text))
    except ValueError:
        return text


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of nested mappings under dotted keys; a list is one leaf, an empty mapping too."""
    out = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out += _flat(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", canonical(value)))
    return out
