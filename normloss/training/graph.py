"""The step captured once as a CUDA graph and replayed; the model in it as it is, or compiled."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.config import Train
from normloss.errors import named
from normloss.regularizers import Regularizer
from normloss.runs.store import Run
from normloss.training.eager import Eager, report_compiler
from normloss.training.step import train_step

WARM_UP = 3  # steps before a capture: they allocate, choose algorithms and make the optimizer's momentum


class Buffers(NamedTuple):
    """The tensors that a captured step reads its batch from and leaves its results in."""

    x: Tensor  # (B, C, S, S)
    y: Tensor  # (B,)
    ce: Tensor  # ()
    wrong: Tensor  # ()


class CudaGraph(Eager):
    """The step captured once and replayed: one launch in place of thousands.

    lr and lam are constants of a capture: where a schedule changes one, a few times per run, it is captured anew.
    The WARM_UP steps before a capture are real steps, as is an epoch's last, short batch, run eagerly: nothing has to
    be restored, and each step is taken once. A capture that raises is reported in one line; from then on steps are
    eager. run: where that is noted. compiled: the model through torch.compile, for whole batches; a new lr or lam
    captures anew and compiles nothing.
    """

    def __init__(
        self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, cfg: Train, capture: "CudaCapture",
        run: Run | None = None, compiled: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, reg, optimizer, cfg)
        self.name, self.captured = ("graph", model) if compiled is None else ("compile", compiled)
        self.capture: CudaCapture | None = capture  # None once it failed
        self.run = run
        self.constants: tuple[float, ...] | None = None  # lam, and lr of each parameter group
        self.steps = 0  # of a whole batch under these constants
        self.buffers: Buffers | None = None

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.capture is None or len(x) != self.cfg.batch_size:
            return super().step(x, y)
        constants = self.reg.lam, *(group["lr"] for group in self.optimizer.param_groups)
        if constants != self.constants:
            self.capture.discard()
            self.constants, self.steps = constants, 0
        if self.buffers is None:
            self.buffers = Buffers(torch.empty_like(x), torch.empty_like(y), x.new_empty(()), y.new_empty(()))
        self.buffers.x.copy_(x)
        self.buffers.y.copy_(y)
        if self.steps == WARM_UP:
            try:
                self.capture.capture(self.step_in_place)
            except RuntimeError as error:  # of torch or CUDA; the step was not taken
                self.capture, self.name = None, f"eager ({self.name}: {named(error)})"
                print(f"the CUDA graph cannot be captured ({named(error)}); continuing eagerly", flush=True)
                if self.run:
                    self.run.note(executor=self.name)
                return super().step(x, y)
        if self.steps >= WARM_UP:
            self.capture.replay()
        else:
            with report_compiler():
                self.capture.warm_up(self.step_in_place)
        self.steps += 1
        return self.buffers.ce.clone(), self.buffers.wrong.clone()  # the next step writes over them

    def step_in_place(self) -> None:
        """Take the step on the batch in the buffers, and leave its results there."""
        buffers = self.buffers
        assert buffers is not None  # made by the first step
        ce, wrong = train_step(self.captured, self.reg, self.optimizer, buffers.x, buffers.y, self.cfg)
        buffers.ce.copy_(ce)
        buffers.wrong.copy_(wrong)


class CudaCapture:
    """torch.cuda.CUDAGraph on a stream of its own, which the warm-up shares: its workspaces are the graph's."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work as capture() will."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> None:
        """Record what work launches without running it; raises RuntimeError, and leaves the device as it was."""
        device = self.stream.device
        rng, self.graph = torch.cuda.get_rng_state(device), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                work()
        except RuntimeError:
            self.graph = None
            torch.cuda.synchronize(device)
            # the device's generator still takes part in the capture that failed; one with a fresh state does not
            fresh = torch.Generator(device).graphsafe_get_state()
            torch.cuda.default_generators[device.index].graphsafe_set_state(fresh)
            torch.cuda.set_rng_state(rng, device)
            raise

    def replay(self) -> None:
        assert self.graph is not None  # captured
        self.graph.replay()

    def discard(self) -> None:
        self.graph = None
