"""The cross entropy of every step, thinned to what a figure shows."""

import numpy as np
import pytest

from normloss.runs.curves import POINTS, SMOOTH, running_mean, thin


def test_a_short_curve_is_kept_exactly():
    ce = np.random.default_rng(0).random(100).astype(np.float32)
    curve = thin(ce)
    np.testing.assert_array_equal(curve.step, np.arange(1, 101))
    np.testing.assert_array_equal(curve.low, ce)
    np.testing.assert_array_equal(curve.high, ce)
    assert np.isnan(curve.mean[:9]).all() and np.isnan(curve.mean[91:]).all()
    for i in (9, 50, 90):  # the window of 19 around it
        assert curve.mean[i] == pytest.approx(np.mean(ce[i - 9 : i + 10].astype(float)), rel=1e-6)


def test_a_long_curve_keeps_its_extremes_and_its_smooth_values():
    ce = np.random.default_rng(0).random(3 * POINTS + 7)
    ce[5000], ce[6000] = 9.0, -9.0
    curve = thin(ce)
    assert len(curve.step) <= POINTS
    assert (curve.step[-1], curve.high.max(), curve.low.min()) == (len(ce), 9.0, -9.0)
    smooth = running_mean(ce)
    whole = ~np.isnan(curve.mean)
    np.testing.assert_allclose(curve.mean[whole], smooth[curve.step[whole] - 1 - SMOOTH // 2], rtol=1e-6)
