"""The cross entropy of every training step, thinned to what a figure can show."""

from dataclasses import dataclass

import numpy as np

SMOOTH = 19  # steps, as in the paper's Figs. 3 and 5
POINTS = 4000  # at most, of a thinned curve: more than a figure has pixels


@dataclass(frozen=True)
class Curve:
    """A run's cross entropy; point i stands for the steps up to step[i]. All arrays are (points,)."""

    step: np.ndarray  # counted from 1: the last step of the point's bucket
    mean: np.ndarray  # over the SMOOTH steps around it; NaN where the window is not whole
    low: np.ndarray  # smallest and largest single step since the point before
    high: np.ndarray


def running_mean(x: np.ndarray, window: int = SMOOTH) -> np.ndarray:
    """Return the mean of each `window` neighbours, or of all where there are fewer: (len(x) - window + 1,)."""
    window = min(window, len(x))
    return np.convolve(x, np.full(window, 1 / window), mode="valid")


def thin(ce: np.ndarray, points: int = POINTS) -> Curve:
    """Return a curve of at most `points` points; where it has as many as steps, low = high = ce, exactly.

    ce: (steps,), one value per step. Buckets are of equal length but the last.
    """
    ce = np.asarray(ce, np.float64)
    if not len(ce):
        return Curve(np.empty(0, np.int64), *(np.empty(0, np.float32) for _ in range(3)))
    bucket = -(-len(ce) // points)
    starts = np.arange(0, len(ce), bucket)
    last = np.minimum(starts + bucket, len(ce)) - 1  # positions, (points,)
    smooth = np.full(len(ce), np.nan)
    means = running_mean(ce)
    before = (len(ce) - len(means)) // 2
    smooth[before : before + len(means)] = means
    low, high = np.minimum.reduceat(ce, starts), np.maximum.reduceat(ce, starts)
    return Curve(last + 1, *(values.astype(np.float32) for values in (smooth[last], low, high)))
