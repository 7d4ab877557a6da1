"""Which values of a YAML file fit a type hint, and how a hint is called in a message."""

import math
import types
import typing
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be of the annotated type; NaN fits none, what YAML cannot express fits all."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and math.isnan(value):
        return False
    if hint is typing.Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    if origin is tuple and isinstance(value, list) and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin in (list, tuple) and isinstance(value, list):
        item = arguments[0] if arguments else Any
        return all(fits(v, item) for v in value)
    if origin is dict and isinstance(value, dict):
        return all(fits(v, arguments[1]) for v in value.values())
    scalar = isinstance(value, str | int | float | bool) or value is None
    return not (scalar and (origin in (list, tuple, dict) or (isinstance(hint, type) and hint is not object)))


def name_of(hint: Any) -> str:
    """A hint in words, as far as YAML can give it: "a whole number", "one of a, b", "[a number, text]"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        words = [name_of(h) for h in arguments if not _is_class(h)]
        return " or ".join(words or map(name_of, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(name_of, arguments))}]"
    plain_names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    plain_names[type(None)] = "null"
    return plain_names.get(hint, str(hint).replace("typing.", "").replace("<class '", "").replace("'>", ""))


def _is_class(hint: Any) -> bool:
    """Whether only code can give a value of the hint, such as a tensor."""
    return isinstance(hint, type) and hint not in (int, float, str, bool, type(None), list, tuple, dict)
