"""Statistics of a handful of runs: seeds are the replicates, each counted once, at its last epoch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Of n values, one a seed; NaN where n is too small to say."""

    n: int
    best: float  # the lowest: best seed, never best epoch
    mean: float
    sd: float  # sqrt(sum (x - mean)^2 / (n - 1))
    low: float  # 95 % interval of the mean: mean -+ t(0.975, n-1) sd / sqrt(n)
    high: float


def summarize(values: Iterable[float]) -> Summary:
    """n, best, mean, sd and the 95 % t-interval of the mean of one value a seed, lower being better."""
    x = np.array(list(values), dtype=float)
    n = len(x)
    if n == 0:
        return Summary(0, *[math.nan] * 5)
    mean = float(x.mean())
    if n == 1:
        return Summary(1, mean, mean, *[math.nan] * 3)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Summary(n, float(x.min()), mean, sd, mean - half, mean + half)


@dataclass(frozen=True)
class Paired:
    """Differences b - a over seeds that both have; NaN where there are too few, or all differences are equal."""

    n: int
    mean: float
    sd: float
    low: float  # 95 % t-interval of the mean difference
    high: float
    t: float  # mean / (sd / sqrt(n)), n - 1 degrees of freedom
    p: float  # two-sided, of the paired t-test
    effect: float  # Cohen's d of the differences: mean / sd


def paired(a: Iterable[float], b: Iterable[float]) -> Paired:
    """The paired t-test of b against a; the same position is the same seed."""
    difference = np.array(list(b), dtype=float) - np.array(list(a), dtype=float)
    s = summarize(difference)
    if s.n < 2 or s.sd == 0:
        return Paired(s.n, s.mean, s.sd, s.low, s.high, *[math.nan] * 3)
    t = s.mean / (s.sd / math.sqrt(s.n))
    p = 2 * float(stats.t.sf(abs(t), s.n - 1))
    return Paired(s.n, s.mean, s.sd, s.low, s.high, t, p, s.mean / s.sd)
