"""The step captured once as a CUDA graph and replayed."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.config import Train
from normloss.regularizers import Regularizer
from normloss.training.eager import Eager

WARM_UP = 3  # steps before a capture: they allocate, choose algorithms and make the optimizer's momentum


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

    def recover(self) -> None:
        """After a failure: wait for the device, which raises what it suffered, and leave no capture behind."""


class Buffers(NamedTuple):
    """Where a captured step reads its batch and leaves its results."""

    x: Tensor  # (B, C, S, S)
    y: Tensor  # (B,)
    ce: Tensor  # ()
    wrong: Tensor  # ()


class CudaGraph(Eager):
    """The step captured once and replayed: one launch in place of thousands.

    lr and lam are constants of a capture: where a schedule changes one, a few times per run, it is captured anew.
    The WARM_UP steps before a capture are real steps, as is an epoch's last, short batch, run eagerly: nothing has to
    be restored, and each step is taken once.
    """

    name = "graph"

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train, capture: Capture) -> None:
        super().__init__(model, reg, optimizer, cfg)
        self.capture = capture
        self.constants: tuple[float, ...] | None = None  # lam, and lr of each parameter group
        self.steps = 0  # of a whole batch under these constants
        self.stage = "warm-up"  # of the newest step: warm-up, capture or replay
        self.buffers: Buffers | None = None

    def next_stage(self, x: Tensor) -> str | None:
        """How the step of a batch x would be run: warm-up, capture or replay; None for a short batch, eagerly."""
        if len(x) != self.cfg.batch_size:
            return None
        if self.constants_now() != self.constants or self.steps < WARM_UP:
            return "warm-up"
        return "capture" if self.steps == WARM_UP else "replay"

    def constants_now(self) -> tuple[float, ...]:
        return self.reg.lam, *(group["lr"] for group in self.optimizer.param_groups)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        stage = self.next_stage(x)
        if stage is None:
            return super().step(x, y)
        if self.constants_now() != self.constants:
            self.capture.discard()
            self.constants, self.steps = self.constants_now(), 0
        if self.buffers is None:
            self.buffers = Buffers(torch.empty_like(x), torch.empty_like(y), x.new_empty(()), y.new_empty(()))
        self.buffers.x.copy_(x)
        self.buffers.y.copy_(y)
        self.stage = stage
        if stage == "warm-up":
            self.capture.warm_up(self.step_in_place)
        else:
            if stage == "capture":
                self.capture.capture(self.step_in_place)
            self.stage = "replay"
            self.capture.replay()
        self.steps += 1
        return self.buffers.ce.clone(), self.buffers.wrong.clone()  # the next step writes over them

    def step_in_place(self) -> None:
        """The step on the batch in the buffers, its results into them."""
        buffers = self.buffers
        assert buffers is not None  # made by the first step
        ce, wrong = super().step(buffers.x, buffers.y)
        buffers.ce.copy_(ce)
        buffers.wrong.copy_(wrong)


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
        assert self.graph is not None  # captured
        self.graph.replay()

    def discard(self) -> None:
        self.graph = None

    def recover(self) -> None:
        self.graph = None
        torch.cuda.synchronize(self.stream.device)
        # a capture that failed leaves the device's generator in the state of one that goes on; a fresh state is not
        fresh = torch.Generator(self.stream.device).graphsafe_get_state()
        torch.cuda.default_generators[self.stream.device.index].graphsafe_set_state(fresh)
