"""Three ways to run the one step of training/step.py: as it is written, as a CUDA graph, with the model compiled.

What step(x, y) returns is the caller's to keep. Weights, optimizer and regularizer are those that it was built on, so
checkpoints of one executor are the others' too.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.config import Config, Train
from normloss.data import Data, TensorData
from normloss.errors import UserError
from normloss.regularizers import Regularizer
from normloss.training.step import train_step

WARM_UP = 3  # steps before a capture: they allocate, choose algorithms and make the optimizer's momentum


def build(cfg: Config, model: nn.Module, reg: Regularizer, optimizer: Optimizer, data: Data) -> "Executor":
    """The executor of train.executor, for auto a graph wherever one can be had; UserError for one that cannot be."""
    name = cfg.train.executor
    if name == "auto":
        name = "eager" if obstacle("graph", cfg, reg, data) else "graph"
    if why := obstacle(name, cfg, reg, data):
        raise UserError(f"train.executor: {name} {why}; choose auto or eager")
    parts = model, reg, optimizer, cfg.train
    if name == "graph":
        return CudaGraph(*parts, CudaCapture(data.device))
    return Compiled(*parts) if name == "compile" else Eager(*parts)


def obstacle(name: str, cfg: Config, reg: Regularizer, data: Data) -> str | None:
    """Why an executor cannot run this, None where it can."""
    if name == "compile" and reg.needs_input_grad:
        return f"has no double backward, which reg={cfg.reg.name} needs"
    if name == "compile" and cfg.train.precision == "tf32":
        return "cannot read torch's setting for train.precision=tf32"
    if name == "graph" and data.device.type != "cuda":
        return f"needs a CUDA device, got {data.device}"
    if name == "graph" and not isinstance(data, TensorData):
        return f"needs a data set that stays on the device as tensors, which {cfg.dataset.name} does not"
    if name == "graph" and not reg.capturable:
        return f"cannot replay the steps of reg={cfg.reg.name}"
    return None


class Eager:
    """The step as it is written."""

    name = "eager"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train) -> None:
        self.model, self.reg, self.optimizer, self.cfg = model, reg, optimizer, cfg

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """train_step on a batch x (B, C, S, S), y (B,): mean cross entropy and number of errors."""
        return train_step(self.model, self.reg, self.optimizer, x, y, self.cfg)


class Compiled(Eager):
    """The step with the model's forward and backward compiled; the raw model keeps the weights and the state dict.

    dynamic=False: a short batch, and micro-batches after the first, get programs of their own; the numbers of an epoch
    do not depend on which shape came first. options: of torch.compile.
    """

    name = "compile"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train, **options) -> None:
        super().__init__(torch.compile(model, dynamic=False, **options), reg, optimizer, cfg)


class Capture(Protocol):
    """What a graph needs of CUDA; tests stand in for it."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work as capture() will."""

    def capture(self, work: Callable[[], None]) -> None:
        """Record what work launches without running it."""

    def replay(self) -> None:
        """Run what was recorded."""

    def discard(self) -> None:
        """Free what was recorded."""


class Buffers(NamedTuple):
    """Where a captured step reads its batch and leaves its results."""

    x: Tensor  # (B, C, S, S)
    y: Tensor  # (B,)
    ce: Tensor  # ()
    wrong: Tensor  # ()


class CudaGraph(Eager):
    """The step captured once and replayed: one launch in place of thousands.

    lr and lam are constants of a capture: where a schedule changes one, a handful of times a run, it is captured anew.
    The WARM_UP steps before a capture are real steps, as is an epoch's last, short batch, run eagerly: nothing has to
    be restored, and each step is taken once.
    """

    name = "graph"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train, capture: Capture) -> None:
        super().__init__(model, reg, optimizer, cfg)
        self.capture = capture
        self.constants: tuple[float, ...] | None = None  # lam, and lr of each parameter group
        self.steps = 0  # of a whole batch under these constants
        self.buffers: Buffers | None = None

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) != self.cfg.batch_size:
            return super().step(x, y)
        constants = self.reg.lam, *(group["lr"] for group in self.optimizer.param_groups)
        if constants != self.constants:
            self.capture.discard()
            self.constants, self.steps = constants, 0
        if self.buffers is None:
            self.buffers = Buffers(torch.empty_like(x), torch.empty_like(y), x.new_empty(()), y.new_empty(()))
        self.buffers.x.copy_(x)
        self.buffers.y.copy_(y)
        if self.steps < WARM_UP:
            self.capture.warm_up(self.step_in_place)
        else:
            if self.steps == WARM_UP:
                self.capture.capture(self.step_in_place)
            self.capture.replay()
        self.steps += 1
        return self.buffers.ce.clone(), self.buffers.wrong.clone()  # the next step writes over them

    def step_in_place(self) -> None:
        """The step on the batch in the buffers, its results into them."""
        ce, wrong = super().step(self.buffers.x, self.buffers.y)
        self.buffers.ce.copy_(ce)
        self.buffers.wrong.copy_(wrong)


class CudaCapture:
    """torch.cuda.CUDAGraph on a stream of its own, which the warm-up shares: its workspaces are the graph's."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            work()

    def replay(self) -> None:
        self.graph.replay()

    def discard(self) -> None:
        self.graph = None


Executor = Eager | Compiled | CudaGraph
