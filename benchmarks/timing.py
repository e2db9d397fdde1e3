"""Timing: contenders interleaved in one process, medians over blocks, ratios within a block; and whole processes.

Measurements as a table to print, and as JSON with device, versions and commit.
"""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from normloss.runs import provenance
from normloss.training import device as devices

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

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("subject", "value", "unit", "target", "verdict")}


def table(measured: Iterable[Measurement]) -> str:
    lines = ["| subject | value | target | |", "|---|---:|---|---|"]
    lines += [f"| {row.subject} | {row.value:.4g} {row.unit} | {row.target} | {row.verdict} |" for row in measured]
    return "\n".join(lines)


def save(file: Path, device: torch.device, **facts: Any) -> None:
    """Write `facts` with those of code and device."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**provenance.facts(), **devices.describe(device), **facts}, indent=1) + "\n")
    print(f"written: {file}")


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
