"""Timing: contenders interleaved in one process, medians over blocks, ratios within a block; and whole processes."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]


def interleave(works: Mapping[str, Work], blocks: int, clock: Callable[[], float] = time.perf_counter) -> "Times":
    """Each work once unmeasured (allocations, choice of algorithms), then `blocks` rounds of all of them in turn.

    A drift of the machine falls on all alike. clock: time.process_time counts this process's CPU seconds, which what
    else the machine does hardly moves. A work on a GPU synchronizes by itself before it returns.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(blocks):
        for name, work in works.items():
            began = clock()
            work()
            seconds[name].append(clock() - began)
    return Times(seconds)


@dataclass(frozen=True)
class Times:
    """Seconds of every block by contender."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over blocks of seconds(name) / seconds(to), each pair from the same round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


@dataclass(frozen=True)
class Measurement:
    """A measured figure and its target: at least `at_least`, or at most `at_most`; neither: reported only."""

    subject: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        low = self.at_least is None or self.value >= self.at_least
        high = self.at_most is None or self.value <= self.at_most
        return "pass" if low and high else "short"

    @property
    def target(self) -> str:
        low = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        high = [] if self.at_most is None else [f"at most {self.at_most:g}"]
        return ", ".join(low + high)


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of a process on one thread; raises RuntimeError with its output if it fails."""
    before = _children_seconds()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {ended.returncode}:\n{ended.stdout}")
    return _children_seconds() - before


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
