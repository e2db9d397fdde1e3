"""How far one step of an executor is from the eager step, as a share of what the eager step changed.

deviation = |V - V_eager| / |V_eager - V_before|, where V are all weights, all running statistics or all momenta as one
vector: the largest of the three.
Kernels that add in no fixed order differ by about 1e-5 in float32; a penalty left out, an old learning rate or an old
batch by far more.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.steps import StepLoop
from normloss.config import Config
from normloss.training.graph import WARM_UP


class Deviation(NamedTuple):
    step: float  # as a share of what the eager step changed
    cross_entropy: float  # |ce - ce_eager|


def deviation(cfg: Config, device: torch.device) -> Deviation:
    """Return how far the step of cfg.train.executor after its warm-up is from the eager one on the same batch."""
    eager_train = cfg.train.model_copy(update={"executor": "eager"})
    loop = StepLoop(cfg, device)
    eager = StepLoop(cfg.model_copy(update={"train": eager_train}), device, loop.data)
    loop.steps(WARM_UP)
    for part in ("model", "optimizer", "reg"):
        getattr(eager, part).load_state_dict(deepcopy(getattr(loop, part).state_dict()))
    eager.reg.lam = loop.reg.lam
    before, (x, y) = vectors(eager), next(loop.batches)
    ces = []
    for each in (loop, eager):
        torch.manual_seed(0)  # dropout and starting vectors
        ces.append(float(each.executor.step(x, y)[0]))
    states = zip(before, vectors(eager), vectors(loop), strict=True)
    shares = [float((other - expected).norm() / (expected - start).norm()) for start, expected, other in states]
    return Deviation(max(shares), abs(ces[0] - ces[1]))


def vectors(loop: StepLoop) -> list[Tensor]:
    """Return the weights, running statistics and momenta, each as one float64 vector."""
    momenta = [loop.optimizer.state[parameter]["momentum_buffer"] for parameter in loop.model.parameters()]
    parts: list[list[Tensor]] = [list(loop.model.parameters()), list(loop.model.buffers()), momenta]
    return [torch.cat([t.detach().reshape(-1).double() for t in part if t.is_floating_point()]) for part in parts]
