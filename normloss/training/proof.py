"""A CUDA graph that has to show that it takes the eager step; where it fails the run goes on eagerly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normloss.errors import Interrupted, Stop, UserError, named
from normloss.regularizers import Regularizer
from normloss.runs.store import Run
from normloss.training.device import LinAlgError, out_of_memory
from normloss.training.eager import Eager
from normloss.training.graph import CudaGraph

# How far a replayed step may be from the eager one, as a share of what the eager step changed. Kernels that add in no
# fixed order differ by about 1e-5 in float32; a penalty left out, an old learning rate or an old batch by far more.
TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 2e-2}
ROUNDING, ZERO = 2e-7, 1e-9  # of a tensor's size, and of each element: what float32 does not tell apart


class Proven:
    """The step as a graph until one fails, eagerly from then on, with one line and a note in meta.json.

    A warm-up or a capture that fails is undone and its batch stepped eagerly; a replay that fails has launched nothing.
    The step of the first capture is taken both ways from the same state and compared; what the eager one made stays.
    Where the device itself is lost the run is interrupted and notes it: its next start is eager. demanded: by name;
    then a failure is a UserError.
    """

    def __init__(self, graph: CudaGraph, run: Run | None = None, demanded: bool = False) -> None:
        self.graph: CudaGraph | None = graph
        self.eager = Eager(graph.model, graph.reg, graph.optimizer, graph.cfg)
        self.run, self.demanded, self.proven = run, demanded, False
        self.name = "graph"

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """train_step on a batch x (B, C, S, S), y (B,): mean cross entropy and number of errors."""
        stage = self.graph.next_stage(x) if self.graph else None
        if self.graph is None or stage is None:
            return self.eager.step(x, y)
        before = None if stage == "replay" else self.snapshot(x.device)
        try:
            result = self.graph.step(x, y)
        except Exception as error:  # whatever a driver or torch makes of a graph, the eager step is there
            if isinstance(error, Stop | LinAlgError) or out_of_memory(error):
                raise  # an eager step would raise it too
            self.give_up(f"{self.graph.stage}: {named(error)}", self.graph, before)
            return self.eager.step(x, y)
        if stage == "capture" and not self.proven:
            assert before is not None
            return self.prove(x, y, result, self.graph, before)
        return result

    def prove(
        self, x: Tensor, y: Tensor, replayed: tuple[Tensor, Tensor], graph: CudaGraph, before: "Snapshot"
    ) -> tuple[Tensor, Tensor]:
        """The same step eagerly, which stays; the graph is given up if its step was another."""
        theirs = self.snapshot(x.device)
        before.restore()
        result = self.eager.step(x, y)
        if not result[0].isfinite():  # device sync; a run that diverges shows nothing
            return result
        tolerance = TOLERANCE[graph.cfg.precision]
        off = difference(before.tensors, self.snapshot(x.device).tensors, theirs.tensors, tolerance)
        off = off or metrics_differ(result, replayed, len(x), tolerance)
        if off:
            self.give_up(off, graph)
        self.proven = True
        return result

    def give_up(self, reason: str, graph: CudaGraph, before: "Snapshot | None" = None) -> None:
        """Go on eagerly, from `before` where a step was cut short; raises Interrupted where the device is lost."""
        if self.demanded:
            raise UserError(failed(reason))
        with self.watch(reason):
            graph.capture.recover()
            if before:
                before.restore()
        self.graph, self.name = None, f"eager (graph: {reason})"
        print(f"the CUDA graph failed ({reason}); going on eagerly", flush=True)
        if self.run:
            self.run.note(executor=self.name)

    @contextmanager
    def watch(self, reason: str | None = None) -> Iterator[None]:
        """Within this block an error of the device interrupts the run where a graph was in use, and rules graphs out.

        reason: what went wrong before; without it, the error itself.
        """
        try:
            yield
        except RuntimeError as error:
            if self.run is None or self.graph is None or not of_device(error):
                raise
            reason = reason or named(error)
            if self.demanded:
                raise UserError(failed(reason)) from None
            self.run.note(unusable={"graph": reason})
            raise Interrupted(
                f"run {self.run.id} lost its device under a CUDA graph ({reason}); start it again to go on, eagerly"
            ) from None

    def snapshot(self, device: torch.device) -> "Snapshot":
        return Snapshot(self.eager.model, self.eager.reg, self.eager.optimizer, device)


class Snapshot:
    """What a step changes: weights, buffers, momentum, the method's own state, and the device's random numbers."""

    def __init__(self, model: nn.Module, reg: Regularizer, optimizer: Optimizer, device: torch.device) -> None:
        self.model, self.reg, self.optimizer, self.device = model, reg, optimizer, device
        self.tensors = {name: tensor.detach().clone() for name, tensor in self.live().items()}
        self.reg_state = cloned(reg.state_dict())
        self.rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def live(self) -> dict[str, Tensor]:
        """The tensors themselves, by name."""
        momenta = {
            f"momentum of {name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        return {**self.model.state_dict(), **momenta, **dict(tensors_in(self.reg.state_dict(), "method's state"))}

    @torch.no_grad()
    def restore(self) -> None:
        """Back into the tensors that it was taken of, where a graph reads them; momentum begun since is forgotten."""
        for name, tensor in self.live().items():
            if name in self.tensors:
                tensor.copy_(self.tensors[name])
        for name, parameter in self.model.named_parameters():
            if f"momentum of {name}" not in self.tensors:
                self.optimizer.state.pop(parameter, None)
        self.reg.load_state_dict(self.reg_state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.rng, self.device)
        else:
            torch.set_rng_state(self.rng)


def cloned(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors are copies too."""
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, list):
        return [cloned(value) for value in state]
    return state.detach().clone() if isinstance(state, Tensor) else state


def tensors_in(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts and lists, with where it is."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors_in(value, f"{name} {key}")


def difference(
    before: dict[str, Tensor], eager: dict[str, Tensor], graph: dict[str, Tensor], tolerance: float
) -> str | None:
    """The tensor that is furthest off, where one is off by more than tolerance of its change from `before`."""
    names = list(eager)
    off = torch.stack([distance(graph[name], eager[name]) for name in names])
    change = torch.stack([distance(eager[name], before[name]) for name in names])
    rounding = torch.stack([ROUNDING * size(eager[name]) + ZERO * eager[name].numel() ** 0.5 for name in names])
    shares = (off / (tolerance * change + rounding)).nan_to_num(nan=torch.inf).cpu().tolist()  # device sync
    share, name = max(zip(shares, names, strict=True))
    return None if share <= 1 else f"another step than the eager one: {name} is off by {share:.2g} times the tolerance"


def metrics_differ(
    eager: tuple[Tensor, Tensor], graph: tuple[Tensor, Tensor], images: int, tolerance: float
) -> str | None:
    """The cross entropy or the number of errors, where they differ."""
    (ce, wrong), (their_ce, their_wrong) = ([float(value) for value in pair] for pair in (eager, graph))
    if not abs(ce - their_ce) <= tolerance * max(1.0, abs(ce)):
        return f"another step than the eager one: its cross entropy is {their_ce:.6g} in place of {ce:.6g}"
    if not abs(wrong - their_wrong) <= 1 + tolerance * images:
        return f"another step than the eager one: its errors are {their_wrong:g} in place of {wrong:g}"
    return None


def distance(a: Tensor, b: Tensor) -> Tensor:
    return size(a.double() - b.double())


def size(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.double())


def of_device(error: RuntimeError) -> bool:
    """Whether CUDA, not torch's own checks, raised an error, other than for lack of memory."""
    told = isinstance(error, torch.AcceleratorError) or str(error).startswith(("CUDA error", "cuDNN error", "CUBLAS"))
    return told and not out_of_memory(error)


def failed(reason: str) -> str:
    return f"train.executor: graph failed ({reason}); choose auto or eager"
