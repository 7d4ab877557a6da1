"""Which values of a YAML file fit a type hint."""

from typing import Any

import pytest

from prunebench.hints import fits


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ({"patch_size": 4, "qk_norm": True}, dict[str, Any] | None, True),
        ("patch_size=4", dict[str, Any] | None, False),
        (None, dict[str, Any] | None, True),
        ([1, "a"], list[Any], True),
        ([1, "a"], list[int], False),
        (True, int, False),
        (1, float, True),
    ],
)
def test_values_are_held_against_their_hints(value, hint, expected):
    assert fits(value, hint) is expected
