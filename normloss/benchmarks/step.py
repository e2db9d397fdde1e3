"""How fast runs of a config train on this device, alone and several seeds at once, on random images."""

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from normloss.benchmarks.rig import lane, random_data, take_turns
from normloss.config import Config, read_stored
from normloss.seeds import Lane
from normloss.sweeps.durations import Pace
from normloss.training import device as devices
from normloss.training.executors import WARM_UP

SECONDS = 3.0  # of measuring, after the steps that pay for allocations, the choice of algorithms and captures
ROUNDS = 20  # a block where the device is not waited for in between
FASTER = 1.2  # how much more several seeds must train in all than one, to be worth their common process


def pace(cfg: Config, seeds: int) -> Pace:
    """Of whole steps, data and all; `seeds` at once are tried on CUDA: a CPU's cores have nothing left for a second."""
    device = devices.setup(cfg)
    data = random_data(cfg, device)
    devices.synchronize(device)  # lanes read the images from their own streams
    alone = round_seconds([lane(cfg, device, data)], device)
    if device.type != "cuda" or seeds == 1:
        return Pace(alone, 1, alone)
    gc.collect()  # a graph that goes during another's capture ends it
    try:
        at_once = round_seconds([lane(cfg, device, data) for _ in range(seeds)], device)
    except torch.cuda.OutOfMemoryError:
        return Pace(alone, 1, alone)
    return judged(alone, at_once, seeds)


def judged(alone: float, at_once: float, seeds: int) -> Pace:
    """Seeds at once where a round of them, `at_once` seconds, is worth it against steps of `alone` seconds."""
    return Pace(alone, seeds, at_once) if seeds * alone >= FASTER * at_once else Pace(alone, 1, alone)


def round_seconds(lanes: list[Lane], device: torch.device) -> float:
    """Median seconds in which each of them takes a step, over blocks of rounds."""
    on_gpu = device.type == "cuda"
    take_turns(lanes, WARM_UP + 2 if on_gpu else 1, device)
    taken = []
    began = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        take_turns(lanes, ROUNDS if on_gpu else 1, device)
        taken.append((time.perf_counter() - start) / (ROUNDS if on_gpu else 1))
    return median(taken)


def paces(kinds: list[dict[str, Any]], seconds: float | None) -> Iterator[Pace]:
    """The pace of each {config, seeds, steps}, until those measured have steps for so many seconds, or measuring has
    taken a tenth of them."""
    work, began = 0.0, time.perf_counter()
    for asked in kinds:
        if seconds is not None and (work > seconds or time.perf_counter() - began > seconds / 10):
            return
        found = pace(read_stored(asked["config"]), asked["seeds"])
        work += asked["steps"] * found.round / found.together
        yield found


def main() -> None:
    """On standard input a JSON {kinds, seconds, began: when this process was started}, on standard output the paces."""
    asked = json.load(sys.stdin)
    start = time.time() - asked["began"]  # what a run's process imports was imported here
    found = [asdict(pace) | {"start": start} for pace in paces(asked["kinds"], asked["seconds"])]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
