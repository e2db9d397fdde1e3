"""How fast runs of a config train on this device: seconds of a step, on random images, data path and all."""

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

from normloss.benchmarks.rig import Rig
from normloss.config import Config, read_stored
from normloss.sweeps.durations import Pace
from normloss.training import device as devices
from normloss.training.executors import WARM_UP

SECONDS = 3.0  # of measuring, after the steps that pay for allocations, the choice of algorithms and captures
BLOCK = 20  # steps on a GPU that the host does not wait for in between


def step_seconds(cfg: Config) -> float:
    """Median over blocks."""
    device = devices.setup(cfg)
    rig = Rig(cfg, device)
    on_gpu = device.type == "cuda"
    rig.steps(WARM_UP + 2 if on_gpu else 1)
    block = BLOCK if on_gpu else 1
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        rig.steps(block)
        taken.append((time.perf_counter() - start) / block)
    return median(taken)


def paces(kinds: list[dict[str, Any]], seconds: float | None) -> Iterator[Pace]:
    """The pace of each {config, steps}, until those measured have steps for so many seconds, or measuring has taken a
    tenth of them."""
    work, began = 0.0, time.perf_counter()
    for asked in kinds:
        if seconds is not None and (work > seconds or time.perf_counter() - began > seconds / 10):
            return
        step = step_seconds(read_stored(asked["config"]))
        gc.collect()  # a graph that goes during another's capture ends it
        work += asked["steps"] * step
        yield Pace(step)


def main() -> None:
    """On standard input a JSON {kinds, seconds, began: when this process was started}, on standard output the paces."""
    asked = json.load(sys.stdin)
    start = time.time() - asked["began"]  # what a run's process imports was imported here
    found = [asdict(pace) | {"start": start} for pace in paces(asked["kinds"], asked["seconds"])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
