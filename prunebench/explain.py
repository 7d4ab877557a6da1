"""One line for a mistake on the command line, from what Hydra and OmegaConf raise about it."""

import difflib
import re
from collections.abc import Sequence

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prunebench import config, overview

FLAGS = {
    *("-m", "--multirun", "--run", "-c", "--cfg", "-r", "--resolve", "-p", "--package", "-i", "--info"),
    *("-sc", "--shell-completion", "-h", "--help", "--hydra-help", "--version", "--experimental-rerun"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
}
WRONG_VALUE = {  # in a message of OmegaConf -> what the value must be
    "could not be converted to Integer": "a whole number",
    "could not be converted to Float": "a number",
    "is not a valid bool": "true or false",
    "could not be converted to Boolean": "true or false",
    "is not Optional": "given, not null",
    "is not a ListConfig": "a list, such as [a,b]",
}


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """One line about an error of Hydra or OmegaConf, with the key, and the closest name where there is one.

    Args:
      error: what was raised.
      arguments: what the user typed; the options of the groups chosen there are those that are suggested.
    """
    text = _chain(error)
    full = re.search(r"full_key: (\S+)", text)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write KEY=VALUE, with quotes around special characters"
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'", text):
        listed = re.search(r"Available options in '[^']+':\n((?:\t.*\n)+)", text)
        options = listed[1].split() if listed else list(overview.options(match[1]))
        return f"{match[1]}={match[2]}: no such {match[1]}; {closest(match[2], options)}"
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{match[1]}: no such group; {closest(match[1], config.GROUPS)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], arguments)
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"+{match[1]}: there is such an option already; write {match[1]}=VALUE without the +"
    if match := re.search(r"Could not delete from config\. '([^']+)'", text):
        return f"~{match[1]}: no such option"
    if full and "does not support deletion" in text:
        return f"~{full[1]}: cannot be removed; set it to another value"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values are a sweep; add -m, or write KEY=[A,B] for a list"
    if full and full[1] == "_dummy_" and (match := re.search(r"Interpolation key '(\w+)' not found", text)):
        return f"{match[1]}: every run needs one; write {match[1]}=OPTION"
    if match := re.search(r"Key '([^']+)' (?:is )?not in", text):
        return _unknown_key(full[1] if full else match[1], arguments)
    typed = re.search(r"Error merging override (.*)", text)
    value = re.search(r"Value '(.*?)' (?:of type|is not)", text)
    for sign, wanted in WRONG_VALUE.items():
        if sign in text and (typed or full):
            subject = typed[1] if typed else f"{full[1]}={value[1]}" if value else full[1]
            return f"{subject}: must be {wanted}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{full[1]}: {first}" if full and full[1] not in first else first


def closest(name: str, options: Sequence[str]) -> str:
    """Hint after a wrong name: the most similar option, or all of them."""
    close = difflib.get_close_matches(name, options, 1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(options) or 'none'}"


def check_arguments(arguments: Sequence[str]) -> list[str]:
    """What is wrong with flags and choices of groups and would only be found later, or be told in many lines.

    Returns:
      One line for each: unknown flags; unknown options of groups in a sweep, all at once; groups set to null;
      a recipe that is not there, which the configuration calls optional.
    """
    found = [
        f"{a}: no such flag; see prune-run --help"
        for a in arguments
        if a.startswith("-") and a.split("=")[0] not in FLAGS
    ]
    for override in _typed(arguments):
        group = override.key_or_group
        if override.is_delete() or group not in (*config.GROUPS, "recipe"):
            continue
        known = list(overview.options(group))
        if override.is_sweep_override():
            chosen = [v for v in override.sweep_string_iterator() if not v.startswith("[")]
        else:
            chosen = [override.value()] if group == "recipe" or override.value() is None else []
        for value in chosen:
            name = "null" if value is None else str(value)
            if name not in known and not (name == "null" and group in ("experiment", "recipe")):
                found.append(f"{group}={name}: no such {group}; {closest(name, known)}")
    return found


def _typed(arguments: Sequence[str]) -> list[Override]:
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    return OverridesParser.create().parse_overrides(overrides)


def _chain(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    """Message for a key that the configuration does not have."""
    *parents, last = re.split(r"[./]", key)
    cfg = node = _composed(arguments)
    for depth, parent in enumerate(parents):
        if not isinstance(node, DictConfig) or parent not in node:
            last, parents = parent, parents[:depth]
            break
        node = node[parent]
    if not isinstance(node, DictConfig):
        return f"{key}: no such option; {'.'.join(parents)} has none"
    path = "".join(f"{p}." for p in parents)
    options = [f"{path}{o}" for o in node if not o.startswith("_")]
    if path:
        close = difflib.get_close_matches(f"{path}{last}", options, 1, cutoff=0.75)
    else:
        groups = [g for g in reversed(list(cfg)) if g != "recipe" and isinstance(cfg[g], DictConfig)]
        nested = {o: f"{g}.{o}" for g in groups for o in cfg[g]}
        close = [nested[last]] if last in nested else difflib.get_close_matches(last, options, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(options) or 'none'}"
    return f"{key}: no such option; {hint}"


def _composed(arguments: Sequence[str]) -> DictConfig:
    """The configuration of the groups that were chosen; of the default ones if these do not go together."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    chosen = [
        o.input_line
        for o in _typed(arguments)
        if o.key_or_group in config.GROUPS and not o.is_sweep_override() and not o.is_delete()
    ]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config.conf_directory().absolute()), version_base="1.3"):
        try:
            return compose("config", overrides=chosen)
        except (HydraException, OmegaConfBaseException):
            return compose("config")
