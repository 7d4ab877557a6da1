"""Lengths of phases as text, "160ep" or "2000it": checked, subtracted and shared out without a run."""

import re

from prunebench.core.phase import parse_length


def check_length(key: str, text: str) -> None:
    """Raise ValueError that names the key, unless the text is a length."""
    try:
        parse_length(text, 1)
    except ValueError as error:
        rule = str(error).partition(": ")[2]
        raise ValueError(f"{key}={text}: {rule}") from None


def parts(text: str) -> tuple[float, str]:
    """Number and unit of a checked length."""
    text = text.strip()
    return float(text[:-2]), text[-2:]


def difference(key: str, text: str, less_key: str, less: str) -> str:
    """Length `text` less length `less`, of one unit."""
    (number, unit), (less_number, less_unit) = parts(text), parts(less)
    if less_number == 0.0:
        return text
    if unit != less_unit:
        raise ValueError(f"{key}={text}: must have the unit of {less_key}={less}, since one is subtracted")
    if less_number > number:
        raise ValueError(f"{key}={text}: must be at least as long as {less_key}={less}")
    return _length(number - less_number, unit)


def split(key: str, text: str, rounds: int, total: str) -> list[str]:
    """Whole equal parts of `total`, the last with the remainder; `key=text` is what the user typed."""
    number, unit = parts(total)
    part = number // rounds
    if part == 0.0 and number > 0.0:
        raise ValueError(
            f"{key}={text}: must leave at least 1{unit} for each of the {rounds} rounds, but {total} is left "
            "for all of them; lengthen it, lower sparsity.rounds, or give all lengths in steps (it)"
        )
    return [_length(part, unit)] * (rounds - 1) + [_length(number - part * (rounds - 1), unit)]


def times(text: str, factor: float) -> str:
    """A checked length, multiplied; whole steps where it is one of steps."""
    number, unit = parts(text)
    return _length(round(number * factor) if unit == "it" else number * factor, unit)


def share_of_length(length: str, share: float) -> str:
    """`${share:160ep,0.5}` is 80ep.

    Raises:
      ValueError: if the length has no unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ep|it)", str(length))
    if match is None:
        raise ValueError(f"length={length!r}: must be a number with its unit, such as 160ep or 2000it")
    return f"{round(float(match[1]) * float(share)):d}{match[2]}"


def _length(number: float, unit: str) -> str:
    number = round(float(number), 6)  # 2.3 - 0.1 epochs is 2.2 epochs
    return f"{int(number) if number.is_integer() else number}{unit}"
