"""The distance of one executor's step from another's, as a share of what the other's step changed.

deviation = |V - V_other| / |V_other - V_before|, where V are all weights, all running statistics or all momenta as one
vector: the largest of the three. Kernels that add in no fixed order differ by about 1e-5 in float32; a penalty left
out, an old learning rate or an old batch by far more. A compiled step adds in another order throughout: on a CPU two
layouts of the same eager step differ by 0.013 (ResNet20, 128 images) to 0.038 (ResNet110, 32 images).
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.steps import NoiseBatches, StepLoop, with_executor

# how far a step may be, by precision: captured from not captured, compiled from eager; and cross entropies from each
CAPTURED = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 2e-2}
COMPILED = {"fp32": 0.25, "tf32": 0.25, "bf16": 0.6}
CROSS_ENTROPY = {"fp32": 1e-4, "tf32": 1e-4, "bf16": 1e-2}
# the steps, never captured, that each executor's has to equal
REFERENCES = {"eager": {}, "graph": {"eager": CAPTURED}, "compile": {"eager": COMPILED, "compile": CAPTURED}}


class Deviation(NamedTuple):
    step: float  # as a share of what the other step changed
    cross_entropy: float  # absolute difference


def deviation(loop: StepLoop, reference: str = "eager") -> Deviation:
    """Return how far the next step of a loop that is warm is from a reference's on the same batch."""
    cfg, device = with_executor(loop.cfg, reference), loop.device
    other = StepLoop(cfg, device, NoiseBatches(cfg, device))
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
