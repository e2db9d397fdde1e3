"""A budget of time on some machine: which runs come first in it, what it is expected to bring, when runs stop."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapreplace
from math import inf

from normloss.config import Config
from normloss.runs.records import RunRecord
from normloss.signals import SAVE_SECONDS
from normloss.training.durations import Durations, share_done, spell

LEAST_SECONDS = 20.0  # a run is not started for less: it would read its data and leave


@dataclass(frozen=True)
class Budget:
    """When a sweep began, and when its runs have to leave (seconds since the epoch)."""

    minutes: float
    began: float

    @property
    def deadline(self) -> float:
        return self.began + 60 * self.minutes - SAVE_SECONDS

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    @property
    def open(self) -> bool:
        """Whether there is time to start another run."""
        return self.left > LEAST_SECONDS


def arrange(configs: list[Config]) -> list[Config]:
    """Order runs: nearly finished ones first, then one seed of every setting before the next seed."""
    seeds: Counter[str] = Counter()
    rank = {}
    for cfg in configs:  # the first seed of a setting, the second, ...
        rank[cfg.id] = seeds[cfg.setting_id]
        seeds[cfg.setting_id] += 1
    done = {cfg.id: share_done(cfg) for cfg in configs}
    return sorted(configs, key=lambda cfg: (-done[cfg.id], rank[cfg.id]))  # stable: else in the order they came


def outlook(configs: Iterable[Config], jobs: int, seconds: float, runs: Iterable[RunRecord]) -> str:
    """Say how much work is left, `jobs` runs at a time, and how many of them end in `seconds`, as far as `runs` tell.

    runs: of the store, where finished ones say how long the others take.
    """
    times = Durations(runs)
    estimates = [(times.estimate(cfg), share_done(cfg)) for cfg in configs]
    left = [estimate.left(done) if estimate else inf for estimate, done in estimates]
    ends, finished = [0.0] * jobs, 0  # when each process has done what it has to do so far
    for each in left:
        end = ends[0] + each
        heapreplace(ends, end)
        finished += end <= seconds
    known = [each for each in left if each < inf]
    parts = [f"{finished} of {len(left)} runs are expected to finish"] if seconds and known else []
    parts += [f"{spell(sum(known) / jobs)} of work left"] if known else []
    if unknown := len(left) - len(known):
        parts.append(f"not known for {unknown} of {len(left)} runs: none like them is finished")
    return "; ".join(parts) or "nothing left"
