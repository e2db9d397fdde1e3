"""Statistics of a handful of runs: seeds are the replicates, each counted once, at its last epoch.

No interval is given of fewer than three values: Student's t at n = 2 is 12.7 standard errors wide and tells nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

FEWEST = 3  # values that an interval or a test needs


@dataclass(frozen=True)
class Summary:
    """Summary statistics of n values, one per seed; NaN where n is too small for one."""

    values: tuple[float, ...]  # ascending
    n: int
    best: float  # the lowest: best seed, never best epoch
    mean: float
    sd: float  # sqrt(sum (x - mean)^2 / (n - 1))
    low: float  # 95 % interval of the mean: mean -+ t(0.975, n-1) sd / sqrt(n), from n = 3
    high: float


def summarize(values: Iterable[float], level: float = 0.95) -> Summary:
    """Return n, best, mean, sd and the t-interval of the mean at a level, of one value per seed, lower being better."""
    x = np.sort(np.array(list(values), dtype=float))
    n = len(x)
    if n == 0:
        return Summary((), 0, *[math.nan] * 5)
    mean = float(x.mean())
    sd = float(x.std(ddof=1)) if n > 1 else math.nan
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n) if n >= FEWEST else math.nan
    return Summary(tuple(map(float, x)), n, float(x[0]), mean, sd, mean - half, mean + half)


def bands(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval of each column's mean, values (seeds, points)."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


@dataclass(frozen=True)
class Paired(Summary):
    """Differences b - a over seeds that both have; NaN where there are too few, or all differences are equal."""

    t: float = math.nan  # mean / (sd / sqrt(n)), n - 1 degrees of freedom
    p: float = math.nan  # two-sided, of the paired t-test
    effect: float = math.nan  # Cohen's d of the differences: mean / sd


def paired(a: Any, b: Any) -> Paired:
    """Return the paired t-test of b against a over the seeds that both have; each a Series or dict by seed."""
    s = summarize((pd.Series(b, dtype=float) - pd.Series(a, dtype=float)).dropna())
    if s.n < FEWEST or s.sd == 0:
        return Paired(**vars(s))
    t = s.mean / (s.sd / math.sqrt(s.n))
    return Paired(**vars(s), t=t, p=2 * float(stats.t.sf(abs(t), s.n - 1)), effect=s.mean / s.sd)


def equivalence(differences: Iterable[float], within: float) -> tuple[str, float, float]:
    """Return equivalent, not equivalent or inconclusive, and the ends of the 90 % t-interval of the mean difference.

    Two one-sided tests at 5 % each (Schuirmann 1987): equivalent where the interval lies within ±within, not equivalent
    where it lies outside; inconclusive, and NaN, of fewer than three differences.
    """
    s = summarize(differences, level=0.9)
    if -within <= s.low and s.high <= within:
        return "equivalent", s.low, s.high
    return "not equivalent" if s.low > within or s.high < -within else "inconclusive", s.low, s.high
