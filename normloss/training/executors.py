"""The executor of the step, train.executor: eager and compile of training/eager.py, graph of training/graph.py.

auto is a graph wherever one can be had, else eager.
"""

from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from normloss.config import Config
from normloss.data import TensorData
from normloss.errors import UserError
from normloss.regularizers import Regularizer
from normloss.runs.store import Run
from normloss.training.ddp import DistributedStep
from normloss.training.distributed import ProcessGroup, SingleProcess
from normloss.training.eager import Compiled, Eager
from normloss.training.graph import CudaCapture, CudaGraph


class Batches(Protocol):
    """A data set as an executor sees it: the device of its batches."""

    device: torch.device


def build(
    cfg: Config,
    model: nn.Module,
    reg: Regularizer,
    optimizer: Optimizer,
    data: Batches,
    run: Run | None = None,
    group: SingleProcess | None = None,
) -> Eager:
    """Return the executor of train.executor, for auto a graph wherever possible; raises UserError if it is impossible.

    run: where a graph that cannot be captured is noted. group: of processes that share the step.
    """
    name, parts = cfg.train.executor, (model, reg, optimizer, cfg.train)
    if isinstance(group, ProcessGroup):
        return DistributedStep(*parts, group=group)
    if name == "auto":
        name = "eager" if obstacle("graph", cfg, reg, data) else "graph"
    if why := obstacle(name, cfg, reg, data):
        raise UserError(f"train.executor: {name} {why}; choose auto or eager")
    if name == "graph":
        return CudaGraph(*parts, CudaCapture(data.device), run)
    return Compiled(*parts) if name == "compile" else Eager(*parts)


def obstacle(name: str, cfg: Config, reg: Regularizer, data: Batches) -> str | None:
    """Return why an executor cannot run this; None if it can."""
    if name == "compile" and reg.needs_input_grad:
        return f"has no double backward, which reg={cfg.reg.name} needs"
    if name == "graph" and data.device.type != "cuda":
        return f"needs a CUDA device, got {data.device}"
    if name == "graph" and not isinstance(data, TensorData):
        return f"needs a data set that stays on the device as tensors, which {cfg.dataset.name} does not"
    if name == "graph" and not reg.capturable:
        return f"cannot replay the steps of reg={cfg.reg.name}"
    return None
