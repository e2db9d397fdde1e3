"""Intervals and tests of a few values, against numbers worked out by hand and scipy."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from normloss.analysis import stats


def test_statistics_equal_numbers_worked_out_by_hand():
    # 2 3 4: deviations -1 0 1, sd sqrt(2/2); 4.303 / sqrt(3) = 2.484
    three = stats.summarize([3.0, 2.0, 4.0])
    assert (three.n, three.best, three.mean, three.sd) == (3, 2.0, 3.0, 1.0)
    assert (three.low, three.high) == pytest.approx((0.516, 5.484), abs=1e-3)
    # deviations -0.14 -0.04 0.06 -0.02 0.14, squares sum to 0.0448, sd sqrt(0.0448/4); 2.776 / sqrt(5) = 1.2415
    five = stats.summarize([5.84, 5.94, 6.04, 5.96, 6.12])
    assert (five.mean, five.sd) == pytest.approx((5.98, 0.1058), abs=1e-4)
    assert (five.low, five.high) == pytest.approx((5.849, 6.111), abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.7], [4.44, 4.44], [1.0, 3.0]])
def test_fewer_than_three_values_have_no_interval_and_no_test(values):
    few, test = stats.summarize(values), stats.paired(np.zeros(len(values)), values)
    assert (few.n, few.values, test.n) == (len(values), tuple(values), len(values))
    assert np.isnan([few.low, few.high, test.low, test.high, test.t, test.p, test.effect]).all()
    assert np.isnan(stats.paired([0.0] * 3, [0.25] * 3).p)  # three equal differences


def test_equivalence_is_two_one_sided_tests():
    # mean 0.2, sd 0.2, n = 4: one-sided t is (1 - 0.2) / (0.2 / 2) = 8 on the near side and 12 on the other
    values = [0.0, 0.1, 0.3, 0.4]
    verdict, low, high = stats.equivalence(values, 1.0)
    half = scipy_stats.t.ppf(0.95, 3) * np.std(values, ddof=1) / 2
    assert (verdict, low, high) == ("equivalent", pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    for margin in (0.2, 0.35, 0.5):  # equivalent exactly where both one-sided tests have p < 0.05
        p = max(
            scipy_stats.ttest_1samp(values, bound, alternative=side).pvalue
            for bound, side in ((margin, "less"), (-margin, "greater"))
        )
        assert (stats.equivalence(values, margin)[0] == "equivalent") == (p < 0.05)
    assert stats.equivalence([3.0, 3.1, 2.9], 1.0)[0] == "not equivalent"
    assert stats.equivalence([0.5, 1.0, 1.5], 1.0)[0] == "inconclusive"
    assert stats.equivalence([0.0, 0.1], 1.0)[0] == "inconclusive"


def test_paired_statistics_equal_numbers_worked_out_by_hand():
    # differences -1 -2 -3: mean -2, sd 1; t = -2 sqrt(3) = -3.464; with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    test = stats.paired([5.0, 6.0, 7.0], [4.0, 4.0, 4.0])
    assert (test.n, test.mean, test.sd, test.effect) == (3, -2.0, 1.0, -2.0)
    assert (test.t, test.p) == pytest.approx((-2 * math.sqrt(3), 1 - math.sqrt(12 / 14)))
    assert (test.low, test.high) == pytest.approx((-4.484, 0.484), abs=1e-3)
