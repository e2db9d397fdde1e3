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


def row(
    subject: str, value: float, unit: str, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """Return a row of a table: a measured figure, its target, if it has one, and whether it is reached."""
    target, verdict = "", ""
    if at_least is not None:
        target, verdict = f"at least {at_least:g}", "pass" if value >= at_least else "short"
    if at_most is not None:
        target, verdict = f"at most {at_most:g}", "pass" if value <= at_most else "short"
    return {"subject": subject, "value": value, "unit": unit, "target": target, "verdict": verdict}


def against_pil(what: str, times: Times, images: int, at_least: float) -> list[dict[str, Any]]:
    """Return the rows of so many images by "ours" and by "PIL"; at_least: of their ratio."""
    return [
        row(f"{what}, speed against PIL + torchvision", times.ratio("PIL", to="ours"), "x", at_least),
        row(f"{what} of ours", images / times.median("ours"), "images/s"),
        row(f"{what} by PIL + torchvision", images / times.median("PIL"), "images/s"),
    ]


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = ["| subject | value | target | |", "|---|---:|---|---|"]
    lines += ["| {subject} | {value:.4g} {unit} | {target} | {verdict} |".format(**each) for each in rows]
    return "\n".join(lines)


def save(file: Path, device: torch.device, **facts: Any) -> None:
    """Write `facts` with those of code and device."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**provenance.facts(), **devices.describe(device), **facts}, indent=1) + "\n")
    print(f"written: {file}")


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of a process on one thread; raises RuntimeError with its output if it fails."""
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # user and system
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {ended.returncode}:\n{ended.stdout}")
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
