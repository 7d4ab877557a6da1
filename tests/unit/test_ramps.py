"""Sparsity ramps: worked values, exact ends, monotonicity, error messages."""

from itertools import pairwise

import pytest

from prunebench.ramps import cosine, cubic, geometric, linear

RAMPS = [geometric, linear, cubic, cosine]
TARGETS = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.999]


@pytest.mark.parametrize(
    ("target", "rounds", "rate"), [(0.9, 2, 0.683772), (0.9, 3, 0.535841), (0.98, 3, 0.728558)]
)
def test_geometric_removes_the_same_share_of_the_rest(target, rounds, rate):
    density = [1.0 - geometric(j / rounds, target=target) for j in range(rounds + 1)]
    shares = [1.0 - after / before for before, after in pairwise(density)]
    assert shares == pytest.approx([rate] * rounds, abs=5e-7)


def test_cubic_gives_the_rows_of_gmp():
    tenths = [cubic(k / 10, target=0.9) for k in range(11)]
    expected = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert tenths == pytest.approx(expected, abs=5e-5)
    ninths = [cubic(t / 9, target=0.9) for t in range(1, 10)]
    assert ninths == pytest.approx(
        [0.2679, 0.4765, 0.6333, 0.7457, 0.821, 0.8667, 0.8901, 0.8988, 0.9], abs=5e-5
    )


def test_linear_and_cosine_at_quarters():
    assert [linear(x, target=0.8) for x in (0.25, 0.5, 0.75)] == pytest.approx([0.2, 0.4, 0.6], rel=1e-12)
    assert [cosine(x, target=0.8) for x in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.117157, 0.4, 0.682843], abs=5e-7
    )


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("start", [0.0, 0.1, 0.3])
def test_ends_are_exact_and_held(ramp, target, start):
    start = min(start, target)
    assert [ramp(x, target=target, start=start) for x in (-1.0, 0.0, 1.0, 2.0)] == [
        start,
        start,
        target,
        target,
    ]


@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_rise(ramp):
    values = [ramp(x / 50, target=0.95, start=0.1) for x in range(51)]
    assert all(a < b for a, b in pairwise(values))


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(
    ("target", "start", "message"),
    [
        (1.0, 0.0, "target=1.0: must lie in [0, 1)"),
        (-0.1, 0.0, "target=-0.1: must lie in [0, 1)"),
        (0.5, 0.6, "start=0.6: must lie in [0, target=0.5]"),
        (0.5, -0.1, "start=-0.1: must lie in [0, target=0.5]"),
    ],
)
def test_ends_out_of_range_are_errors(ramp, target, start, message):
    with pytest.raises(ValueError) as error:
        ramp(0.5, target=target, start=start)
    assert str(error.value) == message
