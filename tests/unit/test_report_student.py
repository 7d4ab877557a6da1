"""Student's t against scipy."""

import math

import numpy
import pytest
from scipy import stats

from prunebench.report.student import central, interval, quantile


@pytest.mark.parametrize("freedom", [*range(1, 31), 100, 101, 999])
def test_quantiles_equal_those_of_scipy(freedom):
    for share in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999):
        expected = stats.t.ppf((1 + share) / 2, freedom)  # scipy 1.13 is right to 11 digits only
        assert quantile(share, freedom) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 50])
def test_the_share_between_minus_t_and_t_equals_that_of_scipy(freedom):
    for t in (0.0, 0.3, 2.0, 25.0):
        expected = 1 - 2 * stats.t.sf(t, freedom)
        assert central(math.atan(t / math.sqrt(freedom)), freedom) == pytest.approx(expected, abs=1e-13)


def test_nothing_lies_between_0_and_0():
    assert quantile(0.0, 3) == 0.0


def test_the_interval_of_paired_differences_is_that_of_scipys_paired_test():
    draw = numpy.random.default_rng(1)
    for n in (2, 3, 5, 12):
        a, b = draw.normal(size=(2, n))
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert interval((a - b).tolist()) == pytest.approx((expected.low, expected.high), rel=1e-10)


def test_one_value_has_no_interval():
    assert interval([0.5]) is None
    assert interval([]) is None
    assert interval([0.5, 0.5]) == (0.5, 0.5)
