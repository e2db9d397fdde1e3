"""The forms of a step on a device, eager, graph and compile: images/s, and whether each equals the eager step.

python -m benchmarks.forms WORDS measures the cell of `python train.py WORDS`, unless that was done before, and
writes it to executors.json in its store, where train.executor=auto looks it up.

The distance of one form's step from another's is a share of what the other's step changed:
deviation = |V - V_other| / |V_other - V_before|, where V are all weights, all running statistics or all momenta as one
vector: the largest of the three. Kernels that add in no fixed order differ by about 1e-5 in float32; a penalty left
out, an old learning rate or an old batch by far more. A compiled step adds in another order throughout: on a CPU two
layouts of the same eager step differ by 0.013 (ResNet20, 128 images) to 0.038 (ResNet110, 32 images).
"""

import json
import sys
import time
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.steps import StepLoop, config, random_data, with_executor
from benchmarks.timing import interleave
from normloss.config import Config
from normloss.runs.files import load_json, write_json
from normloss.training import device as devices
from normloss.training import executors

FORMS = ("eager", "graph", "compile")
WORTH = 1.1  # times as fast as a graph, which is what auto takes without an entry
BLOCKS, STEPS = 3, 30  # a block
# how far a step may be, by precision: captured from not captured, compiled from eager; and cross entropies from each
CAPTURED = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 2e-2}
COMPILED = {"fp32": 0.25, "tf32": 0.25, "bf16": 0.6}
CROSS_ENTROPY = {"fp32": 1e-4, "tf32": 1e-4, "bf16": 1e-2}
# the steps, never captured, that each executor's has to equal
REFERENCES = {"eager": {}, "graph": {"eager": CAPTURED}, "compile": {"eager": COMPILED, "compile": CAPTURED}}


def measure(cfg: Config, device: torch.device) -> dict[str, Any]:
    """Return a cell's entry of executors.json; on a device without graphs, of the forms that it has."""
    loops, start, data = {}, {}, random_data(cfg, device)
    for form in FORMS if device.type == "cuda" else ("eager", "compile"):
        began = time.perf_counter()
        loops[form] = StepLoop(with_executor(cfg, form), device, data)
        loops[form].warm_up()
        start[form] = round(time.perf_counter() - began, 2)
    times = interleave({form: partial(loop.steps, STEPS) for form, loop in loops.items()}, BLOCKS)
    speed = {form: round(cfg.train.batch_size * STEPS / times.median(form), 1) for form in loops}
    wrong = {form: disagreements(loop) for form, loop in loops.items()}
    chosen = fastest({form: images for form, images in speed.items() if not wrong[form]})
    unequal = [line for lines in wrong.values() for line in lines]
    return {"executor": chosen, "images_per_second": speed, "start_seconds": start, "unequal": unequal}


def fastest(speed: dict[str, float]) -> str:
    """Return the fastest of the forms that are equal, if it is WORTH as much; else a graph if it is among them."""
    usual, best = "graph" if "graph" in speed else "eager", max(speed, key=speed.__getitem__)
    return best if speed[best] >= WORTH * speed[usual] else usual


# whether they are equal --------------------------------------------------------------------------


class Deviation(NamedTuple):
    step: float  # as a share of what the other step changed
    cross_entropy: float  # absolute difference


def deviation(loop: StepLoop, reference: str = "eager") -> Deviation:
    """Return how far the next step of a loop that is warm is from a reference's on the same batch."""
    other = StepLoop(with_executor(loop.cfg, reference), loop.device, loop.data)
    for part in ("model", "optimizer", "reg"):
        getattr(other, part).load_state_dict(deepcopy(getattr(loop, part).state_dict()))
    other.reg.lam = loop.reg.lam
    before, (x, y) = vectors(other), next(loop.batches)
    ces = []
    for each in (loop, other):
        torch.manual_seed(0)  # dropout and starting vectors
        ces.append(float(each.executor.step(x, y)[0]))
    states = zip(before, vectors(other), vectors(loop), strict=True)
    shares = [float((ours - expected).norm() / (expected - start).norm()) for start, expected, ours in states]
    return Deviation(max(shares), abs(ces[0] - ces[1]))


def disagreements(loop: StepLoop) -> list[str]:
    """Return where a loop's step is further from a reference's than it may be; none: it is equal."""
    form, precision = loop.cfg.train.executor, loop.cfg.train.precision
    found = {other: (deviation(loop, other), limits[precision]) for other, limits in REFERENCES[form].items()}
    return [
        f"{form} from {other}: step {off.step:.2g}, cross entropy {off.cross_entropy:.2g}"
        for other, (off, limit) in found.items()
        if not (off.step <= limit and off.cross_entropy <= CROSS_ENTROPY[precision])  # not a number is too far
    ]


def vectors(loop: StepLoop) -> list[Tensor]:
    """Return the weights, running statistics and momenta, each as one float64 vector."""
    momenta = [loop.optimizer.state[parameter]["momentum_buffer"] for parameter in loop.model.parameters()]
    return [vector(part) for part in (loop.model.parameters(), loop.model.buffers(), momenta)]


def vector(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors if t.is_floating_point()])


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
