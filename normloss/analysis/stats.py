"""Statistics of a handful of runs: seeds are the replicates, each counted once, at its last epoch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# 97.5 % quantile of Student's t with 1, 2, ... 29 degrees of freedom
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip


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
    half = T_975[min(n - 1, len(T_975)) - 1] * sd / math.sqrt(n)  # for n > 30 a little too wide
    return Summary(n, float(x.min()), mean, sd, mean - half, mean + half)
