"""The forms of a step on a device, eager, graph and compile: images/s, and whether each equals the eager step.

python -m benchmarks.forms WORDS measures the cell of `python train.py WORDS`, unless that was done before, and
writes it to executors.json in its store, where train.executor=auto looks it up.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.agreement import disagreements
from benchmarks.steps import StepLoop, config, random_data, with_executor
from benchmarks.timing import interleave
from normloss.config import Config
from normloss.runs.files import load_json, write_json
from normloss.training import device as devices
from normloss.training import executors

FORMS = ("eager", "graph", "compile")
WORTH = 1.1  # times as fast as a graph, which is what auto takes without an entry
BLOCKS, STEPS = 3, 30  # a block


def measure(cfg: Config, device: torch.device, blocks: int = BLOCKS, steps: int = STEPS) -> dict[str, Any]:
    """Return a cell's entry of executors.json; on a device without graphs, of the forms that it has."""
    loops, start, data = {}, {}, random_data(cfg, device)
    for form in FORMS if device.type == "cuda" else ("eager", "compile"):
        began = time.perf_counter()
        loops[form] = StepLoop(with_executor(cfg, form), device, data)
        loops[form].warm_up()
        start[form] = round(time.perf_counter() - began, 2)
    times = interleave({form: partial(loop.steps, steps) for form, loop in loops.items()}, blocks)
    speed = {form: round(cfg.train.batch_size * steps / times.median(form), 1) for form in loops}
    wrong = {form: disagreements(loop) for form, loop in loops.items()}
    chosen = fastest({form: images for form, images in speed.items() if not wrong[form]})
    unequal = [line for lines in wrong.values() for line in lines]
    return {"executor": chosen, "images_per_second": speed, "start_seconds": start, "unequal": unequal}


def fastest(speed: dict[str, float]) -> str:
    """Return the fastest of the forms that are equal, if it is WORTH as much; else a graph if it is among them."""
    usual, best = "graph" if "graph" in speed else "eager", max(speed, key=speed.__getitem__)
    return best if speed[best] >= WORTH * speed[usual] else usual


def main(words: list[str]) -> None:
    cfg = config(*words)
    device = devices.setup(cfg)
    file = Path(cfg.store) / executors.MEASURED
    file.parent.mkdir(parents=True, exist_ok=True)
    entries, key = executors.measured(cfg.store), executors.cell(cfg, device)
    if key not in entries:
        write_json(file, entries | {key: measure(cfg, device)})
    print(f"{key}: {json.dumps(load_json(file)[key])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
